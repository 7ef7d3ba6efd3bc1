"""Source `aiconfigurator`: kernel tables of one GPU by NVIDIA, a folder per GPU (see calibration/SOURCES.md).

Products and attention kernels come with many shapes and numbers of heads, so any dense model and split can be fitted;
shapes and points that are missing are interpolated over the measured ones.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sagasim.calibrate.attention import (
    BATCHES,
    DecodeRows,
    PrefillCurves,
    alone_us,
    cached_structure,
    decode_at,
    decode_us,
    dense_knots,
    prefill_of_table,
)
from sagasim.calibrate.derived import derived_all_reduce, derived_elementwise, derived_experts, derived_sampler
from sagasim.calibrate.draft import Draft
from sagasim.calibrate.fitting import left_out, never_falling, non_negative, residual
from sagasim.calibrate.linear import SEQUENCES, SMALL_KERNEL_US, TOKENS, Collective, Gemm, product_us
from sagasim.calibrate.rank import Rank
from sagasim.calibrate.tables import Floats, Mask, Rows, columns, find_table, read_table
from sagasim.errors import CalibrationError

__all__ = ["NEEDED", "decode_rows", "fit_aiconfigurator", "gemm_rows", "near_shapes", "prefill_rows", "reduce_rows"]

HEADS = ("num_heads", "num_key_value_heads", "head_dim", "kv_cache_dtype", "batch_size")
NEEDED = {
    "generation_attention": (*HEADS, "step", "latency_ms"),
    "context_attention": (*HEADS, "isl", "latency_ms"),
    "gemm": ("gemm_dtype", "m", "n", "k", "latency_ms"),
    "custom_allreduce": ("backend", "num_gpus", "message_size", "latency_ms"),
    "nccl": ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency_ms"),
}
STEP_KERNELS = 10  # once a step: embedding, last norm, slot mapping, attention schedule and the like
SHORTEST_LONG_CHUNK = 2048  # from here on all multiprocessors are busy, with the heads of any usual split
NEIGHBOURHOOD = 1.6  # distance of shapes in powers of two within which a product is left out and predicted


def _table(folder: Path, name: str, draft: Draft | None = None) -> Rows | None:
    path = find_table(folder, name, engine="vllm")
    if path is None:
        return None
    if draft is not None:
        draft.used(path)
    return read_table(path, NEEDED[name])


def _needed(folder: Path, name: str, draft: Draft | None) -> Rows:
    rows = _table(folder, name, draft)
    if rows is None:
        raise CalibrationError(f"no table '{name}'", where=str(folder), expected=f"a file {name}-*.csv.gz")
    return rows


def _us(rows: Rows) -> Floats:
    return np.asarray(rows["latency_ms"], dtype=np.float64) * 1e3


def decode_rows(rank: Rank, folder: Path, draft: Draft | None = None) -> DecodeRows:
    """Decode kernels of every number of heads, with the head size and KV data type of the rank."""
    rows = _needed(folder, "generation_attention", draft)
    keep = _of_dtype(rank, rows)
    batch, step, heads, kv_heads, ms = columns(
        rows, keep, "batch_size", "step", "num_heads", "num_key_value_heads", "latency_ms"
    )
    return DecodeRows(batch, step + 1.0, heads, kv_heads, ms * 1e3)


def prefill_rows(rank: Rank, folder: Path, draft: Draft | None = None) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """Prefill kernels: tokens of a sequence, sequences, heads, KV heads, microseconds; one token is a decode."""
    rows = _needed(folder, "context_attention", draft)
    keep = _of_dtype(rank, rows) & np.not_equal(rows["isl"], 1.0)
    q, batch, heads, kv_heads, ms = columns(
        rows, keep, "isl", "batch_size", "num_heads", "num_key_value_heads", "latency_ms"
    )
    return q, batch, heads, kv_heads, ms * 1e3


def _of_dtype(rank: Rank, rows: Rows) -> Mask:
    dtype = "bfloat16" if rank.kv_size == 2 else "fp8"
    return np.asarray((rows["kv_cache_dtype"] == dtype) & (rows["head_dim"] == float(rank.model.head_dim)))


def gemm_rows(rank: Rank, folder: Path, draft: Draft | None = None, *, size: int = 0) -> list[Floats]:
    """Products: m, n, k, microseconds; of the rank's data type or of weights of `size` bytes."""
    rows = _needed(folder, "gemm", draft)
    name = "bfloat16" if (size or rank.weight_size) == 2 else "fp8"
    m, n, k, ms = columns(rows, np.asarray(rows["gemm_dtype"] == name), "m", "n", "k", "latency_ms")
    return [m, n, k, ms * 1e3]


