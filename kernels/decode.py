"""Decode attention: one query token for each sequence over its paged context.

A step reads every key and value once, so the kernel has to keep the memory busy whatever the lengths are. The contexts
of a batch are cut into items of about equal size, at least MIN_ITEM tokens: one long context is split as finely as many
short ones, and among short ones it does not hold up the rest. Each item is one program for each KV head; the query
heads that share it are the rows of one product. A second kernel combines the items of a sequence by their log-sum-exps.

How fine is decided by rounds of programs: a GPU holds `resident` of them on each SM (three on an H200, so that one
round is three waves of SMs), and a last round that is not full wastes bandwidth. Sizes are tried from the longest
context down, and the one whose rounds take least is taken (`_plan_items`).

The plan is made on the GPU from the context lengths, so that a captured CUDA graph serves any lengths: its grid is the
largest number of items the batch can have, and programs without an item return at once. One plan serves all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kernels.checks import check_lengths, check_pools, check_queries, check_table
from kernels.device import processors, upcast
from kernels.tiles import Tile, capability, decode_tile

import triton  # isort: skip  # after kernels.device
import triton.language as tl  # isort: skip

__all__ = ["DecodePlan", "block_of", "decode_attention", "plan_decode"]

MIN_ITEM = 256  # tokens; below this an item costs more to combine than it gains
MOST_ROUNDS = 3  # of programs; a batch with more short contexts than that is not split
START_TOKENS = 60  # assumed: what starting an item costs, 3 us at a program's share of 4.3 TB/s
TAIL_SHARE = (4, 5)  # assumed: programs that fill so much of a round keep the memory as busy as a full one does
LOG2_E = 1.4426950408889634
NO_ITEM = 2**31 - 1


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Items of a batch: sequence i owns items item_ends[i - 1] to item_ends[i] - 1; item_ends: (sequences,) int32.

    items: how many the batch can have at most.
    """

    item_ends: torch.Tensor
    items: int


