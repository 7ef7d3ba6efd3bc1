"""Sub-agents of drawn sessions: which steps call them, and their calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sagasim.core import MAX_DURATION_PS, Call, Tool
from sagasim.rng import Stream
from sagasim.units import PS_PER_US, ps_from_s
from sagasim.workloads.session_model import SubAgents

__all__ = ["subagent_prefix", "with_subagents"]

_LONGEST_PS = MAX_DURATION_PS // PS_PER_US * PS_PER_US


def subagent_prefix(workload: str) -> str:
    """Name of the beginning that the prompts of all sub-agents share."""
    return f"{workload}/sub-agent"


def with_subagents(calls: Sequence[Call], fit: SubAgents, stream: Stream, workload: str, factor: float) -> list[Call]:
    """The chain of a session, with sub-agents after some of its calls if it is a session that has any.

    A call with sub-agents has no tool beside them; the next call is sent when all of them are done, after a wait.
    """
    spawned = _plan(fit, stream, len(calls), factor)
    if not spawned:
        return list(calls)
    found: list[Call] = []
    ends: tuple[str, ...] = ()
    for place, call in enumerate(calls):
        if ends:
            wait_ps = min(ps_from_s(fit.wait.at(stream.uniform())), _LONGEST_PS)
            call = replace(call, after=(*call.after, *ends), delay_ps=wait_ps)
            ends = ()
        if place in spawned:
            call = replace(call, tools=())
        found.append(call)
        for number in spawned.get(place, ()):
            chain = _chain(fit, stream, workload, call.name, number)
            found += chain
            ends = (*ends, chain[-1].name)
    return found


def _plan(fit: SubAgents, stream: Stream, steps: int, factor: float) -> dict[int, list[int]]:
    """Step of the session -> numbers of the sub-agents that start after it; none after the last step."""
    spawned: dict[int, list[int]] = {}
    if steps < 2 or stream.uniform() >= fit.session_share * factor:
        return spawned
    step = 0
    for number in range(max(1, round(fit.count.at(stream.uniform())))):
        if number == 0 or stream.uniform() >= fit.beside:
            step = stream.integer(0, steps - 2)
        spawned.setdefault(step, []).append(number)
    return spawned


def _chain(fit: SubAgents, stream: Stream, workload: str, caller: str, number: int) -> list[Call]:
    """The calls of one sub-agent: a chain that starts when the caller has ended, in a context of its own."""
    uniform = stream.uniform
    agent = f"sub-{number}"
    calls: list[Call] = []
    extends, kept, after = subagent_prefix(workload), fit.shared_tokens, (caller,)
    prompt = kept + max(1, round(fit.own.at(uniform())))
    steps = max(1, round(fit.steps.at(uniform())))
    for step in range(steps):
        output = max(1, round(fit.output.at(uniform())))
        tools: tuple[Tool, ...] = ()
        if step + 1 < steps:
            tools = (Tool("tool", min(ps_from_s(fit.gap.at(uniform())), _LONGEST_PS), True),)
        name = f"{agent}/{step}"
        calls.append(Call(name, prompt - kept, output, extends, kept, after, 0, tools, agent))
        extends, kept, after = name, prompt, (name,)
        prompt += max(1, round(fit.growth.at(uniform())))
    return calls
