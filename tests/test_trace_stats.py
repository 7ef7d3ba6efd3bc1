"""Statistics of traces: exact against NumPy, flat in memory, and their figure."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim import trace_stats as module
from sagasim.core import Call, Prefix, Task, Tool
from sagasim.errors import ConfigError, TraceError
from sagasim.importers.names import Names
from sagasim.trace import open_trace, trace_stats
from sagasim.trace_figures import draw_stats
from sagasim.trace_stats import Counts, TraceStats

S = 10**12
LEVELS = (0.05, 0.5, 0.95, 0.99)


@given(st.lists(st.integers(-(10**12), 10**12) | st.integers(0, 5), min_size=1, max_size=60))
def test_counts_are_exact(values: list[int]) -> None:
    counts = Counts()
    for value in values:
        counts.add(value)
    assert (counts.exact, counts.count, counts.total) == (True, len(values), sum(values))
    wanted = np.percentile(np.array(values, dtype=float), [100 * level for level in LEVELS])
    assert counts.quantiles(*LEVELS) == pytest.approx(wanted, rel=1e-9, abs=1e-6)
    assert (counts.summary() or {})["mean"] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)


@settings(max_examples=30)
@given(st.lists(st.integers(-(10**9), 10**9), min_size=60, max_size=200, unique=True), st.randoms())
def test_many_values_are_binned_in_any_order(values: list[int], random: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "EXACT_VALUES", 50)
        first, second = Counts(), Counts()
        for value in values:
            first.add(value)
        random.shuffle(values)
        for value in values:
            second.add(value)
    assert first.items() == second.items()
    assert (first.exact, first.total) == (False, sum(values))
    sizes = np.percentile(values, [5, 50, 95], method="nearest")
    below, above = (
        np.percentile(values, [5, 50, 95], method="lower"),
        np.percentile(values, [5, 50, 95], method="higher"),
    )
    for found, low, high, size in zip(first.quantiles(0.05, 0.5, 0.95), below, above, sizes, strict=True):
        slack = max(abs(low), abs(high), abs(size)) / 2000
        assert low - slack <= found <= high + slack


def test_growth_waits_and_reuse_by_hand() -> None:
    prefixes = (Prefix("p", 100), Prefix("q", 50, "p", 80))
    one = Task(
        "1",
        (
            Call("a", 20, 10, "q", 120, tools=(Tool("user", 2 * S), Tool("x", S, True))),
            Call("b", 10, 10, "a", 150, ("a",), 3 * S),
            Call("c", 5, 5, after=("b",), agent="sub"),
        ),
        arrival_ps=0,
        prefixes=prefixes,
    )
    two = Task("2", (Call("a", 20, 10, "p", 100),), arrival_ps=5 * S, prefixes=prefixes[:1])
    stats = trace_stats([one, two])
    assert stats["growth_tokens"]["mean"] == 20  # 140 to 160; the sub-agent's only call grows from nothing
    assert (stats["user_s"]["mean"], stats["tool_s"]["mean"], stats["delay_s"]["mean"]) == (2, 1, 3)
    assert (stats["tools"], stats["tool_filled_share"], stats["interarrival_s"]["p50"]) == (2, 0.5, 5)
    # of the second task's 100 prefix tokens, the first task's prompt had gone through 80
    assert stats["reusable_share"] == (0 + 150 + 0 + 80) / (140 + 160 + 5 + 120)
    assert stats["prefix_share"] == 150 / 165
    assert trace_stats([two, one])["interarrival_s"] is None  # not in the order of arrivals


def many(count: int) -> Iterator[Task]:
    for number in range(count):
        calls = tuple(
            Call(
                f"{place}",
                1 + (number * 7919 + place * 104_729) % 50_000,
                1 + number % 997,
                tools=(Tool("t", number % 499 * 10**6),),
            )
            for place in range(5)
        )
        yield Task(f"task {number}", calls)


def test_memory_does_not_grow_with_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_VALUES", 500)
    monkeypatch.setattr(module, "_BIN_BITS", 5)  # few bins, so that the smaller trace has filled them too

    def peak(count: int) -> int:
        tracemalloc.start()
        stats = trace_stats(many(count))
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert stats["quantiles"] == "to 0.05 %"
        return used

    peak(2000)  # whatever is made once
    assert peak(8000) < 1.2 * peak(2000)


def test_names_are_told_apart_in_little_room() -> None:
    names = Names()
    tracemalloc.start()
    assert all(names.add(f"a long name of a task, number {number}") for number in range(50_000))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert not any(names.add(f"a long name of a task, number {number}") for number in range(0, 50_000, 97))
    assert len(names) == 50_000
    assert used < 50_000 * 25


# ---- the figure


@pytest.mark.parametrize("name", ["tau-bench", "azure-code"])
def test_a_figure_for_any_trace(tmp_path: Path, name: str) -> None:
    stats = TraceStats()
    for task in open_trace(name).tasks():
        stats.add(task)
    path = draw_stats(tmp_path / "x.png", name, stats, ["a note " * 100])
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [one.name for one in tmp_path.iterdir()] == ["x.png"]


def test_a_figure_of_next_to_nothing(tmp_path: Path) -> None:
    stats = TraceStats()
    draw_stats(tmp_path / "none.png", "nothing", stats)
    stats.add(Task("t", (Call("a", 1, 1), Call("b", 1, 1, "a", 2, ("a",)))))
    draw_stats(tmp_path / "one.png", "one", stats)


def test_a_figure_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("mine")
    for name, error in [("x.png", TraceError), ("x.pdf", ConfigError), ("no/x.png", TraceError)]:
        with pytest.raises(error):
            draw_stats(tmp_path / name, "t", TraceStats())
    assert (tmp_path / "x.png").read_text() == "mine"
