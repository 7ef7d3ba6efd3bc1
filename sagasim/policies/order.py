"""Order in which waiting calls are admitted."""

from __future__ import annotations

from sagasim.seams import Request, policy


@policy("order", "fcfs", in_order=True)
def fcfs(request: Request, now_ps: int) -> int:
    """First come, first served (vLLM's default)."""
    return 0  # equal keys are served by time of sending


@policy("order", "least-new")
def least_new(request: Request, now_ps: int) -> int:
    """The fewest tokens first that no earlier call had: the most calls a second, whoever waits for it."""
    return request.prompt_tokens - request.context.shared_tokens
