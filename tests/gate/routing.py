"""One routing rule, written in three ways, and with a mistake: what a gate is to be quiet about, and to catch."""

from __future__ import annotations

from collections.abc import Sequence

from sagasim.rng import Stream
from sagasim.seams import ReplicaView, Request, policy

Replicas = Sequence[ReplicaView]


@policy("route", "home")
class Home:
    """The replica that had the task's last call; for a new task the one with the fewest calls, the first of them.

    away: with this probability a call goes anywhere instead: the mistake.
    """

    def __init__(self, *, away: float = 0.0) -> None:
        self._away = away
        self._homes: dict[str, int] = {}

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        if self._away and rng.uniform() < self._away:
            return rng.integer(0, len(replicas) - 1)
        if request.task not in self._homes:
            self._homes[request.task] = min(range(len(replicas)), key=lambda i: replicas[i].in_flight)
        return self._homes[request.task]


@policy("route", "home-rewritten")
class HomeRewritten:
    """The same decisions by other code."""

    def __init__(self) -> None:
        self._tasks: list[tuple[str, int]] = []

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        for task, replica in self._tasks:
            if task == request.task:
                return replica
        loads = [view.in_flight for view in replicas]
        self._tasks.append((request.task, loads.index(min(loads))))
        return self._tasks[-1][1]


@policy("route", "home-otherwise")
class HomeOtherwise:
    """The same rule, with ties decided otherwise: by the last, or by chance."""

    def __init__(self, *, ties: str = "chance") -> None:
        self._homes: dict[str, int] = {}
        self._by_chance = ties == "chance"

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        if request.task not in self._homes:
            least = min(view.in_flight for view in replicas)
            tied = [i for i, view in enumerate(replicas) if view.in_flight == least]
            self._homes[request.task] = tied[rng.integer(0, len(tied) - 1) if self._by_chance else -1]
        return self._homes[request.task]
