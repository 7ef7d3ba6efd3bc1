"""Time of an engine step, in whole picoseconds, from a calibration file; the closed sum over many steps, its inverse.

One step holds `decodes` sequences with one new token each (context_sum: tokens of all their contexts, the new token
included; context_max: the longest) and prefill chunks (new tokens q on kv cached ones). With m tokens and n sequences:

    gpu  = constant + sum of token terms(padded m) + sum of sequence terms(n)
           + prefill base (once, one launch) + sum over the chunks of new(q) + cached(q) * kv
           + max(decode attention(decodes, context_sum + skew), decode attention(1, context_max))
    skew = share * (decodes * context_max - context_sum)
    host = base + per_sequence * n + per_token * m
    step = max(host, gpu) with asynchronous scheduling, else host + gpu

Where a calibration knows them, decodes that share a launch with prefill chunks have a curve of their own, and a cost
for the empty tiles that the longest chunk gives each of them: one kernel then serves both, with the long chunk's grid.
While a batch does not change, every sequence grows by one token a step and the skew stays, so the step times are
pieces of arithmetic series. All coefficients are integers: the closed sum equals the loop with ==.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import isqrt
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from sagasim.errors import CalibrationError

__all__ = [
    "StepCost",
    "beside_copies",
    "checked_calibration",
    "constant_calibration",
    "first_beyond",
    "load_calibration",
    "series_sum",
]

Chunk = tuple[int, int]  # new tokens, cached tokens before them
_Row = tuple[int, int, list[int], list[int], list[int]]
_ENDLESS: Final = 1 << 62
_MOST_PS: Final = 10**15  # of any time in a calibration: a quarter of an hour
VERSION: Final = 2  # of the form of a calibration file
SHARE: Final = 10  # bits of the share that skew is given in: 1024 is 1


class _Curve(NamedTuple):
    """Piecewise linear and continuous: value = values[i] + slopes[i] * (x - knots[i]); the last slope is held."""

    knots: list[int]
    values: list[int]
    slopes: list[int]


def graph_sizes(max_num_seqs: int, max_num_batched_tokens: int) -> list[int]:
    """Batch sizes that vLLM 0.15 captures as CUDA graphs (config/vllm.py, _set_cudagraph_sizes)."""
    largest = min(2 * max_num_seqs, 512, max_num_batched_tokens)
    return [s for s in (1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)) if s <= largest]


def _curve(knots: Sequence[int], values: Sequence[int]) -> _Curve:
    slopes = [(v1 - v0) // (k1 - k0) for k0, k1, v0, v1 in zip(knots, knots[1:], values, values[1:], strict=False)] or [
        0
    ]
    exact = [values[0]]
    for i, slope in enumerate(slopes[: len(knots) - 1]):
        exact.append(exact[-1] + slope * (knots[i + 1] - knots[i]))  # continuous with the whole slopes
    return _Curve(list(knots), exact, slopes[: len(knots) - 1] + slopes[-1:])


def _interpolate(x: int, knots: Sequence[int], values: Sequence[int]) -> int:
    """Linear between knots, the first value below them, the last slope beyond them."""
    if len(knots) == 1 or x <= knots[0]:
        return values[0]
    i = min(bisect_right(knots, x), len(knots) - 1)
    return values[i - 1] + (values[i] - values[i - 1]) * (x - knots[i - 1]) // (knots[i] - knots[i - 1])


class StepCost:
    """Step times of one replica under a calibration (see load_calibration for its form)."""

    __slots__ = (
        "_asynchronous", "_attention", "_base_ps", "_beside", "_beside_single", "_cached_rate", "_empty_tile_ps",
        "_host", "_host_sequence", "_host_token", "_mixed", "_new_ps", "_rows", "_sequence_ps", "_shift", "_single",
        "_skew", "_tile", "_token_ps",
    )  # fmt: skip

    def __init__(self, calibration: dict[str, Any], *, max_tokens: int, max_seqs: int, asynchronous: bool) -> None:
        self._asynchronous = asynchronous
        sizes = graph_sizes(max_seqs, max_tokens)
        by_tokens = _sum_terms(max(max_tokens, sizes[-1]), calibration["token_terms"], "tokens")
        padded = [by_tokens[sizes[bisect_left(sizes, m)]] for m in range(min(sizes[-1], max_tokens) + 1)]
        constant = calibration["constant_ps"]
        self._token_ps = [constant + time for time in (*padded, *by_tokens[len(padded) : max_tokens + 1])]
        self._sequence_ps = _sum_terms(max_seqs, calibration["sequence_terms"], "sequences")
        host, prefill = calibration["host"], calibration["prefill_attention"]
        self._host: int = host["base_ps"]
        self._host_sequence: int = host["per_sequence_ps"]
        self._host_token: int = host["per_token_ps"]
        self._base_ps: int = prefill["base_ps"]
        self._new_ps = _on_axis(max_tokens, prefill["tokens"], prefill["ps"])
        self._cached_rate = _on_axis(max_tokens, prefill["tokens"], prefill["per_cached_token"])
        self._shift: int = prefill["shift"]
        self._attention: dict[str, Any] = calibration["decode_attention"]
        self._skew: int = self._attention.get("skew", 0)
        self._rows: dict[int, _Row] = {}
        self._single = self._row(1, self._rows)
        self._beside, self._beside_single = self._rows, self._single
        self._mixed: dict[str, Any] = calibration.get("mixed_attention", {})
        self._tile: int = self._mixed.get("tile", 1)
        self._empty_tile_ps: int = self._mixed.get("empty_tile_ps", 0)
        if self._mixed:
            self._beside = {}
            self._beside_single = self._row(1, self._beside)

    def step(self, decodes: int, context_sum: int, context_max: int, chunks: Sequence[Chunk]) -> int:
        """Time of one step in ps; 0 for a step without work. A chunk of one token counts as a decode."""
        tokens = decodes
        sequences = decodes + len(chunks)
        gpu = 0
        longest = 0
        for new, cached in chunks:
            tokens += new
            if new == 1:
                decodes += 1
                context_sum += cached + 1
                if cached >= context_max:
                    context_max = cached + 1
            else:
                gpu += self._new_ps[new] + (self._cached_rate[new] * cached >> self._shift)
                if new > longest:
                    longest = new
        if not tokens:
            return 0
        gpu += self._token_ps[tokens] + self._sequence_ps[sequences]
        rows, single = self._rows, self._single
        if longest:
            gpu += self._base_ps + decodes * ((longest - 1) // self._tile) * self._empty_tile_ps
            rows, single = self._beside, self._beside_single
        if decodes:
            context_sum += self._skew * (decodes * context_max - context_sum) >> SHARE
            _, _, knots, values, slopes = rows.get(decodes) or self._row(decodes, rows)
            i = bisect_right(knots, context_sum) - 1
            attention = values[i] + slopes[i] * (context_sum - knots[i])
            if decodes > 1:
                _, _, knots, values, slopes = single
                i = bisect_right(knots, context_max) - 1
                skewed = values[i] + slopes[i] * (context_max - knots[i])
                if skewed > attention:
                    attention = skewed
            gpu += attention
        host = self._host + self._host_sequence * sequences + self._host_token * tokens
        if not self._asynchronous:
            gpu += host
        elif host > gpu:
            gpu = host
        return gpu if gpu > 1 else 1

    def prefill(self, new: int, cached: int) -> int:
        """Attention time of a chunk of `new` tokens on `cached` ones in ps, without the base."""
        return self._new_ps[new] + (self._cached_rate[new] * cached >> self._shift)

    def series(self, decodes: int, context_sum: int, context_max: int) -> tuple[int, int, int]:
        """Decode-only steps from here: time of the first in ps, increment per step, how many steps this holds for."""
        context_sum += self._skew * (decodes * context_max - context_sum) >> SHARE
        constant, floor, knots, values, slopes = self._rows.get(decodes) or self._row(decodes, self._rows)
        i = bisect_right(knots, context_sum)
        slope = slopes[i - 1]
        value = values[i - 1] + slope * (context_sum - knots[i - 1])
        slope *= decodes
        count = (knots[i] - context_sum + decodes - 1) // decodes
        if decodes > 1:
            _, _, knots, values, slopes = self._single
            i = bisect_right(knots, context_max)
            skew_slope = slopes[i - 1]
            skewed = values[i - 1] + skew_slope * (context_max - knots[i - 1])
            if knots[i] - context_max < count:
                count = knots[i] - context_max
            if skewed > value:
                value, slope, skewed, skew_slope = skewed, skew_slope, value, slope
            if skew_slope > slope:
                crossing = (value - skewed) // (skew_slope - slope) + 1
                if crossing < count:
                    count = crossing
        if value < floor:
            if slope:
                crossing = (floor - value) // slope + 1
                if crossing < count:
                    count = crossing
            return constant + floor, 0, count
        return constant + value, slope, count

    def total(self, decodes: int, context_sum: int, context_max: int, steps: int) -> int:
        """Sum of `steps` decode-only steps, of which the first has these contexts; == the loop over step()."""
        elapsed = 0
        while True:
            value, slope, count = self.series(decodes, context_sum, context_max)
            if count >= steps:
                return elapsed + series_sum(value, slope, steps)
            elapsed += series_sum(value, slope, count)
            steps -= count
            context_sum += decodes * count
            context_max += count

    def steps_beyond(self, decodes: int, context_sum: int, context_max: int, time: int) -> int:
        """The least number of steps whose total is greater than `time` (>= 0): the inverse of total()."""
        done = 0
        while True:
            value, slope, count = self.series(decodes, context_sum, context_max)
            whole = series_sum(value, slope, count)
            if whole > time:
                return done + first_beyond(value, slope, time)
            time -= whole
            done += count
            context_sum += decodes * count
            context_max += count

    def _row(self, decodes: int, rows: dict[int, _Row]) -> _Row:
        """What the time of this many decodes is made of: constant, least attention beside it, attention curve."""
        gpu = self._token_ps[decodes] + self._sequence_ps[decodes]
        host = self._host + (self._host_sequence + self._host_token) * decodes
        constant, floor = (gpu, max(host, 1) - gpu) if self._asynchronous else (gpu + host, 1 - gpu - host)
        knots, values, slopes = _of_batch(self._attention if rows is self._rows else self._mixed, decodes)
        row = (constant, floor, [*knots, _ENDLESS], values, slopes)
        rows[decodes] = row
        return row


def _of_batch(table: dict[str, Any], decodes: int) -> _Curve:
    """Attention of `decodes` sequences over the sum of their contexts, interpolated between batch knots.

    Beyond the last batch knot the interpolation may fall with the context; time never does (nor would jumps end).
    """
    batches, contexts, rows = table["batch"], table["context"], table["ps"]
    values = [_interpolate(decodes, batches, [row[k] for row in rows]) for k in range(len(contexts))]
    return _curve([context * decodes for context in contexts], list(accumulate(values, max)))


def _on_axis(largest: int, knots: list[int], values: list[int]) -> list[int]:
    """A piecewise linear curve at 0 (where it is 0), 1, ..., largest, in whole numbers; the last slope is held."""
    told = np.zeros(largest + 1, dtype=np.int64)
    edges = [1, *knots[1:-1], largest + 1] if len(knots) > 1 else [1, largest + 1]
    for i, (start, stop) in enumerate(pairwise(edges)):
        rise, run = (values[i + 1] - values[i], knots[i + 1] - knots[i]) if len(knots) > 1 else (0, 1)
        part = np.arange(start, min(stop, largest + 1), dtype=np.int64)
        told[part] = values[i] + np.maximum(0, part - knots[i]) * rise // run
    result: list[int] = told.tolist()
    return result


def _sum_terms(largest: int, terms: Sequence[dict[str, Any]], axis: str) -> list[int]:
    """Sum of piecewise linear terms at 0 (where it is 0), 1, ..., largest, in whole numbers."""
    sums = [0] * (largest + 1)
    for term in terms:
        sums = [total + part for total, part in zip(sums, _on_axis(largest, term[axis], term["ps"]), strict=True)]
    return sums


def beside_copies(calibration: dict[str, Any], percent: int) -> dict[str, Any]:
    """The calibration of steps that share the GPUs with copies: what the GPU does takes `percent` per cent as long."""

    def longer(part: Any) -> Any:
        if isinstance(part, dict):
            timed = ("ps", "base_ps", "per_cached_token", "empty_tile_ps")
            return {key: longer(value) if key in timed else value for key, value in part.items()}
        return [longer(value) for value in part] if isinstance(part, list) else part * percent // 100

    slower = {**calibration, "constant_ps": calibration["constant_ps"] * percent // 100}
    for key in ("decode_attention", "mixed_attention", "prefill_attention"):
        if key in calibration:
            slower[key] = longer(calibration[key])
    for key in ("token_terms", "sequence_terms"):
        slower[key] = [longer(term) for term in calibration[key]]
    return slower


def series_sum(value: int, slope: int, steps: int) -> int:
    """value + (value + slope) + ... over `steps` steps."""
    return steps * value + slope * (steps * (steps - 1) >> 1)


def first_beyond(value: int, slope: int, time: int) -> int:
    """The least j with j * value + slope * j * (j - 1) / 2 > time."""
    j = time // value + 1  # enough, for slope >= 0, and seldom too many
    if slope == 0:
        return j
    if j < 64:
        while j > 1 and (j - 1) * value + slope * ((j - 1) * (j - 2) >> 1) > time:
            j -= 1
        return j
    b = 2 * value - slope
    j = (isqrt(b * b + 8 * slope * time) - b) // (2 * slope)
    while j * value + slope * (j * (j - 1) // 2) <= time:
        j += 1
    return j


def constant_calibration(step_ps: int = 0, *, decode_ps: int = 0, prefill_token_ps: int = 0) -> dict[str, Any]:
    """A made-up calibration: a step costs step_ps, a context token read in decode and a prefilled token more."""
    return {
        "sagasim_calibration": VERSION,
        "gpu": "any",
        "model": "any",
        "tp": 1,
        "dtype": "none",
        "provenance": {"status": "derived", "notes": ["made up for a test"]},
        "host": {"base_ps": 0, "per_sequence_ps": 0, "per_token_ps": 0},
        "constant_ps": step_ps,
        "token_terms": [],
        "sequence_terms": [],
        "decode_attention": {
            "batch": [1, 2],
            "context": [1, 1025],
            "ps": [[0, 1024 * decode_ps], [0, 2048 * decode_ps]],
        },
        "prefill_attention": {
            "base_ps": 0,
            "tokens": [1, 2],
            "ps": [prefill_token_ps, 2 * prefill_token_ps],
            "per_cached_token": [0, 0],
            "shift": 0,
        },
    }


def load_calibration(path: Path) -> dict[str, Any]:
    """Read and check a calibration file. Raises CalibrationError naming the file and the entry that is wrong."""
    try:
        loaded = json.loads(path.read_bytes())
    except OSError as error:
        raise CalibrationError(
            f"cannot be read ({error.strerror})", where=str(path), expected="a calibration file"
        ) from None
    except (ValueError, RecursionError):
        raise CalibrationError("not a JSON document", where=str(path), expected="a calibration file") from None
    expected = f'"sagasim_calibration": {VERSION}'
    if not isinstance(loaded, dict) or "sagasim_calibration" not in loaded:
        raise CalibrationError("not a calibration", where=str(path), expected=expected)
    if loaded["sagasim_calibration"] != VERSION:
        what = f"a calibration of form {loaded['sagasim_calibration']!r}, which this sagasim does not read"
        raise CalibrationError(what, where=str(path), expected=f"{expected}: fit it again")
    return checked_calibration(loaded, str(path))


def checked_calibration(calibration: dict[str, Any], where: str) -> dict[str, Any]:
    """The calibration, once it is sure that all entries StepCost reads are there, not negative and non-decreasing.

    Raises CalibrationError otherwise.
    """
    host = _entry(calibration, "host", dict, where)
    _whole(_entry(calibration, "constant_ps", int, where), where, "constant_ps")
    for key in ("base_ps", "per_sequence_ps", "per_token_ps"):
        _whole(_entry(host, key, int, f"{where}, host"), where, f"host.{key}")
    for group, axis in (("token_terms", "tokens"), ("sequence_terms", "sequences")):
        for term in _entry(calibration, group, list, where):
            place = f"{where}, {group} {term.get('name', '?')!r}" if isinstance(term, dict) else f"{where}, {group}"
            if not isinstance(term, dict):
                raise CalibrationError("not a table", where=place, expected="an object")
            _entry(term, "name", str, place)
            _series(_entry(term, "ps", list, place), place, len(_axis(_entry(term, axis, list, place), place)))
    _checked_prefill(_entry(calibration, "prefill_attention", dict, where), f"{where}, prefill_attention")
    attention = _entry(calibration, "decode_attention", dict, where)
    _checked_grid(attention, f"{where}, decode_attention")
    if _whole(attention.get("skew", 0), f"{where}, decode_attention", "skew") > 1 << SHARE:
        raise CalibrationError("skew above 1", where=f"{where}, decode_attention", expected=f"at most {1 << SHARE}")
    if "mixed_attention" in calibration:
        mixed, place = _entry(calibration, "mixed_attention", dict, where), f"{where}, mixed_attention"
        _checked_grid(mixed, place)
        _whole(_entry(mixed, "empty_tile_ps", int, place), place, "empty_tile_ps")
        if _whole(_entry(mixed, "tile", int, place), place, "tile") < 1:
            raise CalibrationError("tile out of range", where=place, expected="tile >= 1")
    for part in (host, calibration["prefill_attention"], attention, *calibration["token_terms"]):
        if not isinstance(part.get("status", ""), str):
            raise CalibrationError("'status' is no text", where=where, expected="published, derived or measured")
    return calibration


def _checked_prefill(prefill: dict[str, Any], where: str) -> None:
    for key in ("base_ps", "shift"):
        _whole(_entry(prefill, key, int, where), where, key)
    if prefill["shift"] > 62:
        raise CalibrationError("shift out of range", where=where, expected="shift <= 62")
    tokens = _axis(_entry(prefill, "tokens", list, where), where)
    for key in ("ps", "per_cached_token"):
        _series(_entry(prefill, key, list, where), where, len(tokens))


def _checked_grid(table: dict[str, Any], where: str) -> None:
    """A time for every batch and context of the axes."""
    batches = _axis(_entry(table, "batch", list, where), f"{where}.batch")
    contexts = _axis(_entry(table, "context", list, where), f"{where}.context")
    rows = _entry(table, "ps", list, where)
    if len(rows) != len(batches) or batches[0] != 1 or contexts[0] != 1:
        raise CalibrationError("rows and axes differ", where=where, expected="axes from 1, a row per batch")
    for row in rows:
        _series(row, f"{where}.ps", len(contexts))


def _entry(table: dict[str, Any], key: str, kind: type, where: str) -> Any:
    value = table.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CalibrationError(f"{key!r} is missing or wrong", where=where, expected=f"{key!r} of type {kind.__name__}")
    return value


def _whole(value: Any, where: str, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_PS:
        shown = "too large" if isinstance(value, int) and value > _MOST_PS else repr(value)[:40]
        raise CalibrationError(f"{what} is {shown}", where=where, expected=f"a whole number from 0 to {_MOST_PS}")
    return value


def _axis(values: list[Any], where: str) -> list[int]:
    numbers = [_whole(value, where, "axis") for value in values]
    if not numbers or numbers[0] < 1 or any(a >= b for a, b in pairwise(numbers)):
        raise CalibrationError("axis does not increase from 1", where=where, expected="increasing whole numbers")
    return numbers


def _series(values: Any, where: str, length: int) -> None:
    if not isinstance(values, list) or len(values) != length:
        raise CalibrationError("wrong number of values", where=where, expected=f"{length} values")
    numbers = [_whole(value, where, "time") for value in values]
    if any(a > b for a, b in pairwise(numbers)):
        raise CalibrationError("times decrease", where=where, expected="non-decreasing times")
