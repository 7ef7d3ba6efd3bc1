"""Which rows of a log a timeline shows: all, or of a long run the longest stretch of time that fits."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from numpy.typing import NDArray

from sagasim.errors import ConfigError
from sagasim.eventlog import UNFINISHED, Columns
from sagasim.simulate import Result
from sagasim.units import ps_from_s

__all__ = ["COUNTED", "Rows", "lanes", "rows_of"]

Ints = NDArray[np.int64]
COUNTED = ("held_blocks", "cached_blocks", "waiting", "running")  # of occupancy, as counters


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of the rows to be shown, whole and in an order of their own; times in ps.

    calls: as logged, `tools_ps` (when its tools end, cut off with the run), `own` (1: its task has a track), `strand`
    (calls of a task that follow one another), `chain` (number of a strand of several calls, else 0) and `last` in it.
    batches: occupancy by replica, then time; `until_ps`: the next row of the replica, or the end of the run; `decided`
    (steps from this row to the next) and `evicted` (blocks, since the row before).
    changed: of each of them, which of COUNTED have another value than before.
    tasks: those with a track of their own, with `until_ps`.
    """

    calls: Columns
    batches: Columns
    changed: NDArray[np.bool_]
    transfers: Columns
    tasks: Columns
    every: int  # one task of so many has a track
    begin_ps: int  # nothing begins before
    end_ps: int  # nothing ends later
    start_ps: int  # what ends before is left out
    until_ps: int | None  # what begins then or later is left out; None: nothing is
    run_ps: int  # the end of the run


