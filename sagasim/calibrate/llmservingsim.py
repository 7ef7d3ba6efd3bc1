"""Source `llmservingsim`: per-layer profiles of one model on one GPU by LLMServingSim, in microseconds.

A folder <gpu>/<model> holds meta.yaml and tpN/ with attention, dense, per_sequence, skew and, for experts, moe tables;
each is optional where its term can be derived. Decode and prefill share one launch in vLLM on these GPUs: the attention
table has both in one batch, and the decodes' share of such a launch has a table of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from sagasim.calibrate.attention import (
    DecodeRows,
    PrefillCurves,
    cached_structure,
    decode_at,
    decode_us,
    extended,
    mixed_fit,
    mixed_us,
    prefill_fit,
    skew_share,
)
from sagasim.calibrate.derived import (
    derived_all_reduce,
    derived_attention,
    derived_elementwise,
    derived_experts,
    derived_gather,
    derived_head,
    derived_product,
    derived_sampler,
)
from sagasim.calibrate.draft import Draft
from sagasim.calibrate.fitting import increasing_fit, left_out, residual
from sagasim.calibrate.linear import DENSE, SEQUENCES, SMALL_KERNEL_US, TOKENS, reached_experts
from sagasim.calibrate.rank import Rank
from sagasim.calibrate.tables import Floats, Mask, Rows, columns, find_table, number_column, read_table
from sagasim.errors import CalibrationError

__all__ = ["AttentionRows", "attention_rows", "fit_llmservingsim", "layer_rows", "split_folder"]

PER_LAYER = {"layernorm": 2.0}  # how often a kernel of the table runs in a layer, if not once
ONCE = ("embedding", "final_layernorm")  # a step
PER_SEQUENCE = ("lm_head", "sampler")
STEP_KERNELS = 4  # once a step and in no table: slot mapping, attention schedule, input copies


class AttentionRows(NamedTuple):
    """Launches: new and cached tokens of one prefill chunk, decodes and tokens of each context, microseconds."""

    new: Floats
    cached: Floats
    decodes: Floats
    context: Floats
    us: Floats

    def only(self, keep: Mask) -> AttentionRows:
        return AttentionRows(*(column[keep] for column in self))


def split_folder(folder: Path, tp: int) -> Path:
    """tpN in such a folder."""
    split = folder / f"tp{tp}"
    if not split.is_dir():
        there = ", ".join(sorted(path.name for path in folder.glob("tp*"))) or "none"
        raise CalibrationError(
            f"no folder 'tp{tp}'", where=str(folder), expected=f"a profile of this split; there: {there}"
        )
    return split


def attention_rows(folder: Path, draft: Draft | None = None) -> AttentionRows | None:
    """The attention table of a split; None if it has none."""
    path = find_table(folder, "attention")
    if path is None:
        return None
    if draft is not None:
        draft.used(path)
    rows = read_table(path, ("prefill_chunk", "n_decode", "kv_decode", "time_us"))
    keep = number_column(rows, "time_us", path) > 0
    if "decode_q_len" in rows:
        keep &= np.asarray(rows["decode_q_len"] == 1.0)
    if "kv_prefill" in rows:
        new, cached, decodes, context, us = columns(
            rows, keep, "prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"
        )
    elif "prefill_key" in rows:  # tokens a query sees on average: the cached ones and half the chunk
        new, key, decodes, context, us = columns(
            rows, keep, "prefill_chunk", "prefill_key", "n_decode", "kv_decode", "time_us"
        )
        cached = np.maximum(0.0, np.round(key - new / 2))
    else:
        raise CalibrationError("no column 'kv_prefill'", where=str(path), expected="kv_prefill or prefill_key")
    one = (new == 1) & (decodes == 0)  # a chunk of one token is a decode
    context, decodes = np.where(one, cached, context), np.where(one, 1.0, decodes)
    cached, new = np.where(one, 0.0, cached), np.where(one, 0.0, new)
    return AttentionRows(new, cached, decodes, context + 1.0, us)


def layer_rows(folder: Path, table: str, axis: str, draft: Draft | None = None) -> dict[str, tuple[Floats, Floats]]:
    """Kernel -> (tokens or sequences, microseconds) of a dense or per_sequence table; empty without one."""
    path = find_table(folder, table)
    if path is None:
        return {}
    if draft is not None:
        draft.used(path)
    rows = read_table(path, ("layer", axis, "time_us"))
    names = np.asarray(rows["layer"])
    found = {}
    timed = number_column(rows, "time_us", path) > 0
    for name in np.unique(names[timed]):
        x, us = columns(rows, (names == name) & timed, axis, "time_us")
        order = np.argsort(x, kind="stable")
        found[str(name)] = (x[order], us[order])
    return found


def fit_llmservingsim(rank: Rank, folder: Path) -> Draft:
    """The calibration of a rank from such a folder."""
    split = split_folder(folder, rank.tp)
    draft = Draft(rank, folder)
    if (folder / "meta.yaml").is_file():
        draft.used(folder / "meta.yaml")
    draft.notes += [
        "relative errors are those of the numbers in this file; *_left_out: a third of the rows, drawn at random, "
        "predicted from the others",
        "profiled kernel by kernel without CUDA graphs; host and constant are derived",
    ]
    draft.constant_us = STEP_KERNELS * SMALL_KERNEL_US
    _dense(draft, split)
    _experts(draft, folder, split)
    _per_sequence(draft, split)
    if rank.tp > 1:
        derived_all_reduce(draft)
        derived_gather(draft)
    _attention(draft, split)
    return draft


def _knots(x: Floats, wanted: Floats) -> Floats:
    """The wanted knots within what was measured, and both ends of it."""
    inside = wanted[(wanted > x[0]) & (wanted < x[-1])]
    return np.concatenate([x[:1], inside, x[-1:]]) if x[-1] > x[0] else x[:1]


def _extended(knots: Floats, values: Floats, floor: Floats) -> tuple[Floats, Floats]:
    """One knot more, at the last one's share of the roofline; floor: at all knots and there."""
    if knots[-1] >= TOKENS[-1]:
        return knots, values
    return np.append(knots, TOKENS[-1]), np.append(values, values[-1] * floor[-1] / floor[-2])


