"""Timelines: every packet is one of Perfetto's, and what is shown is what the log says."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.config import Config
from sagasim.core import Call, Task, Tool
from sagasim.cost import constant_calibration
from sagasim.eventlog import UNFINISHED
from sagasim.simulate import Result, simulate
from tests import strategies
from tests.timeline_cases import Slice, Timeline, drawn, small

NS, S, MS = 1000, 10**12, 10**9
COUNTERS = {
    "KV blocks held": "held_blocks",
    "KV blocks cached and idle": "cached_blocks",
    "calls waiting": "waiting",
    "calls running": "running",
}


def rows(columns: Any) -> list[dict[str, int]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*(c.tolist() for c in columns.values()), strict=True)]


# ---- what is shown, against the log


def check_calls(result: Result, timeline: Timeline) -> None:
    """Every finished call once, on its replica, with its phases as long as the log says."""
    shown: Counter[Any] = Counter()
    for one in timeline.on("/calls"):
        replica = int(re.match(r"replica (\d+) ", timeline.path(one.track))[1])  # type: ignore[index]
        phases = tuple(sorted(one.phases().items()))
        tokens = tuple(one.args[name] for name in ("prompt_tokens", "hit_tokens", "output_tokens"))
        shown[one.name, replica, one.begin, one.end, phases, tokens, one.args.get("preemptions", 0)] += 1
    logged: Counter[Any] = Counter()
    for call in rows(result.calls):
        marks = [call[name] for name in ("submitted_ps", "admitted_ps", "first_token_ps", "finished_ps")]
        named = zip(("queue", "prefill", "decode"), marks[:-1], marks[1:], strict=True)
        phases = tuple(sorted((name, (b // NS, e // NS)) for name, b, e in named if b < e))
        tokens = tuple(call[name] for name in ("prompt_tokens", "hit_tokens", "output_tokens"))
        name = f"{result.task_names[call['task']]} call {call['call']}"
        times = marks[0] // NS, marks[-1] // NS
        logged[name, call["replica"], *times, phases, tokens, call["preemptions"]] += 1
    assert shown == logged


def check_counters(result: Result, timeline: Timeline) -> None:
    """At the end of every nanosecond, each counter is what the last row of its replica says."""
    for track, values in timeline.counters.items():
        name = timeline.tracks[track].name
        replica = int(re.match(r"replica (\d+) ", timeline.path(track))[1])  # type: ignore[index]
        logged = {r["time_ps"] // NS: r[COUNTERS[name]] for r in rows(result.occupancy) if r["replica"] == replica}
        shown = dict(values)
        assert shown.keys() <= logged.keys()
        now = None
        for time, value in logged.items():
            now = shown.get(time, now)
            assert now == value, (name, replica, time)
    used = len(set(result.occupancy["replica"].tolist()))
    assert len(timeline.counters) == used * len(COUNTERS)


def check_batches(result: Result, timeline: Timeline, end_ps: int) -> None:
    """Between two rows of a replica with running calls there is one slice, inside the replica's own."""
    for replica in range(len(result.replicas["replica"])):
        (whole,) = [s for s in timeline.slices if s.parent is None and s.name.startswith(f"replica {replica}:")]
        assert whole.args["evicted_blocks"] == result.replicas["evicted_blocks"][replica]
        own = [r for r in rows(result.occupancy) if r["replica"] == replica]
        ends = [*(r["time_ps"] for r in own[1:]), end_ps][: len(own)]
        logged = [
            (r["time_ps"] // NS, e // NS, r["running"], r["waiting"])
            for r, e in zip(own, ends, strict=True)
            if r["running"] and r["time_ps"] < e
        ]
        shown = [(s.begin, s.end, s.args["running"], s.args["waiting"]) for s in whole.children]
        assert shown == logged
        steps = [*(r["steps"] for r in own[1:]), result.replicas["steps"][replica]][: len(own)]
        taken = [
            after - r["steps"]
            for r, e, after in zip(own, ends, steps, strict=True)
            if r["running"] and r["time_ps"] < e
        ]
        assert [s.args["steps"] for s in whole.children] == taken
        assert all(s.args["steps"] >= 0 for s in whole.children)
        before = [0, *(r["evicted_blocks"] for r in own[:-1])][: len(own)]
        evicted = [(r["time_ps"] // NS, r["evicted_blocks"] - b) for r, b in zip(own, before, strict=True)]
        assert timeline.evictions[whole.track] == [(time, blocks) for time, blocks in evicted if blocks]


def check_transfers(result: Result, timeline: Timeline) -> None:
    """Every copy at both of its ends, one arrow between them, cancelled ones labelled."""

    def place(number: int) -> str:
        return f"replica {number}" if number >= 0 else f"host memory of node {-1 - number}"

    words = ("stolen call's KV", "evicted KV", "reloaded KV", "prefetched KV")
    logged = Counter(
        (
            f"{words[t['kind']]} to {place(t['target'])}" + " (cancelled)" * t["cancelled"],
            f"{words[t['kind']]} from {place(t['source'])}" + " (cancelled)" * t["cancelled"],
            *(t["started_ps"] // NS, t["ended_ps"] // NS, t["bytes"]),
        )
        for t in rows(result.transfers)
    )
    ends = [s for s in timeline.slices if "bytes" in s.args]
    assert len(ends) == 2 * len(result.transfers["kind"])
    shown: Counter[Any] = Counter()
    for number, (source, target) in {n: found for n, found in timeline.arrows().items() if found[0] in ends}.items():
        assert (number in source.sends, number in target.ends) == (True, True)
        assert (source.begin, source.end, source.args) == (target.begin, target.end, target.args)
        shown[source.name, target.name, source.begin, source.end, source.args["bytes"]] += 1
        assert place_of(timeline, source) in target.name
        assert place_of(timeline, target) in source.name
    assert shown == logged


def place_of(timeline: Timeline, one: Slice) -> str:
    return timeline.path(one.track).split(" (")[0]


def check_tasks(result: Result, timeline: Timeline, end_ps: int) -> None:
    """A task's calls and tools on tracks of its name, in the task's own slice where they follow one another."""
    for task in rows(result.tasks):
        name = result.task_names[task["task"]]
        shown = [s for s in timeline.slices if timeline.path(s.track) == f"tasks/task {task['task']}: {name}"]
        (whole,) = [s for s in shown if s.name in (name, f"{name} (unfinished)")]
        cut = task["finished_ps"] == UNFINISHED
        assert whole.name == name + " (unfinished)" * cut
        assert (whole.begin, whole.end) == (task["arrival_ps"] // NS, (end_ps if cut else task["finished_ps"]) // NS)
        logged: Counter[Any] = Counter()
        for call in rows(result.calls):
            if call["task"] == task["task"]:
                logged[f"call {call['call']}", call["submitted_ps"] // NS, call["finished_ps"] // NS] += 1
                tools = min(call["finished_ps"] + call["tool_ps"], end_ps)
                if tools > call["finished_ps"]:
                    logged["tools", call["finished_ps"] // NS, tools // NS] += 1
        assert Counter((s.name, s.begin, s.end) for s in shown if s is not whole) == logged


def check_arrows(result: Result, timeline: Timeline) -> None:
    """Every flow begins once, goes on, and ends once, later; those between calls link calls of one task."""
    tools = {(result.task_names[c["task"]], c["call"]): c["finished_ps"] + c["tool_ps"] for c in rows(result.calls)}
    sent = {(result.task_names[c["task"]], c["call"]): c["submitted_ps"] for c in rows(result.calls)}
    for number, found in timeline.arrows().items():
        assert len(found) >= 2
        assert [number in s.ends for s in found] == [False] * (len(found) - 1) + [True]
        assert [s.sends.count(number) + s.ends.count(number) for s in found] == [1] * len(found)
        assert [s.order for s in found] == sorted(s.order for s in found)
        calls = [s for s in found if "prompt_tokens" in s.args]
        if len(calls) == 1:  # from the task's track to the replica's
            assert found[0].name == f"call {calls[0].name.rsplit(' ', 1)[1]}"
            assert found[0].parent is None or found[0].parent.name.startswith(calls[0].args["task"])
            assert (found[0].begin, found[0].end) == (calls[0].begin, calls[0].end)
        named = [(s.args["task"], int(s.name.rsplit(" ", 1)[1])) for s in calls]
        assert len({task for task, _ in named}) <= 1
        for before, after in pairwise(named):
            assert tools[before] <= sent[after]


def check(result: Result, folder: Path) -> None:
    timeline, told = drawn(result, folder, tasks=10**6)
    assert told.left_out == ""
    (run,) = timeline.on("run")
    end_ps = max(
        [int(c.max()) for c in (result.occupancy["time_ps"], result.tasks["finished_ps"]) if len(c)]
        + [int(result.transfers["ended_ps"].max(initial=0)), int(result.tasks["arrival_ps"].max(initial=0))]
    )
    if (result.tasks["finished_ps"] == UNFINISHED).any():
        end_ps = max(end_ps, round(result.config.horizon_s * 1e6) * 10**6)  # type: ignore[operator]
    assert run.begin == 0
    assert run.end == end_ps // NS
    assert run.args["digest"] == result.digest
    assert run.args["shown"] == "the whole run"
    check_calls(result, timeline)
    check_counters(result, timeline)
    check_batches(result, timeline, end_ps)
    check_transfers(result, timeline)
    check_tasks(result, timeline, end_ps)
    check_arrows(result, timeline)


@given(strategies.tasks(), strategies.configs(), strategies.calibrations())
@settings(max_examples=60)
def test_any_run_is_shown_as_logged(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[Task], config: Config, calibration: dict[str, Any]
) -> None:
    check(simulate(config, tasks, calibration=calibration), tmp_path_factory.getbasetemp())


@given(strategies.sessions(), strategies.tiered(), strategies.calibrations(), st.sampled_from([None, 100]))
@settings(max_examples=60)
def test_any_run_with_host_memory_is_shown_as_logged(
    tmp_path_factory: pytest.TempPathFactory,
    tasks: list[Task],
    config: Config,
    calibration: dict[str, Any],
    horizon_us: int | None,
) -> None:
    config = replace(config, horizon_s=None if horizon_us is None else horizon_us / 10**6)
    check(simulate(config, tasks, calibration=calibration), tmp_path_factory.getbasetemp())


@given(strategies.tasks(), strategies.configs(gpus=3), strategies.failures())
@settings(max_examples=30)
def test_a_run_with_failures_is_shown_as_logged(
    tmp_path_factory: pytest.TempPathFactory, tasks: list[Task], config: Config, failures: str
) -> None:
    failing = replace(config, failures=failures)
    check(simulate(failing, tasks, calibration=constant_calibration(MS)), tmp_path_factory.getbasetemp())


def test_a_run_of_agents_is_shown_as_logged(tmp_path: Path) -> None:
    assert set(small().transfers["kind"].tolist()) >= {0, 1, 2}
    check(small(), tmp_path)


def test_a_cut_off_run(tmp_path: Path) -> None:
    calls = (Call("0", 64, 50, tools=(Tool("t", 3 * S),)), Call("1", 16, 500, "0", 114, ("0",)))
    config = strategies.config(horizon_s=4.0, max_model_len=1000, num_gpu_blocks_override=100)
    cut = simulate(config, [Task("t", calls, arrival_ps=0)], calibration=constant_calibration(10 * MS))
    assert cut.replicas["in_flight"].tolist() == [1]
    check(cut, tmp_path)
    cut = simulate(replace(config, horizon_s=2.0), [Task("t", calls)], calibration=constant_calibration(10 * MS))
    check(cut, tmp_path)  # within the tools


def test_names_are_those_of_the_cluster(tmp_path: Path) -> None:
    timeline, _ = drawn(small(), tmp_path)
    top = {track.name for track in timeline.tracks.values() if not track.parent_uuid}
    assert top == {"run", "replica 0 (node 0)", "replica 1 (node 0)", "host memory of node 0", "tasks"}
    many = replace(small(), replicas={k: np.resize(c, 12) for k, c in small().replicas.items()})
    many.replicas["replica"][:] = range(12)
    timeline, _ = drawn(many, tmp_path)
    assert "replica 03 (node 1)" in {track.name for track in timeline.tracks.values()}
    units = {track.name: track.counter.unit_name for track in timeline.tracks.values() if track.HasField("counter")}
    assert units == {name: "blocks" if "KV" in name else "calls" for name in COUNTERS}
