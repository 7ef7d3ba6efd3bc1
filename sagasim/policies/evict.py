"""Which idle context loses its blocks first."""

from __future__ import annotations

from sagasim.seams import IdleContext, policy


@policy("evict", "lru", queue_order=True)
def lru(idle: IdleContext, now_ps: int) -> int:
    """Least recently released block first, the last block of a context before its first (vLLM's free queue)."""
    return idle.since_ps
