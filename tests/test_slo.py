"""Service levels: bases that are what they say, curves that count what they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from sagasim.config import resolve
from sagasim.core import Call, Prefix, Task, Tool
from sagasim.cost import StepCost
from sagasim.eventlog import UNFINISHED
from sagasim.metrics import tct_ps
from sagasim.simulate import Result, calibration_of, engine_settings, simulate
from sagasim.slo import MULTIPLIERS, attainment, bases, crowding, slowdowns
from sagasim.work import prepare

CONFIG = resolve({"trace": "tau-bench", "tasks": 6, "gpus": 8, "rate_per_min": 600.0})


def test_the_idle_base_is_each_task_alone() -> None:
    work = prepare(CONFIG)
    found = bases(work)
    for number, task in enumerate(work.tasks):
        alone = replace(CONFIG, arrivals="at-once", rate_per_min=None, max_model_len=work.config.max_model_len)
        taken = tct_ps(simulate(alone, [replace(task, arrival_ps=0)]).tasks)
        assert found["idle"][number] == taken[0]
    assert (found["expected"] >= 0.9 * found["idle"]).all()


def test_what_one_task_leaves_is_of_no_use_to_the_next() -> None:
    prefix = Prefix("p", 4000)
    task = Task("a", (Call("c", 10, 5, "p", 4000, tools=(Tool("t", 10**12),)),), prefixes=(prefix,), arrival_ps=0)
    config = replace(CONFIG, tasks=2, arrivals="at-once", rate_per_min=None, max_model_len=131072)
    work = replace(prepare(CONFIG), tasks=[task, replace(task, name="b")], config=config)
    idle = bases(work)["idle"]
    assert idle[0] == idle[1]


def test_attainment_by_hand(make_result: Callable[..., Result]) -> None:
    s = 10**12
    tasks = [{"task": i, "arrival_ps": 0, "finished_ps": end * s} for i, end in enumerate([10, 15, 20, 30])]
    tasks += [{"task": 4, "arrival_ps": 0, "finished_ps": UNFINISHED}]
    result = make_result(calls=[], tasks=tasks, horizon_s=31.0)
    found = slowdowns(result, np.array([10 * s] * 5))
    assert found.tolist() == [1, 1.5, 2, 3, np.inf]
    shares = dict(zip(MULTIPLIERS, attainment(found), strict=True))
    assert [shares[m] for m in (1.25, 1.5, 2.0, 2.5, 3.0, 10.0)] == [0.2, 0.4, 0.6, 0.6, 0.8, 0.8]
    assert attainment(found, np.array([False] * 4 + [True])) == [0] * len(MULTIPLIERS)


def test_only_measured_tasks_count(make_result: Callable[..., Result]) -> None:
    tasks = [{"task": i, "arrival_ps": i, "finished_ps": i + 10 * (i + 1)} for i in range(10)]
    result = make_result(calls=[], tasks=tasks, warmup=0.2, cooldown=0.3)
    assert slowdowns(result, np.full(10, 10)).tolist() == [3, 4, 5, 6, 7]


def test_crowding_is_a_ratio_of_step_times() -> None:
    config = resolve({"trace": "tau-bench", "num_gpu_blocks_override": 10_001})
    found = crowding(config, 1000)
    settings = engine_settings(config)
    assert found["calls"] == 80  # half of 160,000 tokens
    cost = StepCost(
        calibration_of(config),
        max_tokens=settings.max_num_batched_tokens,
        max_seqs=settings.max_num_seqs,
        asynchronous=True,
    )
    assert found["slower"] == pytest.approx(cost.step(80, 80_000, 1000, ()) / cost.step(1, 1000, 1000, ()))
    assert found["slower"] > 1