def rows_of(result: Result, room: int, tasks: int, start_s: float) -> Rows:
    """The rows of what ends at start_s or later and begins before the time from which on more than `room` events came.

    tasks: how many tasks get a track, at most. Raises ConfigError where the run is over before start_s.
    """
    start, run_end = ps_from_s(start_s), _end(result)
    if not 0 <= start <= run_end:
        where, expected = "start_s", f"seconds within the run, from 0 to {run_end / 10**12:g}"
        raise ConfigError(f"{start_s:g} is outside of the run", where=where, expected=expected)
    every = max(1, -(-len(result.tasks["task"]) // tasks)) if tasks > 0 else 0
    shown_tasks = _tasks(result.tasks, every, run_end)
    calls = _calls(result.calls, shown_tasks["task"], run_end)
    batches, transfers = _batches(result.occupancy, result.replicas, run_end), dict(result.transfers)
    shown_tasks = _where(shown_tasks, shown_tasks["until_ps"] >= start)
    calls = _where(calls, calls["finished_ps"] >= start)
    batches = _where(batches, batches["until_ps"] >= start)
    transfers = _where(transfers, transfers["ended_ps"] >= start)
    changed = _changed(batches)
    begins = (calls["submitted_ps"], batches["time_ps"], transfers["started_ps"], shown_tasks["arrival_ps"])
    ends = (calls["tools_ps"], batches["until_ps"], transfers["ended_ps"], shown_tasks["until_ps"])
    events = (
        _events_of_calls(calls),
        changed.sum(axis=1) + 2 * _is_slice(batches) + (batches["evicted"] > 0),
        np.full(len(transfers["kind"]), 4),
        np.full(len(shown_tasks["task"]), 2),
    )
    until = _cut(np.concatenate(begins), np.concatenate(events), room)
    kept = [np.full(len(times), True) if until is None else times < until for times in begins]
    bounds = [(int(b[k].min()), int(e[k].max())) for b, e, k in zip(begins, ends, kept, strict=True) if k.any()]
    return Rows(
        _strands(_where(calls, kept[0])),
        _where(batches, kept[1]),
        changed[kept[1]],
        _where(transfers, kept[2]),
        _where(shown_tasks, kept[3]),
        every,
        min([start, *(low for low, _ in bounds)]),
        max([start, *(high for _, high in bounds)]),
        start,
        until,
        run_end,
    )


def _end(result: Result) -> int:
    """When the run was over: the last time in its log, or the horizon of a run that was cut off."""
    last = max(int(times.max(initial=0)) for times in (result.tasks["finished_ps"], result.occupancy["time_ps"]))
    if result.config.horizon_s is not None and (result.tasks["finished_ps"] == UNFINISHED).any():
        last = max(last, ps_from_s(result.config.horizon_s))
    return last


def _where(columns: Columns, kept: NDArray[np.bool_]) -> dict[str, Ints]:
    return {name: column[kept] for name, column in columns.items()}


def _tasks(log: Columns, every: int, run_end: int) -> dict[str, Ints]:
    rows = {name: column[::every] if every else column[:0] for name, column in log.items()}
    return rows | {"until_ps": np.where(rows["finished_ps"] == UNFINISHED, run_end, rows["finished_ps"])}


def _calls(log: Columns, tasks: Ints, run_end: int) -> dict[str, Ints]:
    tools = np.minimum(log["finished_ps"] + log["tool_ps"], run_end)
    return dict(log) | {"tools_ps": tools, "own": np.isin(log["task"], tasks).astype(np.int64)}


def _strands(calls: dict[str, Ints]) -> dict[str, Ints]:
    """The log does not say which call waited for which: a strand goes on with what is sent once its tools are done."""
    task, sent = calls["task"], calls["submitted_ps"]
    strand = lanes(task, sent, calls["tools_ps"])
    order = np.lexsort((sent, strand, task))
    same = (task[order][1:] == task[order][:-1]) & (strand[order][1:] == strand[order][:-1])
    after, before = np.append(same, False)[: len(task)], np.append(False, same)[: len(task)]
    chain, last = np.zeros_like(task), np.zeros_like(task)
    chain[order] = np.where(after | before, np.cumsum(~before), 0)
    last[order] = ~after
    return calls | {"strand": strand, "chain": chain, "last": last}


def _batches(log: Columns, replicas: Columns, run_end: int) -> dict[str, Ints]:
    order = np.argsort(log["replica"], kind="stable")
    rows = {name: column[order] for name, column in log.items()}
    follows = np.append(rows["replica"][1:] == rows["replica"][:-1], False)[: len(order)]
    rows["until_ps"] = np.where(follows, np.roll(rows["time_ps"], -1), run_end)
    rows["decided"] = np.where(follows, np.roll(rows["steps"], -1), replicas["steps"][rows["replica"]]) - rows["steps"]
    continues = np.append(False, follows[:-1])[: len(order)]
    rows["evicted"] = rows["evicted_blocks"] - np.where(continues, np.roll(rows["evicted_blocks"], 1), 0)
    return rows


def _changed(batches: Columns) -> NDArray[np.bool_]:
    """Which counters differ from the row before of the same replica; of its first row, all."""
    first = np.append(True, batches["replica"][1:] != batches["replica"][:-1])[: len(batches["replica"])]
    return np.stack([first | (batches[name] != np.roll(batches[name], 1)) for name in COUNTED], axis=1)


def _is_slice(batches: Columns) -> NDArray[np.bool_]:
    """Whether anything runs in a batch, and for a time."""
    return (batches["running"] > 0) & (batches["until_ps"] > batches["time_ps"])


def _events_of_calls(calls: Columns) -> Ints:
    """Beginnings and ends: of the call, its queueing, prefill and decoding, and beside its task of it and its tools."""
    queues = calls["admitted_ps"] > calls["submitted_ps"]
    decodes = calls["finished_ps"] > calls["first_token_ps"]
    tools = calls["tools_ps"] > calls["finished_ps"]
    slices: Ints = 2 + queues + decodes + calls["own"] * (1 + tools)
    return 2 * slices


def _cut(begins: Ints, events: Ints, room: int) -> int | None:
    """The first time at which something begins that does not fit; None if all does."""
    order = np.argsort(begins, kind="stable")
    total = np.cumsum(events[order])
    if not len(total) or total[-1] <= room:
        return None
    return int(begins[order][np.searchsorted(total, room, side="right")])


def lanes(groups: Ints, begins: Ints, ends: Ints) -> Ints:
    """The lane of each interval within its group: the lowest that is free, in order of the beginnings.

    An interval may begin where another one of its lane ends.
    """
    found = np.zeros(len(begins), dtype=np.int64)
    starts, stops, numbers = begins.tolist(), ends.tolist(), groups.tolist()
    taken: list[tuple[int, int]] = []  # end and lane
    free: list[int] = []
    group: int | None = None
    for row in np.lexsort((begins, groups)).tolist():
        if numbers[row] != group:
            group, taken, free = numbers[row], [], []
        while taken and taken[0][0] <= starts[row]:
            heappush(free, heappop(taken)[1])
        lane = heappop(free) if free else len(taken)
        heappush(taken, (max(stops[row], starts[row] + 1), lane))
        found[row] = lane
    return found
