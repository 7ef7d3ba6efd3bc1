"""Mixes, tenants and drawing again: the right tasks, told apart, families together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.config import Config, resolve
from sagasim.core import Call, Task, check_task
from sagasim.errors import ConfigError
from sagasim.sources import _redraw, families, open_sources, shares, with_tenants
from sagasim.trace import open_trace
from sagasim.units import PS_PER_US as US
from sagasim.work import prepare


def config(**keys: Any) -> Config:
    return resolve(keys)


def small(name: str, family: str = "", arrival_ps: int | None = None) -> Task:
    return Task(name, (Call("a", 10, 1),), arrival_ps=arrival_ps, family=family)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z0-9:=,.|/-]{0,9}", fullmatch=True), st.integers(1, 99), min_size=1))
def test_shares_are_read_back(weights: dict[str, int]) -> None:
    text = "+".join(f"{name}@{weight}" for name, weight in weights.items())
    assert shares(text, "mix") == weights


@pytest.mark.parametrize("text", ["", "a@", "a@x", "a@0", "a@-1", "a@inf", "a+a", "a@nan", "+"])
def test_shares_that_make_no_sense(text: str) -> None:
    with pytest.raises(ConfigError, match="does not fit"):
        shares(text, "mix")


def test_a_mix_draws_by_weight_and_tells_its_sources_apart() -> None:
    source = open_sources(config(mix="swe-bench@3+tau-bench@1", tasks=800))
    tasks = list(islice(source.tasks(1), 800))
    counts = Counter(task.tenant for task in tasks)
    assert set(counts) == {"swe-bench", "tau-bench"}
    assert counts["swe-bench"] == pytest.approx(600, abs=4.5 * (800 * 3 / 16) ** 0.5)
    assert len({task.name for task in tasks}) == 800
    for task in tasks:
        check_task(task)
        assert all(prefix.name.startswith(f"{task.tenant}/") for prefix in task.prefixes)
    alone = list(open_trace("tau-bench").tasks(1))
    mixed = [task for task in tasks if task.tenant == "tau-bench"][: len(alone)]
    assert [task.name for task in mixed] == [f"tau-bench/{task.name}" for task in alone[: len(mixed)]]
    assert [t.calls[0].prompt_tokens for t in mixed] == [t.calls[0].prompt_tokens for t in alone[: len(mixed)]]


def test_a_mix_of_what_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"unknown source 'swe-bnch'.*swe-bench"):
        open_sources(config(mix="swe-bnch@1+weka@2"))


def test_tenants_are_drawn_by_weight() -> None:
    tasks: Iterator[Task] = iter([small(str(i)) for i in range(2000)])
    counts = Counter(task.tenant for task in with_tenants(tasks, {"heavy": 3.0, "light": 1.0}, 7))
    assert counts["heavy"] == pytest.approx(1500, abs=4.5 * 375**0.5)


def test_families_of_the_embedded_traces() -> None:
    groups = families(list(open_trace("tau-bench").tasks()))
    assert sum(map(len, groups)) == 136
    assert Counter(map(len, groups)) == {4: 34}  # 34 tasks tried four times each
    groups = families(list(open_trace("weka").tasks()))
    assert len(groups) < sum(map(len, groups))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 3))
def test_drawing_again_keeps_families_together(kinds: list[int], count: int, seed: int) -> None:
    recorded = [small(f"t{i}", f"f{kind}" if kind else "", i * 10 * US) for i, kind in enumerate(kinds)]
    drawn = list(_redraw(lambda _seed: iter(recorded), count, seed))
    assert len(drawn) == count
    assert len({task.name for task in drawn}) == count
    length = (len(kinds) - 1) * 10 * US  # a round ends a mean gap, 10 us, after its last arrival
    again = length + 10 * US * (len(kinds) > 1)
    assert [task.arrival_ps for task in drawn] == [
        i % len(kinds) * 10 * US + i // len(kinds) * again for i in range(count)
    ]
    left = [task.name.split("~")[0] for task in drawn]
    groups = [[task.name for task in group] for group in families(recorded)]
    while left:
        group = next(group for group in groups if group[0] == left[0])
        size = min(len(group), len(left))
        assert left[:size] == group[:size]
        left = left[size:]


def test_seeds_draw_differently_and_the_same_seed_alike() -> None:
    base = config(trace="tau-bench", tasks=40, resample=True)
    names = [[t.name for t in prepare(replace(base, seed=seed)).tasks] for seed in (0, 0, 1)]
    assert names[0] == names[1] != names[2]
