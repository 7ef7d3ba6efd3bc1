"""Measurements -> calibration files, and how well the files tell the measurements.

A calibration is plain JSON in whole picoseconds, summed over the layers of one tensor-parallel rank; times are rounded
to nanoseconds, so that the same tables give the same bytes on every machine. Each entry says whether it is measured
here, published by others, or derived. docs/calibration.md has the form and the errors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sagasim.calibrate.aiconfigurator import fit_aiconfigurator
from sagasim.calibrate.draft import Draft, dumps
from sagasim.calibrate.files import write_whole
from sagasim.calibrate.llmservingsim import fit_llmservingsim
from sagasim.calibrate.measured import fit_measured
from sagasim.calibrate.rank import Rank, checked_rank
from sagasim.calibrate.tables import origin_of, plain_name
from sagasim.calibrate.vidur import fit_vidur
from sagasim.errors import CalibrationError, nearest
from sagasim.hardware import load_gpu, load_model

__all__ = ["SOURCES", "dumps", "fit", "write_calibration"]

SOURCES: dict[str, Callable[[Rank, Path], Draft]] = {
    "aiconfigurator": fit_aiconfigurator,
    "llmservingsim": fit_llmservingsim,
    "vidur": fit_vidur,
    "measured": fit_measured,
}


def fit(source: str, folder: Path, gpu: str, model: str, tp: int, dtype: str = "bf16") -> dict[str, Any]:
    """The calibration of a model on `tp` GPUs from a folder of tables.

    gpu, model: ids or paths of .toml descriptions. Raises CalibrationError for what cannot be fitted.
    """
    if source not in SOURCES:
        raise CalibrationError(f"unknown source '{source}'", where="--source", expected=nearest(source, SOURCES))
    if not folder.exists():
        raise CalibrationError("no such folder", where=str(folder), expected=f"tables of source {source}")
    rank = checked_rank(load_model(model), load_gpu(gpu), tp, dtype)
    told = _told_gpu(folder)
    if told and plain_name(rank.gpu.id) not in plain_name(told):
        raise CalibrationError(f"measured on '{told}', not on '{rank.gpu.id}'", where=str(folder))
    try:
        calibration = SOURCES[source](rank, folder).finished()
    except ModuleNotFoundError as error:
        expected = "pip install scipy"
        raise CalibrationError(f"{error.name} is not installed", where="calibrate fit", expected=expected) from error
    calibration["provenance"] = {"source": source, **calibration["provenance"]}
    return calibration


def write_calibration(path: Path, calibration: dict[str, Any]) -> None:
    """Write the file; it appears whole or not at all."""
    try:
        write_whole(path, dumps(calibration).encode())
    except OSError as error:
        raise CalibrationError(f"cannot be written ({error.strerror})", where=str(path)) from error


def _told_gpu(folder: Path) -> str:
    """Id of the GPU that a folder says it was measured on, if it does."""
    origin = origin_of(folder)
    if "gpu" in origin:
        return origin["gpu"]
    meta = folder / "meta.yaml"
    if meta.is_file():
        text = meta.read_text(encoding="utf-8", errors="replace")
        found = re.search(r"^hardware:[ \t]*['\"]?([^'\"#\r\n]+)", text, re.MULTILINE)
        return found.group(1).strip().lower() if found else ""
    return ""
