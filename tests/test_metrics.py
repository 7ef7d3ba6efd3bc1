"""Metrics against arithmetic done by hand, and against NumPy where it is exact enough."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.eventlog import UNFINISHED
from sagasim.metrics import (
    CURVE_POINTS,
    curve,
    exact_dot,
    exact_sum,
    figure_entry,
    quantile,
    ratio,
    rounded,
    spread,
    steady_tasks_per_min,
    summary,
    tpot_ps,
)
from sagasim.results import canonical_json
from sagasim.simulate import Result

BIG = st.integers(0, 2**62)


@given(st.lists(st.integers(-(2**62), 2**62), max_size=50))
def test_exact_sum_never_overflows(values: list[int]) -> None:
    assert exact_sum(np.array(values, dtype=np.int64)) == sum(values)


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 2**62 - 1)), max_size=50))
def test_exact_dot_never_overflows(pairs: list[tuple[int, int]]) -> None:
    counts, times = (np.array([pair[i] for pair in pairs], dtype=np.int64) for i in (0, 1))
    assert exact_dot(counts, times) == sum(count * time for count, time in pairs)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=60), st.integers(0, 100))
def test_quantile_is_numpys_linear_one(values: list[int], percent: int) -> None:
    ordered = np.sort(np.array(values, dtype=np.int64))
    expected = np.quantile(ordered, percent / 100)
    assert quantile(ordered, percent, 100) == pytest.approx(expected, rel=1e-8, abs=1e-6)


@given(BIG, BIG)
def test_quantile_of_two_large_values_is_exact(a: int, b: int) -> None:
    ordered = np.sort(np.array([a, b], dtype=np.int64))
    assert quantile(ordered, 1, 2) == rounded((a + b) / 2)


def test_rounding_keeps_nine_digits() -> None:
    assert rounded(123456.7890123) == 123456.789
    assert ratio(1, 3) == 0.333333333
    assert ratio(1, 0) is None


def test_empty_groups_give_none() -> None:
    nothing = np.array([], dtype=np.int64)
    assert set(spread(nothing, 1).values()) == {None}
    assert curve(nothing, 1) == []


def test_summary_by_hand(two_tasks: Result) -> None:
    found = summary(two_tasks)
    assert (found["tasks"], found["calls"], found["preemptions"], found["steps"]) == (2, 3, 1, 12)
    assert found["makespan_s"] == 10
    assert found["tasks_per_min"] == 12
    assert found["output_tokens_per_s"] == 0.9
    assert found["tct_s"] == {"mean": 6, "p50": 6, "p95": 7.8, "p99": 7.96, "max": 8}
    assert found["ttft_s"]["mean"] == rounded(7 / 3)
    assert found["ttft_s"]["max"] == 4
    assert found["queueing_s"] == {"mean": 1, "p50": 1, "p95": 1.9, "p99": 1.98, "max": 2}
    assert found["tpot_s"]["mean"] == 0.75  # 1.0 and 0.5; the call of one token has none
    assert found["prefix_hit_rate"] == 0.16
    assert found["regenerated_share"] == 0.1
    assert found["gpu_busy_share"] == 0.8
    assert found["kv_held_share"] == 0.35  # 7 x 3 s + 2 x 7 s of 10 x 10 s
    assert found["kv_cached_share"] == 0.49
    assert found["kv_useful_share"] == 0.39  # and 4 block seconds hit again
    assert found["notes"] == {"calibration": "derived"}
    assert found["digest"] == two_tasks.digest


def test_tenants_are_told_apart(two_tasks: Result) -> None:
    tenants = summary(two_tasks)["tenants"]
    assert [(name, row["tasks"], row["calls"]) for name, row in tenants.items()] == [("acme", 1, 1), ("zeta", 1, 2)]
    assert tenants["acme"]["tct_s"]["mean"] == 4
    assert tenants["zeta"]["output_tokens"] == 6


def test_one_tenant_needs_no_table(make_result: Callable[..., Result]) -> None:
    assert "tenants" not in summary(make_result(calls=[], tasks=[]))


def test_a_run_of_nothing_has_no_nan(make_result: Callable[..., Result]) -> None:
    found = summary(make_result(calls=[], tasks=[], replicas=[]))
    assert found["tct_s"]["mean"] is None
    assert found["gpu_busy_share"] is None
    assert json.loads(canonical_json(found)) == found


def test_occupancy_outside_the_run_does_not_count(make_result: Callable[..., Result]) -> None:
    task = {"arrival_ps": 10, "finished_ps": 20}
    rows = [{"time_ps": 0, "held_blocks": 4}, {"time_ps": 15, "held_blocks": 0}, {"time_ps": 90, "held_blocks": 9}]
    assert summary(make_result(calls=[], tasks=[task], occupancy=rows))["kv_held_share"] == 0.2


def test_occupancy_rows_of_replicas_do_not_mix(make_result: Callable[..., Result]) -> None:
    task = {"finished_ps": 10}
    rows = [
        {"time_ps": 0, "replica": 1, "held_blocks": 10},
        {"time_ps": 2, "replica": 0, "held_blocks": 5},
        {"time_ps": 6, "replica": 1, "held_blocks": 0},
    ]
    replicas = [{"num_blocks": 10}, {"replica": 1, "num_blocks": 10}]
    found = summary(make_result(calls=[], tasks=[task], occupancy=rows, replicas=replicas))
    assert found["kv_held_share"] == 0.5  # (10 x 6 + 5 x 8) / 200


def test_tpot_cuts_to_whole_picoseconds(make_result: Callable[..., Result]) -> None:
    calls = [{"first_token_ps": 0, "finished_ps": 10, "output_tokens": 4}, {"finished_ps": 9, "output_tokens": 1}]
    assert tpot_ps(make_result(calls=calls, tasks=[]).calls).tolist() == [3]


def test_figure_entry_is_small_and_finite(two_tasks: Result) -> None:
    entry = figure_entry("x", two_tasks, summary(two_tasks))
    assert len(entry["tct_s"]) == CURVE_POINTS + 1
    assert (entry["tct_s"][0], entry["tct_s"][-1]) == (4, 8)
    assert all(map(math.isfinite, entry["ttft_s"]))
    shares = {"hit": 0.16, "first": 0.74, "regenerated_here": 0.08, "regenerated_elsewhere": 0.02}
    assert entry["shares"] == {**shares, "regenerated_uncached": 0.0}


def test_without_a_cache_the_kept_context_is_prefilled_again(make_result: Callable[..., Result]) -> None:
    calls = [{"prompt_tokens": 100}, {"prompt_tokens": 150, "kept_tokens": 110}]
    found = summary(make_result(calls=calls, tasks=[{"finished_ps": 1}], prefix_caching=False))
    assert (found["first_tokens"], found["regenerated_uncached_tokens"], found["regenerated_share"]) == (140, 110, 0.44)


def test_a_window_leaves_the_first_and_last_tasks_out(make_result: Callable[..., Result]) -> None:
    """Ten tasks a second apart; the first two and the last three are not measured, nor the time they arrive in."""
    s = 10**12
    tasks = [{"task": i, "arrival_ps": i * s, "finished_ps": (i + 2 + i % 2) * s, "calls": 1} for i in range(10)]
    calls = [
        {"task": i, "submitted_ps": i * s, "admitted_ps": i * s, "first_token_ps": (i + 1) * s,
         "finished_ps": (i + 2) * s, "prompt_tokens": 10 + i, "output_tokens": 2}
        for i in range(10)
    ]  # fmt: skip
    occupancy = [
        {"time_ps": 0, "held_blocks": 10, "busy_ps": s},
        {"time_ps": 4 * s, "held_blocks": 0, "busy_ps": 3 * s},
    ]
    replicas = [{"num_blocks": 10, "busy_ps": 6 * s, "last_step_end_ps": 10 * s}]
    run = {"calls": calls, "tasks": tasks, "occupancy": occupancy, "replicas": replicas}
    found = summary(make_result(**run, warmup=0.2, cooldown=0.3))
    assert (found["tasks"], found["measured_tasks"], found["measured_calls"]) == (10, 5, 5)
    assert (found["measured_from_s"], found["measured_to_s"], found["makespan_s"]) == (2, 7, 12)
    assert found["tct_s"]["mean"] == 2.4
    assert found["prompt_tokens"] == 12 + 13 + 14 + 15 + 16
    assert found["tasks_per_min"] == 12 * 4  # of the ends 2, 4, 4, 6, 6, 8, ... four are after 2 s and up to 7 s
    assert found["output_tokens_per_s"] == 2  # calls end every second
    assert found["kv_held_share"] == 0.4  # full until 4 s of 2 s to 7 s
    # busy: 2 s at 2 s, half way between the rows; 4.5 s at 7 s, half way to the end
    assert found["gpu_busy_share"] == 0.5


def test_a_task_that_was_cut_off_counts_with_its_age(make_result: Callable[..., Result]) -> None:
    s = 10**12
    tasks = [{"task": 0, "finished_ps": 4 * s, "calls": 1}, {"task": 1, "arrival_ps": s, "finished_ps": UNFINISHED}]
    found = summary(make_result(calls=[{"task": 0, "finished_ps": 4 * s}], tasks=tasks, horizon_s=10.0))
    assert (found["unfinished_tasks"], found["makespan_s"]) == (1, 10)
    assert found["tct_s"]["mean"] == 6.5
    assert found["tasks_per_min"] == 6


def test_steady_rate_leaves_both_ends_out(make_result: Callable[..., Result]) -> None:
    s = 10**12
    tasks = [{"task": i, "finished_ps": end * s} for i, end in enumerate([5, 10, 16, 22, 28, 34, 40, 46, 52, 9000])]
    assert steady_tasks_per_min(make_result(calls=[], tasks=tasks).tasks) == 10
    assert steady_tasks_per_min(make_result(calls=[], tasks=[]).tasks) is None
