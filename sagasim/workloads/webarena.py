"""WebArena as the SAGA paper describes it: an agent in a browser, a chain of calls each followed by one tool (ReAct).

Published (arXiv 2605.00528): 18 steps on average and 80 at most, first prompts of 4-8 K tokens, outputs of 50-200,
tool latencies by their P50, P95 and P99; 812 tasks. From the paper's artifact: observations Gamma(2) with mean 800,
the mix of tools. What is left open there is assumed as for swe-bench.
"""

from __future__ import annotations

from sagasim.core import Task
from sagasim.fill import CAP_OF_P99, LATENCY_MS
from sagasim.rng import Stream
from sagasim.workloads import workload
from sagasim.workloads.react import FILLED, Agent, Extras, check_agent, make_task

__all__ = ["task"]


@workload("webarena", filled=FILLED)
def task(
    index: int,
    seed: int,
    *,
    mean_steps: float = 18.0,
    max_steps: int = 80,
    first_prompt_tokens: tuple[int, int] = (4000, 8000),
    output_tokens: tuple[int, int] = (50, 200),
    observation_tokens: float = 800.0,
    tool_mix: tuple[float, float, float, float] = (0.05, 0.15, 0.75, 0.05),
    code_ms: tuple[float, float, float] = LATENCY_MS["code"],
    file_ms: tuple[float, float, float] = LATENCY_MS["file"],
    web_ms: tuple[float, float, float] = LATENCY_MS["web"],
    database_ms: tuple[float, float, float] = LATENCY_MS["database"],
    cap_of_p99: float = CAP_OF_P99,
    shared_prefix_tokens: int = 0,
    branch_probability: float = 0.0,
    branch_width: int = 2,
    parallel_tool_probability: float = 0.0,
    parallel_tools: int = 2,
    subagent_probability: float = 0.0,
    subagent_steps: int = 5,
) -> Task:
    """A task on web sites: look, click, read, repeat (published statistics).

    mean_steps: calls of a task on average, after the cut at max_steps
    max_steps: calls of a task at most
    first_prompt_tokens: smallest and largest first prompt
    output_tokens: smallest and largest output
    observation_tokens: mean of what a tool adds to the prompt
    tool_mix: weights of code execution, file operation, web and database
    code_ms: P50, P95 and P99 of code execution
    file_ms: P50, P95 and P99 of file operations
    web_ms: P50, P95 and P99 of web calls
    database_ms: P50, P95 and P99 of database queries
    cap_of_p99: no tool takes longer than this many times its P99
    shared_prefix_tokens: part of the first prompt that all tasks share
    branch_probability: chance of a step to be followed by several calls side by side
    branch_width: how many calls side by side
    parallel_tool_probability: chance of a call to start several tools at once
    parallel_tools: how many tools at once
    subagent_probability: chance of a step to call a sub-agent, whose last output the next step reads
    subagent_steps: calls of a sub-agent
    """
    latencies_ms = (code_ms, file_ms, web_ms, database_ms)
    agent = Agent(
        "webarena",
        mean_steps,
        max_steps,
        first_prompt_tokens,
        output_tokens,
        observation_tokens,
        tool_mix,
        latencies_ms,
        cap_of_p99,
        shared_prefix_tokens,
    )
    extras = Extras(
        branch_probability,
        branch_width,
        parallel_tool_probability,
        parallel_tools,
        subagent_probability,
        subagent_steps,
    )
    check_agent(agent, extras)
    extra_stream = Stream(seed, "webarena", "extras", index)
    return make_task(agent, extras, Stream(seed, "webarena", index), extra_stream, f"webarena/{index}", "default")
