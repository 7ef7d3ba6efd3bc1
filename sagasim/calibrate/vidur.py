"""Source `vidur`: Vidur's per-layer linear parts by tokens and split, and its all-reduces; its folder as published.

compute/<gpu>/<model>/mlp.csv[.gz] (milliseconds) is found by the model's shapes, network/<gpu>_dgx/all_reduce.csv[.gz]
by the GPU. Vidur's attention tables are not at hand: attention is taken from an embedded calibration of another GPU
with the same heads and scaled by the ratios of bandwidth and of operations per second, and is marked derived.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sagasim.calibrate.derived import (
    derived_all_reduce,
    derived_attention,
    derived_head,
    derived_sampler,
)
from sagasim.calibrate.draft import Draft
from sagasim.calibrate.fitting import (
    curve_at,
    fewest_knots,
    increasing_fit,
    increasing_median,
    left_out,
    never_falling,
    raised,
    residual,
)
from sagasim.calibrate.linear import DENSE, SMALL_KERNEL_US, Collective
from sagasim.calibrate.rank import Rank
from sagasim.calibrate.tables import Floats, Rows, columns, find_table, read_table
from sagasim.errors import CalibrationError
from sagasim.hardware import data_dir, load_gpu, load_model, model_ids

__all__ = ["fit_vidur", "linear_rows", "reduce_rows"]

SHAPES = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "vocab_size")
KERNELS = {  # term -> columns of the table, all once a layer
    "qkv_proj": ("attn_pre_proj",),
    "o_proj": ("attn_post_proj",),
    "gate_up_proj": ("mlp_up_proj",),
    "down_proj": ("mlp_down_proj",),
    "elementwise": ("input_layernorm", "post_attention_layernorm", "attn_rope", "mlp_act", "add", "add"),
}
STEP_KERNELS = 10  # once a step: embedding, last norm, slot mapping, attention schedule and the like
SCALED_FROM = ("h100", "h200")  # whose attention is scaled, in this order


def _column(name: str) -> str:
    return f"time_stats.{name}.median"


def _model_table(rank: Rank, folder: Path) -> Path:
    """The table of the model with these shapes on this GPU."""
    m = rank.model
    wanted = (m.heads, m.kv_heads, m.hidden, m.mlp, m.vocab)
    for model in sorted(path for path in (folder / "compute" / rank.gpu.id).glob("*") if path.is_dir()):
        path = find_table(model, "mlp")
        if path is not None:
            rows = read_table(path, (*SHAPES, "num_tokens", "num_tensor_parallel_workers"))
            if tuple(int(np.asarray(rows[name], dtype=np.float64)[0]) for name in SHAPES) == wanted:
                return path
    where = str(folder / "compute" / rank.gpu.id)
    raise CalibrationError(f"no table of a model with the shapes of {m.id}", where=where, expected="MODEL/mlp.csv.gz")


def linear_rows(rank: Rank, folder: Path, draft: Draft | None = None) -> dict[str, tuple[Floats, Floats]]:
    """Term -> (tokens, microseconds of one layer)."""
    path = _model_table(rank, folder)
    if draft is not None:
        draft.used(path)
    needed = tuple(_column(name) for names in KERNELS.values() for name in names)
    rows: Rows = read_table(path, (*SHAPES, "num_tokens", "num_tensor_parallel_workers", *needed))
    keep = np.asarray(rows["num_tensor_parallel_workers"] == rank.tp)
    found = {}
    for term, names in KERNELS.items():
        tokens, *parts = columns(rows, keep, "num_tokens", *(_column(name) for name in names))
        found[term] = (tokens, np.sum(parts, axis=0) * 1e3)
    return found


def reduce_rows(rank: Rank, folder: Path, draft: Draft | None = None) -> tuple[Floats, Floats, Floats] | None:
    """All-reduces within a node: bytes, ranks, microseconds. None without a table."""
    network = folder / "network" / f"{rank.gpu.id}_dgx"
    path = find_table(network, "all_reduce") if network.is_dir() else None
    if path is None:
        return None
    if draft is not None:
        draft.used(path)
    rows = read_table(path, (_column("all_reduce"), "num_workers", "size", "devices_per_node"))
    keep = np.asarray(rows["num_workers"] == rows["devices_per_node"])
    ms, ranks, size = columns(rows, keep, _column("all_reduce"), "num_workers", "size")
    return size, ranks, ms * 1e3


def fit_vidur(rank: Rank, folder: Path) -> Draft:
    """The calibration of a rank from such a folder."""
    draft = Draft(rank, folder)
    draft.notes += [
        "relative errors are those of the numbers in this file; *_left_out: a third of the rows, drawn at random, "
        "predicted from the others",
        "linear parts and all-reduce are measured on this GPU; attention, lm_head, sampler, host and constant derived",
    ]
    draft.constant_us = STEP_KERNELS * SMALL_KERNEL_US
    _linear(draft, folder)
    if rank.tp > 1:
        _all_reduce(draft, folder)
    derived_head(draft)
    derived_sampler(draft)
    _attention(draft)
    return draft


def _linear(draft: Draft, folder: Path) -> None:
    rank = draft.rank
    told, us_of, guess, out_of = [], [], [], []
    for seed, (name, (tokens, us)) in enumerate(linear_rows(rank, folder, draft).items()):
        knots = DENSE[tokens.max() >= DENSE]
        floor = rank.gemm_floor_us(*rank.gemms[name], knots) if name in rank.gemms else np.zeros(len(knots))
        values = raised(increasing_fit(tokens, us, knots), floor)
        if name in rank.gemms:
            told.append(np.interp(tokens, knots, values))
            us_of.append(us)
            out = left_out(len(us), seed=seed)
            guess.append(np.interp(tokens[out], knots, increasing_fit(tokens[~out], us[~out], knots)))
            out_of.append(us[out])
        draft.token_term(name, knots, values * rank.model.layers, "published", "mlp table")
    draft.residuals["linear"] = residual(np.concatenate(told), np.concatenate(us_of))
    draft.residuals["gemm_left_out"] = residual(np.concatenate(guess), np.concatenate(out_of))


def _all_reduce(draft: Draft, folder: Path) -> None:
    rank = draft.rank
    rows = reduce_rows(rank, folder, draft)
    if rows is None:
        derived_all_reduce(draft)
        return
    size, _, us = (column[rows[1] == rank.tp] for column in rows)
    if len(us) < 3:
        raise CalibrationError(f"no all-reduce between {rank.tp} GPUs of one node", where=str(folder / "network"))
    hidden_bytes = rank.model.hidden * rank.model.dtype_bytes
    knots, values = _reduced(rank, size, us)
    used = size >= hidden_bytes
    draft.residuals["all_reduce"] = residual(curve_at(size[used] / hidden_bytes, knots, values), us[used])
    draft.residuals["all_reduce_least"] = residual(never_falling(size[used], us[used]), us[used])
    predicted, measured = [], []
    for seed in range(20):  # rows of two kinds at one size: a single draw tells more of the draw than of the curve
        out = left_out(len(us), seed=seed) & used
        rest = _reduced(rank, size[~out], us[~out])
        predicted.append(curve_at(size[out] / hidden_bytes, *rest))
        measured.append(us[out])
    draft.residuals["all_reduce_left_out"] = residual(np.concatenate(predicted), np.concatenate(measured))
    source = f"all_reduce table: {rank.tp} GPUs of one node"
    draft.token_term("all_reduce", knots, values * 2 * rank.model.layers, "published", source)


def _reduced(rank: Rank, size: Floats, us: Floats) -> tuple[Floats, Floats]:
    """One all-reduce by tokens: a curve through the many noisy sizes, beyond them the share of the reference held."""
    hidden_bytes = rank.model.hidden * rank.model.dtype_bytes
    tokens = size / hidden_bytes
    inside = np.unique(np.ceil(np.unique(tokens)[::2]))  # two sizes a knot
    inside = inside[inside <= tokens.max()]
    smooth = increasing_median(tokens, us, inside)
    knots = np.unique(np.concatenate([DENSE[inside[0] > DENSE], inside, DENSE[inside[-1] < DENSE]]))
    beyond = Collective(rank, inside * hidden_bytes, np.full_like(inside, rank.tp), smooth)
    return fewest_knots(knots, beyond.reduce_us(knots))


def _like(rank: Rank) -> tuple[Path, dict[str, Any]] | None:
    """An embedded calibration with attention of the same shape."""
    shape = (rank.model.layers, rank.model.heads, rank.model.kv_heads, rank.model.head_dim)
    for gpu in SCALED_FROM:
        for name in model_ids():
            m = load_model(name)
            path = data_dir() / "calibration" / f"{gpu}-{name}-tp{rank.tp}-{rank.dtype}.json"
            if (m.layers, m.heads, m.kv_heads, m.head_dim) == shape and path.is_file():
                return path, json.loads(path.read_text(encoding="utf-8"))
    return None


def _attention(draft: Draft) -> None:
    found = _like(draft.rank)
    if found is None:
        derived_attention(draft)
        return
    path, other = found
    here, there = draft.rank.gpu, load_gpu(other["gpu"])
    slower = there.mem_bandwidth_bytes_per_s / here.mem_bandwidth_bytes_per_s
    longer = there.bf16_flops / here.bf16_flops
    source = f"scaled from {path.name}: by bandwidth, {slower:.2f}"
    decode = other["decode_attention"]
    rows = [[_rounded(value * slower) for value in row] for row in decode["ps"]]
    draft.decode = {**decode, "ps": rows, "status": "derived", "source": source}
    prefill = other["prefill_attention"]
    scaled: dict[str, Any] = {"base_ps": prefill["base_ps"]}
    scaled |= {key: [_rounded(value * longer) for value in prefill[key]] for key in ("ps", "per_cached_token")}
    source = f"scaled from {path.name}: by operations per second, {longer:.2f}"
    draft.prefill = {**prefill, **scaled, "status": "derived", "source": source}


def _rounded(value: float) -> int:
    """Up to a whole thousand, as every number of a calibration."""
    return -(-round(value) // 1000) * 1000
