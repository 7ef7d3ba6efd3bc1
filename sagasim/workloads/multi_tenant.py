"""The multi-tenant mix of the SAGA paper: ten tenants, three heavy, four medium, three light.

Published (arXiv 2605.00528): 16, 8 and 4 tasks a minute of each tenant, 100, 30 and 10 steps on average, prompts of
3-5 K, 2-4 K and 1.5-3 K tokens, outputs of 200-600, 100-400 and 50-200. From the paper's artifact: observations
Gamma(2) with mean 400, half code, half web. The rates are weights here: which tenant a task belongs to is drawn in
proportion, and how many tasks arrive is the load of the run (the published rates add up to about ten times what the
reported cluster can serve). Left open and assumed: the largest numbers of steps, chosen such that contexts stay below
131,072 tokens; the rest as for swe-bench.
"""

from __future__ import annotations

from sagasim.core import Task
from sagasim.errors import ConfigError
from sagasim.fill import CAP_OF_P99, LATENCY_MS
from sagasim.rng import Stream
from sagasim.workloads import workload
from sagasim.workloads.react import FILLED, Agent, Extras, check_agent, make_task

__all__ = ["CLASSES", "task"]

CLASSES = ("heavy", "medium", "light")
Sizes = tuple[int, int]


@workload("multi-tenant", filled=FILLED | {"tenant": "drawn in proportion to the tenants' rates"})
def task(
    index: int,
    seed: int,
    *,
    tenants: tuple[int, int, int] = (3, 4, 3),
    tasks_per_min: tuple[float, float, float] = (16.0, 8.0, 4.0),
    mean_steps: tuple[float, float, float] = (100.0, 30.0, 10.0),
    max_steps: tuple[int, int, int] = (140, 120, 40),
    heavy_prompt_tokens: Sizes = (3000, 5000),
    medium_prompt_tokens: Sizes = (2000, 4000),
    light_prompt_tokens: Sizes = (1500, 3000),
    heavy_output_tokens: Sizes = (200, 600),
    medium_output_tokens: Sizes = (100, 400),
    light_output_tokens: Sizes = (50, 200),
    observation_tokens: float = 400.0,
    tool_mix: tuple[float, float, float, float] = (0.5, 0.0, 0.5, 0.0),
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
    """Ten tenants, heavy-1 to heavy-3, medium-1 to medium-4, light-1 to light-3 (published statistics).

    tenants: how many heavy, medium and light ones
    tasks_per_min: rate of each heavy, medium and light tenant; only the ratios matter
    mean_steps: calls of a task on average, after the cut at max_steps, of heavy, medium and light tenants
    max_steps: calls of a task at most, of heavy, medium and light tenants
    heavy_prompt_tokens: smallest and largest first prompt of heavy tenants
    medium_prompt_tokens: smallest and largest first prompt of medium tenants
    light_prompt_tokens: smallest and largest first prompt of light tenants
    heavy_output_tokens: smallest and largest output of heavy tenants
    medium_output_tokens: smallest and largest output of medium tenants
    light_output_tokens: smallest and largest output of light tenants
    observation_tokens: mean of what a tool adds to the prompt
    tool_mix: weights of code execution, file operation, web and database
    code_ms: P50, P95 and P99 of code execution
    file_ms: P50, P95 and P99 of file operations
    web_ms: P50, P95 and P99 of web calls
    database_ms: P50, P95 and P99 of database queries
    cap_of_p99: no tool takes longer than this many times its P99
    shared_prefix_tokens: part of the first prompt that all tasks of a class share
    branch_probability: chance of a step to be followed by several calls side by side
    branch_width: how many calls side by side
    parallel_tool_probability: chance of a call to start several tools at once
    parallel_tools: how many tools at once
    subagent_probability: chance of a step to call a sub-agent, whose last output the next step reads
    subagent_steps: calls of a sub-agent
    """
    rates = [rate * count for rate, count in zip(tasks_per_min, tenants, strict=True)]
    if sum(rates) <= 0:
        raise ConfigError(f"tasks_per_min is {tasks_per_min} of {tenants} tenants", expected="a rate above 0")
    prompts = (heavy_prompt_tokens, medium_prompt_tokens, light_prompt_tokens)
    outputs = (heavy_output_tokens, medium_output_tokens, light_output_tokens)
    latencies_ms = (code_ms, file_ms, web_ms, database_ms)
    agents = [
        Agent(
            f"multi-tenant/{name}",
            mean_steps[kind],
            max_steps[kind],
            prompts[kind],
            outputs[kind],
            observation_tokens,
            tool_mix,
            latencies_ms,
            cap_of_p99,
            shared_prefix_tokens,
        )
        for kind, name in enumerate(CLASSES)
    ]
    extras = Extras(
        branch_probability,
        branch_width,
        parallel_tool_probability,
        parallel_tools,
        subagent_probability,
        subagent_steps,
    )
    for agent in agents:
        check_agent(agent, extras)
    stream = Stream(seed, "multi-tenant", index)
    kind = stream.weighted(rates)
    tenant = f"{CLASSES[kind]}-{stream.integer(1, tenants[kind])}"
    extra_stream = Stream(seed, "multi-tenant", "extras", index)
    return make_task(agents[kind], extras, stream, extra_stream, f"multi-tenant/{index}", tenant)
