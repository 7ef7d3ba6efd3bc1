"""Policies cannot see the future: nothing reachable from a view holds an output length, a tool time or an unsent call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sagasim import seams
from sagasim.contract import contract_tasks
from sagasim.core import Call, Task, Tool
from sagasim.cost import constant_calibration
from sagasim.plan import Branch, PlannedCall, PlannedTask
from sagasim.simulate import simulate
from tests.strategies import config

SECRET = 7_654_321  # an output length and a tool time that nothing else equals


def reachable(root: Any) -> Iterator[Any]:
    """Every object that can be got at from `root` by attribute, item, closure or bound method, classes left out."""
    seen: set[int] = set()
    stack = [root]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type):
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, dict):
            stack += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple, set, frozenset)):
            stack += item
        for kind in type(item).__mro__:
            stack += [getattr(item, name) for name in getattr(kind, "__slots__", ()) if hasattr(item, name)]
        stack += list(getattr(item, "__dict__", {}).values())
        stack += [cell.cell_contents for cell in getattr(item, "__closure__", None) or ()]
        if hasattr(item, "__self__"):
            stack.append(item.__self__)


def test_nothing_of_the_future_is_reachable_from_a_view() -> None:
    calls = (
        Call("a", 30, SECRET % 97 + 1, tools=(Tool("t", SECRET),)),
        Call("b", 20, SECRET % 89 + 1, "a", 30 + SECRET % 97 + 1, ("a",), tools=(Tool("t", SECRET + 1),)),
        Call("c", 20, SECRET % 83 + 1, "a", 10, ("b",), tools=(Tool("t", SECRET + 2),)),
    )
    outputs = {call.output_tokens for call in calls}
    lengths = {call.prompt_tokens + call.output_tokens for call in calls}
    seen: list[Any] = []

    def spy(request: seams.Request, replicas: Any, now_ps: int, rng: Any) -> int:
        seen.append(request)
        for item in reachable((request, replicas, now_ps)):
            assert not isinstance(item, (Task, Call, Tool, PlannedTask, PlannedCall, Branch)), item
            if isinstance(item, int) and not isinstance(item, bool):
                hidden = {SECRET, SECRET + 1, SECRET + 2} | (outputs - {request.prompt_tokens})
                assert item not in hidden, item
                later = {length for call, length in zip(calls[request.call :], sorted(lengths), strict=False) if call}
                assert item not in later - {c.prompt_tokens for c in calls[: request.call + 1]} or item <= request.prompt_tokens
        return 0

    seams.policy("route", "spy-route", sees_cache=True)(spy)
    try:
        simulate(config(route="spy-route"), [Task("t", calls)], calibration=constant_calibration(100))
    finally:
        del seams._REGISTRY["route", "spy-route"]
    assert len(seen) == len(calls)


def test_evict_and_order_views_hold_only_the_past() -> None:
    ends: dict[str, int] = {}

    def rank(idle: seams.IdleContext, now_ps: int) -> float:
        assert idle.since_ps <= now_ps
        for item in reachable(idle):
            assert not isinstance(item, (Task, Call, Tool, PlannedTask, PlannedCall, Branch)), item
        ends[idle.task] = now_ps
        return idle.since_ps

    def key(request: seams.Request, now_ps: int) -> int:
        for item in reachable(request):
            assert not isinstance(item, (Task, Call, Tool, PlannedTask, PlannedCall, Branch)), item
        return 0

    seams.policy("evict", "spy-evict")(rank)
    seams.policy("order", "spy-order")(key)
    try:
        small = config(evict="spy-evict", order="spy-order", max_model_len=640, num_gpu_blocks_override=60)
        simulate(small, contract_tasks(), calibration=constant_calibration(10**9))
    finally:
        del seams._REGISTRY["evict", "spy-evict"], seams._REGISTRY["order", "spy-order"]
    assert ends  # memory was short, so the policy was asked


def test_a_leak_would_be_found() -> None:
    class Leaky:
        def __init__(self, task: Task) -> None:
            self._hidden = {"deep": [task]}

    task = Task("t", (Call("a", 1, 1),))
    assert any(isinstance(item, Call) for item in reachable(Leaky(task)))
