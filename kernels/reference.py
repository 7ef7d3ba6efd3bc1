"""What the kernels compute, written plainly in fp32 PyTorch."""

from __future__ import annotations

import torch

__all__ = [
    "copy_reference", "decode_reference", "paged_rows", "prefill_reference", "relative_error", "rms_norm_reference",
    "rope_reference", "silu_mul_reference",
]  # fmt: skip


def paged_rows(pool: torch.Tensor, pages: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` tokens of a sequence as (kv_heads, length, head_dim) fp32."""
    _, kv_heads, page, head_dim = pool.shape
    used = pool[pages[: -(-length // page)].long()].float()
    return used.permute(1, 0, 2, 3).reshape(kv_heads, -1, head_dim)[:, :length]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, visible: torch.Tensor) -> torch.Tensor:
    """q: (tokens, heads, head_dim); k, v: (kv_heads, length, head_dim); visible: (tokens, length)."""
    group = q.shape[1] // k.shape[0]
    k, v = k.repeat_interleave(group, 0), v.repeat_interleave(group, 0)
    scores = torch.einsum("thd,hnd->htn", q.float(), k) * scale
    scores = scores.masked_fill(~visible, float("-inf"))
    return torch.einsum("htn,hnd->thd", scores.softmax(-1), v)


def decode_reference(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Decode attention as (sequences, heads, head_dim) fp32; zeros for a context of 0."""
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    for i, length in enumerate(context_lens.tolist()):
        if length:
            k, v = paged_rows(k_pool, block_table[i], length), paged_rows(v_pool, block_table[i], length)
            visible = torch.ones((1, length), dtype=torch.bool, device=q.device)
            out[i] = _attend(q[i : i + 1], k, v, q.shape[2] ** -0.5 if scale is None else scale, visible)[0]
    return out


def prefill_reference(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    block_table: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    scale: float | None = None,
) -> torch.Tensor:
    """Chunked prefill attention as (tokens, heads, head_dim) fp32; zeros for tokens of no chunk."""
    out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
    starts = query_starts.tolist()
    for i, length in enumerate(context_lens.tolist()):
        first, end = starts[i], starts[i + 1]
        if first == end:
            continue
        k, v = paged_rows(k_pool, block_table[i], length), paged_rows(v_pool, block_table[i], length)
        positions = torch.arange(length - (end - first), length, device=q.device)
        visible = torch.arange(length, device=q.device)[None, :] <= positions[:, None]
        out[first:end] = _attend(q[first:end], k, v, q.shape[2] ** -0.5 if scale is None else scale, visible)
    return out


def copy_reference(
    source: torch.Tensor, source_rows: list[int], target: torch.Tensor, target_rows: list[int]
) -> torch.Tensor:
    """target with rows target_rows replaced by rows source_rows of source."""
    out = target.clone()
    out[target_rows] = source[source_rows].to(target.device)
    return out


def rms_norm_reference(
    x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None, epsilon: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """((x + residual) / rms * weight, x + residual), both fp32 but for the sum, which is rounded to x's dtype."""
    total = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    scale = torch.rsqrt(total.float().square().mean(-1, keepdim=True) + epsilon)
    return total.float() * scale * weight.float(), total.float()


def rope_reference(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """x (tokens, heads, head_dim) turned by its positions, in pairs of halves; cos, sin: (positions, head_dim / 2)."""
    first, second = x.float().chunk(2, -1)
    c, s = cos[positions.long()][:, None], sin[positions.long()][:, None]
    return torch.cat([first * c - second * s, second * c + first * s], -1)


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """silu of the first half times the second half, fp32."""
    gate, up = gate_up.float().chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    """|out - reference| / |reference|, as vectors; infinite where out is not finite."""
    difference = (out.float() - reference.float()).norm()
    size = reference.float().norm()
    if not torch.isfinite(difference):
        return float("inf")
    return float(difference / size) if size > 0 else float(difference)
