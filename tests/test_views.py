"""Policies cannot see the future: no output length, tool time or unsent call is reachable from a view."""

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

FORBIDDEN = (Task, Call, Tool, PlannedTask, PlannedCall, Branch)


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
    """Outputs, tool times and lengths are numbers that nothing else in the run equals."""
    calls = (
        Call("a", 30, 211, tools=(Tool("t", 7_654_321),)),
        Call("b", 20, 223, "a", 241, ("a",), tools=(Tool("t", 7_654_322),)),
        Call("c", 20, 227, "a", 17, ("b",), tools=(Tool("t", 7_654_323),)),
    )
    hidden = {211, 223, 227, 7_654_321, 7_654_322, 7_654_323}
    hidden |= {call.prompt_tokens + call.output_tokens for call in calls}
    seen: list[seams.Request] = []

    def spy(request: seams.Request, replicas: Any, now_ps: int, rng: Any) -> int:
        seen.append(request)
        known = {c.prompt_tokens for c in calls[: request.call + 1]} | {
            c.keep_tokens for c in calls[: request.call + 1]
        }
        for item in reachable((request, replicas)):
            assert not isinstance(item, FORBIDDEN), item
            assert not isinstance(item, int) or item not in hidden - known, item
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
            assert not isinstance(item, FORBIDDEN), item
        ends[idle.task] = now_ps
        return idle.since_ps

    def key(request: seams.Request, now_ps: int) -> int:
        for item in reachable(request):
            assert not isinstance(item, FORBIDDEN), item
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
