"""Concurrency curves of real servers, in the layout of aiconfigurator's silicon_sample.

A row has a model, system, backend, precision, input and output length, client concurrency (batch_size), split, and the
measured mean TTFT and TPOT. Rows of one model, system, precision, split and pair of lengths are one curve.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sagasim.calibrate.tables import read_table
from sagasim.errors import TraceError
from sagasim.hardware import load_model, model_ids
from sagasim.validate import ASYNCHRONOUS_SINCE

__all__ = ["CurvePoint", "read_curves"]

NEEDED = (
    "model_path",
    "system",
    "backend",
    "precision",
    "isl",
    "osl",
    "batch_size",
    "tp_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
)


class CurvePoint(NamedTuple):
    """One row. system: id of the GPU; dtype: as a configuration names it."""

    model: str
    gpu: str
    dtype: str
    tp: int
    isl: int
    osl: int
    concurrency: int
    ttft_ms: float
    tpot_ms: float
    asynchronous: bool = True

    @property
    def curve(self) -> tuple[str, str, str, int, int, int]:
        return self[:6]


def read_curves(path: Path) -> tuple[list[CurvePoint], dict[str, int]]:
    """The rows that can be simulated, and how many of the others were left for which reason."""
    rows = read_table(path, NEEDED)
    points, skipped = [], dict[str, int]()
    for index in range(len(rows["isl"])):
        row = {name: rows[name][index] for name in rows}
        found = _point(row)
        if isinstance(found, str):
            skipped[found] = skipped.get(found, 0) + 1
        else:
            points.append(found)
    if not points:
        why = ", ".join(f"{count} {reason}" for reason, count in skipped.items())
        raise TraceError(
            f"no row can be simulated ({why})", where=str(path), expected="vLLM on a described GPU and model"
        )
    return points, skipped


def _point(row: dict[str, Any]) -> CurvePoint | str:
    """A row as a point, or why it is left out."""
    if str(row["backend"]) != "vllm" or str(row.get("mode", "agg")) != "agg":
        return "not vLLM serving prefill and decode together"
    if any(_number(row.get(name, 1)) > 1 for name in ("pp_size", "attention_dp_size", "moe_ep_size")):
        return "pipeline, data or expert parallel"
    name = str(row["model_path"]).rsplit("/", 1)[-1].lower()
    if str(row["model_path"]).startswith("nvidia/") and "8b" in name:
        return "batch_size is not the steady concurrency"
    model = next((known for known in model_ids() if name in (known, f"{known}-instruct", f"{known}-fp8")), None)
    gpu = str(row["system"]).removesuffix("_sxm")
    dtype = {"fp8": "fp8", "": "bf16", "nan": "bf16", "bf16": "bf16"}.get(str(row["precision"]))
    if model is None or dtype is None or load_model(model).experts:
        return "another model or precision"
    if gpu not in ("h100", "h200", "a100"):
        return "another GPU"
    tp, isl, osl, clients, ttft, tpot = (
        _number(row[key]) for key in ("tp_size", "isl", "osl", "batch_size", "silicon_ttft_ms", "silicon_tpot_ms")
    )
    if min(tp, isl, clients, ttft, tpot) <= 0 or osl < 2:
        return "without a number"
    version = re.match(r"(\d+)\.(\d+)", str(row.get("backend_version", "")))
    asynchronous = version is None or tuple(map(int, version.groups())) >= ASYNCHRONOUS_SINCE
    return CurvePoint(model, gpu, dtype, int(tp), int(isl), int(osl), int(clients), ttft, tpot, asynchronous)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except ValueError:
        return 0.0
    return number if np.isfinite(number) else 0.0
