"""SAGA's formulas against cases worked by hand, and each mechanism against its absence."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagasim.core import Call, Task, Tool
from sagasim.cost import constant_calibration
from sagasim.errors import PolicyError
from sagasim.plan import Context
from sagasim.policies.aeg import END, Aeg, Graph, Latency
from sagasim.policies.balance import Steal
from sagasim.policies.saga import AfsOrder, SagaAffinity, WaLru, pressure, time_to_live_ps
from sagasim.rng import Stream
from sagasim.seams import IdleContext, Memory, ReplicaView, Request, find
from sagasim.simulate import Result, simulate
from tests.strategies import config

S = 10**12


def request(
    task: str = "t", prompt: int = 100, *, now: int = 0, arrival: int = 0, expected: int | None = None
) -> Request:
    return Request(task, "default", "kind", "", 0, Context(None, 0, prompt), prompt, now, arrival, expected)


def idle(task: str, blocks: int, since: int, number: int = 1) -> IdleContext:
    return IdleContext(number, task, "default", "", Context(None, 0, blocks * 16), since, blocks)


def told(aeg: Aeg, task: str, tool: str, at: int, *, prompt: int = 100, output: int = 10) -> None:
    """A call of a task that is sent and ended at one moment, and asks for a tool."""
    aeg.sent(request(task, prompt, now=at), at)
    aeg.ended(request(task, prompt, now=at), (tool,), output, S, at)


def warm(**options: Any) -> Aeg:
    """A predictor that has seen: of 10 steps with tool x, 8 are followed by a step, 2 end the task."""
    aeg = Aeg(cold_start=2, **options)
    for task in ("a", "b"):
        for i in range(5):
            told(aeg, task, "x", i * S, prompt=100 + 130 * i, output=30)  # 100 tokens of observation each
        aeg.left(task, 5 * S)
    return aeg


# ---- Agent Execution Graph


def test_rows_are_normalised_and_weak_edges_predict_nothing() -> None:
    graph = Graph()
    for following, times in (("x", 7), ("y", 2), (END, 1)):
        graph.count("x", following, times)
    assert graph.follows("x") == pytest.approx(0.9)
    assert graph.next_tool("x", 0.7) == "x"
    assert graph.next_tool("x", 0.71) is None
    assert graph.next_tool("never", 0.7) is None


def test_nothing_is_predicted_before_enough_tasks_have_ended() -> None:
    aeg = Aeg(cold_start=2)
    told(aeg, "a", "x", 0)
    aeg.left("a", S)
    told(aeg, "b", "x", S)
    step = aeg.step("b", "")
    assert step is not None
    assert aeg.follows(step, "") == 0
    aeg.left("b", 2 * S)
    told(aeg, "c", "x", 3 * S)
    step = aeg.step("c", "")
    assert step is not None
    assert aeg.follows(step, "") == 0  # both tasks ended after their first step


def test_transitions_observations_and_remaining_calls_are_learned() -> None:
    aeg = warm()
    told(aeg, "c", "x", 10 * S)
    step = aeg.step("c", "")
    assert step is not None
    assert aeg.follows(step, "") == pytest.approx(0.8)
    assert aeg.observation_tokens(step) == 100
    assert aeg.remaining_calls(step, "") == 5  # 10 steps, 2 ends
    assert aeg.mean_service_ps(step) == S
    assert aeg.notes()["next steps"].startswith("0 right of 0 predicted of 10")


def test_fitted_hints_do_not_know_the_session_itself() -> None:
    def task(name: str, tools: str) -> Task:
        calls = tuple(
            Call(str(i), 10, 5, after=() if not i else (str(i - 1),), tools=(Tool(t, S),)) for i, t in enumerate(tools)
        )
        return Task(name, calls, agent="kind")

    aeg = Aeg(hints="fitted")
    aeg.learn([task("odd", "xyxy"), task("same", "xxxx")])
    told(aeg, "odd", "x", 0)
    told(aeg, "same", "x", 0)
    odd, same = aeg.step("odd", ""), aeg.step("same", "")
    assert odd is not None
    assert same is not None
    assert odd.predicted == "x"  # three of four times in the other session
    assert same.predicted == "y"  # always in the other session
    assert aeg.follows(odd, "") == pytest.approx(0.75)
    assert aeg.follows(same, "") == 1


def test_declared_hints_are_a_graph_of_the_agent_type(tmp_path: Path) -> None:
    file = tmp_path / "graph.json"
    file.write_text('{"kind": {"x": {"y": 0.8, "": 0.2}, "y": {"": 1}}}')
    aeg = Aeg(hints="declared", graph=str(file))
    told(aeg, "a", "x", 0)
    step = aeg.step("a", "")
    assert step is not None
    assert (aeg.follows(step, ""), step.predicted) == (pytest.approx(0.8), "y")  # from the first task on
    told(aeg, "a", "y", S)
    assert (aeg.follows(step, ""), step.predicted) == (0, END)
    for text in ("{", "[]", '{"kind": {"x": {"y": 0.5}}}', '{"kind": {"x": {"y": 2, "": -1}}}', '{"kind": 3}'):
        file.write_text(text)
        with pytest.raises(PolicyError, match="no graph"):
            Aeg(hints="declared", graph=str(file))
    with pytest.raises(PolicyError, match="declared hints are of a file"):
        Aeg(hints="declared")
    with pytest.raises(PolicyError, match="cannot be read"):
        Aeg(hints="declared", graph=str(tmp_path / "none.json"))


def test_perfect_hints_know_it() -> None:
    calls = (Call("0", 10, 5, tools=(Tool("x", S),)), Call("1", 10, 5, after=("0",)))
    aeg = Aeg(hints="perfect")
    aeg.learn([Task("t", calls, agent="kind")])
    told(aeg, "t", "x", 0)
    step = aeg.step("t", "")
    assert step is not None
    assert (aeg.follows(step, ""), step.predicted, aeg.remaining_calls(step, "")) == (1, "none", 1)
    told(aeg, "t", "none", S)
    assert (aeg.follows(step, ""), step.predicted, aeg.remaining_calls(step, "")) == (0, END, 0)
    assert "clairvoyant" in aeg.notes()


def test_unknown_hints() -> None:
    with pytest.raises(PolicyError, match="'perfect' perhaps"):
        Aeg(hints="perfekt")


def test_latency_quantiles() -> None:
    rng = np.random.default_rng(0)
    latency, sample = Latency(0.02), Latency(0.02, empirical=True)
    for ps in (rng.lognormal(math.log(S), 0.5, size=3000)).astype(np.int64).tolist():
        latency.learn(ps)
        sample.learn(ps)
    truth = S * math.exp(1.6449 * 0.5)
    assert sample.q95_ps() == pytest.approx(truth, rel=0.15)
    assert latency.q95_ps() == pytest.approx(truth, rel=0.3)
    assert Latency(0.1).q95_ps() is None


# ---- WA-LRU and time to live


@pytest.mark.parametrize(("used", "m", "ttl_s"), [(0.6, 0.0, 10.0), (0.8, 0.5, 7.5), (0.95, 1.0, 5.0)])
def test_time_to_live_under_pressure(used: float, m: float, ttl_s: float) -> None:
    assert pressure(used, 0.7, 0.9) == pytest.approx(m)
    assert time_to_live_ps(10 * S, m, 300) == pytest.approx(ttl_s * S)
    assert time_to_live_ps(1000 * S, m, 300) == 300 * S


def test_evict_order_by_hand() -> None:
    """Three sessions of ended tools: P_evict = 0.3 R + 0.5 (1 - P_reuse) + 0.2 S."""
    aeg = warm()
    for task, at in (("old", 10), ("big", 15), ("gone", 18)):
        told(aeg, task, "x", at * S)
    aeg.left("gone", 19 * S)  # 11 steps with x that were followed 8 times
    told(aeg, "late", "x", 19 * S)
    idles = [idle("old", 20, 10 * S, 1), idle("big", 100, 15 * S, 2), idle("gone", 50, 18 * S, 3)]
    ranks = WaLru(aeg, ttl=False)(idles, 20 * S, Memory(1000, 0))
    follows = 8 / 11

    def p_evict(idle_s: float, reuse: float, blocks: int) -> float:
        return 0.3 * idle_s / 10 + 0.5 * (1 - reuse) + 0.2 * blocks / 100

    reuse = [follows * tokens / (tokens + 100) for tokens in (320, 1600)]
    expected = [p_evict(10, reuse[0], 20), p_evict(5, reuse[1], 100), p_evict(2, 0.0, 50)]
    assert [-rank for _, rank in ranks] == pytest.approx(expected)
    assert [protected for protected, _ in ranks] == [0, 0, 0]


def test_what_is_protected_goes_last_but_goes() -> None:
    """Latency of x is 1 s: a session whose tool began 0.5 s ago is protected, one of 5 s ago is not."""
    aeg = warm()
    told(aeg, "expired", "x", 15 * S)
    told(aeg, "fresh", "x", 19_500 * S // 1000)
    idles = [idle("fresh", 10, 19_500 * S // 1000, 1), idle("expired", 10, 15 * S, 2)]
    ranks = WaLru(aeg)(idles, 20 * S, Memory(1000, 0))
    assert [protected for protected, _ in ranks] == [1, 0]
    assert ranks[1] < ranks[0]
    artifact = WaLru(aeg, protect=False)(idles, 20 * S, Memory(1000, 0))
    assert {protected for protected, _ in artifact} == {0}
    assert artifact[1][1] < artifact[0][1]


def test_pressure_shortens_protection() -> None:
    aeg = warm()
    told(aeg, "t", "x", 10 * S)
    contexts = [idle("t", 10, 10 * S)]
    late = 10 * S + 800 * S // 1000  # within 1 s, beyond half of it
    assert WaLru(aeg)(contexts, late, Memory(1000, 0))[0][0] == 1
    assert WaLru(aeg)(contexts, late, Memory(1000, 950))[0][0] == 0


def test_blocks_of_one_session_count_together() -> None:
    aeg = warm()
    told(aeg, "t", "x", 10 * S)
    ranks = WaLru(aeg)([idle("t", 5, 9 * S, 1), idle("t", 7, 10 * S, 2)], 11 * S, Memory(100, 0))
    assert ranks[0] == ranks[1]


# ---- affinity and order


def test_affinity_moves_when_its_replica_is_full() -> None:
    loads = [0, 0]
    views = [ReplicaView(i, 0, 100, loads) for i in range(2)]  # 1,600 tokens each
    route = SagaAffinity()
    chosen = [route(request("t", 400), views, 0, Stream(0, "route")) for _ in range(2)]
    assert chosen[0] == chosen[1]
    loads[chosen[0]] = 3  # and this one: 4 x 400 tokens of 1,600
    assert route(request("t", 400), views, 0, Stream(0, "route")) != chosen[0]


def test_urgency_by_hand() -> None:
    aeg = warm()
    told(aeg, "t", "x", 10 * S)
    afs = AfsOrder(aeg)
    # 5 calls of 1 s; deadline 8 s + 1.5 x 20 s = 38 s, 28 s away
    assert afs(request("t", arrival=8 * S, expected=20 * S), 10 * S) == pytest.approx(-5 / 28)
    assert afs(request("t", arrival=0, expected=2 * S), 10 * S) == -5  # late: slack counts as 1 s
    assert afs(request("t", arrival=8 * S), 10 * S) == pytest.approx(-5 / 5.5)  # a and b took 5 s: 15.5 s
    assert afs(request("other", expected=S), 10 * S) == 0
    fresh = Aeg()
    told(fresh, "t", "x", 0)
    assert AfsOrder(fresh)(request("t"), S) == 0  # nothing has ended yet


def test_policies_without_a_predictor() -> None:
    with pytest.raises(PolicyError, match="needs a predictor"):
        find("evict", "wa-lru").build()


# ---- work stealing


def views(*, waiting: list[int], loads: list[int]) -> list[ReplicaView]:
    made = [ReplicaView(i, 0, 100, loads) for i in range(len(loads))]
    for view, count in zip(made, waiting, strict=True):
        view.waiting = count
    return made


def test_an_idle_queue_steals_only_once_it_was_empty_for_an_epoch() -> None:
    steal, rng = Steal(), Stream(0, "balance")
    crowded = {"waiting": [4, 0, 0], "loads": [12, 3, 2]}
    assert steal(views(**{**crowded, "loads": [12, 11, 10]}), 0, rng) == []  # loads are near each other
    moves = steal(views(**crowded), 1, rng)
    assert moves[:2] == [(0, 2), (0, 1)]  # the least loaded first; then as far as loads differ much


def test_a_far_larger_load_is_relieved_at_once() -> None:
    moves = Steal()(views(waiting=[9, 1], loads=[20, 3]), 0, Stream(0, "balance"))
    assert moves == [(0, 1)] * 4
    assert Steal(most=2)(views(waiting=[9, 1], loads=[20, 3]), 0, Stream(0, "balance")) == [(0, 1)] * 2
    assert Steal(ratio=8.0)(views(waiting=[9, 1], loads=[20, 3]), 0, Stream(0, "balance")) == []


def test_victims_are_drawn_among_the_overloaded() -> None:
    rng = Stream(3, "balance")
    drawn = {Steal(most=1)(views(waiting=[2, 2, 1, 0], loads=[9, 9, 4, 1]), 0, rng)[0][0] for _ in range(40)}
    assert drawn == {0, 1, 2}


def test_stealing_shortens_the_wait_and_moves_each_call_once() -> None:
    """All tasks are sent to one of two replicas; the other one takes some over."""
    tasks = [Task(f"t{i}", (Call("0", 100, 30),), arrival_ps=0) for i in range(12)]
    two = config(gpus=2, route="session-affinity", max_num_seqs=2, num_gpu_blocks_override=60, balance_epoch_s=0.01)
    lopsided = replace(two, route=f"{Path(__file__).parent / 'policies' / 'lopsided.py'}:first")
    costs = constant_calibration(10**9)
    alone = simulate(lopsided, tasks, calibration=costs)
    helped = simulate(replace(lopsided, balance="steal"), tasks, calibration=costs)
    assert set(alone.calls["replica"]) == {0}
    assert set(helped.calls["replica"]) == {0, 1}
    assert helped.calls["finished_ps"].max() < 0.7 * alone.calls["finished_ps"].max()
    assert helped.notes["moved"].startswith(f"{int((helped.calls['replica'] == 1).sum())} ")


def test_a_stolen_call_brings_what_is_cached_of_it() -> None:
    calls = (Call("0", 160, 16), Call("1", 16, 16, "0", 176, ("0",)))
    tasks = [Task(f"t{i}", calls, arrival_ps=i) for i in range(10)]
    first = f"{Path(__file__).parent / 'policies' / 'lopsided.py'}:first"
    two = config(
        gpus=2, route=first, max_num_seqs=2, num_gpu_blocks_override=400, balance="steal", balance_epoch_s=0.01
    )
    costs = constant_calibration(10**9, prefill_token_ps=10**8)
    carried = simulate(two, tasks, calibration=costs)
    alone = simulate(replace(two, balance_carries=False), tasks, calibration=costs)
    assert alone.calls["carried_tokens"].sum() == 0
    assert alone.calls["regenerated_elsewhere_tokens"].sum() > 0
    moved = carried.calls["carried_tokens"] > 0
    assert moved.any()
    assert (carried.calls["hit_tokens"][moved] >= carried.calls["carried_tokens"][moved]).all()
    assert carried.calls["regenerated_elsewhere_tokens"][moved].sum() == 0
    assert "GiB on average" in carried.notes["carried"]


# ---- in the engine


def crowd() -> list[Task]:
    """Agents that come back after tools of 1 to 3 s, among many questions that are asked once and never again."""
    tasks = []
    for number in range(6):
        calls: list[Call] = []
        for i in range(8):
            before = calls[-1] if calls else None
            keep = 0 if before is None else before.prompt_tokens + before.output_tokens
            tool = Tool(("build", "search")[(i + number) % 2], (1 + (i + number) % 3) * S)
            parent, after = (None, ()) if before is None else (before.name, (before.name,))
            calls.append(Call(str(i), 96 if before is None else 20, 10, parent, keep, after, tools=(tool,)))
        tasks.append(Task(f"agent{number}", tuple(calls), arrival_ps=number * S, agent="agent"))
    for number in range(120):
        once = (Call("0", 200 + 5 * (number % 7), 20),)
        tasks.append(Task(f"once{number}", once, arrival_ps=number * S // 4, agent="question"))
    return sorted(tasks, key=lambda task: task.arrival_ps or 0)


def served(**changes: Any) -> Result:
    small = config(**{"num_gpu_blocks_override": 110, **changes})
    return simulate(small, crowd(), calibration=constant_calibration(10**9, prefill_token_ps=2 * 10**8))


def lost(result: Result) -> int:
    return int(result.calls["regenerated_here_tokens"].sum())


def test_each_mechanism_changes_what_happens() -> None:
    """Switched off one at a time, the log is another."""
    base = {"evict": "wa-lru", "predict": "aeg:cold_start=2", "order": "afs", "route": "saga-affinity"}
    saga = served(**base)
    for off in (
        {"evict": "lru"},
        {"evict": "wa-lru:ttl=false"},
        {"predict": "aeg:cold_start=1000"},
    ):
        assert served(**{**base, **off}).digest != saga.digest, off
    waiting = {**base, "max_num_seqs": 1}
    assert served(**{**waiting, "order": "fcfs"}).digest != served(**waiting).digest


def test_a_known_future_keeps_what_comes_back() -> None:
    """LRU loses the agents' contexts to questions that nobody asks again; the more is known, the less is lost."""
    fitted = lost(served(evict="wa-lru", predict="aeg:hints=fitted"))
    assert lost(served(evict="wa-lru", predict="aeg:hints=perfect")) < fitted < 0.9 * lost(served(evict="lru"))


def test_wrong_hints_cost_time_never_correctness() -> None:
    tasks = crowd()
    shuffled = [replace(task, agent=("quick", "slow")[i % 3 == 0]) for i, task in enumerate(tasks)]
    small = config(num_gpu_blocks_override=60, evict="wa-lru", predict="aeg:hints=fitted")
    result = simulate(small, shuffled, calibration=constant_calibration(10**9))
    assert len(result.calls["task"]) == sum(len(task.calls) for task in tasks)
