"""Source `measured`: times of our own kernels, the CSV that `python -m kernels.measure` writes.

Columns: kernel, dtype, params (a JSON object), unit (s or bytes/s), median, p10, p90, n, device, driver, torch, triton,
commit, date. A folder may hold several such files. Kernels that were not measured are derived.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sagasim.calibrate.attention import (
    DecodeRows,
    PrefillCurves,
    cached_structure,
    decode_at,
    decode_us,
    extended,
    prefill_fit,
)
from sagasim.calibrate.derived import (
    derived_all_reduce,
    derived_attention,
    derived_elementwise,
    derived_experts,
    derived_head,
    derived_product,
    derived_sampler,
)
from sagasim.calibrate.draft import Draft
from sagasim.calibrate.fitting import increasing_fit, left_out, non_negative, residual, to_ps
from sagasim.calibrate.linear import SMALL_KERNEL_US, TOKENS, Collective, Gemm, elementwise_us, product_us
from sagasim.calibrate.rank import Rank
from sagasim.calibrate.tables import Floats, Mask, number_column, read_table
from sagasim.errors import CalibrationError

__all__ = ["Measured", "fit_measured", "read_measured"]

COLUMNS = ("kernel", "dtype", "params", "unit", "median", "n", "device", "date")
UNITS = {"s": 1e6, "bytes/s": 1.0}  # to microseconds; rates stay
STEP_KERNELS = 10  # once a step: embedding, last norm, slot mapping, attention schedule and the like
DTYPES = {"bf16", "bfloat16"}


@dataclass(frozen=True, slots=True)
class Measured:
    """Rows of one kernel: its parameters and the median, in microseconds or bytes a second."""

    params: list[dict[str, Any]]
    median: Floats

    def column(self, name: str, default: float | None = None) -> Floats:
        """One parameter of every row."""
        values = [params.get(name, default) for params in self.params]
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            raise CalibrationError(f"a parameter '{name}' is missing or no number", where="params", expected="a number")
        return np.array(values, dtype=np.float64)

    def only(self, keep: Mask) -> Measured:
        """The rows to keep."""
        return Measured([params for params, kept in zip(self.params, keep, strict=True) if kept], self.median[keep])


def read_measured(folder: Path, draft: Draft | None = None) -> dict[str, Measured]:
    """Kernel -> its rows in all CSV files of the folder (or the one file)."""
    files = [folder] if folder.is_file() else sorted((*folder.glob("*.csv"), *folder.glob("*.csv.gz")))
    if not files:
        raise CalibrationError("no CSV file", where=str(folder), expected="what python -m kernels.measure writes")
    found: dict[str, Measured] = {}
    for path in files:
        rows = read_table(path if draft is None else draft.used(path), COLUMNS)
        median = number_column(rows, "median", path)
        _check_devices(rows, path, draft)
        for line, (kernel, text, unit) in enumerate(zip(rows["kernel"], rows["params"], rows["unit"], strict=True), 2):
            try:
                params = json.loads(str(text))
            except ValueError:
                params = None
            if not isinstance(params, dict) or str(unit) not in UNITS or not median[line - 2] > 0:
                what = "params is no JSON object, the unit is unknown or the median is not above 0"
                raise CalibrationError(what, where=f"{path}, line {line}", expected=f"units {', '.join(UNITS)}")
            params["dtype"] = str(rows["dtype"][line - 2])
            told = found.setdefault(str(kernel), Measured([], np.zeros(0)))
            value = median[line - 2] * UNITS[str(unit)]
            found[str(kernel)] = Measured([*told.params, params], np.append(told.median, value))
    return found


def _check_devices(rows: Mapping[str, Any], path: Path, draft: Draft | None) -> None:
    """Refuse what no GPU measured; note what the rest was measured on, and when."""
    for line, device in enumerate(rows["device"], 2):
        if str(device).startswith("interpreter"):
            what = f"a time of the {device}"
            raise CalibrationError(what, where=f"{path}, line {line}", expected="times measured on a GPU")
    if draft is not None:
        told = sorted({f"{device}, {date}" for device, date in zip(rows["device"], rows["date"], strict=True)})
        draft.notes.append(f"measured on {'; '.join(told)}"[:200])


def fit_measured(rank: Rank, folder: Path) -> Draft:
    """The calibration of a rank from such a folder."""
    draft = Draft(rank, folder, status="measured")
    draft.notes.append(
        "kernels that were not measured are derived; relative errors are those of the numbers in this file"
    )
    draft.constant_us = STEP_KERNELS * SMALL_KERNEL_US
    found = read_measured(folder, draft)
    _products(draft, found)
    _elementwise(draft, found)
    _all_reduce(draft, found)
    _head(draft, found)
    derived_sampler(draft)
    _attention(draft, found)
    _host(draft, found)
    draft.extra = _transfers(found)
    return draft


def _products(draft: Draft, found: dict[str, Measured]) -> None:
    rank, rows = draft.rank, found.get("gemm")
    if rank.model.experts:
        derived_experts(draft)
    if rows is None:
        for name in rank.gemms:
            derived_product(draft, name)
        return
    m, n, k = (rows.column(name) for name in ("m", "n", "k"))
    gemm, every = Gemm(rank, m, n, k, rows.median), np.unique(m)
    knots = TOKENS[(every[0] <= TOKENS) & (every[-1] >= TOKENS)]
    knots = knots if len(knots) > 1 else every
    for name, shape in rank.gemms.items():
        exact = bool(((n == shape[0]) & (k == shape[1])).any())
        values = product_us(rank, shape, every, gemm.us(*shape, every), knots)
        status = "measured" if exact else "derived"
        source = "gemm" if exact else "gemm: share of the roofline of the nearest shapes"
        draft.token_term(name, knots, values * rank.model.layers, status, source)
    out = left_out(len(m))
    rest = Gemm(rank, m[~out], n[~out], k[~out], rows.median[~out])
    draft.residuals["gemm_left_out"] = residual(rest.us(n[out], k[out], m[out]), rows.median[out])


def _head(draft: Draft, found: dict[str, Measured]) -> None:
    rank, rows = draft.rank, found.get("gemm")
    if rows is None:
        derived_head(draft)
        return
    m, n, k = (rows.column(name) for name in ("m", "n", "k"))
    every = np.unique(m)
    exact = bool(((n == rank.lm_head[0]) & (k == rank.lm_head[1])).any())
    values = product_us(rank, rank.lm_head, every, Gemm(rank, m, n, k, rows.median).us(*rank.lm_head, every), every)
    source = "gemm" if exact else "gemm: share of the roofline of the nearest shapes"
    draft.sequence_term("lm_head", every, values, "measured" if exact else "derived", source)


def _elementwise(draft: Draft, found: dict[str, Measured]) -> None:
    """One measurement holds all small kernels of a layer that is not split."""
    rank, rows = draft.rank, found.get("elementwise")
    own = None if rows is None else rows.only(rows.column("hidden") == rank.model.hidden)
    if own is None or len(own.median) < 2:
        derived_elementwise(draft)
        return
    tokens = own.column("tokens")
    knots = np.unique(tokens)
    values = increasing_fit(tokens, own.median, knots)
    status, source = "measured", "elementwise"
    if rank.tp > 1:
        whole = Rank(rank.model, rank.gpu, 1, rank.dtype)
        values = np.maximum.accumulate(values * elementwise_us(rank, knots) / elementwise_us(whole, knots))
        status, source = "derived", "elementwise of a layer that is not split, less the bytes that a rank does not move"
    draft.token_term("elementwise", knots, values * rank.model.layers, status, source)


def _all_reduce(draft: Draft, found: dict[str, Measured]) -> None:
    rank, rows = draft.rank, found.get("all_reduce")
    if rank.tp == 1:
        return
    own = None if rows is None else rows.only(rows.column("gpus") == rank.tp)
    if own is None or len(own.median) < 2:
        derived_all_reduce(draft)
        return
    values = Collective(rank, own.column("bytes"), own.column("gpus"), own.median).reduce_us(TOKENS)
    draft.token_term("all_reduce", TOKENS, values * 2 * rank.model.layers, "measured", "all_reduce")


def _attention(draft: Draft, found: dict[str, Measured]) -> None:
    """Decode and prefill are two launches of ours, so their times add."""
    rank = draft.rank
    derived_attention(draft)  # what is measured replaces it
    decode = _of_size(found.get("decode_attention"), rank)
    if decode is not None:
        batch, context, heads, kv_heads = (decode.column(name) for name in ("batch", "context", "heads", "kv_heads"))
        rows = DecodeRows(batch, context, heads, kv_heads, decode.median)
        table = decode_us(rank, rows)
        own = (rows.heads == rank.heads) & (rows.kv_heads == rank.kv_heads)
        draft.residuals["decode_attention"] = residual(
            decode_at(table, rows.batch[own], rows.context[own]), rows.us[own]
        )
        out = left_out(len(own))
        rest, some = decode_us(rank, rows.only(~out)), rows.only(out & own)
        draft.residuals["decode_attention_left_out"] = residual(decode_at(rest, some.batch, some.context), some.us)
        status = "measured" if own.any() else "derived"
        source = "decode_attention" if own.any() else "decode_attention: interpolated over other numbers of heads"
        draft.set_decode(table, 0.0, status, source, (rows.batch, rows.context))
    prefill = _of_size(found.get("prefill_attention"), rank)
    if prefill is not None:
        own = (prefill.column("heads") == rank.heads) & (prefill.column("kv_heads") == rank.kv_heads)
        prefill = prefill.only(own)
    if prefill is not None and len(prefill.median) >= 2:
        q, kv, us = prefill.column("chunk"), prefill.column("prefix", 0.0), prefill.median
        curves, told = _prefill_curves(rank, q, kv, us)
        draft.residuals["prefill_attention"] = residual(curves.us(q, kv), us)
        draft.set_prefill(curves, "measured", f"prefill_attention{told}", (q, kv))


def _of_size(rows: Measured | None, rank: Rank) -> Measured | None:
    """Attention rows of the model's head size in bf16, all contexts of one length; None without any."""
    if rows is None:
        return None
    dtypes = np.array([params["dtype"] in DTYPES for params in rows.params])
    own = rows.only((rows.column("head_dim") == rank.model.head_dim) & (rows.column("skew", 1.0) == 1.0) & dtypes)
    return own if len(own.median) >= 2 else None


