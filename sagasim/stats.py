"""Statistics of a comparison, over seeds: paired differences, intervals, tests. SciPy does the work.

A seed decides tasks, tools and arrivals, the same for every system (common random numbers), so the systems' values of
one seed form a pair. Intervals are 95 %. Values that are positive are compared as ratios too, whose logarithms are
averaged: a geometric mean.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy import stats

from sagasim.metrics import rounded

__all__ = ["LEVEL", "adjusted", "mean_interval", "paired"]

LEVEL = 0.05
_BOOTSTRAPS = 2000
Values = Sequence[float]


def mean_interval(values: Values) -> dict[str, float | None]:
    """Mean and its interval by Student's t; no interval for a single value."""
    mean = math.fsum(values) / len(values)
    low, high = _student(values)
    return {"mean": rounded(mean), "low": low, "high": high}


def _student(values: Values) -> tuple[float | None, float | None]:
    if len(values) < 2:
        return None, None
    error = float(stats.sem(values))
    if not error:
        return rounded(values[0]), rounded(values[0])
    low, high = stats.t.interval(1 - LEVEL, len(values) - 1, loc=math.fsum(values) / len(values), scale=error)
    return rounded(float(low)), rounded(float(high))


def paired(own: Values, base: Values) -> dict[str, Any]:
    """How `own` differs from `base`, seed by seed.

    mean, low, high: of the differences (Student's t). ratio, ratio_low, ratio_high: geometric mean of own / base with a
    BCa bootstrap interval over seeds, where all values are positive. p_paired: t-test of the log ratios, or of the
    differences; p_welch: Welch's t-test, which forgets the pairs. 1.0 where nothing differs, None for a single seed.
    """
    differences = [a - b for a, b in zip(own, base, strict=True)]
    logs = None
    if min(*own, *base) > 0:
        logs = [math.log(a / b) for a, b in zip(own, base, strict=True)]
    several = len(own) > 1
    return {
        **mean_interval(differences),
        **_ratio(logs),
        "p_paired": _p_zero(differences if logs is None else logs) if several else None,
        "p_welch": _p_welch(own, base) if several else None,
    }


def _ratio(logs: Values | None) -> dict[str, float | None]:
    if logs is None:
        return {"ratio": None, "ratio_low": None, "ratio_high": None}
    mean = math.fsum(logs) / len(logs)
    low = high = mean
    if len(logs) > 2 and _varies(logs):
        with _quiet():
            found = stats.bootstrap(
                (logs,), np.mean, confidence_level=1 - LEVEL, n_resamples=_BOOTSTRAPS, method="BCa", rng=_generator()
            ).confidence_interval
        low, high = float(found.low), float(found.high)
    elif len(logs) < 3:
        return {"ratio": rounded(math.exp(mean)), "ratio_low": None, "ratio_high": None}
    return {name: rounded(math.exp(x)) for name, x in (("ratio", mean), ("ratio_low", low), ("ratio_high", high))}


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


def _varies(values: Values) -> bool:
    """Whether the values differ by more than rounding does."""
    return max(values) - min(values) > 1e-12 * max(map(abs, values))


def _p_zero(values: Values) -> float:
    """Two-sided p-value of the mean being 0."""
    if not any(values):
        return 1.0
    if not _varies(values):
        return _p_signs(len(values))
    with _quiet():
        return rounded(float(stats.ttest_1samp(values, 0.0).pvalue))


def _p_signs(seeds: int) -> float:
    """Where every seed gives the same difference there is no variance to test against: the p-value of the signs."""
    return rounded(2.0 * 0.5**seeds)


def _p_welch(own: Values, base: Values) -> float:
    if not _varies([*own, *base]):
        return 1.0
    if not _varies(own) and not _varies(base):
        return _p_signs(len(own))
    with _quiet():
        return rounded(float(stats.ttest_ind(own, base, equal_var=False).pvalue))


def adjusted(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values of many tests made at once, corrected by Holm's method; None stays None.

    Holm (1979): with the smallest first, the i-th of n is multiplied by n - i + 1, and none is below one before it.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    out: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, i) in enumerate(order):
        least = max(least, min(1.0, p * (len(order) - rank)))
        out[i] = rounded(least)
    return out


@contextmanager
def _quiet() -> Iterator[None]:
    """SciPy warns where values hardly differ; the answer is then as good as those values are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
