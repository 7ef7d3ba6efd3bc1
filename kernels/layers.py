"""The small kernels between the matrix products of a Llama layer: norm with residual, rotary positions with the cache
write, gated activation. Each reads and writes its rows once; sums are fp32.
"""

from __future__ import annotations

import torch

from kernels.checks import check_lengths, check_pools
from kernels.device import DTYPES

import triton  # isort: skip  # after kernels.device
import triton.language as tl  # isort: skip

__all__ = ["rms_norm", "rope_and_cache", "rope_tables", "silu_mul"]

ACTIVATION_BLOCK = 1024


@triton.jit
def _rms_norm(
    x, residual, weight, out, total, epsilon, columns,
    BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * columns
    c = tl.arange(0, BLOCK)
    here = c < columns
    values = tl.load(x + row + c, mask=here, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(residual + row + c, mask=here, other=0.0).to(tl.float32)
        rounded = values.to(total.dtype.element_ty)
        tl.store(total + row + c, rounded, mask=here)
        values = rounded.to(tl.float32)  # the norm is that of the residual the next layer reads
    scale = tl.rsqrt(tl.sum(values * values) / columns + epsilon)
    w = tl.load(weight + c, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row + c, (values * scale * w).to(out.dtype.element_ty), mask=here)


@triton.jit
def _rope_and_cache(
    qkv, out, k_pool, v_pool, cos, sin, positions, slots, stride_qkv, stride_out, stride_page,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One token and one KV head: its query heads turned into out, its key turned and its value into the pools."""
    HALF: tl.constexpr = HEAD_DIM // 2
    token = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, HALF)
    position = tl.load(positions + token).to(tl.int64)
    c = tl.load(cos + position * HALF + d)
    s = tl.load(sin + position * HALF + d)

    offset = (kv_head * GROUP + h[:, None]) * HEAD_DIM + d[None, :]
    real = h[:, None] < GROUP
    first = tl.load(qkv + token * stride_qkv + offset, mask=real, other=0.0).to(tl.float32)
    second = tl.load(qkv + token * stride_qkv + offset + HALF, mask=real, other=0.0).to(tl.float32)
    kind = out.dtype.element_ty
    tl.store(out + token * stride_out + offset, (first * c - second * s).to(kind), mask=real)
    tl.store(out + token * stride_out + offset + HALF, (second * c + first * s).to(kind), mask=real)

    slot = tl.load(slots + token).to(tl.int64)
    if slot >= 0:
        key = qkv + token * stride_qkv + (KV_HEADS * GROUP + kv_head) * HEAD_DIM
        row = slot // PAGE * stride_page + (kv_head * PAGE + slot % PAGE) * HEAD_DIM
        first_k = tl.load(key + d).to(tl.float32)
        second_k = tl.load(key + HALF + d).to(tl.float32)
        tl.store(k_pool + row + d, (first_k * c - second_k * s).to(kind))
        tl.store(k_pool + row + HALF + d, (second_k * c + first_k * s).to(kind))
        w = tl.arange(0, HEAD_DIM)
        tl.store(v_pool + row + w, tl.load(key + KV_HEADS * HEAD_DIM + w))


@triton.jit
def _silu_mul(gate_up, out, columns, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = c < columns
    gate = tl.load(gate_up + row * 2 * columns + c, mask=here, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * columns + columns + c, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row * columns + c, (gate / (1.0 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=here)


def _check_matrix(x: torch.Tensor, name: str) -> None:
    if not isinstance(x, torch.Tensor) or x.dim() != 2 or not x.is_contiguous():
        raise ValueError(f"{name} has shape {tuple(getattr(x, 'shape', ()))}; expected a contiguous (rows, columns)")
    if x.dtype not in DTYPES:
        raise TypeError(f"{name} is {x.dtype}; expected bfloat16, float16 or float32")


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None = None, epsilon: float = 1e-5
) -> tuple[torch.Tensor, torch.Tensor]:
    """(norm of x + residual, x + residual), each (rows, columns) of x's dtype; without residual the sum is x itself."""
    _check_matrix(x, "x")
    rows, columns = x.shape
    if weight.shape != (columns,) or weight.dtype != x.dtype:
        raise ValueError(f"weight is {tuple(weight.shape)} {weight.dtype}; expected ({columns},) {x.dtype}")
    if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
        raise ValueError(f"residual is {tuple(residual.shape)} {residual.dtype}; expected {tuple(x.shape)} {x.dtype}")
    if not 1 <= columns <= 65_536:
        raise ValueError(f"x has {columns} columns; expected 1 to 65536")
    out = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(columns)
    if rows:
        _rms_norm[(rows,)](
            x, x if residual is None else residual, weight, out, total, epsilon, columns,
            BLOCK=block, ADD=residual is not None, num_warps=4 if block <= 2048 else 8,
        )  # fmt: skip
    return out, total


def rope_tables(positions: int, head_dim: int, theta: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every position, (positions, head_dim / 2) fp32; dimension pairs (i, i + head_dim / 2)."""
    powers = torch.arange(0, head_dim, 2, dtype=torch.float64, device=device) / head_dim
    angles = torch.arange(positions, dtype=torch.float64, device=device)[:, None] * theta**-powers
    return angles.cos().float(), angles.sin().float()


def rope_and_cache(
    qkv: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """Turned queries (tokens, heads, head_dim); turned keys and values are written to the pools.

    qkv: (tokens, (heads + 2 kv_heads) head_dim); positions, slots: (tokens,) int32; slot s is token s % page of page
    s // page, and a negative slot writes nothing.
    """
    check_pools(k_pool, v_pool)
    _check_matrix(qkv, "qkv")
    tokens, columns = qkv.shape
    _, kv_heads, page, head_dim = k_pool.shape
    heads = columns // head_dim - 2 * kv_heads
    if columns % head_dim or heads < 1 or heads % kv_heads or heads // kv_heads > 16:
        raise ValueError(f"qkv has {columns} columns; expected (heads + 2 * {kv_heads}) * {head_dim}, heads a multiple")
    if qkv.dtype != k_pool.dtype:
        raise TypeError(f"qkv is {qkv.dtype} and the pools {k_pool.dtype}; expected the same")
    if cos.shape != sin.shape or cos.shape[1:] != (head_dim // 2,) or cos.dtype != torch.float32:
        raise ValueError(f"cos is {tuple(cos.shape)} {cos.dtype}; expected (positions, {head_dim // 2}) float32")
    check_lengths(positions, "positions", tokens, qkv.device)
    check_lengths(slots, "slots", tokens, qkv.device)
    out = torch.empty((tokens, heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    group = heads // kv_heads
    if tokens:
        _rope_and_cache[(tokens, kv_heads)](
            qkv, out, k_pool, v_pool, cos, sin, positions, slots, qkv.stride(0), out.stride(0), k_pool.stride(0),
            KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, PAGE=page, BLOCK_H=triton.next_power_of_2(group),
            num_warps=1 if group <= 4 else 2,
        )  # fmt: skip
    return out


def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """silu of the left half times the right half: (rows, 2 columns) -> (rows, columns)."""
    _check_matrix(gate_up, "gate_up")
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    if gate_up.shape[1] % 2 or not columns:
        raise ValueError(f"gate_up has {gate_up.shape[1]} columns; expected an even number from 2")
    out = torch.empty((rows, columns), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        block = min(ACTIVATION_BLOCK, triton.next_power_of_2(columns))
        _silu_mul[(rows, triton.cdiv(columns, block))](gate_up, out, columns, BLOCK=block, num_warps=4)
    return out
