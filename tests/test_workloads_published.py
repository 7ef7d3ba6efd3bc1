"""swe-bench, webarena and multi-tenant: the statistics they state, and forks, tools and sub-agents on demand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Task, check_task
from sagasim.errors import ConfigError
from sagasim.workloads import generate

THREE = ("swe-bench", "webarena", "multi-tenant")


def tasks_of(name: str, count: int, seed: int = 1, **options: Any) -> list[Task]:
    return list(generate(name, count, seed, **options).tasks())


@pytest.fixture(scope="module")
def web() -> list[Task]:
    return tasks_of("webarena", 3000)


@pytest.fixture(scope="module")
def tenants() -> list[Task]:
    return tasks_of("multi-tenant", 4000)


def near_mean(values: Any, expected: float, rel: float = 0.05) -> None:
    found = np.asarray(values, dtype=float)
    assert found.mean() == pytest.approx(expected, rel=rel)


def test_webarena(web: list[Task]) -> None:
    steps = [len(task.calls) for task in web]
    near_mean(steps, 18, 0.03)
    assert (min(steps), max(steps)) == (1, 80)
    first = [task.calls[0].prompt_tokens for task in web]
    assert min(first) >= 4000
    assert max(first) <= 8000
    near_mean(first, 6000, 0.02)
    outputs = [call.output_tokens for task in web for call in task.calls]
    assert (min(outputs), max(outputs)) == (50, 200)
    observed = [call.new_tokens for task in web for call in task.calls[1:]]
    near_mean(observed, 800, 0.01)
    assert np.var(observed) == pytest.approx(800**2 / 2, rel=0.05)
    tools = [tool for task in web for call in task.calls for tool in call.tools]
    counted = Counter(tool.name for tool in tools)
    for name, share in zip(("code", "file", "web", "database"), (0.05, 0.15, 0.75, 0.05), strict=True):
        assert counted[name] / len(tools) == pytest.approx(share, abs=0.01)
    times = np.array([tool.duration_ps for tool in tools if tool.name == "web"]) / 1e9
    assert np.quantile(times, [0.5, 0.95]) == pytest.approx([850, 4500], rel=0.05)


def test_ten_tenants_by_weight(tenants: list[Task]) -> None:
    counted = Counter(task.tenant for task in tenants)
    names = [
        *(f"heavy-{n}" for n in (1, 2, 3)),
        *(f"medium-{n}" for n in (1, 2, 3, 4)),
        *(f"light-{n}" for n in (1, 2, 3)),
    ]
    assert sorted(counted) == sorted(names)
    rates = {"heavy": 16, "medium": 8, "light": 4}
    for name in names:
        expected = rates[name.split("-")[0]] / 92
        assert counted[name] / len(tenants) == pytest.approx(expected, abs=4 * (expected / len(tenants)) ** 0.5)


@pytest.mark.parametrize(
    ("kind", "steps", "prompts", "outputs"),
    [
        ("heavy", 100, (3000, 5000), (200, 600)),
        ("medium", 30, (2000, 4000), (100, 400)),
        ("light", 10, (1500, 3000), (50, 200)),
    ],
)
def test_sizes_of_tenants(
    tenants: list[Task], kind: str, steps: int, prompts: tuple[int, int], outputs: tuple[int, int]
) -> None:
    own = [task for task in tenants if task.tenant.startswith(kind)]
    assert {task.agent for task in own} == {f"multi-tenant/{kind}"}
    near_mean([len(task.calls) for task in own], steps, 0.08)
    first = [task.calls[0].prompt_tokens for task in own]
    assert prompts[0] <= min(first) <= max(first) <= prompts[1]
    near_mean(first, sum(prompts) / 2, 0.03)
    written = [call.output_tokens for task in own for call in task.calls]
    assert (min(written), max(written)) == outputs
    near_mean([call.new_tokens for task in own for call in task.calls[1:]], 400, 0.03)
    tools = [tool.name for task in own for call in task.calls for tool in call.tools]
    assert set(tools) == {"code", "web"}
    assert tools.count("code") / len(tools) == pytest.approx(0.5, abs=0.03)


def test_contexts_of_tenants_fit_the_models(tenants: list[Task]) -> None:
    assert max(task.max_tokens for task in tenants) <= 131_072


def test_a_tenant_without_rate_has_no_tasks() -> None:
    tasks = tasks_of("multi-tenant", 60, tasks_per_min=(0, 1, 1), tenants=(3, 1, 2))
    assert {task.tenant for task in tasks} == {"medium-1", "light-1", "light-2"}
    with pytest.raises(ConfigError, match="a rate above 0"):
        tasks_of("multi-tenant", 1, tasks_per_min=(0, 0, 0))
    with pytest.raises(ConfigError, match="a rate above 0"):
        tasks_of("multi-tenant", 1, tenants=(0, 0, 0))


@pytest.mark.parametrize("name", THREE)
def test_extras_are_off_unless_asked_for(name: str) -> None:
    for task in tasks_of(name, 30):
        assert {call.agent for call in task.calls} == {""}
        assert all(len(call.tools) == 1 for call in task.calls[:-1])
        assert all(call.after == (before.name,) for before, call in zip(task.calls, task.calls[1:], strict=False))
        assert task.prefixes == ()


@pytest.mark.parametrize("name", THREE)
def test_branches(name: str) -> None:
    tasks = tasks_of(name, 60, branch_probability=1.0, branch_width=3)
    for task in tasks:
        check_task(task)
        plain = [call for call in task.calls if "." not in call.name]
        assert len(task.calls) == 3 * (len(plain) - 1) + 1
        for step in range(1, len(plain)):
            beside = [call for call in task.calls if call.name.split(".")[0] == str(step)]
            assert len({(call.extends, call.keep_tokens, call.after) for call in beside}) == 1
            if step + 1 < len(plain):
                assert set(plain[step + 1].after) == {call.name for call in beside}
                others = sum(call.output_tokens for call in beside[1:])
                assert plain[step + 1].new_tokens > others
    some = tasks_of(name, 200, branch_probability=0.2)
    share = sum("." in call.name for task in some for call in task.calls) / sum(
        "." not in call.name for task in some for call in task.calls[1:]
    )
    assert share == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("name", THREE)
def test_parallel_tools(name: str) -> None:
    tasks = tasks_of(name, 200, parallel_tool_probability=0.3, parallel_tools=4)
    counted = Counter(len(call.tools) for task in tasks for call in task.calls if call.tools)
    assert set(counted) == {1, 4}
    assert counted[4] / counted.total() == pytest.approx(0.3, abs=0.03)


@pytest.mark.parametrize("name", THREE)
def test_sub_agents(name: str) -> None:
    tasks = tasks_of(name, 100, subagent_probability=0.1, subagent_steps=4, shared_prefix_tokens=1000)
    steps = children = 0
    for task in tasks:
        check_task(task)
        chains: dict[str, list[Any]] = {}
        for call in task.calls:
            chains.setdefault(call.agent, []).append(call)
        main = {call.name: call for call in chains.pop("")}
        steps += len(main) - 1
        children += len(chains)
        for chain in chains.values():
            assert len(chain) == 4
            assert chain[0].after[0] in main
            assert chain[0].keep_tokens <= 1000  # a context of its own but for what all share
            joined = [call for call in main.values() if chain[-1].name in call.after]
            assert len(joined) == 1
            assert joined[0].new_tokens >= chain[-1].output_tokens
    assert children / steps == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("name", THREE)
def test_a_shared_prefix(name: str) -> None:
    tasks = tasks_of(name, 40, shared_prefix_tokens=1200)
    for task in tasks:
        assert [prefix.new_tokens for prefix in task.prefixes] == [1200]
        assert task.calls[0].extends == task.prefixes[0].name
        assert task.calls[0].keep_tokens == 1200
    assert len({prefix.name for task in tasks for prefix in task.prefixes}) <= 3


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(THREE),
    index=st.integers(0, 10**6),
    seed=st.integers(0, 10**6),
    branch=st.sampled_from([0.0, 0.3, 1.0]),
    width=st.integers(2, 5),
    parallel=st.sampled_from([0.0, 0.5, 1.0]),
    tools=st.integers(2, 4),
    sub=st.sampled_from([0.0, 0.2, 1.0]),
    length=st.integers(1, 6),
    shared=st.integers(0, 10_000),
    observed=st.floats(0, 2000),
)
def test_whatever_the_options_tasks_can_be_replayed(
    name: str, index: int, seed: int, branch: float, width: int, parallel: float, tools: int, sub: float, length: int,
    shared: int, observed: float,
) -> None:  # fmt: skip
    from sagasim.workloads import find

    options = {
        "branch_probability": branch,
        "branch_width": width,
        "parallel_tool_probability": parallel,
        "parallel_tools": tools,
        "subagent_probability": sub,
        "subagent_steps": length,
        "shared_prefix_tokens": shared,
        "observation_tokens": observed,
    }
    make = find(name).task
    task = make(index, seed, **options)
    check_task(task)
    assert task == make(index, seed, **options)
    assert all(call.tools == () for call in task.calls[-1:])


@pytest.mark.parametrize(
    "options",
    [
        {"branch_probability": 1.5},
        {"branch_width": 1},
        {"parallel_tools": 65},
        {"subagent_steps": 0},
        {"subagent_probability": 1.01},
        {"branch_probability": 0.1, "branch_width": 64, "subagent_probability": 0.1, "subagent_steps": 64},
    ],
)
@pytest.mark.parametrize("name", THREE)
def test_extras_that_make_no_sense(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        generate(name, 1, 0, **options)