def reduce_rows(folder: Path, draft: Draft | None = None) -> tuple[Floats, Floats, Floats] | None:
    """All-reduces as CUDA graphs run them: bytes, ranks, microseconds. None without a table."""
    rows = _table(folder, "custom_allreduce", draft)
    if rows is None:
        return None
    graph = np.array([str(name).endswith("graph") for name in rows["backend"]])
    elements, ranks, ms = columns(rows, graph, "message_size", "num_gpus", "latency_ms")
    return elements * 2.0, ranks, ms * 1e3


def nccl_rows(folder: Path, op: str, draft: Draft | None = None) -> tuple[Floats, Floats, Floats] | None:
    """NCCL's own: bytes (of the gathered result for an all-gather), ranks, microseconds. None without a table."""
    rows = _table(folder, "nccl", draft)
    if rows is None:
        return None
    keep = np.asarray((rows["op_name"] == op) & (rows["nccl_dtype"] == "half"))
    elements, ranks, ms = columns(rows, keep, "message_size", "num_gpus", "latency_ms")
    return elements * 2.0, ranks, ms * 1e3


def fit_aiconfigurator(rank: Rank, folder: Path) -> Draft:
    """The calibration of a rank from such a folder."""
    draft = Draft(rank, folder)
    draft.notes += [
        "relative errors are those of the numbers in this file; *_left_out: a third of the rows, drawn at random, "
        "predicted from the others",
        "the tables know no cached prefix: what cached tokens cost in prefill attention is derived",
        "elementwise, sampler, host and constant are derived, not measured on this GPU",
    ]
    draft.constant_us = STEP_KERNELS * SMALL_KERNEL_US
    _products(draft, folder)
    _links(draft, folder)
    _decode(draft, folder)
    _prefill(draft, folder)
    return draft


def _products(draft: Draft, folder: Path) -> None:
    """A term for each product of a layer, small kernels, and per sequence lm_head and sampler."""
    rank = draft.rank
    layers, rows = rank.model.layers, gemm_rows(rank, folder, draft)
    m, n, k, _ = rows
    gemm, every = Gemm(rank, *rows), np.unique(m)
    graphed = every[(every <= 512) & ((every <= 16) | (every % 16 == 0))]
    every = np.concatenate([graphed, every[every > 512]])
    fitted, wanted = np.zeros_like(every), np.zeros_like(every)
    for name, shape in rank.gemms.items():
        told = gemm.us(*shape, every)
        values = product_us(
            rank, shape, every, told, every
        )  # a knot at every size: steps above tiles of rows stay steps
        fitted, wanted = fitted + values, wanted + told
        exact = bool(((n == shape[0]) & (k == shape[1])).any())
        source = f"gemm table, {rank.dtype}: n {shape[0]}, k {shape[1]}"
        source += "" if exact else "; absent from the table: share of the roofline of the nearest shapes"
        draft.token_term(name, every, values * layers, "published" if exact else "derived", source)
    draft.residuals["linear"] = residual(fitted, wanted)
    draft.residuals["linear_least"] = residual(never_falling(every, wanted), wanted)
    draft.residuals["gemm_left_out"] = _gemm_left_out(rank, rows)
    if rank.model.experts:
        derived_experts(draft)
    derived_elementwise(draft)
    head = Gemm(rank, *gemm_rows(rank, folder, size=2), size=2) if rank.weight_size == 1 else gemm
    small = graphed[graphed <= SEQUENCES[-1]]
    told = head.us(*rank.lm_head, small)
    values = product_us(Rank(rank.model, rank.gpu, rank.tp), rank.lm_head, small, told, SEQUENCES)
    draft.residuals["lm_head"] = residual(np.interp(small, SEQUENCES, values), told)
    draft.sequence_term("lm_head", SEQUENCES, values, "published", "gemm table, bf16: share of the nearest shapes")
    derived_sampler(draft)


