"""Gather, scatter and copy of pieces (rows of a tensor: pages of a pool, or any other) by index, on one GPU.

A piece is moved as 32-bit words, 16 bytes a thread and load. One kernel serves pool to pool, pool to packed buffer,
packed buffer to pool, and pinned host memory on either side, which a GPU reads and writes over its link.
"""

from __future__ import annotations

import torch

from kernels.checks import check_lengths
from kernels.device import interpreted

import triton  # isort: skip  # after kernels.device
import triton.language as tl  # isort: skip

__all__ = ["copy_pieces", "gather_pieces", "piece_words", "scatter_pieces"]

BLOCK_WORDS = 4096  # 16 KiB in flight a program: with 8 warps, four 16-byte loads a thread


@triton.jit(do_not_specialize=["units", "parts"])
def _copy_pieces(
    source, target, source_rows, target_rows, units, parts, words, stride_source, stride_target,
    SOURCE_ROWS: tl.constexpr, TARGET_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Units are parts of pieces; a program takes every num_programs-th."""
    w = tl.arange(0, BLOCK)
    for unit in range(tl.program_id(0), units, tl.num_programs(0)):
        piece = unit // parts
        word = unit % parts * BLOCK + w
        row_s = piece.to(tl.int64)
        row_t = piece.to(tl.int64)
        if SOURCE_ROWS:
            row_s = tl.load(source_rows + piece).to(tl.int64)
        if TARGET_ROWS:
            row_t = tl.load(target_rows + piece).to(tl.int64)
        here = word < words
        moved = tl.load(source + row_s * stride_source + word, mask=here, other=0, eviction_policy="evict_first")
        tl.store(target + row_t * stride_target + word, moved, mask=here, eviction_policy="evict_first")


def piece_words(pool: torch.Tensor, name: str) -> torch.Tensor:
    """A tensor (rows, ...) seen as (rows, 32-bit words). Rows must be contiguous and of whole words."""
    if not isinstance(pool, torch.Tensor):
        raise TypeError(f"{name} is a {type(pool).__name__}; expected a tensor")
    if pool.dim() < 2 or 0 in pool.shape[1:]:
        raise ValueError(f"{name} has shape {tuple(pool.shape)}; expected (rows, ...)")
    if pool.shape[0] and not pool[0].is_contiguous():
        raise ValueError(f"{name} has strides {pool.stride()}; expected contiguous rows")
    size = pool.element_size()
    row_bytes = pool[0].numel() * size if pool.shape[0] else 0
    if row_bytes % 4 or pool.stride(0) * size % 4:
        raise ValueError(f"{name} has rows of {row_bytes} bytes; expected a multiple of 4")
    flat = pool.as_strided((pool.shape[0], row_bytes // size), (pool.stride(0), 1))
    return flat.view(torch.int32)


def copy_pieces(
    source: torch.Tensor,
    target: torch.Tensor,
    source_rows: torch.Tensor | None = None,
    target_rows: torch.Tensor | None = None,
    *,
    programs: int | None = None,
) -> None:
    """target[target_rows[i]] = source[source_rows[i]] for every i; without rows: row i.

    source, target: (rows, ...) of the same row size, on this GPU or in pinned host memory; rows: (count,) int32 on the
    GPU, targets distinct. programs: at most so many at a time, so that a slow copy leaves SMs to others.
    """
    from_words, to_words = piece_words(source, "source"), piece_words(target, "target")
    if source.dtype != target.dtype:
        raise TypeError(f"source is {source.dtype} and target {target.dtype}; expected the same")
    if source.shape[1:] != target.shape[1:]:
        raise ValueError(f"rows are {tuple(source.shape[1:])} and {tuple(target.shape[1:])}; expected the same shape")
    counts = [rows.shape[0] for rows in (source_rows, target_rows) if rows is not None]
    count = counts[0] if counts else min(source.shape[0], target.shape[0])
    device = target.device if target.is_cuda or not source.is_cuda else source.device
    for name, rows, pool in (("source_rows", source_rows, source), ("target_rows", target_rows, target)):
        if rows is None:
            if count > pool.shape[0]:
                raise ValueError(f"{count} pieces for {name[:6]} of {pool.shape[0]} rows; expected no more than rows")
            continue
        check_lengths(rows, name, count, device)
        if interpreted() and count and not 0 <= int(rows.min()) <= int(rows.max()) < pool.shape[0]:
            raise ValueError(f"{name} names row {int(rows.max())}; expected 0 to {pool.shape[0] - 1}")
    if count == 0:
        return
    words = from_words.shape[1]
    block = min(BLOCK_WORDS, triton.next_power_of_2(words))
    parts = triton.cdiv(words, block)
    units = count * parts
    grid = units if programs is None else min(units, programs)
    _copy_pieces[(grid,)](
        from_words, to_words, source_rows, target_rows, units, parts, words, from_words.stride(0), to_words.stride(0),
        SOURCE_ROWS=source_rows is not None, TARGET_ROWS=target_rows is not None, BLOCK=block,
        num_warps=max(1, min(8, block // 512)),
    )  # fmt: skip


def gather_pieces(pool: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows of a pool packed one behind the other: (count, ...), for a transfer in one piece."""
    piece_words(pool, "pool")
    if out is None:
        out = torch.empty((rows.shape[0], *pool.shape[1:]), dtype=pool.dtype, device=pool.device)
    copy_pieces(pool, out, source_rows=rows)
    return out


def scatter_pieces(packed: torch.Tensor, pool: torch.Tensor, rows: torch.Tensor) -> None:
    """The inverse of gather_pieces: packed row i becomes pool[rows[i]]. Rows are distinct."""
    copy_pieces(packed, pool, target_rows=rows)