def _prefill_curves(rank: Rank, q: Floats, kv: Floats, us: Floats) -> tuple[PrefillCurves, str]:
    """Fitted where chunks on cached tokens were measured, else their cost by structure."""
    fitted = prefill_fit(q, kv, us)
    told = ""
    if not (kv > 0).any():
        pair = 2.0 * non_negative(np.stack([q, q * (q + 128.0)], axis=1), us, np.zeros(2))[1]
        cached = np.maximum(
            pair * cached_structure(rank, fitted.knots, splits=False), rank.prefill_floor_us(fitted.knots)[1]
        )
        fitted = PrefillCurves(fitted.knots, 0.0, fitted.new, cached)
        told = "; no chunk on cached tokens was measured: per_cached_token is derived by structure"
    return extended(rank, fitted).above_floor(rank), told


def _host(draft: Draft, found: dict[str, Measured]) -> None:
    rows = found.get("host_step")
    if rows is None or len(rows.median) < 2:
        return
    sequences = rows.column("sequences")
    base, each = non_negative(np.stack([np.ones_like(sequences), sequences], axis=1), rows.median, np.zeros(2))
    told = {"base_ps": to_ps(base), "per_sequence_ps": to_ps(each), "per_token_ps": 0}
    draft.host = {**told, "status": "measured", "source": "host_step"}
    draft.residuals["host"] = residual(base + each * sequences, rows.median)


