"""Measurements -> calibration file: python -m sagasim.calibrate --source calibration/sources/h200_sxm --out calibration

A source folder holds the tables of one GPU (see calibration/SOURCES.md for their columns) and origin.toml, which says
where they come from. The result is plain JSON in whole picoseconds, summed over the layers of one tensor-parallel rank;
times are rounded to nanoseconds so that the same tables give the same bytes on every machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sagasim.calibrate_tables import TABLES, Floats, columns, origin_of, read_table, table_path
from sagasim.calibrate_terms import (
    BATCHES,
    CONTEXTS,
    SEQUENCES,
    SMALL_KERNEL_US,
    TILE,
    TOKENS,
    Gemm,
    Prefill,
    Rank,
    all_reduce_us,
    curve_at,
    decode_us,
    elementwise_us,
    gather_us,
    linear_us,
    of_heads,
    prefill_fit,
    sampler_us,
)
from sagasim.errors import CalibrationError, SagasimError
from sagasim.hardware import Gpu, Model, load_gpu, load_model

__all__ = ["MODELS", "TENSOR_PARALLEL", "dumps", "fit", "main"]

MODELS = ("llama-3.1-70b", "llama-3.1-8b")
TENSOR_PARALLEL = (1, 2, 4, 8)
SHIFT = 20
STEP_TOKENS = 16384  # the longest step of several chunks that residuals look at
STEP_KERNELS = 10  # once a step: embedding, last norm, slot mapping, attention schedule and the like
HOST = {
    "base_ps": 10**9,
    "per_sequence_ps": 5 * 10**6,
    "per_token_ps": 10**4,
    "status": "derived",
    "source": "assumption, to be replaced by a measurement: the order of 1 ms that vLLM v1 spends on scheduling, input "
    "preparation and launches, 5 us more per sequence; asynchronous scheduling hides it below the GPU's time",
}


def fit(source_dir: Path, model: Model, gpu: Gpu, tp: int) -> dict[str, Any]:
    """The calibration of one model on `tp` GPUs of the source's kind."""
    origin = origin_of(source_dir)
    if origin["gpu"] != gpu.id:
        raise CalibrationError(f"measured on '{origin['gpu']}', not on '{gpu.id}'", where=str(source_dir))
    if tp < 1 or model.heads % tp or model.mlp % tp:
        raise CalibrationError(f"{model.id} cannot be split over {tp} GPUs", expected="a divisor of heads and mlp")
    rank, residuals = Rank(model, gpu, tp), dict[str, Any]()
    decode, cached_us = _decode(rank, source_dir, residuals)
    return {
        "sagasim_calibration": 1,
        "gpu": gpu.id,
        "model": model.id,
        "tp": tp,
        "dtype": "bf16",
        "provenance": _provenance(source_dir, origin, tp, residuals),
        "host": HOST,
        "constant_ps": _ps(STEP_KERNELS * SMALL_KERNEL_US),
        "token_terms": _token_terms(rank, source_dir, residuals),
        "sequence_terms": _sequence_terms(rank, source_dir, residuals),
        "decode_attention": decode,
        "prefill_attention": _prefill(rank, source_dir, cached_us, residuals),
    }


def dumps(calibration: dict[str, Any]) -> str:
    """JSON with an indent of 1 and every array of numbers on one line."""
    text = json.dumps(calibration, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d,]+\]", lambda found: "[" + " ".join(found.group()[1:-1].split()) + "]", text) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Write the calibration of every model and tensor-parallel size; 2 when the user made a mistake."""
    parser = argparse.ArgumentParser(prog="python -m sagasim.calibrate", description="Tables of times -> calibrations.")
    parser.add_argument("--source", type=Path, required=True, help="folder of tables with an origin.toml")
    parser.add_argument("--out", type=Path, required=True, help="folder for the calibration files")
    arguments = parser.parse_args(argv)
    try:
        gpu = load_gpu(origin_of(arguments.source)["gpu"])
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name in MODELS:
            for tp in TENSOR_PARALLEL:
                path = arguments.out / f"{gpu.id}-{name}-tp{tp}-bf16.json"
                path.write_text(dumps(fit(arguments.source, load_model(name), gpu, tp)), encoding="utf-8")
                sys.stderr.write(f"{path}\n")
    except OSError as error:
        sys.stderr.write(f"{error.filename}: cannot be written ({error.strerror})\n")
        return 2
    except SagasimError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


