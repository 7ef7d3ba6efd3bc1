"""How each row is measured: calls on memory that no cache holds, their times, a check against fp32 in the same run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from kernels import reference
from kernels.bench import Bench, TooLarge
from kernels.copies import gather_pieces, scatter_pieces
from kernels.decode import decode_attention, plan_decode
from kernels.grid import SHAPES, Spec
from kernels.layers import rms_norm, rope_and_cache, rope_tables, silu_mul
from kernels.prefill import prefill_attention
from kernels.tiles import Tile
from kernels.timing import time_beside, time_eager, time_graph
from kernels.transfer import migrate, swap_in, swap_out

__all__ = ["Timed", "WrongResult", "decode_calls", "measured", "prefill_calls", "skewed"]

TOLERANCE = 2e-2  # bf16
CHECKED_ROWS = 64
CHECKED_COLUMNS = 256


class WrongResult(Exception):
    """A kernel computed something else than its reference."""


class Timed(NamedTuple):
    samples: list[float]
    unit: str = "s"


Calls = list[Callable[[], object]]


def _check(out: torch.Tensor, expected: torch.Tensor) -> None:
    error = reference.relative_error(out, expected)
    if not error <= TOLERANCE:
        raise WrongResult(f"relative error {error:.3g} against fp32; expected at most {TOLERANCE}")


def skewed(batch: int, context: int, skew: int) -> list[int]:
    """Lengths with the mean `context` of which the first is skew times it and the others are equal."""
    if skew == 1 or batch == 1:
        return [context] * batch
    longest = min(skew * context, batch * context - (batch - 1))
    rest = batch * context - longest
    return [longest] + [rest // (batch - 1) + (i < rest % (batch - 1)) for i in range(batch - 1)]


def decode_calls(bench: Bench, params: dict[str, Any], tile: Tile | None = None) -> tuple[Calls, Callable[[], None]]:
    """Calls of decode attention, and the check of what the first of them has written."""
    batch, heads, kv_heads = params["batch"], params["heads"], params["kv_heads"]
    head_dim, page = params["head_dim"], params["page"]
    lengths = skewed(batch, params["context"], params.get("skew", 1))
    k, v = bench.pools(kv_heads, page, head_dim)
    touched = 4 * kv_heads * head_dim * sum(lengths)
    tables = bench.tables(lengths, page, k.shape[0], touched)
    lens = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
    plan = plan_decode(lens, kv_heads, tile)  # one for all layers of a step, so not part of the time
    q = [bench.normal(batch, heads, head_dim) for _ in tables]
    out = [torch.empty_like(x) for x in q]
    calls: Calls = [
        lambda i=i, table=table: decode_attention(q[i], k, v, table, lens, plan=plan, out=out[i], tile=tile)  # type: ignore[misc]
        for i, table in enumerate(tables)
    ]

    def check() -> None:
        rows = [0, batch // 2, batch - 1] if sum(lengths) > 2**20 or bench.dry else list(range(min(batch, 8)))
        expected = reference.decode_reference(q[0][rows], k, v, tables[0][rows], lens[rows])
        _check(out[0][rows], expected)

    return calls, check


def prefill_calls(bench: Bench, params: dict[str, Any], tile: Tile | None = None) -> tuple[Calls, Callable[[], None]]:
    """Calls of prefill attention of one chunk, and the check of its first and last rows."""
    chunk, prefix, heads, kv_heads = params["chunk"], params["prefix"], params["heads"], params["kv_heads"]
    head_dim, page = params["head_dim"], params["page"]
    context = chunk + prefix
    k, v = bench.pools(kv_heads, page, head_dim)
    tables = bench.tables([context], page, k.shape[0], 4 * kv_heads * head_dim * context)
    starts = torch.tensor([0, chunk], dtype=torch.int32, device=bench.device)
    lens = torch.tensor([context], dtype=torch.int32, device=bench.device)
    q = bench.normal(chunk, heads, head_dim)
    out = [torch.empty_like(q) for _ in tables]
    calls: Calls = [
        lambda i=i, table=table: prefill_attention(  # type: ignore[misc]
            q, k, v, table, starts, lens, longest=context, out=out[i], tile=tile
        )
        for i, table in enumerate(tables)
    ]

    def check() -> None:
        for first in {0, max(0, chunk - CHECKED_ROWS)}:  # rows first to end are a chunk after a longer prefix
            end = min(first + CHECKED_ROWS, chunk)
            part, length = starts.clone(), lens - (chunk - end)
            part[1] = end - first
            _check(out[0][first:end], reference.prefill_reference(q[first:end], k, v, tables[0], part, length))

    return calls, check


def _decode(bench: Bench, params: dict[str, Any]) -> Timed:
    calls, check = decode_calls(bench, params)
    samples = time_graph(calls, bench.device)
    check()
    return Timed(samples)


def _prefill(bench: Bench, params: dict[str, Any]) -> Timed:
    calls, check = prefill_calls(bench, params)
    samples = time_graph(calls, bench.device)
    check()
    return Timed(samples)


def _gemm(bench: Bench, params: dict[str, Any]) -> Timed:
    m, n, k = params["m"], params["n"], params["k"]
    weights, x = bench.matrices(n, k), bench.normal(m, k)
    out = torch.empty((m, n), dtype=x.dtype, device=bench.device)
    calls: Calls = [lambda w=w: torch.mm(x, w.t(), out=out) for w in weights]  # type: ignore[misc]
    samples = time_graph(calls, bench.device)
    calls[0]()
    rows = slice(0, CHECKED_ROWS), slice(max(0, n - CHECKED_COLUMNS), n)
    _check(out[rows], x[rows[0]].float() @ weights[0][rows[1]].float().t())
    return Timed(samples)


def _copy_bandwidth(bench: Bench, params: dict[str, Any]) -> Timed:
    size = params["bytes"] // 2
    count = bench.variants(4 * size, bench.arena.numel() // (2 * size))
    halves = bench.arena[: 2 * size * count].view(count, 2, size)
    calls: Calls = [lambda pair=pair: pair[1].copy_(pair[0]) for pair in halves]  # type: ignore[misc]
    return Timed([4 * size / s for s in time_graph(calls, bench.device)], "bytes/s")  # read and written


def _pinned_memcpy(bench: Bench, params: dict[str, Any]) -> Timed:
    size = params["bytes"]
    host, there = bench.host[:size], bench.arena.view(torch.int8)[:size]
    to, source = (host, there) if params["direction"] == "d2h" else (there, host)
    samples = time_eager([lambda: to.copy_(source, non_blocking=True)], bench.device)
    return Timed([size / s for s in samples], "bytes/s")


def _kv_copy(bench: Bench, params: dict[str, Any]) -> Timed:
    pool, pieces = bench.pieces(params["piece_bytes"]), params["pieces"]
    size = params["piece_bytes"] * pieces
    packed_rows = pieces if params["direction"] == "d2d" else 0
    count = bench.variants(size, (pool.shape[0] - packed_rows) // pieces)
    order = bench.shuffled(pool.shape[0] - packed_rows)[: count * pieces].view(count, pieces)
    if params["method"] == "migrate":
        return _migrate(bench, pool, order)
    if params["direction"] == "d2d":
        packed = pool[pool.shape[0] - pieces :]
        gather = params["method"] == "gather"
        calls: Calls = [
            lambda rows=rows: gather_pieces(pool, rows, packed) if gather else scatter_pieces(packed, pool, rows)  # type: ignore[misc]
            for rows in order
        ]
        samples = time_graph(calls, bench.device)
        calls[0]()
        same = torch.equal(pool[order[0].long()], packed)
    else:
        if size > bench.host.numel():
            raise TooLarge("more than the pinned host memory")
        host, slots, swap = bench.host[:size].view(torch.int32).view(pieces, -1), torch.arange(pieces), swap_out
        if params["direction"] == "h2d":
            swap = swap_in
        listed = [rows.cpu() for rows in order[:2]]  # the link is slower than any cache
        calls = [lambda rows=rows: swap(pool, rows, host, slots, params["method"]) for rows in listed]  # type: ignore[misc]
        samples = time_eager(calls, bench.device)
        calls[0]()
        if not bench.dry:
            torch.cuda.synchronize()
        same = torch.equal(pool[order[0].long()].cpu(), host)
    if not same:
        raise WrongResult("pieces differ from their source")
    return Timed(samples)


def _migrate(bench: Bench, pool: torch.Tensor, order: torch.Tensor) -> Timed:
    """Pieces of one GPU's pool to as many others of a second GPU's."""
    if bench.dry or torch.cuda.device_count() < 2:
        raise TooLarge("needs 2 GPUs")
    other = torch.empty((order.shape[1], pool.shape[1]), dtype=pool.dtype, device="cuda:1")
    rows = torch.randperm(order.shape[1])

    def move(pages: torch.Tensor) -> None:
        migrate(pool, pages, other, rows)
        torch.cuda.current_stream("cuda:0").wait_stream(torch.cuda.current_stream("cuda:1"))

    listed = [pages.cpu() for pages in order[:2]]
    samples = time_eager([lambda pages=pages: move(pages) for pages in listed], bench.device)  # type: ignore[misc]
    move(listed[0])
    torch.cuda.synchronize()
    if not torch.equal(other[rows.to("cuda:1")].cpu(), pool[order[0].long()].cpu()):
        raise WrongResult("pieces differ from their source")
    return Timed(samples)


def _elementwise(bench: Bench, params: dict[str, Any]) -> Timed:
    """One layer's norms with residual, rotary positions with cache write, and activation."""
    tokens = params["tokens"]
    shape = next(shape for shape in SHAPES.values() if shape.hidden == params["hidden"])
    page, device = 16, bench.device
    k, v = bench.pools(shape.kv_heads, page, shape.head_dim)
    count = bench.variants(2 * tokens * (6 * shape.hidden + 3 * shape.mlp), k.shape[0] * page // tokens)
    cos, sin = rope_tables(tokens, shape.head_dim, 500_000.0, device)
    positions = torch.arange(tokens, dtype=torch.int32, device=device)
    slots = bench.shuffled(k.shape[0] * page)
    weight = bench.normal(shape.hidden)
    x = [bench.normal(tokens, shape.hidden) for _ in range(count)]
    qkv = [bench.normal(tokens, shape.linear(1)[0][0]) for _ in range(count)]
    gate_up = [bench.normal(tokens, 2 * shape.mlp) for _ in range(count)]

    def layer(i: int) -> None:
        rms_norm(x[i], weight, x[i - 1])
        rope_and_cache(qkv[i], k, v, cos, sin, positions, slots[i * tokens : (i + 1) * tokens])
        rms_norm(x[i], weight, x[i - 1])
        silu_mul(gate_up[i])

    samples = time_graph([lambda i=i: layer(i) for i in range(count)], device)  # type: ignore[misc]
    _check(rms_norm(x[0], weight)[0], reference.rms_norm_reference(x[0], weight, None, 1e-5)[0])
    _check(silu_mul(gate_up[0]), reference.silu_mul_reference(gate_up[0]))
    return Timed(samples)


def _decode_while_copying(bench: Bench, params: dict[str, Any]) -> Timed:
    """Decode attention of the main shape while the copy engine works in one direction or both."""
    shape = bench.main
    sizes = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim, "page": 16}
    calls, check = decode_calls(bench, {**params, **sizes})
    half = bench.host.numel() // 2
    there = torch.empty(2 * half, dtype=torch.int8, device=bench.device)
    streams = [torch.cuda.Stream() for _ in range(2)] if not bench.dry else []

    def copy(direction: str) -> None:
        here, other = slice(0, half), slice(half, 2 * half)
        if direction == "d2h":
            bench.host[here].copy_(there[here], non_blocking=True)
        else:
            there[other].copy_(bench.host[other], non_blocking=True)

    def background() -> None:
        if params["copying"] != "both" or not streams:
            copy(params["copying"])
            return
        now = torch.cuda.current_stream()
        for stream, direction in zip(streams, ("d2h", "h2d"), strict=True):
            stream.wait_stream(now)
            with torch.cuda.stream(stream):
                copy(direction)
            now.wait_stream(stream)

    if params["copying"] == "none":
        samples = time_graph(calls, bench.device)
    else:
        samples = time_beside(calls, background, bench.device)
    check()
    return Timed(samples)


