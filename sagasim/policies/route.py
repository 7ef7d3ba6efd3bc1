"""Which replica gets a call."""

from __future__ import annotations

from collections.abc import Sequence

from sagasim.rng import Stream
from sagasim.seams import ReplicaView, Request, policy
from sagasim.seen import SeenPrompts

Replicas = Sequence[ReplicaView]


@policy("route", "round-robin")
class RoundRobin:
    """Each replica in turn, whatever the call."""

    def __init__(self) -> None:
        self._next = -1

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        self._next = (self._next + 1) % len(replicas)
        return self._next


@policy("route", "least-loaded")
class LeastLoaded:
    """The replica with the fewest calls in flight; ties in turn."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        loads = replicas[0].loads
        start = self._next
        least = min(loads)
        try:
            chosen = loads.index(least, start)
        except ValueError:
            chosen = loads.index(least)
        self._next = (chosen + 1) % len(loads)
        return chosen


@policy("route", "session-affinity")
class SessionAffinity:
    """The replica that had the task's last call; the least loaded one for a new task."""

    def __init__(self) -> None:
        self._home: dict[str, int] = {}
        self._least_loaded = LeastLoaded()

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        home = self._home.get(request.task)
        if home is None:
            home = self._home[request.task] = self._least_loaded(request, replicas, now_ps, rng)
        return home

    def moved(self, task: str, replica: int) -> None:
        """A waiting call of the task went to another replica, and the session with it."""
        self._home[task] = replica

    def forget(self, task: str) -> None:
        """The task has ended."""
        self._home.pop(task, None)


@policy("route", "prefix-affinity", limits={"threshold": (0, 1), "balance_abs": (0, 1e6), "balance_rel": (0, 1e6)})
class PrefixAffinity:
    """The cache-aware rule of vLLM's router: the replica that first saw the prompt's prefix, unless loads differ much.

    If max - min > balance_abs and max > balance_rel * min calls in flight: the least loaded replica. Else, if more than
    `threshold` of the prompt was seen before: the replica that saw it first. Else the least loaded one. Prompts are
    remembered, outputs are not; what a replica has evicted since is not known here (vllm-router 0.1.17, cache_aware).
    """

    def __init__(self, *, threshold: float = 0.3, balance_abs: int = 64, balance_rel: float = 1.5) -> None:
        self._threshold = threshold
        self._balance_abs = balance_abs
        self._balance_rel = balance_rel
        self._seen = SeenPrompts()
        self._least_loaded = LeastLoaded()
        self._most = 0  # no load is larger
        self._high = self._low = 0  # the largest and the smallest load when last looked for

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        loads = replicas[0].loads
        matched, owner = self._seen.match(request.context)
        apart = self._most > self._balance_abs and self._far_apart(loads)
        if apart or matched <= self._threshold * request.prompt_tokens:
            owner = self._least_loaded(request, replicas, now_ps, rng)
        if loads[owner] >= self._most:
            self._most = loads[owner] + 1
        self._seen.insert(request.task, request.context, request.prompt_tokens, owner)
        return owner

    def _far_apart(self, loads: list[int]) -> bool:
        """Whether the largest and the smallest load are; looked for only where two known ones do not tell."""
        if self._differ(loads[self._high], loads[self._low]):
            return True
        most, least = max(loads), min(loads)
        self._most = most
        self._high, self._low = loads.index(most), loads.index(least)
        return self._differ(most, least)

    def _differ(self, most: int, least: int) -> bool:
        return most - least > self._balance_abs and most > self._balance_rel * least

    def moved(self, task: str, replica: int) -> None:
        """A waiting call went to another replica, whose load grew by it; its prefix is still owned by the first."""
        self._most += 1

    def forget(self, task: str) -> None:
        """The task has ended."""
        self._seen.forget(task)