@lru_cache(maxsize=16)
def _gemm(source_dir: Path, rank: Rank) -> Gemm:
    rows = read_table(source_dir, "gemm")
    return Gemm(rank, *columns(rows, rows["gemm_dtype"] == "bfloat16", "m", "n", "k", "us"))


def _ps(us: float, *, scale: int = 1) -> int:
    """Microseconds -> picoseconds times scale, rounded up to a thousand: a floor stays a floor."""
    return -(-round(us * 1e6 * scale) // 1000) * 1000


def _ps_list(us: Iterable[float], layers: int = 1) -> list[int]:
    return [_ps(float(value) * layers) for value in us]


def _residual(predicted: Floats, measured: Floats) -> dict[str, float | int]:
    """Mean and 90th percentile of |relative error|, its mean with sign, and the number of rows."""
    error = predicted / measured - 1.0
    size = np.abs(error)
    told = {"mape": size.mean(), "p90": np.quantile(size, 0.9), "bias": error.mean()}
    return {**{name: round(float(value), 4) for name, value in told.items()}, "n": len(error)}


def _provenance(source_dir: Path, origin: dict[str, str], tp: int, residuals: dict[str, Any]) -> dict[str, Any]:
    paths = [table_path(source_dir, table) for table in TABLES] + [source_dir / "system.yaml"]
    told = {key: origin[key] for key in ("repository", "commit", "licence")}
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
    sources = [
        {"file": f"sources/{source_dir.name}/{path.name}", "sha256": digest, **told}
        for path, digest in zip(paths, digests, strict=True)
    ]
    notes = [
        f"measured by others with {origin['software']}; {origin['changed']}",
        "relative errors below are those of the numbers in this file; *_left_out: fitted without the rows predicted",
        "prefill_attention_batched: 2 to 8 sequences in one launch, told as the sum of as many chunks; short ones "
        "share the launch and fill an otherwise idle GPU, so the sum is too long; *_one_base: base_ps counted once",
        "the tables know no cached prefix: the cost of cached tokens in prefill attention is derived",
        "the GEMM table lacks some of the model's shapes: their utilisation is that of the nearest shapes",
        "elementwise, sampler, host and constant are derived, not measured on this GPU",
    ]
    if tp > 1:
        notes.append("all_reduce_nccl compares with NCCL's own rows from 8 Mi elements on, which the fit does not use")
    return {
        "status": "published",
        "sources": sources,
        "fitted_with": "sagasim.calibrate: non-negative least squares on increments, weight 1/y",
        "notes": notes,
        "residuals": residuals,
    }


def _token_terms(rank: Rank, source_dir: Path, residuals: dict[str, Any]) -> list[dict[str, Any]]:
    """linear, elementwise and, between GPUs, all_reduce (two a layer)."""
    layers, gemm = rank.model.layers, _gemm(source_dir, rank)
    values, every = linear_us(gemm, rank.gemms, TOKENS)
    ps = _ps_list(values, layers)
    residuals["linear"] = _residual(_at(gemm.m, TOKENS, ps, layers), every)
    near = sorted({index for n, k in rank.gemms for index, _ in gemm.near(n, k)})
    left_out = [_left_out_shape(gemm, index) for index in near]
    residuals["linear_left_out"] = _residual(*(np.concatenate(part) for part in zip(*left_out, strict=True)))
    measured = f"{table_path(source_dir, 'gemm').name}: bf16, utilisation of the nearest shapes"
    ends = TOKENS[[0, -1]]
    moved = _ps_list(elementwise_us(rank, ends), layers)
    terms = [
        _term("linear", "tokens", TOKENS, ps, "published", measured),
        _term("elementwise", "tokens", ends, moved, "derived", "bytes at 80 % of the peak bandwidth, 2.5 us a kernel"),
    ]
    if rank.tp > 1:
        terms.append(_all_reduce(rank, source_dir, residuals))
    return terms


def _term(name: str, axis: str, knots: Floats, ps: list[int], status: str, source: str) -> dict[str, Any]:
    return {"name": name, axis: [int(knot) for knot in knots], "ps": ps, "status": status, "source": source}


def _at(x: Floats, knots: Floats, ps: list[int], per: int) -> Floats:
    """What a term of the file says at x, in microseconds and divided by the number of its kernels in a step."""
    return curve_at(x, knots, np.array(ps, dtype=np.float64)) / (per * 1e6)


def _left_out_shape(gemm: Gemm, index: int) -> tuple[Floats, Floats]:
    """(predicted, measured) times of one shape of the table, predicted from its neighbours alone."""
    n, k = (int(size) for size in gemm.shapes[index])
    log_m, share = gemm.curves[index]
    m = np.exp(log_m)
    return gemm.us(n, k, m, itself=False), gemm.rank.gemm_floor_us(n, k, m) / share


def _all_reduce(rank: Rank, source_dir: Path, residuals: dict[str, Any]) -> dict[str, Any]:
    rows, hidden, per = read_table(source_dir, "custom_allreduce"), rank.model.hidden, 2 * rank.model.layers
    keep = (rows["backend"] == "vllm_graph") & (rows["num_gpus"] == rank.tp)
    elements, us = columns(rows, keep, "message_size", "us")
    ps = _ps_list(all_reduce_us(rank, elements, us)(TOKENS), per)
    used = elements >= hidden
    residuals["all_reduce"] = _residual(_at(elements[used] / hidden, TOKENS, ps, per), us[used])
    out = np.flatnonzero(used)[1:-1:2]
    rest = all_reduce_us(rank, np.delete(elements, out), np.delete(us, out))
    residuals["all_reduce_left_out"] = _residual(rest(elements[out] / hidden), us[out])
    rows = read_table(source_dir, "nccl")
    keep = (rows["op_name"] == "all_reduce") & (rows["nccl_dtype"] == "half") & (rows["num_gpus"] == rank.tp)
    elements, us = columns(rows, keep & np.greater_equal(rows["message_size"], 2.0**23), "message_size", "us")
    residuals["all_reduce_nccl"] = _residual(_at(elements / hidden, TOKENS, ps, per), us)
    source = (
        f"{table_path(source_dir, 'custom_allreduce').name}: CUDA graph rows, vLLM's choice of algorithm at every size"
    )
    return _term("all_reduce", "tokens", TOKENS, ps, "published", source)


def _sequence_terms(rank: Rank, source_dir: Path, residuals: dict[str, Any]) -> list[dict[str, Any]]:
    """lm_head with the gathering of its logits, and the sampler."""
    gemm = _gemm(source_dir, rank)
    values, every = linear_us(gemm, (rank.lm_head,), SEQUENCES)
    small = gemm.m <= SEQUENCES[-1]
    residuals["lm_head"] = _residual(np.interp(gemm.m[small], SEQUENCES, values), every[small])
    source = f"{table_path(source_dir, 'gemm').name}: utilisation of the nearest shapes"
    if rank.tp > 1:
        rows = read_table(source_dir, "nccl")
        keep = (rows["op_name"] == "all_gather") & (rows["nccl_dtype"] == "half") & (rows["num_gpus"] == rank.tp)
        elements, us = columns(rows, keep, "message_size", "us")
        values = values + gather_us(rank, elements, us, SEQUENCES)
        source += f"; plus the all-gather of the logits, {table_path(source_dir, 'nccl').name}"
    ends = SEQUENCES[[0, -1]]
    told = "logits read, cast and searched at 80 % of the peak bandwidth, and 25 us of small kernels"
    return [
        _term("lm_head", "sequences", SEQUENCES, _ps_list(values), "published", source),
        _term("sampler", "sequences", ends, _ps_list(sampler_us(rank, ends)), "derived", told),
    ]


def _decode(rank: Rank, source_dir: Path, residuals: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """The decode attention table, and microseconds per token of one long context in one layer."""
    rows, exact = of_heads(read_table(source_dir, "generation_attention"), rank.heads, rank.kv_heads)
    known = np.isin(rows["batch_size"], BATCHES)
    batch, step, us = columns(rows, known, "batch_size", "step", "us")
    context, layers = step + 1.0, rank.model.layers
    ps = [_ps_list(row, layers) for row in decode_us(rank, batch, context, us)]
    residuals["decode_attention"] = _residual(_decode_at(np.array(ps) / (layers * 1e6), batch, context), us)
    out = np.zeros(len(us), dtype=bool)
    for size in BATCHES:
        of_size = np.flatnonzero(batch == size)
        out[of_size[np.argsort(context[of_size])][1:-1:2]] = True
    rest = decode_us(rank, batch[~out], context[~out], us[~out])
    residuals["decode_attention_left_out"] = _residual(_decode_at(rest, batch[out], context[out]), us[out])
    source = (
        f"{table_path(source_dir, 'generation_attention').name}: {rank.heads} heads, {rank.kv_heads} KV heads, bf16"
    )
    table = {
        "batch": [int(size) for size in BATCHES],
        "context": [int(size) for size in CONTEXTS],
        "ps": ps,
        "status": "published" if exact else "derived",
        "source": source if exact else f"{source}; absent from the table: the nearest pair scaled by KV heads",
    }
    return table, (ps[0][-1] - ps[0][-4]) / float(CONTEXTS[-1] - CONTEXTS[-4]) / (layers * 1e6)


def _decode_at(table: Floats, batch: Floats, context: Floats) -> Floats:
    """Table (BATCHES, CONTEXTS) at batches that are knots and any context within the knots."""
    return np.array([np.interp(c, CONTEXTS, table[int(np.log2(b))]) for b, c in zip(batch, context, strict=True)])


def _prefill(rank: Rank, source_dir: Path, cached_us: float, residuals: dict[str, Any]) -> dict[str, Any]:
    rows, exact = of_heads(read_table(source_dir, "context_attention"), rank.heads, rank.kv_heads)
    batch, q, us = columns(rows, rows["isl"] != 1.0, "batch_size", "isl", "us")  # one token is a decode
    one, layers = batch == 1, rank.model.layers
    q1, us1 = q[one], us[one]
    fitted = prefill_fit(rank, q1, us1, cached_us)
    coefficients = {
        "base_ps": _ps(fitted.base * layers),
        "per_tile_token": _ps(fitted.tile_token * layers, scale=2**SHIFT),
        "per_cached_token": _ps(fitted.cached * layers, scale=2**SHIFT),
        "per_pair": _ps(fitted.pair * layers, scale=2**SHIFT),
    }
    base, *slopes = (float(value) for value in coefficients.values())
    final = Prefill(*(value / (layers * 1e6) for value in (base, *(slope / 2**SHIFT for slope in slopes))))
    residuals["prefill_attention"] = _residual(final.us(q1, np.zeros_like(q1)), us1)
    rest = [prefill_fit(rank, np.delete(q1, i), np.delete(us1, i), cached_us) for i in range(len(q1))]
    guesses = [left.us(q1[[i]], np.zeros(1))[0] for i, left in enumerate(rest)]
    residuals["prefill_attention_left_out"] = _residual(np.array(guesses), us1)
    several = (batch > 1) & (batch <= 8) & (batch * q <= STEP_TOKENS)
    chunks = batch[several] * final.us(q[several], np.zeros_like(q[several]))
    residuals["prefill_attention_batched"] = _residual(chunks, us[several])
    launches = (batch[several] - 1.0) * final.base
    residuals["prefill_attention_batched_one_base"] = _residual(chunks - launches, us[several])
    heads = f"{rank.heads} heads, {rank.kv_heads} KV heads, bf16, one sequence"
    return {
        "tile": TILE,
        **coefficients,
        "shift": SHIFT,
        "status": "published" if exact else "derived",
        "source": f"{table_path(source_dir, 'context_attention').name}: {heads}; derived by structure, as the table "
        "knows no cached prefix: per_cached_token, the rate at which one decode sequence reads its KV, and the cached "
        "part of per_pair",
    }


if __name__ == "__main__":
    sys.exit(main())
