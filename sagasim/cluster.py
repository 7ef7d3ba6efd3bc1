"""The cluster: calls of one moment are routed together, in a canonical order, once all else of it has happened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from simpy import Event
from simpy.events import EventPriority

from sagasim.batching import InFlight
from sagasim.clock import Clock
from sagasim.errors import PolicyError
from sagasim.plan import PlannedCall
from sagasim.rng import Stream
from sagasim.seams import ReplicaView, Request, Workflow

__all__ = ["Cluster", "Engine"]

_FLUSH_PRIORITY = EventPriority(2)  # after boundaries (0) and agents (1) of the same time


class Engine(Protocol):
    """What the cluster needs of a replica, fast or reference."""

    view: ReplicaView
    brought: list[tuple[InFlight, int, int]]  # contexts to put into the cache at the next boundary
    cache: Any
    reload: Callable[[InFlight, int, int], bool] | None  # asked for what is missing of a prompt

    def submit(self, call: InFlight) -> None: ...
    def arrived(self, now: int) -> None: ...
    def observe(self, call: InFlight, now: int) -> None: ...
    def withdraw(self, now: int, *, moved: bool = False) -> InFlight | None: ...
    def cached_blocks(self, call: InFlight, now: int, limit: int = -1) -> int: ...
    def path_of(self, call: InFlight) -> Any: ...
    def bring(self, call: InFlight, start: int, upto: int, now: int) -> None: ...
    def copies_run(self, directions: int, now: int) -> None: ...
    def contenders(self, now: int) -> tuple[InFlight | None, list[InFlight]]: ...
    def preempt(self, calls: list[InFlight], now: int) -> None: ...
    def lose(self, now: int) -> None: ...


class _Epochs(Protocol):
    def wake(self, now: int) -> None: ...
    def counts(self) -> dict[str, int]: ...


class _Mover(Protocol):
    def awaits(self, call: InFlight, target: int) -> bool: ...
    def failed(self, replica: int) -> None: ...


class Cluster:
    """Routes calls to replicas by a policy."""

    __slots__ = (
        "_moved", "_outbox", "_rng", "_route", "_sees_cache", "_workflow", "env", "epochs", "mover", "placed",
        "replicas", "views",
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
        self.epochs: _Epochs | None = None  # what is to look at waiting calls
        self.mover: _Mover | None = None  # where KV moves between tiers
        self.placed: dict[InFlight, int] | None = None  # where each call is; kept only where replicas may fail
        self._moved: Callable[[str, int], None] | None = getattr(route, "moved", None)

    def submit(self, plan: PlannedCall) -> Event:
        """Send a call now; the event succeeds when its last token is there and its agent goes on."""
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
            env.call_in(0, _FLUSH_PRIORITY, self._flush)
        else:  # nothing else is due: what the flush would do
            chosen = self._send(call, now)
            if chosen >= 0:
                self.replicas[chosen].arrived(now)
        return call

    def _flush(self, _: Event) -> None:
        calls, self._outbox = self._outbox, []
        now = int(self.env.now)
        calls.sort(key=lambda call: (call.plan.task.number, call.plan.index))
        self._send_all(calls, now)

    def _send_all(self, calls: list[InFlight], now: int) -> None:
        for chosen in dict.fromkeys([self._send(call, now) for call in calls]):
            if chosen >= 0:
                self.replicas[chosen].arrived(now)

    def _send(self, call: InFlight, now: int) -> int:
        """Route a call and hand it over; returns the index of its replica, -1 if it waits for its context to come."""
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
            chosen = self.available(call, chosen)
        if self.mover is not None and self.mover.awaits(call, chosen):
            return -1
        self.hand_over(call, chosen, now)
        return chosen

    def hand_over(self, call: InFlight, place: int, now: int) -> None:
        """Give a call to a replica; the replica's arrived() is to follow."""
        call.place = place
        self.replicas[place].submit(call)
        if self.epochs is not None:
            self.epochs.wake(now)

    def available(self, call: InFlight, chosen: int) -> int:
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
            if self.mover is not None:
                self.mover.failed(number)
        calls.sort(key=lambda call: (call.plan.task.number, call.plan.index))
        for call in calls:
            call.reset()
        self._send_all(calls, now)
        return len(calls)
