"""When agents send their calls: tools, delays, and calls that wait for several others, by hand."""

from __future__ import annotations

from sagasim.core import Call, Task, Tool
from sagasim.cost import constant_calibration
from sagasim.laws import check_tasks
from sagasim.simulate import simulate
from tests import strategies

S = 10**12


def sent(*calls: Call) -> dict[str, tuple[int, int]]:
    """When each call is sent and when it ends, in s; every step takes 1 s."""
    task = Task("t", calls, arrival_ps=0)
    result = simulate(strategies.config(num_gpu_blocks_override=1000), [task], calibration=constant_calibration(S))
    check_tasks(result.calls, result.tasks, [task])
    log = result.calls
    times = zip(log["submitted_ps"].tolist(), log["finished_ps"].tolist(), strict=True)
    return {call.name: (start // S, end // S) for call, (start, end) in zip(calls, times, strict=True)}


def test_a_call_is_sent_after_tools_and_delay() -> None:
    times = sent(Call("a", 5, 4, tools=(Tool("x", 2 * S), Tool("y", 3 * S))), Call("b", 5, 1, "a", 9, ("a",), 10 * S))
    assert times["b"][0] == times["a"][1] + 3 + 10


def test_the_delay_of_a_call_begins_when_the_last_that_it_waits_for_is_done() -> None:
    """`slow` ends after `quick` and its tool: its end counts, and then the delay."""
    calls = (
        Call("slow", 5, 40),
        Call("quick", 5, 4, tools=(Tool("x", 2 * S),)),
        Call("both", 5, 1, after=("slow", "quick"), delay_ps=10 * S),
    )
    times = sent(*calls)
    assert times["slow"][1] > times["quick"][1] + 2
    assert times["both"][0] == times["slow"][1] + 10


def test_who_waits_for_a_call_does_not_wait_for_the_delay_of_the_next() -> None:
    """`aside` goes on from `a` as `b` does, but without its delay."""
    calls = (
        Call("a", 5, 4, tools=(Tool("x", 2 * S),)),
        Call("b", 5, 1, "a", 9, ("a",), 10 * S),
        Call("aside", 5, 1, "a", 9, ("a",)),
    )
    times = sent(*calls)
    assert times["b"][0] == times["a"][1] + 12
    assert times["aside"][0] == times["a"][1] + 2
