"""Quantile tables and the files of fitted parameters that hold them (traces/fits/*.json).

A table is a list of values at the probabilities of a fixed grid, FINE or COARSE, told apart by its length. Drawing from
it is inversion of a distribution function that is linear between these points.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from sagasim.errors import TraceError, nearest
from sagasim.hardware import data_dir

__all__ = ["COARSE", "FINE", "Table", "fit_digest", "fit_path", "load_fit", "model_of", "phi"]

Model = TypeVar("Model")

_TAIL = (0.001, 0.002, 0.005, 0.01, 0.02, 0.035)
_BODY = tuple(n / 40 for n in range(2, 39))
FINE = (0.0, *_TAIL, *_BODY, *(1.0 - p for p in reversed(_TAIL)), 1.0)
COARSE = tuple(n / 20 for n in range(21))
_GRIDS = {len(grid): grid for grid in (FINE, COARSE)}
_ROOT2 = math.sqrt(2.0)


def phi(z: float) -> float:
    """Distribution function of the standard normal."""
    return 0.5 * math.erfc(-z / _ROOT2)


class Table:
    """Values at the probabilities of a grid."""

    __slots__ = ("_grid", "_last", "values")

    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)
        self._grid = _GRIDS[len(self.values)]
        self._last = len(self.values) - 2

    def at(self, probability: float) -> float:
        """The quantile, for a probability from 0 to 1."""
        place = min(bisect_right(self._grid, probability) - 1, self._last)
        low, high = self._grid[place], self._grid[place + 1]
        below, above = self.values[place], self.values[place + 1]
        return below + (probability - low) / (high - low) * (above - below)

    def probability(self, value: float) -> float:
        """The distribution function: largest probability whose quantile is at most the value."""
        place = bisect_right(self.values, value) - 1
        if place < 0:
            return 0.0
        if place > self._last:
            return 1.0
        below, above = self.values[place], self.values[place + 1]
        low, high = self._grid[place], self._grid[place + 1]
        return low + (value - below) / (above - below) * (high - low)


def fit_path(name: str) -> Path:
    """A fit that comes with sagasim by name, or a file. Raises TraceError if there is none."""
    folder = data_dir() / "traces" / "fits"
    path = folder / f"{name}.json"
    if "/" not in name and path.is_file():
        return path
    path = Path(name)
    if not path.is_file():
        names = [file.stem for file in folder.glob("*.json")]
        raise TraceError(
            f"no fit {name!r}", expected=f"a file made by python -m sagasim.workloads.fit, or {nearest(name, names)}"
        )
    return path


@lru_cache(maxsize=16)
def fit_digest(name: str) -> str:
    """sha256 of a file of fitted parameters."""
    return hashlib.sha256(fit_path(name).read_bytes()).hexdigest()


@lru_cache(maxsize=16)
def load_fit(name: str, kind: str) -> dict[str, Any]:
    """A file of fitted parameters, which must be of this kind. Raises TraceError."""
    path = fit_path(name)
    try:
        fit = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        fit = None
    if not isinstance(fit, dict) or "kind" not in fit:
        raise TraceError("no fitted parameters", where=str(path), expected="a file made by sagasim.workloads.fit")
    if fit["kind"] != kind:
        raise TraceError(f"fitted parameters of kind {fit['kind']!r:.40}", where=str(path), expected=f"kind {kind!r}")
    return fit


def model_of(make: Callable[[dict[str, Any]], Model], name: str, kind: str) -> Model:
    """What `make` builds from a fit. Raises TraceError if the fit lacks something."""
    fit = load_fit(name, kind)
    try:
        return make(fit)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        what = f"incomplete parameters ({type(error).__name__}: {error})"
        expected = "a file made by sagasim.workloads.fit"
        raise TraceError(what, where=str(fit_path(name)), expected=expected) from None
