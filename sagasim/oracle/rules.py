"""The yardstick rules on segments: how each ranks or queues what may go. None of them knows the future.

Stated as libCacheSim has them (commit 0252dcf), for objects of one size; here an object is a segment, its size counts
where a rule counts sizes, only leaves may go, and what may not go is passed over as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from sagasim.oracle.segments import Rule, Segment
from sagasim.plan import Branch
from sagasim.rng import Stream
from sagasim.units import BLOCK_TOKENS

__all__ = ["RULES", "Setting"]


class Setting(NamedTuple):
    """What a rule may depend on: the memory, the depth at which attention costs as much as all else, a seed."""

    num_blocks: int
    even_tokens: float = math.inf
    seed: int = 0


class _Passive:
    """A rule that need not be told."""

    whole = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def inserted(self, segment: Segment) -> None:
        pass

    def grown(self, segment: Segment, blocks: int) -> None:
        pass

    def found(self, segment: Segment) -> None:
        pass

    def split(self, upper: Segment, lower: Segment) -> None:
        pass

    def evicted(self, segment: Segment, blocks: int) -> None:
        pass


class _Ranked(_Passive):
    """Segments that may go in the order of a key that is fixed while they are idle, then of becoming idle."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._order: list[tuple[float, float, int, Segment]] = []

    def may_go(self, segment: Segment) -> None:
        first, second = self.key(segment)
        heappush(self._order, (first, second, segment.stamp, segment))

    def key(self, segment: Segment) -> tuple[float, float]:
        raise NotImplementedError

    def victim(self) -> Segment:
        order = self._order
        while order[0][3].stamp != order[0][2]:
            heappop(order)
        return order[0][3]


class PrefixLru(_Ranked):
    """The leaf that was used longest ago, as a whole, as in SGLang's tree."""

    whole = True

    def key(self, segment: Segment) -> tuple[float, float]:
        return segment.last, 0


class Fifo(_Ranked):
    """What was written first."""

    def key(self, segment: Segment) -> tuple[float, float]:
        return segment.writer, 0


class Lfu(_Ranked):
    """What the fewest calls have used since it was written, of those the one used longest ago."""

    def key(self, segment: Segment) -> tuple[float, float]:
        return segment.count, segment.last


class Gdsf(_Ranked):
    """Least L + uses * cost / size, where L is that of the last victim and cost / size the prefill time of a block.

    A token attends to all before it: at a depth of `even_tokens` attention costs as much as all else.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._inflation = 0.0

    def _score(self, segment: Segment) -> None:
        cost = 1.0 + segment.hi * BLOCK_TOKENS / self.setting.even_tokens
        segment.key = self._inflation + segment.count * cost

    def inserted(self, segment: Segment) -> None:
        self._score(segment)

    def found(self, segment: Segment) -> None:
        self._score(segment)

    def key(self, segment: Segment) -> tuple[float, float]:
        return segment.key, segment.last

    def evicted(self, segment: Segment, blocks: int) -> None:
        del blocks
        self._inflation = max(self._inflation, segment.key)


class Sieve(_Passive):
    """A queue and a hand from its oldest end: a used segment is spared once, the first unused one goes.

    key: place in the queue. main: used since the hand passed. What becomes idle behind the hand waits for its return.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._places = self._settled = 0  # the newest place, and that of what was there before the last eviction
        self._hand = -1.0
        self._ahead: list[tuple[float, int, Segment]] = []
        self._behind: list[tuple[float, int, Segment]] = []

    def inserted(self, segment: Segment) -> None:
        self._places += 1
        segment.key = self._places

    def found(self, segment: Segment) -> None:
        segment.main = True

    def may_go(self, segment: Segment) -> None:
        self._settled = self._places
        heappush(self._ahead if segment.key > self._hand else self._behind, (segment.key, segment.stamp, segment))

    def victim(self) -> Segment:
        while True:
            if not self._ahead:
                self._ahead, self._behind, self._hand = self._behind, [], -1.0
            place, stamp, segment = self._ahead[0]
            if segment.stamp != stamp:
                heappop(self._ahead)
            elif segment.main:
                segment.main = False
                self._hand = place
                heappush(self._behind, heappop(self._ahead))
            else:
                self._hand = place
                return segment

    def evicted(self, segment: Segment, blocks: int) -> None:
        if blocks == segment.blocks and segment.key >= self._settled:  # the newest went: the hand starts again
            self._behind += self._ahead
            heapify(self._behind)
            self._ahead, self._hand = [], math.inf


