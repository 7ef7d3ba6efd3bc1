"""The tracks, slices and counters of a timeline, and its events in order of time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sagasim.eventlog import KINDS_OF_TRANSFERS
from sagasim.hardware import load_gpu
from sagasim.simulate import Result
from sagasim.timeline_rows import COUNTED, Rows, lanes
from sagasim.timeline_wire import argument, begin, counter, end, flow, flow_end, instant, packet, track

__all__ = ["Picture"]

Ints = NDArray[np.int64]
_PS_PER_NS, _PS_PER_US = 1000, 10**6
_CHUNK = 1 << 16  # events made at a time

# Kinds of slices, outer ones first: so begin those of one time on one track. Ends need no order: the innermost ends.
_KINDS = range(12)
_RUN, _REPLICA, _TASK, _TASK_CALL, _TOOLS, _SOURCE, _TARGET, _BATCH, _CALL, _QUEUE, _PREFILL, _DECODE = _KINDS
_PHASES = {_TOOLS: "tools", _QUEUE: "queue", _PREFILL: "prefill", _DECODE: "decode"}
# At one time: first all that ends, then counters, then all that begins, then what takes no time, and last what ends as
# it begins.
_ENDS, _COUNTS, _BEGINS, _HAPPENS, _ENDS_AT_ONCE = range(5)
_LINK, _STRAND, _COPY = (kind << 40 for kind in (1, 2, 3))  # flows: a task's call to its replica, to the next, KV

_COUNTERS = (  # as COUNTED: names and units
    ("KV blocks held", "blocks"),
    ("KV blocks cached and idle", "blocks"),
    ("calls waiting", "calls"),
    ("calls running", "calls"),
)
_COPIES = len(_COUNTERS) + 1  # places below a replica: calls, counters, copies
_MOVED = {"steal": "stolen call's KV", "write_back": "evicted KV", "reload": "reloaded KV", "prefetch": "prefetched KV"}
_OF_REPLICAS = ("num_blocks", "calls", "steps", "evicted_blocks", "prefetched_blocks", "preemptions", "in_flight")
_OF_CALLS = ("prompt_tokens", "hit_tokens", "output_tokens")
_OF_SOME_CALLS = (  # told where they are not 0
    "preemptions",
    "regenerated_here_tokens",
    "regenerated_elsewhere_tokens",
    "carried_tokens",
    "reloaded_tokens",
)


class _Tracks:
    """Numbers of tracks, and the packets that describe them."""

    def __init__(self) -> None:
        self.packets: list[bytes] = []

    def add(self, name: str, parent: int = 0, place: int = 0, unit: str | None = None) -> int:
        number = len(self.packets) + 1
        self.packets.append(track(number, name, parent, place, unit))
        return number

    def of_lanes(self, names: Mapping[int, tuple[str, int, int]], groups: Ints, found: Ints) -> Ints:
        """The track of each interval: one for each lane of a group, all of the name, parent and place of the group."""
        keys, which = np.unique(np.stack([groups, found]), axis=1, return_inverse=True)
        made = [self.add(*names[group]) for group in keys[0].tolist()]
        return np.array(made, dtype=np.int64)[which.reshape(-1)]


class Picture:
    """All that a timeline shows. count: beginnings, ends and values. notes: arguments of the run."""

    def __init__(self, result: Result, rows: Rows, title: str, notes: Mapping[str, str]) -> None:
        self._result = result
        self._rows = rows
        self._texts = _Texts(result, rows, title, notes)
        self._tracks = _Tracks()
        self._slices: list[tuple[Ints, ...]] = []  # columns: kind, row, track, begin, end
        nodes = result.replicas["replica"] * result.config.tp // load_gpu(result.config.gpu).node_size
        digits = len(str(len(nodes) - 1))  # what has no parent is listed by name
        run = self._tracks.add("run")
        self._replicas = [
            self._tracks.add(f"replica {number:0{digits}} (node {node})") for number, node in enumerate(nodes.tolist())
        ]
        lasting = rows.begin_ps, rows.end_ps
        self._add(_RUN, np.zeros(1, dtype=np.int64), run, *lasting)
        self._add(_REPLICA, result.replicas["replica"], np.array(self._replicas), *lasting)
        self._add_calls()
        self._add_batches()
        self._add_transfers()
        self._add_tasks()
        self._kinds, self._row, self._track, begins, ends = (
            np.concatenate(column) for column in zip(*self._slices, strict=True)
        )
        self._times, self._phases, self._refs = self._in_order(begins, ends)
        self.count = len(self._times)

    def packets(self) -> Iterator[bytes]:
        """The whole trace: what describes the tracks, then all events in order of time."""
        yield from self._tracks.packets
        kinds, rows, tracks = self._kinds.tolist(), self._row.tolist(), self._track.tolist()
        values, evicting, text = self._values.tolist(), self._evicting.tolist(), self._texts.of
        for start in range(0, self.count, _CHUNK):
            part = slice(start, start + _CHUNK)
            events = zip(*(a[part].tolist() for a in (self._times, self._phases, self._refs)), strict=True)
            for time, phase, ref in events:
                if phase == _COUNTS:
                    yield packet(time // _PS_PER_NS, counter(*values[ref]))
                elif phase == _HAPPENS:
                    yield packet(time // _PS_PER_NS, instant(*self._texts.evicted(evicting[ref], self._replicas)))
                elif phase == _BEGINS:
                    yield packet(time // _PS_PER_NS, begin(tracks[ref], *text(kinds[ref], rows[ref])))
                else:
                    yield packet(time // _PS_PER_NS, end(tracks[ref]))

    def _in_order(self, begins: Ints, ends: Ints) -> tuple[Ints, Ints, Ints]:
        """Time, phase and number (of a slice, a counter's value or an eviction) of every event."""
        number, values, evicting = (np.arange(len(of)) for of in (begins, self._values, self._evicting))
        last = np.where(ends > begins, _ENDS, _ENDS_AT_ONCE)
        times = np.concatenate([begins, ends, self._value_times, self._rows.batches["time_ps"][self._evicting]])
        happens = np.full(len(evicting), _HAPPENS)
        phases = np.concatenate([np.full(len(begins), _BEGINS), last, np.full(len(values), _COUNTS), happens])
        alone = np.zeros(len(values) + len(evicting), dtype=np.int64)
        nested = np.concatenate([self._kinds, self._kinds, alone])
        refs = np.concatenate([number, number, values, evicting])
        order = np.lexsort((refs, nested, phases, times))
        return times[order], phases[order], refs[order]

    # ---- what is on the tracks

    def _add(self, kind: int, rows: Ints, tracks: Ints | int, begins: Ints | int, ends: Ints | int) -> None:
        whole = (np.broadcast_to(column, rows.shape) for column in (kind, rows, tracks, begins, ends))
        self._slices.append(tuple(whole))

    def _add_some(self, kind: int, rows: Ints, tracks: Ints, begins: Ints, ends: Ints) -> None:
        """Only those that last."""
        some = ends > begins
        self._add(kind, rows[some], tracks[some], begins[some], ends[some])

    def _add_calls(self) -> None:
        calls = self._rows.calls
        sent, admitted, first, done = (
            calls[name] for name in ("submitted_ps", "admitted_ps", "first_token_ps", "finished_ps")
        )
        names = {number: ("calls", parent, 0) for number, parent in enumerate(self._replicas)}
        tracks = self._tracks.of_lanes(names, calls["replica"], lanes(calls["replica"], sent, done))
        rows = np.arange(len(sent))
        self._add(_CALL, rows, tracks, sent, done)
        self._add_some(_QUEUE, rows, tracks, sent, admitted)
        self._add(_PREFILL, rows, tracks, admitted, first)
        self._add_some(_DECODE, rows, tracks, first, done)

    def _add_batches(self) -> None:
        """Slices on the replicas' own tracks while anything runs, evictions among them, and the counters below."""
        batches, changed = self._rows.batches, self._rows.changed
        runs = np.flatnonzero(batches["running"] > 0)
        tracks = np.array(self._replicas)[batches["replica"]]
        self._add_some(_BATCH, runs, tracks[runs], batches["time_ps"][runs], batches["until_ps"][runs])
        counters = np.array(
            [
                [self._tracks.add(name, parent, place, unit) for place, (name, unit) in enumerate(_COUNTERS, 1)]
                for parent in self._replicas
            ]
        )
        self._evicting = np.flatnonzero(batches["evicted"] > 0)
        rows, which = np.nonzero(changed)
        all_values = np.stack([batches[name] for name in COUNTED], axis=1)
        self._value_times = batches["time_ps"][rows]
        self._values = np.stack([counters[batches["replica"][rows], which], all_values[rows, which]], axis=1)

    def _add_transfers(self) -> None:
        moved = self._rows.transfers
        rows = np.arange(len(moved["kind"]))
        places = np.concatenate([moved["source"], moved["target"]])
        begins, ends = (np.tile(moved[name], 2) for name in ("started_ps", "ended_ps"))
        names = {number: ("KV copies", parent, _COPIES) for number, parent in enumerate(self._replicas)}
        names |= {int(place): (f"host memory of node {-1 - place}", 0, 0) for place in np.unique(places) if place < 0}
        tracks = self._tracks.of_lanes(names, places, lanes(places, begins, ends))
        for kind, found in ((_SOURCE, tracks[: len(rows)]), (_TARGET, tracks[len(rows) :])):
            self._add(kind, rows, found, moved["started_ps"], moved["ended_ps"])

    def _add_tasks(self) -> None:
        calls, tasks = self._rows.calls, self._rows.tasks
        numbers = tasks["task"].tolist()
        if not numbers:
            return
        parent = self._tracks.add("tasks")
        named = [(self._texts.task(number), parent, place) for place, number in enumerate(numbers)]
        own = [self._tracks.add(*name) for name in named]
        self._add(_TASK, np.arange(len(numbers)), np.array(own), tasks["arrival_ps"], tasks["until_ps"])
        rows = np.flatnonzero(calls["own"])
        place, strand = np.searchsorted(tasks["task"], calls["task"][rows]), calls["strand"][rows]
        beside = np.flatnonzero(strand)  # calls at the same time as others of their task have tracks of the same name
        tracks = np.array(own)[place]
        if len(beside):
            tracks[beside] = self._tracks.of_lanes(dict(enumerate(named)), place[beside], strand[beside])
        done, tools = calls["finished_ps"][rows], calls["tools_ps"][rows]
        self._add(_TASK_CALL, rows, tracks, calls["submitted_ps"][rows], done)
        self._add_some(_TOOLS, rows, tracks, done, tools)


class _Texts:
    """Names, arguments and flows of slices by kind and row."""

    def __init__(self, result: Result, rows: Rows, title: str, notes: Mapping[str, str]) -> None:
        self._names = result.task_names
        self._tenants = result.tenants
        self._title = title
        self._notes = notes
        self._tenant_of = dict(zip(result.tasks["task"].tolist(), result.tasks["tenant"].tolist(), strict=True))
        self._calls, self._batches, self._tasks, self._moved, self._replicas = (
            {name: column.tolist() for name, column in columns.items()}
            for columns in (rows.calls, rows.batches, rows.tasks, rows.transfers, result.replicas)
        )

    def task(self, number: int) -> str:
        return f"task {number}: {self._names[number]}"

    def of(self, kind: int, row: int) -> tuple[str, bytes]:
        if kind in _PHASES:
            return _PHASES[kind], b""
        if kind in (_CALL, _TASK_CALL):
            return self._call(kind, row)
        if kind in (_SOURCE, _TARGET):
            return self._transfer(kind, row)
        return {_BATCH: self._batch, _TASK: self._task, _REPLICA: self._replica, _RUN: self._run}[kind](row)

    def _call(self, kind: int, row: int) -> tuple[str, bytes]:
        """On its replica with all that is known of it, on its task's track with where it ran."""
        calls = self._calls
        task, replica, link = calls["task"][row], calls["replica"][row], _LINK | row
        if kind == _TASK_CALL:
            return f"call {calls['call'][row]}", argument("replica", replica) + flow(link)
        parts = [argument("task", self._names[task]), argument("tenant", self._tenants[self._tenant_of[task]])]
        parts += [argument(name, calls[name][row]) for name in _OF_CALLS]
        parts += [argument(name, calls[name][row]) for name in _OF_SOME_CALLS if calls[name][row]]
        if calls["own"][row]:
            parts.append(flow_end(link))
        if calls["chain"][row]:
            parts.append((flow_end if calls["last"][row] else flow)(_STRAND | calls["chain"][row]))
        return f"{self._names[task]} call {calls['call'][row]}", b"".join(parts)

    def _batch(self, row: int) -> tuple[str, bytes]:
        values = {name: self._batches[name][row] for name in COUNTED}
        waiting = f", {values['waiting']} waiting" if values["waiting"] else ""
        values["steps"] = self._batches["decided"][row]
        return f"{values['running']} running{waiting}", b"".join(argument(*value) for value in values.items())

    def evicted(self, row: int, tracks: Sequence[int]) -> tuple[int, str, bytes]:
        """An eviction: the track of its replica, name and arguments."""
        blocks = self._batches["evicted"][row]
        return tracks[self._batches["replica"][row]], f"evicted {blocks:,} blocks", argument("blocks", blocks)

    def _transfer(self, kind: int, row: int) -> tuple[str, bytes]:
        moved = self._moved
        word = _MOVED[KINDS_OF_TRANSFERS[moved["kind"][row]]]
        there = moved["target" if kind == _SOURCE else "source"][row]
        place = f"replica {there}" if there >= 0 else f"host memory of node {-1 - there}"
        parts = [argument("bytes", moved["bytes"][row])]
        if moved["task"][row] >= 0:
            parts.append(argument("task", self._names[moved["task"][row]]))
        parts.append((flow if kind == _SOURCE else flow_end)(_COPY | row))
        cancelled = " (cancelled)" if moved["cancelled"][row] else ""
        return f"{word} {'to' if kind == _SOURCE else 'from'} {place}{cancelled}", b"".join(parts)

    def _task(self, row: int) -> tuple[str, bytes]:
        tasks = self._tasks
        unfinished = " (unfinished)" if tasks["finished_ps"][row] < 0 else ""
        parts = [argument(name, tasks[name][row]) for name in ("calls", "prompt_tokens", "output_tokens")]
        parts.append(argument("tenant", self._tenants[tasks["tenant"][row]]))
        return self._names[tasks["task"][row]] + unfinished, b"".join(parts)

    def _replica(self, row: int) -> tuple[str, bytes]:
        values = {name: self._replicas[name][row] for name in _OF_REPLICAS}
        values["busy_us"] = self._replicas["busy_ps"][row] // _PS_PER_US
        name = f"replica {row}: {values['calls']:,} calls, {values['steps']:,} steps"
        return name, b"".join(argument(*value) for value in values.items())

    def _run(self, row: int) -> tuple[str, bytes]:
        del row
        return self._title, b"".join(argument(*note) for note in self._notes.items())
