"""Replay under rules that rank or queue what was written together: a segment of a branch, cut where a call forks off.

Only leaves may go: an idle segment that no resident one continues, from its deepest block up. So what is resident is
always a tree, and a chain is never broken. A rule (rules.py) is told what happens to segments and names the victim.
"""

from __future__ import annotations

from typing import Protocol

from sagasim.oracle.accesses import Access, Log, Path
from sagasim.plan import Branch

__all__ = ["Rule", "Segment", "SegmentCache", "replay_segments"]


class Segment:
    """Blocks lo..hi-1 of a branch, written by one call. Times count the calls that were opened."""

    __slots__ = (
        "branch", "children", "count", "hi", "key", "last", "lo", "main", "parent", "pins", "stamp", "writer",
    )  # fmt: skip

    def __init__(self, branch: Branch, lo: int, hi: int, parent: Segment | None, now: int) -> None:
        self.branch = branch
        self.lo = lo
        self.hi = hi
        self.parent = parent
        self.children = 0  # resident segments that continue this one
        self.pins = 0  # calls that hold it
        self.writer = now  # when it was written
        self.last = now  # when it was last opened or closed
        self.count = 1  # calls that opened it, the writer included
        self.key = 0.0  # for the rule
        self.main = False  # for the rule too: in the main queue, or used
        self.stamp = 0  # of its entry in the rule's order; 0: it may not go

    @property
    def blocks(self) -> int:
        return self.hi - self.lo


class Rule(Protocol):
    """How a policy follows what happens and chooses. whole: victims go as a whole, not only as far as needed."""

    whole: bool

    def inserted(self, segment: Segment) -> None:
        """It has been written."""

    def grown(self, segment: Segment, blocks: int) -> None:
        """Its writer has written on; segment.hi is that from before."""

    def found(self, segment: Segment) -> None:
        """A call has found it; its count is raised already."""

    def split(self, upper: Segment, lower: Segment) -> None:
        """`upper` was cut off the front of `lower`."""

    def may_go(self, segment: Segment) -> None:
        """It is idle and nothing continues it; it has a new stamp."""

    def victim(self) -> Segment:
        """A segment that may go."""
        ...

    def evicted(self, segment: Segment, blocks: int) -> None:
        """The last `blocks` blocks of it are going."""


def replay_segments(log: Log, num_blocks: int, rule: Rule) -> int:
    """Blocks found by all reads. num_blocks: at least what calls hold."""
    cache = SegmentCache(rule)
    at = hits = 0
    for stop, held in zip(log.stops, log.held, strict=True):
        for event in log.order[at:stop]:
            if event >= 0:
                hits += cache.open(event, log.accesses[event])
            else:
                cache.close(~event, log.accesses[~event])
        at = stop
        if cache.idle > num_blocks - held:
            cache.shrink(num_blocks - held)
    return hits


class SegmentCache:
    """Resident segments of one cache. idle: blocks that no call holds."""

    __slots__ = ("_branches", "_now", "_rule", "_stamp", "_tips", "idle")

    def __init__(self, rule: Rule) -> None:
        self.idle = 0
        self._rule = rule
        self._branches: dict[Branch, list[Segment]] = {}  # from the start of the branch on, without gaps
        self._tips: dict[int, Segment | None] = {}  # the deepest segment that each open call holds
        self._now = 0
        self._stamp = 0

    def open(self, number: int, access: Access) -> int:
        """The call holds what it reads and writes. Returns how many blocks it found."""
        self._now += 1
        tip, at = self._walk(access.path, access.written)
        segment = tip
        while segment is not None:
            if not segment.pins:
                self.idle -= segment.hi - segment.lo
                segment.stamp = 0
            segment.pins += 1
            segment.count += 1
            segment.last = self._now
            self._rule.found(segment)
            segment = segment.parent
        self._tips[number] = self._write(access.path, at, access.written, tip)
        return at if at < access.limit else access.limit

    def close(self, number: int, access: Access) -> None:
        """The call leaves its blocks."""
        self._now += 1
        tip = self._write(access.path, access.written, access.left, self._tips.pop(number))
        segment = tip
        while segment is not None:
            segment.pins -= 1
            segment.last = self._now
            if not segment.pins:
                self.idle += segment.hi - segment.lo
                self._offer(segment)
            segment = segment.parent

    def shrink(self, room: int) -> None:
        """Evict until at most `room` idle blocks are left."""
        rule = self._rule
        while self.idle > room:
            segment = rule.victim()
            length = segment.hi - segment.lo
            blocks = length if rule.whole else min(length, self.idle - room)
            rule.evicted(segment, blocks)
            segment.hi -= blocks
            self.idle -= blocks
            if blocks == length:
                self._remove(segment)

    # ---- the tree

    def _walk(self, path: Path, upto: int) -> tuple[Segment | None, int]:
        """The deepest resident segment of the path, cut off at block `upto`, and where it ends."""
        tip, at = None, 0
        for branch, end in path:
            stop = end if end < upto else upto
            if stop <= at:
                break
            for number, segment in enumerate(self._branches.get(branch, ())):
                if segment.lo >= stop:
                    break
                tip = segment if segment.hi <= stop else self._split(branch, number, stop)
                at = tip.hi
            if at < stop:
                break
        return tip, at

    def _write(self, path: Path, at: int, upto: int, tip: Segment | None) -> Segment | None:
        """The call that holds `tip` down to block `at` writes on to block `upto`."""
        for branch, end in path:
            if end <= at:
                continue
            stop = end if end < upto else upto
            if stop <= at:
                break
            segments = self._branches.setdefault(branch, [])
            if tip is not None and tip.branch is branch and tip.pins == 1 and tip.last == tip.writer:
                self._rule.grown(tip, stop - tip.hi)  # the call goes on with what it has just written
                tip.hi = stop
            else:
                tip = self._new(segments, Segment(branch, at, stop, tip, self._now))
            at = stop
        return tip

    def _new(self, segments: list[Segment], segment: Segment) -> Segment:
        segment.pins = 1
        if segment.parent is not None:
            segment.parent.children += 1
            segment.parent.stamp = 0
        segments.append(segment)
        self._rule.inserted(segment)
        return segment

    def _remove(self, segment: Segment) -> None:
        segment.stamp = 0
        segments = self._branches[segment.branch]
        segments.pop()
        if not segments:
            del self._branches[segment.branch]
        parent = segment.parent
        if parent is not None:
            parent.children -= 1
            self._offer(parent)

    def _offer(self, segment: Segment) -> None:
        if not segment.pins and not segment.children:
            self._stamp += 1
            segment.stamp = self._stamp
            self._rule.may_go(segment)

    def _split(self, branch: Branch, number: int, at: int) -> Segment:
        """Cut a segment at block `at`; returns the new upper part, the old object keeps the rest."""
        lower = self._branches[branch][number]
        upper = Segment(branch, lower.lo, at, lower.parent, lower.writer)
        upper.children, upper.pins, upper.count, upper.last = 1, lower.pins, lower.count, lower.last
        upper.key, upper.main = lower.key, lower.main
        lower.lo, lower.parent = at, upper
        self._branches[branch].insert(number, upper)
        self._rule.split(upper, lower)
        return upper
