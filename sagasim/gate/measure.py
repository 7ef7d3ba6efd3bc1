"""The runs of a set, several at a time, and how far each metric moves when nothing but luck changes.

A twin of a run has the same tasks, each of which arrives up to a second later, but not after the next one; each call
is sent up to a millisecond later, and policies draw other random numbers. What the system does is the same, and still
the runs part at the first tie that is decided otherwise. How far the metrics of twins are apart is what a change
without a meaning does to them: they are as far apart as under a router that breaks its ties by chance.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import chdir, contextmanager
from dataclasses import dataclass, replace
from itertools import tee, zip_longest
from pathlib import Path
from typing import Any

from sagasim.config import Config
from sagasim.core import Task
from sagasim.errors import ConfigError, SagasimError, nearest
from sagasim.experiment import execute
from sagasim.gate.cases import CaseSet, Settings, within
from sagasim.metrics import flat
from sagasim.rng import Stream
from sagasim.units import PS_PER_S
from sagasim.work import Work, prepare

__all__ = [
    "CALL_LATER_PS",
    "LATER_PS",
    "Job",
    "Measured",
    "measure",
    "paired_sd",
    "run_job",
    "tolerance_factor",
    "twin",
    "with_rates",
]

Progress = Callable[[int, int], None]  # runs done, of how many

LATER_PS = PS_PER_S  # an arrival, at most; completion times count from the arrival, so this lengthens none
CALL_LATER_PS = PS_PER_S // 1000
_DIGITS = 16  # of a hash
_OTHER_SEEDS = 2**41  # those of a twin's policies begin here


@dataclass(frozen=True, slots=True)
class Job:
    """All runs of one case with one seed."""

    case: str
    config: Config
    metrics: tuple[str, ...]
    twins: int


@dataclass(frozen=True, slots=True)
class Measured:
    """What came of it. values: of each metric, the run's own first, then those of its twins; None: there is none.

    digest: of the run's log, its first 16 digits; work: hash of its tasks; tasks: where they come from.
    """

    digest: str
    work: str
    tasks: str
    values: Mapping[str, tuple[float | None, ...]]


def measure(cases: CaseSet, twins: int, folder: Path, jobs: int, progress: Progress) -> dict[str, list[Measured]]:
    """Every case by name, a result for each seed. Files named by cases are looked for from `folder` on.

    jobs: processes; 1 makes none. Raises what a run raises, naming the case.
    """
    metrics = tuple(cases.settings.metrics)
    with chdir(folder):
        wanted = [
            Job(name, cases.config(name, seed), metrics, twins) for name in cases.cases for seed in cases.settings.seeds
        ]
    done: dict[int, Measured] = {}
    for number, found in _alone(wanted, folder) if jobs == 1 else _side_by_side(wanted, folder, jobs):
        done[number] = found
        progress(len(done) * (1 + twins), len(wanted) * (1 + twins))
    out: dict[str, list[Measured]] = {name: [] for name in cases.cases}
    for number, job in enumerate(wanted):
        out[job.case].append(done[number])
    return out


def with_rates(cases: CaseSet, folder: Path) -> CaseSet:
    """The set with a rate in place of each load, so that the work stays the same when capacity changes."""
    rated = {}
    with chdir(folder):
        for name, keys in cases.cases.items():
            rated[name] = keys
            if "load" in keys and "rate_per_min" not in keys:
                rate = prepare(cases.config(name, cases.settings.seeds[0])).config.rate_per_min
                rated[name] = {**keys, "rate_per_min": rate}
    return replace(cases, cases=rated)


def _alone(jobs: Sequence[Job], folder: Path) -> Iterator[tuple[int, Measured]]:
    for number, job in enumerate(jobs):
        with chdir(folder):
            found = run_job(job)
        yield number, found


def _side_by_side(jobs: Sequence[Job], folder: Path, processes: int) -> Iterator[tuple[int, Measured]]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(jobs)), context, _enter, (str(folder),)) as pool:
        with _interrupts_held():  # new processes inherit that until they are ready
            started: dict[Future[Measured], int] = {pool.submit(run_job, job): n for n, job in enumerate(jobs)}
        try:
            for future in as_completed(started):
                yield started[future], future.result()
        except BrokenProcessPool:
            what = "a process has died, for want of memory perhaps"
            raise ConfigError(what, where=f"{processes} runs at a time", expected="--jobs 1") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until the end of the block, where the system can make it wait."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _enter(folder: str) -> None:
    """A new process: Ctrl-C ends it without a word, the first process says what there is to say."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    with _interrupts_held():
        os.chdir(folder)