def _dense(draft: Draft, split: Path) -> None:
    """A term for each kernel of the dense table; products that it lacks by their roofline."""
    rank = draft.rank
    layers, found = rank.model.layers, layer_rows(split, "dense", "tokens", draft)
    fitted, measured = [], []
    for name, (tokens, us) in found.items():
        times = 1.0 if name in ONCE else PER_LAYER.get(name, 1.0) * layers
        knots = _knots(tokens, DENSE)
        values = increasing_fit(tokens, us, knots)
        if name in rank.gemms:
            values = np.maximum(values, rank.gemm_floor_us(*rank.gemms[name], knots))
            fitted.append(np.interp(tokens, knots, values))
            measured.append(us)
            knots, values = _extended(
                knots, values, rank.gemm_floor_us(*rank.gemms[name], np.append(knots, TOKENS[-1]))
            )
        draft.token_term(name, knots, values * times, "published", "dense table")
    if fitted:
        draft.residuals["linear"] = residual(np.concatenate(fitted), np.concatenate(measured))
        draft.residuals["gemm_left_out"] = _dense_left_out(rank, found)
    for name in rank.gemms:
        if name not in found and name != "router":  # a moe table holds the router too
            derived_product(draft, name)
    if not found:
        derived_elementwise(draft)


def _dense_left_out(rank: Rank, found: dict[str, tuple[Floats, Floats]]) -> dict[str, float | int]:
    predicted, measured = [], []
    for seed, name in enumerate(sorted(set(found) & set(rank.gemms))):
        tokens, us = found[name]
        out = left_out(len(tokens), seed=seed)
        out[[0, -1]] = False
        knots = _knots(tokens[~out], DENSE[np.isin(DENSE, tokens[~out])])
        predicted.append(np.interp(tokens[out], knots, increasing_fit(tokens[~out], us[~out], knots)))
        measured.append(us[out])
    return residual(np.concatenate(predicted), np.concatenate(measured))


