"""Host memory against a naive one, and what it, prefetch and copies do to a run, against cases worked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.config import Config
from sagasim.core import Call, Task, Tool
from sagasim.cost import StepCost, beside_copies, constant_calibration
from sagasim.epochs import Epochs
from sagasim.plan import Branch
from sagasim.reference_cache import Name, ReferenceHost
from sagasim.simulate import Result, simulate
from sagasim.tiers import HostMemory, Piece
from tests import strategies

MS = 10**9
BLOCK_BYTES = 16 * 131_072  # of Llama-3.1-8B
ROOT = Branch(None, 0)
FORKS = [ROOT, Branch(ROOT, 4 * 16), Branch(ROOT, 9 * 16)]


def names(branch: Branch, lo: int, hi: int) -> list[Name]:
    return [("", str(FORKS.index(branch)), block) for block in range(lo, hi)]


def path_names(branch: Branch, upto: int) -> list[Name]:
    found: list[Name] = []
    for part, end in branch.path:
        found += names(part, len(found), min(end, upto))
    return found


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    made = []
    for _ in range(draw(st.integers(1, 3))):
        which = draw(st.integers(0, 2))
        lo = (0, 4, 9)[which] + draw(st.integers(0, 12))
        made.append((FORKS[which], lo, lo + draw(st.integers(1, 8))))
    return made


@given(
    st.integers(1, 40), st.lists(st.tuples(st.booleans(), pieces(), st.integers(0, 2), st.integers(0, 24)), max_size=12)
)
def test_host_memory_is_that_of_single_blocks(capacity: int, script: list[tuple[bool, list[Piece], int, int]]) -> None:
    ours, naive = HostMemory(capacity), ReferenceHost(capacity)
    for puts, blocks, which, start in script:
        branch = FORKS[which]
        told = [name for piece in blocks for name in reversed(names(*piece))]
        if puts:
            assert ours.missing([blocks[0]]) == naive.missing(names(*blocks[0]))
            ours.put(blocks)
            naive.put(told)
        else:
            upto = ours.match(branch.path, start, 24)
            assert upto == naive.match(path_names(branch, 24), start, 24)
            ours.touch(branch.path, start, upto)
            naive.touch(path_names(branch, 24), start, upto)
        assert ours.used == naive.used <= capacity
        for branch in FORKS:
            for at in range(24):
                assert ours.match(branch.path, at, 24) == naive.match(path_names(branch, 24), at, 24)


# ---- runs


def agents(count: int, calls: int, *, new: int = 60, output: int = 30, tool_ms: int = 100) -> list[Task]:
    """Chains whose contexts grow by `new` + `output` tokens a call, all at once."""
    made = []
    for number in range(count):
        chain: list[Call] = []
        for index in range(calls):
            before = chain[-1] if chain else None
            kept = 0 if before is None else before.prompt_tokens + before.output_tokens
            parent = None if before is None else before.name
            after = () if before is None else (before.name,)
            chain.append(Call(f"c{index}", new, output, parent, kept, after, tools=(Tool("t", tool_ms * MS),)))
        made.append(Task(f"t{number}", tuple(chain), arrival_ps=0))
    return made


COSTS = constant_calibration(MS, prefill_token_ps=MS // 100)


def run(tasks: list[Task], **changes: Any) -> Result:
    """One GPU whose link to the host moves a block in 0.1 ms, a tenth of a step; memory for about one context."""
    config: Config = strategies.config(
        **{
            "gpu": "rtx4090",
            "num_gpu_blocks_override": 34,
            "evict": "lru",
            "host_memory_gb": 1.0,
            "host_gb_per_s": BLOCK_BYTES / 10**5,
            "max_num_seqs": 1,
            "copy_slowdown": 1.0,
            "copy_slowdown_both": 1.0,
            **changes,
        }
    )
    fast = simulate(config, tasks, calibration=COSTS)
    slow = simulate(replace(config, reference=True), tasks, calibration=COSTS)
    assert fast.digest == slow.digest
    return fast


def kinds(result: Result) -> list[int]:
    return [int((result.transfers["kind"] == kind).sum()) for kind in range(4)]


def test_what_is_evicted_comes_back() -> None:
    tasks = agents(4, 4)
    alone, tiered = run(tasks, host_memory_gb=0.0), run(tasks)
    assert len(alone.transfers["kind"]) == 0
    assert alone.calls["regenerated_here_tokens"].sum() > 0
    assert tiered.calls["regenerated_here_tokens"].sum() == 0
    assert kinds(tiered)[1] > 0
    assert tiered.calls["reloaded_tokens"].sum() > 0
    again = (tiered.calls["kept_tokens"] - 1) // 16 * 16  # whole blocks of what was there before
    assert (tiered.calls["hit_tokens"] >= again)[tiered.calls["reloaded_tokens"] > 0].all()
    assert tiered.tasks["finished_ps"].max() < alone.tasks["finished_ps"].max()


def test_a_reload_takes_what_arithmetic_says_and_the_call_waits_for_it() -> None:
    result = run(agents(4, 4))
    moved = result.transfers
    lone = [
        row
        for row in range(len(moved["kind"]))
        if ((moved["started_ps"] < moved["ended_ps"][row]) & (moved["ended_ps"] > moved["started_ps"][row])).sum() == 1
    ]
    assert lone
    for row in lone:
        blocks = moved["bytes"][row] // BLOCK_BYTES
        assert moved["ended_ps"][row] - moved["started_ps"][row] == blocks * MS // 10
    for row in np.flatnonzero(moved["kind"] == 2):
        own = (result.calls["task"] == moved["task"][row]) & (
            result.calls["reloaded_tokens"] * 131_072 == moved["bytes"][row]
        )
        assert (result.calls["submitted_ps"][own] <= moved["started_ps"][row]).any()
        assert (result.calls["admitted_ps"][own] >= moved["ended_ps"][row]).any()


def test_too_small_a_host_memory_forgets_the_oldest() -> None:
    tasks = agents(5, 4)
    small, large = run(tasks, host_memory_gb=20 * BLOCK_BYTES / 2**30), run(tasks)
    assert 0 < small.calls["reloaded_tokens"].sum() < large.calls["reloaded_tokens"].sum()
    assert small.calls["regenerated_here_tokens"].sum() > 0


def test_prefetch_brings_a_context_back_before_it_is_asked_for() -> None:
    """Half way through each tool; a call then finds what it would otherwise wait for."""
    tasks = agents(3, 4, tool_ms=400)
    asked = run(tasks)
    ahead = run(tasks, prefetch=f"{strategies.MINE}:always:after_ps={200 * MS}")
    assert kinds(asked)[3] == 0
    assert kinds(ahead)[3] > 0
    assert ahead.replicas["prefetched_blocks"].sum() > 0
    assert kinds(ahead)[2] < kinds(asked)[2]
    waits = [(result.calls["admitted_ps"] - result.calls["submitted_ps"]).sum() for result in (asked, ahead)]
    assert waits[1] < waits[0]
    assert "prefetch" not in ahead.notes
    vain = run(tasks, prefetch=f"{strategies.MINE}:always:after_ps={200 * MS}", host_memory_gb=0.0)
    assert "nothing to bring back" in vain.notes["prefetch"]
    assert vain.digest == run(tasks, host_memory_gb=0.0).digest


def test_a_prefetch_that_is_of_no_use_is_cancelled() -> None:
    slow_link = {"host_gb_per_s": BLOCK_BYTES / (5 * 10**6), "gpus": 2, "route": "round-robin"}  # 5 ms a block
    result = run(agents(11, 5, tool_ms=300), prefetch=f"{strategies.MINE}:always:after_ps={290 * MS}", **slow_link)
    given_up = result.transfers["cancelled"] == 1
    assert given_up.any()
    assert (result.transfers["kind"][given_up] == 3).all()
    ends = set(result.transfers["ended_ps"][given_up])
    assert ends & set(result.calls["submitted_ps"])
    assert ends <= set(result.calls["submitted_ps"]) | set(result.tasks["finished_ps"])  # or its task ended


def test_steps_take_longer_beside_copies() -> None:
    """Every step of a run that always copies costs 3 ms in place of 1: that and nothing else."""
    tasks = agents(4, 4)
    free, slowed = run(tasks), run(tasks, copy_slowdown=3.0, copy_slowdown_both=3.0)
    assert slowed.replicas["busy_ps"].sum() > free.replicas["busy_ps"].sum()
    costs = [StepCost(c, max_tokens=64, max_seqs=8, asynchronous=True) for c in (COSTS, beside_copies(COSTS, 300))]
    assert [cost.step(2, 100, 60, [(16, 0)]) for cost in costs] == [MS + 16 * MS // 100, 3 * (MS + 16 * MS // 100)]
    never = run(tasks, copy_slowdown=3.0, copy_slowdown_both=3.0, host_memory_gb=0.0)
    assert never.replicas["busy_ps"].sum() == run(tasks, host_memory_gb=0.0).replicas["busy_ps"].sum()


def test_two_gpus_share_an_uplink_where_the_hardware_does() -> None:
    """A100: replicas of one GPU in pairs; four replicas write back at once, each at half its rate."""
    tasks = agents(4, 3)
    config = {"gpus": 4, "route": "round-robin", "num_gpu_blocks_override": 33, "host_gb_per_s": BLOCK_BYTES / 10**6}
    tasks = agents(12, 3)
    pairs, alone = run(tasks, gpu="a100", **config), run(tasks, gpu="h100", **config)
    assert kinds(pairs)[1] > 0
    assert pairs.transfers["started_ps"][0] == alone.transfers["started_ps"][0]
    first = [r.transfers["ended_ps"][:4] - r.transfers["started_ps"][:4] for r in (pairs, alone)]
    assert (first[0] > first[1]).all()


def test_an_idle_cluster_costs_no_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two short tasks an hour apart: the balancer and the preemption sleep in between."""
    tasks = [Task(f"t{i}", (Call("c", 20, 4),), arrival_ps=i * 3600 * 10**12) for i in range(2)]
    woken: list[int] = []
    look = Epochs._epoch
    monkeypatch.setattr(Epochs, "_epoch", lambda self, event: (woken.append(1), look(self, event)))
    asleep = run(tasks, balance="steal", preempt=f"{strategies.MINE}:youngest", balance_epoch_s=0.1, gpus=2)
    assert len(woken) <= 2 * 2  # one a task, in both engines
    assert asleep.tasks["finished_ps"].max() > 3600 * 10**12
