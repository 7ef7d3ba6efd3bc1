"""Tile sizes by kind of GPU, head_dim and dtype: tables, chosen by reasoning and by what the compiler reports.

Nothing is tuned at run time: first calls are quick and equal calls take equal kernels. `python -m kernels.measure
--tune` tries ALTERNATIVES on the GPU at hand and prints which are fastest there. Page sizes have no entries of their
own: registers and shared memory hardly differ between pages of 16 and of 128 tokens (`python -m kernels.resources`).

Decode moves bytes, and enough must be on their way: 25 KB an SM for 4.8 TB/s at 700 ns. A tile of 64 tokens x 128 x 2
bytes is 16 KB each of K and V. The page lookup before each load takes a stage of its own, so 5 stages are two buffers:
one tile on its way while one is worked on, in 72 KB; three programs on an SM of sm_90 (227 KB), two on sm_80 (163 KB).
Prefill multiplies: 128 query rows are two warp groups of wgmma, K and V tiles of 64 tokens keep scores and accumulator
in 224 registers (128 tokens spill on sm_90; on sm_80, whose product takes its operands from registers, 64 tokens do at
head_dim 128). fp32 has no tensor-core path (input_precision="ieee"): small tiles, for correctness and not for speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

__all__ = ["ALTERNATIVES", "Tile", "capability", "decode_tile", "prefill_tile"]


@dataclass(frozen=True, slots=True)
class Tile:
    """rows: query rows of a program (prefill); tokens: KV tokens of a tile; resident: programs an SM holds at once."""

    rows: int
    tokens: int
    warps: int
    stages: int
    resident: int = 1


# (sm_90 or later, head_dim, bytes of an element)
DECODE = {
    (True, 128, 2): Tile(16, 64, 4, 5, 3),
    (True, 64, 2): Tile(16, 128, 4, 5, 3),
    (False, 128, 2): Tile(16, 64, 4, 5, 2),
    (False, 64, 2): Tile(16, 128, 4, 5, 2),
    (True, 128, 4): Tile(16, 16, 4, 3, 4),
    (True, 64, 4): Tile(16, 16, 4, 3, 4),
    (False, 128, 4): Tile(16, 16, 4, 3, 4),
    (False, 64, 4): Tile(16, 16, 4, 3, 4),
}
PREFILL = {
    (True, 128, 2): Tile(128, 64, 8, 3),
    (True, 64, 2): Tile(128, 64, 8, 3),
    (False, 128, 2): Tile(128, 32, 8, 3),
    (False, 64, 2): Tile(128, 64, 8, 3),
    (True, 128, 4): Tile(16, 16, 4, 1, 4),
    (True, 64, 4): Tile(16, 32, 4, 1, 4),
    (False, 128, 4): Tile(16, 16, 4, 1, 4),
    (False, 64, 4): Tile(16, 32, 4, 1, 4),
}
ALTERNATIVES = {
    "decode_attention": [
        Tile(16, tokens, warps, stages, resident)
        for tokens, warps, stages, resident in (
            (32, 4, 5, 4), (32, 4, 7, 4), (32, 2, 7, 4), (64, 4, 3, 4), (64, 4, 5, 3), (64, 4, 7, 2), (64, 8, 5, 3),
            (64, 2, 5, 3), (128, 4, 3, 3), (128, 8, 3, 3), (128, 8, 5, 1),
        )
    ],
    "prefill_attention": [
        Tile(rows, tokens, warps, stages, resident)
        for rows, tokens, warps, stages, resident in (
            (128, 64, 8, 3, 1), (128, 64, 8, 5, 1), (128, 32, 8, 5, 1), (128, 128, 8, 3, 1), (64, 64, 4, 3, 2),
            (64, 64, 4, 5, 1), (64, 32, 4, 5, 2),
        )
    ],
}  # fmt: skip


@cache
def capability(device: torch.device) -> int:
    """10 times major plus minor compute capability; 90 where there is no GPU."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def decode_tile(head_dim: int, dtype: torch.dtype, compute: int = 90) -> Tile:
    """The tile of decode attention."""
    return DECODE[compute >= 90, head_dim, dtype.itemsize]


def prefill_tile(head_dim: int, dtype: torch.dtype, compute: int = 90) -> Tile:
    """The tile of prefill attention."""
    return PREFILL[compute >= 90, head_dim, dtype.itemsize]
