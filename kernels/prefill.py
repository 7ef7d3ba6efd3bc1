"""Chunked prefill attention: chunks of new tokens, each after a cached prefix, causal, in one launch.

The new tokens' own keys and values are in the pages already, so a chunk is its queries over one paged context. A tile
is ROWS rows of queries: the heads that share a KV head beside each other for ROWS / group tokens, so that a short chunk
fills a tile as well as a long one and the causal diagonal is narrow. Keys that all rows may see need no mask; the few
tiles of the diagonal do. Short chunks on long prefixes have few tiles: their contexts are split over several programs
(`choose_splits`), and a second kernel combines the splits.

Nothing depends on values read from the GPU: tiles are found from the starts of the chunks in each program, so that a
captured CUDA graph serves any chunks of the same number of rows.
"""

from __future__ import annotations

import torch

from kernels.checks import check_lengths, check_pools, check_queries, check_table
from kernels.decode import LOG2_E, block_of
from kernels.device import interpreted, processors, upcast
from kernels.tiles import Tile, capability, prefill_tile

import triton  # isort: skip  # after kernels.device
import triton.language as tl  # isort: skip

__all__ = ["choose_splits", "prefill_attention"]

MIN_SPLIT = 1024  # tokens of context a split is worth
MAX_SPLITS = 16
SPLIT_COST = 0.03  # assumed: what one more split adds to the time, written and combined


