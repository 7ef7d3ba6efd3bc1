"""What the public functions check of their arguments: TypeError for kinds and dtypes, ValueError for shapes and ranges.

Every message names the argument, what it is, and what was expected. Contents of tensors on a GPU are not read: that
would wait for the GPU. Reads through a block table stay inside the table; that it names pages of the pool is the
caller's part, except where kernels run in the interpreter, which checks it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from kernels.device import DTYPES, interpreted

__all__ = ["HEAD_DIMS", "PAGES", "check_indices", "check_lengths", "check_pools", "check_queries", "check_table"]

HEAD_DIMS = (64, 128)
PAGES = (16, 32, 64, 128)  # tokens


def _tensor(value: object, name: str, dimensions: int) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; expected a tensor")
    if value.dim() != dimensions:
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {dimensions} dimensions")
    return value


def check_pools(k_pool: torch.Tensor, v_pool: torch.Tensor) -> None:
    """Both (pages, kv_heads, page, head_dim), of one dtype, each page contiguous."""
    for name, pool in (("k_pool", k_pool), ("v_pool", v_pool)):
        _tensor(pool, name, 4)
        if pool.dtype not in DTYPES:
            raise TypeError(f"{name} is {pool.dtype}; expected bfloat16, float16 or float32")
        if not pool[0:1].is_contiguous():
            raise ValueError(f"{name} has strides {pool.stride()}; expected contiguous pages")
    if k_pool.shape != v_pool.shape or k_pool.stride(0) != v_pool.stride(0):
        raise ValueError(f"k_pool is {tuple(k_pool.shape)} and v_pool {tuple(v_pool.shape)}; expected the same layout")
    if k_pool.dtype != v_pool.dtype or k_pool.device != v_pool.device:
        raise TypeError("k_pool and v_pool differ in dtype or device")
    pages, _, page, head_dim = k_pool.shape
    if pages < 1:
        raise ValueError("k_pool has no pages; expected at least one")
    if page not in PAGES:
        raise ValueError(f"k_pool has pages of {page} tokens; expected one of {PAGES}")
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"k_pool has head_dim {head_dim}; expected one of {HEAD_DIMS}")


def check_queries(q: torch.Tensor, k_pool: torch.Tensor, out: torch.Tensor | None) -> None:
    """(tokens, heads, head_dim) of the pools' dtype; heads a multiple of the pools' heads."""
    for name, value in (("q", q), ("out", q if out is None else out)):
        _tensor(value, name, 3)
        if value.dtype != k_pool.dtype:
            raise TypeError(f"{name} is {value.dtype} and the pools {k_pool.dtype}; expected the same")
        if value.device != k_pool.device:
            raise ValueError(f"{name} is on {value.device} and the pools on {k_pool.device}; expected the same")
        if value.shape != q.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}; expected that of q, {tuple(q.shape)}")
        if value.stride(2) != 1 or value.stride(1) != value.shape[2]:
            raise ValueError(f"{name} has strides {value.stride()}; expected contiguous heads")
    _, heads, head_dim = q.shape
    kv_heads = k_pool.shape[1]
    if head_dim != k_pool.shape[3]:
        raise ValueError(f"q has head_dim {head_dim} and the pools {k_pool.shape[3]}; expected the same")
    if heads == 0 or heads % kv_heads:
        raise ValueError(f"q has {heads} heads for {kv_heads} KV heads; expected a multiple")
    if heads // kv_heads > 16:
        raise ValueError(f"q has {heads // kv_heads} heads per KV head; expected at most 16")


def check_lengths(lengths: torch.Tensor, name: str, count: int, device: torch.device) -> None:
    """(count,) int32 on the device."""
    _tensor(lengths, name, 1)
    if lengths.dtype != torch.int32:
        raise TypeError(f"{name} is {lengths.dtype}; expected int32")
    if lengths.shape[0] != count:
        raise ValueError(f"{name} has {lengths.shape[0]} entries; expected {count}")
    if lengths.device != device or not lengths.is_contiguous():
        raise ValueError(f"{name} is on {lengths.device}; expected contiguous on {device}")


def check_table(block_table: torch.Tensor, context_lens: torch.Tensor, k_pool: torch.Tensor) -> None:
    """(sequences, columns) int32, rows contiguous, one row per context length."""
    _tensor(block_table, "block_table", 2)
    if block_table.dtype != torch.int32:
        raise TypeError(f"block_table is {block_table.dtype}; expected int32")
    if block_table.shape[1] < 1 or block_table.stride(1) != 1 or block_table.device != k_pool.device:
        raise ValueError("block_table has no columns, strided rows or another device than the pools")
    sequences = block_table.shape[0]
    if not 1 <= sequences <= 1024:
        raise ValueError(f"block_table has {sequences} rows; expected 1 to 1024")
    check_lengths(context_lens, "context_lens", sequences, k_pool.device)
    if interpreted():
        _check_contents(block_table, context_lens, k_pool)


def _check_contents(block_table: torch.Tensor, context_lens: torch.Tensor, k_pool: torch.Tensor) -> None:
    pages, _, page, _ = k_pool.shape
    most = block_table.shape[1] * page
    for row, length in zip(block_table.tolist(), context_lens.tolist(), strict=True):
        if not 0 <= length <= most:
            raise ValueError(f"context_lens has {length}; expected 0 to {most}, what the block table holds")
        bad = [entry for entry in row[: -(-length // page)] if not 0 <= entry < pages]
        if bad:
            raise ValueError(f"block_table names page {bad[0]}; expected 0 to {pages - 1}")


def check_indices(indices: Sequence[int] | torch.Tensor, name: str, rows: int) -> torch.Tensor:
    """Row numbers from 0 to rows - 1, as an int64 tensor on the CPU. Given as one, they cost no Python loop."""
    if not isinstance(indices, torch.Tensor):
        if any(type(entry) is not int for entry in indices):
            raise TypeError(f"{name} holds something other than whole numbers")
        indices = torch.tensor(indices, dtype=torch.int64)
    if indices.dtype not in (torch.int32, torch.int64) or indices.dim() != 1 or indices.device.type != "cpu":
        raise TypeError(
            f"{name} is a {indices.dim()}-dimensional {indices.dtype} tensor on {indices.device}; "
            "expected whole numbers on the CPU"
        )
    if len(indices):
        low, high = (int(edge) for edge in indices.aminmax())
        if low < 0 or high >= rows:
            raise ValueError(f"{name} names row {low if low < 0 else high}; expected 0 to {rows - 1}")
    return indices.long()
