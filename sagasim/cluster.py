"""The cluster: calls of one moment are routed together, in a canonical order, once everything else of it has happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simpy import Environment, Event
from simpy.events import EventPriority

from sagasim.batching import InFlight
from sagasim.errors import PolicyError
from sagasim.plan import PlannedCall
from sagasim.rng import Stream
from sagasim.seams import ReplicaView, Request

__all__ = ["Cluster", "Engine"]

_FLUSH_PRIORITY = EventPriority(2)  # after boundaries (0) and agents (1) of the same time


class Engine(Protocol):
    """What the cluster needs of a replica, fast or reference."""

    view: ReplicaView

    def submit(self, call: InFlight) -> None: ...
    def arrived(self, now: int) -> None: ...
    def observe(self, call: InFlight, now: int) -> None: ...


class Cluster:
    """Routes calls to replicas by a policy."""

    def __init__(self, env: Environment, replicas: Sequence[Engine], route: Callable[..., Any], rng: Stream, *, sees_cache: bool) -> None:
        self.env = env
        self.replicas = replicas
        self.views = [replica.view for replica in replicas]
        self._route = route
        self._rng = rng
        self._sees_cache = sees_cache
        self._outbox: list[InFlight] = []

    def submit(self, plan: PlannedCall) -> Event:
        """Send a call now; the event succeeds when its last token is there."""
        env = self.env
        done = Event(env)
        task = plan.task.task
        call = task.calls[plan.index]
        now = int(env.now)
        request = Request(task.name, task.tenant, call.agent, plan.index, plan.context, plan.prompt_tokens, now)
        if not self._outbox:
            flush = Event(env)
            flush._ok = True
            flush._value = None
            flush.callbacks = [self._flush]
            env.schedule(flush, _FLUSH_PRIORITY)
        self._outbox.append(InFlight(plan, request, done, now))
        return done

    def _flush(self, _: Event) -> None:
        calls, self._outbox = self._outbox, []
        now = int(self.env.now)
        if len(calls) > 1:
            calls.sort(key=lambda call: (call.plan.task.number, call.plan.index))
        touched: dict[int, None] = {}
        for call in calls:
            if self._sees_cache:
                for replica in self.replicas:
                    replica.observe(call, now)
            chosen = self._route(call.request, self.views, now, self._rng)
            if not isinstance(chosen, int) or not 0 <= chosen < len(self.replicas):
                raise PolicyError(f"routes to {chosen!r}", where="route policy", expected=f"an index from 0 to {len(self.replicas) - 1}")
            self.replicas[chosen].submit(call)
            touched[chosen] = None
        for chosen in touched:
            self.replicas[chosen].arrived(now)
