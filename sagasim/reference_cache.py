"""The block pool of vLLM v1, slow and plain: every block an object, found by what it holds.

Block identity comes from the calls themselves, not from branches; kvcache.py must agree with it, block by block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from sagasim.core import Task
from sagasim.plan import PlannedTask
from sagasim.seams import IdleContext, Memory, Ranker
from sagasim.units import BLOCK_TOKENS

__all__ = ["Block", "BlockNames", "Name", "ReferenceCache", "ReferenceHost"]

Name = tuple[object, str, int]  # who wrote the last token of a block, and which block of the path it is


class BlockNames:
    """Identity of the blocks of every context: equal names exactly where the token paths are equal."""

    def __init__(self) -> None:
        self._calls: dict[int, dict[str, list[Name]]] = {}
        self._prefixes: dict[str, list[Name]] = {}
        self.ever: set[Name] = set()  # once cached on any replica

    def of(self, plan: PlannedTask, index: int) -> list[Name]:
        """Names of the full blocks of a call's prompt and output."""
        names = self._calls.get(plan.number)
        if names is None:
            names = self._calls[plan.number] = self._name(plan.task, plan.number)
        return names[plan.task.calls[index].name]

    def forget(self, plan: PlannedTask) -> None:
        self._calls.pop(plan.number, None)

    def _name(self, task: Task, number: int) -> dict[str, list[Name]]:
        for prefix in task.prefixes:
            base = self._prefixes[prefix.extends] if prefix.extends is not None else []
            end = prefix.keep_tokens + prefix.new_tokens
            self._prefixes[prefix.name] = self._extend(base, prefix.keep_tokens, end, ("prefix", prefix.name))
        names: dict[str, list[Name]] = {}
        for call in task.calls:
            above: list[Name] = []
            if call.extends is not None:
                above = names[call.extends] if call.extends in names else self._prefixes[call.extends]
            end = call.prompt_tokens + call.output_tokens
            names[call.name] = self._extend(above, call.keep_tokens, end, (number, call.name))
        return names

    @staticmethod
    def _extend(above: list[Name], keep: int, end: int, owner: tuple[object, str]) -> list[Name]:
        kept = keep // BLOCK_TOKENS
        return above[:kept] + [(*owner, i) for i in range(kept, end // BLOCK_TOKENS)]


@dataclass(slots=True, eq=False)
class Block:
    """One KV block. name: of its content once it can be found; parent: the name before it in its path."""

    name: Name | None = None
    parent: Name | None = None
    holders: int = 0
    idle: IdleContext | None = None


class ReferenceCache:
    """The block pool of vLLM v1: a queue of free blocks and a map from content to blocks, earliest first."""

    def __init__(self, num_blocks: int, *, rank: Ranker | None, batch: int) -> None:
        self.num_blocks = num_blocks
        self.ever: set[Name] = set()
        self.evicted = 0
        self.on_evict: Callable[[list[Name]], None] | None = None
        self.worth: Callable[[IdleContext], bool] | None = None
        self._rank = rank
        self._batch = batch
        self.clear()

    def clear(self) -> None:
        self.queue: OrderedDict[int, Block] = OrderedDict()  # free blocks, next to be taken first
        self.found: dict[Name, list[Block]] = {}
        self.held = 0  # blocks that calls held when the last boundary began
        self.cached = 0  # free blocks that can be found
        for _ in range(self.num_blocks):
            self._put(Block())

    @property
    def free(self) -> int:
        return len(self.queue)

    def match(self, names: list[Name], limit: int) -> list[Block]:
        hits = []
        for name in names[:limit]:
            if name not in self.found:
                break
            hits.append(self.found[name][0])
        return hits

    def touch(self, block: Block) -> None:
        if not block.holders:
            del self.queue[id(block)]
            self.cached -= 1
        block.holders += 1

    def take(self, now: int) -> Block:
        if self._rank is not None and not any(block.name is None for block in self.queue.values()):
            self._evict_by_rank(min(self._batch, self.cached), now)
        if self._rank is None:
            block = next(iter(self.queue.values()))
        else:
            block = next(block for block in self.queue.values() if block.name is None)
        del self.queue[id(block)]
        self._drop(block)
        block.holders = 1
        return block

    def cache(self, block: Block, name: Name, parent: Name | None) -> None:
        block.name, block.parent = name, parent
        self.found.setdefault(name, []).append(block)
        self.ever.add(name)

    def adopt(self, names: list[Name], start: int, upto: int, now: int, idle: IdleContext) -> int:
        hits = self.match(names, upto)
        missing = min(upto - len(hits), self.free - sum(not block.holders for block in hits))
        if missing <= 0 or len(hits) < start:
            return 0
        for block in hits:
            self.touch(block)
        blocks = [*hits, *(self.take(now) for _ in range(missing))]
        for place in range(len(hits), len(blocks)):
            self.cache(blocks[place], names[place], names[place - 1] if place else None)
        self.release(blocks, idle)
        return missing

    def release(self, blocks: list[Block], idle: IdleContext) -> None:
        for block in reversed(blocks):
            block.holders -= 1
            if not block.holders:
                block.idle = idle
                self._put(block)

    def _put(self, block: Block) -> None:
        self.queue[id(block)] = block
        self.cached += block.name is not None

    def _drop(self, block: Block) -> None:
        if block.name is not None:
            self.found[block.name].remove(block)
            if not self.found[block.name]:
                del self.found[block.name]
            block.name = None
            self.evicted += 1
            self.cached -= 1

    def _evict_by_rank(self, count: int, now: int) -> None:
        """One block at a time: lowest rank (taken once), deepest first, never one that an idle block continues."""
        assert self._rank is not None
        idle = [block for block in self.queue.values() if block.name is not None and block.idle is not None]
        sizes: dict[int, int] = {}
        for block in idle:
            assert block.idle is not None
            sizes[block.idle.number] = sizes.get(block.idle.number, 0) + 1
        told = {b.idle.number: b.idle._replace(blocks=sizes[b.idle.number]) for b in idle if b.idle is not None}
        memory = Memory(self.num_blocks, self.held)
        ranks = dict(zip(told, self._rank(list(told.values()), now, memory), strict=True))
        gone: list[Name] = []
        for _ in range(count):
            continued = {block.parent for block in self.queue.values() if block.name is not None}
            order = sorted(
                (block for block in idle if block.name is not None),
                key=lambda b: (ranks[b.idle.number], b.idle.number, -b.name[2]) if b.idle and b.name else (0.0, 0, 0),
            )
            leaves = [block for block in order if block.name not in continued]
            block = (leaves or order)[0]
            assert block.name is not None
            if self.worth is None or (block.idle is not None and self.worth(block.idle)):
                gone.append(block.name)
            self._drop(block)
        if self.on_evict is not None and gone:
            self.on_evict(gone)


class ReferenceHost:
    """Host memory of a node, block by block, the oldest first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[Name, None] = OrderedDict()

    @property
    def used(self) -> int:
        return len(self.blocks)

    def missing(self, names: list[Name]) -> int:
        return sum(name not in self.blocks for name in names)

    def match(self, names: list[Name], at: int, limit: int) -> int:
        while at < limit and names[at] in self.blocks:
            at += 1
        return at

    def put(self, names: list[Name]) -> None:
        for name in names:
            self.blocks.pop(name, None)
            self.blocks[name] = None
        while len(self.blocks) > self.capacity:
            self.blocks.popitem(last=False)

    def touch(self, names: list[Name], start: int, upto: int) -> None:
        self.put(names[start:upto][::-1])
