"""Statistics: by hand, against their definition, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sagasim.stats import LEVEL, adjusted, mean_interval, paired

P = st.one_of(st.none(), st.floats(0, 1))


def test_paired_by_hand() -> None:
    found = paired([9, 17, 28], [10, 20, 30])
    # differences -1, -3, -2: mean -2, standard error 1 / sqrt(3), t = 4.3027 with two degrees of freedom
    assert found["mean"] == -2
    assert (found["low"], found["high"]) == pytest.approx((-4.48413771, 0.48413771), rel=1e-6)
    assert found["ratio"] == pytest.approx((0.9 * 0.85 * 28 / 30) ** (1 / 3), rel=1e-8)
    logs = [math.log(0.9), math.log(0.85), math.log(28 / 30)]
    assert found["p_paired"] == pytest.approx(scipy_stats.ttest_1samp(logs, 0).pvalue, rel=1e-6)
    assert found["p_welch"] == pytest.approx(
        scipy_stats.ttest_ind([9, 17, 28], [10, 20, 30], equal_var=False).pvalue, rel=1e-6
    )


def test_nothing_differs() -> None:
    same = paired([3.0, 4.0, 5.0], [3.0, 4.0, 5.0])
    assert (same["mean"], same["ratio"], same["ratio_low"], same["ratio_high"]) == (0, 1, 1, 1)
    assert (same["p_paired"], same["p_welch"]) == (1, 1)
    zeros = paired([0.0, 0.0], [0.0, 0.0])
    assert (zeros["mean"], zeros["ratio"], zeros["p_paired"]) == (0, None, 1)


def test_the_same_difference_with_every_seed() -> None:
    """No variance to test against: as likely by chance as three, or two, equal signs."""
    assert paired([2.0, 4.0, 8.0], [1.0, 2.0, 4.0])["p_paired"] == 0.25
    assert paired([1.0, 2.0], [0.0, 1.0])["p_paired"] == 0.5
    assert paired([1.0, 1.0], [2.0, 2.0])["p_welch"] == 0.5


def test_a_single_seed_tells_no_interval() -> None:
    one = paired([3.0], [2.0])
    assert (one["mean"], one["ratio"]) == (1, 1.5)
    assert {one[key] for key in ("low", "high", "ratio_low", "ratio_high", "p_paired", "p_welch")} == {None}
    assert mean_interval([7.0]) == {"mean": 7, "low": None, "high": None}


def test_holm_by_hand() -> None:
    assert adjusted([0.01, 0.04, None, 0.03]) == [0.03, 0.06, None, 0.06]
    assert adjusted([]) == []


@given(st.lists(P, max_size=20))
def test_holm_keeps_the_order_and_never_lowers(p_values: list[float | None]) -> None:
    corrected = adjusted(p_values)
    pairs = [(p, q) for p, q in zip(p_values, corrected, strict=True) if p is not None and q is not None]
    assert len(pairs) == sum(p is not None for p in p_values)
    assert all(p <= q * (1 + 1e-8) + 1e-300 and q <= 1 for p, q in pairs)
    assert [q for _, q in sorted(pairs)] == sorted(q for _, q in pairs)
    if pairs:  # something is significant exactly when the smallest is by Bonferroni
        least = min(p for p, _ in pairs)
        assert (min(q for _, q in pairs) < LEVEL) == (least * len(pairs) < LEVEL * (1 + 1e-12)) or math.isclose(
            least * len(pairs), LEVEL, rel_tol=1e-6
        )


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_null_comparison_is_seldom_significant(seeds: int) -> None:
    """Two systems that differ by chance alone: at most 5 % of 2,000 comparisons, within the error of counting them."""
    rng = np.random.default_rng(1)
    counts = {"p_paired": 0, "p_welch": 0}
    for _ in range(2000):
        own, base = rng.lognormal(5, 0.1, size=(2, seeds)).tolist()
        found = paired(own, base) if seeds < 3 else _tests(own, base)
        for key in counts:
            counts[key] += found[key] < LEVEL
    bound = 2000 * LEVEL + 3 * math.sqrt(2000 * LEVEL * (1 - LEVEL))
    assert max(counts.values()) <= bound
    assert counts["p_paired"] >= 2000 * LEVEL - 3 * math.sqrt(2000 * LEVEL * (1 - LEVEL))


def _tests(own: list[float], base: list[float]) -> dict[str, float]:
    """The p-values of `paired`, without its bootstrap, which takes most of the time."""
    from sagasim import stats

    logs = [math.log(a / b) for a, b in zip(own, base, strict=True)]
    return {"p_paired": stats._p_zero(logs), "p_welch": stats._p_welch(own, base)}


def test_the_bootstrap_interval_covers() -> None:
    """The true ratio lies within the 95 % interval of ten seeds nearly as often as it says."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(200):
        base = rng.lognormal(5, 0.1, size=10)
        found = paired((base * rng.lognormal(0.05, 0.03, size=10)).tolist(), base.tolist())
        inside += found["ratio_low"] <= math.exp(0.05) <= found["ratio_high"]
    assert 200 * 0.85 <= inside <= 200
