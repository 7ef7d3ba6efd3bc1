"""The step of one replica, as vLLM v1 decides it: process outputs, running calls first, then waiting ones.

What a decoding call holds needs no update while it decodes: its context is offset + step. Sums over the batch (number,
offsets, largest offset, offsets modulo the block size) give the cost and the blocks of any step, and this is what
replica.py jumps on. Nothing here knows about the clock beyond the time it is told.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

from sagasim.batching import EngineSettings, InFlight, Logs, WaitingQueue, log_call
from sagasim.cost import StepCost
from sagasim.errors import LawError
from sagasim.kvcache import KVCache
from sagasim.seams import ReplicaView
from sagasim.units import BLOCK_TOKENS

__all__ = ["Batch", "Scheduler"]

_NOTHING: Final = -(1 << 60)


class Batch:
    """What one step computes: decodes and the sum and maximum of their contexts, prefill chunks, prompts completed."""

    __slots__ = ("chunks", "completed", "context_max", "context_sum", "decodes")

    def __init__(self) -> None:
        self.decodes = self.context_sum = self.context_max = 0
        self.chunks: list[tuple[int, int]] = []
        self.completed: list[InFlight] = []


class Scheduler:
    """The batch of a replica and how the next step is formed."""

    __slots__ = (
        "blocked", "boundary", "brought", "budget", "busy", "cache", "caching", "changes", "cost", "decodes", "ends",
        "foreseen", "given_way", "idle", "inbox", "lag", "logs", "offset_max", "offset_sum", "on_finish", "preemptions",
        "prefetched", "prefilling", "releases", "reload", "reserve", "residues", "running", "seats", "step", "step_end",
        "steps", "threshold", "tickets", "urgent", "view", "waiting", "wasted",
    )  # fmt: skip

    def __init__(
        self,
        view: ReplicaView,
        settings: EngineSettings,
        cost: StepCost,
        cache: KVCache,
        waiting: WaitingQueue,
        logs: Logs,
        on_finish: Callable[[InFlight], None],
    ) -> None:
        self.view = view
        self.budget = settings.max_num_batched_tokens
        self.seats = settings.max_num_seqs
        self.threshold = settings.long_prefill_token_threshold or self.budget
        self.caching = settings.prefix_caching
        self.reserve = settings.reserve_full_prompt
        self.lag = settings.lag
        self.foreseen = settings.foreseen_stops
        self.wasted = settings.wasted_steps
        self.cost = cost
        self.cache = cache
        self.waiting = waiting
        self.logs = logs
        self.on_finish = on_finish
        # (call, blocks of its prompt that are here, most that may be) -> whether it now waits for others to come
        self.reload: Callable[[InFlight, int, int], bool] | None = None
        self.step = 0  # last step decided
        self.step_end = 0  # when it ends
        self.boundary = 0  # when the next step is decided
        self.tickets = self.releases = self.steps = self.busy = self.preemptions = self.prefetched = 0
        self.changes = 0  # admissions, preemptions and ends
        self.clear()

    def clear(self) -> None:
        """No call is here, and nothing is cached."""
        self.inbox: list[InFlight] = []  # arrived since the last decision
        # blocks (of a finished call, from, to) that were copied here meanwhile, to be put into the cache
        self.brought: list[tuple[InFlight, int, int]] = []
        self.running: dict[InFlight, None] = {}  # in order of admission
        self.prefilling: set[InFlight] = set()  # those of them whose prompt is not yet scheduled to its end
        self.ends: list[tuple[int, int, InFlight]] = []  # (step, ticket, call): step after whose end something leaves
        self.urgent: list[InFlight] = []  # running calls that are to give way to the head of the queue
        self.given_way: list[InFlight] = []  # those that have, in this step: they may start again in the next one
        self.idle = True
        self.blocked = False  # the head of the queue waits for memory or a place
        self.decodes = 0
        self.offset_sum = 0
        self.offset_max = _NOTHING
        self.residues = [0] * (2 * BLOCK_TOKENS)  # decodes by -offset modulo block size, twice over
        self.waiting.heap = []
        self.cache.clear()

    # ---- the step

    def _decide(self, now: int) -> None:
        """Form the next step: running calls, then waiting ones."""
        self.step = step = self.step + 1
        batch = Batch()
        if self.urgent:
            self._give_way(now)
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
        if self.given_way:
            preempted = True  # there is more to decide, even if nothing is left to run
            self.blocked = False  # until the next step finds its head, one of these perhaps, that is
            for call in self.given_way:
                self.waiting.push(call, now)
            self.given_way = []
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

    def _pass(self, now: int) -> None:
        """Nothing is left to schedule: a step of no length, and rest once nothing runs."""
        self.step += 1
        if self.step_end <= now:
            self.idle = True
        self.boundary = self.step_end

    def _process_outputs(self, now: int) -> None:
        """Outputs of the last finished step: calls that have all their tokens leave."""
        due = self.step + 1 - self.lag
        ends = self.ends
        while ends and ends[0][0] <= due:
            _, ticket, call = heappop(ends)
            if call.ticket != ticket:
                continue  # preempted since
            if call.end > due:  # a foreseen stop: its last step is already decided, its output not yet there
                self._stop_decoding(call)
                heappush(ends, (call.end, ticket, call))
            else:
                self._finish(call, now)

    def _receive(self, before: int, now: int) -> None:
        for call, start, upto in self.brought:
            self.prefetched += self._adopt(call, start, upto, now)
        self.brought = []
        late = []
        for call in self.inbox:
            if call.submitted < before:
                if call.carried:
                    self._adopt(call, call.carried_from, call.carried, now)
                    call.carried = 0
                self.waiting.push(call, call.submitted)
            else:
                late.append(call)
        self.inbox = late

    def _adopt(self, call: InFlight, start: int, upto: int, now: int) -> int:
        self.releases += 1
        self.changes += 1
        idle = call.idle_context(self.releases, now) if self.cache.scored else None
        return self.cache.adopt(call.plan.branch.path, start, upto, now, idle)

    def _schedule_running(self, calls: list[InFlight], batch: Batch, budget: int, now: int) -> tuple[int, bool]:
        """Running calls in order of admission. Returns the tokens left of the budget, and if a call was preempted."""
        preempted = False
        for call in calls:
            if call not in self.running:
                break  # preempted by an earlier one, and so are all behind it
            prefills = call in self.prefilling
            if not prefills and not call.decoding:
                continue
            if not budget:  # no decode is behind: whoever came after this call found tokens left by those before
                if call.decoding:
                    raise LawError("a decoding call is left without a token of the budget")
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
            room = -(-known // BLOCK_TOKENS) - hits if self.reserve else need
            if room + idle_hits > cache.free:
                self.blocked = True
                break
            heappop(heap)
            if self.reload is not None and call.admitted < 0 and self.reload(call, hits, limit):
                view.waiting -= 1
                view.loads[view.replica] -= 1
                self.changes += 1
                continue
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
            leaf = path[-1][0].ever_any  # blocks of the path ever cached, if any are of its last branch
            if limit > hits and not 0 < leaf <= hits:
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

    def _give_way(self, now: int) -> None:
        """Preempt the calls chosen for that, one after the other, until the head of the queue fits whole."""
        chosen, self.urgent = self.urgent, []
        for call in chosen:
            if not self.waiting.heap:
                break
            head = self.waiting.heap[0][1]
            limit = (head.known - 1) // BLOCK_TOKENS if self.caching else 0
            _, hits, idle_hits = self.cache.match(head.plan.branch.path, limit)
            room = -(-head.known // BLOCK_TOKENS) - hits + idle_hits
            if len(self.running) < self.seats and room <= self.cache.free:
                break
            if call in self.running:
                self._preempt(call, now, urgent=True)

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
            self.offset_max = max([other.offset for other in self.running if other.decoding], default=_NOTHING)

    def _stop_decoding(self, call: InFlight) -> None:
        call.decoding = False
        self._count(call, -1)

    def _preempt(self, call: InFlight, now: int, *, urgent: bool = False) -> None:
        """Free the blocks of a call and put it before all waiting ones, or for an urgent one, in its place among them.

        A token in flight is kept.
        """
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
            if self.caching:
                tokens = call.offset + self.step - self.lag  # those whose successor is known
                self.cache.register(call, call.plan.branch.path, tokens // BLOCK_TOKENS)
            call.allocated = -(-(call.offset + last) // BLOCK_TOKENS)
            self._let_go(call, now)
            call.known = call.offset + last + 1
            if call.decoding:
                self._stop_decoding(call)
            if call.end <= last:
                return  # its last token is on the way
        if call.allocated:
            self._let_go(call, now)
        call.ticket = 0
        if urgent:
            self.given_way.append(call)
        else:
            self.waiting.push_front(call)

    def _finish(self, call: InFlight, now: int) -> None:
        view = self.view
        if call in self.running:
            del self.running[call]
            view.running -= 1
            plan = call.plan
            if self.caching:
                self.cache.register(
                    call, plan.branch.path, (plan.prompt_tokens + plan.output_tokens - 1) // BLOCK_TOKENS
                )
            call.allocated = (call.offset + call.end + self.wasted + BLOCK_TOKENS - 1) // BLOCK_TOKENS
            self._let_go(call, now)
            if call.decoding:
                call.decoding = False
                self._count(call, -1)
        else:
            view.waiting -= 1
        view.loads[view.replica] -= 1
        self.changes += 1
        log_call(self.logs, call, view, now)
        self.on_finish(call)
        call.succeed()

    def _let_go(self, call: InFlight, now: int) -> None:
        self.releases += 1
        self.cache.release(call, now, call.idle_context(self.releases, now) if self.cache.scored else None)