@triton.jit(do_not_specialize=["sequences", "kv_heads", "at_once", "most"])
def _plan_items(
    context_lens, item_ends, sequences, kv_heads, at_once, most,
    MIN_ITEM: tl.constexpr, START: tl.constexpr, TAIL: tl.constexpr, TAIL_OF: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Ends of items of the size whose rounds take least; a last one counts TAIL / TAIL_OF at least.

    at_once: programs of a round; most: items that may come from splitting. Sizes tried: the longest context in 1, 2 and
    more parts, in steps of an eighth, down to the least size.
    """
    i = tl.arange(0, BLOCK_B)
    lengths = tl.load(context_lens + i, mask=i < sequences, other=0)
    longest = tl.max(lengths)
    least = tl.maximum(MIN_ITEM, (tl.sum(lengths.to(tl.int64)) + most - 1) // most).to(tl.int32)
    size = tl.maximum(least, longest)
    best_size = size
    best_cost = size.to(tl.int64) * 0 - 1
    parts = 1
    more = longest >= 0
    while more:
        programs = tl.sum((lengths + size - 1) // size) * kv_heads
        rest = programs % at_once
        tail = tl.where(rest > 0, tl.maximum(TAIL_OF * rest, TAIL * at_once), 0)
        cost = (size + START).to(tl.int64) * (TAIL_OF * (programs - rest) + tail)
        better = (best_cost < 0) | (cost < best_cost)
        best_size = tl.where(better, size, best_size)
        best_cost = tl.where(better, cost, best_cost)
        more = size > least
        parts += tl.maximum(1, parts // 8)
        size = tl.maximum(least, (longest + parts - 1) // parts)
    tl.store(item_ends + i, tl.cumsum((lengths + best_size - 1) // best_size), mask=i < sequences)


@triton.jit(do_not_specialize=["sequences", "kv_heads"])
def _decode_items(
    q, k_pool, v_pool, block_table, context_lens, item_ends, out, partial, lse,
    scale_log2, sequences, kv_heads, stride_q, stride_out, stride_table, stride_page,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr, STAGES: tl.constexpr, UPCAST: tl.constexpr, NO_ITEM: tl.constexpr,
):  # fmt: skip
    """One item of one KV head: out itself where the sequence has one item, else a normalised partial and its lse."""
    kv_head = tl.program_id(0)
    item = tl.program_id(1)
    if item >= tl.load(item_ends + sequences - 1):
        return
    i = tl.arange(0, BLOCK_B)
    ends = tl.load(item_ends + i, mask=i < sequences, other=NO_ITEM)
    sequence = tl.sum((ends <= item).to(tl.int32))
    first = tl.load(item_ends + sequence - 1, mask=sequence > 0, other=0)
    count = tl.load(item_ends + sequence) - first
    length = tl.load(context_lens + sequence)
    share = tl.cdiv(tl.cdiv(length, count), BLOCK_N) * BLOCK_N
    low = (item - first) * share
    high = tl.minimum(low + share, length)

    h = tl.arange(0, BLOCK_H)
    d = tl.arange(0, HEAD_DIM)
    n = tl.arange(0, BLOCK_N)
    row_q = sequence.to(tl.int64) * stride_q + (kv_head * GROUP + h[:, None]) * HEAD_DIM + d[None, :]
    queries = tl.load(q + row_q, mask=h[:, None] < GROUP, other=0.0)
    if UPCAST:
        queries = queries.to(tl.float32)
    table = block_table + sequence.to(tl.int64) * stride_table
    top = tl.full([BLOCK_H], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_H], tl.float32)
    sums = tl.zeros([BLOCK_H, HEAD_DIM], tl.float32)
    for start in tl.range(low, high, BLOCK_N, num_stages=STAGES):
        if PAGE >= BLOCK_N:  # a tile lies in one page
            page = tl.load(table + start // PAGE).to(tl.int64)
            token = tl.minimum(start % PAGE + n, (length - 1) - start + start % PAGE)
        else:
            inside = tl.minimum(start + n, length - 1)
            page = tl.load(table + inside // PAGE).to(tl.int64)
            token = inside % PAGE
        row = page * stride_page + (kv_head * PAGE + token) * HEAD_DIM
        keys = tl.load(k_pool + row[:, None] + d[None, :])
        values = tl.load(v_pool + row[:, None] + d[None, :])
        if UPCAST:
            keys = keys.to(tl.float32)
            values = values.to(tl.float32)
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale_log2
        scores = tl.where(start + n[None, :] < high, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shrink = tl.exp2(top - new_top)
        p = tl.exp2(scores - new_top[:, None])
        weight = weight * shrink + tl.sum(p, 1)
        sums = tl.dot(p.to(values.dtype), values, sums * shrink[:, None], input_precision="ieee")
        top = new_top

    used = weight > 0.0  # an item without tokens has no weight: zeros, and a log-sum-exp of -inf
    sums = sums / tl.where(used, weight, 1.0)[:, None]
    real = h < GROUP
    if count == 1:
        row_out = sequence.to(tl.int64) * stride_out + (kv_head * GROUP + h[:, None]) * HEAD_DIM + d[None, :]
        tl.store(out + row_out, sums.to(out.dtype.element_ty), mask=real[:, None])
    else:
        row_p = (item * kv_heads + kv_head).to(tl.int64) * GROUP + h
        tl.store(partial + row_p[:, None] * HEAD_DIM + d[None, :], sums, mask=real[:, None])
        tl.store(lse + row_p, tl.where(used, top + tl.log2(tl.where(used, weight, 1.0)), float("-inf")), mask=real)


@triton.jit(do_not_specialize=["heads"])
def _combine_items(
    partial, lse, item_ends, out, heads, stride_out,
    HEAD_DIM: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One head of one sequence: its items weighted by 2 to their log-sum-exps. Without any item: zeros."""
    head = tl.program_id(0)
    sequence = tl.program_id(1)
    first = tl.load(item_ends + sequence - 1, mask=sequence > 0, other=0)
    end = tl.load(item_ends + sequence)
    if end - first == 1:
        return
    s = tl.arange(0, BLOCK_S)
    d = tl.arange(0, HEAD_DIM)
    top = tl.full([1], float("-inf"), tl.float32)
    weight = tl.zeros([1], tl.float32)
    sums = tl.zeros([HEAD_DIM], tl.float32)
    for start in range(first, end, BLOCK_S):
        row = (start + s).to(tl.int64) * heads + head
        here = start + s < end
        logs = tl.load(lse + row, mask=here, other=float("-inf"))
        new_top = tl.maximum(top, tl.max(logs, 0))
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - safe)
        w = tl.exp2(logs - safe)
        parts = tl.load(partial + row[:, None] * HEAD_DIM + d[None, :], mask=here[:, None], other=0.0)
        sums = sums * shrink + tl.sum(parts * w[:, None], 0)
        weight = weight * shrink + tl.sum(w, 0)
        top = new_top
    sums = sums / tl.where(weight > 0.0, weight, 1.0)
    tl.store(out + sequence.to(tl.int64) * stride_out + head * HEAD_DIM + d, sums.to(out.dtype.element_ty))


