"""The cluster: calls of one moment are routed together, in a canonical order, once all else of it has happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simpy import Event
from simpy.events import EventPriority

from sagasim.batching import InFlight
from sagasim.clock import Clock
from sagasim.errors import PolicyError
from sagasim.links import Links
from sagasim.plan import PlannedCall
from sagasim.rng import Stream
from sagasim.seams import ReplicaView, Request, Workflow
from sagasim.units import BLOCK_TOKENS

__all__ = ["Balancer", "Cluster", "Engine"]

_FLUSH_PRIORITY = EventPriority(2)  # after boundaries (0) and agents (1) of the same time
_EPOCH_PRIORITY = EventPriority(3)  # after all of these


class Engine(Protocol):
    """What the cluster needs of a replica, fast or reference."""

    view: ReplicaView

    def submit(self, call: InFlight) -> None: ...
    def arrived(self, now: int) -> None: ...
    def observe(self, call: InFlight, now: int) -> None: ...
    def withdraw(self, now: int, *, moved: bool = False) -> InFlight | None: ...
    def cached_blocks(self, call: InFlight, now: int) -> int: ...
    def lose(self, now: int) -> None: ...


class Cluster:
    """Routes calls to replicas by a policy."""

    __slots__ = (
        "_moved", "_outbox", "_rng", "_route", "_sees_cache", "_workflow", "balancer", "env", "placed", "replicas",
        "views",
    )  # fmt: skip

    def __init__(
        self,
        env: Clock,
        replicas: Sequence[Engine],
        route: Callable[..., Any],
        rng: Stream,
        *,
        sees_cache: bool,
        workflow: Workflow | None,
    ) -> None:
        self.env = env
        self.replicas = replicas
        self.views = [replica.view for replica in replicas]
        self._route = route
        self._rng = rng
        self._sees_cache = sees_cache
        self._workflow = workflow
        self._outbox: list[InFlight] = []
        self.balancer: Balancer | None = None
        self.placed: dict[InFlight, int] | None = None  # where each call is; kept only where replicas may fail
        self._moved: Callable[[str, int], None] | None = getattr(route, "moved", None)

    def submit(self, plan: PlannedCall) -> Event:
        """Send a call now; the event succeeds when its last token is there and its tools are done."""
        env = self.env
        now: int = env.now  # type: ignore[assignment]
        planned = plan.task
        task = planned.task
        request = Request(
            task.name,
            task.tenant,
            task.agent,
            task.calls[plan.index].agent,
            plan.index,
            plan.context,
            plan.prompt_tokens,
            now,
            planned.arrival_ps,
            planned.expected_tct_ps,
        )
        call = InFlight(env, plan, request, now)
        outbox = self._outbox
        if outbox:
            outbox.append(call)
        elif plan.joins or env.peek() <= now:  # others may be sent at this moment
            outbox.append(call)
            flush = Event(env)
            flush._ok = True
            flush._value = None
            flush.callbacks = [self._flush]
            env.schedule(flush, _FLUSH_PRIORITY)
        else:  # nothing else is due: what the flush would do
            self.replicas[self._send(call, now)].arrived(now)
        return call

    def _flush(self, _: Event) -> None:
        calls, self._outbox = self._outbox, []
        now = int(self.env.now)
        calls.sort(key=lambda call: (call.plan.task.number, call.plan.index))
        for chosen in dict.fromkeys([self._send(call, now) for call in calls]):
            self.replicas[chosen].arrived(now)

    def _send(self, call: InFlight, now: int) -> int:
        """Route a call and hand it over; returns the index of its replica."""
        replicas = self.replicas
        if self._workflow is not None:
            self._workflow.sent(call.request, now)
        if self._sees_cache:
            for replica in replicas:
                replica.observe(call, now)
        chosen = self._route(call.request, self.views, now, self._rng)
        if not isinstance(chosen, int) or not 0 <= chosen < len(replicas):
            raise PolicyError(
                f"routes to {chosen!r}", where="route policy", expected=f"an index from 0 to {len(replicas) - 1}"
            )
        if self.placed is not None:
            chosen = self._available(call, chosen)
        replicas[chosen].submit(call)
        if self.balancer is not None:
            self.balancer.wake(now)
        return chosen

    def _available(self, call: InFlight, chosen: int) -> int:
        """The chosen replica, or the least loaded one that can take the call; its router is told."""
        views = self.views
        if not views[chosen].available:
            chosen = min([view.replica for view in views if view.available], key=lambda i: (views[i].loads[i], i))
            if self._moved is not None:
                self._moved(call.request.task, chosen)
        assert self.placed is not None
        self.placed[call] = chosen
        return chosen

    def fail(self, number: int, now: int, *, drain: bool) -> int:
        """A replica fails, or is drained: its calls, or those that have not started, begin again elsewhere.

        Returns how many. What a failed replica had in its cache is gone.
        """
        assert self.placed is not None
        view, replica = self.views[number], self.replicas[number]
        view.available = False
        if drain:
            calls = []
            while (call := replica.withdraw(now, moved=True)) is not None:
                calls.append(call)
        else:
            calls = [call for call, place in self.placed.items() if place == number]
            replica.lose(now)
            view.loads[number] -= len(calls)
        calls.sort(key=lambda call: (call.plan.task.number, call.plan.index))
        for call in calls:
            call.reset()
        for chosen in dict.fromkeys([self._send(call, now) for call in calls]):
            self.replicas[chosen].arrived(now)
        return len(calls)


class Balancer:
    """Moves waiting calls between replicas at epochs, by a policy; sleeps while no call waits anywhere."""

    __slots__ = (
        "_asleep", "_block_bytes", "_cluster", "_decide", "_epoch_ps", "_moved", "_rng", "links", "moves",
    )  # fmt: skip

    def __init__(
        self,
        cluster: Cluster,
        decide: Callable[..., Any],
        moved: Callable[[str, int], None] | None,
        rng: Stream,
        epoch_ps: int,
        links: Links | None,
        block_bytes: int,
    ) -> None:
        self._cluster = cluster
        self.links = links  # None: a moved call computes its context again
        self._block_bytes = block_bytes
        self._decide = decide
        self._moved = moved  # is told of the task and its new replica
        self._rng = rng
        self._epoch_ps = epoch_ps
        self._asleep = True
        self.moves = 0

    def wake(self, now: int) -> None:
        """See to it that the next epoch is looked at."""
        if self._asleep:
            self._asleep = False
            env = self._cluster.env
            epoch = Event(env)
            epoch._ok = True
            epoch._value = None
            epoch.callbacks = [self._epoch]
            env.schedule(epoch, _EPOCH_PRIORITY, self._epoch_ps - now % self._epoch_ps)

    def _epoch(self, _: Event) -> None:
        cluster = self._cluster
        now: int = cluster.env.now  # type: ignore[assignment]
        self._asleep = True
        for source, target in self._decide(cluster.views, now, self._rng):
            if source == target or not (0 <= source < len(cluster.views) and 0 <= target < len(cluster.views)):
                raise PolicyError(f"moves {source} to {target}", where="balance policy", expected="two replicas")
            call = cluster.replicas[source].withdraw(now) if cluster.views[target].available else None
            if call is not None:
                self.moves += 1
                self._carry(call, source, target, now)
                if self._moved is not None:
                    self._moved(call.request.task, target)
        if any(view.waiting for view in cluster.views):
            self.wake(now)

    def _carry(self, call: InFlight, source: int, target: int, now: int) -> None:
        """Hand the call over, after what is cached of its prompt has been copied, if that is wanted."""
        cluster = self._cluster
        replicas = cluster.replicas
        blocks = replicas[source].cached_blocks(call, now) if self.links is not None else 0

        loads = cluster.views[target].loads
        if cluster.placed is not None:
            del cluster.placed[call]

        def arrive() -> None:
            loads[target] -= 1
            place = target if cluster.placed is None else cluster._available(call, target)
            call.carried = blocks if place == target else 0
            call.carried_tokens = call.carried * BLOCK_TOKENS
            replicas[place].submit(call)
            replicas[place].arrived(int(cluster.env.now))

        loads[target] += 1  # it counts there while it is on the way
        if self.links is None or not blocks:
            arrive()
        else:
            self.links.send(source, target, blocks * self._block_bytes, arrive)