def _experts(draft: Draft, folder: Path, split: Path) -> None:
    """The block of experts by tokens, at the number of experts that so many tokens reach."""
    rank = draft.rank
    if not rank.model.experts:
        return
    layers = rank.model.layers
    path = find_table(split, "moe") or (find_table(folder / "tp1", "moe") if (folder / "tp1").is_dir() else None)
    if path is None:
        derived_experts(draft)
        if "router" in rank.gemms:
            derived_product(draft, "router")
        return
    rows = read_table(draft.used(path), ("tokens", "activated_experts", "time_us"))
    ranks = np.asarray(rows["ep"], dtype=np.float64) if "ep" in rows else np.ones(len(rows["tokens"]))
    part = float(rank.tp) if (ranks == rank.tp).any() else 1.0  # a rank with its share of the experts was profiled
    tokens, reached, us = columns(rows, ranks == part, "tokens", "activated_experts", "time_us")
    known = np.unique(tokens)
    wanted = reached_experts(rank, known) / part
    told = np.array([_at_reach(tokens, reached, us, *pair) for pair in zip(known, wanted, strict=True)])
    status, source = "published", "moe table at the experts that a trained gate reaches"
    if path.parent != split and part != rank.tp:  # profiled whole: a rank does its part of the work
        whole = Rank(rank.model, rank.gpu, 1, rank.dtype).expert_floor_us(known, reached_experts(rank, known))
        told = told * rank.expert_floor_us(known, reached_experts(rank, known)) / whole
        status, source = "derived", source + f"; profiled on one GPU, divided by the roofline of {rank.tp} ranks"
    knots = _knots(known, DENSE)
    values = increasing_fit(known, told, knots)
    draft.residuals["experts"] = residual(np.interp(known, knots, values), told)
    draft.token_term("experts", knots, values * layers, status, source)


def _at_reach(tokens: Floats, reached: Floats, us: Floats, size: float, wanted: float) -> float:
    """Time of a block with `size` tokens that reach `wanted` experts, linear between measured numbers of experts."""
    own = tokens == size
    order = np.argsort(reached[own], kind="stable")
    return float(np.interp(wanted, reached[own][order], us[own][order]))


def _per_sequence(draft: Draft, split: Path) -> None:
    rank = draft.rank
    found = layer_rows(split, "per_sequence", "sequences", draft)
    for name in PER_SEQUENCE:
        if name in found:
            sequences, us = found[name]
            knots = _knots(sequences, SEQUENCES)
            values = increasing_fit(sequences, us, knots)
            if name == "lm_head":
                floor = rank.gemm_floor_us(*rank.lm_head, np.append(knots, TOKENS[-1]), size=2)
                knots, values = _extended(knots, np.maximum(values, floor[:-1]), floor)
            draft.residuals[name] = residual(np.interp(sequences, knots, values), us)
            draft.sequence_term(name, knots, values, "published", "per_sequence table")
        elif name == "lm_head":
            derived_head(draft)
        else:
            derived_sampler(draft)


def _attention(draft: Draft, split: Path) -> None:
    rank, rows = draft.rank, attention_rows(split, draft)
    if rows is None:
        derived_attention(draft)
        return
    decode, prefill = rows.only(rows.new == 0), rows.only(rows.decodes == 0)
    if len(decode.us) < 3 or len(prefill.us) < 3:
        raise CalibrationError("fewer than 3 launches of pure decode or prefill", where=str(split), expected="a grid")
    table = decode_us(rank, _decode_rows(rank, decode), tiled=True)
    draft.residuals["decode_attention"] = residual(decode_at(table, decode.decodes, decode.context), decode.us)
    predicted, measured = [], []
    for seed in range(5):
        out = left_out(len(decode.us), seed=seed)
        rest, some = decode_us(rank, _decode_rows(rank, decode.only(~out)), tiled=True), decode.only(out)
        predicted.append(decode_at(rest, some.decodes, some.context))
        measured.append(some.us)
    draft.residuals["decode_attention_left_out"] = residual(np.concatenate(predicted), np.concatenate(measured))
    share, told = _skew(draft, split)
    source = f"attention table, launches without prefill{told}"
    draft.set_decode(table, share, "published", source, (decode.decodes, decode.context))
    curves = _prefill(draft, prefill)
    both = rows.only((rows.new > 0) & (rows.decodes > 0))
    if len(both.us) >= 3:
        alone = curves.us(both.new, both.cached)
        mixed = mixed_fit(both.decodes, both.context, both.new, alone, both.us, table)
        told_us = alone + mixed_us(mixed, both.decodes, both.context, both.new)
        draft.residuals["mixed_attention"] = residual(told_us, both.us)
        two = alone + decode_at(table, both.decodes, both.context)
        draft.residuals["mixed_attention_as_two_launches"] = residual(two, both.us)
        draft.set_mixed(mixed, "published", "attention table, launches with a prefill chunk, less the chunk's own time")


