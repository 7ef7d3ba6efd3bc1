"""Replay under an eviction policy of the engine: it ranks idle contexts as it does in a run, on the engine's own cache.

The policy sees what it would see in a run: contexts by who released them, their sizes, the time, the memory, and what
its predictor was told by then. All replicas are replayed side by side, since a run has one policy and one predictor.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge

from sagasim.core import Task
from sagasim.errors import PolicyError
from sagasim.kvcache import BlockTable, KVCache
from sagasim.oracle.accesses import Access, Log, Path
from sagasim.plan import PlannedCall
from sagasim.seams import IdleContext, Memory, Policy, Ranker, Request, Workflow, ranker
from sagasim.simulate import Result

__all__ = ["Timeline", "bare_timeline", "replay_scored", "run_timeline"]

_SPARE = 1 << 40  # blocks beyond the memory, so that only the ballast decides how many are left for idle contexts
_ENDED, _BOUNDARY, _LEFT, _SENT = range(4)  # what comes first at one moment


@dataclass(frozen=True, slots=True)
class Timeline:
    """When calls were sent, scheduled and ended, by access, and tasks over, by name. Times in ps."""

    sent_ps: Sequence[int]
    admitted_ps: Sequence[int]
    ended_ps: Sequence[int]
    left_ps: dict[str, int]

    def events(self) -> list[tuple[int, int, int, str]]:
        """(time, kind, access, task), in the order in which a predictor is told."""
        sent = [(time, _SENT, i, "") for i, time in enumerate(self.sent_ps)]
        ended = [(time, _ENDED, i, "") for i, time in enumerate(self.ended_ps)]
        left = [(time, _LEFT, 0, task) for task, time in self.left_ps.items()]
        return sorted([*sent, *ended, *left])


def run_timeline(result: Result) -> Timeline:
    calls = result.calls
    left = zip(result.task_names, result.tasks["finished_ps"].tolist(), strict=True)
    sent, admitted, ended = (calls[name].tolist() for name in ("submitted_ps", "admitted_ps", "finished_ps"))
    return Timeline(sent, admitted, ended, {name: time for name, time in left if time >= 0})


def bare_timeline(accesses: Sequence[Access], sent_ps: Sequence[int]) -> Timeline:
    """Of calls that take no time."""
    left: dict[str, int] = {}
    for access, sent in zip(accesses, sent_ps, strict=True):
        plan = _plan(access)
        left[plan.task.task.name] = max(left.get(plan.task.task.name, 0), sent + 2 + plan.tool_ps)
    return Timeline(sent_ps, sent_ps, [sent + 2 for sent in sent_ps], left)


def replay_scored(
    logs: Sequence[Log],
    num_blocks: Sequence[int],
    evict: Policy,
    predict: Policy | None,
    timeline: Timeline,
    tasks: Iterable[Task],
    batch: int,
) -> int:
    """Blocks found by all reads of all logs, which share their accesses. num_blocks: of each of them."""
    accesses = logs[0].accesses
    told = _Told(accesses, predict, timeline, tasks)
    rank = ranker(evict, told.workflow)
    assert rank is not None, "the queue of blocks is no score"
    caches = [_Cache(blocks, rank, batch) for blocks in num_blocks]
    hits = 0
    for now, number, boundary in merge(*(_boundaries(log, i) for i, log in enumerate(logs))):
        told.until(now)
        log, cache = logs[number], caches[number]
        cache.begin(now)
        for event in log.order[log.stops[boundary - 1] if boundary else 0 : log.stops[boundary]]:
            if event >= 0:
                hits += cache.open(event, accesses[event])
            else:
                cache.close(~event, accesses[~event], told.requests[~event], now)
        cache.leave(num_blocks[number] - log.held[boundary], now)
    return hits


def _boundaries(log: Log, number: int) -> Iterator[tuple[int, int, int]]:
    return ((time, number, boundary) for boundary, time in enumerate(log.times_ps))


class _Told:
    """The predictor, told of everything up to a moment; and who sent the calls that are under way."""

    def __init__(
        self, accesses: Sequence[Access], predict: Policy | None, timeline: Timeline, tasks: Iterable[Task]
    ) -> None:
        self.workflow: Workflow | None = None
        if predict is not None:
            found = predict.build()
            if getattr(found, "wants_tasks", False):
                found.learn(tasks)  # type: ignore[attr-defined]
            self.workflow = found  # type: ignore[assignment]
        self.requests: dict[int, Request] = {}
        self._accesses = accesses
        self._timeline = timeline
        self._events = timeline.events()
        self._at = 0

    def until(self, now_ps: int) -> None:
        events = self._events
        while self._at < len(events) and events[self._at][:2] < (now_ps, _BOUNDARY):
            time, kind, i, task = events[self._at]
            self._at += 1
            if kind == _SENT:
                self.requests[i] = request = _request(_plan(self._accesses[i]), time)
                if self.workflow is not None:
                    self.workflow.sent(request, time)
            elif self.workflow is not None and kind == _LEFT:
                self.workflow.left(task, time)
            elif self.workflow is not None:
                plan = _plan(self._accesses[i])
                tools = tuple(tool.name for tool in plan.task.task.calls[plan.index].tools)
                service_ps = time - self._timeline.admitted_ps[i]
                self.workflow.ended(self.requests[i], tools, plan.output_tokens, service_ps, time)


def _plan(access: Access) -> PlannedCall:
    if access.plan is None:
        raise PolicyError(
            "a foreign trace says nothing of tasks", where="--policies", expected="policies that look at blocks alone"
        )
    return access.plan


def _request(plan: PlannedCall, sent_ps: int) -> Request:
    planned = plan.task
    task = planned.task
    agent = task.calls[plan.index].agent
    return Request(
        task.name, task.tenant, task.agent, agent, plan.index, plan.context, plan.prompt_tokens, sent_ps,
        planned.arrival_ps, planned.expected_tct_ps,
    )  # fmt: skip


class _Cache:
    """The engine's cache with spare blocks: those that nobody may use are taken by a table of their own."""

    def __init__(self, num_blocks: int, rank: Ranker, batch: int) -> None:
        self._held = 0

        def ranked(idles: Sequence[IdleContext], now_ps: int, _: Memory) -> Sequence[float]:
            return rank(idles, now_ps, Memory(num_blocks, self._held))

        self._memory = num_blocks
        self._cache = KVCache(num_blocks + _SPARE, 0, rank=ranked, batch=batch)
        self._tables: dict[int, BlockTable] = {}
        self._ballast = BlockTable()
        self._releases = 0

    def open(self, number: int, access: Access) -> int:
        """The call holds what it reads and writes. Returns how many blocks it found."""
        table = self._tables[number] = BlockTable()
        portions, found, _ = self._cache.match(access.path, access.written)
        self._cache.hold(table, portions, 0)
        self._write(table, access.path, access.written)
        return min(found, access.limit)

    def close(self, number: int, access: Access, request: Request, now: int) -> None:
        """The call leaves its blocks."""
        table = self._tables.pop(number)
        self._write(table, access.path, access.left)
        self._releases += 1
        idle = IdleContext(self._releases, request.task, request.tenant, request.agent, request.context, now, 0)
        self._cache.release(table, now, idle)

    def begin(self, now: int) -> None:
        """Nothing is evicted while calls open and close, until leave()."""
        self._cache.release(self._ballast, now)

    def leave(self, room: int, now: int) -> None:
        """From now on at most `room` blocks are idle."""
        self._held = self._memory - room
        self._cache.take(self._ballast, self._cache.free - room, now)

    def _write(self, table: BlockTable, path: Path, upto: int) -> None:
        if upto > table.allocated:
            self._cache.take(table, upto - table.allocated, 0)
            self._cache.register(table, path, upto)
