"""Host memory of a node: a second tier for KV blocks that replicas of the node have evicted.

It keeps copies by content, least recently written or reloaded first to go. Neighbours that came together are one run
(branch, lo, hi), of which the deepest block is the oldest: a context loses its end before what leads to it.
"""

from __future__ import annotations

from sagasim.plan import Branch

__all__ = ["HostMemory", "Piece"]

Path = tuple[tuple[Branch, int], ...]
Piece = tuple[Branch, int, int]  # blocks lo..hi-1 of a branch


class _Run:
    __slots__ = ("branch", "hi", "lo")

    def __init__(self, branch: Branch, lo: int, hi: int) -> None:
        self.branch = branch
        self.lo = lo
        self.hi = hi


class HostMemory:
    """The blocks that a node's host memory holds, at most `capacity` of them."""

    __slots__ = ("_index", "_queue", "capacity", "used")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.used = 0
        self._queue: dict[_Run, None] = {}  # oldest first
        self._index: dict[Branch, list[_Run]] = {}

    def missing(self, pieces: list[Piece]) -> int:
        """How many blocks of these are not here."""
        count = 0
        for branch, lo, hi in pieces:
            count += hi - lo
            for run in self._index.get(branch, ()):
                if run.lo < hi and run.hi > lo:
                    count -= min(run.hi, hi) - max(run.lo, lo)
        return count

    def match(self, path: Path, at: int, limit: int) -> int:
        """Up to which block of a path, at most `limit`, every block from `at` on is here."""
        for branch, end in path:
            if end > limit:
                end = limit
            while at < end:
                for run in self._index.get(branch, ()):
                    if run.lo <= at < run.hi:
                        at = run.hi if run.hi < end else end
                        break
                else:
                    return at
            if at >= limit:
                break
        return at

    def put(self, pieces: list[Piece]) -> None:
        """These blocks are here now and the newest, in this order; the oldest make room."""
        for branch, lo, hi in pieces:
            self._take_out(branch, lo, hi)
            run = _Run(branch, lo, hi)
            self._queue[run] = None
            self._index.setdefault(branch, []).append(run)
            self.used += hi - lo
        while self.used > self.capacity:
            run = next(iter(self._queue))
            part = min(self.used - self.capacity, run.hi - run.lo)
            run.hi -= part
            self.used -= part
            if run.lo == run.hi:
                self._drop(run)

    def touch(self, path: Path, start: int, upto: int) -> None:
        """Blocks start..upto-1 of a path are the newest."""
        pieces: list[Piece] = []
        for branch, end in path:
            stop = end if end < upto else upto
            if stop > start:
                pieces.append((branch, start, stop))
                start = stop
            if stop == upto:
                break
        pieces.reverse()  # the deepest are the oldest
        self.put(pieces)

    def _take_out(self, branch: Branch, lo: int, hi: int) -> None:
        for run in list(self._index.get(branch, ())):
            if run.hi <= lo or run.lo >= hi:
                continue
            self.used -= min(run.hi, hi) - max(run.lo, lo)
            if run.lo < lo and run.hi > hi:  # its middle goes: two are left, neighbours in the queue
                self._cut(run, hi)
                run.hi = lo
            elif run.lo < lo:
                run.hi = lo
            elif run.hi > hi:
                run.lo = hi
            else:
                self._drop(run)

    def _cut(self, run: _Run, at: int) -> None:
        """Put the part of a run from block `at` on right before it in the queue: the deeper blocks go first."""
        deeper = _Run(run.branch, at, run.hi)
        self._index[run.branch].append(deeper)
        self._queue = {each: None for other in self._queue for each in ((deeper, run) if other is run else (other,))}

    def _drop(self, run: _Run) -> None:
        del self._queue[run]
        runs = self._index[run.branch]
        runs.remove(run)
        if not runs:
            del self._index[run.branch]
