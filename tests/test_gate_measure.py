"""Twins, tolerances and verdicts of a gate, by hand and as laws."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import junitparser
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.config import resolve
from sagasim.gate.baseline import Baseline, Case, Known
from sagasim.gate.cases import METRICS, CaseSet, Rule, Settings
from sagasim.gate.judge import Judged, Verdict, allowed, judge, known_case
from sagasim.gate.measure import (
    CALL_LATER_PS,
    LATER_PS,
    Job,
    Measured,
    measure,
    paired_sd,
    run_job,
    tolerance_factor,
    twin,
)
from sagasim.gate.output import github, junit
from sagasim.rng import Stream
from sagasim.work import Work, prepare

ROOT = Path(__file__).parents[1]
METRIC = "tct_s.mean"


def work(**keys: object) -> Work:
    return prepare(resolve({"workload": "webarena", "tasks": 30, "gpus": 8, **keys}))


# ---- twins


@pytest.mark.parametrize("rate_per_min", [6.0, 600.0, 60_000.0])
def test_a_twin_is_the_same_work_a_little_later(rate_per_min: float) -> None:
    first = work(rate_per_min=rate_per_min)
    own, later = list(first.tasks), list(twin(first, 1).tasks)
    starts = [task.arrival_ps or 0 for task in own]
    for number, (before, after) in enumerate(zip(own, later, strict=True)):
        moved = (after.arrival_ps or 0) - (before.arrival_ps or 0)
        assert 0 <= moved <= LATER_PS
        assert (after.arrival_ps or 0) <= (starts[number + 1] if number + 1 < len(starts) else math.inf)
        waits = [b.delay_ps - a.delay_ps for a, b in zip(before.calls, after.calls, strict=True)]
        assert all(0 <= wait <= CALL_LATER_PS for wait in waits)
        same = tuple(replace(b, delay_ps=a.delay_ps) for a, b in zip(before.calls, after.calls, strict=True))
        assert replace(after, calls=same, arrival_ps=before.arrival_ps) == before
    ordered = [task.arrival_ps or 0 for task in later]
    assert ordered == sorted(ordered)
    assert ordered != starts
    mean_gap = min(LATER_PS, 60 * 10**12 / rate_per_min)
    assert sum(b - a for a, b in zip(starts, ordered, strict=True)) / len(starts) > 0.2 * mean_gap


def test_a_twin_is_always_the_same_and_no_other_is() -> None:
    first = work(rate_per_min=30.0)
    one = twin(first, 1)
    assert list(one.tasks) == list(one.tasks)
    assert list(one.tasks) != list(twin(first, 2).tasks)
    other = replace(first, config=replace(first.config, seed=1))
    assert list(one.tasks) != list(twin(other, 1).tasks)


def test_the_policies_of_a_twin_draw_other_numbers() -> None:
    first = work(rate_per_min=30.0)
    seeds = [first.config.seed, *(twin(first, number).config.seed for number in (1, 2))]
    assert len({Stream(seed, "route").uniform() for seed in seeds}) == 3


def test_tasks_without_arrivals_have_twins() -> None:
    first = work(concurrency=4)
    assert {task.arrival_ps for task in twin(first, 1).tasks} == {task.arrival_ps for task in first.tasks}


def test_a_run_and_its_twins_are_apart() -> None:
    config = resolve({"workload": "swe-bench", "tasks": 20, "gpus": 8, "rate_per_min": 10.0})
    found = run_job(Job("a", config, (METRIC, "tasks"), 2))
    assert len(set(found.values[METRIC])) == 3
    assert max(found.values[METRIC]) / min(found.values[METRIC]) < 1.1  # type: ignore[type-var, operator]
    assert found.values["tasks"] == (20, 20, 20)


def test_the_hash_of_the_work_is_of_the_tasks_alone() -> None:
    def digest(**keys: object) -> str:
        config = resolve({"workload": "webarena", "tasks": 3, "gpus": 8, **keys})
        return run_job(Job("a", config, (METRIC,), 0)).work

    assert digest() == digest(preset="vllm-0.6", order="lifo")
    others = [digest(), digest(tasks=4), digest(seed=1), digest(rate_per_min=3.0), digest(rate_per_min=4.0)]
    others.append(digest(tenants="a@1+b@1"))
    assert len(set(others)) == len(others)


# ---- tolerances


def test_the_paired_standard_deviation() -> None:
    """A difference of two values that are 1 apart in each of three pairs: variances 0.5 within, twice that between."""
    assert paired_sd([[1.0, 2.0], [10.0, 11.0], [6.0, 5.0]]) == pytest.approx(1.0)
    assert paired_sd([[3.0, 3.0, 3.0]]) == 0.0
    assert paired_sd([[0.0, 0.0], [0.0, 2.0]]) == pytest.approx(math.sqrt(2))


def test_the_standard_deviation_is_that_of_differences() -> None:
    """Of 4,000 seeds: what is common to a seed does not count."""
    generator = np.random.Generator(np.random.PCG64(1))
    seeds = generator.normal(100, 50, (4000, 1))
    values = seeds + generator.normal(0, 2, (4000, 4))
    assert paired_sd(values.tolist()) == pytest.approx(2 * math.sqrt(2), rel=0.02)
    assert paired_sd(values.tolist()) == pytest.approx(float((values[:, 0] - values[:, 1]).std()), rel=0.05)


def settings(seeds: int, level: float = 0.001, twins: int = 3, metrics: int = 1) -> Settings:
    rules = dict(list(METRICS.items())[:metrics])
    return Settings(tuple(range(seeds)), level, twins, rules)


def test_the_factor_is_a_quantile_of_students_t() -> None:
    """From printed tables: one-sided 0.05 at 5, 0.001 at 15 degrees of freedom; many tests share the level."""
    assert tolerance_factor(settings(5, 0.05, 1), 1) == pytest.approx(2.015, abs=0.001)
    assert tolerance_factor(settings(5, 0.001, 3), 1) == pytest.approx(3.733, abs=0.001)
    assert tolerance_factor(settings(5, 0.004, 3), 4) == pytest.approx(3.733, abs=0.001)
    assert tolerance_factor(settings(5, 0.009, 3, metrics=9), 1) == pytest.approx(3.733, abs=0.001)


def test_a_gate_without_a_difference_fails_as_seldom_as_it_says() -> None:
    """Level 0.05, normal noise, 3,000 baselines and one run each: within three standard errors of 5 %."""
    generator = np.random.Generator(np.random.PCG64(2))
    own = settings(4, 0.05, 2)
    factor = tolerance_factor(own, 1)
    rules = {METRIC: Rule("lower", min_effect=0.0)}
    fails = 0
    for _ in range(3000):
        seeds = generator.normal(100, 20, (4, 1))
        before = seeds + generator.normal(0, 3, (4, 3))
        after = seeds[:, 0] + generator.normal(0, 3, 4)
        known = known_case({}, [measured(*row) for row in before.tolist()], own, factor)
        baseline = Baseline(replace(own, metrics=rules), {"a": known}, {})
        fails += judge(baseline, {"a": [measured(value) for value in after.tolist()]}).fails
    assert abs(fails / 3000 - 0.05) < 3 * math.sqrt(0.05 * 0.95 / 3000)


# ---- verdicts


def measured(*values: float | None, metric: str = METRIC) -> Measured:
    return Measured("d", "w", "tasks", {metric: values})


def word(before: list[float], now: list[float | None], tolerance: float, rule: Rule) -> str:
    mean = math.fsum(before) / len(before)
    known = Known(tuple(before), mean, 0.0, tolerance)
    case = Case({}, ("d",) * len(before), ("w",) * len(before), {METRIC: known})
    own = Settings(tuple(range(len(before))), 0.001, 3, {METRIC: rule})
    (verdict,) = judge(Baseline(own, {"a": case}, {}), {"a": [measured(value) for value in now]}).verdicts
    return verdict.word


@pytest.mark.parametrize(
    ("before", "now", "tolerance", "rule", "expected"),
    [
        ([10, 20], [10, 20], 0.0, Rule("lower"), "same"),
        ([10, 20], [20, 10], 0.0, Rule("lower"), "within"),  # the mean is what counts
        ([10, 20], [10.5, 20.5], 0.02, Rule("lower"), "worse"),
        ([10, 20], [10.5, 20.5], 0.04, Rule("lower"), "within"),
        ([10, 20], [10.5, 20.5], 0.02, Rule("lower", min_effect=0.05), "within"),
        ([10, 20], [10.5, 20.5], 0.02, Rule("lower", least=0.6), "within"),
        ([10, 20], [10.5, 20.5], 0.02, Rule("lower", least=0.4), "worse"),
        ([10, 20], [10.5, 20.5], 0.02, Rule("higher"), "better"),
        ([10, 20], [9.5, 19.5], 0.02, Rule("higher"), "worse"),
        ([10, 20], [9.5, 19.5], 0.02, Rule("lower"), "better"),
        ([10, 20], [9.5, None], 9.0, Rule("lower"), "gone"),
        ([0, 0], [0, 0], 0.0, Rule("lower", least=1.0), "same"),
        ([0, 0], [1, 1], 0.0, Rule("lower", least=1.0), "within"),
        ([0, 0], [2, 1], 0.0, Rule("lower", least=1.0), "worse"),
        ([0, 0], [0.5, 0], 0.0, Rule("higher"), "better"),
        ([-10, -20], [-10, -18], 0.0, Rule("lower"), "worse"),
    ],
)
def test_verdicts(before: list[float], now: list[float | None], tolerance: float, rule: Rule, expected: str) -> None:
    assert word(before, now, tolerance, rule) == expected


POSITIVE = st.floats(0.1, 1e6)


@given(
    st.lists(POSITIVE, min_size=1, max_size=5),
    st.floats(0.5, 2.0),
    st.floats(0, 0.5),
    st.floats(0, 0.5),
    st.floats(0, 100),
)
def test_one_direction_is_the_other_turned_round(
    before: list[float], factor: float, tolerance: float, effect: float, least: float
) -> None:
    now = [value * factor for value in before]
    lower = word(before, list(now), tolerance, Rule("lower", effect, least))
    higher = word(before, list(now), tolerance, Rule("higher", effect, least))
    turned = {"worse": "better", "better": "worse"}
    assert higher == turned.get(lower, lower)
    mean = math.fsum(before) / len(before)
    limit = max(tolerance * mean, effect * mean, least)
    change = mean * (factor - 1)
    if abs(abs(change) - limit) > 1e-9 * mean and factor != 1:
        expected = "worse" if change > limit else "better" if change < -limit else "within"
        assert lower == expected


def test_what_moved_most_of_what_is_allowed_comes_first() -> None:
    rules = {name: Rule("lower") for name in ("a", "b", "c", "d", "e")}
    now = {"a": 100.0, "b": 102.0, "c": 105.0, "d": 90.0, "e": 100.5}
    case = Case({}, ("d",), ("w",), {name: Known((100.0,), 100.0, 0.0, 0.0) for name in rules})
    found = judge(
        Baseline(Settings((0,), 0.001, 3, rules), {"x": case}, {}),
        {"x": [Measured("d", "w", "", {name: (value,) for name, value in now.items()})]},
    )
    assert [(one.metric, one.word) for one in found.verdicts] == [
        ("c", "worse"), ("b", "worse"), ("d", "better"), ("e", "within"), ("a", "same"),
    ]  # fmt: skip
    assert found.fails
    assert found.other_runs == 0
    sizes = [one.size for one in found.verdicts if one.word == "worse"]
    assert all(a >= b for a, b in pairwise(sizes))


def test_a_metric_without_values_is_left_out_and_none_at_all_is_a_mistake() -> None:
    own = settings(2, twins=1, metrics=2)
    first, second = own.metrics
    runs = [Measured("d", "w", "", {first: (1.0, 2.0), second: (1.0, None)}) for _ in range(2)]
    known = known_case({}, runs, own, 3.0)
    assert list(known.metrics) == [first]
    assert known.metrics[first].tolerance == pytest.approx(3.0 * 1.0 / math.sqrt(2))
    assert allowed(known.metrics[first], own.metrics[first]) == known.metrics[first].tolerance
    with pytest.raises(Exception, match="no metric has a value in every run"):
        known_case({}, [Measured("d", "w", "", {first: (None, 1.0), second: (None, 1.0)})] * 2, own, 3.0)


def test_whatever_a_name_holds_it_is_written_as_the_readers_want_it() -> None:
    case, metric = 'a,b: 50 % <"&">', "x,y:z"
    one = Verdict(case, metric, 1.0, 2.0, 1.0, 0.1, "worse")
    found = Judged((one, replace(one, word="better"), replace(one, word="within")), 1, 1)
    error, notice = github(found, "o,d:d%.json").splitlines()
    place = "file=o%2Cd%3Ad%25.json,title=sagasim gate%3A x%2Cy%3Az is"
    said = 'x,y:z of a,b: 50 %25 <"&">: 1 -> 2, +100.00 %25 (10.00 %25 is allowed)'
    assert error == f"::error {place} worse::{said}: worse"
    assert notice == f"::notice {place} better::{said}: better"
    line = github(Judged((replace(one, case="a\r\nb"),), 1, 1), "b.json")
    assert "x,y:z of a%0D%0Ab: 1" in line
    assert len(line.splitlines()) == 1
    (suite,) = junitparser.JUnitXml.fromstring(junit(found).encode())
    assert (suite.name, suite.failures, [test.name for test in suite]) == (case, 1, [metric] * 3)
    assert [test.system_out is not None for test in suite] == [False, True, True]


# ---- several at a time


def test_side_by_side_gives_the_same(tmp_path: Path) -> None:
    keys = {"workload": "webarena", "tasks": 3, "gpus": 8}
    cases = CaseSet(settings(2), {"b": keys, "a": {**keys, "preset": "vllm-0.6"}})
    seen: list[tuple[int, int]] = []
    alone = measure(cases, 1, tmp_path, 1, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 8), (4, 8), (6, 8), (8, 8)]
    assert measure(cases, 1, tmp_path, 2, lambda done, total: None) == alone
    assert list(alone) == ["b", "a"]


@pytest.mark.skipif(os.name != "posix", reason="signals of a process group")
def test_an_interrupt_ends_it_without_a_trace(tmp_path: Path) -> None:
    """Ctrl-C reaches all processes of the group."""
    (tmp_path / "set.toml").write_text('twins = 100\n[cases.a]\nworkload = "swe-bench"\ntasks = 300\ngpus = 8\n')
    command = [sys.executable, "-m", "sagasim", "gate", "--baseline", "b.json", "--update", "--from", "set.toml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [*command, "--jobs", "2"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(4)
    assert running.poll() is None
    os.killpg(running.pid, signal.SIGINT)
    out, err = running.communicate(timeout=20)
    assert (running.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "sagasim: interrupted; nothing was written"
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["set.toml"]
