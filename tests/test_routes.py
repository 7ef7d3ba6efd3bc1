"""Routing rules: cases by hand, and the cache-aware rule against one that looks at everything anew."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim import seams
from sagasim.plan import Context
from sagasim.rng import Stream
from sagasim.seams import ReplicaView, Request


class Cluster:
    """A router with the loads that it sees, and nothing else of a cluster."""

    def __init__(self, spec: str, loads: list[int]) -> None:
        self.loads = loads
        self.views = [ReplicaView(number, 0, 100, loads) for number in range(len(loads))]
        self.route: Any = seams.find("route", spec).build(None)
        self.rng = Stream(0, "route")

    def send(self, context: Context, task: str = "t") -> int:
        request = Request(task, "x", "", "", 0, context, context.prompt_tokens, 0, 0, None)
        chosen: int = self.route(request, self.views, 0, self.rng)
        self.loads[chosen] += 1
        return chosen


def prompt(parent: Context | None, shared: int, tokens: int) -> Context:
    return Context(parent, shared, tokens)


def test_round_robin_takes_turns() -> None:
    cluster = Cluster("round-robin", [9, 0, 0])
    assert [cluster.send(prompt(None, 0, 10)) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_least_loaded_takes_turns_among_equals() -> None:
    cluster = Cluster("least-loaded", [2, 0, 1, 0])
    assert [cluster.send(prompt(None, 0, 10)) for _ in range(6)] == [1, 3, 1, 2, 3, 0]


def test_a_session_stays_where_it_began_until_it_is_moved_or_ends() -> None:
    cluster = Cluster("session-affinity", [0, 0, 0])
    first = prompt(None, 0, 10)
    assert [cluster.send(first, "a"), cluster.send(first, "b"), cluster.send(first, "a")] == [0, 1, 0]
    cluster.route.moved("a", 2)
    assert cluster.send(first, "a") == 2
    cluster.route.forget("a")
    cluster.loads[:] = [5, 1, 5]
    assert cluster.send(first, "a") == 1


@pytest.mark.parametrize(("shared", "chosen"), [(30, 1), (31, 0)])  # more than threshold * 100 tokens of the prompt
def test_a_prompt_follows_its_prefix_if_enough_of_it_was_seen(shared: int, chosen: int) -> None:
    cluster = Cluster("prefix-affinity:threshold=0.3", [0, 0])
    above = prompt(None, 0, 64)
    assert cluster.send(above, "a") == 0
    cluster.loads[:] = [5, 0]
    assert cluster.send(prompt(above, shared, 100), "b") == chosen


def test_outputs_are_not_remembered() -> None:
    """The second prompt goes on from 100 tokens of which 40 were the first call's prompt: the other 60 are unknown."""
    cluster = Cluster("prefix-affinity:threshold=0.5", [0, 0])
    above = prompt(None, 0, 40)
    cluster.send(above)
    cluster.loads[:] = [5, 0]
    assert cluster.send(prompt(above, 100, 100)) == 1


def test_prompts_of_a_task_that_ended_are_forgotten_but_prefixes_with_names_are_not() -> None:
    cluster = Cluster("prefix-affinity", [0, 0])
    named = Context(None, 0, 40, named=True)
    above = prompt(named, 40, 100)
    assert cluster.send(above, "a") == 0
    cluster.route.forget("a")
    cluster.loads[:] = [5, 0]
    assert cluster.send(prompt(above, 100, 200), "b") == 1  # 40 of 200 tokens were seen
    assert cluster.send(prompt(named, 40, 60), "c") == 0


@pytest.mark.parametrize(("loads", "chosen"), [([64, 0], 0), ([65, 0], 1), ([165, 100], 1), ([165, 110], 0)])
def test_loads_far_apart_come_before_prefixes(loads: list[int], chosen: int) -> None:
    """Apart by more than 64 calls, and by more than half of the smaller load."""
    cluster = Cluster("prefix-affinity", [0, 0])
    above = prompt(None, 0, 40)
    cluster.send(above)
    cluster.loads[:] = loads
    for _ in range(200):  # the rule counts what it sends: it has to have noticed how large loads may be
        cluster.route.moved("other", 0)
    assert cluster.send(prompt(above, 40, 50)) == chosen


def test_a_call_moved_by_others_counts() -> None:
    """Every call goes to replica 0; what others bring there makes it too full, at once."""
    cluster = Cluster("prefix-affinity:balance_abs=3", [0, 0])
    above = prompt(None, 0, 40)
    assert [cluster.send(above), cluster.send(prompt(above, 40, 50))] == [0, 0]
    for _ in range(2):
        cluster.loads[0] += 1
        cluster.route.moved("other", 0)
    assert cluster.send(prompt(above, 40, 50)) == 1


class Naive:
    """The rule as it reads: all prompts as lists of token names, all loads looked at each time."""

    def __init__(self, threshold: float, absolute: int, relative: float) -> None:
        self.threshold, self.absolute, self.relative = threshold, absolute, relative
        self.sent: list[tuple[list[tuple[int, int]], int]] = []

    def choose(self, tokens: list[tuple[int, int]], loads: list[int]) -> int | None:
        """The replica that owns the prefix, or None for the least loaded."""
        matched, owner = 0, 0
        for prompt, replica in self.sent:
            common = next((i for i, (a, b) in enumerate(zip(prompt, tokens, strict=False)) if a != b), None)
            common = min(len(prompt), len(tokens)) if common is None else common
            if common > matched:  # the first that had it
                matched, owner = common, replica
        apart = max(loads) - min(loads) > self.absolute and max(loads) > self.relative * min(loads)
        return None if apart or matched <= self.threshold * len(tokens) else owner


@given(st.data())
def test_the_cache_aware_rule_is_the_one_that_it_says(data: st.DataObject) -> None:
    """A conversation that forks, within prompts and within outputs; calls end, and others are moved in between."""
    count = data.draw(st.integers(1, 4))
    absolute = data.draw(st.integers(0, 3))
    cluster = Cluster(f"prefix-affinity:threshold=0.4,balance_abs={absolute}", [0] * count)
    naive = Naive(0.4, absolute, 1.5)
    contexts: list[tuple[Context, list[tuple[int, int]]]] = []
    for number in range(data.draw(st.integers(1, 12))):
        parent = data.draw(st.sampled_from([None, *contexts]))
        shared = 0 if parent is None else data.draw(st.integers(1, len(parent[1])))
        fresh = data.draw(st.integers(1, 6))
        while parent is not None and shared <= parent[0].shared_tokens:  # the fork belongs to who wrote that token
            above = parent[0].parent
            parent = None if above is None else next(c for c in contexts if c[0] is above)
        kept = [] if parent is None else parent[1][:shared]
        tokens = [*kept, *((number, i) for i in range(fresh))]
        context = prompt(None if parent is None else parent[0], len(kept), len(tokens))
        contexts.append((context, tokens + [(number, len(tokens) + i) for i in range(data.draw(st.integers(0, 4)))]))
        before = list(cluster.loads)
        expected = naive.choose(tokens, before)
        chosen = cluster.send(context)
        assert chosen == expected if expected is not None else before[chosen] == min(before)
        naive.sent.append((tokens, chosen))
        for replica in range(count):  # calls end
            cluster.loads[replica] -= data.draw(st.integers(0, cluster.loads[replica]))
        if data.draw(st.booleans()):
            cluster.loads[data.draw(st.integers(0, count - 1))] += 1
            cluster.route.moved("other", 0)
