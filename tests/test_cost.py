"""Closed sums of step times equal the loop; costs grow with work; calibration files are checked."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sagasim.cost import StepCost
from sagasim.hardware import data_dir
from tests import strategies

EMBEDDED = sorted((data_dir() / "calibration").glob("*.json"))


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
