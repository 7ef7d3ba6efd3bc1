"""The access log: which blocks were read, written, held and left, in which order; what is replayed is nothing else.

An access is one call. When it opens, it reads the first `limit` blocks of its path (its full blocks, but never its last
token, which is always computed), writes up to `written`, and holds them; when it closes, it leaves `left` blocks of
prompt and output, all idle unless somebody else holds them. A log is a sequence of boundaries, each with what closes,
what opens, and how many blocks running calls hold from then on: so many are not for idle contexts.

    run_logs(result, plans)       one log for each replica, in the order and with the holding of a run
    pooled_log(result, plans)     the same calls on one cache with the memory of all replicas
    bare_log(accesses, ...)       calls as instants, one after another, each needing its own blocks for that instant
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sagasim.core import Task
from sagasim.errors import LawError, ResultsError
from sagasim.plan import Branch, PlannedCall, Prefixes, plan_task
from sagasim.simulate import Result
from sagasim.units import BLOCK_TOKENS

__all__ = ["Access", "Log", "access_of", "bare_log", "pooled_log", "reads_of", "run_logs", "run_plans", "task_accesses"]

Ints = NDArray[np.int64]
Path = tuple[tuple[Branch, int], ...]
Progress = Callable[[str, int, int], None]  # what, how much is done, of how much


class Access:
    """One call: its path and how far it reads, writes and leaves blocks; peak: blocks it needs at its largest."""

    __slots__ = ("left", "limit", "path", "peak", "plan", "written")

    def __init__(
        self, path: Path, limit: int, written: int, left: int, peak: int, plan: PlannedCall | None = None
    ) -> None:
        self.path = path
        self.limit = limit
        self.written = written
        self.left = left
        self.peak = peak
        self.plan = plan  # whose call it is, for policies that want to know; None in a foreign trace


def access_of(plan: PlannedCall) -> Access:
    prompt = plan.prompt_tokens
    end = prompt + plan.output_tokens - 1  # the last token is never fed back
    return Access(
        plan.branch.path,
        (prompt - 1) // BLOCK_TOKENS,
        prompt // BLOCK_TOKENS,
        end // BLOCK_TOKENS,
        -(-end // BLOCK_TOKENS),
        plan,
    )


@dataclass(frozen=True, slots=True)
class Log:
    """What one cache saw.

    order: opened accesses i and closed ones as ~i. Boundary b processes order[stops[b - 1]:stops[b]] and then keeps at
    most num_blocks - held[b] idle blocks; times_ps[b]: when. first: blocks that are read for the first time, which no
    cache can have.
    """

    name: str
    num_blocks: int
    accesses: Sequence[Access]
    order: list[int]
    stops: list[int]
    held: list[int]
    times_ps: list[int]
    reads: int
    first: int

    @property
    def most_held(self) -> int:
        return max(self.held, default=0)


# ---- from a run


def run_plans(result: Result, tasks: Iterable[Task]) -> list[PlannedCall]:
    """The planned call of each row of the run's calls. Raises ResultsError if these are not the tasks it replayed."""
    calls, prefixes = result.calls, Prefixes()
    rows = np.searchsorted(calls["task"], np.arange(len(result.tasks["task"]) + 1)).tolist()
    indices, prompts, outputs = (calls[name].tolist() for name in ("call", "prompt_tokens", "output_tokens"))
    plans: list[PlannedCall] = []
    stream = iter(tasks)
    for number, name in enumerate(result.task_names):
        task = next(stream, None)
        if task is None or task.name != name:
            raise ResultsError(
                f"task {number} is {name!r} there and {task.name if task else 'missing'!r} here",
                where="config.toml",
                expected="the same trace that the run replayed",
            )
        planned = plan_task(task, number, 0, prefixes).calls
        for row in range(rows[number], rows[number + 1]):
            call = planned[indices[row]] if indices[row] < len(planned) else None
            if call is None or (call.prompt_tokens, call.output_tokens) != (prompts[row], outputs[row]):
                raise ResultsError(
                    f"call {indices[row]} of task {name!r} has other tokens",
                    where="calls.parquet",
                    expected="the same trace that the run replayed",
                )
            plans.append(call)
    return plans


def run_logs(result: Result, accesses: Sequence[Access], *, pins: bool = True) -> list[Log]:
    """One log for each replica. pins: calls hold memory as they did in the run; otherwise they are instants."""
    logs = []
    for number, num_blocks in enumerate(result.replicas["num_blocks"].tolist()):
        rows = np.flatnonzero(result.calls["replica"] == number)
        if pins:
            logs.append(_run_log(result, accesses, rows, np.array([number]), num_blocks, f"replica {number}"))
        else:
            logs.append(_bare(result, accesses, rows, num_blocks, f"replica {number}"))
    return logs


def pooled_log(result: Result, accesses: Sequence[Access], *, pins: bool = True) -> Log:
    """One cache with the memory of the whole cluster."""
    num_blocks = int(result.replicas["num_blocks"].sum())
    rows = np.arange(len(accesses))
    if not pins:
        return _bare(result, accesses, rows, num_blocks, "pooled")
    return _run_log(result, accesses, rows, result.replicas["replica"], num_blocks, "pooled")


