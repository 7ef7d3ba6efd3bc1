"""Replay under an order of blocks: the optimum, and least recently used with and without regard to prefixes.

Idle blocks go in the order of a key that is fixed when their last holder closes. Runs of blocks stand for single ones:
blocks of a branch with the same holders and the same key are one run, so that a call costs a constant number of
operations for each branch of its path and each fork of its future, whatever the number of blocks.

    belady        farthest next read first, of those the deepest: what is never read again is not even kept
    lru           least recently released first, the deepest first: vLLM's queue, but blank blocks go before all
    flat-lru      least recently released first, the first block of a prompt first: recency that knows no prefixes
"""

from __future__ import annotations

from heapq import heappop, heappush

from sagasim.oracle.accesses import Access, Log, Path
from sagasim.oracle.future import NEVER, NextUses
from sagasim.plan import Branch

__all__ = ["BLOCK_ORDERS", "BlockCache", "replay_blocks"]

BLOCK_ORDERS = ("belady", "lru", "flat-lru")


class Run:
    """Blocks lo..hi-1 of a branch. ref: calls that hold them; key: while idle, their place in the order."""

    __slots__ = ("branch", "hi", "key", "lo", "ref", "stamp")

    def __init__(self, branch: Branch, lo: int, hi: int, ref: int) -> None:
        self.branch = branch
        self.lo = lo
        self.hi = hi
        self.ref = ref
        self.key = 0
        self.stamp = 0  # of its entry in the order; 0: it has none


Entry = tuple[int, int, int, Run]


def replay_blocks(log: Log, num_blocks: int, order: str, uses: NextUses | None) -> int:
    """Blocks found by all reads. uses: the future, for belady. num_blocks: at least what calls hold."""
    cache = BlockCache(root_first=order == "flat-lru")
    at = hits = released = 0
    for stop, held in zip(log.stops, log.held, strict=True):
        for event in log.order[at:stop]:
            if event >= 0:
                hits += cache.open(log.accesses[event])
            elif uses is not None:
                cache.close(log.accesses[~event], uses.of(~event))
            else:
                released += 1
                access = log.accesses[~event]
                cache.close(access, [(access.left, -released)])
        at = stop
        if cache.idle > num_blocks - held:
            cache.shrink(num_blocks - held)
    return hits


