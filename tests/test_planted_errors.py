"""Errors planted in the fast engine are caught by the comparison with the reference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sagasim.contract import contract_tasks
from sagasim.core import Call, Task
from sagasim.cost import StepCost, constant_calibration
from sagasim.errors import LawError
from sagasim.kvcache import KVCache
from sagasim.replica import Replica
from sagasim.simulate import simulate
from tests.strategies import config

SMALL = config(gpus=2, max_model_len=640, num_gpu_blocks_override=70, max_num_batched_tokens=128, max_num_seqs=5)
COSTS = constant_calibration(10**9, decode_ps=10**6, prefill_token_ps=10**6)


def workload() -> list[Task]:
    """The tasks of the contract, and prompts that end with a block and come again."""
    again = [
        Call("first", 64, 9),
        Call("again", 0, 9, "first", 64, ("first",)),
        Call("shorter", 0, 9, "again", 48, ("again",)),
    ]
    return [*contract_tasks(), Task("exact", tuple(again), arrival_ps=4 * 10**12)]


def differs() -> bool:
    tasks = workload()
    slow = simulate(replace(SMALL, reference=True), tasks, calibration=COSTS)
    try:
        fast = simulate(SMALL, tasks, calibration=COSTS)
    except (LawError, IndexError, AssertionError):
        return True
    return fast.digest != slow.digest


def shifted(owner: Any, name: str, by: int) -> Callable[..., Any]:
    original = getattr(owner, name)
    return lambda *args, **kwargs: original(*args, **kwargs) + by


PLANTED: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "a picosecond too many in a jump": (Replica, "_elapsed", shifted(Replica, "_elapsed", 1)),
    "a block too few in a jump": (Replica, "_growth", lambda self, steps: max(0, GROWTH(self, steps) - 1)),
    "a block too many in a jump": (Replica, "_growth", shifted(Replica, "_growth", 1)),
    "an arrival a boundary late": (Replica, "_next_boundary", lambda self, now: NEXT(self, NEXT(self, now)[1])),
    "a block more may be hit": (KVCache, "match", lambda self, path, limit: MATCH(self, path, limit + 1)),
    "a block registered late": (KVCache, "register", lambda self, t, path, upto: REGISTER(self, t, path, upto - 1)),
    "the attention curve read a token late": (
        StepCost,
        "series",
        lambda self, n, total, most: SERIES(self, n, total + 1, most),
    ),
}
GROWTH, NEXT = Replica._growth, Replica._next_boundary
MATCH, REGISTER, SERIES = KVCache.match, KVCache.register, StepCost.series


def test_without_an_error_the_engines_agree() -> None:
    assert not differs()


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_caught(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken = PLANTED[error]
    monkeypatch.setattr(owner, name, broken)
    assert differs()
