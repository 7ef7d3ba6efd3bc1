"""Which waiting call moves to another replica."""

from __future__ import annotations

from collections.abc import Sequence

from sagasim.rng import Stream
from sagasim.seams import ReplicaView, policy

__all__ = ["Steal"]


@policy("balance", "steal", limits={"ratio": (0, 1e6), "most": (1, 1e6)})
class Steal:
    """SAGA's work stealing: a replica without waiting calls, or far less loaded, takes the oldest one of an overloaded.

    At every epoch, at most `most` times: the thief is the least loaded of the replicas whose queue was empty now and at
    the last epoch; else, if the largest load is more than `ratio` times the smallest, the least loaded replica. The
    victim is drawn from the replicas with a waiting call whose load is more than `ratio` times the thief's, and two
    calls more, a guard against thrashing. Load is the number of calls in flight, as routers count it; waiting calls are
    those of a replica's last boundary. A call moves once at most.
    """

    def __init__(self, *, ratio: float = 2.0, most: int = 4) -> None:
        self._ratio = ratio
        self._most = most
        self._empty: set[int] = set()

    def __call__(self, replicas: Sequence[ReplicaView], now_ps: int, rng: Stream) -> list[tuple[int, int]]:
        loads = list(replicas[0].loads)
        waiting = [view.waiting for view in replicas]
        empty = {i for i, count in enumerate(waiting) if not count}
        idle, self._empty = empty & self._empty, empty
        moves: list[tuple[int, int]] = []
        while len(moves) < self._most:
            thief = min(idle or range(len(loads)), key=lambda i: (loads[i], i))
            if not idle and max(loads) <= self._ratio * loads[thief]:
                break
            victims = [
                i
                for i, count in enumerate(waiting)
                if count and loads[i] > self._ratio * loads[thief] and loads[i] >= loads[thief] + 2
            ]
            if not victims:
                break
            victim = victims[rng.integer(0, len(victims) - 1)]
            moves.append((victim, thief))
            for i, change in ((victim, -1), (thief, 1)):
                loads[i] += change
                waiting[i] += change
            idle.discard(thief)
        return moves
