"""What both ways of running a replica share: settings, a call in flight, the queue of waiting calls, log rows."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simpy import Event
from simpy.events import EventPriority

from sagasim.clock import Clock
from sagasim.eventlog import Table
from sagasim.kvcache import BlockTable
from sagasim.plan import PlannedCall
from sagasim.seams import IdleContext, ReplicaView, Request

__all__ = ["EngineSettings", "InFlight", "Logs", "WaitingQueue", "boundary_priority", "log_call", "log_failure"]

_AGENT_PRIORITY = EventPriority(1)  # after the boundaries of the same time


def boundary_priority(replica: int) -> EventPriority:
    """Boundaries come before everything else of the same time, in the order of the replicas."""
    return EventPriority(replica - (1 << 20))


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Settings of one replica's engine, in the names of vLLM."""

    num_blocks: int
    max_num_batched_tokens: int
    max_num_seqs: int
    long_prefill_token_threshold: int  # 0: none
    prefix_caching: bool
    lag: int  # steps between a decision and the last processed one: 2 with asynchronous scheduling, else 1
    foreseen_stops: bool  # stops by length are known one step earlier than stops seen in the output
    evict_batch_blocks: int
    reserve_full_prompt: bool = False  # a call starts only if its whole prompt has room, not just its first chunk

    @property
    def wasted_steps(self) -> int:
        """Steps a call is still in after the one that wrote its last token."""
        return 0 if self.foreseen_stops else self.lag - 1


class InFlight(Event, BlockTable):
    """A call between being sent and being finished. Times in ps; step numbers are those of its replica.

    It is the event that its agent waits for: succeed() comes with its last token, the event once its agent goes on.
    """

    __slots__ = (
        "admitted", "asked", "carried", "carried_from", "carried_tokens", "computed", "decoding", "end", "first_token",
        "hit_tokens", "known", "moved", "offset", "place", "plan", "preemptions", "regenerated_elsewhere",
        "regenerated_here", "reloaded_tokens", "request", "reused", "submitted", "ticket",
    )  # fmt: skip

    env: Clock

    def __init__(self, env: Clock, plan: PlannedCall, request: Request, submitted: int) -> None:
        self.env = env
        self.callbacks = []
        self.plan = plan
        self.request = request
        self.submitted = submitted
        self.place = -1  # the replica that has it
        self.reset()

    def reset(self) -> None:
        """As it was when sent: nothing of it is computed anywhere."""
        plan = self.plan
        self.runs = []  # its block table
        self.known = plan.prompt_tokens  # tokens to prefill when it is next admitted, of which
        self.computed = 0  # are already scheduled
        self.offset = self.end = 0  # while decoding: context length minus step number; step that writes its last token
        self.decoding = False
        self.moved = False  # by a balancing policy, to another replica
        self.carried_tokens = self.reloaded_tokens = 0
        self.asked = False  # for what host memory has of its prompt
        # blocks carried_from..carried-1 of its prompt came with it and are not yet in the cache here
        self.carried = self.carried_from = 0
        self.admitted = self.first_token = -1
        self.registered = self.allocated = self.ticket = 0  # ticket counts admissions: who was admitted later
        self.hit_tokens = self.regenerated_here = self.regenerated_elsewhere = self.preemptions = self.reused = 0

    def succeed(self, value: Any = None) -> InFlight:
        self._ok = True
        self._value = value
        env = self.env
        heapq.heappush(env.queue, (env.now + self.plan.pause_ps, _AGENT_PRIORITY, env.tick(), self))
        return self

    def idle_context(self, number: int, now: int) -> IdleContext:
        request = self.request
        return IdleContext(number, request.task, request.tenant, request.agent, request.context, now, 0)


class WaitingQueue:
    """Waiting calls: preempted ones first (the last preempted before all), then by order policy, time, task, call."""

    def __init__(self, key: Callable[[Request, int], Any], *, in_order: bool = False) -> None:
        self._key = key
        self.in_order = in_order  # whoever comes later waits behind: an arrival cannot overtake the head
        self.heap: list[tuple[Any, InFlight]] = []
        self._preempted = 0

    def push(self, call: InFlight, now: int) -> None:
        plan = call.plan
        key = (1, self._key(call.request, now), call.submitted, plan.task.number, plan.index)
        heapq.heappush(self.heap, (key, call))

    def push_front(self, call: InFlight) -> None:
        self._preempted += 1
        heapq.heappush(self.heap, ((0, -self._preempted), call))

    def withdraw(self, inbox: list[InFlight], *, moved: bool) -> InFlight | None:
        """Take out the oldest call, of these and the inbox, that never started; moved: also one moved before."""
        waiting = [call for _, call in self.heap]
        pending = [call for call in (*inbox, *waiting) if call.admitted < 0 and (moved or not call.moved)]
        if not pending:
            return None
        oldest = min(pending, key=lambda call: (call.submitted, call.plan.task.number, call.plan.index))
        if oldest in inbox:
            inbox.remove(oldest)
        else:
            self.heap = [item for item in self.heap if item[1] is not oldest]
            heapq.heapify(self.heap)
        oldest.moved = True
        return oldest

    def head(self) -> InFlight:
        return self.heap[0][1]

    def pop(self) -> InFlight:
        return heapq.heappop(self.heap)[1]


@dataclass(slots=True)
class Logs:
    """Where replicas append their rows."""

    calls: Table
    occupancy: Table


def log_failure(logs: Logs, view: ReplicaView, busy_ps: int, steps: int, evicted: int, now: int) -> None:
    """A replica has lost all that it had."""
    view.waiting = view.running = 0
    table = logs.occupancy
    table.append(table.pack(now, view.replica, 0, 0, 0, 0, busy_ps, steps, evicted))


def log_call(logs: Logs, call: InFlight, view: ReplicaView, now: int) -> None:
    """The row of a finished call, in the order of eventlog.CALLS."""
    plan = call.plan
    table = logs.calls
    table.append(
        table.pack(
            plan.task.number,
            plan.index,
            view.replica,
            call.submitted,
            call.admitted,
            call.first_token,
            now,
            plan.prompt_tokens,
            plan.output_tokens,
            plan.kept_tokens,
            call.hit_tokens,
            call.regenerated_here,
            call.regenerated_elsewhere,
            call.preemptions,
            call.reused // 10**6,
            plan.tool_ps,
            call.carried_tokens,
            call.reloaded_tokens,
        )
    )
