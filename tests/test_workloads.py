"""Generated workloads against the statistics they state."""

from __future__ import annotations

from itertools import islice
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Prefix, Task, check_task
from sagasim.errors import ConfigError
from sagasim.fill import CAP_OF_P99, LATENCY_MS, SHELL_FITS, gap_ps, latency_ps, shell_ps, user_ps
from sagasim.rng import Stream
from sagasim.workloads import generate, workloads
from sagasim.workloads.react import stop_probability

MS = 10**9
US = 10**6


class Even:
    """A stream that draws one chosen quantile."""

    def __init__(self, quantile: float) -> None:
        self.quantile = quantile

    def normal(self) -> float:
        return NormalDist().inv_cdf(self.quantile)


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return list(generate("swe-bench", 3000, seed=11).tasks())


def test_steps(tasks: list[Task]) -> None:
    steps = np.array([len(task.calls) for task in tasks])
    assert steps.mean() == pytest.approx(37, abs=3 * steps.std() / len(steps) ** 0.5)
    assert (steps.min(), steps.max()) == (1, 150)


def test_tokens(tasks: list[Task]) -> None:
    first = [task.calls[0].prompt_tokens for task in tasks]
    outputs = [call.output_tokens for task in tasks for call in task.calls]
    observed = [call.new_tokens for task in tasks for call in task.calls[1:]]
    assert (min(outputs), max(outputs)) == (100, 500)
    assert min(first) >= 2000
    assert max(first) <= 4000
    assert np.mean(first) == pytest.approx(3000, rel=0.02)
    assert np.mean(outputs) == pytest.approx(300, rel=0.01)
    assert np.mean(observed) == pytest.approx(350, rel=0.01)
    assert np.var(observed) == pytest.approx(350**2 / 2, rel=0.03)
    assert min(observed) >= 1


def test_a_task_is_a_chain(tasks: list[Task]) -> None:
    for task in tasks[:200]:
        check_task(task)
        assert task.arrival_ps is None
        for before, call in zip(task.calls, task.calls[1:], strict=False):
            assert (call.extends, call.after) == (before.name, (before.name,))
            assert call.keep_tokens == before.prompt_tokens + before.output_tokens
            assert len(before.tools) == 1
        assert task.calls[-1].tools == ()


def test_tools(tasks: list[Task]) -> None:
    tools = [tool for task in tasks for call in task.calls for tool in call.tools]
    assert all(tool.filled and tool.duration_ps % US == 0 for tool in tools)
    for name, weight in zip(("code", "file", "web", "database"), (0.45, 0.40, 0.10, 0.05), strict=True):
        times = [tool.duration_ps / MS for tool in tools if tool.name == name]
        assert len(times) / len(tools) == pytest.approx(weight, abs=0.01)
        assert max(times) <= CAP_OF_P99 * LATENCY_MS[name][2] + 0.001


@pytest.mark.parametrize("name", LATENCY_MS)
def test_latency_quantiles(name: str) -> None:
    stream = Stream(3, "test", name)
    drawn = [latency_ps(stream, LATENCY_MS[name]) / MS for _ in range(100_000)]
    assert np.percentile(drawn, [50, 95]) == pytest.approx(LATENCY_MS[name][:2], rel=0.05)
    times = [latency_ps(Even(n / 50_000), LATENCY_MS[name]) / MS for n in range(1, 50_000)]  # type: ignore[arg-type]
    assert np.percentile(times, [50, 95, 99]) == pytest.approx(LATENCY_MS[name], rel=0.01)
    assert max(times) <= CAP_OF_P99 * LATENCY_MS[name][2]
    assert times == sorted(times)


def test_a_task_does_not_depend_on_how_many_there_are() -> None:
    few, many = generate("swe-bench", 3, seed=4), generate("swe-bench", 30, seed=4)
    assert list(few.tasks()) == list(islice(many.tasks(), 3))
    assert list(few.tasks(0)) == list(few.tasks(99))
    assert list(few.tasks()) != list(generate("swe-bench", 3, seed=5).tasks())
    assert len({few.sha256, many.sha256, generate("swe-bench", 3, seed=5).sha256}) == 3
    assert generate("swe-bench", 3, seed=4).sha256 == few.sha256
    assert generate("swe-bench", 3, seed=4, mean_steps=36.0).sha256 != few.sha256
    assert (few.path, few.format, few.name) == (None, "generated", "swe-bench")
    assert "P99" in few.filled["tool_s"]


def test_a_shared_prefix() -> None:
    for task in generate("swe-bench", 5, 0, shared_prefix_tokens=1500, first_prompt_tokens=(2000, 2000)).tasks():
        assert task.prefixes == (Prefix("swe-bench/system/1500", 1500),)
        assert (task.calls[0].keep_tokens, task.calls[0].new_tokens) == (1500, 500)
    [task] = generate("swe-bench", 1, 0, shared_prefix_tokens=5000, first_prompt_tokens=(100, 100)).tasks()
    assert (task.calls[0].keep_tokens, task.calls[0].new_tokens) == (99, 1)
    check_task(task)


@settings(max_examples=100, deadline=None)
@given(mean=st.floats(1, 150), most=st.integers(150, 1000))
def test_the_stop_probability_gives_the_mean(mean: float, most: int) -> None:
    chance = stop_probability(mean, most)
    expected = (1 - (1 - chance) ** most) / chance if chance > 1e-9 else most
    assert expected == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize(
    ("count", "options"),
    [
        (0, {}),
        (1.5, {}),
        (1, {"mean_step": 3}),
        (1, {"mean_steps": 0.5}),
        (1, {"mean_steps": 151}),
        (1, {"mean_steps": float("nan")}),
        (1, {"mean_steps": "37"}),
        (1, {"max_steps": 10.5}),
        (1, {"output_tokens": (0, 5)}),
        (1, {"output_tokens": (6, 5)}),
        (1, {"output_tokens": 5}),
        (1, {"tool_mix": (0, 0, 0, 0)}),
        (1, {"tool_mix": (1, 1)}),
        (1, {"tool_mix": (1, 1, 1, -1)}),
        (1, {"code_ms": (5, 4, 3)}),
        (1, {"web_ms": (0, 4, 5)}),
        (1, {"cap_of_p99": 0.5}),
        (1, {"shared_prefix_tokens": -1}),
        (1, {"shared_prefix_tokens": True}),
    ],
)
def test_options_that_make_no_sense(count: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        generate("swe-bench", count, 0, **options)


def test_names() -> None:
    assert "swe-bench" in [workload.name for workload in workloads()]
    with pytest.raises(ConfigError, match="'swe-bench' perhaps"):
        generate("swebench", 1)


def test_other_fills() -> None:
    stream = Stream(1, "fills")
    for shell in SHELL_FITS:
        times = [shell_ps(stream, shell) / 10**12 for _ in range(4000)]
        assert np.log(np.median(times)) == pytest.approx(SHELL_FITS[shell][0], abs=0.08)
    assert max(shell_ps(stream, "test", 10**12) for _ in range(200)) == 10**12
    assert np.median([user_ps(stream) for _ in range(4000)]) == pytest.approx(3 * 10**12, rel=0.05)
    assert np.median([gap_ps(stream, "tool") for _ in range(4000)]) == pytest.approx(12.3 * 10**12, rel=0.1)