class S3Fifo(_Passive):
    """Three queues: small (10 %), main (90 %), and the names of what small has dropped (90 %).

    What is written goes to small; to main if its name is remembered, or while small is full and nothing was ever
    evicted. The oldest of small goes, or on to main if at least two calls have found it; the oldest of main goes, or to
    its end with one use less (of three at most). count: calls that found it since; key: place in its queue.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        num_blocks = setting.num_blocks
        small = num_blocks // 10
        self._small_limit, self._main_limit, self._ghost_limit = small, num_blocks - small, num_blocks * 9 // 10
        self._places = 0
        self._blocks = [0, 0]  # in small, in main
        self._queues: list[list[tuple[float, int, Segment]]] = [[], []]
        self._ghost: dict[tuple[Branch, int], int] = {}  # first block of what was dropped -> how many
        self._ghost_blocks = 0
        self._written: list[Segment] = []  # queued once there is room for it
        self._evicts = False

    def inserted(self, segment: Segment) -> None:
        remembered = self._ghost.pop((segment.branch, segment.lo), 0)
        self._ghost_blocks -= remembered
        segment.main = remembered > 0
        self._written.append(segment)

    def grown(self, segment: Segment, blocks: int) -> None:
        if segment.key:
            self._blocks[segment.main] += blocks

    def split(self, upper: Segment, lower: Segment) -> None:
        if not lower.key:
            self._written.append(upper)

    def may_go(self, segment: Segment) -> None:
        for written in self._written:
            written.main = written.main or (not self._evicts and self._blocks[0] >= self._small_limit)
            written.count = 0
            self._blocks[written.main] += written.blocks
            self._place(written)
        self._written.clear()
        heappush(self._queues[segment.main], (segment.key, segment.stamp, segment))

    def victim(self) -> Segment:
        self._evicts = True
        turn = self._blocks[1] > self._main_limit  # whose turn it is, for as long as there is anything in it
        while True:
            small, main = (self._first(queue) for queue in self._queues)
            if main is not None and (turn or small is None):
                if not main.count:
                    return main
                heappop(self._queues[1])
                main.count = min(main.count, 3) - 1
            else:
                assert small is not None
                if small.count < 2:
                    return small
                main = heappop(self._queues[0])[2]
                main.main, main.count = True, 0
                self._blocks[0] -= main.blocks
                self._blocks[1] += main.blocks
            self._place(main)
            heappush(self._queues[1], (main.key, main.stamp, main))

    def evicted(self, segment: Segment, blocks: int) -> None:
        self._blocks[segment.main] -= blocks
        if segment.main:
            return
        name = (segment.branch, segment.hi - blocks)
        self._ghost_blocks += blocks - self._ghost.pop(name, 0)
        self._ghost[name] = blocks
        while self._ghost_blocks > self._ghost_limit:
            self._ghost_blocks -= self._ghost.pop(next(iter(self._ghost)))

    def _place(self, segment: Segment) -> None:
        self._places += 1
        segment.key = self._places

    @staticmethod
    def _first(queue: list[tuple[float, int, Segment]]) -> Segment | None:
        while queue and queue[0][2].stamp != queue[0][1]:
            heappop(queue)
        return queue[0][2] if queue else None


class Random(_Passive):
    """Any segment that may go, each as likely."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._stream = Stream(setting.seed, "evict")
        self._all: list[tuple[int, Segment]] = []

    def may_go(self, segment: Segment) -> None:
        self._all.append((segment.stamp, segment))

    def victim(self) -> Segment:
        while True:
            chosen = self._stream.integer(0, len(self._all) - 1)
            stamp, segment = self._all[chosen]
            if segment.stamp == stamp:
                return segment
            self._all[chosen] = self._all[-1]
            self._all.pop()


RULES: dict[str, Callable[[Setting], Rule]] = {
    "prefix-lru": PrefixLru,
    "fifo": Fifo,
    "lfu": Lfu,
    "gdsf": Gdsf,
    "s3-fifo": S3Fifo,
    "sieve": Sieve,
    "random": Random,
}
