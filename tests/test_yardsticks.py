"""The yardstick evictions of the engine, and the one that knows the trace."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sagasim.config import Config
from sagasim.contract import check_policy, contract_tasks
from sagasim.core import Call, Task, Tool
from sagasim.cost import constant_calibration
from sagasim.errors import PolicyError
from sagasim.plan import Context
from sagasim.policies import clairvoyant, yardsticks
from sagasim.policies.clairvoyant import Truth
from sagasim.seams import IdleContext, Memory, Request
from sagasim.simulate import simulate
from sagasim.units import PS_PER_MS, PS_PER_S

YARDSTICKS = ("fifo", "lfu", "gdsf", "s3-fifo", "sieve", "random")
COSTS = constant_calibration(5 * PS_PER_MS, decode_ps=20_000, prefill_token_ps=30_000_000)
MEMORY = Memory(1000, 0)


def idle(task: str, since_ps: int, calls: int = 1, blocks: int = 100, prompt: int = 1600) -> IdleContext:
    context: Context | None = Context(None, 0, 64, named=True)
    for _ in range(calls):
        context = Context(context, 64, prompt)
    assert context is not None
    return IdleContext(since_ps, task, "", "", context, since_ps, blocks)


def order(rank: Any, *idles: IdleContext, together: bool = True) -> str:
    """Tasks in the order in which they would go."""
    ranks = rank(idles, 10**12, MEMORY) if together else [rank(one, 10**12) for one in idles]
    return "".join(one.task for _, _, one in sorted(zip(ranks, range(len(idles)), idles, strict=True)))


@pytest.mark.parametrize("name", YARDSTICKS)
def test_a_yardstick_keeps_the_contract(name: str) -> None:
    assert "keeps the contract" in check_policy(name)


def test_a_named_prefix_is_no_use() -> None:
    assert yardsticks.uses(idle("a", 1, calls=3).context) == 3
    assert yardsticks.uses(None) == 0


def test_fifo_forgets_that_a_session_was_used_again() -> None:
    rank = yardsticks.Fifo()
    assert order(rank, idle("b", 20), idle("a", 10)) == "ab"
    assert order(rank, idle("c", 30), idle("b", 20), idle("a", 99)) == "abc"


def test_lfu_counts_calls() -> None:
    assert order(yardsticks.lfu, idle("a", 1, 3), idle("b", 9, 2), idle("c", 5, 2), together=False) == "cba"


def test_gdsf_ages_and_knows_depth() -> None:
    assert order(yardsticks.Gdsf(even_tokens=1000.0), idle("a", 1, prompt=9000), idle("b", 2, prompt=1000)) == "ba"
    rank = yardsticks.Gdsf()
    old = idle("a", 1, calls=4)
    for time in range(2, 5):
        assert order(rank, old, idle("b", time, prompt=8000)) == "ba"  # b comes anew each time, and each time L grows
    assert order(rank, old, idle("b", 5, prompt=8000)) == "ab"


def test_s3_fifo_tries_new_sessions_first_while_they_have_their_tenth() -> None:
    rank = yardsticks.S3Fifo()
    assert order(rank, idle("a", 1, calls=5), idle("b", 2, blocks=200)) == "ba"
    assert order(rank, idle("a", 1, calls=5), idle("b", 2, blocks=50)) == "ab"


def test_sieve_spares_once_what_was_used() -> None:
    rank = yardsticks.Sieve()
    assert order(rank, idle("a", 1), idle("b", 2), idle("c", 3)) == "abc"
    assert order(rank, idle("a", 11), idle("b", 2), idle("c", 3)) == "bca"  # the hand clears a on its way to b
    assert order(rank, idle("a", 11), idle("c", 13), idle("d", 14))[0] == "d"  # c is spared, then d is met
    assert order(rank, idle("a", 11), idle("c", 13))[0] == "a"  # round again


def test_random_is_the_same_for_the_same_release() -> None:
    rank = yardsticks.Random(seed=3)
    drawn = [rank(idle("a", since), 0) for since in range(40)]
    assert drawn == [yardsticks.Random(seed=3)(idle("a", since), 99) for since in range(40)]
    assert len(set(drawn)) == 40
    assert drawn != [yardsticks.Random(seed=4)(idle("a", since), 0) for since in range(40)]


# ---- clairvoyant


def run(**changes: Any) -> Any:
    own = {"num_gpu_blocks_override": 90, "max_num_batched_tokens": 256, "max_num_seqs": 6, "evict_batch_blocks": 1}
    base = Config(gpus=3, tp=1, model="llama-3.1-8b", arrivals="recorded", max_model_len=640, **own)  # type: ignore[arg-type]
    return simulate(replace(base, **changes), contract_tasks(), calibration=COSTS)


def test_the_clairvoyant_loses_less_and_both_engines_agree() -> None:
    known = {"evict": "clairvoyant", "predict": "truth"}
    seeing, blind = run(**known), run()
    assert seeing.digest == run(**known, reference=True).digest
    lost = [int(result.calls["regenerated_here_tokens"].sum()) for result in (seeing, blind)]
    assert 0 < lost[0] < lost[1]
    assert "clairvoyant" in seeing.notes


def test_who_does_not_know_the_trace_is_told_so() -> None:
    with pytest.raises(PolicyError, match="--predict truth"):
        run(evict="clairvoyant", predict="aeg")
    with pytest.raises(PolicyError, match="needs a predictor"):
        run(evict="clairvoyant")


def request(task: str, call: int, context: Context, agent: str = "") -> Request:
    return Request(task, "", "", agent, call, context, context.prompt_tokens, 0, 0, None)


def test_when_a_context_is_read_next() -> None:
    """a -> b -> d, with a side call c that goes on from a: when d is sent, and what nobody continues."""
    tool = (Tool("shell", 7 * PS_PER_S),)
    calls = (
        Call("a", 320, 16, tools=tool),
        Call("b", 16, 16, "a", 336, ("a",), tools=tool),
        Call("c", 900, 16, "a", 320, ("a",), agent="side"),
        Call("d", 16, 16, "b", 368, ("b",), delay_ps=PS_PER_S),
    )
    truth = Truth()
    truth.learn([Task("t", calls)])
    a = Context(None, 0, 320)
    b, c = Context(a, 336, 352), Context(a, 320, 1220)
    left = {
        name: IdleContext(i, "t", "", "", context, 0, 9)
        for i, (name, context) in enumerate([("a", a), ("b", b), ("c", c)])
    }
    truth.sent(request("t", 0, a), 0)
    truth.ended(request("t", 0, a), ("shell",), 16, 5, 100)
    assert truth.read_next_ps(left["a"], 200) == 100 + 7 * PS_PER_S  # b, once the tool is done
    truth.sent(request("t", 1, b), 300)
    truth.sent(request("t", 2, c, "side"), 300)
    assert truth.read_next_ps(left["a"], 400) == 400 + 8 * PS_PER_S  # d: b is taken to end now
    truth.ended(request("t", 1, b), ("shell",), 16, 5, 500)
    truth.ended(request("t", 2, c, "side"), (), 16, 5, 500)
    assert truth.read_next_ps(left["b"], 600) == 500 + 8 * PS_PER_S
    assert truth.read_next_ps(left["c"], 600) is None  # d reads less than half of it
    truth.left("t", 700)
    assert truth.read_next_ps(left["b"], 800) is None
    assert clairvoyant.Clairvoyant(truth)([left["b"]], 800, MEMORY) == [(False, 0)]
