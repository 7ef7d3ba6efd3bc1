"""Metrics: pure functions of the log of a run, the same number on every machine and NumPy version.

Sums are exact whole numbers; quantiles interpolate linearly between sorted whole numbers and divide once at the end;
floats are rounded to nine significant digits. An empty group gives None. All shares are fractions of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.eventlog import Columns
from sagasim.simulate import Result
from sagasim.units import PS_PER_S, PS_PER_US

__all__ = [
    "CURVE_POINTS",
    "curve",
    "exact_dot",
    "exact_sum",
    "figure_entry",
    "quantile",
    "ratio",
    "rounded",
    "spread",
    "steady_tasks_per_min",
    "summary",
    "tct_ps",
    "tpot_ps",
    "ttft_ps",
]

Ints = NDArray[np.int64]

CURVE_POINTS = 200  # of the distributions in the figures
_LOW_BITS = 20


def rounded(value: float) -> float:
    """Nine significant digits: what summary.json holds."""
    return float(f"{value:.9g}")


def ratio(numerator: int, denominator: int) -> float | None:
    """One division of whole numbers, rounded; None where there is nothing to divide by."""
    return rounded(numerator / denominator) if denominator else None


def exact_sum(values: Ints) -> int:
    """The sum without overflow: high and low bits are added apart."""
    low = int(np.sum(values & ((1 << _LOW_BITS) - 1), dtype=np.int64))
    return (int(np.sum(values >> _LOW_BITS, dtype=np.int64)) << _LOW_BITS) + low


def exact_dot(counts: Ints, times_ps: Ints) -> int:
    """Sum of counts times durations. Both are >= 0; a count is below 2**31, a duration below 2**62."""
    low = exact_sum(counts * (times_ps & ((1 << _LOW_BITS) - 1)))
    middle = exact_sum(counts * ((times_ps >> _LOW_BITS) & ((1 << _LOW_BITS) - 1)))
    high = exact_sum(counts * (times_ps >> (2 * _LOW_BITS)))
    return low + (middle << _LOW_BITS) + (high << (2 * _LOW_BITS))


def quantile(ordered: Ints, part: int, whole: int, unit: int = 1) -> float | None:
    """The part/whole quantile of sorted values, in units of `unit`, by linear interpolation."""
    if not len(ordered):
        return None
    index, rest = divmod((len(ordered) - 1) * part, whole)
    value = int(ordered[index]) * (whole - rest)
    if rest:
        value += int(ordered[index + 1]) * rest
    return ratio(value, whole * unit)


def spread(values: Ints, unit: int) -> dict[str, float | None]:
    """Mean, median and upper quantiles of values, in units of `unit`."""
    ordered = np.sort(values)
    return {
        "mean": ratio(exact_sum(values), len(values) * unit),
        "p50": quantile(ordered, 50, 100, unit),
        "p95": quantile(ordered, 95, 100, unit),
        "p99": quantile(ordered, 99, 100, unit),
        "max": quantile(ordered, 1, 1, unit),
    }


def curve(values: Ints, unit: int) -> list[float]:
    """Quantiles at equal steps from the smallest to the largest value, for a figure; empty for no values."""
    ordered = np.sort(values)
    points = [quantile(ordered, i, CURVE_POINTS, unit) for i in range(CURVE_POINTS + 1)]
    return [point for point in points if point is not None]


def tct_ps(tasks: Columns) -> Ints:
    """Task completion time: from arrival to the end of the last call and its tools."""
    return tasks["finished_ps"] - tasks["arrival_ps"]


def ttft_ps(calls: Columns) -> Ints:
    """Time to first token: from sending."""
    return calls["first_token_ps"] - calls["submitted_ps"]


def tpot_ps(calls: Columns) -> Ints:
    """Time per output token after the first, cut to whole picoseconds; calls with a single token are left out."""
    several = calls["output_tokens"] > 1
    elapsed = (calls["finished_ps"] - calls["first_token_ps"])[several]
    return elapsed // (calls["output_tokens"][several] - 1)


def steady_tasks_per_min(tasks: Columns) -> float | None:
    """Tasks a minute between the moments at which 20 % and 80 % of all tasks had ended."""
    ends = np.sort(tasks["finished_ps"])
    first, last = len(ends) // 5, (4 * len(ends)) // 5
    return ratio((last - first) * 60 * PS_PER_S, int(ends[last]) - int(ends[first])) if len(ends) else None


def summary(result: Result) -> dict[str, Any]:
    """Everything that summary.json holds, of whole numbers, floats, strings and None."""
    calls, tasks = result.calls, result.tasks
    start_ps, end_ps = _window(result)
    span_ps = end_ps - start_ps
    out = {
        "digest": result.digest,
        "preset": result.config.preset,
        "seed": result.config.seed,
        "tasks": len(tasks["task"]),
        "calls": len(calls["call"]),
        "makespan_s": ratio(span_ps, PS_PER_S),
        "tasks_per_min": ratio(len(tasks["task"]) * 60 * PS_PER_S, span_ps),
        "steady_tasks_per_min": steady_tasks_per_min(tasks),
        "output_tokens_per_s": ratio(exact_sum(calls["output_tokens"]) * PS_PER_S, span_ps),
        "tct_s": spread(tct_ps(tasks), PS_PER_S),
        "tool_s": spread(tasks["tool_ps"], PS_PER_S),
        **_latencies(calls),
        **_tokens(result),
        **_cluster(result, start_ps, end_ps),
        "notes": dict(sorted(result.notes.items())),
    }
    if len(result.tenants) > 1:
        out["tenants"] = _tenants(result)
    return out


def _window(result: Result) -> tuple[int, int]:
    """First arrival and last end, in ps; zeros for a run without tasks."""
    if not len(result.tasks["task"]):
        return 0, 0
    return int(np.min(result.tasks["arrival_ps"])), int(np.max(result.tasks["finished_ps"]))


def _latencies(calls: Columns) -> dict[str, Any]:
    return {
        "ttft_s": spread(ttft_ps(calls), PS_PER_S),
        "tpot_s": spread(tpot_ps(calls), PS_PER_S),
        "queueing_s": spread(calls["admitted_ps"] - calls["submitted_ps"], PS_PER_S),
        "call_s": spread(calls["finished_ps"] - calls["submitted_ps"], PS_PER_S),
    }


def _tokens(result: Result) -> dict[str, Any]:
    """Token counts; the shares are of all prompt tokens, so long prompts weigh more.

    Regenerated is what was prefilled although it had been computed before: lost from the cache of this replica, cached
    on another one, or (without prefix caching) never cached. Preemptions can bring the shares above one together.
    """
    calls = result.calls
    names = ("prompt", "output", "kept", "hit", "regenerated_here", "regenerated_elsewhere")
    totals = {name: exact_sum(calls[f"{name}_tokens"]) for name in names}
    known = calls["hit_tokens"] + calls["regenerated_here_tokens"] + calls["regenerated_elsewhere_tokens"]
    uncached = np.zeros_like(known) if result.config.prefix_caching else np.maximum(calls["kept_tokens"] - known, 0)
    totals["regenerated_uncached"] = exact_sum(uncached)
    totals["first"] = exact_sum(np.maximum(calls["prompt_tokens"] - known - uncached, 0))
    regenerated = sum(total for name, total in totals.items() if name.startswith("regenerated"))
    return {
        **{f"{name}_tokens": total for name, total in totals.items()},
        "prefix_hit_rate": ratio(totals["hit"], totals["prompt"]),
        "regenerated_share": ratio(regenerated, totals["prompt"]),
        "preemptions": exact_sum(calls["preemptions"]),
    }


def _cluster(result: Result, start_ps: int, end_ps: int) -> dict[str, Any]:
    """Busy share of the GPUs and shares of KV block time, over all replicas and the whole run."""
    replicas, span_ps = result.replicas, end_ps - start_ps
    block_ps = exact_sum(replicas["num_blocks"]) * span_ps
    held_ps, cached_ps = _block_time(result.occupancy, start_ps, end_ps)
    reused_ps = exact_sum(result.calls["reused_block_us"]) * PS_PER_US
    return {
        "replicas": len(replicas["replica"]),
        "kv_blocks": exact_sum(replicas["num_blocks"]),
        "steps": exact_sum(replicas["steps"]),
        "evicted_blocks": exact_sum(replicas["evicted_blocks"]),
        "gpu_busy_share": ratio(exact_sum(replicas["busy_ps"]), len(replicas["replica"]) * span_ps),
        "kv_held_share": ratio(held_ps, block_ps),
        "kv_cached_share": ratio(cached_ps, block_ps),
        "kv_useful_share": ratio(held_ps + reused_ps, block_ps),
    }


def _block_time(occupancy: Columns, start_ps: int, end_ps: int) -> tuple[int, int]:
    """Block picoseconds held and cached between two moments: each row of a replica holds until its next one."""
    order = np.lexsort([occupancy["time_ps"], occupancy["replica"]])
    replica = occupancy["replica"][order]
    begin = np.clip(occupancy["time_ps"][order], start_ps, end_ps)
    end = np.full_like(begin, end_ps)
    followed = replica[1:] == replica[:-1]
    end[:-1][followed] = begin[1:][followed]
    length = end - begin
    return (
        exact_dot(occupancy["held_blocks"][order], length),
        exact_dot(occupancy["cached_blocks"][order], length),
    )


def _tenants(result: Result) -> dict[str, dict[str, Any]]:
    """The same latencies for each tenant, by name."""
    tasks, calls = result.tasks, result.calls
    tenant_of_call = tasks["tenant"][np.searchsorted(tasks["task"], calls["task"])]
    table: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(result.tenants):
        own_tasks = _where(tasks, tasks["tenant"] == number)
        own_calls = _where(calls, tenant_of_call == number)
        table[name] = {
            "tasks": len(own_tasks["task"]),
            "calls": len(own_calls["call"]),
            "tct_s": spread(tct_ps(own_tasks), PS_PER_S),
            "ttft_s": spread(ttft_ps(own_calls), PS_PER_S),
            "output_tokens": exact_sum(own_calls["output_tokens"]),
        }
    return table


def _where(columns: Columns, mask: NDArray[np.bool_]) -> Mapping[str, Ints]:
    return {name: column[mask] for name, column in columns.items()}


def figure_entry(label: str, result: Result, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What the figure shows of one run, small enough to hand to another process. `measured` is its summary."""
    prompt = measured["prompt_tokens"]
    shares = {
        name: ratio(measured[f"{name}_tokens"], prompt) or 0.0
        for name in ("hit", "first", "regenerated_uncached", "regenerated_here", "regenerated_elsewhere")
    }
    return {
        "label": label,
        "seed": result.config.seed,
        "tct_s": curve(tct_ps(result.tasks), PS_PER_S),
        "ttft_s": curve(ttft_ps(result.calls), PS_PER_S),
        "shares": shares,
    }
