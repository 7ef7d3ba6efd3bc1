"""When tasks arrive: as recorded, all at once, or as a stream of a given rate.

recorded   the times of the source, times `time_scale`
at-once    all at 0
poisson    exponential gaps
bursty     Gamma gaps with a coefficient of variation (1 is poisson, above it tasks come in bunches)
diurnal    poisson, the rate swinging as a sine: rate * (1 + amplitude * sin(2 pi t / period)), begun at its mean
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from sagasim.config import RATED, Config
from sagasim.core import MAX_DURATION_PS, Task, with_arrival
from sagasim.errors import ConfigError, TraceError
from sagasim.rng import Stream
from sagasim.units import PS_PER_US, ps_from_s

__all__ = ["arriving", "in_order"]


def arriving(tasks: Iterable[Task], config: Config, stream: str = "arrivals") -> Iterator[Task]:
    """The tasks with the arrival times that a resolved configuration says, in the order of arrival.

    Recorded arrivals must be there and in order; those of a closed loop come as others end, in the order given. With a
    rate, gaps are drawn from the random stream of that name, the first one before the first task. Raises TraceError, or
    ConfigError if the tasks would arrive too late to be simulated.
    """
    if config.arrivals == "closed":
        return iter(tasks)
    if config.arrivals == "at-once":
        return (with_arrival(task, 0) for task in tasks)
    if config.arrivals in RATED:
        return _timed(tasks, config, _times_s(config, Stream(config.seed, stream)))
    return _recorded(tasks, config.time_scale)


def in_order(tasks: list[Task]) -> list[Task]:
    """Tasks sorted by their recorded arrivals, if all have one; ties stay as they are."""
    if any(task.arrival_ps is None for task in tasks):
        return tasks
    return sorted(tasks, key=lambda task: task.arrival_ps or 0)


def _recorded(tasks: Iterable[Task], scale: float) -> Iterator[Task]:
    last = 0
    for task in tasks:
        if task.arrival_ps is None:
            expected = "other arrivals, or a trace with arrival times"
            raise TraceError("no recorded arrival", where=f"task {task.name!r}", expected=expected)
        arrival_ps = task.arrival_ps if scale == 1.0 else round(task.arrival_ps // PS_PER_US * scale) * PS_PER_US
        if arrival_ps < last:
            expected = "a long trace in the order of arrival: it is not held in memory to be sorted"
            raise TraceError("arrives before the task ahead of it", where=f"task {task.name!r}", expected=expected)
        last = arrival_ps
        yield _arrived(task, arrival_ps)


def _timed(tasks: Iterable[Task], config: Config, times_s: Iterator[float]) -> Iterator[Task]:
    assert config.rate_per_min is not None
    for task in tasks:
        now_s = next(times_s) * 60 / config.rate_per_min
        yield _arrived(task, ps_from_s(now_s) if now_s < 1e9 else MAX_DURATION_PS + 1)


def _arrived(task: Task, arrival_ps: int) -> Task:
    if arrival_ps > MAX_DURATION_PS:
        expected = f"a rate or scale with which all tasks arrive within {MAX_DURATION_PS // 10**12} s"
        raise ConfigError(f"task {task.name!r} arrives too late", where="arrivals", expected=expected)
    return with_arrival(task, arrival_ps)


def _times_s(config: Config, stream: Stream) -> Iterator[float]:
    """Arrival times in units of the mean gap, without end."""
    if config.arrivals == "diurnal":
        assert config.rate_per_min is not None
        return _diurnal(stream, config.diurnal_period_s * config.rate_per_min / 60, config.diurnal_amplitude)
    return _renewal(stream, 1.0 if config.arrivals == "poisson" else config.arrival_cv)


def _renewal(stream: Stream, cv: float) -> Iterator[float]:
    """Gamma gaps of mean 1: shape 1 / cv^2."""
    now = 0.0
    while True:
        now += stream.exponential(1.0) if cv == 1.0 else cv * cv * stream.gamma(1.0 / (cv * cv))
        yield now


def _diurnal(stream: Stream, period: float, amplitude: float) -> Iterator[float]:
    """Thinning (Lewis and Shedler 1979): candidates at the largest rate, kept in proportion to that of the moment."""
    now, most = 0.0, 1.0 + amplitude
    while True:
        now += stream.exponential(1.0 / most)
        if stream.uniform() * most < 1.0 + amplitude * math.sin(2 * math.pi * now / period):
            yield now