def near_shapes(rank: Rank, n: Floats, k: Floats) -> Mask:
    """Which rows have a shape near one of the model's products."""
    near = np.zeros(len(n), dtype=bool)
    for rows, width in rank.gemms.values():
        near |= np.hypot(np.log2(n / rows), np.log2(k / width)) <= NEIGHBOURHOOD
    return np.asarray(near)


def _gemm_left_out(rank: Rank, rows: list[Floats]) -> dict[str, float | int]:
    """A third of all rows left out; those of shapes near the model's are predicted."""
    m, n, k, us = rows
    out = left_out(len(m))
    some = np.flatnonzero(out & near_shapes(rank, n, k))
    rest = Gemm(rank, *(column[~out] for column in rows))
    return residual(rest.us(n[some], k[some], m[some]), us[some])


def _links(draft: Draft, folder: Path) -> None:
    """All-reduce, two a layer, and the gathering of the logits."""
    rank = draft.rank
    if rank.tp == 1:
        return
    per, hidden_bytes = 2 * rank.model.layers, rank.model.hidden * rank.model.dtype_bytes
    rows, reduced = reduce_rows(folder, draft), nccl_rows(folder, "all_reduce")
    if rows is None:
        derived_all_reduce(draft)
    else:
        values = Collective(rank, *rows).reduce_us(TOKENS)
        draft.residuals["all_reduce"] = _reduce_residual(rank, values, rows, hidden_bytes)
        draft.residuals["all_reduce_left_out"] = _reduce_left_out(rank, rows)
        if reduced is not None:
            draft.residuals["all_reduce_nccl"] = _reduce_residual(rank, values, reduced, 2.0**24)
            draft.notes.append("all_reduce_nccl: NCCL's own rows from 16 MiB on, which the fit does not use")
        source = "custom_allreduce table: CUDA graph rows, vLLM's choice of algorithm at every size"
        draft.token_term("all_reduce", TOKENS, values * per, "published", source)
    gathered = nccl_rows(folder, "all_gather", draft)
    if gathered is not None:
        values = Collective(rank, *gathered).gather_us(SEQUENCES)
        draft.sequence_term("logits_gather", SEQUENCES, values, "published", "nccl table: all-gather of the logits")


def _reduce_residual(rank: Rank, values: Floats, rows: tuple[Floats, ...], least: float) -> dict[str, float | int]:
    """One all-reduce at TOKENS against rows of as many ranks, from `least` bytes on."""
    size, ranks, us = rows
    hidden_bytes = rank.model.hidden * rank.model.dtype_bytes
    used = (ranks == rank.tp) & (size >= least) & (size <= TOKENS[-1] * hidden_bytes)
    return residual(np.interp(size[used] / hidden_bytes, TOKENS, values), us[used])


def _reduce_left_out(rank: Rank, rows: tuple[Floats, ...]) -> dict[str, float | int]:
    size, ranks, us = rows
    predicted, measured = [], []
    for seed in range(5):  # few sizes: several draws
        out = left_out(len(size), seed=seed)
        for count in np.unique(ranks):  # both ends stay: what lies beyond them is no interpolation
            own = np.flatnonzero(ranks == count)
            out[own[[np.argmin(size[own]), np.argmax(size[own])]]] = False
        rest = Collective(rank, size[~out], ranks[~out], us[~out])
        some = out & (ranks == rank.tp)
        predicted.append(rest.us(size[some]))
        measured.append(us[some])
    return residual(np.concatenate(predicted), np.concatenate(measured))


