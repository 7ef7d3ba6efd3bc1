"""What moved since the baseline, by how much, and whether that is worse than allowed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagasim.errors import ConfigError, ResultsError
from sagasim.gate.baseline import Baseline, Case, Known
from sagasim.gate.cases import METRICS, Rule, Settings
from sagasim.gate.measure import Measured, paired_sd
from sagasim.metrics import rounded

__all__ = ["Judged", "Verdict", "allowed", "check_work", "judge", "known_case"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one metric of one case.

    before, now: means over seeds; change, allowed: parts of `before` (of 1 where that is 0); now and change are None
    for a metric that is there no more. word: worse, gone, better, within (moved by less than allowed) or same.
    """

    case: str
    metric: str
    before: float
    now: float | None
    change: float | None
    allowed: float
    word: str

    @property
    def fails(self) -> bool:
        return self.word in ("worse", "gone")

    @property
    def size(self) -> float:
        """How far it moved, in what is allowed."""
        return math.inf if self.change is None or not self.allowed else abs(self.change) / self.allowed


@dataclass(frozen=True, slots=True)
class Judged:
    """verdicts: what moved first. other_runs: how many runs have another digest."""

    verdicts: tuple[Verdict, ...]
    runs: int
    other_runs: int

    @property
    def fails(self) -> bool:
        return any(verdict.fails for verdict in self.verdicts)


def allowed(known: Known, rule: Rule) -> float:
    """By what part of the mean a metric may become worse."""
    return max(known.tolerance, rule.min_effect, rule.least / known.scale)


def judge(baseline: Baseline, measured: Mapping[str, Sequence[Measured]]) -> Judged:
    """Compare what was measured now with the baseline, seed by seed of the same tasks. Raises ResultsError."""
    found, other = [], 0
    for name, case in baseline.cases.items():
        check_work(name, case, measured[name], baseline.settings.seeds)
        other += sum(own.digest != digest for own, digest in zip(measured[name], case.digests, strict=True))
        for path, known in case.metrics.items():
            if path not in baseline.settings.metrics:
                continue  # was taken out of the settings
            now = [own.values[path][0] for own in measured[name]]
            found.append(_verdict(name, path, known, now, baseline.settings.metrics[path]))
    order = ("gone", "worse", "better", "within", "same")
    found.sort(key=lambda verdict: (order.index(verdict.word), -verdict.size, verdict.case, verdict.metric))
    return Judged(tuple(found), sum(len(case.digests) for case in baseline.cases.values()), other)


def check_work(name: str, case: Case, measured: Sequence[Measured], seeds: Sequence[int]) -> None:
    """Raise ResultsError unless the tasks are those of the baseline: else runs of one seed would be no pair."""
    for seed, own, work in zip(seeds, measured, case.work, strict=True):
        if own.work != work:
            what = f"other tasks than in the baseline (seed {seed}; now {own.tasks})"
            raise ResultsError(what, where=f"case {name!r}", expected="the same work, or a new baseline by --update")


def _verdict(case: str, path: str, known: Known, values: Sequence[float | None], rule: Rule) -> Verdict:
    limit = allowed(known, rule)
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return Verdict(case, path, known.mean, None, None, limit, "gone")
    now = math.fsum(numbers) / len(numbers)
    change = (now - known.mean) / known.scale
    worse = change if rule.better == "lower" else -change
    if tuple(numbers) == known.values:
        word, change = "same", 0.0
    else:
        word = "worse" if worse > limit else "better" if worse < -limit else "within"
    return Verdict(case, path, known.mean, now, change, limit, word)


def known_case(config: Mapping[str, Any], measured: Sequence[Measured], settings: Settings, factor: float) -> Case:
    """A case of a new baseline; metrics that some run has no value of are left out. factor: see tolerance_factor.

    Raises ConfigError if there are no others.
    """
    metrics = {}
    for path in settings.metrics:
        values = [[value for value in own.values[path] if value is not None] for own in measured]
        if any(len(own) <= settings.twins for own in values):
            continue
        mean = rounded(math.fsum(own[0] for own in values) / len(values))
        sd = paired_sd(values) / (abs(mean) or 1.0)
        wide = factor * sd / math.sqrt(len(values))
        metrics[path] = Known(tuple(own[0] for own in values), mean, rounded(sd), rounded(wide))
    if not metrics:
        raise ConfigError("no metric has a value in every run", where="metrics", expected=", ".join(METRICS))
    return Case(dict(config), tuple(own.digest for own in measured), tuple(own.work for own in measured), metrics)
