"""Policies as a user would write them: one function each, in one file."""

from __future__ import annotations

from collections.abc import Sequence

from sagasim.rng import Stream
from sagasim.seams import IdleContext, ReplicaView, Request, policy


@policy("route", "cheapest", sees_cache=True)
def cheapest(
    request: Request, replicas: Sequence[ReplicaView], now_ps: int, rng: Stream, *, queue_tokens: int = 100
) -> int:
    """Least uncached prefill plus a price for every call in flight."""

    def price(view: ReplicaView) -> int:
        return request.prompt_tokens - (view.hit_tokens or 0) + queue_tokens * view.in_flight

    return min(range(len(replicas)), key=lambda i: price(replicas[i]))


@policy("route", "roomiest", sees_cache=True)
def roomiest(request: Request, replicas: Sequence[ReplicaView], now_ps: int, rng: Stream) -> int:
    """Most free blocks; ties at random."""
    most = max(view.free_blocks or 0 for view in replicas)
    best = [view.replica for view in replicas if (view.free_blocks or 0) == most]
    return best[rng.integer(0, len(best) - 1)]


@policy("order", "shortest")
def shortest(request: Request, now_ps: int) -> int:
    """Shortest prompt first."""
    return request.prompt_tokens


@policy("evict", "largest")
def largest(idle: IdleContext, now_ps: int) -> float:
    """The largest idle context loses its blocks first."""
    return -idle.blocks


@policy("evict", "ageing")
def ageing(idle: IdleContext, now_ps: int, *, weight: float = 0.5) -> float:
    """Time idle against size: a score that changes while contexts wait."""
    return -(weight * (now_ps - idle.since_ps) + (1 - weight) * idle.blocks)


@policy("prefetch", "always")
def always(request: Request, now_ps: int, *, after_ps: int = 700) -> int | None:
    """A moment after every call, whatever its tool."""
    return after_ps + request.call


@policy("preempt", "youngest")
def youngest(waiting: Request, running: Sequence[Request], now_ps: int) -> list[int]:
    """All that arrived after the waiting one, the last admitted first."""
    return [place for place, request in reversed(list(enumerate(running))) if request.arrival_ps > waiting.arrival_ps]
