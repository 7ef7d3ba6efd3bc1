"""The cache on runs of blocks against one of single blocks with hash chains: same hits, evictions, order, copies."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Task
from sagasim.kvcache import BlockTable, KVCache
from sagasim.plan import PlannedCall, PlannedTask, Prefixes, plan_task
from sagasim.reference_cache import Block, BlockNames, ReferenceCache
from sagasim.seams import IdleContext
from sagasim.units import BLOCK_TOKENS
from tests import strategies


class Pair:
    """The same calls held in both caches; after every step both must agree on everything that can be seen."""

    def __init__(self, tasks: list[Task], num_blocks: int) -> None:
        prefixes = Prefixes()
        self.plans: list[PlannedTask] = [plan_task(task, i, 0, prefixes) for i, task in enumerate(tasks)]
        self.names = BlockNames()
        self.fast = KVCache(num_blocks, 0)
        self.slow = ReferenceCache(num_blocks, rank=None, batch=1)
        self.held: dict[PlannedCall, tuple[BlockTable, list[Block]]] = {}
        self.releases = 0
        self.identity = {}
        for plan in self.plans:
            for call in plan.calls:
                for i, name in enumerate(self.names.of(plan, call.index)):
                    branch = next(b for b, end in call.branch.path if i < end)
                    assert self.identity.setdefault((branch, i), name) == name  # one name for one place

    def start(self, call: PlannedCall, registered: int, now: int) -> None:
        """Admit a call: hits, new blocks for its whole prompt, the first `registered` full ones of them findable."""
        path, names = call.branch.path, self.names.of(call.task, call.index)
        limit = (call.prompt_tokens - 1) // BLOCK_TOKENS
        portions, hits, idle = self.fast.match(path, limit)
        blocks = self.slow.match(names, limit)
        assert hits == len(blocks)
        assert idle == sum(not block.holders for block in blocks)
        need = -(-call.prompt_tokens // BLOCK_TOKENS) - hits
        if need + idle > self.fast.free:
            return
        table = BlockTable()
        self.fast.hold(table, portions, now)
        self.fast.take(table, need, now)
        for block in blocks:
            self.slow.touch(block)
        blocks = blocks + [self.slow.take(now) for _ in range(need)]
        self.held[call] = (table, blocks)
        self.register(call, registered, hits)

    def register(self, call: PlannedCall, upto: int, start: int | None = None) -> None:
        table, blocks = self.held[call]
        names = self.names.of(call.task, call.index)
        start = table.registered if start is None else start
        upto = min(upto, len(blocks), len(names))
        self.fast.register(table, call.branch.path, upto)
        for i in range(start, upto):
            self.slow.cache(blocks[i], names[i], names[i - 1] if i else None)

    def grow(self, call: PlannedCall, count: int, now: int) -> None:
        if count <= self.fast.free:
            table, blocks = self.held[call]
            self.fast.take(table, count, now)
            blocks += [self.slow.take(now) for _ in range(count)]

    def finish(self, call: PlannedCall, now: int) -> None:
        table, blocks = self.held.pop(call)
        self.releases += 1
        idle = IdleContext(self.releases, call.task.task.name, "", "", call.context, now, 0)
        self.fast.release(table, now, idle)
        self.slow.release(blocks, idle)

    def check(self) -> None:
        self.fast.check_integrity()
        assert self.fast.free == self.slow.free
        assert self.fast.cached == self.slow.cached
        assert self.fast.evicted == self.slow.evicted
        assert self.queue() == [block.name for block in self.slow.queue.values()]

    def queue(self) -> list[object]:
        """Contents of the free blocks in the order in which they go."""
        order: list[object] = []
        run = self.fast._queue.next
        while run is not self.fast._queue:
            blocks = reversed(range(run.lo, run.hi))
            order += [None if run.branch is None else self.identity[run.branch, i] for i in blocks]
            run = run.next
        return order


@given(strategies.tasks(max_tasks=3), st.integers(20, 60), st.data())
@settings(max_examples=250)
def test_runs_equal_single_blocks(tasks: list[Task], num_blocks: int, data: st.DataObject) -> None:
    pair = Pair(tasks, num_blocks)
    calls = [call for plan in pair.plans for call in plan.calls]
    for now in range(data.draw(st.integers(1, 40))):
        call = data.draw(st.sampled_from(calls))
        full = (call.prompt_tokens + call.output_tokens) // BLOCK_TOKENS
        if call not in pair.held:
            pair.start(call, data.draw(st.integers(0, call.prompt_tokens // BLOCK_TOKENS)), now)
        elif data.draw(st.booleans()):
            pair.grow(call, data.draw(st.integers(0, 3)), now)
            pair.register(call, data.draw(st.integers(0, full)))
        else:
            pair.finish(call, now)
        pair.check()
    for call in list(pair.held):
        pair.finish(call, 1000)
        pair.check()
    assert pair.fast.free == num_blocks
