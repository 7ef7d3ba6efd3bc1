"""A Llama-shaped decoder with random weights on the kernels of this package: one step over decodes and prefill chunks.

All that changes from step to step is in one int32 buffer (`StepShape` says what lies where), so that a step is one copy
to the GPU and one launch of a captured graph. Rows without a token have context 0 and slot -1: they compute numbers
that nobody reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from kernels.blocks import BLOCK_TOKENS
from kernels.decode import decode_attention, plan_decode
from kernels.grid import Shape
from kernels.layers import rms_norm, rope_and_cache, rope_tables, silu_mul
from kernels.prefill import prefill_attention

__all__ = ["Llama", "StepShape"]

ROPE_THETA = 500_000.0  # config.json of Llama 3.1
WEIGHT_SCALE = 0.02  # standard deviation of random weights


@dataclass(frozen=True, slots=True)
class StepShape:
    """tokens: rows of the step; decodes: the first of them, one for each decoding sequence; chunks: prefill chunks."""

    tokens: int
    decodes: int
    chunks: int

    @property
    def fields(self) -> tuple[tuple[str, int, int], ...]:
        """(name, entries, what an unused entry holds) of the buffer, in order."""
        t, d, c = self.tokens, self.decodes, self.chunks
        return (
            ("tokens", t, 0), ("positions", t, 0), ("slots", t, -1), ("decode_rows", d, 0), ("decode_lens", d, 0),
            ("chunk_rows", c, 0), ("chunk_starts", c + 1 if c else 0, 0), ("chunk_lens", c, 0),
            ("outputs", d + c, 0),
        )  # fmt: skip

    @property
    def size(self) -> int:
        return sum(entries for _, entries, _ in self.fields)

    def views(self, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        """The fields of a buffer of `size` entries."""
        parts = buffer.split([entries for _, entries, _ in self.fields])
        return {name: part for (name, _, _), part in zip(self.fields, parts, strict=True)}

    def filled(self, values: dict[str, list[int]]) -> list[int]:
        """The buffer's entries: each field's values, then its filler. chunk_starts goes on with its last value."""
        flat: list[int] = []
        for name, entries, filler in self.fields:
            given = values.get(name, [])
            rest = given[-1] if name == "chunk_starts" and given else filler
            flat += given
            flat += [rest] * (entries - len(given))
        return flat


class Llama:
    """Weights, pages and block tables of one GPU.

    blocks: pages of the cache; rows: sequences that may have a block table at a time; columns: blocks of the longest.
    """

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        dtype: torch.dtype,
        blocks: int,
        rows: int,
        columns: int,
        seed: int = 0,
    ) -> None:
        self.shape, self.device, self.dtype = shape, device, dtype
        self._generator = torch.Generator(device).manual_seed(seed)
        (qkv, o, gate_up, down, _) = shape.linear(1)
        self.embedding = self._matrix(shape.vocab, shape.hidden)
        self.lm_head = self._matrix(shape.vocab, shape.hidden)
        self.layers = [
            (self._matrix(*qkv), self._matrix(*o), self._matrix(*gate_up), self._matrix(*down))
            for _ in range(shape.layers)
        ]
        self._ones = torch.ones(shape.hidden, dtype=dtype, device=device)  # weights of the norms
        self.pages = torch.zeros(
            (shape.layers, 2, blocks, shape.kv_heads, BLOCK_TOKENS, shape.head_dim), dtype=dtype, device=device
        )
        self.tables = torch.zeros((rows + 1, columns), dtype=torch.int32, device=device)  # the last row is nobody's

    def _matrix(self, n: int, k: int) -> torch.Tensor:
        made = torch.empty((n, k), dtype=self.dtype, device=self.device)
        return made.normal_(0.0, WEIGHT_SCALE, generator=self._generator)

    @cached_property
    def _rope(self) -> tuple[torch.Tensor, torch.Tensor]:
        return rope_tables(self.tables.shape[1] * BLOCK_TOKENS, self.shape.head_dim, ROPE_THETA, self.device)

    def forward(self, buffer: torch.Tensor, step: StepShape, longest: int | None = None) -> torch.Tensor:
        """One step: (decodes + chunks,) int32 next tokens, those of decodes first, then of each chunk's last row.

        buffer: (step.size,) int32 on the device; longest: context among the chunks, where known.
        """
        x = step.views(buffer)
        cos, sin = self._rope
        decode_table = self.tables.index_select(0, x["decode_rows"])
        chunk_table = self.tables.index_select(0, x["chunk_rows"])
        plan = plan_decode(x["decode_lens"], self.shape.kv_heads) if step.decodes else None
        hidden, residual = self.embedding.index_select(0, x["tokens"]), None
        for layer, (qkv, o, gate_up, down) in enumerate(self.layers):
            k_pool, v_pool = self.pages[layer]
            hidden, residual = rms_norm(hidden, self._ones, residual)
            q = rope_and_cache(hidden @ qkv.t(), k_pool, v_pool, cos, sin, x["positions"], x["slots"])
            attended = torch.zeros_like(q) if step.chunks else torch.empty_like(q)  # rows of no token stay finite
            if plan is not None:
                d = step.decodes
                decode_attention(
                    q[:d], k_pool, v_pool, decode_table, x["decode_lens"], plan=plan, out=attended[:d]
                )  # writes zeros to rows without a context, before the chunks write theirs
            if step.chunks:
                prefill_attention(
                    q, k_pool, v_pool, chunk_table, x["chunk_starts"], x["chunk_lens"], longest=longest, out=attended
                )
            hidden, residual = rms_norm(attended.flatten(1) @ o.t(), self._ones, residual)
            hidden = silu_mul(hidden @ gate_up.t()) @ down.t()
        last = x["outputs"]
        final, _ = rms_norm(hidden.index_select(0, last), self._ones, residual.index_select(0, last))
        return (final @ self.lm_head.t()).argmax(-1).int()

    def set_blocks(self, positions: list[int], blocks: list[int]) -> None:
        """Write entries of the block tables: positions in the flattened tables."""
        if positions:
            pair = torch.tensor([positions, blocks], dtype=torch.int64)
            if self.device.type == "cuda":
                pair = pair.pin_memory().to(self.device, non_blocking=True)
            self.tables.view(-1).index_copy_(0, pair[0], pair[1].int())
