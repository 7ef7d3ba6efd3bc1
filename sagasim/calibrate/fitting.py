"""Curves through measurements: never negative, never falling, piecewise linear, closest in relative error.

Times between measured points are interpolated as a share of a physical reference (bytes over bandwidth, operations over
peak, a launch): the share changes slowly where the time itself spans five decades.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sagasim.calibrate.tables import Floats, Mask

__all__ = [
    "Surface", "axis_term", "curve_at", "fewest_knots", "increasing_fit", "increasing_median", "left_out",
    "never_falling", "non_negative", "ps_list", "raised", "ramps", "residual", "scales_near_one", "to_ps",
]  # fmt: skip

NEIGHBOURS = 30  # measured points that one interpolated point looks at
MOST_ON_A_PLATE = 1000  # measured points that a thin plate goes through: its work grows with their cube


def non_negative(columns: Floats, y: Floats, least: Floats, *, known: Floats | None = None) -> Floats:
    """Coefficients c >= least that minimise sum(((known + columns @ c - y) / y)**2); columns: (rows, c), y: (rows,)."""
    from scipy.optimize import nnls  # an optional dependency, needed by fits alone

    scaled = columns / y[:, None]
    size = np.maximum(np.abs(scaled).max(axis=0), 1e-300)  # columns of one size: a well-conditioned problem
    target = 1.0 - scaled @ least - (0.0 if known is None else known / y)
    scaled = scaled / size
    if len(y) > 2 * columns.shape[1]:  # the same least squares, of as many rows as columns
        rotation, scaled = np.linalg.qr(scaled)
        target = rotation.T @ target
    above, _ = nnls(scaled, target)
    return np.asarray(above / size + least, dtype=np.float64)


def scales_near_one(columns: Floats, y: Floats, *, pull: float) -> Floats:
    """Scales s >= 0 of columns that sum to about y: least squares in relative error, drawn to 1 as by pull * rows."""
    from scipy.optimize import nnls  # an optional dependency, needed by fits alone

    weight = np.sqrt(len(y) * pull) * np.eye(columns.shape[1])
    told, _ = nnls(
        np.concatenate([columns / y[:, None], weight]), np.concatenate([np.ones(len(y)), weight.sum(axis=1)])
    )
    return np.asarray(told, dtype=np.float64)


def ramps(x: Floats, knots: Floats) -> Floats:
    """Columns of a piecewise linear curve: the constant, and for each segment its ramp from 0 to 1.

    The last ramp goes on beyond the last knot.
    """
    up = np.maximum((x[:, None] - knots[:-1]) / np.diff(knots), 0.0)
    up[:, :-1] = np.minimum(up[:, :-1], 1.0)
    return np.concatenate([np.ones((len(x), 1)), up], axis=1)


def increasing_fit(x: Floats, y: Floats, knots: Floats) -> Floats:
    """Values at the knots of the never falling, piecewise linear curve closest to (x, y) in relative error."""
    increments = non_negative(ramps(x, knots), y, np.zeros(len(knots)))
    return np.asarray(np.cumsum(increments), dtype=np.float64)


def increasing_median(x: Floats, y: Floats, knots: Floats) -> Floats:
    """The same with the least sum of |relative errors|: a curve that outliers do not draw to themselves."""
    from scipy.optimize import linprog  # an optional dependency, needed by fits alone
    from scipy.sparse import bmat, csr_matrix, identity

    columns, error = csr_matrix(ramps(x, knots) / y[:, None]), identity(len(y))
    within = bmat([[columns, -error], [-columns, -error]]).tocsr()  # increments, then the size of each row's error
    cost = np.concatenate([np.zeros(len(knots)), np.ones(len(y))])
    limit = np.concatenate([np.ones(len(y)), -np.ones(len(y))])
    found = linprog(cost, A_ub=within, b_ub=limit, bounds=(0, None), method="highs")
    return np.asarray(np.cumsum(found.x[: len(knots)]), dtype=np.float64)


def curve_at(x: Floats, knots: Floats, values: Floats) -> Floats:
    """The piecewise linear curve at x: flat before the first knot, the last slope held beyond the last."""
    if len(knots) == 1:
        return np.full_like(x, values[0])
    slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    return np.asarray(np.interp(x, knots, values) + np.maximum(x - knots[-1], 0.0) * slope, dtype=np.float64)


def fewest_knots(knots: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The same curve without knots that lie on the line between their neighbours, to the nanosecond."""
    slope = np.diff(values) / np.diff(knots)
    turns = np.abs(np.diff(slope)) * np.minimum(np.diff(knots)[:-1], np.diff(knots)[1:]) > 1e-3
    keep = np.concatenate([[True], turns, [True]])
    return knots[keep], values[keep]


