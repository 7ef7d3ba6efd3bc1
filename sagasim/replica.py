"""One replica of vLLM v1, fast: it jumps from one change of its batch to the next.

Steps are numbered. With asynchronous scheduling (lag 2) the outputs of step d are processed, and step d + 2 is decided,
at the end of step d while step d + 1 runs; synchronously (lag 1) step d + 1 is decided there. `decide` is that
boundary: process outputs, admit the calls that arrived before it, form the next batch. Between two decisions that
change the batch every step is decode only and the cost model sums them in closed form; an arrival cuts the jump at the
next boundary.

What a decoding call holds needs no update while it decodes: its context is offset + step. Sums over the batch (number,
offsets, largest offset, offsets modulo the block size) give the cost and the blocks of any step.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from simpy import Environment, Event
from simpy.events import EventPriority

from sagasim.batching import EngineSettings, InFlight, Logs, WaitingQueue, log_call
from sagasim.cost import StepCost, first_beyond
from sagasim.errors import LawError
from sagasim.kvcache import KVCache
from sagasim.seams import ReplicaView
from sagasim.units import BLOCK_TOKENS

__all__ = ["Replica"]

_BOUNDARY_PRIORITY = EventPriority(0)  # boundaries come before everything else at the same time
NOTHING = -(1 << 60)


class Batch:
    """What one step computes: decodes and the sum and maximum of their contexts, prefill chunks, prompts completed."""

    __slots__ = ("chunks", "completed", "context_max", "context_sum", "decodes")

    def __init__(self) -> None:
        self.decodes = self.context_sum = self.context_max = 0
        self.chunks: list[tuple[int, int]] = []
        self.completed: list[InFlight] = []


class Replica:
    """A tensor-parallel group with its engine. submit() calls, then arrived(); finished calls succeed their event."""

    __slots__ = (
        "alarm", "alarm_at", "blocked", "boundary", "budget", "busy", "cache", "caching", "changes", "cost",
        "decodes", "ends", "env", "executed", "foreseen", "idle", "inbox", "jump", "lag", "logs",
        "offset_max", "offset_sum", "on_finish", "preemptions", "prefilling", "releases", "residues", "rings",
        "running", "seats", "series", "spare", "step", "step_end", "steps", "threshold", "tickets", "view",
        "waiting", "wasted",
    )  # fmt: skip

    def __init__(
        self,
        env: Environment,
        view: ReplicaView,
        settings: EngineSettings,
        cost: StepCost,
        cache: KVCache,
        waiting: WaitingQueue,
        logs: Logs,
        on_finish: Callable[[InFlight], None],
    ) -> None:
        self.env = env
        self.view = view
        self.budget = settings.max_num_batched_tokens
        self.seats = settings.max_num_seqs
        self.threshold = settings.long_prefill_token_threshold or self.budget
        self.caching = settings.prefix_caching
        self.lag = settings.lag
        self.foreseen = settings.foreseen_stops
        self.wasted = settings.wasted_steps
        self.cost = cost
        self.cache = cache
        self.waiting = waiting
        self.logs = logs
        self.on_finish = on_finish
        self.inbox: list[InFlight] = []  # arrived since the last decision
        self.running: dict[InFlight, None] = {}  # in order of admission
        self.prefilling: set[InFlight] = set()  # those of them whose prompt is not yet scheduled to its end
        self.ends: list[tuple[int, int, InFlight]] = []  # (step, ticket, call): step after whose end something leaves
        self.step = 0  # last step decided
        self.step_end = 0  # when it ends
        self.boundary = 0  # when the next step is decided
        self.idle = True
        self.blocked = False  # the head of the queue waits for memory or a place
        self.alarm: Event | None = None  # the one that counts; those set before it ring in vain
        self.alarm_at = 0
        self.spare: Event | None = None  # an alarm that has rung, to be set again
        self.rings: list[Callable[[Any], None]] = [self._ring]
        self.jump = 0  # steps to be taken as decided when the alarm rings
        self.decodes = 0
        self.offset_sum = 0
        self.offset_max = NOTHING
        self.residues = [0] * (2 * BLOCK_TOKENS)  # decodes by -offset modulo block size, twice over
        self.series = (1, 0, 0)
        self.tickets = self.releases = self.steps = self.busy = self.executed = self.preemptions = 0
        self.changes = 0  # admissions, preemptions and ends

    # ---- arrivals

    def submit(self, call: InFlight) -> None:
        """A call is sent here; arrived() follows once all calls of this moment have been."""
        self.inbox.append(call)
        view = self.view
        view.waiting += 1
        view.in_flight += 1

    def arrived(self, now: int) -> None:
        if self.idle:
            self.idle = False
            self.boundary = self.step_end = now
            self._decide_all(now, now + 1)
        elif not (self.blocked and self.waiting.in_order):
            steps, at = self._next_boundary(now)
            if at < self.alarm_at:
                self._set_alarm(steps, at, now)

    def settle(self, now: int) -> None:
        """Make the steps decided up to now history, for a view; what follows and when is not touched."""
        if self.idle or now < self.boundary:
            return
        ahead = self.jump
        self.jump, at = self._next_boundary(now)
        ahead -= self.jump
        self._take_jump(at)
        if self.series[2] <= 0:
            self._look_ahead()
        self.jump = ahead

    def observe(self, call: InFlight, now: int) -> None:
        """Bring the cache fields of the view up to the last boundary, for a call that is about to be routed."""
        self.settle(now)
        limit = (call.known - 1) // BLOCK_TOKENS if self.caching else 0
        self.view.free_blocks = self.cache.free
        self.view.hit_tokens = self.cache.match(call.plan.branch.path, limit)[1] * BLOCK_TOKENS

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

    def _plan_jump(self, now: int) -> None:
        """How far nothing can change, and the alarm at the boundary behind it."""
        lag = self.lag
        steps = 0
        if self.decodes and not self.inbox and not self.prefilling and (self.blocked or not self.waiting.heap):
            ends = self.ends
            step, ticket, call = ends[0]
            while call.ticket != ticket or call.exit != step:  # preempted or put off since
                heappop(ends)
                step, ticket, call = ends[0]
            steps = step - self.step - 1 + lag
            cache = self.cache
            room = cache.blank if cache.scored else cache.free
            if self.decodes * (steps // BLOCK_TOKENS + 1) > room:
                steps = bisect_right(range(1, steps + 1), room, key=self._growth)
        if steps >= lag:
            self._set_alarm(steps, self.step_end + self._elapsed(steps - lag + 1), now)
        else:
            self._set_alarm(steps, self.step_end if steps else self.boundary, now)

    def _take_jump(self, boundary: int) -> None:
        """Make the steps that were jumped over history: they were decided, the next decision is at `boundary`."""
        steps = self.jump
        value, slope, count = self.series
        elapsed = steps * value + slope * (steps * (steps - 1) >> 1) if steps <= count else self._elapsed(steps)
        growth = self._growth(steps)
        if growth:
            self.cache.grow(growth, boundary)
        self.step += steps
        self.step_end += elapsed
        self.busy += elapsed
        self.steps += steps
        self.boundary = boundary
        self.series = (value + slope * steps, slope, count - steps)

    def _set_alarm(self, steps: int, at: int, now: int) -> None:
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
        self.env.schedule(alarm, _BOUNDARY_PRIORITY, at - now)

    def _ring(self, alarm: Event) -> None:
        self.spare = alarm
        if alarm is self.alarm:
            now = self.alarm_at
            if self.jump:
                self._take_jump(now)
            self._decide_all(now, now)

    # ---- the step: process outputs, admit, form the batch

    def _decide_all(self, now: int, before: int) -> None:
        """All that is due at a boundary; calls sent before `before` take part."""
        self.executed += 1
        changes, cache, ends, waiting, lag = self.changes, self.cache, self.ends, self.waiting, self.lag
        while True:
            if ends and ends[0][0] <= self.step + 1 - lag:
                self._process_outputs(now)
            if self.inbox:
                self._receive(before)
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
                self._decide(now)
                fresh = False
            if self.idle or self.boundary > now:
                break
        if changes != self.changes:
            view = self.view
            held = cache.num_blocks - cache.free
            log = self.logs.occupancy
            log.append(log.pack(now, view.replica, held, cache.cached, view.waiting, view.running))
        if not self.idle:
            if not fresh:
                self._look_ahead()
            self._plan_jump(now)
        elif self.inbox:
            self.arrived(now)
        elif waiting.heap or self.running:
            raise LawError(f"replica {self.view.replica} is idle with {len(waiting.heap)} waiting calls")

    def _decide(self, now: int) -> None:
        """Form the next step: running calls, then waiting ones."""
        self.step = step = self.step + 1
        batch = Batch()
        decodes, prefilling, budget = self.decodes, self.prefilling, self.budget
        growth = self.residues[(step - 1) % BLOCK_TOKENS]
        # all decodes at once where they come first and fit: of the calls that prefill there is one, the last admitted
        apart = not prefilling or (len(prefilling) == 1 and next(reversed(self.running)) in prefilling)
        if apart and decodes <= budget and growth <= self.cache.free:
            if growth:
                self.cache.grow(growth, now)
            budget -= decodes
            batch.decodes = decodes
            batch.context_sum = self.offset_sum + decodes * step
            batch.context_max = self.offset_max + step if decodes else 0
            one_by_one = list(prefilling)
        else:
            one_by_one = list(self.running)
        preempted = False
        if one_by_one:
            budget, preempted = self._schedule_running(one_by_one, batch, budget, now)
        self.blocked = False
        if self.waiting.heap and not preempted:
            self._schedule_waiting(batch, budget, now)
        time = self.cost.step(batch.decodes, batch.context_sum, batch.context_max, batch.chunks)
        previous_end = self.step_end
        end = self.step_end = previous_end + time
        for call in batch.completed:
            self._start_decoding(call, end)
        if time:
            self.steps += 1
            self.busy += time
        elif previous_end <= now and not preempted:
            self.idle = True
        self.boundary = previous_end if self.lag == 2 else end

    def _process_outputs(self, now: int) -> None:
        """Outputs of the last finished step: calls that have all their tokens leave."""
        due = self.step + 1 - self.lag
        ends = self.ends
        while ends and ends[0][0] <= due:
            step, ticket, call = heappop(ends)
            if call.ticket != ticket or call.exit != step:
                continue  # preempted or put off since
            if call.end > due:  # a foreseen stop: its last step is already decided, its output not yet there
                self._stop_decoding(call)
                call.exit = call.end
                heappush(ends, (call.end, ticket, call))
            else:
                self._finish(call, now)

    def _receive(self, before: int) -> None:
        late = []
        for call in self.inbox:
            if call.submitted < before:
                self.waiting.push(call, call.submitted)
            else:
                late.append(call)
        self.inbox = late

    def _schedule_running(self, calls: list[InFlight], batch: Batch, budget: int, now: int) -> tuple[int, bool]:
        """Running calls in order of admission. Returns the tokens left of the budget, and if a call was preempted."""
        preempted = False
        for call in calls:
            if call not in self.running:
                break  # preempted by an earlier one, and so are all behind it
            prefills = call in self.prefilling
            if not prefills and not call.decoding:
                continue
            if not budget:
                if call.decoding:
                    self._put_off(call)
                continue
            context = call.offset + self.step
            want = min(call.known - call.computed, self.threshold, budget) if prefills else 1
            need = (
                -(-(call.computed + want) // BLOCK_TOKENS) - call.allocated if prefills else context % BLOCK_TOKENS == 1
            )
            while need > self.cache.free and call in self.running:
                self._preempt(next(reversed(self.running)), now)
                preempted = True
            if call not in self.running:
                break
            budget -= want
            if prefills:
                self._prefill_chunk(call, want, need, batch, now)
            else:
                if need:
                    self.cache.grow(need, now)
                batch.decodes += 1
                batch.context_sum += context
                batch.context_max = max(batch.context_max, context)
        return budget, preempted

    def _schedule_waiting(self, batch: Batch, budget: int, now: int) -> None:
        """Then waiting calls, while tokens, places and blocks last; the first that does not fit ends it."""
        heap, cache, running, view = self.waiting.heap, self.cache, self.running, self.view
        while heap and budget:
            if len(running) >= self.seats:
                self.blocked = True
                break
            call = heap[0][1]
            known = call.known
            path = call.plan.branch.path
            limit = (known - 1) // BLOCK_TOKENS if self.caching else 0
            portions, hits, idle_hits = cache.match(path, limit)
            cached = hits * BLOCK_TOKENS
            want = known - cached
            if want > self.threshold:
                want = self.threshold
            if want > budget:
                want = budget
            need = -(-(cached + want) // BLOCK_TOKENS) - hits
            if need + idle_hits > cache.free:
                self.blocked = True
                break
            heappop(heap)
            budget -= want
            self.tickets = call.ticket = self.tickets + 1
            self.changes += 1
            running[call] = None
            view.waiting -= 1
            view.running += 1
            call.computed = cached
            if call.admitted < 0:
                call.admitted = now
                call.hit_tokens = cached
            if limit > hits:
                here, anywhere = cache.once_cached(path, limit)
                if here > hits:
                    call.regenerated_here += (here - hits) * BLOCK_TOKENS
                    hits = here
                if anywhere > hits:
                    call.regenerated_elsewhere += (anywhere - hits) * BLOCK_TOKENS
            call.reused += cache.hold(call, portions, now)
            self._prefill_chunk(call, want, need, batch, now)

    def _prefill_chunk(self, call: InFlight, want: int, need: int, batch: Batch, now: int) -> None:
        batch.chunks.append((want, call.computed))
        call.computed = computed = call.computed + want
        if need:
            self.cache.take(call, need, now)
        if self.caching:
            self.cache.register(call, call.plan.branch.path, computed // BLOCK_TOKENS)
        if computed == call.known:
            self.prefilling.discard(call)
            batch.completed.append(call)
        else:
            self.prefilling.add(call)

    # ---- what happens to a call

    def _start_decoding(self, call: InFlight, first_token: int) -> None:
        """Its prompt is complete with this step, which writes its next token."""
        if call.first_token < 0:
            call.first_token = first_token
        plan, step = call.plan, self.step
        left = plan.prompt_tokens + plan.output_tokens - call.known
        call.offset = call.known - step
        call.end = end = step + left - 1
        if left > 1 or not self.foreseen:
            call.decoding = True
            self._count(call, 1)
            if self.foreseen:
                end -= self.lag - 1
        call.exit = end
        heappush(self.ends, (end, call.ticket, call))

    def _count(self, call: InFlight, sign: int) -> None:
        """Add a decoding call to the sums over the batch, or take it out."""
        offset = call.offset
        residue = -offset % BLOCK_TOKENS
        self.decodes += sign
        self.offset_sum += sign * offset
        residues = self.residues
        residues[residue] = residues[residue + BLOCK_TOKENS] = residues[residue] + sign
        if sign > 0:
            if offset > self.offset_max:
                self.offset_max = offset
        elif offset == self.offset_max:
            self.offset_max = max([other.offset for other in self.running if other.decoding], default=NOTHING)

    def _stop_decoding(self, call: InFlight) -> None:
        call.decoding = False
        self._count(call, -1)

    def _put_off(self, call: InFlight) -> None:
        """No budget is left for this decoding call: it does in the next step what it would have done in this one."""
        self._stop_decoding(call)
        call.offset -= 1
        call.put_off = self.step
        if self.step <= call.end:
            call.end += 1
            call.exit += 1
            heappush(self.ends, (call.exit, call.ticket, call))
        call.decoding = True
        self._count(call, 1)

    def _preempt(self, call: InFlight, now: int) -> None:
        """Free the blocks of the last admitted call and put it before all waiting ones; a token in flight is kept."""
        del self.running[call]
        self.view.running -= 1
        self.view.waiting += 1
        self.preemptions += 1
        self.changes += 1
        call.preemptions += 1
        last = self.step - 1  # the last decided step it may be in
        if call in self.prefilling:
            self.prefilling.discard(call)
        else:
            pause = call.put_off == last and self.lag == 2  # then nothing of it is in flight
            self._release(call, call.offset + last, call.offset + self.step - self.lag + pause, now)
            call.known = call.offset + last + 1
            if call.decoding:
                self._stop_decoding(call)
            if call.end <= last:
                return  # its last token is on the way
        if call.allocated:
            self._let_go(call, now)
        call.ticket = 0
        self.waiting.push_front(call)

    def _finish(self, call: InFlight, now: int) -> None:
        view = self.view
        if call in self.running:
            del self.running[call]
            view.running -= 1
            plan = call.plan
            self._release(call, call.offset + call.end + self.wasted, plan.prompt_tokens + plan.output_tokens - 1, now)
            if call.decoding:
                self._stop_decoding(call)
        else:
            view.waiting -= 1
        view.in_flight -= 1
        self.changes += 1
        log_call(self.logs, call, view, now)
        self.on_finish(call)
        call.succeed()

    def _release(self, call: InFlight, allocated_tokens: int, cached_tokens: int, now: int) -> None:
        """Give back all blocks of a call that decodes, after registering those that its outputs have filled."""
        if self.caching:
            self.cache.register(call, call.plan.branch.path, cached_tokens // BLOCK_TOKENS)
        call.allocated = -(-allocated_tokens // BLOCK_TOKENS)
        self._let_go(call, now)

    def _let_go(self, call: InFlight, now: int) -> None:
        self.releases += 1
        self.cache.release(call, call.idle_context(self.releases, now) if self.cache.scored else now)
