"""With degenerate settings the engine is a textbook queue: waiting times against their closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from sagasim.core import Call, Task
from sagasim.cost import constant_calibration
from sagasim.rng import Stream
from sagasim.simulate import simulate
from sagasim.units import PS_PER_S, PS_PER_US
from tests.strategies import config

STEP_S = 0.01
QUEUE = config(
    async_scheduling=False,
    prefix_caching=False,
    max_model_len=100_000,
    max_num_batched_tokens=4096,
    num_gpu_blocks_override=3_000_000,
    route="round-robin",
)


def waits(rate: float, servers: int, outputs: list[int], seed: int) -> np.ndarray:
    """Seconds that single-call tasks wait in a Poisson stream; a call is served for one step a token."""
    stream = Stream(seed, "arrivals")
    now = 0.0
    tasks = []
    for number, tokens in enumerate(outputs):
        now += stream.exponential(1 / rate)
        tasks.append(Task(f"t{number}", (Call("only", 1, tokens),), arrival_ps=round(now * 1e6) * PS_PER_US))
    costs = constant_calibration(int(STEP_S * PS_PER_S))
    result = simulate(replace(QUEUE, max_num_seqs=servers), tasks, calibration=costs)
    return (result.calls["admitted_ps"] - result.calls["submitted_ps"]) / PS_PER_S


def assert_mean(samples: np.ndarray, expected: float, batches: int = 20, slack: float = 0.0) -> None:
    """The expected mean lies within 3.5 standard errors by batch means (after a warm-up of a batch)."""
    means = np.array([part.mean() for part in np.array_split(samples, batches + 1)[1:]])
    error = 3.5 * means.std(ddof=1) / math.sqrt(batches)
    assert abs(means.mean() - expected) <= error + slack, (means.mean(), expected, error)
    assert error < 0.35 * expected  # the interval says something


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_deterministic_service_is_m_d_1(load: float) -> None:
    expected = load * STEP_S / (2 * (1 - load))
    assert_mean(waits(load / STEP_S, 1, [1] * 20_000, seed=1), expected)


def geometric(mean: float, count: int, seed: int) -> list[int]:
    stream = Stream(seed, "service")
    return [1 + int(math.log(1 - stream.uniform()) / math.log(1 - 1 / mean)) for _ in range(count)]


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_exponential_service_is_m_m_1(load: float) -> None:
    steps = 200  # a call's mean service, fine enough to be exponential
    service = steps * STEP_S
    expected = load * service / (1 - load)
    assert_mean(waits(load / service, 1, geometric(steps, 20_000, seed=2), seed=3), expected)


@pytest.mark.parametrize(("load", "servers"), [(0.6, 2), (0.8, 4), (0.9, 16)])
def test_a_batch_of_c_places_is_m_m_c(load: float, servers: int) -> None:
    steps = 400
    service = steps * STEP_S
    rate = load * servers / service
    offered = load * servers
    last = offered**servers / math.factorial(servers) / (1 - load)
    queued = last / (sum(offered**k / math.factorial(k) for k in range(servers)) + last)  # Erlang C
    expected = queued * service / (servers - offered)
    # an arrival starts at a step boundary, half a step later on average if any step is running
    assert_mean(waits(rate, servers, geometric(steps, 20_000, seed=4), seed=5), expected, slack=STEP_S)


@pytest.mark.parametrize(("asynchronous", "wasted"), [(False, 0), (True, 1)])
def test_steps_of_a_call_are_its_chunks_and_tokens(asynchronous: bool, wasted: int) -> None:
    prompt, output, budget = 1000, 37, 300
    one = Task("t", (Call("only", prompt, output),), arrival_ps=0)
    settings = replace(QUEUE, async_scheduling=asynchronous, max_num_batched_tokens=budget, max_num_seqs=4)
    costs = constant_calibration(PS_PER_US)
    for reference in (False, True):
        result = simulate(replace(settings, reference=reference), [one], calibration=costs)
        chunks = math.ceil(prompt / budget)
        assert result.replicas["steps"].tolist() == [chunks + output - 1 + wasted]
        assert result.calls["first_token_ps"].tolist() == [chunks * PS_PER_US]
        assert result.calls["finished_ps"].tolist() == [(chunks + output - 1) * PS_PER_US]
        if reference:
            assert result.executed >= chunks + output - 1


@pytest.mark.parametrize(("asynchronous", "first_step"), [(False, 2), (True, 3)])
def test_an_arrival_during_a_step_starts_one_or_two_steps_later(asynchronous: bool, first_step: int) -> None:
    """As vLLM states it: an arrival during step k starts in k + 1, with asynchronous scheduling in k + 2."""
    tasks = [Task("a", (Call("x", 1, 50),), arrival_ps=0), Task("b", (Call("x", 1, 1),), arrival_ps=PS_PER_US // 2)]
    settings = replace(QUEUE, async_scheduling=asynchronous, max_num_seqs=4)
    result = simulate(settings, tasks, calibration=constant_calibration(PS_PER_US))
    assert result.calls["first_token_ps"].tolist() == [PS_PER_US, first_step * PS_PER_US]


def test_preempted_calls_lose_no_token() -> None:
    """Two calls that outgrow the memory together: the one admitted last starts again and both finish."""
    settings = config(max_num_seqs=2, prefix_caching=False, num_gpu_blocks_override=34)
    tasks = [Task(name, (Call("x", 100, 250),), arrival_ps=0) for name in "ab"]
    result = simulate(settings, tasks, calibration=constant_calibration(PS_PER_US, prefill_token_ps=1000))
    assert result.calls["preemptions"].tolist()[0] == 0
    assert result.calls["preemptions"].tolist()[1] >= 1
    assert result.calls["output_tokens"].tolist() == [250, 250]
