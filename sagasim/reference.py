"""One replica of vLLM v1, slow and plain: every step is an event, every block an object, nothing is summed up.

This is the scheduler as vLLM 0.15.1 has it (scheduler.py, kv_cache_manager.py, block_pool.py), written to be checked by
eye. The fast replica must give the same log, row by row. It shares with it the cost of a single step, the queue of
waiting calls and the policies; block identity comes from the calls themselves, not from branches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from simpy import Event

from sagasim.batching import EngineSettings, InFlight, Logs, WaitingQueue, boundary_priority, log_call, log_failure
from sagasim.clock import Clock
from sagasim.cost import StepCost
from sagasim.errors import LawError
from sagasim.reference_cache import Block, BlockNames, Name, ReferenceCache
from sagasim.seams import ReplicaView
from sagasim.units import BLOCK_TOKENS

__all__ = ["ReferenceReplica"]


@dataclass(slots=True, eq=False)
class _State:
    """What the scheduler knows of a call: tokens known and computed, tokens in flight, blocks."""

    call: InFlight
    names: list[Name]
    tokens: int  # known: prompt and outputs that have arrived
    computed: int = 0
    placeholders: int = 0  # output tokens scheduled but not arrived
    blocks: list[Block] = field(default_factory=list)
    named: int = 0  # blocks that can be found
    finished: bool = False

    @property
    def outputs(self) -> int:
        return self.tokens - self.call.plan.prompt_tokens


@dataclass(slots=True)
class _Batch:
    """A scheduled step: tokens per call, whether it yields one, and when it ends."""

    tokens: list[tuple[_State, int, int, bool]] = field(default_factory=list)  # state, new, cached, yields
    end: int = 0


class ReferenceReplica:
    """Same interface and same log as replica.Replica."""

    def __init__(
        self,
        env: Clock,
        view: ReplicaView,
        settings: EngineSettings,
        costs: list[StepCost],
        cache: ReferenceCache,
        waiting: WaitingQueue,
        logs: Logs,
        on_finish: Callable[[InFlight], None],
        names: BlockNames,
    ) -> None:
        self.env, self.view, self.settings, self.costs, self.cost = env, view, settings, costs, costs[0]
        self.directions = 0  # in which copies run beside the steps
        self.brought: list[tuple[InFlight, int, int]] = []
        self.urgent: list[InFlight] = []
        self.reload: Callable[[InFlight, int, int], bool] | None = None
        self.given_way: list[InFlight] = []
        self.cache, self.waiting, self.logs, self.on_finish, self.names = cache, waiting, logs, on_finish, names
        self.inbox: list[InFlight] = []
        self.states: dict[InFlight, _State] = {}
        self.running: list[_State] = []
        self.in_flight: deque[_Batch] = deque()
        self.steps = self.busy = self.executed = self.preemptions = self.events = self.releases = self.prefetched = 0
        self.step_end = 0  # of the last step launched
        self.next: Event | None = None  # the boundary that counts

    def submit(self, call: InFlight) -> None:
        self.inbox.append(call)
        self.view.waiting += 1
        self.view.loads[self.view.replica] += 1

    def arrived(self, now: int) -> None:
        if not self.in_flight:
            self.cache.held = self.cache.num_blocks - self.cache.free
            self._schedule_all(now, now + 1)

    def withdraw(self, now: int, *, moved: bool = False) -> InFlight | None:  # noqa: ARG002 - every boundary is an event anyway
        call = self.waiting.withdraw(self.inbox, moved=moved)
        if call is not None:
            self.states.pop(call, None)
            self.view.waiting -= 1
            self.view.loads[self.view.replica] -= 1
        return call

    def lose(self, now: int) -> None:
        self.next = None
        self.busy -= max(0, self.step_end - now)
        self.step_end = min(self.step_end, now)
        self.inbox, self.states, self.running, self.in_flight = [], {}, [], deque()
        self.brought, self.urgent = [], []
        self.waiting.heap = []
        self.cache.clear()
        log_failure(self.logs, self.view, self.busy, self.steps, self.cache.evicted, now)

    def bring(self, call: InFlight, start: int, upto: int, now: int) -> None:  # noqa: ARG002
        self.brought.append((call, start, upto))

    def copies_run(self, directions: int, now: int) -> None:  # noqa: ARG002
        self.directions = directions

    def contenders(self, now: int) -> tuple[InFlight | None, list[InFlight]]:  # noqa: ARG002
        return self.waiting.head() if self.waiting.heap else None, [state.call for state in self.running]

    def preempt(self, calls: list[InFlight], now: int) -> None:  # noqa: ARG002
        self.urgent = calls

    def cached_blocks(self, call: InFlight, now: int, limit: int = -1) -> int:  # noqa: ARG002 - the state is that of now
        if limit < 0:
            limit = (call.known - 1) // BLOCK_TOKENS
        return len(self.cache.match(self.path_of(call), limit if self.settings.prefix_caching else 0))

    def path_of(self, call: InFlight) -> list[Name]:
        return self.names.of(call.plan.task, call.plan.index)

    def observe(self, call: InFlight, now: int) -> None:
        self.view.free_blocks = self.cache.free
        self.view.hit_tokens = self.cached_blocks(call, now) * BLOCK_TOKENS

    # ---- boundaries

    def _boundary(self, event: Event) -> None:
        if event is not self.next:
            return  # of a step that a failure cut off
        now = int(self.env.now)
        self.cache.held = self.cache.num_blocks - self.cache.free
        self._update(self.in_flight.popleft(), now)
        self._schedule_all(now, now)

    def _schedule_all(self, now: int, before: int) -> None:
        self.executed += 1
        self.cost = self.costs[self.directions]
        self._receive(before, now)
        while len(self.in_flight) < self.settings.lag:
            batch, preempted = self._schedule(now)
            if not batch.tokens:
                if preempted and not self.in_flight:
                    continue
                break
            start = self.in_flight[-1].end if self.in_flight else now
            batch.end = start + self._time(batch)
            self.in_flight.append(batch)
            self.step_end = batch.end
            self.steps += 1
            self.busy += batch.end - start
            for state, _, _, yields in batch.tokens:
                if yields and state.call.first_token < 0:
                    state.call.first_token = batch.end
        self.urgent = []
        if self.events:
            self.events = 0
            held = self.cache.num_blocks - self.cache.free
            view = self.view
            log = self.logs.occupancy
            cached, evicted, waits, runs = self.cache.cached, self.cache.evicted, view.waiting, view.running
            log.append(log.pack(now, view.replica, held, cached, waits, runs, self.busy, self.steps, evicted))
        if self.in_flight:
            left, priority = self.in_flight[0].end - now, boundary_priority(self.view.replica)
            self.next = self.env.call_in(left, priority, self._boundary)
        elif self.inbox:
            self.arrived(now)
        elif self.waiting.heap or self.running:
            raise LawError(f"replica {self.view.replica} is idle with {len(self.waiting.heap)} waiting calls")

    def _receive(self, before: int, now: int) -> None:
        for call, start, upto in self.brought:
            self.prefetched += self._adopt(call, start, upto, now)
        self.brought = []
        for call in [call for call in self.inbox if call.request.submitted_ps < before]:
            self.inbox.remove(call)
            self.states[call] = _State(call, self.path_of(call), call.plan.prompt_tokens)
            if call.carried:
                self._adopt(call, call.carried_from, call.carried, now)
                call.carried = 0
            self.waiting.push(call, call.request.submitted_ps)

    def _adopt(self, call: InFlight, start: int, upto: int, now: int) -> int:
        self.releases += 1
        self.events += 1
        return self.cache.adopt(self.path_of(call), start, upto, now, call.idle_context(self.releases, now))

    def _time(self, batch: _Batch) -> int:
        decodes = [cached + 1 for _, new, cached, _ in batch.tokens if new == 1]
        chunks = [(new, cached) for _, new, cached, _ in batch.tokens if new > 1]
        return self.cost.step(len(decodes), sum(decodes), max(decodes, default=0), chunks)

    # ---- schedule

    def _schedule(self, now: int) -> tuple[_Batch, bool]:
        settings, cache = self.settings, self.cache
        batch = _Batch()
        budget = settings.max_num_batched_tokens
        self._give_way(now)
        preempted = False
        position = 0
        while position < len(self.running) and budget:
            state = self.running[position]
            want = self._wanted(state, budget)
            if not want:
                position += 1
                continue
            while self._blocks_for(state, want) > cache.free:
                victim = self.running.pop()
                self._preempt(victim, now)
                preempted = True
                if victim is state:
                    break
            else:
                self._allocate(state, want, now)
                self._add(batch, state, want)
                budget -= want
                position += 1
                continue
            break
        while self.waiting.heap and budget and not preempted and len(self.running) < settings.max_num_seqs:
            state = self.states[self.waiting.head()]
            limit = (state.tokens - 1) // BLOCK_TOKENS if settings.prefix_caching else 0
            hits = cache.match(state.names, limit)
            state.computed = len(hits) * BLOCK_TOKENS
            want = self._wanted(state, budget)
            need = -(-(state.computed + want) // BLOCK_TOKENS) - len(hits)
            room = -(-state.tokens // BLOCK_TOKENS) - len(hits) if settings.reserve_full_prompt else need
            if room + sum(not block.holders for block in hits) > cache.free:
                state.computed = 0
                break
            call = state.call
            if self.reload is not None and call.admitted < 0 and self.reload(call, len(hits), limit):
                self.waiting.pop()
                del self.states[call]
                self.view.waiting -= 1
                self.view.loads[self.view.replica] -= 1
                self.events += 1
                continue
            self._admit(state, hits, limit, now)
            self._allocate(state, want, now)
            self._add(batch, state, want)
            budget -= want
        if self.given_way:
            preempted = True
            for call in self.given_way:
                self.waiting.push(call, now)
            self.given_way = []
        return batch, preempted

    def _wanted(self, state: _State, budget: int) -> int:
        left = state.tokens + state.placeholders - state.computed
        if self.settings.foreseen_stops and state.outputs + state.placeholders >= state.call.plan.output_tokens:
            return 0
        threshold = self.settings.long_prefill_token_threshold
        if threshold and left > threshold:
            left = threshold
        return min(left, budget)

    def _blocks_for(self, state: _State, want: int) -> int:
        return -(-(state.computed + want) // BLOCK_TOKENS) - len(state.blocks)

    def _allocate(self, state: _State, want: int, now: int) -> None:
        for _ in range(self._blocks_for(state, want)):
            state.blocks.append(self.cache.take(now))
        self._name_blocks(state, min(state.computed + want, state.tokens))

    def _name_blocks(self, state: _State, tokens: int) -> None:
        if not self.settings.prefix_caching:
            return
        for i in range(state.named, tokens // BLOCK_TOKENS):
            self.cache.cache(state.blocks[i], state.names[i], state.names[i - 1] if i else None)
            self.names.ever.add(state.names[i])
            state.named = i + 1

    def _add(self, batch: _Batch, state: _State, want: int) -> None:
        cached = state.computed
        state.computed += want
        yields = state.computed == state.tokens + state.placeholders
        batch.tokens.append((state, want, cached, yields))
        if yields:
            state.placeholders += 1

    def _admit(self, state: _State, hits: list[Block], limit: int, now: int) -> None:
        call = state.call
        self.waiting.pop()
        self.running.append(state)
        self.view.waiting -= 1
        self.view.running += 1
        self.events += 1
        if call.admitted < 0:
            call.admitted = now
            call.hit_tokens = len(hits) * BLOCK_TOKENS
        for name in state.names[len(hits) : limit]:
            if name in self.cache.ever:
                call.regenerated_here += BLOCK_TOKENS
            elif name in self.names.ever:
                call.regenerated_elsewhere += BLOCK_TOKENS
        for block in hits:
            if not block.holders and block.idle is not None:
                call.reused += now - block.idle.since_ps
            self.cache.touch(block)
        state.blocks = list(hits)
        state.named = len(hits)

    def _give_way(self, now: int) -> None:
        for call in self.urgent:
            if not self.waiting.heap:
                break
            head = self.states[self.waiting.head()]
            limit = (head.tokens - 1) // BLOCK_TOKENS if self.settings.prefix_caching else 0
            hits = self.cache.match(head.names, limit)
            room = -(-head.tokens // BLOCK_TOKENS) - len(hits) + sum(not block.holders for block in hits)
            if len(self.running) < self.settings.max_num_seqs and room <= self.cache.free:
                break
            for state in [state for state in self.running if state.call is call]:
                self.running.remove(state)
                self._preempt(state, now, urgent=True)
        self.urgent = []

    def _preempt(self, state: _State, now: int, *, urgent: bool = False) -> None:
        self.view.running -= 1
        self.view.waiting += 1
        self.preemptions += 1
        self.events += 1
        state.call.preemptions += 1
        self._release(state, now)
        state.computed = 0
        if state.outputs + state.placeholders < state.call.plan.output_tokens:
            if urgent:
                self.given_way.append(state.call)
            else:
                self.waiting.push_front(state.call)

    def _release(self, state: _State, now: int) -> None:
        self.releases += 1
        self.cache.release(state.blocks, state.call.idle_context(self.releases, now))
        state.blocks = []
        state.named = 0

    # ---- outputs

    def _update(self, batch: _Batch, now: int) -> None:
        for state, _, _, yields in batch.tokens:
            if state.finished or not yields:
                continue
            state.tokens += 1
            state.placeholders -= 1
            if state in self.running:
                self._name_blocks(state, state.computed - state.placeholders)
            if state.outputs == state.call.plan.output_tokens:
                self._finish(state, now)

    def _finish(self, state: _State, now: int) -> None:
        state.finished = True
        self.events += 1
        call = state.call
        if state in self.running:
            self.running.remove(state)
            self.view.running -= 1
            self._release(state, now)
        else:
            self.view.waiting -= 1
        self.view.loads[self.view.replica] -= 1
        del self.states[call]
        log_call(self.logs, call, self.view, now)
        self.on_finish(call)
        call.succeed()
