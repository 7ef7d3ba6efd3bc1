"""Real traces: the two engines agree, and with unlimited memory the cache finds what the sources say is shared."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import pytest

from sagasim.config import PRESETS, Config
from sagasim.core import Task
from sagasim.laws import check_tasks
from sagasim.simulate import Result, simulate
from sagasim.trace import open_trace
from tests.test_exact import assert_equal

UNLIMITED_BLOCKS = 10**9


def config(**changes: object) -> Config:
    base = Config(
        gpus=64,
        tp=4,
        arrivals="at-once",
        max_model_len=2_000_000,
        max_num_batched_tokens=8192,
        max_num_seqs=1024,
        num_gpu_blocks_override=UNLIMITED_BLOCKS,
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def tasks_of(name: str, count: int | None = None, **options: object) -> list[Task]:
    tasks = islice(open_trace(name, **options).tasks(), count)  # type: ignore[arg-type]
    return [replace(task, arrival_ps=0) for task in tasks]


# trace, tasks, GPUs, TP, model, longest context, blocks: few enough that contexts are evicted
CASES = {
    "tau-bench": (40, 2, 1, "llama-3.1-8b", 16_000, 1500),
    "lmcache-magagent": (None, 4, 2, "llama-3.1-8b", 24_000, 1800),
    "lmcache-miniswe": (None, 4, 4, "llama-3.1-70b", 12_000, 1000),
    "agentic-mooncake-sample": (None, 2, 1, "llama-3.1-8b", 40_000, 3500),
    "swe-bench-mini": (6, 4, 4, "llama-3.1-70b", 48_000, 3600),
    "weka": (3, 8, 8, "llama-3.1-70b", 200_000, 13_000),
}


@pytest.mark.parametrize("case", CASES)
def test_fast_equals_reference_on_real_traces(case: str) -> None:
    count, gpus, tp, model, longest, blocks = CASES[case]
    tasks = [task for task in tasks_of(case, count) if task.max_tokens <= longest]
    settings = config(gpus=gpus, tp=tp, model=model, max_model_len=longest, num_gpu_blocks_override=blocks)
    fast = simulate(settings, tasks)
    slow = simulate(replace(settings, reference=True), tasks)
    assert_equal(fast, slow)
    check_tasks(fast.calls, fast.tasks, tasks)
    assert fast.replicas["evicted_blocks"].sum() > 0  # memory was short enough to matter


@pytest.mark.parametrize("case", ["lmcache-miniswe", "swe-bench-mini"])
def test_fast_equals_reference_on_real_traces_under_saga(case: str) -> None:
    """All of SAGA, with host memory for a few contexts, on replicas that share nodes, in two waves of arrivals."""
    count, gpus, tp, model, longest, blocks = CASES[case]
    tasks = [task for task in tasks_of(case, count) if task.max_tokens <= longest]
    tasks = [replace(task, arrival_ps=i // 3 * 20 * 10**12, tenant=f"tenant{i % 2}") for i, task in enumerate(tasks)]
    saga = {**PRESETS["saga"], "predict": "aeg:cold_start=3", "host_memory_gb": 20.0, "evict_batch_blocks": 64}
    settings = config(
        gpus=2 * gpus, tp=tp, model=model, max_model_len=longest, num_gpu_blocks_override=blocks, max_num_seqs=4, **saga
    )
    fast = simulate(settings, tasks)
    assert_equal(fast, simulate(replace(settings, reference=True), tasks))
    check_tasks(fast.calls, fast.tasks, tasks)
    assert (fast.transfers["kind"] == 1).any()


def hit_share(result: Result, tasks: list[Task]) -> float:
    """Token-weighted hit share of the calls that are not the first of their agent."""
    later = [call.extends is not None for task in tasks for call in task.calls]
    prompts, hits = result.calls["prompt_tokens"][later], result.calls["hit_tokens"][later]
    return float(hits.sum() / prompts.sum())


# prefix share, token weighted, of calls after the first of a session, as measured on the sources (traces/SOURCES.md)
SHARES = {"weka": 0.973, "swe-bench-mini": 0.981}


@pytest.mark.parametrize("name", SHARES)
def test_unlimited_memory_finds_what_is_shared(name: str) -> None:
    tasks = tasks_of(name, **({"share": "session"} if name == "weka" else {}))
    result = simulate(config(gpus=4, route="session-affinity"), tasks)
    share = hit_share(result, tasks)
    lost_to_blocks = 16 * sum(len(task.calls) for task in tasks) / float(result.calls["prompt_tokens"].sum())
    assert SHARES[name] - 0.01 - lost_to_blocks <= share <= SHARES[name] + 0.01
    assert result.calls["regenerated_here_tokens"].sum() == 0
    assert result.calls["preemptions"].sum() == 0
