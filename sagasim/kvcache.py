"""Residency of KV blocks on one replica, as vLLM v1 keeps it, on runs of blocks instead of single blocks.

vLLM keeps one queue of free blocks. A finished call's blocks join its tail, last block first; new blocks are taken from
its head, and a block that held cached tokens is evicted by that. Identical blocks may exist several times; the earliest
registered one is found. Because a path is released as a whole and deepest first, neighbours in a path are neighbours in
the queue: a run (branch, lo, hi) stands for blocks lo..hi-1 that share holders and queue place, evicted from hi down.
Runs are split where a prompt needs only a part and joined again when released together.

A scored eviction replaces the queue order: blank blocks go first, then idle contexts by rank, always deepest block
first and only where no idle block continues it. (Whoever holds a continuation holds a copy of what comes before it.)
"""

from __future__ import annotations

from collections.abc import Callable

from sagasim.errors import LawError
from sagasim.plan import Branch
from sagasim.seams import IdleContext, Memory, Ranker

__all__ = ["BlockTable", "KVCache", "Portion", "Run"]

Path = tuple[tuple[Branch, int], ...]


class Run:
    """Blocks lo..hi-1 of a branch (None: blank blocks, which hold nothing that can be found)."""

    __slots__ = ("branch", "hi", "idle", "lo", "next", "prev", "ref", "since")

    def __init__(self, branch: Branch | None, lo: int, hi: int) -> None:
        self.branch = branch
        self.lo = lo
        self.hi = hi
        self.ref = 0  # calls that hold it
        self.since = 0  # when its last holder let go of it, in ps
        self.idle: IdleContext | None = None  # who that was; kept only for a scored eviction
        self.prev: Run = self
        self.next: Run = self


Portion = tuple[Run, int, int]  # blocks lo..hi-1 of a run


class BlockTable:
    """The blocks that a call holds: runs from the root down, then private blocks up to `allocated`."""

    __slots__ = ("allocated", "registered", "runs")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.registered = 0  # blocks in runs
        self.allocated = 0  # blocks in all


