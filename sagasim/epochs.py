"""What is looked at in epochs, all 100 ms or so: moving waiting calls, and preempting for urgent ones that are blocked.

Nobody looks while no call waits anywhere, so an idle cluster costs no events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simpy import Event
from simpy.events import EventPriority

from sagasim.batching import InFlight
from sagasim.cluster import Cluster
from sagasim.errors import PolicyError
from sagasim.movement import Mover
from sagasim.rng import Stream

__all__ = ["Balancer", "Epochs", "Preempter"]

_PRIORITY = EventPriority(3)  # after boundaries, agents and routing of the same time


class _Looks(Protocol):
    name: str
    count: int

    def look(self, now: int) -> None: ...


class Epochs:
    """Lets each of some look at the cluster at the whole multiples of an epoch while any call waits."""

    __slots__ = ("_asleep", "_cluster", "_epoch_ps", "_lookers")

    def __init__(self, cluster: Cluster, epoch_ps: int, lookers: Sequence[_Looks]) -> None:
        self._cluster = cluster
        self._epoch_ps = epoch_ps
        self._lookers = lookers
        self._asleep = True

    def wake(self, now: int) -> None:
        """See to it that the next epoch is looked at."""
        if self._asleep:
            self._asleep = False
            self._cluster.env.call_in(self._epoch_ps - now % self._epoch_ps, _PRIORITY, self._epoch)

    def _epoch(self, _: Event) -> None:
        now: int = self._cluster.env.now  # type: ignore[assignment]
        self._asleep = True
        for looker in self._lookers:
            looker.look(now)
        if any(view.waiting for view in self._cluster.views):
            self.wake(now)

    def counts(self) -> dict[str, int]:
        """How many calls each of them has moved, or asked to give way."""
        return {looker.name: looker.count for looker in self._lookers}


class Balancer:
    """Moves waiting calls between replicas by a policy."""

    __slots__ = ("_cluster", "_decide", "_moved", "_mover", "_rng", "count", "name")

    def __init__(
        self,
        cluster: Cluster,
        decide: Callable[..., Any],
        moved: Callable[[str, int], None] | None,
        rng: Stream,
        mover: Mover | None,
    ) -> None:
        self._cluster = cluster
        self._decide = decide
        self._moved = moved  # is told of the task and its new replica
        self._rng = rng
        self._mover = mover  # None: a moved call computes its context again
        self.name, self.count = "moved_calls", 0

    def look(self, now: int) -> None:
        """One epoch."""
        cluster = self._cluster
        for source, target in self._decide(cluster.views, now, self._rng):
            if source == target or not (0 <= source < len(cluster.views) and 0 <= target < len(cluster.views)):
                raise PolicyError(f"moves {source} to {target}", where="balance policy", expected="two replicas")
            call = cluster.replicas[source].withdraw(now) if cluster.views[target].available else None
            if call is not None:
                self.count += 1
                self._move(call, source, target, now)
                if self._moved is not None:
                    self._moved(call.request.task, target)

    def _move(self, call: InFlight, source: int, target: int, now: int) -> None:
        cluster = self._cluster
        if cluster.placed is not None:
            del cluster.placed[call]
        call.carried = call.carried_tokens = call.reloaded_tokens = 0
        if self._mover is not None:
            self._mover.carry(call, source, target, cluster.replicas[source].cached_blocks(call, now))
        else:
            place = target if cluster.placed is None else cluster.available(call, target)
            cluster.hand_over(call, place, now)
            cluster.replicas[place].arrived(now)


class Preempter:
    """Where the first waiting call of a replica has waited too long, lets a policy say which running calls give way.

    They are preempted at the next boundary, one after the other until the waiting call fits, and wait in its queue.
    """

    __slots__ = ("_after_ps", "_cluster", "_decide", "count", "name")

    def __init__(self, cluster: Cluster, decide: Callable[..., Any], after_ps: int) -> None:
        self._cluster = cluster
        self._decide = decide
        self._after_ps = after_ps
        self.name, self.count = "asked_to_give_way", 0

    def look(self, now: int) -> None:
        """One epoch."""
        for view, replica in zip(self._cluster.views, self._cluster.replicas, strict=True):
            if not view.waiting:
                continue
            head, running = replica.contenders(now)
            if head is None or now - head.submitted <= self._after_ps:
                continue
            chosen = self._decide(head.request, [call.request for call in running], now)
            if any(not 0 <= place < len(running) for place in chosen):
                raise PolicyError(f"preempts {chosen}", where="preempt policy", expected="places in the running calls")
            if chosen:
                self.count += len(chosen)
                replica.preempt([running[place] for place in chosen], now)
