"""The fast engine against the reference engine: the same log, row by row."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.config import Config
from sagasim.core import Call, Task, check_task
from sagasim.cost import constant_calibration
from sagasim.eventlog import UNFINISHED
from sagasim.laws import check_tasks
from sagasim.simulate import Result, simulate
from sagasim.units import PS_PER_US as US
from tests import strategies


def both(config: Config, tasks: list[Task], calibration: dict[str, Any]) -> tuple[Result, Result]:
    fast = simulate(config, tasks, calibration=calibration)
    slow = simulate(replace(config, reference=True), tasks, calibration=calibration)
    return fast, slow


def assert_equal(fast: Result, slow: Result) -> None:
    for table in ("tasks", "calls", "occupancy", "replicas"):
        ours, theirs = getattr(fast, table), getattr(slow, table)
        for name in ours:
            assert np.array_equal(ours[name], theirs[name]), (table, name, ours[name], theirs[name])
    assert fast.digest == slow.digest


def in_order_of_start(tasks: list[Task], result: Result) -> list[Task]:
    """A closed loop starts the tasks one by one; the log numbers them as they start."""
    by_name = {task.name: task for task in tasks}
    return [by_name[name] for name in result.task_names]


@given(strategies.tasks(), strategies.configs(), strategies.calibrations())
@settings(max_examples=300)
def test_fast_equals_reference(tasks: list[Task], config: Config, calibration: dict[str, Any]) -> None:
    for task in tasks:
        check_task(task)
    fast, slow = both(config, tasks, calibration)
    assert_equal(fast, slow)
    check_tasks(fast.calls, fast.tasks, in_order_of_start(tasks, fast))


@given(strategies.crowds(), strategies.crowded(), strategies.calibrations())
@settings(max_examples=150)
def test_fast_equals_reference_when_crowded(tasks: list[Task], config: Config, calibration: dict[str, Any]) -> None:
    assert_equal(*both(config, tasks, calibration))


@given(strategies.tasks(), strategies.configs(), strategies.calibrations(), st.integers(1, 400))
@settings(max_examples=100)
def test_fast_equals_reference_when_cut_off(
    tasks: list[Task], config: Config, calibration: dict[str, Any], horizon_us: int
) -> None:
    """Steps a thousand times longer, so that whole microseconds cut runs anywhere."""
    slower = strategies.slowed(calibration, 1000)
    fast, slow = both(replace(config, horizon_s=horizon_us / 10**6), tasks, slower)
    assert_equal(fast, slow)
    whole = simulate(config, tasks, calibration=slower)
    cut_ps = horizon_us * US
    ended = whole.calls["finished_ps"] <= cut_ps
    assert np.array_equal(fast.calls["finished_ps"], whole.calls["finished_ps"][ended])
    begun = whole.tasks["arrival_ps"] <= cut_ps
    expected = np.where(whole.tasks["finished_ps"] <= cut_ps, whole.tasks["finished_ps"], UNFINISHED)
    assert np.array_equal(fast.tasks["finished_ps"], expected[begun])
    sent = int((whole.calls["submitted_ps"] <= cut_ps).sum())
    assert int(fast.replicas["in_flight"].sum()) == sent - int(ended.sum())


@given(strategies.tasks(), strategies.configs(), strategies.calibrations(), strategies.failures())
@settings(max_examples=100)
def test_fast_equals_reference_when_replicas_fail(
    tasks: list[Task], config: Config, calibration: dict[str, Any], failures: str
) -> None:
    """Nothing is lost or counted twice: every call ends once, whatever happened to it before."""
    several = replace(config, gpus=3, failures=failures)
    fast, slow = both(several, tasks, strategies.slowed(calibration, 1000))
    assert_equal(fast, slow)
    check_tasks(fast.calls, fast.tasks, in_order_of_start(tasks, fast))
    assert not fast.replicas["in_flight"].any()


@given(strategies.sessions(), strategies.tiered(), strategies.calibrations(), st.sampled_from([1, 10, 100]))
@settings(max_examples=150)
def test_fast_equals_reference_with_host_memory(
    tasks: list[Task], config: Config, calibration: dict[str, Any], slower: int
) -> None:
    """Evicted contexts come back from host memory, asked for or ahead of time; steps are slower beside copies."""
    for task in tasks:
        check_task(task)
    fast, slow = both(config, tasks, strategies.slowed(calibration, slower))
    assert_equal(fast, slow)
    check_tasks(fast.calls, fast.tasks, in_order_of_start(tasks, fast))


def test_replicas_that_decide_at_the_same_moment_do_so_in_their_order() -> None:
    """Two calls with one prefix start on two replicas at once: what the first has cached is known to the second."""
    calls = (
        Call("c0", 17, 1),
        Call("c1", 1, 1),
        Call("c2", 1, 1),
        Call("c3", 0, 1, "tools", 40),
        Call("c4", 0, 1, "tools", 40, delay_ps=500),
    )
    calibration = constant_calibration(1)
    calibration["host"]["base_ps"] = 300
    config = strategies.config(gpus=2, max_num_batched_tokens=8, max_num_seqs=2, route="round-robin")
    tasks = [Task("t", calls, arrival_ps=0, prefixes=strategies.PREFIXES)]
    fast, slow = both(config, tasks, calibration)
    assert_equal(fast, slow)
    assert fast.calls["regenerated_elsewhere_tokens"].tolist() == [0, 0, 0, 0, 16]
