"""When tasks arrive: as recorded, all at once, or as a Poisson stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from sagasim.core import MAX_DURATION_PS, Task, with_arrival
from sagasim.errors import ConfigError, TraceError, nearest
from sagasim.rng import Stream
from sagasim.units import ps_from_s

__all__ = ["KINDS", "assign"]

KINDS = ("at-once", "poisson", "recorded")


def assign(tasks: Iterable[Task], kind: str, *, rate_per_s: float | None = None, seed: int = 0) -> Iterator[Task]:
    """The tasks with their arrival times, in the order of arrival.

    recorded: the times of the source, ties in the order of the tasks; holds all tasks in memory; TraceError if a task
    has none. at-once: all at 0. poisson: in the order of the tasks, gaps drawn with mean 1 / rate_per_s from the stream
    "arrivals", the first gap before the first task. ConfigError for an unknown kind or a rate that makes no sense.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown arrivals {kind!r}", expected=nearest(kind, KINDS))
    if kind == "poisson":
        if rate_per_s is None or not 0 < rate_per_s < math.inf:
            raise ConfigError(
                f"a rate of {rate_per_s} tasks per second", expected="poisson arrivals with a rate above 0"
            )
        return _poisson(tasks, rate_per_s, Stream(seed, "arrivals"))
    if rate_per_s is not None:
        raise ConfigError(f"a rate with {kind} arrivals", expected="a rate with poisson arrivals only")
    return _recorded(tasks) if kind == "recorded" else (with_arrival(task, 0) for task in tasks)


def _poisson(tasks: Iterable[Task], rate_per_s: float, stream: Stream) -> Iterator[Task]:
    now_s = 0.0
    for task in tasks:
        now_s += stream.exponential(1.0 / rate_per_s)
        arrival_ps = ps_from_s(now_s) if now_s < 1e9 else MAX_DURATION_PS + 1
        if arrival_ps > MAX_DURATION_PS:
            expected = f"a rate at which all tasks arrive within {MAX_DURATION_PS // 10**12} s"
            raise ConfigError(f"task {task.name!r} arrives after {now_s:.0f} s", expected=expected)
        yield with_arrival(task, arrival_ps)


def _recorded(tasks: Iterable[Task]) -> Iterator[Task]:
    timed = []
    for task in tasks:
        if task.arrival_ps is None:
            expected = "at-once or poisson arrivals, or a trace with arrival times"
            raise TraceError("no recorded arrival", where=f"task {task.name!r}", expected=expected)
        timed.append((task.arrival_ps, task))
    timed.sort(key=lambda pair: pair[0])
    return (task for _, task in timed)
