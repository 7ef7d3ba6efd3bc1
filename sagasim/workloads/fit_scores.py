"""Correlations of recorded sessions, as normal scores: between sessions, from step to step, and within a step.

A value's normal score is the standard normal quantile of its rank within its table. Of the scores of outputs, added
tokens and gaps, what is still correlated many steps apart belongs to the session, the rest is ARMA(1, 1) noise.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from sagasim.workloads.fit_rows import Flags, Rows, Series

__all__ = ["fit_scores", "normal_scores"]

KINDS = ("output", "added", "gap")
FEWEST_PAIRS = 300
LARGEST_SHARE = 0.9


def normal_scores(values: Series) -> Series:
    """Standard normal quantiles of the ranks, equal values in the middle of theirs."""
    if not len(values):
        return np.array([])
    ordered = np.sort(values)
    rank = (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")) / 2
    inverse = NormalDist().inv_cdf
    unique, where = np.unique(rank, return_inverse=True)
    return np.array([inverse(r / len(values)) for r in unique])[where]


def fit_scores(
    rows: Rows, scores: dict[str, Series], own_scores: Series, shares: Series, long_enough: Flags
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(cholesky and shift of the six scores of a session, noise and innovations of the three of a step)."""
    of_session = np.full((2, len(rows.steps)), np.nan)
    of_session[0] = own_scores
    of_session[1, long_enough] = normal_scores(shares[long_enough])
    between = _correlation(of_session)
    filled = np.where(np.isnan(of_session), 0.0, of_session)
    user = rows.user > 0
    four = [
        scores["output"],
        scores["added"],
        np.where(user, np.nan, scores["gap"]),
        np.where(user, scores["gap"], np.nan),
    ]
    far = _far_lags(rows)
    slopes, shift = np.zeros((4, 2)), np.zeros(4)
    residual = np.array([[_lagged(rows, a, b, far) for b in four] for a in four])
    residual = (residual + residual.T) / 2
    for place, series in enumerate(four):
        known = ~np.isnan(series)
        if known.sum() < FEWEST_PAIRS:
            residual[place] = residual[:, place] = 0.0
            continue
        at = filled[:, rows.session[known]]
        mean = at.mean(axis=1)
        spread = (at - mean[:, None]) @ (at - mean[:, None]).T / known.sum()
        slopes[place] = np.linalg.solve(spread + 0.01 * np.eye(2), (at - mean[:, None]) @ series[known] / known.sum())
        shift[place] = slopes[place] @ mean
    share = np.clip(np.diag(residual), 0.0, LARGEST_SHARE)
    explained = slopes @ np.cov(filled[:, rows.session], bias=True) @ slopes.T
    own = residual - explained
    full = np.zeros((6, 6))
    full[:2, :2] = between
    full[2:, :2] = slopes @ between
    full[:2, 2:] = full[2:, :2].T
    full[2:, 2:] = own + slopes @ between @ slopes.T
    session = {
        "scores": ["own_tokens", "user_share", "output", "added", "gap after tool", "gap after user"],
        "cholesky": _lower(full),
        "shift": [round(float(value), 4) for value in shift],
    }
    return session, {"session_share": [round(float(s), 4) for s in share], **_noise(rows, scores, far)}


def _correlation(values: Series) -> Series:
    """Correlations of the rows of a matrix over the columns where both are known."""
    size = len(values)
    found = np.eye(size)
    for a in range(size):
        for b in range(a):
            both = ~np.isnan(values[a]) & ~np.isnan(values[b])
            first, second = values[a, both], values[b, both]
            if both.sum() > 2 and first.std() > 0 and second.std() > 0:
                found[a, b] = found[b, a] = np.corrcoef(first, second)[0, 1]
    return found


def _far_lags(rows: Rows) -> range:
    """Steps apart at which only the session correlates."""
    return range(8, 41) if np.mean(rows.steps) > 25 else range(3, 11)


def _lagged(rows: Rows, first: Series, second: Series, lags: range) -> float:
    """Mean product of two series of scores some steps apart within sessions; 0 where there are too few pairs."""
    total, count = 0.0, 0
    for lag in lags:
        same = rows.session[lag:] == rows.session[: len(rows.session) - lag] if lag else np.ones(len(first), dtype=bool)
        product = (first[: len(first) - lag] * second[lag:])[same]
        known = product[~np.isnan(product)]
        total += float(known.sum())
        count += len(known)
    return total / count if count >= FEWEST_PAIRS else 0.0


def _noise(rows: Rows, scores: dict[str, Series], far: range) -> dict[str, Any]:
    """ARMA(1, 1) noise of each kind, how the three correlate within a step, and outputs with what was added before."""
    level = {kind: max(_lagged(rows, scores[kind], scores[kind], far), 0.0) for kind in KINDS}
    noise = {}
    for kind in KINDS:
        near = [_lagged(rows, scores[kind], scores[kind], range(lag, lag + 1)) for lag in range(1, 6)]
        rest = [(value - level[kind]) / (1.0 - level[kind]) for value in near]
        noise[kind] = _arma(rest)
    together = np.eye(3)
    for a, one in enumerate(KINDS):
        for b, other in enumerate(KINDS[:a]):
            across = _lagged(rows, scores[one], scores[other], far)
            rest_of = math.sqrt((1 - level[one]) * (1 - level[other]))
            value = (_lagged(rows, scores[one], scores[other], range(1)) - across) / rest_of
            together[a, b] = together[b, a] = np.clip(value, -LARGEST_SHARE, LARGEST_SHARE)
    rest_of = math.sqrt((1 - level["output"]) * (1 - level["added"]))
    across = _lagged(rows, scores["added"], scores["output"], far)
    after = (_lagged(rows, scores["added"], scores["output"], range(1, 2)) - across) / rest_of
    after = round(float(np.clip(after, -LARGEST_SHARE, LARGEST_SHARE)), 4)
    return {"noise": noise, "innovations": _lower(together), "output_after_added": after}


def _arma(correlations: list[float]) -> dict[str, float]:
    """phi and theta of x(t) = phi x(t - 1) + e(t) - theta e(t - 1), whose correlations are nearest to those given."""
    best = (math.inf, 0.0, 0.0)
    for step in range(1, 20):
        phi = step / 20
        powers = [phi**lag for lag in range(1, len(correlations) + 1)]
        scale = sum(p * c for p, c in zip(powers, correlations, strict=True)) / sum(p * p for p in powers)
        scale = min(max(scale, 0.0), 1.0)
        error = sum((scale * p - c) ** 2 for p, c in zip(powers, correlations, strict=True))
        best = min(best, (error, phi, scale))
    _, phi, scale = best
    first = scale * phi
    if scale < 0.01:
        return {"phi": 0.0, "theta": 0.0}
    a, b = first - phi, 1 + phi * phi - 2 * phi * first
    theta = 0.0 if abs(a) < 1e-9 else (-b + math.sqrt(max(b * b - 4 * a * a, 0.0))) / (2 * a)
    return {"phi": round(phi, 4), "theta": round(theta, 4)}


def _lower(matrix: Series) -> list[list[float]]:
    """The lower triangle L with L L' nearest to a symmetric matrix whose estimate may not be positive."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    fixed = vectors @ np.diag(np.maximum(values, 1e-3)) @ vectors.T
    scale = np.sqrt(np.diag(matrix).clip(1e-3) / np.diag(fixed))
    fixed = fixed * scale[:, None] * scale[None, :]
    lower = np.linalg.cholesky(fixed)
    return [[round(float(lower[a, b]), 4) for b in range(a + 1)] for a in range(len(lower))]
