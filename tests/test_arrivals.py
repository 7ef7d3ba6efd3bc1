"""Arrivals: in order, with the rate, the variation and the swing that were asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy import stats

from sagasim.arrivals import arriving, in_order
from sagasim.config import Config, resolve
from sagasim.core import Call, Task
from sagasim.errors import ConfigError, SagasimError, TraceError

S, US = 10**12, 10**6


def small(name: str = "t", arrival_ps: int | None = None) -> Task:
    return Task(name, (Call("a", 10, 1),), arrival_ps=arrival_ps)


def config(**keys: Any) -> Config:
    return resolve({"trace": "tau-bench", **keys})


def times_s(count: int, **keys: Any) -> list[float]:
    timed = list(arriving([small(str(place)) for place in range(count)], config(**keys)))
    assert [task.name for task in timed] == [str(place) for place in range(count)]
    times = [task.arrival_ps or 0 for task in timed]
    assert times == sorted(times)
    assert all(time_ps % US == 0 for time_ps in times)
    return [time_ps / S for time_ps in times]


def gaps_s(times: list[float]) -> list[float]:
    return [after - before for before, after in zip([0.0, *times], times, strict=False)]


def test_recorded_arrivals_are_sorted_and_scaled() -> None:
    tasks = in_order([small("a", 3 * S), small("b", S), small("c", 3 * S)])
    assert [task.name for task in arriving(tasks, config(arrivals="recorded"))] == ["b", "a", "c"]
    halved = arriving(tasks, config(arrivals="recorded", time_scale=0.5))
    assert [task.arrival_ps for task in halved] == [S // 2, 3 * S // 2, 3 * S // 2]
    with pytest.raises(TraceError, match="task 'd': no recorded arrival"):
        list(arriving([*tasks, small("d")], config(arrivals="recorded")))
    with pytest.raises(TraceError, match="arrives before the task ahead of it"):
        list(arriving([small("a", 3), small("b", 1)], config(arrivals="recorded")))


def test_at_once() -> None:
    tasks = arriving([small("a", 5), small("b")], config(arrivals="at-once"))
    assert [(task.name, task.arrival_ps) for task in tasks] == [("a", 0), ("b", 0)]


def test_poisson_gaps_are_exponential() -> None:
    times = times_s(4000, rate_per_min=120.0, seed=5)
    assert stats.kstest(gaps_s(times), stats.expon(scale=0.5).cdf).pvalue > 0.001
    assert times_s(10, rate_per_min=120.0, seed=5) == times[:10]
    assert times_s(10, rate_per_min=120.0, seed=6) != times[:10]


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_bursty_gaps_are_gamma(cv: float) -> None:
    gaps = gaps_s(times_s(6000, arrivals="bursty", rate_per_min=120.0, arrival_cv=cv))
    gamma = stats.gamma(1 / cv**2, scale=0.5 * cv**2)
    seen = [gap for gap in gaps if gap > 1e-4]  # what is shorter, microseconds cut
    assert len(seen) == pytest.approx(len(gaps) * gamma.sf(1e-4), abs=4.5 * len(gaps) ** 0.5)
    assert stats.kstest(seen, lambda x: 1 - gamma.sf(x) / gamma.sf(1e-4)).pvalue > 0.001


def test_a_diurnal_rate_swings() -> None:
    """Counts by quarter of the period against the integral of the rate over it."""
    period, amplitude = 400.0, 0.8
    times = times_s(
        20_000, arrivals="diurnal", rate_per_min=300.0, diurnal_period_s=period, diurnal_amplitude=amplitude
    )
    whole = [time for time in times if time < times[-1] // period * period]
    for quarter in range(4):
        a, b = (2 * math.pi * (quarter + i) / 4 for i in range(2))
        share = 0.25 + amplitude * (math.cos(a) - math.cos(b)) / (2 * math.pi)
        found = sum(int(time % period // (period / 4)) == quarter for time in whole)
        assert found == pytest.approx(len(whole) * share, abs=4.5 * math.sqrt(len(whole) * share))


def test_closed_arrivals_are_left_to_the_loop() -> None:
    assert [t.arrival_ps for t in arriving([small(arrival_ps=7)], config(concurrency=2))] == [7]


@pytest.mark.parametrize(
    "keys",
    [
        {"arrivals": "poison"},
        {"arrivals": "poisson"},
        {"arrivals": "bursty"},
        {"arrivals": "recorded", "rate_per_min": 1.0},
        {"arrivals": "at-once", "load": 0.5},
        {"arrivals": "bursty", "rate_per_min": 1.0, "arrival_cv": 0.0},
        {"arrivals": "diurnal", "rate_per_min": 1.0, "diurnal_amplitude": 1.5},
        {"arrivals": "diurnal", "concurrency": 4},
        {"rate_per_min": 1e-9},
        {"rate_per_min": float("nan")},
        {"rate_per_min": 5.0, "warmup": 0.6, "cooldown": 0.5},
    ],
)
def test_arrivals_that_make_no_sense(keys: dict[str, Any]) -> None:
    with pytest.raises(SagasimError):
        list(arriving([small()], config(**keys)))


def test_too_late_to_be_simulated() -> None:
    with pytest.raises(ConfigError, match="arrives too late"):
        list(arriving([small("x", 9 * 10**16)], config(arrivals="recorded", time_scale=1000.0)))