class BlockCache:
    """Resident blocks of one cache. idle: blocks that no call holds."""

    __slots__ = ("_order", "_root_first", "_runs", "_stamp", "idle")

    def __init__(self, *, root_first: bool = False) -> None:
        self.idle = 0
        self._root_first = root_first
        self._runs: dict[Branch, list[Run]] = {}  # by branch, ascending, disjoint
        self._order: list[Entry] = []  # largest key first
        self._stamp = 0

    def open(self, access: Access) -> int:
        """The call holds what it reads and writes. Returns how many blocks it found: a chain from its first one on."""
        written = access.written
        at = found = 0
        for branch, end in access.path:
            stop = end if end < written else written
            if stop <= at:
                break
            resident = self._hold(branch, at, stop)
            if found == at:
                found += resident
            at = stop
        return found if found < access.limit else access.limit

    def close(self, access: Access, pieces: list[tuple[int, int]]) -> None:
        """The call lets go of its blocks. pieces: (end, key), from the root down; a larger key goes earlier."""
        self._extend(access.path, access.written, access.left)
        at = number = 0
        for branch, end in access.path:
            stop = end if end < access.left else access.left
            while at < stop:
                upto, key = pieces[number]
                if upto > stop:
                    upto = stop
                else:
                    number += 1
                self._let_go(branch, at, upto, key)
                at = upto
            if at == access.left:
                break

    def shrink(self, room: int) -> None:
        """Evict until at most `room` idle blocks are left."""
        excess = self.idle - room
        order = self._order
        while excess > 0:
            _, _, stamp, run = order[0]
            if run.stamp != stamp:
                heappop(order)
                continue
            length = run.hi - run.lo
            if length <= excess:
                heappop(order)
                self._remove(run)
            else:
                length = excess
                if self._root_first:
                    run.lo += length
                else:
                    run.hi -= length
            self.idle -= length
            excess -= length

    # ---- runs

    def _extend(self, path: Path, written: int, left: int) -> None:
        """The call holds blocks written..left-1 too."""
        at = written
        for branch, end in path:
            if end <= at:
                continue
            stop = end if end < left else left
            if stop <= at:
                break
            runs = self._runs.get(branch)
            if runs is not None and len(runs) == 1 and runs[0].hi == at and runs[0].ref == 1:
                runs[0].hi = stop  # the usual case: its own branch grows
            else:
                self._hold(branch, at, stop)
            at = stop

    def _hold(self, branch: Branch, lo: int, hi: int) -> int:
        """One more call holds blocks lo..hi-1. Returns how many were resident before the first that was not."""
        runs = self._runs.get(branch)
        if runs is None:
            self._runs[branch] = [Run(branch, lo, hi, 1)]
            return 0
        if len(runs) == 1 and runs[0].lo == lo and runs[0].hi <= hi:  # the usual case
            run = runs[0]
            resident = run.hi - lo
            self._take(run)
            if run.hi < hi:
                if run.ref == 1:
                    run.hi = hi
                else:
                    runs.append(Run(branch, run.hi, hi, 1))
            return resident
        number = 0
        while number < len(runs) and runs[number].hi <= lo:
            number += 1
        at, resident = lo, -1
        while at < hi:
            if number == len(runs) or runs[number].lo > at:
                if resident < 0:
                    resident = at - lo
                stop = hi if number == len(runs) or runs[number].lo > hi else runs[number].lo
                runs.insert(number, Run(branch, at, stop, 1))
                at = stop
            else:
                if runs[number].lo < at:
                    self._split(runs, number, at)
                    number += 1
                if runs[number].hi > hi:
                    self._split(runs, number, hi)
                self._take(runs[number])
                at = runs[number].hi
            number += 1
        return hi - lo if resident < 0 else resident

    def _take(self, run: Run) -> None:
        if not run.ref:
            self.idle -= run.hi - run.lo
            run.stamp = 0
        run.ref += 1

    def _split(self, runs: list[Run], number: int, at: int) -> None:
        """Cut runs[number] at block `at`: the new upper part comes before it, and is about to be held or let go."""
        run = runs[number]
        upper = Run(run.branch, run.lo, at, run.ref)
        run.lo = at
        runs.insert(number, upper)
        if not run.ref:
            self._enter(run)

    def _let_go(self, branch: Branch, lo: int, hi: int, key: int) -> None:
        runs = self._runs[branch]
        number = 0
        while runs[number].hi <= lo:
            number += 1
        at = lo
        while at < hi:
            if runs[number].lo < at:
                self._split(runs, number, at)
                number += 1
            if runs[number].hi > hi:
                self._split(runs, number, hi)
            run = runs[number]
            at = run.hi
            run.ref -= 1
            if not run.ref:
                if key == NEVER:
                    runs.pop(number)
                    continue
                self.idle += run.hi - run.lo
                run.key = key
                before = runs[number - 1] if number else None
                if before is not None and not before.ref and before.key == key and before.hi == run.lo:
                    before.stamp = 0  # let go together: one run again
                    run.lo = before.lo
                    runs.pop(number - 1)
                    number -= 1
                self._enter(run)
            number += 1
        if not runs:
            del self._runs[branch]

    def _enter(self, run: Run) -> None:
        self._stamp += 1
        run.stamp = self._stamp
        heappush(self._order, (-run.key, run.lo if self._root_first else -run.hi, self._stamp, run))

    def _remove(self, run: Run) -> None:
        run.stamp = 0
        runs = self._runs[run.branch]
        if len(runs) == 1:
            del self._runs[run.branch]
        else:
            runs.remove(run)
