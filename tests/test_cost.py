"""Closed sums of step times equal the loop; costs grow with work; calibration files are checked."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.cost import (
    StepCost,
    checked_calibration,
    constant_calibration,
    first_beyond,
    load_calibration,
    series_sum,
)
from sagasim.errors import CalibrationError
from sagasim.hardware import data_dir
from tests import strategies

EMBEDDED = sorted((data_dir() / "calibration").glob("*.json"))


@functools.cache
def embedded(path: Path, asynchronous: bool) -> StepCost:
    return StepCost(load_calibration(path), max_tokens=8192, max_seqs=64, asynchronous=asynchronous)


def loop(cost: StepCost, decodes: int, total: int, longest: int, steps: int) -> int:
    return sum(cost.step(decodes, total + decodes * j, longest + j, []) for j in range(steps))


@st.composite
def batches(draw: st.DrawFn, largest: int = 300) -> tuple[int, int, int]:
    contexts = draw(st.lists(st.integers(1, largest), min_size=1, max_size=8))
    return len(contexts), sum(contexts), max(contexts)


@given(strategies.calibrations(), batches(), st.integers(0, 400), st.booleans())
def test_closed_sum_equals_loop(
    calibration: dict[str, Any], batch: tuple[int, int, int], steps: int, asynchronous: bool
) -> None:
    cost = StepCost(calibration, max_tokens=64, max_seqs=8, asynchronous=asynchronous)
    assert cost.total(*batch, steps) == loop(cost, *batch, steps)


@given(st.integers(1, 10**6), st.integers(0, 10**4), st.integers(0, 10**9))
def test_first_beyond_is_the_least(value: int, slope: int, time: int) -> None:
    j = first_beyond(value, slope, time)
    assert series_sum(value, slope, j) > time
    assert j == 1 or series_sum(value, slope, j - 1) <= time


@given(strategies.calibrations(), batches(), st.integers(0, 10**6))
def test_steps_beyond_inverts_the_total(calibration: dict[str, Any], batch: tuple[int, int, int], time: int) -> None:
    cost = StepCost(calibration, max_tokens=64, max_seqs=8, asynchronous=True)
    steps = cost.steps_beyond(*batch, time)
    assert cost.total(*batch, steps) > time >= cost.total(*batch, steps - 1)


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
@given(batch=batches(100_000), steps=st.integers(0, 60), asynchronous=st.booleans())
def test_embedded_sums_equal_loops(path: Path, batch: tuple[int, int, int], steps: int, asynchronous: bool) -> None:
    cost = embedded(path, asynchronous)
    assert cost.total(*batch, steps) == loop(cost, *batch, steps)


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
@given(batch=batches(100_000), new=st.integers(2, 4000), cached=st.integers(0, 100_000))
def test_embedded_costs_grow_with_work(path: Path, batch: tuple[int, int, int], new: int, cached: int) -> None:
    cost = embedded(path, True)
    decodes, total, longest = batch
    alone = cost.step(decodes, total, longest, [])
    assert 0 < alone <= cost.step(decodes, total + 1, longest, [])
    assert alone <= cost.step(decodes + 1, total + -(-total // decodes), longest, [])  # one more like the others
    mixed = cost.step(decodes, total, longest, [(new, cached)])
    assert alone <= mixed <= cost.step(decodes, total, longest, [(new + 1, cached)])
    assert mixed <= cost.step(decodes, total, longest, [(new, cached + 1)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": 3}, "'host' is missing or wrong"),
        ({"constant_ps": -1}, "constant_ps is -1"),
        ({"token_terms": [3]}, "not a table"),
        ({"token_terms": [{"name": "x", "tokens": [1, 1], "ps": [1, 2]}]}, "axis does not increase"),
        ({"token_terms": [{"name": "x", "tokens": [1, 2], "ps": [2, 1]}]}, "times decrease"),
        ({"decode_attention": {"batch": [1], "context": [1, 2], "ps": []}}, "rows and axes differ"),
    ],
)
def test_a_wrong_calibration_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        checked_calibration(constant_calibration(1) | change, "file")
