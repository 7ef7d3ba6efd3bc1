"""SWE-bench Verified as the SAGA paper describes it: a chain of calls, each followed by one tool (ReAct).

Published: 37 steps on average and 150 at most, first prompts of 2-4 K tokens, outputs of 100-500, tool latencies by
their P50, P95 and P99. From the paper's artifact: observations Gamma(2) with mean 350, the mix of tools. Left open
there and assumed here: uniform prompts and outputs, a geometric number of steps, no tool after the last step, no system
prompt shared between tasks unless asked for.
"""

from __future__ import annotations

import math
from functools import lru_cache

from sagasim.core import Call, Prefix, Task, Tool
from sagasim.errors import ConfigError
from sagasim.fill import CAP_OF_P99, LATENCY_MS, latency_ps
from sagasim.rng import Stream

__all__ = ["FILLED", "stop_probability", "task"]

TOOL_NAMES = ("code", "file", "web", "database")
FILLED = {
    "steps": "geometric, cut at the largest number of steps, with the stated mean after the cut",
    "tokens": "first prompts and outputs uniform over whole numbers, observations Gamma(2), at least one token",
    "tool_s": (
        "log-latency piecewise linear in the normal quantile through P50, P95 and P99 of the tool, at most 10 x P99 "
        "unless the option says otherwise; whole microseconds"
    ),
}


def task(
    index: int,
    seed: int,
    *,
    mean_steps: float = 37.0,
    max_steps: int = 150,
    first_prompt_tokens: tuple[int, int] = (2000, 4000),
    output_tokens: tuple[int, int] = (100, 500),
    observation_tokens: float = 350.0,
    tool_mix: tuple[float, float, float, float] = (0.45, 0.40, 0.10, 0.05),
    code_ms: tuple[float, float, float] = LATENCY_MS["code"],
    file_ms: tuple[float, float, float] = LATENCY_MS["file"],
    web_ms: tuple[float, float, float] = LATENCY_MS["web"],
    database_ms: tuple[float, float, float] = LATENCY_MS["database"],
    cap_of_p99: float = CAP_OF_P99,
    shared_prefix_tokens: int = 0,
) -> Task:
    """Task number `index` of the workload with this seed.

    mean_steps: after the cut at max_steps. *_tokens pairs: smallest and largest; observation_tokens: mean.
    tool_mix: weights of code, file, web, database; *_ms: their P50, P95, P99. shared_prefix_tokens: part of the first
    prompt that all tasks share.
    """
    latencies_ms = (code_ms, file_ms, web_ms, database_ms)
    _check(first_prompt_tokens, output_tokens, latencies_ms, tool_mix, cap_of_p99)
    stream = Stream(seed, "swe-bench", index)
    steps = _steps(stream.uniform(), stop_probability(mean_steps, max_steps), max_steps)
    first = stream.integer(*first_prompt_tokens)
    shared = min(shared_prefix_tokens, first - 1)
    calls: list[Call] = []
    for step in range(steps):
        output = stream.integer(*output_tokens)
        new = max(1, round(stream.gamma2(observation_tokens)))
        kind = stream.weighted(tool_mix)
        tool = Tool(TOOL_NAMES[kind], latency_ps(stream, latencies_ms[kind], cap_of_p99), True)
        tools = (tool,) if step + 1 < steps else ()
        if calls:
            before = calls[-1]
            keep = before.prompt_tokens + before.output_tokens
            calls.append(Call(str(step), new, output, before.name, keep, (before.name,), 0, tools))
        else:
            name = _prefix_name(shared_prefix_tokens) if shared else None
            calls.append(Call(str(step), first - shared, output, name, shared, (), 0, tools))
    prefixes = (Prefix(_prefix_name(shared_prefix_tokens), shared_prefix_tokens),) if shared else ()
    return Task(f"swe-bench/{index}", tuple(calls), prefixes=prefixes, agent="swe-bench")


def _prefix_name(tokens: int) -> str:
    return f"swe-bench/system/{tokens}"


def _steps(uniform: float, stop: float, most: int) -> int:
    """A geometric number of steps from 1 by inversion of its distribution function, cut at `most`."""
    if stop >= 1.0:
        return 1
    return most if stop <= 0.0 else min(most, 1 + math.floor(math.log1p(-uniform) / math.log1p(-stop)))


@lru_cache(maxsize=64)
def stop_probability(mean_steps: float, max_steps: int) -> float:
    """Chance that a task ends after a step, such that min(steps, max_steps) has the mean; ConfigError if none does.

    The mean of a geometric number with chance p, cut at n, is (1 - (1 - p)^n) / p.
    """
    if not 1 <= mean_steps <= max_steps:
        raise ConfigError(f"mean_steps is {mean_steps}", expected=f"from 1 to max_steps ({max_steps})")
    if mean_steps == 1:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = min((low + high) / 2, 1.0 - 2.0**-53)
        mean = -math.expm1(max_steps * math.log1p(-middle)) / middle
        low, high = (middle, high) if mean > mean_steps else (low, middle)
    return (low + high) / 2


def _check(
    first_prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    latencies_ms: tuple[tuple[float, float, float], ...],
    tool_mix: tuple[float, ...],
    cap_of_p99: float,
) -> None:
    for name, (low, high) in (("first_prompt_tokens", first_prompt_tokens), ("output_tokens", output_tokens)):
        if not 1 <= low <= high:
            raise ConfigError(f"{name} is {low}, {high}", expected="smallest and largest, at least 1")
    for name, (p50, p95, p99) in zip(TOOL_NAMES, latencies_ms, strict=True):
        if not 0 < p50 <= p95 <= p99:
            raise ConfigError(f"{name}_ms is {p50}, {p95}, {p99}", expected="P50, P95, P99, rising from above 0")
    if sum(tool_mix) <= 0 or cap_of_p99 < 1:
        raise ConfigError("tool_mix without weight or cap_of_p99 below 1", expected="weights above 0, a cap from 1")
