"""Closed sums of step times equal the loop; costs grow with work; calibration files are checked."""

from __future__ import annotations

import functools
import time
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
SOME = [path for path in EMBEDDED if path.stem in {
    "h200-llama-3.1-70b-tp4-bf16", "h200-llama-3.1-70b-tp1-fp8-kvfp8", "h100-qwen3-32b-tp8-fp8",
    "h100-llama-3.1-8b-tp1-bf16", "a100-llama-3-70b-tp4-bf16", "rtx4090-llama-3.1-8b-tp1-bf16",
    "rtxpro6000-llama-3.1-8b-tp1-bf16",
}]  # fmt: skip


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


@given(strategies.calibrations(), batches(), st.integers(0, 400), st.integers(0, 1024))
def test_closed_sum_equals_loop_with_skew(
    calibration: dict[str, Any], batch: tuple[int, int, int], steps: int, skew: int
) -> None:
    calibration["decode_attention"]["skew"] = skew
    cost = StepCost(calibration, max_tokens=64, max_seqs=8, asynchronous=True)
    assert cost.total(*batch, steps) == loop(cost, *batch, steps)


def test_skew_is_a_share_of_the_way_from_mean_to_longest() -> None:
    calibration = constant_calibration(0, decode_ps=1000)
    for skew, effective in ((0, 100 + 200), (512, 100 + 200 + 50), (1024, 2 * 200)):
        calibration["decode_attention"]["skew"] = skew
        cost = StepCost(calibration, max_tokens=64, max_seqs=8, asynchronous=True)
        assert cost.step(2, 300, 200, []) == 1000 * (effective - 2)


def test_decodes_beside_a_chunk_have_a_curve_of_their_own() -> None:
    calibration = constant_calibration(0, decode_ps=10, prefill_token_ps=1000)
    cost = StepCost(calibration, max_tokens=512, max_seqs=8, asynchronous=True)
    apart = cost.step(2, 200, 100, [(320, 50)])
    assert apart == cost.step(2, 200, 100, []) + cost.step(0, 0, 0, [(320, 50)])
    slower = {"batch": [1, 2], "context": [1, 1025], "ps": [[0, 30 * 1024], [0, 30 * 2048]]}
    calibration["mixed_attention"] = {**slower, "tile": 64, "empty_tile_ps": 7}
    cost = StepCost(calibration, max_tokens=512, max_seqs=8, asynchronous=True)
    tiles = 319 // 64  # of the longest chunk, beyond the one that each decode works in anyway
    assert cost.step(2, 200, 100, [(320, 50)]) == 320 * 1000 + 3 * cost.step(2, 200, 100, []) + 2 * tiles * 7
    assert cost.step(2, 200, 100, []) == 10 * 198


def test_a_chunk_costs_its_new_tokens_and_a_rate_for_each_cached_one() -> None:
    calibration = constant_calibration(5)
    calibration["prefill_attention"] = {
        "base_ps": 100, "tokens": [1, 16, 64], "ps": [0, 150, 1110], "per_cached_token": [8, 8, 32], "shift": 2,
    }  # fmt: skip
    cost = StepCost(calibration, max_tokens=128, max_seqs=8, asynchronous=True)
    assert cost.step(0, 0, 0, [(16, 0)]) == 5 + 100 + 150
    assert cost.step(0, 0, 0, [(40, 10)]) == 5 + 100 + 150 + 20 * 24 + (10 * (8 + 12) >> 2)
    assert cost.step(0, 0, 0, [(128, 0)]) == 5 + 100 + 1110 + 20 * 64  # the last slope is held
    assert cost.step(0, 0, 0, [(16, 0), (16, 4)]) == 5 + 100 + 2 * 150 + 8  # one launch


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


@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem)
@given(batch=batches(100_000), steps=st.integers(0, 60), asynchronous=st.booleans())
def test_embedded_sums_equal_loops(path: Path, batch: tuple[int, int, int], steps: int, asynchronous: bool) -> None:
    cost = embedded(path, asynchronous)
    assert cost.total(*batch, steps) == loop(cost, *batch, steps)


@pytest.mark.parametrize("path", SOME, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
def test_every_embedded_calibration_loads_in_milliseconds(path: Path) -> None:
    start = time.process_time()
    calibration = load_calibration(path)
    StepCost(calibration, max_tokens=8192, max_seqs=1024, asynchronous=True)
    assert time.process_time() - start < 0.2  # a few ms; the bound leaves room for a busy machine


def test_a_calibration_of_another_form_is_told(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    path.write_text('{"sagasim_calibration": 1}')
    with pytest.raises(CalibrationError, match="a calibration of form 1, which this sagasim does not read"):
        load_calibration(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"host": 3}, "'host' is missing or wrong"),
        ({"constant_ps": -1}, "constant_ps is -1"),
        ({"token_terms": [3]}, "not a table"),
        ({"token_terms": [{"name": "x", "tokens": [1, 1], "ps": [1, 2]}]}, "axis does not increase"),
        ({"token_terms": [{"name": "x", "tokens": [1, 2], "ps": [2, 1]}]}, "times decrease"),
        ({"decode_attention": {"batch": [1], "context": [1, 2], "ps": []}}, "rows and axes differ"),
        ({"decode_attention": {"batch": [1], "context": [1], "ps": [[1]], "skew": 1025}}, "skew above 1"),
        ({"mixed_attention": {"batch": [1], "context": [1], "ps": [[1]]}}, "'empty_tile_ps' is missing"),
        ({"mixed_attention": {"batch": [1], "context": [1], "ps": [[1]], "empty_tile_ps": 0, "tile": 0}}, "tile out"),
        ({"prefill_attention": {"base_ps": 0, "shift": 0, "tokens": [1], "ps": [1]}}, "'per_cached_token' is missing"),
    ],
)
def test_a_wrong_calibration_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        checked_calibration(constant_calibration(1) | change, "file")