def _bare(result: Result, accesses: Sequence[Access], rows: Ints, num_blocks: int, name: str) -> Log:
    """Calls as instants in the order of admission."""
    calls = result.calls
    order = rows[np.lexsort([calls[key][rows] for key in ("call", "task", "submitted_ps", "admitted_ps")])]
    sent = apart(calls["admitted_ps"][order].tolist())
    return bare_log([accesses[row] for row in order.tolist()], num_blocks, name, sent)


def _run_log(result: Result, accesses: Sequence[Access], rows: Ints, replicas: Ints, num_blocks: int, name: str) -> Log:
    """Boundaries are the rows of the occupancy log: whatever opens, closes or is preempted has one of its own time."""
    calls, occupancy = result.calls, result.occupancy
    chosen = np.flatnonzero(np.isin(occupancy["replica"], replicas))
    times, where = occupancy["time_ps"][chosen], occupancy["replica"][chosen]
    held = np.zeros(len(chosen), dtype=np.int64)
    opened, closed = np.zeros(len(rows), dtype=np.int64), np.zeros(len(rows), dtype=np.int64)
    for replica in replicas:
        own = np.flatnonzero(where == replica)
        steps = occupancy["held_blocks"][chosen[own]]
        held[own] = np.diff(steps, prepend=0)
        here = np.flatnonzero(calls["replica"][rows] == replica)
        for at, key in ((opened, "admitted_ps"), (closed, "finished_ps")):
            moments = calls[key][rows[here]]
            found = np.searchsorted(times[own], moments, side="right") - 1
            if len(here) and not np.array_equal(times[own][found], moments):
                raise LawError("a call is admitted or finished between two rows of the occupancy log")
            at[here] = own[found]
    kind = np.repeat([0, 1], len(rows))  # what closes comes first: its blocks can be hit by what opens
    place = np.concatenate([closed, opened])
    both = np.concatenate([rows, rows])
    first = np.where(kind == 0, calls["admitted_ps"][both], calls["submitted_ps"][both])
    order = np.lexsort([calls["call"][both], calls["task"][both], calls["submitted_ps"][both], first, kind, place])
    signed = np.where(kind == 0, ~both, both)[order]
    stops = np.cumsum(np.bincount(place, minlength=len(chosen)))
    sequence = signed.tolist()
    return Log(
        name, num_blocks, accesses, sequence, stops.tolist(), np.cumsum(held).tolist(), times.tolist(),
        *reads_of(accesses, sequence),
    )  # fmt: skip


# ---- without a run


def task_accesses(tasks: Iterable[Task], progress: Progress | None = None) -> tuple[list[Access], list[int]]:
    """The calls of tasks and when each is sent, in that order, if calls took no time: delays and tools alone do.

    Times are raised where needed so that each is at least 3 ps after the one before: they tell the calls apart.
    """
    prefixes = Prefixes()
    timed: list[tuple[int, int, int, Access]] = []
    for number, task in enumerate(tasks):
        plan = plan_task(task, number, 0, prefixes)
        done: dict[str, int] = {}
        arrival = task.arrival_ps or 0
        for planned, call in zip(plan.calls, task.calls, strict=True):
            sent = max([arrival, *(done[name] for name in call.after)]) + call.delay_ps
            done[call.name] = sent + planned.tool_ps
            timed.append((sent, number, planned.index, access_of(planned)))
        if progress is not None and number % 1000 == 0:
            progress("tasks read", number, 0)
    timed.sort(key=lambda item: item[:3])
    return [access for _, _, _, access in timed], apart([sent for sent, _, _, _ in timed])


def apart(times_ps: Iterable[int]) -> list[int]:
    """Ascending times, moved until they are 3 ps apart at least."""
    out: list[int] = []
    last = -3
    for time in times_ps:
        last = max(time, last + 3)
        out.append(last)
    return out


def bare_log(accesses: Sequence[Access], num_blocks: int, name: str, sent_ps: Sequence[int] | None = None) -> Log:
    """Each call opens and closes at once, one after another; for that instant it needs all its blocks."""
    order = [index for i in range(len(accesses)) for index in (i, ~i)]
    held = [blocks for access in accesses for blocks in (access.peak, 0)]
    stops = list(range(1, len(order) + 1))
    sent = range(0, 3 * len(accesses), 3) if sent_ps is None else sent_ps
    times = [time for when in sent for time in (when + 1, when + 2)]
    return Log(name, num_blocks, accesses, order, stops, held, times, *reads_of(accesses, order))


def reads_of(accesses: Sequence[Access], order: Sequence[int]) -> tuple[int, int]:
    """Blocks that are read, and those of them that were never there before."""
    reads = first = 0
    ever: dict[Branch, int] = {}
    for event in order:
        access = accesses[event] if event >= 0 else accesses[~event]
        path, limit = access.path, access.limit
        if event >= 0:
            reads += limit
            known = 0
            for branch, end in reversed(path):
                if branch in ever:
                    known = min(ever[branch], end, limit)
                    break
            first += limit - known
        upto = access.written if event >= 0 else access.left
        for branch, end in path:  # whoever knows a branch knows its whole path
            stop = min(end, upto)
            if ever.get(branch, -1) < stop:
                ever[branch] = stop
            if end >= upto:
                break
    return reads, first
