"""Agent Fair Share by hand: shares, what they do to the order, deviations from them, and who gives way to whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.core import Call, Task, Tool
from sagasim.cost import constant_calibration
from sagasim.errors import PolicyError
from sagasim.eventlog import Columns
from sagasim.fairness import share_deviations
from sagasim.plan import Context
from sagasim.policies.aeg import Aeg
from sagasim.policies.fair_share import FairShare, parse_weights
from sagasim.policies.saga import AfsOrder, PreemptByUrgency
from sagasim.seams import Request
from sagasim.simulate import Result, simulate
from tests import strategies

S = 10**12
MS = 10**9


def request(task: str, tenant: str, *, now: int = 0, arrival: int = 0, expected: int | None = 100 * S) -> Request:
    return Request(task, tenant, "kind", "", 0, Context(None, 0, 100), 100, now, arrival, expected)


def at_work(**tasks: tuple[str, int]) -> Aeg:
    """A predictor that knows tasks by tenant and arrival; each has 20 calls of 1 s to come (1 / p_term = 0.05)."""
    aeg = Aeg()
    for task, (tenant, arrival) in tasks.items():
        told = request(task, tenant, arrival=arrival)
        aeg.sent(told, arrival)
        aeg.ended(told, ("x",), 10, S, arrival)
    return aeg


def test_shares_are_parts_of_the_weighted_sums() -> None:
    assert FairShare.of({"a": 2.0, "b": 1.0}, {"b": 4.0}) == pytest.approx({"a": 1 / 3, "b": 2 / 3})
    assert FairShare.of({"a": 0.0}, {}) == {}


def test_a_tenants_share_is_its_remaining_work_over_slack() -> None:
    """At 50 s: deadlines at 150 s and, for the later one, 190 s; 20 s of work each: .2 + .2 against 20 / 140."""
    order = AfsOrder(at_work(t1=("a", 0), t2=("a", 0), t3=("b", 40 * S)))
    b = 20 / 140
    assert order.tenant_shares(50 * S) == pytest.approx({"a": 0.4 / (0.4 + b), "b": b / (0.4 + b)})
    weighted = AfsOrder(at_work(t1=("a", 0), t2=("a", 0), t3=("b", 40 * S)), weights="b@2.8")
    assert weighted.tenant_shares(50 * S) == pytest.approx({"a": 0.5, "b": 0.5})


def test_shares_know_what_has_been_learned_since() -> None:
    """Nothing was known when they arrived; then a task took 100 s. At 110 s: 20 / 40 + 20 / 40 against 20 / 80."""
    aeg = Aeg()
    for task, tenant, arrival in (("t1", "a", 0), ("t2", "a", 0), ("t3", "b", 40 * S), ("done", "c", 0)):
        told = request(task, tenant, arrival=arrival, expected=None)
        aeg.sent(told, arrival)
        aeg.ended(told, ("x",), 10, S, arrival)
    aeg.left("done", 100 * S)
    assert AfsOrder(aeg).tenant_shares(110 * S) == pytest.approx({"a": 0.8, "b": 0.2})


def test_late_tasks_count_with_the_least_slack() -> None:
    order = AfsOrder(at_work(t1=("a", 0), t2=("b", 0)), least_slack_s=10.0)
    assert order.urgency(request("t1", "a"), 149 * S) == order.urgency(request("t1", "a"), 400 * S) == 2.0


def test_who_had_less_than_its_share_comes_first() -> None:
    """Equal shares; of the service, a had 9/10, b had 1/10: factors .5/.9 and .5/.1, the latter 4 at most."""
    aeg = at_work(t1=("a", 0), t2=("b", 0))
    for tenant, times in (("a", 8), ("b", 0)):
        for _ in range(times):
            aeg.fair_share.ended(tenant, S, S)
    plain, shared = AfsOrder(aeg, shares=False), AfsOrder(aeg)
    a, b = request("t1", "a"), request("t2", "b")
    assert plain(a, 50 * S) == plain(b, 50 * S)
    assert shared(a, 50 * S) / plain(a, 50 * S) == pytest.approx(0.5 / 0.9)
    assert shared(b, 50 * S) / plain(b, 50 * S) == 4.0


def test_service_is_forgotten_after_two_windows() -> None:
    share = FairShare()
    share.ended("a", S, 10 * S)
    share.ended("b", S, 40 * S)
    assert share.had() == {"a": 0.5, "b": 0.5}
    share.ended("b", S, 70 * S)
    assert share.had() == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize("text", ["a", "a@", "a@x", "a@0", "a@-1"])
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(PolicyError, match="TENANT@WEIGHT"):
        parse_weights(text)


# ---- deviation from the log


def columns(rows: list[dict[str, int]]) -> Columns:
    return {name: np.array([row[name] for row in rows], dtype=np.int64) for name in rows[0]}


def log(*calls: tuple[int, int, int]) -> tuple[Columns, Columns]:
    """One task a call (tenant, begin, end in s), arriving as it begins."""
    rows = [{"task": i, "admitted_ps": b * S, "finished_ps": e * S} for i, (_, b, e) in enumerate(calls)]
    tasks = [{"tenant": t, "arrival_ps": b * S, "finished_ps": e * S} for t, b, e in calls]
    return columns(rows), columns(tasks)


def test_deviation_by_hand() -> None:
    """In 0..10 s both run; a's 20 s and b's 10 s of work have 1 s of slack each: shares 2/3 and 1/3, parts 1/2 and 1/2.

    In 10..20 s only a is at work: no deviation is taken.
    """
    calls, tasks = log((0, 0, 20), (1, 0, 10))
    found = share_deviations(calls, tasks, 0, 20 * S, [1.0, 1.0], 10 * S)
    assert found == pytest.approx([1 / 6, 1 / 6])
    assert share_deviations(calls, tasks, 0, 20 * S, [1.0, 2.0], 10 * S) == pytest.approx([0.0, 0.0])
    assert len(share_deviations(calls, tasks, 0, 20 * S, [1.0], 10 * S)) == 0


def naive(calls: Columns, tasks: Columns, start: int, end: int, weights: list[float], window: int) -> list[float]:
    found = []
    for edge in range(start, start + (end - start) // window * window, window):
        had, urgency = [0.0] * len(weights), [0.0] * len(weights)
        for task, (tenant, arrival, finish) in enumerate(
            zip(tasks["tenant"], tasks["arrival_ps"], tasks["finished_ps"], strict=True)
        ):
            own = [
                (b, e)
                for t, b, e in zip(*(calls[k] for k in ("task", "admitted_ps", "finished_ps")), strict=True)
                if t == task
            ]
            had[tenant] += sum(max(0, min(e, edge + window) - max(b, edge)) for b, e in own)
            if not arrival <= edge < finish:
                continue
            ended = [
                (f - a, t)
                for t, a, f in zip(tasks["tenant"], tasks["arrival_ps"], tasks["finished_ps"], strict=True)
                if f < arrival
            ]
            same = [time for time, t in ended if t == tenant] or [time for time, _ in ended]
            expected = sum(same) / len(same) if same else S
            slack = max(arrival + 1.5 * expected - edge, S)
            urgency[tenant] += sum(max(0, e - max(b, edge)) for b, e in own) / slack
        urgency = [u * w for u, w in zip(urgency, weights, strict=True)]
        if sum(u > 0 for u in urgency) > 1 and sum(had) > 0:
            found += [abs(h / sum(had) - u / sum(urgency)) for h, u in zip(had, urgency, strict=True) if u > 0]
    return found


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 50)), min_size=1, max_size=12),
    st.integers(0, 20),
    st.sampled_from([5, 7, 20]),
)
def test_deviation_is_that_of_the_definition(rows: list[tuple[int, int, int]], start: int, window: int) -> None:
    calls, tasks = log(*((tenant, begin, begin + length) for tenant, begin, length in rows))
    end = max(int(tasks["finished_ps"].max()), start * S)
    weights = [1.0, 2.0, 0.5]
    ours = share_deviations(calls, tasks, start * S, end, weights, window * S)
    assert sorted(ours) == pytest.approx(sorted(naive(calls, tasks, start * S, end, weights, window * S)), abs=1e-9)


# ---- who gives way


def test_only_much_less_urgent_calls_give_way_the_least_urgent_first() -> None:
    """Urgencies at 0: 20 s of work over 150, 300 and 75 s to the deadline, and over 30 for the one that waits."""
    aeg = at_work(w=("a", 0), x=("a", 0), y=("a", 0), z=("a", 0))
    running = [request(name, "a", expected=seconds * S) for name, seconds in (("x", 100), ("y", 200), ("z", 50))]
    waiting = request("w", "a", expected=40 * S)  # 60 s: 1.25 x z, 2.5 x x, 5 x y
    assert PreemptByUrgency(aeg)(waiting, running, 0) == [1, 0]
    assert PreemptByUrgency(aeg, ratio=1.2)(waiting, running, 0) == [1, 0, 2]
    assert PreemptByUrgency(aeg)(request("w", "a", expected=None), running, 0) == []


def blocked(**changes: Any) -> Result:
    """A step a millisecond, one place. The first task's tool ends at 20 ms; the second's call holds the place."""
    long = Call("c0", 10, 200)
    first = (Call("c0", 10, 5, tools=(Tool("x", 5 * MS),)), Call("c1", 5, 5, "c0", 15, ("c0",)))
    tasks = [Task("early", first, arrival_ps=0), Task("late", (long,), arrival_ps=MS)]
    config = strategies.config(
        max_num_seqs=1, balance_epoch_s=0.01, preempt_after_s=0.05, async_scheduling=False, **changes
    )
    return simulate(config, tasks, calibration=constant_calibration(MS))


def test_a_call_that_blocks_too_long_gives_way() -> None:
    """The second call of `early` is sent at 10 ms and looked at every 10 ms; beyond 50 ms means at 70 ms."""
    patient, urgent = blocked(), blocked(preempt=f"{strategies.MINE}:youngest")
    assert patient.calls["admitted_ps"].tolist() == [0, 205 * MS, 5 * MS]
    assert patient.calls["preemptions"].tolist() == [0, 0, 0]
    assert urgent.calls["admitted_ps"].tolist() == [0, 71 * MS, 5 * MS]
    assert urgent.calls["preemptions"].tolist() == [0, 0, 1]
    assert urgent.calls["finished_ps"][2] > patient.calls["finished_ps"][2]
    assert urgent.counts["asked_to_give_way"] == 1


def test_who_gave_way_in_vain_starts_again_at_once() -> None:
    """`late` gives way to the second call of `early`, which still does not fit beside `old`: it is the head again."""
    second = Call("c1", 350, 5, "c0", 15, ("c0",))
    early = Task("early", (Call("c0", 10, 5, tools=(Tool("x", 5 * MS),)), second), arrival_ps=0)
    old, late = Task("old", (Call("c0", 200, 150),), arrival_ps=0), Task("late", (Call("c0", 16, 100),), arrival_ps=MS)
    config = strategies.config(
        num_gpu_blocks_override=34, max_num_batched_tokens=512, reserve_full_prompt=True, async_scheduling=False,
        preempt=f"{strategies.MINE}:youngest", balance_epoch_s=0.01, preempt_after_s=0.05,
    )  # fmt: skip
    costs = constant_calibration(MS)
    fast = simulate(config, [early, old, late], calibration=costs)
    slow = simulate(replace(config, reference=True), [early, old, late], calibration=costs)
    assert fast.digest == slow.digest
    row = fast.task_names.index("late")
    assert fast.calls["preemptions"][fast.calls["task"] == row].tolist() != [0]
    assert fast.tasks["finished_ps"][row] < fast.tasks["finished_ps"][fast.task_names.index("old")]