def _all_reduce(bench: Bench, params: dict[str, Any]) -> Timed:
    gpus = params["gpus"]
    if bench.dry or torch.cuda.device_count() < gpus:
        raise TooLarge(f"needs {gpus} GPUs")
    from torch.cuda import nccl

    parts = [torch.ones(params["bytes"] // 2, dtype=torch.bfloat16, device=f"cuda:{i}") for i in range(gpus)]
    out = [torch.empty_like(part) for part in parts]

    def reduce() -> None:
        nccl.all_reduce(parts, out)

    samples = time_eager([reduce], bench.device)
    _check(out[0][:CHECKED_COLUMNS], torch.full_like(out[0][:CHECKED_COLUMNS], gpus))
    return Timed(samples)


def _host_step(bench: Bench, params: dict[str, Any]) -> Timed:
    from kernels.engine import host_step_s

    return Timed(host_step_s(params["sequences"], bench.device))


MEASURES: dict[str, Callable[[Bench, dict[str, Any]], Timed]] = {
    "all_reduce": _all_reduce,
    "copy_bandwidth": _copy_bandwidth,
    "decode_attention": _decode,
    "decode_while_copying": _decode_while_copying,
    "elementwise": _elementwise,
    "gemm": _gemm,
    "host_step": _host_step,
    "kv_copy": _kv_copy,
    "pinned_memcpy": _pinned_memcpy,
    "prefill_attention": _prefill,
}


def measured(bench: Bench, spec: Spec) -> Timed:
    """Times of a row. Raises TooLarge where this machine cannot, WrongResult where a kernel is wrong."""
    try:
        return MEASURES[spec.kernel](bench, spec.params)
    except torch.cuda.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise TooLarge(str(error).splitlines()[0][:80]) from None
