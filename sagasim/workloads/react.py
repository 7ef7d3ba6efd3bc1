"""Agents that reason and act (ReAct): a chain of calls, each followed by tools, with forks and sub-agents on demand.

With the options off, a call is followed by one tool and by one call. `branches`: a step makes several calls side by
side from the same context, and the next step reads what all of them found. `parallel tools`: a call starts several
tools at once. `sub-agents`: instead of a tool, a chain of calls with a context of its own, whose last output is the
observation. How often these happen is nowhere published, so all are off unless asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sagasim.core import MAX_CALLS, Call, Prefix, Task, Tool
from sagasim.errors import ConfigError
from sagasim.fill import latency_ps
from sagasim.rng import Stream

__all__ = ["FILLED", "TOOL_NAMES", "Agent", "Extras", "check_agent", "make_task", "stop_probability"]

TOOL_NAMES = ("code", "file", "web", "database")
FILLED = {
    "steps": "geometric, cut at the largest number of steps, with the stated mean after the cut",
    "tokens": "first prompts and outputs uniform over whole numbers, observations Gamma(2), at least one token",
    "tool_s": (
        "log-latency piecewise linear in the normal quantile through P50, P95 and P99 of the tool, at most 10 x P99 "
        "unless the option says otherwise; whole microseconds"
    ),
}
Milliseconds = tuple[float, float, float]
MAX_WIDTH = 64  # of a fork, of tools side by side, and steps of a sub-agent


@dataclass(frozen=True, slots=True)
class Agent:
    """The constants of a workload: means, (smallest, largest) pairs, and P50, P95, P99 of four tools."""

    name: str
    mean_steps: float
    max_steps: int
    first_prompt_tokens: tuple[int, int]
    output_tokens: tuple[int, int]
    observation_tokens: float
    tool_mix: tuple[float, float, float, float]
    latencies_ms: tuple[Milliseconds, Milliseconds, Milliseconds, Milliseconds]
    cap_of_p99: float
    shared_prefix_tokens: int


@dataclass(frozen=True, slots=True)
class Extras:
    """Probability of each step to fork, to start several tools, to call a sub-agent; and how many or how long."""

    branch_probability: float
    branch_width: int
    parallel_tool_probability: float
    parallel_tools: int
    subagent_probability: float
    subagent_steps: int


def make_task(agent: Agent, extras: Extras, stream: Stream, extra_stream: Stream, name: str, tenant: str) -> Task:
    """A task of this agent. What the extras draw comes from a stream of its own, so they leave the rest as it is."""
    steps = _steps(stream.uniform(), stop_probability(agent.mean_steps, agent.max_steps), agent.max_steps)
    first = stream.integer(*agent.first_prompt_tokens)
    shared = min(agent.shared_prefix_tokens, first - 1)
    prefixes = (Prefix(_prefix_name(agent), agent.shared_prefix_tokens),) if shared else ()
    if not (extras.branch_probability or extras.parallel_tool_probability or extras.subagent_probability):
        calls = _chain(agent, stream, steps, first, shared)
    else:
        calls = _Forking(agent, extras, stream, extra_stream).calls_of(steps, first, shared)
    return Task(name, tuple(calls), tenant=tenant, prefixes=prefixes, agent=agent.name)


def _prefix_name(agent: Agent) -> str:
    return f"{agent.name}/system/{agent.shared_prefix_tokens}"


def _chain(agent: Agent, stream: Stream, steps: int, first: int, shared: int) -> list[Call]:
    """The plain chain, in a loop of its own: it is what nearly all runs ask for."""
    integer, gamma2, weighted = stream.integer, stream.gamma2, stream.weighted
    low, high = agent.output_tokens
    mix, latencies_ms, cap, observed = agent.tool_mix, agent.latencies_ms, agent.cap_of_p99, agent.observation_tokens
    calls: list[Call] = []
    extends, keep, fresh, after = _prefix_name(agent) if shared else None, shared, first - shared, ()
    for step in range(steps):
        output = integer(low, high)
        new = max(1, round(gamma2(observed)))
        kind = weighted(mix)
        duration = latency_ps(stream, latencies_ms[kind], cap)
        tools = (Tool(TOOL_NAMES[kind], duration, True),) if step + 1 < steps else ()
        name = str(step)
        if step:
            fresh = new
        calls.append(Call(name, fresh, output, extends, keep, after, 0, tools))
        extends, keep, after = name, keep + fresh + output, (name,)  # type: ignore[assignment]
    return calls


class _Forking:
    """Makes the calls of one task whose steps may fork, start several tools, or call sub-agents.

    A step is made of calls side by side (usually one). The next one extends the first of them; what the others wrote
    and their tools found is new to it.
    """

    def __init__(self, agent: Agent, extras: Extras, stream: Stream, extra_stream: Stream) -> None:
        self.agent = agent
        self.extras = extras
        self.stream = stream
        self.extra = extra_stream
        self.calls: list[Call] = []

    def calls_of(self, steps: int, first: int, shared: int) -> list[Call]:
        source = _prefix_name(self.agent) if shared else None
        self._run("", source, shared, first - shared, steps, ())
        return self.calls

    def _run(
        self, agent: str, extends: str | None, keep: int, fresh: int, steps: int, after: tuple[str, ...], lead: str = ""
    ) -> Call:
        """A chain of steps of the task's agent or of a sub-agent; returns its last call."""
        width = 1
        for step in range(steps):
            last = step + 1 == steps
            beside = [
                self._call(f"{lead}{step}" + (f".{branch}" if branch else ""), agent, extends, keep, fresh, after, last)
                for branch in range(width)
            ]
            ends = list(beside)
            found = 0
            if not last and not agent and self.extra.uniform() < self.extras.subagent_probability:
                end = self._subagent(beside[0])
                ends.append(end)
                found = end.output_tokens
            others = sum(call.output_tokens + self._observation() for call in beside[1:])
            extends, keep = beside[0].name, beside[0].prompt_tokens + beside[0].output_tokens
            fresh = found + others if found else self._observation(len(beside[0].tools)) + others
            after = tuple(call.name for call in ends)
            width = self.extras.branch_width if self.extra.uniform() < self.extras.branch_probability else 1
        return beside[0]

    def _call(
        self, name: str, agent: str, extends: str | None, keep: int, fresh: int, after: tuple[str, ...], last: bool
    ) -> Call:
        output = self.stream.integer(*self.agent.output_tokens)
        tools = () if last else self._tools()
        call = Call(name, fresh, output, extends, keep, after, 0, tools, agent)
        self.calls.append(call)
        return call

    def _tools(self) -> tuple[Tool, ...]:
        several = self.extra.uniform() < self.extras.parallel_tool_probability
        kinds = [self.stream.weighted(self.agent.tool_mix) for _ in range(self.extras.parallel_tools if several else 1)]
        return tuple(
            Tool(TOOL_NAMES[k], latency_ps(self.stream, self.agent.latencies_ms[k], self.agent.cap_of_p99), True)
            for k in kinds
        )

    def _observation(self, tools: int = 1) -> int:
        return sum(max(1, round(self.stream.gamma2(self.agent.observation_tokens))) for _ in range(max(tools, 1)))

    def _subagent(self, caller: Call) -> Call:
        """A chain with a context of its own beside the tools of the call; returns its last call."""
        name = f"sub-{caller.name}"
        first = self.stream.integer(*self.agent.first_prompt_tokens)
        shared = min(self.agent.shared_prefix_tokens, first - 1)
        source = _prefix_name(self.agent) if shared else None
        return self._run(name, source, shared, first - shared, self.extras.subagent_steps, (caller.name,), f"{name}/")


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