def _transfers(found: dict[str, Measured]) -> dict[str, Any]:
    """Copies of KV pieces by direction and method, and how much slower decode is beside one."""
    told: dict[str, Any] = {}
    copies = found.get("kv_copy")
    if copies is not None:
        ways = [" ".join(filter(None, (str(p.get("direction")), str(p.get("method", ""))))) for p in copies.params]
        size, pieces = copies.column("piece_bytes"), copies.column("pieces")
        for name in sorted(set(ways)):
            own = np.array([way == name for way in ways])
            points = zip(size[own], pieces[own], copies.median[own], strict=True)
            told[name] = [[int(piece), int(count), to_ps(us)] for piece, count, us in sorted(points)]
        told["columns"] = "piece_bytes, pieces, ps"
    slower = _slowdown(found)
    if slower:
        told["decode_slowdown_percent"] = slower
    return {"transfers": {**told, "status": "measured", "source": "kv_copy, decode_while_copying"}} if told else {}


def _slowdown(found: dict[str, Measured]) -> dict[str, int]:
    """Direction of the copies -> per cent that decode takes longer beside them than without any."""
    busy = found.get("decode_while_copying")
    if busy is None:
        return {}
    alone = found.get("decode_attention", Measured([], np.zeros(0)))
    rows = [*zip(alone.params, alone.median, strict=True), *zip(busy.params, busy.median, strict=True)]
    without = {
        (p.get("batch"), p.get("context")): us
        for p, us in rows
        if p.get("copying", "none") == "none" and p.get("skew", 1) == 1
    }
    ratios: dict[str, list[float]] = {}
    for params, us in zip(busy.params, busy.median, strict=True):
        at = params.get("batch"), params.get("context")
        if params.get("copying", "none") != "none" and at in without:
            ratios.setdefault(str(params["copying"]), []).append(float(us / without[at]))
    return {name: round(100.0 * (float(np.mean(values)) - 1.0)) for name, values in sorted(ratios.items())}
