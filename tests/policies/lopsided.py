"""A router that sends everything to one replica."""

from __future__ import annotations

from collections.abc import Sequence

from sagasim.rng import Stream
from sagasim.seams import ReplicaView, Request, policy


@policy("route", "first")
def first(request: Request, replicas: Sequence[ReplicaView], now_ps: int, rng: Stream) -> int:
    """The first replica, whatever the call."""
    return 0