def run_job(job: Job) -> Measured:
    """Simulate and measure a job in this process, files looked for from the current folder on."""
    try:
        work = prepare(job.config)
        twins = (twin(work, number + 1) for number in range(job.twins))
        runs = [execute(one).summary for one in (work, *twins)]
        values = {path: _values(runs, path) for path in job.metrics}
    except SagasimError as error:
        raise within(f"case {job.case!r}", error) from None
    return Measured(runs[0]["digest"][:_DIGITS], _hash(work.tasks), work.notes["tasks"], values)


def _values(runs: Sequence[Mapping[str, Any]], path: str) -> tuple[float | None, ...]:
    values: list[float | None] = []
    for numbers in ({name: value for name, value in flat(run) if not isinstance(value, str)} for run in runs):
        if path not in numbers:
            raise ConfigError(
                f"no number {path[:60]!r} in the summary", where="metrics", expected=nearest(path, numbers)
            )
        value = numbers[path]
        values.append(None if value is None else float(value))
    return tuple(values)


def twin(work: Work, number: int) -> Work:
    """The work of a twin: see above."""
    seed = work.config.seed
    return replace(work, tasks=_Late(work, number), config=replace(work.config, seed=seed + number * _OTHER_SEEDS))


class _Late:
    """Tasks that arrive, and whose calls are sent, a little later; the same whenever they are walked through."""

    def __init__(self, work: Work, number: int) -> None:
        self._tasks = work.tasks
        self._keys = (work.config.seed, "twin", number)

    def __iter__(self) -> Iterator[Task]:
        stream = Stream(*self._keys)
        for task, after in zip_longest(*_shifted(self._tasks)):
            calls = (replace(c, delay_ps=c.delay_ps + stream.integer(0, CALL_LATER_PS)) for c in task.calls)
            arrival_ps = task.arrival_ps
            if arrival_ps is not None:
                gap_ps = LATER_PS if after is None else (after.arrival_ps or 0) - arrival_ps
                arrival_ps += stream.integer(0, min(LATER_PS, gap_ps))
            yield replace(task, calls=tuple(calls), arrival_ps=arrival_ps)


def _shifted(tasks: Iterable[Task]) -> tuple[Iterator[Task], Iterator[Task]]:
    """The tasks, and those after them."""
    these, others = tee(tasks)
    next(others, None)
    return these, others


def _hash(tasks: Iterable[Task]) -> str:
    """What the tasks are and when they arrive, whatever else is ever noted of them."""
    sha = hashlib.sha256()
    for task in tasks:
        prefixes = [(p.name, p.new_tokens, p.extends, p.keep_tokens) for p in task.prefixes]
        sha.update(repr((task.name, task.tenant, task.agent, task.arrival_ps, prefixes)).encode())
        for c in task.calls:
            tools = [(tool.name, tool.duration_ps) for tool in c.tools]
            tokens = (c.new_tokens, c.output_tokens, c.extends, c.keep_tokens)
            sha.update(repr((c.name, c.agent, tokens, c.after, c.delay_ps, tools)).encode())
    return sha.hexdigest()[:_DIGITS]


def paired_sd(values: Sequence[Sequence[float]]) -> float:
    """Standard deviation of the difference of two runs of one seed. values: for each seed, of the run and its twins.

    The variance within seeds, pooled over them, with (number of twins) degrees of freedom each; a difference has twice
    that variance.
    """
    squares = []
    for own in values:
        mean = math.fsum(own) / len(own)
        squares += [(value - mean) ** 2 for value in own]
    freedom = sum(len(own) - 1 for own in values)
    return math.sqrt(2 * math.fsum(squares) / freedom)


def tolerance_factor(settings: Settings, cases: int) -> float:
    """By how many of its standard errors a mean over seeds may become worse.

    By luck alone, some metric of some case moves further in at most a part `level` of all gates: Student's t, with
    Bonferroni's correction.
    """
    from scipy import stats  # slow to import, and wanted by --update only

    tests = cases * len(settings.metrics)
    return float(stats.t.isf(settings.level / tests, len(settings.seeds) * settings.twins))
