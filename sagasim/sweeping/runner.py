"""run_sweep: the points that have no result yet, each run and kept at once. merge_sweeps: several folders as one."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim.errors import ConfigError, ResultsError, nearest
from sagasim.sweeping.local import Engine, LocalEngine
from sagasim.sweeping.on_ray import RayEngine, check_cluster
from sagasim.sweeping.points import Failure, Fingerprints, Point, planned
from sagasim.sweeping.spec import expand, read_spec
from sagasim.sweeping.store import Entry, Folder, entries, locked
from sagasim.sweeping.table import content_digest, labels, read_results, results_table, write_table
from sagasim.sweeping.worker import Outcome, measure, measure_capacity

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ENGINES", "Progress", "Swept", "merge_sweeps", "run_sweep"]

ENGINES = ("local", "ray")
_TICK_S = 0.5  # how often progress is told at least
_MOST_JOBS = 10_000


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep is. points: all of them; done: with a result; failed: without one; per_s: of this very call."""

    points: int
    done: int
    failed: int
    per_s: float | None
    left_s: float | None


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep that ended. points: all of them; done: rows of the table; ran: those of them that are new.

    failed: points without a result; digest: of the content of the table, equal for equal sweeps.
    """

    folder: Path
    points: int
    done: int
    ran: int
    failed: list[Failure]
    digest: str

    def table(self) -> pa.Table:
        """The results, one row for each point."""
        return read_results(self.folder)


def run_sweep(
    spec: Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    jobs: int | None = None,
    engine: str = "local",
    address: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Swept:
    """Run all points of a sweep that have no result in the folder `out` yet, and write the table of all.

    spec: a TOML file, or what such a file says as a mapping; see docs/sweeps.md. jobs: points at a time (default: one
    for each CPU). engine: "local" processes, or "ray" with the `address` of its cluster. progress: is told at least
    every half second how far it is. Ends early by any exception, KeyboardInterrupt included, with every finished point
    kept: the same call goes on from there.

    Raises ConfigError and its like for a mistake in the sweep, before anything is written; ResultsError if the folder
    cannot be used or the disk is full. A point that fails is listed in the Swept, and runs again next time.
    """
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine {engine!r}", where="engine", expected=nearest(engine, ENGINES))
    if address is not None and engine != "ray":
        raise ConfigError("local workers have no address", where="address", expected="the ray engine")
    if jobs is not None and not 1 <= jobs <= _MOST_JOBS:
        expected = f"a whole number from 1 to {_MOST_JOBS}"
        raise ConfigError(f"{jobs} is out of range", where="jobs", expected=expected)
    if engine == "ray":
        check_cluster(address)
    content, where = (spec, "sweep") if isinstance(spec, Mapping) else (read_spec(spec), str(spec))
    points, failures = planned(expand(content, where))
    with locked(out) as folder:
        folder.write_spec(points)
        todo = [point for point in points if folder.result(point.hash) is None]
        state = _State(folder, points, len(todo), failures, progress or (lambda _: None))
        if todo:
            count = min(jobs or _cpus(), len(todo))
            with closing(LocalEngine(count) if engine == "local" else RayEngine(address, jobs)) as workers:
                _run(workers, todo, state)
        folder.write_failures(failures)
        found = [Entry(point.hash, point.base | point.own, point.label) for point in points]
        return _finish(folder, found, len(points) + state.impossible, state.ran, failures)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(slots=True)
class _State:
    """What has been done so far."""

    folder: Folder
    points: Sequence[Point]
    todo: int
    failures: list[Failure]
    tell: Callable[[Progress], None]
    ran: int = 0
    started: float = field(default_factory=time.monotonic)
    impossible: int = field(init=False)
    names: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.impossible = len(self.failures)
        told = labels([(p.label, p.base | p.own) for p in self.points])
        self.names = {point.hash: name for point, name in zip(self.points, told, strict=True)}

    def ended(self, point: Point, outcome: Outcome) -> None:
        """Keep what came of a point."""
        if outcome.reason is None:
            self.folder.store(point.hash, outcome.value)
            self.ran += 1
        else:
            name = self.names[point.hash]
            self.failures.append(Failure(point.hash, name, point.config.seed, outcome.reason))

    def show(self) -> None:
        """Tell how far it is."""
        failed = len(self.failures) - self.impossible
        ended = self.ran + failed
        seconds = time.monotonic() - self.started
        per_s = ended / seconds if ended and seconds > 0 else None
        left_s = (self.todo - ended) / per_s if per_s else None
        done = len(self.points) - self.todo + self.ran
        self.tell(Progress(len(self.points) + self.impossible, done, len(self.failures), per_s, left_s))


def _run(workers: Engine, todo: Sequence[Point], state: _State) -> None:
    """Every point once; those with a load when the capacity that it is a fraction of is known, measured once each."""
    waiting: dict[str, list[Point]] = {}
    prints = Fingerprints()
    ready: deque[tuple[str, Callable[..., Any], tuple[Any, ...]]] = deque()
    by_hash = {point.hash: point for point in todo}
    for point in sorted(todo, key=lambda point: repr(point.work)):  # those with the same tasks one after the other
        if point.work.load is not None and point.work.rate_per_min is None:
            waiting.setdefault(prints.of_capacity(point.work), []).append(point)
        else:
            ready.append((point.hash, measure, (point, None)))
    for key, points in waiting.items():
        ready.appendleft((key, measure_capacity, (points[0].work,)))
    left = len(ready)
    state.show()
    while left:
        while ready and workers.has_room():
            key, function, arguments = ready.popleft()
            workers.submit(key, function, *arguments)
        for key, outcome in workers.finished(_TICK_S):
            left -= 1
            if key in by_hash:
                state.ended(by_hash[key], outcome)
                continue
            for point in waiting.pop(key):
                if outcome.reason is None:
                    ready.append((point.hash, measure, (point, outcome.value)))
                    left += 1
                else:
                    state.ended(point, outcome)
        state.show()


def _finish(folder: Folder, found: Sequence[Entry], points: int, ran: int, failures: Sequence[Failure]) -> Swept:
    """Write the table of what there is."""
    rows = [(entry, body) for entry in found if (body := folder.result(entry.hash)) is not None]
    table = results_table(rows)
    folder.write(folder.path / "results.parquet", write_table(table))
    return Swept(folder.path, points, len(rows), ran, list(failures), content_digest(table))


def merge_sweeps(folders: Sequence[str | Path], out: str | Path) -> Swept:
    """The points of several folders in one, which may be new or hold a sweep already; torn files are left behind.

    `ran` of what is returned counts the points that are new in `out`. Raises ResultsError for a folder without a sweep,
    and if two folders have different results for the same point.
    """
    sources = {Path(folder).resolve(): entries(folder) for folder in folders}
    with locked(out) as folder:
        own = entries(folder.path) if (folder.path / "sweep.toml").exists() else []
        found = {entry.hash: entry for entry in (e for each in reversed([own, *sources.values()]) for e in each)}
        ran = 0
        for path, listed in sources.items():
            if path == folder.path.resolve():
                continue
            for entry in listed:
                ran += _take(Folder(path), folder, entry.hash)
        everything = sorted(found.values(), key=lambda entry: entry.hash)
        folder.write_entries(everything)
        return _finish(folder, everything, len(everything), ran, [])


def _take(source: Folder, target: Folder, point: str) -> bool:
    """Copy a point, unless it is there; whether it was copied."""
    theirs, ours = source.result(point), target.result(point)
    if theirs is None:
        return False
    if ours is None:
        target.store(point, {key: value for key, value in theirs.items() if key != "point"})
        return True
    if any(one != ours["summary"].get(name) for name, one in theirs["summary"].items() if name != "notes"):
        where = f"{source.path} and {target.path}"
        raise ResultsError(f"point {point} has two results", where=where, expected="the same of the same sweep")
    return False
