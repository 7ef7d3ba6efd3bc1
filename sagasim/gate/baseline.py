"""The baseline: a JSON file with the set, what it measured, the tolerances, and where all that comes from.

    sagasim_gate   form of the file
    settings       seeds, level, twins; for each metric better, min_effect and least
    cases          config, digest and work of each seed; for each metric its values by seed, their mean, paired_sd and
                   tolerance (a part of the mean; of 1 where the mean is 0)
    provenance     who wrote it when, from which files, and how the tolerances were made
    measured       hash of the seeds and of the cases without their tolerances, which alone are meant to be edited

Numbers are those of the summary of a run, so equal bytes come from equal results.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sagasim.errors import ConfigError, ResultsError
from sagasim.gate.cases import CaseSet, Settings, checked_cases, settings, shown
from sagasim.results import canonical_json, read_json

__all__ = ["FORM", "Baseline", "Case", "Known", "baseline_text", "read_baseline"]

FORM = 1
_EXPECTED = "a file written by sagasim gate --update"
_LIST = re.compile(r"\[\n\s+([^\[\]{}]*?)\n\s+\]")  # no text of JSON holds a line break


@dataclass(frozen=True, slots=True)
class Known:
    """A metric of a case. values: by seed; paired_sd and tolerance: parts of `scale`."""

    values: tuple[float, ...]
    mean: float
    paired_sd: float
    tolerance: float

    @property
    def scale(self) -> float:
        """What changes are parts of."""
        return abs(self.mean) or 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """digests and work: by seed; metrics: those that every run has a value of."""

    config: Mapping[str, Any]
    digests: tuple[str, ...]
    work: tuple[str, ...]
    metrics: Mapping[str, Known]


@dataclass(frozen=True, slots=True)
class Baseline:
    settings: Settings
    cases: Mapping[str, Case]
    provenance: Mapping[str, Any]

    @property
    def case_set(self) -> CaseSet:
        """What was measured, and can be again."""
        return CaseSet(self.settings, {name: case.config for name, case in self.cases.items()})


def baseline_text(baseline: Baseline) -> str:
    """The file, lists on one line each so that a difference is a line."""
    cases = {name: asdict(case) for name, case in baseline.cases.items()}
    content = {
        "sagasim_gate": FORM,
        "settings": asdict(baseline.settings),
        "cases": cases,
        "provenance": dict(baseline.provenance),
        "measured": _hash(list(baseline.settings.seeds), cases),
    }
    return _LIST.sub(lambda found: "[" + re.sub(r",\n\s+", ", ", found[1]) + "]", canonical_json(content))


def _hash(seeds: object, cases: Mapping[str, Any]) -> str:
    measured = {}
    for name, case in cases.items():
        values = {path: known["values"] for path, known in case["metrics"].items()}
        measured[name] = [case["config"], case["digests"], case["work"], values]
    return hashlib.sha256(canonical_json([seeds, measured]).encode()).hexdigest()[:16]


def read_baseline(path: Path, *, edited: bool = False) -> Baseline:
    """A baseline from its file. edited: also one in which more than tolerances were edited. Raises ResultsError."""
    where = str(path)
    content = read_json(path)
    if not isinstance(content, dict) or content.get("sagasim_gate") is None:
        raise ResultsError("no baseline", where=where, expected=_EXPECTED)
    if content["sagasim_gate"] != FORM:
        raise ResultsError(f"form {shown(content['sagasim_gate'])}", where=where, expected=f"form {FORM}, {_EXPECTED}")
    try:
        canonical_json(content)
    except ValueError:
        raise ResultsError("a number that is none", where=where, expected=_EXPECTED) from None
    try:
        own = settings(_table(content, "settings", where), f"{where}, settings")
        tables = _table(content, "cases", where)
        checked_cases({name: _table(tables, name, where).get("config") for name in tables}, where)
    except ConfigError as error:
        raise ResultsError(error.what, where=error.where, expected=error.expected) from None
    cases = {name: _case(case, len(own.seeds), f"{where}, case {name!r}") for name, case in tables.items()}
    if not edited and content.get("measured") != _hash(content["settings"].get("seeds"), tables):
        what = "seeds, a configuration or values were changed by hand"
        raise ResultsError(what, where=where, expected="tolerances and settings at most, or --update")
    return Baseline(own, cases, _table(content, "provenance", where))


def _case(table: Mapping[str, Any], seeds: int, where: str) -> Case:
    names = {}
    for key in ("digests", "work"):
        given = table.get(key)
        if not isinstance(given, list) or len(given) != seeds or not all(isinstance(item, str) for item in given):
            raise ResultsError(f"{key} that are no texts", where=where, expected=f"one for each of {seeds} seeds")
        names[key] = tuple(given)
    metrics = _table(table, "metrics", where)
    known = {path: _known(_table(metrics, path, where), seeds, f"{where}, {path}") for path in metrics}
    return Case(table["config"], names["digests"], names["work"], known)


def _known(table: Mapping[str, Any], seeds: int, where: str) -> Known:
    values = table.get("values")
    if not isinstance(values, list) or len(values) != seeds:
        raise ResultsError("no values", where=where, expected=f"one for each of {seeds} seeds")
    numbers = [_number(value, "values", where) for value in values]
    mean, sd, tolerance = (_number(table.get(key), key, where) for key in ("mean", "paired_sd", "tolerance"))
    if not math.isclose(mean, math.fsum(numbers) / seeds, rel_tol=1e-6, abs_tol=1e-12):
        raise ResultsError(
            f"a mean of {mean:g}", where=where, expected=f"{math.fsum(numbers) / seeds:.9g}, of the values"
        )
    if tolerance < 0 or sd < 0:
        raise ResultsError("below 0", where=f"{where}, tolerance and paired_sd", expected="a part of the mean")
    return Known(tuple(numbers), mean, sd, tolerance)


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e15:
        raise ResultsError(f"{shown(value)} does not fit", where=f"{where}, {key}", expected="a number")
    return float(value)


def _table(above: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    found = above.get(key)
    if not isinstance(found, dict):
        raise ResultsError(f"no {key[:60]!r}", where=where, expected=_EXPECTED)
    return found