def _decode(draft: Draft, folder: Path) -> None:
    rank = draft.rank
    rows = decode_rows(rank, folder, draft)
    table = decode_us(rank, rows)
    own = (rows.heads == rank.heads) & (rows.kv_heads == rank.kv_heads) & (rows.batch <= BATCHES[-1])
    draft.residuals["decode_attention"] = residual(decode_at(table, rows.batch[own], rows.context[own]), rows.us[own])
    out = left_out(len(own))
    rest = decode_us(rank, rows.only(~out))
    some = rows.only(out & own)
    draft.residuals["decode_attention_left_out"] = residual(decode_at(rest, some.batch, some.context), some.us)
    source = (
        f"generation_attention table: {rank.heads} heads, {rank.kv_heads} KV heads, KV cache of {rank.kv_size} bytes"
    )
    source += "" if own.any() else "; absent from the table: interpolated over other numbers of heads"
    measured = rows.only(own) if own.any() else rows
    draft.set_decode(table, 0.0, "published" if own.any() else "derived", source, (measured.batch, measured.context))


def _prefill(draft: Draft, folder: Path) -> None:
    """New tokens from the table; cached ones by structure, at the rate of long chunks or of reading keys and values."""
    rank = draft.rank
    rows = prefill_rows(rank, folder, draft)
    q, batch, heads, kv_heads, us = rows
    curves = _prefill_curves(rank, rows, draft)
    own = (heads == rank.heads) & (kv_heads == rank.kv_heads)
    one = own & (batch == 1)
    none = np.zeros_like(q)
    draft.residuals["prefill_attention"] = residual(curves.us(q[one], none[one]), us[one])
    predicted, measured = [], []
    for seed in range(8):  # a dozen rows for one number of heads: several draws
        out = left_out(len(q), seed=seed)
        rest = _prefill_curves(rank, tuple(column[~out] for column in rows), draft)
        predicted.append(rest.us(q[one & out], none[one & out]))
        measured.append(us[one & out])
    draft.residuals["prefill_attention_left_out"] = residual(np.concatenate(predicted), np.concatenate(measured))
    several = own & (batch > 1) & (batch <= 8) & (batch * q <= 16384)
    told = batch[several] * (curves.us(q[several], none[several]) - curves.base) + curves.base
    draft.residuals["prefill_attention_batched"] = residual(told, us[several])
    draft.notes.append("prefill_attention_batched: 2 to 8 sequences in one launch, told as as many chunks and one base")
    source = (
        f"context_attention table: {rank.heads} heads, {rank.kv_heads} KV heads, one sequence; per_cached_token is "
    )
    source += (
        "derived, as the table knows no cached prefix: pairs at the rate of long chunks in as many waves of thread "
    )
    source += "blocks as they fill, which LLMServingSim's tables with cached prefixes bear out, or one decode's reading"
    draft.set_prefill(curves, "published" if one.any() else "derived", source, (q, none))


def _prefill_curves(rank: Rank, rows: tuple[Floats, ...], draft: Draft) -> PrefillCurves:
    q, batch, heads, kv_heads, us = rows
    surface = prefill_of_table(rank, q, batch, heads, kv_heads, us)
    knots = dense_knots(np.min(q), 32768.0)
    new = np.maximum.accumulate(alone_us(rank, surface, knots))
    long = np.unique(q[q >= SHORTEST_LONG_CHUNK])
    told = alone_us(rank, surface, long)
    pair = 2.0 * non_negative(np.stack([long, long * (long + 128.0)], axis=1), told, np.zeros(2))[1]
    read = np.array(draft.decode["ps"][0][-4:], dtype=np.float64) * 1e-6 / rank.model.layers
    reading = (read[-1] - read[0]) / (draft.decode["context"][-1] - draft.decode["context"][-4])
    cached = np.maximum(pair * cached_structure(rank, knots, splits=True), reading)
    return PrefillCurves(knots, float(new[0]), new - new[0], cached).above_floor(rank)
