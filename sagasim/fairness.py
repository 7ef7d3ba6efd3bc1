"""How far the tenants' parts of the service are from their Agent Fair Shares, window by window; a function of the log.

In a window, a tenant had the time of its calls, from first scheduled to finished, over that of all. It was entitled to
its share at the window's start (SAGA, Eqs. 8 and 9): the sum over its tasks at work of what service they still had to
come, over the time to their deadlines, over that of all tenants. A deadline is the arrival + 1.5 x the mean completion
time of the tenant's tasks that had ended by then (of all tasks before there are any); slack counts as 1 s at least.
What was to come is known here, from the log; the policy could only expect it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sagasim.eventlog import UNFINISHED, Columns
from sagasim.units import PS_PER_S

__all__ = ["WINDOW_S", "share_deviations"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

WINDOW_S = 60
_DEADLINE = 1.5


def share_deviations(
    calls: Columns, tasks: Columns, start_ps: int, end_ps: int, weights: Sequence[float], window_ps: int
) -> Floats:
    """|part had - share| of every tenant in every whole window in which several were at work; shape (pairs,).

    weights: of each tenant, by number. Empty where no window fits or one tenant is alone.
    """
    windows = (end_ps - start_ps) // window_ps
    if windows < 1 or len(weights) < 2:
        return np.zeros(0)
    arrival = tasks["arrival_ps"]
    finished = np.where(tasks["finished_ps"] == UNFINISHED, end_ps, tasks["finished_ps"])
    tenant, tenants = tasks["tenant"], len(weights)
    # every (task, window) in which the task was at work, the windows of a task one after the other
    first = np.maximum((arrival - start_ps) // window_ps, 0)
    last = np.minimum((np.maximum(finished, arrival + 1) - 1 - start_ps) // window_ps, windows - 1)
    count = np.maximum(last - first + 1, 0)
    place = np.concatenate([[0], np.cumsum(count)])
    task = np.repeat(np.arange(len(count)), count)
    window = np.arange(len(task)) - place[task] + first[task]
    served, before = _service(calls, len(count), start_ps, window_ps, windows, place, first)
    total = np.bincount(calls["task"], weights=(calls["finished_ps"] - calls["admitted_ps"]), minlength=len(count))
    sums = np.cumsum(served)
    left = total[task] - before[task] - (sums - served - np.concatenate([[0.0], sums])[place[task]])
    begins = start_ps + window * window_ps
    slack = np.maximum(arrival[task] + _DEADLINE * _expected(tasks, tenants)[task] - begins, PS_PER_S)
    there = arrival[task] <= begins  # at the window's start
    key = window * tenants + tenant[task]
    size = windows * tenants
    urgency = np.bincount(key, weights=np.where(there, np.maximum(left, 0) / slack, 0.0), minlength=size)
    had = np.bincount(key, weights=served, minlength=size).reshape(windows, tenants)
    urgency = urgency.reshape(windows, tenants) * np.asarray(weights, dtype=np.float64)
    several = ((urgency > 0).sum(axis=1) > 1) & (had.sum(axis=1) > 0)
    urgency, had = urgency[several], had[several]
    deviation = np.abs(had / had.sum(axis=1, keepdims=True) - urgency / urgency.sum(axis=1, keepdims=True))
    found: Floats = deviation[urgency > 0]
    return found


def _service(
    calls: Columns, tasks: int, start_ps: int, window_ps: int, windows: int, place: Ints, first: Ints
) -> tuple[Floats, Floats]:
    """Service in every (task, window) pair, and of every task before the first window; ps."""
    task, begin, end = calls["task"], calls["admitted_ps"], calls["finished_ps"]
    lead = np.clip(np.minimum(end, start_ps) - begin, 0, None)
    before = np.bincount(task, weights=lead, minlength=tasks)
    low = np.maximum((begin - start_ps) // window_ps, 0)
    high = np.minimum((end - 1 - start_ps) // window_ps, windows - 1)
    spans = np.maximum(high - low + 1, 0)
    call = np.repeat(np.arange(len(task)), spans)
    window = np.arange(len(call)) - np.concatenate([[0], np.cumsum(spans)])[call] + low[call]
    edge = start_ps + window * window_ps
    overlap = np.minimum(end[call], edge + window_ps) - np.maximum(begin[call], edge)
    pair = place[task[call]] + window - first[task[call]]
    served = np.bincount(pair, weights=overlap, minlength=int(place[-1]))
    return served.astype(np.float64), before.astype(np.float64)


def _expected(tasks: Columns, tenants: int) -> Floats:
    """Mean completion time in ps of the tasks that had ended when each one arrived, of its tenant or else of all."""
    arrival, tenant = tasks["arrival_ps"], tasks["tenant"]
    expected = np.full(len(arrival), float(PS_PER_S))
    ended = tasks["finished_ps"] != UNFINISHED
    for number in (-1, *range(tenants)):  # all of them first: a tenant's own experience overrides
        own = ended if number < 0 else ended & (tenant == number)
        order = np.argsort(tasks["finished_ps"][own], kind="stable")
        ends = tasks["finished_ps"][own][order]
        times = np.concatenate([[0.0], np.cumsum((ends - arrival[own][order]).astype(np.float64))])
        known = np.searchsorted(ends, arrival, side="left")
        chosen = (known > 0) & ((tenant == number) if number >= 0 else True)
        expected[chosen] = times[known[chosen]] / known[chosen]
    return expected