def _decode_rows(rank: Rank, rows: AttentionRows) -> DecodeRows:
    heads = np.full_like(rows.us, rank.heads)
    return DecodeRows(rows.decodes, rows.context, heads, np.full_like(rows.us, rank.kv_heads), rows.us)


def _skew(draft: Draft, split: Path) -> tuple[float, str]:
    """Share of the way from the mean to the longest context, from launches of unequal contexts without prefill."""
    path = find_table(split, "skew")
    if path is None:
        return 0.0, "; no skew table: unequal contexts cost what their mean costs, or the longest alone"
    needed = ("pc", "t_mean_us", "t_max_us", "t_skew_us")
    header: Rows = read_table(path, ())
    if any(name not in header for name in needed):
        return 0.0, "; the skew table has no mean and max references: not used"
    draft.used(path)
    keep = np.asarray(header["pc"] == 0.0)
    for name in needed[1:]:
        keep &= number_column(header, name, path) > 0
    if not keep.any():
        return 0.0, "; the skew table has no launches without prefill: not used"
    mean_us, max_us, us = columns(header, keep, *needed[1:])
    share = skew_share(mean_us, max_us, us)
    draft.residuals["skew"] = residual(mean_us + share * (max_us - mean_us), us)
    return share, "; skew table: share of the way from the mean to the longest context"


def _prefill(draft: Draft, rows: AttentionRows) -> PrefillCurves:
    rank = draft.rank
    measured = prefill_fit(rows.new, rows.cached, rows.us)
    curves = extended(rank, measured).above_floor(rank)
    none, long = rows.cached == 0, rows.cached >= 4 * rows.new
    told = curves.us(rows.new, rows.cached)
    for name, some in (("", rows.us > 0), ("_no_prefix", none), ("_long_prefix", long)):
        draft.residuals[f"prefill_attention{name}"] = residual(told[some], rows.us[some])
    predicted, us, is_long = [], [], []
    for seed in range(5):
        out = left_out(len(rows.us), seed=seed)
        rest = extended(rank, prefill_fit(*rows.only(~out)[:2], rows.us[~out])).above_floor(rank)
        predicted.append(rest.us(rows.new[out], rows.cached[out]))
        us.append(rows.us[out])
        is_long.append(long[out])
    guess, true, of_long = np.concatenate(predicted), np.concatenate(us), np.concatenate(is_long)
    draft.residuals["prefill_attention_left_out"] = residual(guess, true)
    draft.residuals["prefill_attention_left_out_long_prefix"] = residual(guess[of_long], true[of_long])
    if rows.cached.max() > 0 and (measured.cached > 0).all():
        structure = cached_structure(rank, measured.knots, splits=False)
        pair = np.exp(np.mean(np.log(measured.cached / structure)))
        draft.residuals["cached_token_by_structure"] = residual(pair * structure, measured.cached)
    source = (
        f"attention table, launches without decodes: chunks of {rows.new.min():.0f} to {rows.new.max():.0f} tokens on "
    )
    source += f"0 to {rows.cached.max():.0f} cached ones; longer ones by the share of the reference at the end"
    draft.set_prefill(curves, "published", source, (rows.new, rows.cached))
    return curves
