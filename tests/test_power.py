"""Whole comparisons: what is the same is not found different, and a planted slowdown of 3 % is found."""

from __future__ import annotations

from typing import Any

import pytest

from sagasim.comparison import comparison
from sagasim.config import resolve
from sagasim.metrics import summary
from sagasim.simulate import calibration_of, simulate
from sagasim.stats import LEVEL, paired
from sagasim.work import prepare
from tests.strategies import slowed

SEEDS = 5  # the default of sagasim compare


def measured(seed: int, factor: float, **keys: Any) -> dict[str, Any]:
    config = resolve({"workload": "swe-bench", "tasks": 60, "gpus": 16, "rate_per_min": 12.0, "seed": seed, **keys})
    work = prepare(config)
    calibration = slowed(calibration_of(config), factor) if factor != 1 else None
    return summary(simulate(work.config, work.tasks, calibration=calibration))


@pytest.mark.slow
def test_a_planted_slowdown_of_three_percent_is_found() -> None:
    """In at least 18 of 20 disjoint sets of the default number of seeds, after the correction for all metrics."""
    found = 0
    for start in range(0, 20 * SEEDS, SEEDS):
        seeds = range(start, start + SEEDS)
        rows = comparison({"a": [measured(s, 1) for s in seeds], "b": [measured(s, 1.03) for s in seeds]})
        difference = rows[0]["by_preset"]["b"]["difference"]
        found += difference["significant"] and difference["ratio"] > 1
    assert found >= 18


@pytest.mark.slow
def test_two_independent_draws_of_one_system_seldom_differ() -> None:
    """The hardest null: other tasks for each name, so nothing is paired. Welch's test, at 5 %, in 200 comparisons.

    Of 200 tests at exactly 5 %, more than 16 are significant one time in twenty.
    """
    base = [measured(seed, 1, tasks=10)["tct_s"]["mean"] for seed in range(2000)]
    pairs = [(base[at : at + SEEDS], base[at + SEEDS : at + 2 * SEEDS]) for at in range(0, len(base), 2 * SEEDS)]
    assert sum(paired(own, other)["p_welch"] < LEVEL for own, other in pairs) <= 16