def check_agent(agent: Agent, extras: Extras) -> None:
    """Raise ConfigError unless tasks can be made of these values."""
    for name in ("first_prompt_tokens", "output_tokens"):
        low, high = getattr(agent, name)
        if not 1 <= low <= high:
            raise ConfigError(f"{name} is {low}, {high}", expected="smallest and largest, at least 1")
    for name, (p50, p95, p99) in zip(TOOL_NAMES, agent.latencies_ms, strict=True):
        if not 0 < p50 <= p95 <= p99:
            raise ConfigError(f"{name}_ms is {p50}, {p95}, {p99}", expected="P50, P95, P99, rising from above 0")
    if sum(agent.tool_mix) <= 0 or agent.cap_of_p99 < 1:
        raise ConfigError("tool_mix without weight or cap_of_p99 below 1", expected="weights above 0, a cap from 1")
    stop_probability(agent.mean_steps, agent.max_steps)
    _check_extras(extras)
    width = extras.branch_width if extras.branch_probability else 1
    calls = agent.max_steps * width * (1 + (extras.subagent_steps if extras.subagent_probability else 0))
    if calls > MAX_CALLS:
        raise ConfigError(
            f"a task of up to {calls:,} calls", expected=f"at most {MAX_CALLS:,}: fewer steps or branches"
        )


def _check_extras(extras: Extras) -> None:
    for name in ("branch_probability", "parallel_tool_probability", "subagent_probability"):
        if (chance := getattr(extras, name)) > 1:
            raise ConfigError(f"{name} is {chance}", expected="a probability from 0 to 1")
    sizes: Sequence[tuple[str, int]] = (("branch_width", 2), ("parallel_tools", 2), ("subagent_steps", 1))
    for name, least in sizes:
        if not least <= (size := getattr(extras, name)) <= MAX_WIDTH:
            raise ConfigError(f"{name} is {size}", expected=f"a whole number from {least} to {MAX_WIDTH}")
