"""One replica of vLLM v1, fast: it jumps from one change of its batch to the next.

Steps are numbered. With asynchronous scheduling (lag 2) the outputs of step d are processed, and step d + 2 is decided,
at the end of step d while step d + 1 runs; synchronously (lag 1) step d + 1 is decided there. Such a boundary is where
scheduler.py forms the next batch. Between two decisions that change the batch every step is decode only and the cost
model sums them in closed form; an arrival cuts the jump at the next boundary.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from simpy import Event

from sagasim.batching import EngineSettings, InFlight, Logs, WaitingQueue, boundary_priority, log_failure
from sagasim.clock import Clock
from sagasim.cost import StepCost, first_beyond
from sagasim.errors import LawError
from sagasim.kvcache import KVCache
from sagasim.scheduler import Scheduler
from sagasim.seams import ReplicaView
from sagasim.units import BLOCK_TOKENS

__all__ = ["Replica"]


class Replica(Scheduler):
    """A tensor-parallel group with its engine. submit() calls, then arrived(); finished calls succeed their event."""

    __slots__ = (
        "alarm",
        "alarm_at",
        "costs",
        "deciding",
        "directions",
        "env",
        "executed",
        "jump",
        "priority",
        "queue",
        "rings",
        "series",
        "spare",
        "tick",
    )

    def __init__(
        self,
        env: Clock,
        view: ReplicaView,
        settings: EngineSettings,
        costs: list[StepCost],
        cache: KVCache,
        waiting: WaitingQueue,
        logs: Logs,
        on_finish: Callable[[InFlight], None],
    ) -> None:
        super().__init__(view, settings, costs[0], cache, waiting, logs, on_finish)
        self.costs = costs  # by the number of directions in which copies run beside a step
        self.directions = 0
        self.deciding = False
        self.env = env
        self.queue, self.tick = env.queue, env.tick
        self.priority = boundary_priority(view.replica)
        self.alarm: Event | None = None  # the one that counts; those set before it ring in vain
        self.alarm_at = 0
        self.spare: Event | None = None  # an alarm that has rung, to be set again
        self.rings: list[Callable[[Any], None]] = [self._ring]
        self.jump = 0  # steps to be taken as decided when the alarm rings
        self.series = (1, 0, 0)  # time, increment and length of the arithmetic series of the steps to come
        self.executed = 0

    # ---- arrivals

    def submit(self, call: InFlight) -> None:
        """A call is sent here; arrived() follows once all calls of this moment have been."""
        self.inbox.append(call)
        if call.carried or call.submitted != self.env.now:
            self.blocked = False  # what it brings enters the cache at the next boundary; an older one becomes the head
        view = self.view
        view.waiting += 1
        view.loads[view.replica] += 1

    def arrived(self, now: int) -> None:
        if self.idle:
            self.idle = False
            self.boundary = self.step_end = now
            self._decide_all(now, now + 1)
        elif not (self.blocked and self.waiting.in_order):
            self._decide_soon(now)

    def bring(self, call: InFlight, start: int, upto: int, now: int) -> None:
        """Blocks start..upto-1 of a finished call's context were copied here; they enter the cache at a boundary."""
        self.brought.append((call, start, upto))
        self.blocked = False
        self._decide_soon(now)

    def copies_run(self, directions: int, now: int) -> None:
        """From the next boundary on, steps share the GPUs with copies in so many directions."""
        if directions != self.directions:
            self.directions = directions
            self._decide_soon(now)

    def contenders(self, now: int) -> tuple[InFlight | None, list[InFlight]]:
        """The head of the queue, and the running calls in order of admission."""
        self.settle(now)
        return self.waiting.heap[0][1] if self.waiting.heap else None, list(self.running)

    def preempt(self, calls: list[InFlight], now: int) -> None:
        """These running calls give way to the head of the queue at the next boundary, as far as it needs."""
        self.urgent = calls
        self._decide_soon(now)

    def _decide_soon(self, now: int) -> None:
        """See to it that the next boundary is decided at, if the replica is at work."""
        if not self.idle and not self.deciding:
            steps, at = self._next_boundary(now)
            if at < self.alarm_at:
                self._set_alarm(steps, at)

    def withdraw(self, now: int, *, moved: bool = False) -> InFlight | None:
        """Give up the oldest call that waits and never started, for another replica; None if there is none."""
        call = self.waiting.withdraw(self.inbox, moved=moved)
        if call is not None:
            view = self.view
            view.waiting -= 1
            view.loads[view.replica] -= 1
            self.blocked = False  # until the next boundary finds another head that is
            self._decide_soon(now)  # what waited behind it may start
        return call

    def lose(self, now: int) -> None:
        """Forget every call and every block; a step under way has kept the GPUs busy up to now."""
        self.settle(now)
        if self.caching:  # what calls had computed until now was cached here once
            for call in self.running:
                if call not in self.prefilling:
                    tokens = call.offset + min(self.step + 1 - self.lag, call.end)
                    self.cache.register(call, call.plan.branch.path, tokens // BLOCK_TOKENS)
        self.busy -= max(0, self.step_end - now)
        self.step_end = min(self.step_end, now)
        self.clear()
        self.alarm = None
        self.jump = 0
        log_failure(self.logs, self.view, self.busy, self.steps, self.cache.evicted, now)

    def cached_blocks(self, call: InFlight, now: int, limit: int = -1) -> int:
        """Leading blocks of the call's context that are cached as of the last boundary; by default of its prompt."""
        self.settle(now)
        if limit < 0:
            limit = (call.known - 1) // BLOCK_TOKENS
        return self.cache.match(call.plan.branch.path, limit if self.caching else 0)[1]

    def path_of(self, call: InFlight) -> Any:
        """The blocks of a call's context, as host memory knows them."""
        return call.plan.branch.path

    def settle(self, now: int) -> None:
        """Make the steps decided up to now history, for a view; what follows and when is not touched."""
        if self.idle or now < self.boundary:
            return
        ahead = self.jump
        self.jump, at = self._next_boundary(now)
        ahead -= self.jump
        self._take_jump(at)
        self._look_ahead()
        self.jump = ahead

    def observe(self, call: InFlight, now: int) -> None:
        """Bring the cache fields of the view up to the last boundary, for a call that is about to be routed."""
        self.view.hit_tokens = self.cached_blocks(call, now) * BLOCK_TOKENS
        self.view.free_blocks = self.cache.free

    # ---- jumping

    def _look_ahead(self) -> None:
        """The arithmetic series of the decode-only steps that follow the last decided one."""
        decodes, step = self.decodes, self.step + 1
        if decodes:
            self.series = self.cost.series(decodes, self.offset_sum + decodes * step, self.offset_max + step)

    def _elapsed(self, steps: int) -> int:
        """Time of the next `steps` steps, decode only, in ps."""
        value, slope, count = self.series
        if steps <= count:
            return steps * value + slope * (steps * (steps - 1) >> 1)
        decodes, step = self.decodes, self.step + 1
        return self.cost.total(decodes, self.offset_sum + decodes * step, self.offset_max + step, steps)

    def _next_boundary(self, now: int) -> tuple[int, int]:
        """The first boundary after now, and the steps of the jump that are decided before it."""
        if now < self.boundary:
            return 0, self.boundary
        beyond = now - self.step_end
        if beyond < 0:
            return self.lag - 1, self.step_end
        value, slope, count = self.series
        more = first_beyond(value, slope, beyond)
        if more > count:
            decodes, step = self.decodes, self.step + 1
            more = self.cost.steps_beyond(decodes, self.offset_sum + decodes * step, self.offset_max + step, beyond)
        return more + self.lag - 1, self.step_end + self._elapsed(more)

    def _growth(self, steps: int) -> int:
        """Blocks that the decoding calls need in the next `steps` steps."""
        start = self.step % BLOCK_TOKENS
        return steps // BLOCK_TOKENS * self.decodes + sum(self.residues[start : start + steps % BLOCK_TOKENS])

    def _plan_jump(self, fresh: bool) -> None:
        """How far nothing can change, and the alarm at the boundary behind it. fresh: the series is that from here."""
        lag = self.lag
        steps = 0
        steady = self.costs[self.directions] is self.cost and not self.inbox and not self.brought
        if self.decodes and steady and not self.prefilling and (self.blocked or not self.waiting.heap):
            ends = self.ends
            step, ticket, call = ends[0]
            while call.ticket != ticket:  # preempted since
                heappop(ends)
                step, ticket, call = ends[0]
            steps = step - self.step - 1 + lag
            cache = self.cache
            room = cache.blank if cache.scored else cache.free
            if self.decodes * (steps // BLOCK_TOKENS + 1) > room:
                steps = bisect_right(range(1, steps + 1), room, key=self._growth)
        if steps and not fresh:
            self._look_ahead()
        if steps >= lag:
            self._set_alarm(steps, self.step_end + self._elapsed(steps - lag + 1))
        else:
            self._set_alarm(steps, self.step_end if steps else self.boundary)

    def _take_jump(self, boundary: int) -> None:
        """Make the steps that were jumped over history: they were decided, the next decision is at `boundary`."""
        steps = self.jump
        value, slope, count = self.series
        elapsed = steps * value + slope * (steps * (steps - 1) >> 1) if steps <= count else self._elapsed(steps)
        start = self.step % BLOCK_TOKENS
        growth = sum(self.residues[start : start + steps]) if steps < BLOCK_TOKENS else self._growth(steps)
        if growth:
            self.cache.grow(growth, boundary)
        self.step += steps
        self.step_end += elapsed
        self.busy += elapsed
        self.steps += steps
        self.boundary = boundary

    def _set_alarm(self, steps: int, at: int) -> None:
        self.jump = steps
        self.alarm_at = at
        alarm = self.spare
        if alarm is None:
            alarm = Event(self.env)
            alarm._ok = True
            alarm._value = None
        else:
            self.spare = None
        alarm.callbacks = self.rings
        self.alarm = alarm
        heappush(self.queue, (at, self.priority, self.tick(), alarm))

    def _ring(self, alarm: Event) -> None:
        self.spare = alarm
        if alarm is self.alarm:
            now = self.alarm_at
            if self.jump:
                self._take_jump(now)
            self._decide_all(now, now)

    # ---- boundaries

    def _decide_all(self, now: int, before: int) -> None:
        """All that is due at a boundary; calls sent before `before` take part."""
        self.executed += 1
        self.deciding = True
        self.cost = self.costs[self.directions]
        changes, cache, ends, waiting, lag = self.changes, self.cache, self.ends, self.waiting, self.lag
        cache.held = cache.num_blocks - cache.free
        while True:
            if ends and ends[0][0] <= self.step + 1 - lag:
                self._process_outputs(now)
            if self.inbox or self.brought:
                self._receive(before, now)
            decodes, step = self.decodes, self.step
            growth = self.residues[step % BLOCK_TOKENS]
            if (
                decodes
                and not waiting.heap
                and not self.prefilling
                and growth <= (cache.blank if cache.scored else cache.free)
            ):
                if growth:  # nothing but the calls that decode anyway
                    cache.grow(growth, now)
                self.step = step = step + 1
                time, slope, count = self.cost.series(decodes, self.offset_sum + decodes * step, self.offset_max + step)
                self.series = (time + slope, slope, count - 1)
                self.steps += 1
                self.busy += time
                previous_end = self.step_end
                self.step_end = end = previous_end + time
                self.boundary = previous_end if lag == 2 else end
                fresh = count > 1
            else:
                if decodes or waiting.heap or self.prefilling:
                    self._decide(now)
                else:
                    self._pass(now)
                fresh = False
            if self.idle or self.boundary > now:
                break
        self.deciding = False
        self.urgent = []
        if changes != self.changes:
            view = self.view
            held = cache.num_blocks - cache.free
            log = self.logs.occupancy
            cached, evicted, waits, runs = cache.cached, cache.evicted, view.waiting, view.running
            log.append(log.pack(now, view.replica, held, cached, waits, runs, self.busy, self.steps, evicted))
        if not self.idle:
            self._plan_jump(fresh)
        elif self.inbox:
            self.arrived(now)
        elif waiting.heap or self.running:
            raise LawError(f"replica {self.view.replica} is idle with {len(waiting.heap)} waiting calls")
