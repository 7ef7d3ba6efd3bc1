"""Yardsticks: evictions that are known from elsewhere, by session, as far as a policy in the engine can follow them.

A session is what an agent of a task left in the cache. A policy sees idle sessions only when blocks run out: when a
session came first is when it was first seen idle, and how often it was used is how many calls its context has behind
it. Replayed block by block, and exactly, the same rules are found in `sagasim oracle`.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagasim.plan import Context
from sagasim.rng import Stream
from sagasim.seams import IdleContext, Memory, policy
from sagasim.units import BLOCK_TOKENS

__all__ = ["Fifo", "Gdsf", "Random", "S3Fifo", "Sieve", "lfu", "uses"]

Idles = Sequence[IdleContext]
Session = tuple[str, str]


def uses(context: Context | None) -> int:
    """Calls that used the context: the one that it belongs to and all that it continues."""
    count = 0
    while context is not None and not context.named:
        count += 1
        context = context.parent
    return count


class _Arrivals:
    """Sessions in the order in which they were first seen."""

    def __init__(self) -> None:
        self._places: dict[Session, int] = {}

    def of(self, idle: IdleContext) -> int:
        return self._places.setdefault((idle.task, idle.agent), len(self._places))

    def see(self, idles: Idles) -> list[int]:
        """Places of the sessions; those that are new in the order of their release."""
        for idle in sorted(idles, key=lambda idle: (idle.since_ps, idle.task, idle.agent)):
            self.of(idle)
        return [self.of(idle) for idle in idles]


@policy("evict", "fifo", together=True)
class Fifo:
    """The session that came first goes first, used again or not."""

    def __init__(self) -> None:
        self._arrivals = _Arrivals()

    def __call__(self, idles: Idles, now_ps: int, memory: Memory) -> list[int]:
        return self._arrivals.see(idles)


@policy("evict", "lfu")
def lfu(idle: IdleContext, now_ps: int) -> tuple[int, int]:
    """The context that the fewest calls have used, of those the one used longest ago."""
    return uses(idle.context), idle.since_ps


@policy("evict", "gdsf", together=True, limits={"even_tokens": (0, 1e9)})
class Gdsf:
    """Least L + uses * cost / size, taken when a context becomes idle; L is the least there was at the last eviction.

    cost / size is the prefill time of its last block: a token attends to all before it, which costs as much as all
    else at a depth of `even_tokens` (about 54,000 for 70 billion parameters: 2 N over 4 layers * hidden).
    """

    def __init__(self, *, even_tokens: float = 54_000.0) -> None:
        self._even_tokens = even_tokens
        self._inflation = 0.0
        self._scores: dict[Session, tuple[int, float]] = {}  # of the release at that time

    def __call__(self, idles: Idles, now_ps: int, memory: Memory) -> list[float]:
        scores = [self._score(idle) for idle in idles]
        self._inflation = max(self._inflation, min(scores))
        return scores

    def _score(self, idle: IdleContext) -> float:
        session = (idle.task, idle.agent)
        since, score = self._scores.get(session, (-1, 0.0))
        if since != idle.since_ps:
            cost = 1.0 + idle.context.prompt_tokens / self._even_tokens
            score = self._inflation + uses(idle.context) * cost
            self._scores[session] = (idle.since_ps, score)
        return score


@policy("evict", "s3-fifo", together=True, limits={"often": (1, 1e6)})
class S3Fifo:
    """Sessions in two queues: new ones go first, in the order they came; those used often enough, after them.

    A tenth of the memory is for new ones: while they have less, the others go first. often: uses that make a session
    one of the others (S3-FIFO: two after it came).
    """

    def __init__(self, *, often: int = 3) -> None:
        self._often = often
        self._arrivals = _Arrivals()

    def __call__(self, idles: Idles, now_ps: int, memory: Memory) -> list[tuple[bool, int]]:
        places = self._arrivals.see(idles)
        proven = [uses(idle.context) >= self._often for idle in idles]
        new = sum(idle.blocks for idle, old in zip(idles, proven, strict=True) if not old)
        new_first = 10 * new >= memory.num_blocks - memory.held_blocks
        return [(old == new_first, place) for old, place in zip(proven, places, strict=True)]


@policy("evict", "sieve", together=True)
class Sieve:
    """A queue of sessions and a hand: who was used since the hand passed is spared once, the first who was not goes."""

    def __init__(self) -> None:
        self._arrivals = _Arrivals()
        self._hand = 0
        self._passed: dict[Session, int] = {}  # when it was last used, as the hand or its first sight found it

    def __call__(self, idles: Idles, now_ps: int, memory: Memory) -> list[tuple[bool, bool, int]]:
        places = self._arrivals.see(idles)
        ranks = []
        for idle, place in zip(idles, places, strict=True):
            used = self._passed.setdefault((idle.task, idle.agent), idle.since_ps) != idle.since_ps
            ranks.append((used, place < self._hand, place))
        first = min(ranks)
        for idle, place, (used, behind, _) in zip(idles, places, ranks, strict=True):
            if used and (first[0] or (behind, place) < first[1:]):
                self._passed[idle.task, idle.agent] = idle.since_ps  # the hand has passed it
        self._hand = first[2]
        return ranks


@policy("evict", "random", limits={"seed": (0, 2**63 - 1)})
class Random:
    """Any context, each as likely; drawn anew for each release."""

    def __init__(self, *, seed: int = 0) -> None:
        self._seed = seed

    def __call__(self, idle: IdleContext, now_ps: int) -> float:
        blocks = idle.context.prompt_tokens // BLOCK_TOKENS
        return Stream(self._seed, "evict", idle.task, idle.agent, idle.since_ps, blocks).uniform()