class KVCache:
    """All blocks of one replica. free: blocks that no call holds; cached: those of them that can still be hit."""

    __slots__ = (
        "_batch", "_duplicated", "_forks", "_holders", "_index", "_queue", "_rank", "_replica", "blank",
        "cached", "evicted", "free", "held", "num_blocks", "on_evict", "scored", "worth",
    )  # fmt: skip

    def __init__(self, num_blocks: int, replica: int, *, rank: Ranker | None = None, batch: int = 1) -> None:
        self.num_blocks = num_blocks
        self.evicted = 0
        self._replica = replica
        self._rank = rank
        self._batch = batch
        self.scored = rank is not None
        # is told which blocks (branch, lo, hi) a scored eviction takes, in order
        self.on_evict: Callable[[list[tuple[Branch, int, int]]], None] | None = None
        self.worth: Callable[[IdleContext], bool] | None = None  # telling: None if all are
        self.clear()

    def clear(self) -> None:
        """All blocks are free and hold nothing."""
        self.free = self.num_blocks
        self.cached = 0
        self.held = 0  # blocks that calls held when the last boundary began, for a scored eviction
        self.blank = self.num_blocks  # free blocks that hold nothing; kept only for a scored eviction
        self._index: dict[Branch, list[Run]] = {}  # in order of registration
        self._forks: dict[Branch, set[Branch]] = {}  # branch -> branches in the index that fork from it
        self._duplicated: set[Branch] = set()  # branches that have held a block twice
        self._holders: set[BlockTable] = set()
        self._queue = Run(None, 0, 0)  # sentinel: next is the head, prev the tail
        if not self.scored:
            self._append(Run(None, 0, self.num_blocks))

    # ---- looking

    def match(self, path: Path, limit: int) -> tuple[list[Portion], int, int]:
        """The longest cached chain of at most `limit` blocks: portions, blocks, idle ones of them. Changes nothing."""
        portions: list[Portion] = []
        index = self._index
        at = idle = 0
        for branch, end in path:
            if end > limit:
                end = limit
            runs = index.get(branch)
            if runs is None:
                break
            while at < end:
                for number, run in enumerate(runs):  # noqa: B007
                    if run.lo <= at < run.hi:
                        break
                else:
                    return portions, at, idle
                hi = run.hi if run.hi < end else end
                if number:
                    for earlier in runs[:number]:  # a copy registered before this one is found from its start on
                        if at < earlier.lo < hi:
                            hi = earlier.lo
                portions.append((run, at, hi))
                if not run.ref:
                    idle += hi - at
                at = hi
            if at >= limit:
                break
        return portions, at, idle

    def once_cached(self, path: Path, limit: int) -> tuple[int, int]:
        """Blocks of the path, at most `limit`, that were ever cached: on this replica, and on any."""
        here = anywhere = 0
        for branch, end in reversed(path):
            if end > limit:
                end = limit
            if not anywhere and branch.ever_any:
                anywhere = branch.ever_any if branch.ever_any < end else end
            known = branch.ever.get(self._replica)
            if known is not None:
                here = known if known < end else end
                break
        return here, anywhere

    # ---- changing

    def hold(self, call: BlockTable, portions: list[Portion], now: int) -> int:
        """Give the call these blocks; idle ones leave the queue. Returns idle blocks times their idle ps."""
        reused = 0
        self._holders.add(call)
        runs = call.runs
        for run, lo, hi in portions:
            if lo > run.lo:
                self._split(run, lo)
            if hi < run.hi:
                run = self._split(run, hi)  # the upper part is what is held
            if run.ref:
                run.ref += 1
            else:
                run.ref = 1
                length = run.hi - run.lo
                self.free -= length
                self.cached -= length
                reused += length * (now - run.since)
                before, after = run.prev, run.next  # it leaves the queue
                before.next = after
                after.prev = before
            runs.append(run)
        if runs:
            call.registered = call.allocated = runs[-1].hi
        return reused

    def take(self, call: BlockTable, count: int, now: int) -> None:
        """Give the call `count` new blocks (there are as many free ones)."""
        call.allocated += count
        self.grow(count, now)

    def grow(self, count: int, now: int) -> None:
        """Take `count` blocks out of the free ones (there are as many), evicting as needed."""
        self.free -= count
        if self.free < 0:
            raise LawError(f"{-self.free} more blocks are taken than are free")
        if self.scored:
            while count > self.blank:
                count -= self.blank
                self.blank = 0
                self._evict_by_rank(min(self._batch, self.cached), now)
            self.blank -= count
            return
        queue = self._queue
        run = queue.next
        if run.branch is None and run.hi - run.lo > count:  # blank blocks lie ahead
            run.hi -= count
            return
        while count:
            run = queue.next
            length = run.hi - run.lo
            part = length if length < count else count
            run.hi -= part
            count -= part
            if run.branch is not None:
                self.cached -= part
                self.evicted += part
            if part == length:
                self._unlink(run)
                if run.branch is not None:
                    self._forget(run)

    def register(self, call: BlockTable, path: Path, upto: int) -> None:
        """Make blocks of the call findable up to block `upto` of its path (they are allocated)."""
        at = call.registered
        if at >= upto:
            return
        call.registered = upto
        replica = self._replica
        runs = call.runs
        first = len(path) - 1
        while first and path[first - 1][1] > at:
            first -= 1  # the branch in which block `at` lies, mostly the last
        for branch, end in path[first:]:
            stop = end if end < upto else upto
            last = runs[-1] if runs else None
            if last is None or last.branch is not branch or last.hi != at or last.ref != 1:
                self._register_in(call, branch, at, stop, None)
            elif len(self._index[branch]) == 1:
                last.hi = stop  # the usual case: what the call holds grows
            else:
                self._register_in(call, branch, at, stop, last)
            if branch.ever.get(replica, 0) < stop:
                branch.ever[replica] = stop
                if branch.ever_any < stop:
                    branch.ever_any = stop
            if stop == upto:
                break
            at = stop

    def _register_in(self, call: BlockTable, branch: Branch, lo: int, hi: int, last: Run | None) -> None:
        """Blocks lo..hi-1 of one branch; `last` is the call's own run that ends at lo, if it has one."""
        runs = self._index.get(branch)
        if runs is None:  # the first of this branch
            run = Run(branch, lo, hi)
            run.ref = 1
            self._index[branch] = [run]
            if len(branch.path) > 1:
                self._forks.setdefault(branch.path[-2][0], set()).add(branch)
            call.runs.append(run)
            return
        while lo < hi:
            covering = [run for run in runs if run.hi > lo and run.lo < hi]
            at_lo = [run for run in covering if run.lo <= lo]
            edges = [run.hi for run in at_lo] or [run.lo for run in covering]
            stop = min([hi, *edges])
            if at_lo:
                self._duplicated.add(branch)
            if last is not None and not at_lo:
                last.hi = stop
            else:
                last = Run(branch, lo, stop)
                last.ref = 1
                runs.append(last)
                call.runs.append(last)
            lo = stop

    def adopt(self, path: Path, start: int, upto: int, now: int, idle: IdleContext | None) -> int:
        """Put blocks start..upto-1 of a path, copied from elsewhere, into the cache, idle, as far as free blocks last.

        Returns how many; none where what comes before them is no longer there.
        """
        portions, at, idle_hits = self.match(path, upto)
        missing = min(upto - at, self.free - idle_hits)
        if missing <= 0 or at < start:
            return 0
        table = BlockTable()
        self.hold(table, portions, now)
        self.take(table, missing, now)
        self.register(table, path, at + missing)
        self.release(table, now, idle)
        return missing

    def release(self, call: BlockTable, now: int, idle: IdleContext | None = None) -> None:
        """The call lets go of its blocks: those that nobody else holds join the queue, the last block first.

        idle: who lets go, for a scored eviction.
        """
        self._holders.discard(call)
        private = call.allocated - call.registered
        if private:
            self.free += private
            self._add_blank(private)
        below: Run | None = None
        queue = self._queue
        for run in reversed(call.runs):
            run.ref -= 1
            if run.ref:
                continue
            length = run.hi - run.lo
            self.free += length
            self.cached += length
            if (
                below is not None
                and below.branch is run.branch
                and below.lo == run.hi
                and run.branch not in self._duplicated
            ):
                below.lo = run.lo  # released together: one run again
                self._forget(run)
                continue
            run.since = now
            run.idle = idle
            tail = queue.prev  # it joins the queue
            run.prev, run.next = tail, queue
            tail.next = queue.prev = run
            below = run
        call.runs = []
        call.registered = call.allocated = 0

    # ---- runs and queue

    def _split(self, run: Run, at: int) -> Run:
        """Cut a run at block `at`; returns the new upper part (lo..at-1), the old object keeps the rest."""
        assert run.branch is not None
        upper = Run(run.branch, run.lo, at)
        upper.ref = run.ref
        upper.since = run.since
        upper.idle = run.idle
        run.lo = at
        runs = self._index[run.branch]
        runs.insert(runs.index(run), upper)
        if run.ref:
            for call in self._holders:
                if run in call.runs:
                    call.runs.insert(call.runs.index(run), upper)
        else:
            upper.prev, upper.next = run, run.next  # behind the deeper part, which goes first
            run.next.prev = upper
            run.next = upper
        return upper

    def _append(self, run: Run) -> None:
        tail = self._queue.prev
        run.prev, run.next = tail, self._queue
        tail.next = self._queue.prev = run

    def _unlink(self, run: Run) -> None:
        run.prev.next = run.next
        run.next.prev = run.prev

    def _add_blank(self, count: int) -> None:
        if self.scored:
            self.blank += count
            return
        tail = self._queue.prev
        if tail.branch is None and tail is not self._queue:
            tail.hi += count
        else:
            self._append(Run(None, 0, count))

    def _forget(self, run: Run) -> None:
        assert run.branch is not None
        runs = self._index[run.branch]
        runs.remove(run)
        if not runs:
            branch = run.branch
            del self._index[branch]
            self._duplicated.discard(branch)
            if len(branch.path) > 1:
                siblings = self._forks[branch.path[-2][0]]
                siblings.discard(branch)
                if not siblings:
                    del self._forks[branch.path[-2][0]]

    # ---- scored eviction

    def _evict_by_rank(self, count: int, now: int) -> None:
        """Turn `count` idle cached blocks into blank ones: lowest rank first, ranked once, deepest blocks first."""
        assert self._rank is not None
        idle: list[Run] = []
        run = self._queue.next
        while run is not self._queue:
            idle.append(run)
            run = run.next
        sizes: dict[int, int] = {}
        contexts: dict[int, IdleContext] = {}
        for run in idle:
            assert run.idle is not None
            number = run.idle.number
            contexts[number] = run.idle
            sizes[number] = sizes.get(number, 0) + run.hi - run.lo
        told = []
        for number, size in sizes.items():
            context = contexts[number]
            told.append(
                IdleContext(
                    number, context.task, context.tenant, context.agent, context.context, context.since_ps, size
                )
            )
        found = self._rank(told, now, Memory(self.num_blocks, self.held))
        ranks = {idle.number: (rank, idle.number) for idle, rank in zip(told, found, strict=True)}
        order = sorted(((ranks[run.idle.number], -run.hi), run) for run in idle if run.idle is not None)
        candidates = [run for _, run in order]
        pieces: list[tuple[Branch, int, int]] = []
        while count:
            for run in candidates:
                room = self._evictable(run)
                if room:
                    break
            else:  # what is left is continued through another copy of itself, which stays
                run, room = candidates[0], 1
            part = min(count, room)
            branch = run.branch
            assert branch is not None
            if self.worth is None or (run.idle is not None and self.worth(run.idle)):
                pieces.append((branch, run.hi - part, run.hi))
            self._evict_tail(run, part)
            count -= part
            if run.lo == run.hi:
                candidates.remove(run)
        if self.on_evict is not None and pieces:
            self.on_evict(pieces)

    def _begins_idle(self, branch: Branch) -> bool:
        """Whether a copy of the first block of the branch is idle."""
        first = branch.path[-2][1]
        return any(run.lo == first and not run.ref for run in self._index.get(branch, ()))

    def _evictable(self, run: Run) -> int:
        """How many blocks may go from the tail of an idle run."""
        assert run.branch is not None
        floor = run.lo
        for fork in self._forks.get(run.branch, ()):
            at = fork.path[-2][1]
            if floor < at <= run.hi and self._begins_idle(fork):
                floor = at
                if floor == run.hi:
                    return 0
        for other in self._index[run.branch]:
            if other is run or other.ref or other.lo > run.hi or other.hi <= run.lo:
                continue
            if other.hi > run.hi:
                return 0
            # a second copy: its last block continues ours, and where ours ends as it does either of them may go first
            floor = max(floor, other.hi if other.hi < run.hi else other.hi - 1)
        return run.hi - floor

    def _evict_tail(self, run: Run, count: int) -> None:
        run.hi -= count
        self.cached -= count
        self.evicted += count
        self.blank += count
        if run.hi == run.lo:
            self._unlink(run)
            self._forget(run)

    # ---- law

    def check_integrity(self) -> None:
        """Raise LawError unless blocks held, cached and blank add up and every run is in its place."""
        queued = cached = 0
        run = self._queue.next
        while run is not self._queue:
            if run.ref or run.lo >= run.hi:
                raise LawError(f"a run of {run.hi - run.lo} blocks with {run.ref} holders waits for eviction")
            queued += run.hi - run.lo
            cached += run.hi - run.lo if run.branch is not None else 0
            run = run.next
        blank = self.blank if self._rank is not None else 0
        if queued + blank != self.free or cached != self.cached:
            raise LawError(
                f"{queued + blank} free blocks in the queue, {self.free} counted; cached {cached}, {self.cached}"
            )
        for branch, runs in self._index.items():
            for run in runs:
                if run.branch is not branch or run.lo >= run.hi:
                    raise LawError(f"a run in the wrong place or empty: {run.lo}..{run.hi}")
