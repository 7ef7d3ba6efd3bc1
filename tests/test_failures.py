"""Replicas that fail, drain and come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagasim.config import resolve
from sagasim.core import Call, Task
from sagasim.cost import constant_calibration
from sagasim.errors import ConfigError
from sagasim.failures import Failure, parse_failures
from sagasim.simulate import Result, simulate
from sagasim.work import prepare
from tests.strategies import config

S, MS = 10**12, 10**9


def served(failures: str | None, **changes: Any) -> Result:
    """One call for each of two replicas, 50 tokens of 10 ms each; then another for each, which extends it."""
    calls = (Call("0", 64, 50), Call("1", 16, 10, "0", 114, ("0",)))
    tasks = [Task(f"t{i}", calls, arrival_ps=i) for i in range(2)]
    two = config(gpus=2, route="session-affinity", failures=failures, async_scheduling=False, stop="length", **changes)
    return simulate(two, tasks, calibration=constant_calibration(10 * MS))


def test_a_failed_replica_loses_its_calls_and_its_cache() -> None:
    whole, broken = served(None), served("0@0.1+0.2")
    assert whole.calls["finished_ps"].max() < 0.7 * S
    first = broken.calls["replica"][0]
    assert first == 1  # its task had been on replica 0
    # it begins again with the next step of replica 1, whose other call leaves 63 of 64 tokens: 51 more steps of 10 ms
    assert broken.calls["finished_ps"][0] == 100 * MS + 1 + 51 * 10 * MS
    assert broken.calls["submitted_ps"][0] == 0
    assert broken.calls["replica"][1] == 1  # the session has moved
    assert broken.notes["replicas"] == "0 failed at 0.1 s (1 calls began again)"
    assert broken.replicas["busy_ps"][0] == 100 * MS


def test_a_drained_replica_finishes_what_runs() -> None:
    drained = served("0@0.1~5")
    assert drained.calls["replica"].tolist() == [0, 1, 1, 1]
    assert drained.calls["hit_tokens"][1] == 0  # the context stayed behind
    assert drained.calls["regenerated_elsewhere_tokens"][1] > 0
    assert drained.notes["replicas"] == "0 drained at 0.1 s (0 calls began again)"


def test_a_replica_comes_back_empty() -> None:
    tasks = [Task(f"t{i}", (Call("0", 64, 5),), arrival_ps=i * S) for i in range(4)]
    one = config(gpus=2, route="round-robin", failures="0@0.5+1")
    result = simulate(one, tasks, calibration=constant_calibration(10 * MS))
    assert result.calls["replica"].tolist() == [0, 1, 0, 1]
    assert result.occupancy["cached_blocks"][result.occupancy["time_ps"] == S // 2].tolist() == [0]


def test_a_call_that_begins_again_is_older_than_a_head_that_does_not_fit() -> None:
    """Replica 1 has 32 blocks: 16 and more for one call, 20 for the next; the lost one of 4 was sent before."""
    lost, runs, done, waits = Call("0", 64, 50), Call("0", 256, 100), Call("0", 16, 1), Call("0", 320, 5)
    tasks = [Task(f"t{i}", (call,), arrival_ps=i) for i, call in enumerate((lost, runs, done, waits))]
    limits = {"num_gpu_blocks_override": 33, "max_num_batched_tokens": 512, "max_model_len": 400, "max_num_seqs": 4}
    two = config(gpus=2, route="round-robin", failures="0@0.1+0.2", async_scheduling=False, stop="length", **limits)
    fast, slow = (
        simulate(replace(two, reference=reference), tasks, calibration=constant_calibration(10 * MS))
        for reference in (False, True)
    )
    assert fast.digest == slow.digest
    assert fast.calls["replica"].tolist() == [1, 1, 0, 1]
    assert fast.calls["admitted_ps"][0] == 100 * MS + 1  # at the next step of replica 1
    assert fast.calls["admitted_ps"][3] == fast.calls["finished_ps"][1]


def test_failures_are_read_in_order_of_time() -> None:
    assert parse_failures("1@2.5~1, 0@1+0.5", 2) == [
        Failure(0, S, S // 2, False),
        Failure(1, 5 * S // 2, S, True),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x", "does not fit"),
        ("0@1", "does not fit"),
        ("0@1+", "does not fit"),
        ("0@1.2.3+4", "does not fit"),
        ("2@1+1", "a replica from 0 to 1"),
        ("0@1+0", "out of range"),
        ("0@99999999+1", "out of range"),
        ("0@1+5, 0@3+1", "while it is out"),
        ("0@1+5, 1@3+1", "no replica is left"),
    ],
)
def test_failures_that_make_no_sense(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse_failures(text, 2)


def test_a_recorded_trace_gives_the_same_log_in_both_engines() -> None:
    """Long contexts: what running calls had cached when their replica failed is known afterwards."""
    keys = {"trace": "tau-bench", "tasks": 8, "gpus": 8, "tp": 4, "failures": "0@5+20, 1@30~5"}
    work = prepare(resolve(keys))
    fast = simulate(work.config, work.tasks)
    slow = simulate(replace(work.config, reference=True), work.tasks)
    assert fast.calls["regenerated_here_tokens"].sum() > 0
    assert fast.digest == slow.digest
