"""A timeline read back with the classes that Perfetto publishes, as slices, counters and flows."""

from __future__ import annotations

import gzip
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto

from sagasim.config import resolve
from sagasim.simulate import Result, simulate
from sagasim.timeline import Drawn, write_timeline
from sagasim.work import prepare

EVENT = perfetto.TrackEvent


@dataclass(eq=False)
class Slice:
    track: int
    name: str
    begin: int  # ns
    order: int  # of its beginning among all events
    args: dict[str, Any]
    sends: list[int]  # flows that go on
    ends: list[int]  # flows that end here
    parent: Slice | None
    children: list[Slice] = field(default_factory=list)
    end: int = -1

    def phases(self) -> dict[str, tuple[int, int]]:
        return {child.name: (child.begin, child.end) for child in self.children}


class Timeline:
    """tracks: descriptors by number. slices: in order of their beginnings. counters: time and value, by track;
    evictions: time and blocks."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        trace = perfetto.Trace()
        trace.ParseFromString(gzip.decompress(data) if path.suffix == ".gz" else data)
        size = trace.ByteSize()
        trace.DiscardUnknownFields()
        assert trace.ByteSize() == size  # every field is one that Perfetto knows
        self.tracks: dict[int, Any] = {}
        self.slices: list[Slice] = []
        self.counters: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.evictions: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.events = 0
        self._open: dict[int, list[Slice]] = defaultdict(list)
        self._now = 0
        for packet in trace.packet:
            assert packet.trusted_packet_sequence_id == 1
            if packet.HasField("track_descriptor"):
                self._describe(packet.track_descriptor)
            else:
                self._event(packet.timestamp, packet.track_event)
        assert not any(self._open.values())  # whatever begins ends

    def _describe(self, track: Any) -> None:
        assert not self.events  # before all events
        assert track.uuid > 0
        assert track.uuid not in self.tracks
        assert track.name
        assert track.parent_uuid in {0, *self.tracks}
        self.tracks[track.uuid] = track

    def _event(self, time: int, event: Any) -> None:
        assert time >= self._now
        self._now, self.events = time, self.events + 1
        track = self.tracks[event.track_uuid]
        assert track.HasField("counter") == (event.type == EVENT.TYPE_COUNTER)
        stack = self._open[event.track_uuid]
        if event.type == EVENT.TYPE_INSTANT:
            (blocks,) = [a.int_value for a in event.debug_annotations if a.name == "blocks"]
            assert event.name == f"evicted {blocks:,} blocks"
            self.evictions[event.track_uuid].append((time, blocks))
        elif event.type == EVENT.TYPE_COUNTER:
            self.counters[event.track_uuid].append((time, event.counter_value))
        elif event.type == EVENT.TYPE_SLICE_END:
            stack.pop().end = time
        else:
            assert event.type == EVENT.TYPE_SLICE_BEGIN
            args = {
                a.name: a.string_value if a.HasField("string_value") else a.int_value for a in event.debug_annotations
            }
            flows = [*event.flow_ids], [*event.terminating_flow_ids]
            parent = stack[-1] if stack else None
            found = Slice(event.track_uuid, event.name, time, len(self.slices), args, *flows, parent)
            if parent is not None:
                parent.children.append(found)
            stack.append(found)
            self.slices.append(found)

    def path(self, track: int) -> str:
        """Names of a track and those above it: `replica 0 (node 0)/calls`."""
        found = self.tracks[track]
        return (self.path(found.parent_uuid) + "/" if found.parent_uuid else "") + found.name

    def on(self, end: str, *, outer: bool = True) -> list[Slice]:
        """Slices, by default outermost ones, on tracks whose path ends so."""
        return [s for s in self.slices if self.path(s.track).endswith(end) and (s.parent is None or not outer)]

    def arrows(self) -> dict[int, list[Slice]]:
        """The slices of every flow in order."""
        found: dict[int, list[Slice]] = defaultdict(list)
        for one in self.slices:
            for number in (*one.sends, *one.ends):
                found[number].append(one)
        return found


@cache
def small() -> Result:
    """Agents on two replicas with little memory: stolen calls, evictions to host memory, reloads."""
    given = {"workload": "swe-bench", "tasks": 12, "gpus": 8, "preset": "saga", "rate_per_min": 60.0}
    config = resolve({**given, "num_gpu_blocks_override": 8200, "max_num_seqs": 2})
    work = prepare(config)
    return simulate(work.config, work.tasks)


def drawn(result: Result, folder: Path, name: str = "t.pftrace", **options: Any) -> tuple[Timeline, Drawn]:
    path = folder / name
    path.unlink(missing_ok=True)
    told = write_timeline(result, path, **options)
    timeline = Timeline(path)
    assert timeline.events == told.events
    return timeline, told
