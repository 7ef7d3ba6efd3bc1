"""When each block is read next: known only to an oracle, from one walk through the log backwards.

Of a branch it is enough to know a staircase: blocks below `end` are next read at `when`, and deeper ones, if at all,
by the next step. A read of a branch down to block e replaces all steps that end at e or above, so that the walk costs
a constant number of operations for each branch of each call, whatever the number of blocks.
"""

from __future__ import annotations

from array import array

from sagasim.oracle.accesses import Log, Path
from sagasim.plan import Branch

__all__ = ["NEVER", "NextUses"]

NEVER = 1 << 60

Stairs = list[tuple[int, int]]  # (end, when), the smallest end last


class NextUses:
    """For each access the pieces (end, when) into which the blocks that it leaves fall, from the root down."""

    def __init__(self, log: Log) -> None:
        self._starts = array("q", [0]) * (len(log.accesses) + 1)
        self._ends = array("q")
        self._whens = array("q")
        future: dict[Branch, Stairs] = {}
        for when in range(len(log.order) - 1, -1, -1):
            event = log.order[when]
            if event < 0:
                access = log.accesses[~event]
                self._starts[~event] = len(self._ends)
                self._ends.append(0)  # how many pieces; filled below
                self._whens.append(0)
                self._pieces(access.path, access.left, future)
                self._ends[self._starts[~event]] = len(self._ends) - self._starts[~event] - 1
            else:
                access = log.accesses[event]
                _read(access.path, access.limit, access.written, when, future)

    def of(self, access: int) -> list[tuple[int, int]]:
        start = self._starts[access]
        count = self._ends[start]
        piece = slice(start + 1, start + 1 + count)
        return list(zip(self._ends[piece], self._whens[piece], strict=True))

    def _pieces(self, path: Path, left: int, future: dict[Branch, Stairs]) -> None:
        ends, whens = self._ends, self._whens
        at, last = 0, -1
        for branch, end in path:
            stop = end if end < left else left
            if stop <= at:
                break
            for upto, when in reversed(future.get(branch, ())):
                if upto <= at:
                    continue
                at = upto if upto < stop else stop
                if when == last:
                    ends[-1] = at
                else:
                    ends.append(at)
                    whens.append(when)
                    last = when
                if at == stop:
                    break
            if at < stop:
                at = stop
                if last == NEVER:
                    ends[-1] = at
                else:
                    ends.append(at)
                    whens.append(NEVER)
                    last = NEVER


def _read(path: Path, limit: int, written: int, when: int, future: dict[Branch, Stairs]) -> None:
    """A call reads `limit` blocks; up to `written` it writes anyway: keeping those is in vain."""
    at = 0
    for branch, end in path:
        stop = end if end < written else written
        if stop <= at:
            break
        stairs = future.get(branch)
        if stairs is None:
            stairs = future[branch] = []
        while stairs and stairs[-1][0] <= stop:
            stairs.pop()
        read = limit if limit < stop else stop
        if read < stop:
            stairs.append((stop, NEVER))
        if read > at:
            stairs.append((read, when))
        at = stop