def block_of(sequences: int) -> int:
    """Length of the vectors that hold a number for each sequence: a few lengths, so that few kernels are compiled."""
    return next(size for size in (16, 64, 256, 1024) if sequences <= size)


def plan_decode(context_lens: torch.Tensor, kv_heads: int, tile: Tile | None = None) -> DecodePlan:
    """Cut a batch into items, on the GPU. context_lens: (sequences,) int32, 0 for a row without a sequence.

    tile: of the kernel that will run them; how many of its programs an SM holds is all that counts.
    """
    check_lengths(context_lens, "context_lens", context_lens.shape[0], context_lens.device)
    device, sequences = context_lens.device, context_lens.shape[0]
    tile = tile or decode_tile(128, torch.bfloat16, capability(device))
    at_once = tile.resident * processors(device)
    most = max(1, MOST_ROUNDS * at_once // kv_heads)
    item_ends = torch.empty_like(context_lens)
    _plan_items[(1,)](
        context_lens, item_ends, sequences, kv_heads, at_once, most, MIN_ITEM=MIN_ITEM, START=START_TOKENS,
        TAIL=TAIL_SHARE[0], TAIL_OF=TAIL_SHARE[1], BLOCK_B=block_of(sequences), num_warps=4,
    )  # fmt: skip
    return DecodePlan(item_ends, sequences + most)  # sum of ceil(length / size) where size >= total / most


def decode_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    plan: DecodePlan | None = None,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Attention of q (sequences, heads, head_dim) over the first context_lens[i] tokens of sequence i.

    The new token's own key and value are in the pools already. scale: 1 / sqrt(head_dim) unless given. plan: of these
    context_lens, made here unless given. Rows of context 0 come out as zeros. Returns out, of q's shape and dtype.
    """
    check_pools(k_pool, v_pool)
    check_queries(q, k_pool, out)
    check_table(block_table, context_lens, k_pool)
    sequences, heads, head_dim = q.shape
    if sequences != block_table.shape[0]:
        raise ValueError(f"q has {sequences} rows and block_table {block_table.shape[0]}; expected the same")
    _, kv_heads, page, _ = k_pool.shape
    if scale is not None and not scale > 0:
        raise ValueError(f"scale is {scale}; expected a positive number")
    tile = tile or decode_tile(head_dim, q.dtype, capability(q.device))
    plan = plan or plan_decode(context_lens, kv_heads, tile)
    check_lengths(plan.item_ends, "plan.item_ends", sequences, q.device)
    out = torch.empty_like(q) if out is None else out
    partial = torch.empty((plan.items, heads, head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty((plan.items, heads), dtype=torch.float32, device=q.device)
    _decode_items[(kv_heads, plan.items)](
        q, k_pool, v_pool, block_table, context_lens, plan.item_ends, out, partial, lse,
        LOG2_E * (head_dim**-0.5 if scale is None else scale), sequences, kv_heads,
        q.stride(0), out.stride(0), block_table.stride(0), k_pool.stride(0),
        GROUP=heads // kv_heads, HEAD_DIM=head_dim, PAGE=page, BLOCK_H=16, BLOCK_N=tile.tokens,
        BLOCK_B=block_of(sequences), STAGES=tile.stages, UPCAST=upcast(q.dtype), NO_ITEM=NO_ITEM,
        num_warps=tile.warps,
    )  # fmt: skip
    _combine_items[(heads, sequences)](
        partial, lse, plan.item_ends, out, heads, out.stride(0), HEAD_DIM=head_dim, BLOCK_S=16, num_warps=2
    )
    return out