def raised(values: Floats, floor: Floats) -> Floats:
    """values, at least floor at every knot and with at least its slope at the end; knots along the last axis."""
    out = np.maximum(values, floor)
    if out.shape[-1] > 1:
        out[..., -1] = np.maximum(out[..., -1], out[..., -2] + floor[..., -1] - floor[..., -2])
    return np.asarray(out, dtype=np.float64)


class Surface:
    """Times at points that were not measured, from the measured ones around them.

    The logarithm of time / reference is interpolated over `coordinates` (radial basis functions, linear kernel, the
    NEIGHBOURS nearest points), so that measured points are met and beyond them the share of the reference is held.
    """

    def __init__(self, coordinates: Floats, us: Floats, reference: Floats, *, smooth: bool = False) -> None:
        """coordinates: (rows, axes), scaled so that distances mean likeness; us, reference: (rows,).

        smooth: by a thin plate through all points, where they span a plane and are few, in place of cones around them.
        """
        from scipy.interpolate import RBFInterpolator  # an optional dependency, needed by fits alone

        self._count = len(us)
        keys, where = np.unique(coordinates.round(9), axis=0, return_inverse=True)
        share = np.log(us / reference)
        mean = np.bincount(where.ravel(), share) / np.bincount(where.ravel())  # repeated points: their geometric mean
        self._only = float(mean[0])
        self._share: Callable[[Floats], Floats] | None = None
        if len(keys) > 1:
            plane = np.linalg.matrix_rank(keys - keys.mean(axis=0)) == keys.shape[1]
            if smooth and plane and len(keys) <= MOST_ON_A_PLATE:
                self._share = RBFInterpolator(keys, mean, kernel="thin_plate_spline", degree=1, smoothing=1e-9)
            else:
                near = min(NEIGHBOURS, len(keys))
                self._share = RBFInterpolator(keys, mean, kernel="linear", degree=0, smoothing=1e-9, neighbors=near)

    def us(self, coordinates: Floats, reference: Floats) -> Floats:
        """Microseconds at these points."""
        if self._share is None:
            return np.asarray(reference * np.exp(self._only))
        return np.asarray(reference * np.exp(self._share(coordinates)), dtype=np.float64)


def never_falling(x: Floats, y: Floats) -> Floats:
    """The never falling values at x closest to y in |relative error|: no such curve, of any form, errs less on y.

    Isotonic regression: neighbours that would fall are pooled at their median with weights 1 / y; so are rows of one x.
    """
    order = np.lexsort((y, x))
    starts = np.flatnonzero(np.diff(x[order], prepend=np.nan) != 0)
    pools: list[Floats] = []
    for one in np.split(y[order], starts[1:]):
        pools.append(one)
        while len(pools) > 1 and _middle(pools[-2]) > _middle(pools[-1]):
            last = pools.pop()
            pools[-1] = np.concatenate([pools[-1], last])
    values = np.empty_like(y)
    values[order] = np.concatenate([np.full(len(pool), _middle(pool)) for pool in pools])
    return values


def _middle(y: Floats) -> float:
    """The value with the least sum of |relative errors| to y."""
    y = np.sort(y)
    weight = np.cumsum(1.0 / y)
    return float(y[np.searchsorted(weight, weight[-1] / 2)])


def left_out(count: int, *, seed: int = 0) -> Mask:
    """Rows to leave out of a fit and to predict: a third, drawn at random; the same ones every time."""
    drawn = np.random.default_rng([seed, count]).random(count) < 1 / 3
    if count > 2 and (drawn.all() or not drawn.any()):
        drawn = np.arange(count) % 3 == 1
    return np.asarray(drawn)


def residual(predicted: Floats, measured: Floats) -> dict[str, float | int]:
    """Mean and 90th percentile of |relative error|, its mean with sign, and the number of rows."""
    if len(measured) == 0:
        return {"n": 0}
    error = predicted / measured - 1.0
    size = np.abs(error)
    told = {"mape": size.mean(), "p90": np.quantile(size, 0.9), "bias": error.mean()}
    return {**{name: round(float(value), 4) for name, value in told.items()}, "n": len(error)}


def to_ps(us: float, *, scale: int = 1) -> int:
    """Microseconds -> picoseconds times scale, rounded up to a thousand: a floor stays a floor."""
    return -(-round(us * 1e6 * scale) // 1000) * 1000


def ps_list(us: Iterable[float], layers: int = 1) -> list[int]:
    return [to_ps(float(value) * layers) for value in us]


def axis_term(name: str, axis: str, knots: Floats, us: Floats, status: str, source: str) -> dict[str, Any]:
    """An entry of token_terms or sequence_terms: microseconds a step at the knots of its axis."""
    return {"name": name, axis: [int(knot) for knot in knots], "ps": ps_list(us), "status": status, "source": source}
