"""The machine that is measured and the memory that measurements work in: random KV pages, weights, pinned host memory.

Zeros run faster than data (less power, so higher clocks), so all of it is random. Memory is taken once and seen in many
shapes; pages are handed out in shuffled order.
"""

from __future__ import annotations

import os
import subprocess
from functools import cached_property
from pathlib import Path

import torch

from kernels.device import interpreted
from kernels.grid import GIB, LLAMA_8B, TINY, Shape
from kernels.rows import INTERPRETER, Provenance
from kernels.timing import l2_bytes

import triton  # isort: skip  # after kernels.device

__all__ = ["Bench", "TooLarge", "provenance"]

ROTATION = 4  # times the L2 cache that calls in turn touch
MOST_VARIANTS = 64
ARENA_SHARE, ARENA_BYTES = 0.5, 48 * GIB
WEIGHT_SHARE, WEIGHT_BYTES = 0.12, 5 * GIB
HOST_BYTES = GIB
DRY_BYTES = 2**21


class TooLarge(Exception):
    """A measurement that does not fit into this GPU's memory, or needs more GPUs."""


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.stdout.strip() or "unknown"


def _driver() -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return "unknown"
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


def provenance() -> Provenance:
    """Of rows measured here and now."""
    dry = interpreted()
    return Provenance(
        device=INTERPRETER if dry else torch.cuda.get_device_name(),
        driver="none" if dry else _driver(),
        torch=torch.__version__,
        triton=triton.__version__,
        commit=os.environ.get("SAGASIM_COMMIT") or _commit(),
    )


class Bench:
    """device: the GPU, or the CPU in a dry run; main: the model shape of rows that name none."""

    def __init__(self) -> None:
        self.dry = interpreted()
        self.device = torch.device("cpu" if self.dry else "cuda:0")
        self.main: Shape = TINY if self.dry else LLAMA_8B
        self._generator = torch.Generator(self.device).manual_seed(0)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """bf16 numbers of a normal distribution."""
        made = torch.empty(shape, dtype=torch.bfloat16, device=self.device)
        return made.normal_(0.0, scale, generator=self._generator)

    def _sized(self, share: float, most: int) -> int:
        return DRY_BYTES if self.dry else min(most, int(share * torch.cuda.get_device_properties(0).total_memory))

    @cached_property
    def arena(self) -> torch.Tensor:
        """Flat bf16 memory for pages."""
        return self.normal(self._sized(ARENA_SHARE, ARENA_BYTES) // 2)

    @cached_property
    def weights(self) -> torch.Tensor:
        """Flat bf16 memory for matrices."""
        return self.normal(self._sized(WEIGHT_SHARE, WEIGHT_BYTES) // 2, scale=0.02)

    @cached_property
    def host(self) -> torch.Tensor:
        """Flat pinned host memory, int8."""
        size = DRY_BYTES if self.dry else HOST_BYTES
        return torch.zeros(size, dtype=torch.int8, pin_memory=not self.dry)

    def variants(self, touched_bytes: int, fitting: int) -> int:
        """How many calls to take in turn so that the L2 cache holds none of their data; `fitting` have room."""
        if fitting < 1:
            raise TooLarge(f"{touched_bytes / GIB:.1f} GiB do not fit")
        return max(1, min(MOST_VARIANTS, fitting, -(-ROTATION * l2_bytes(self.device) // touched_bytes)))

    def matrices(self, n: int, k: int) -> list[torch.Tensor]:
        """(n, k) weights, as many as it takes to defeat the L2 cache."""
        size = n * k
        count = self.variants(2 * size, self.weights.numel() // size)
        return [self.weights[i * size : (i + 1) * size].view(n, k) for i in range(count)]

    def pools(self, kv_heads: int, page: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the whole arena: (pages, kv_heads, page, head_dim) each."""
        size = kv_heads * page * head_dim
        pages = self.arena.numel() // 2 // size
        whole = self.arena[: 2 * pages * size].view(2, pages, kv_heads, page, head_dim)
        return whole[0], whole[1]

    def pieces(self, piece_bytes: int) -> torch.Tensor:
        """The arena as (pieces, words) of int32."""
        words = self.arena.view(torch.int32)
        count = words.numel() * 4 // piece_bytes
        return words[: count * piece_bytes // 4].view(count, piece_bytes // 4)

    def shuffled(self, rows: int) -> torch.Tensor:
        """0 to rows - 1 in random order, int32 on the device."""
        return torch.randperm(rows, generator=self._generator, device=self.device, dtype=torch.int32)

    def tables(self, lengths: list[int], page: int, pages: int, touched_bytes: int) -> list[torch.Tensor]:
        """Block tables of as many batches as it takes, on pages of which none occurs twice."""
        needed = torch.tensor([-(-length // page) for length in lengths], device=self.device)
        total = int(needed.sum())
        count = self.variants(touched_bytes, pages // total)
        order = self.shuffled(pages)
        columns = torch.arange(int(needed.max()), device=self.device)
        used = columns[None, :] < needed[:, None]
        tables = []
        for i in range(count):
            table = torch.zeros(used.shape, dtype=torch.int32, device=self.device)
            table[used] = order[i * total : (i + 1) * total]
            tables.append(table)
        return tables
