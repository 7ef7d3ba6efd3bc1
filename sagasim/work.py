"""The work of a configuration: its tasks with their arrivals, and what had to be filled, extended or dropped.

prepare(config) -> Work(config, tasks, notes)        the same tasks for every preset that is compared
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sagasim.arrivals import arriving, in_order
from sagasim.capacity import backlog_config, capacity_config, capacity_per_min
from sagasim.config import Config
from sagasim.core import Task
from sagasim.errors import TraceError
from sagasim.hardware import load_model
from sagasim.metrics import rounded
from sagasim.seams import KINDS, option_files
from sagasim.sources import open_sources, shares
from sagasim.trace import LengthReport, Trace, over_length, take, trace_names
from sagasim.userfile import is_there

__all__ = ["FILES", "KEPT_CALLS", "SPECS", "Work", "capacity", "prepare", "with_whole_paths"]

Progress = Callable[[int, int], None]

SPECS = ("workload", *KINDS)  # keys that may name `./file.py:name`
FILES = ("turns", "gpu", "model", "calibration")  # keys that may name a file
_OF_THE_WORK = (
    "trace", "workload", "mix", "turns", "arrivals", "tasks", "max_model_len", "rate_per_min", "warmup", "cooldown",
)  # fmt: skip
KEPT_CALLS = 1_000_000  # tasks with more calls than this are read again for every run instead of being kept


@dataclass(frozen=True, slots=True)
class Work:
    """Tasks in the order of arrival, the configuration that they complete, and notes for reports.

    tasks can be walked through more than once; long traces are read anew each time.
    """

    config: Config
    tasks: Iterable[Task]
    notes: dict[str, str]

    def under(self, config: Config) -> Work:
        """The same tasks under another preset."""
        own = self.config
        same = replace(with_whole_paths(config), **{key: getattr(own, key) for key in _OF_THE_WORK})
        return replace(self, config=same)


class _Again:
    """Tasks that are read anew whenever they are walked through."""

    def __init__(self, read: Callable[[], Iterator[Task]]) -> None:
        self._read = read

    def __iter__(self) -> Iterator[Task]:
        return self._read()


@dataclass(slots=True)
class _Fitting:
    """What is known of the tasks after one walk: they themselves, unless they are too many to keep."""

    tasks: Iterable[Task]
    count: int = 0
    longest: int = 0
    timed: bool = True
    report: LengthReport = field(default_factory=LengthReport)


def prepare(config: Config, progress: Progress | None = None) -> Work:
    """Read or generate the tasks of a resolved configuration and let them arrive.

    Raises TraceError or ConfigError. A load is turned into a rate here, by a simulation of its own the first time.
    """
    source = open_sources(config)
    config = with_whole_paths(config)
    if config.load is not None and config.rate_per_min is None:
        config = replace(config, rate_per_min=rounded(config.load * capacity(config, progress)))
    fitting = _fit(config, source)
    config = _completed(config, fitting)
    notes = {f"filled {what}": text for what, text in source.filled.items()}
    notes["tasks"] = f"{source.name} ({source.format}), sha256 {source.sha256}"
    notes |= _length_notes(fitting.report, _limit(config), fitting.longest)
    tasks = fitting.tasks
    if isinstance(tasks, list):
        ordered = in_order(tasks) if config.arrivals == "recorded" else tasks
        return Work(config, list(arriving(ordered, config)), notes)
    return Work(config, _Again(lambda: arriving(tasks, config)), notes)


def with_whole_paths(config: Config) -> Config:
    """The configuration with whole paths where it names files, so that config.toml is read from any folder."""
    changed: dict[str, Any] = {key: _anywhere(getattr(config, key)) for key in (*SPECS, *FILES)}
    if config.trace is not None and config.trace not in trace_names():
        changed["trace"] = str(Path(config.trace).resolve())
    if config.mix is not None:
        changed["mix"] = "+".join(f"{_anywhere(name)}@{weight:g}" for name, weight in shares(config.mix, "mix").items())
    return replace(config, **changed)


def _anywhere(named: str | None) -> str | None:
    """A file, or a specification `./file.py:name` and files among its options, by whole paths; others as they are."""
    for file in option_files(named or ""):
        named = f"{named}".replace(f"={file}", f"={Path(file).resolve()}")
    path, colon, rest = (named or "").rpartition(".py:")
    if colon:
        return f"{Path(path).resolve()}.py:{rest}"
    return str(Path(named).resolve()) if named and is_there(Path(named)) and Path(named).is_file() else named


def capacity(config: Config, progress: Progress | None = None) -> float:
    """Tasks a minute of this workload on this cluster; from the cache if it was measured before."""
    fixed = capacity_config(config)
    source = open_sources(fixed)

    def backlog() -> tuple[Config, Iterable[Task]]:
        sample = _fit(fixed, source)
        wanted = backlog_config(fixed, _completed(fixed, sample), sample.tasks)
        fitting = _fit(wanted, open_sources(wanted))
        return _completed(wanted, fitting), fitting.tasks

    return capacity_per_min(fixed, source.sha256, backlog, progress)


def _completed(config: Config, fitting: _Fitting) -> Config:
    """The configuration with what only the tasks can tell."""
    if config.arrivals == "auto":
        config = replace(config, arrivals="recorded" if fitting.timed else "at-once")
    return replace(
        config,
        tasks=fitting.count + fitting.report.dropped,
        max_model_len=max(config.max_model_len or 0, fitting.longest),
    )


def _limit(config: Config) -> int:
    if config.over_length == "extend":  # counted against the model itself, also when the run is repeated
        return load_model(config.model).max_model_len
    return config.max_model_len or 0


def _fit(config: Config, source: Trace) -> _Fitting:
    """As many tasks as asked for, those beyond the model's length treated as asked for."""

    def read(report: LengthReport) -> Iterator[Task]:
        stream = source.tasks(config.seed) if config.tasks is None else take(source, config.tasks, config.seed)
        return over_length(stream, _limit(config), config.over_length, report)  # type: ignore[arg-type]

    fitting = _Fitting(tasks=[])
    kept: list[Task] | None = []
    calls = 0
    for task in read(fitting.report):
        fitting.count += 1
        fitting.longest = max(fitting.longest, task.max_tokens)
        fitting.timed = fitting.timed and task.arrival_ps is not None
        if kept is not None:
            kept.append(task)
            calls += len(task.calls)
            if calls > KEPT_CALLS:
                kept = None
    if not fitting.count:
        raise TraceError("no task is left", where=source.name, expected="tasks that fit, or over_length = extend")
    fitting.tasks = _Again(lambda: read(LengthReport())) if kept is None else kept
    return fitting


def _length_notes(report: LengthReport, limit: int, longest: int) -> dict[str, str]:
    notes = {}
    if report.extended:
        text = f"{report.extended} tasks are longer than {limit:,} tokens; the model's length is taken as {longest:,}"
        notes["extended"] = text
    if report.truncated:
        notes["truncated"] = f"{report.truncated} tasks, by {report.calls_cut} calls beyond {limit:,} tokens"
    if report.dropped:
        notes["dropped"] = f"{report.dropped} tasks longer than {limit:,} tokens"
    return notes