@triton.jit
def _find_tile(query_starts, tile, sequences, TOKENS: tl.constexpr, BLOCK_B: tl.constexpr):
    """Chunk of a tile, its first token within the chunk; the chunk is `sequences` beyond the last tile."""
    i = tl.arange(0, BLOCK_B)
    starts = tl.load(query_starts + i, mask=i < sequences, other=0)
    stops = tl.load(query_starts + i + 1, mask=i < sequences, other=0)
    tiles = tl.where(i < sequences, (stops - starts + TOKENS - 1) // TOKENS, 0)
    ends = tl.cumsum(tiles)
    sequence = tl.sum(((ends <= tile) & (i < sequences)).to(tl.int32))
    before = tl.sum(tl.where(i < sequence, tiles, 0))
    return sequence, (tile - before) * TOKENS


@triton.jit
def _attend(
    queries, top, weight, sums, start, last, position, table, k_pool, v_pool, kv_head, scale_log2, stride_page,
    HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of keys and values, from token `start`. MASKED: rows see keys up to their own position only."""
    n = tl.arange(0, BLOCK_N)
    d = tl.arange(0, HEAD_DIM)
    inside = start + n
    if MASKED:
        inside = tl.minimum(inside, last - 1)
    if PAGE >= BLOCK_N:
        page = tl.load(table + start // PAGE).to(tl.int64)
        token = start % PAGE + (inside - start)
    else:
        page = tl.load(table + inside // PAGE).to(tl.int64)
        token = inside % PAGE
    row = page * stride_page + (kv_head * PAGE + token) * HEAD_DIM
    keys = tl.load(k_pool + row[:, None] + d[None, :])
    values = tl.load(v_pool + row[:, None] + d[None, :])
    if UPCAST:
        keys = keys.to(tl.float32)
        values = values.to(tl.float32)
    scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    if MASKED:
        scores = tl.where((start + n)[None, :] <= position[:, None], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)  # a row that sees nothing yet
    else:
        new_top = tl.maximum(top, tl.max(scores, 1) * scale_log2)
        safe = new_top
    p = tl.exp2(scores * scale_log2 - safe[:, None])
    shrink = tl.exp2(top - safe)
    weight = weight * shrink + tl.sum(p, 1)
    sums = tl.dot(p.to(values.dtype), values, sums * shrink[:, None], input_precision="ieee")
    return new_top, weight, sums


@triton.jit(do_not_specialize=["sequences", "kv_heads", "splits"])
def _prefill_tiles(
    q, k_pool, v_pool, block_table, query_starts, context_lens, out, partial, lse,
    scale_log2, sequences, kv_heads, splits, stride_q, stride_out, stride_table, stride_page,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr, STAGES: tl.constexpr, SPLIT: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One tile of queries and one KV head over one split of the context. Later tiles, the longer ones, go first."""
    TOKENS: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(0)
    item = tl.num_programs(1) - 1 - tl.program_id(1)
    tile = item // splits
    sequence, t0 = _find_tile(query_starts, tile, sequences, TOKENS, BLOCK_B)
    if sequence >= sequences:
        return
    first = tl.load(query_starts + sequence)
    new = tl.load(query_starts + sequence + 1) - first
    cached = tl.load(context_lens + sequence) - new
    m = tl.arange(0, ROWS)
    d = tl.arange(0, HEAD_DIM)
    token = t0 + m // GROUP
    real = (m < TOKENS * GROUP) & (token < new)
    position = cached + token
    head = kv_head * GROUP + m % GROUP
    row_q = (first + token).to(tl.int64) * stride_q + head * HEAD_DIM
    queries = tl.load(q + row_q[:, None] + d[None, :], mask=real[:, None], other=0.0)
    if UPCAST:
        queries = queries.to(tl.float32)
    last = cached + tl.minimum(t0 + TOKENS, new)
    low = 0
    high = last
    if SPLIT:
        share = tl.cdiv(tl.cdiv(last, splits), BLOCK_N) * BLOCK_N
        low = (item % splits) * share
        high = tl.minimum(low + share, last)
    middle = tl.minimum((cached + t0 + 1) // BLOCK_N * BLOCK_N, high)
    table = block_table + sequence.to(tl.int64) * stride_table
    top = tl.full([ROWS], float("-inf"), tl.float32)
    weight = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for start in tl.range(low, middle, BLOCK_N, num_stages=STAGES):
        top, weight, sums = _attend(
            queries, top, weight, sums, start, last, position, table, k_pool, v_pool, kv_head, scale_log2, stride_page,
            HEAD_DIM, PAGE, BLOCK_N, False, UPCAST,
        )  # fmt: skip
    for start in tl.range(tl.maximum(low, middle), high, BLOCK_N, num_stages=STAGES):
        top, weight, sums = _attend(
            queries, top, weight, sums, start, last, position, table, k_pool, v_pool, kv_head, scale_log2, stride_page,
            HEAD_DIM, PAGE, BLOCK_N, True, UPCAST,
        )  # fmt: skip
    used = weight > 0.0
    sums = sums / tl.where(used, weight, 1.0)[:, None]
    if SPLIT:
        row_p = (item * kv_heads + kv_head).to(tl.int64) * ROWS + m
        tl.store(partial + row_p[:, None] * HEAD_DIM + d[None, :], sums)
        tl.store(lse + row_p, tl.where(used, top + tl.log2(tl.where(used, weight, 1.0)), float("-inf")))
    else:
        row_out = (first + token).to(tl.int64) * stride_out + head * HEAD_DIM
        tl.store(out + row_out[:, None] + d[None, :], sums.to(out.dtype.element_ty), mask=real[:, None])


@triton.jit(do_not_specialize=["sequences", "kv_heads", "splits"])
def _combine_splits(
    partial, lse, query_starts, out, sequences, kv_heads, splits, stride_out,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, PART: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """PART rows of one tile and one KV head: splits weighted by 2 to their log-sum-exps."""
    TOKENS: tl.constexpr = ROWS // GROUP
    kv_head = tl.program_id(0)
    tile = tl.program_id(1)
    sequence, t0 = _find_tile(query_starts, tile, sequences, TOKENS, BLOCK_B)
    if sequence >= sequences:
        return
    first = tl.load(query_starts + sequence)
    new = tl.load(query_starts + sequence + 1) - first
    m = tl.program_id(2) * PART + tl.arange(0, PART)
    d = tl.arange(0, HEAD_DIM)
    top = tl.full([PART], float("-inf"), tl.float32)
    weight = tl.zeros([PART], tl.float32)
    sums = tl.zeros([PART, HEAD_DIM], tl.float32)
    for split in range(splits):
        row = ((tile * splits + split) * kv_heads + kv_head).to(tl.int64) * ROWS + m
        logs = tl.load(lse + row)
        new_top = tl.maximum(top, logs)
        safe = tl.where(new_top == float("-inf"), 0.0, new_top)
        shrink = tl.exp2(top - safe)
        w = tl.exp2(logs - safe)
        sums = sums * shrink[:, None] + tl.load(partial + row[:, None] * HEAD_DIM + d[None, :]) * w[:, None]
        weight = weight * shrink + w
        top = new_top
    sums = sums / tl.where(weight > 0.0, weight, 1.0)[:, None]
    token = t0 + m // GROUP
    real = (m < TOKENS * GROUP) & (token < new)
    row_out = (first + token).to(tl.int64) * stride_out + (kv_head * GROUP + m % GROUP) * HEAD_DIM
    tl.store(out + row_out[:, None] + d[None, :], sums.to(out.dtype.element_ty), mask=real[:, None])


def choose_splits(programs: int, slots: int, longest: int) -> int:
    """In how many parts to cut contexts of up to `longest` tokens when `programs` of them fill `slots` at a time.

    The fewest whole waves for the work of one program, each part at least MIN_SPLIT tokens; parts cost SPLIT_COST each.
    """
    most = max(1, min(MAX_SPLITS, longest // MIN_SPLIT))
    return min(range(1, most + 1), key=lambda s: -(-programs * s // slots) / s * (1 + SPLIT_COST * (s - 1)))


def prefill_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    block_table: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    longest: int | None = None,
    splits: int | None = None,
    scale: float | None = None,
    out: torch.Tensor | None = None,
    tile: Tile | None = None,
) -> torch.Tensor:
    """Causal attention of chunks: rows query_starts[i] to query_starts[i + 1] of q are the last tokens of context i.

    q: (tokens, heads, head_dim); query_starts: (chunks + 1,) int32, from any row on; context_lens: (chunks,) int32, the
    cached prefix and the chunk; rows of no chunk are left as they are. longest: the longest context, where known, else
    what the block table holds; it and splits decide speed alone. Returns out, of q's shape and dtype.
    """
    check_pools(k_pool, v_pool)
    check_queries(q, k_pool, out)
    check_table(block_table, context_lens, k_pool)
    chunks = block_table.shape[0]
    check_lengths(query_starts, "query_starts", chunks + 1, q.device)
    if scale is not None and not scale > 0:
        raise ValueError(f"scale is {scale}; expected a positive number")
    if interpreted():
        _check_starts(query_starts.tolist(), context_lens.tolist(), q.shape[0])
    tokens, heads, head_dim = q.shape
    _, kv_heads, page, _ = k_pool.shape
    out = torch.empty_like(q) if out is None else out
    if tokens == 0:
        return out
    tile = tile or prefill_tile(head_dim, q.dtype, capability(q.device))
    group = heads // kv_heads
    per_tile = tile.rows // group
    tiles = tokens // per_tile + chunks  # sum of ceil(new / per_tile) at most
    if splits is None:
        slots = tile.resident * processors(q.device)
        splits = choose_splits(-(-tokens // per_tile) * kv_heads, slots, longest or block_table.shape[1] * page)
    shape = (tiles * splits if splits > 1 else 0, kv_heads, tile.rows)
    partial = torch.empty((*shape, head_dim), dtype=torch.float32, device=q.device)
    lse = torch.empty(shape, dtype=torch.float32, device=q.device)
    block_b = block_of(chunks)
    _prefill_tiles[(kv_heads, tiles * splits)](
        q, k_pool, v_pool, block_table, query_starts, context_lens, out, partial, lse,
        LOG2_E * (head_dim**-0.5 if scale is None else scale), chunks, kv_heads, splits,
        q.stride(0), out.stride(0), block_table.stride(0), k_pool.stride(0),
        GROUP=group, HEAD_DIM=head_dim, PAGE=page, ROWS=tile.rows, BLOCK_N=tile.tokens, BLOCK_B=block_b,
        STAGES=tile.stages, SPLIT=splits > 1, UPCAST=upcast(q.dtype), num_warps=tile.warps,
    )  # fmt: skip
    if splits > 1:
        part = min(16, tile.rows)
        _combine_splits[(kv_heads, tiles, tile.rows // part)](
            partial, lse, query_starts, out, chunks, kv_heads, splits, out.stride(0),
            GROUP=group, HEAD_DIM=head_dim, ROWS=tile.rows, PART=part, BLOCK_B=block_b, num_warps=4,
        )  # fmt: skip
    return out


def _check_starts(starts: list[int], contexts: list[int], tokens: int) -> None:
    if starts[0] < 0 or starts[-1] > tokens:
        raise ValueError(f"query_starts run from {starts[0]} to {starts[-1]}; expected rows of q, 0 to {tokens}")
    for i, context in enumerate(contexts):
        if not 0 <= starts[i + 1] - starts[i] <= context:
            raise ValueError(
                f"chunk {i} has {starts[i + 1] - starts[i]} tokens of a context of {context}; expected 0 to {context}"
            )
