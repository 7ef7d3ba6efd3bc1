"""Metrics: pure functions of the log of a run, the same number on every machine and NumPy version.

Sums are exact whole numbers; quantiles interpolate linearly between sorted whole numbers and divide once at the end;
floats are rounded to nine significant digits. An empty group gives None. All shares are fractions of one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sagasim.eventlog import KINDS_OF_TRANSFERS, UNFINISHED, Columns
from sagasim.fairness import WINDOW_S, share_deviations
from sagasim.policies.fair_share import parse_weights
from sagasim.seams import find
from sagasim.simulate import Result
from sagasim.units import PS_PER_S, PS_PER_US, ps_from_s

__all__ = [
    "CURVE_POINTS",
    "curve",
    "exact_dot",
    "exact_sum",
    "figure_entry",
    "flat",
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


def flat(summary: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Everything that a summary holds, what is within its parts under names with dots: `tct_s.mean`."""
    for name, value in summary.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def curve(values: Ints, unit: int) -> list[float]:
    """Quantiles at equal steps from the smallest to the largest value, for a figure; empty for no values."""
    ordered = np.sort(values)
    points = [quantile(ordered, i, CURVE_POINTS, unit) for i in range(CURVE_POINTS + 1)]
    return [point for point in points if point is not None]


def tct_ps(tasks: Columns, cut_off_ps: int = 0) -> Ints:
    """Task completion time: from arrival to the end of the last call and its tools.

    A task that the end of the run cut off counts with its age then, which is less than it would have taken.
    """
    finished = tasks["finished_ps"]
    return np.where(finished == UNFINISHED, cut_off_ps, finished) - tasks["arrival_ps"]


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
    ends = ends[ends != UNFINISHED]
    first, last = len(ends) // 5, (4 * len(ends)) // 5
    return ratio((last - first) * 60 * PS_PER_S, int(ends[last]) - int(ends[first])) if len(ends) else None


class Window(NamedTuple):
    """What is measured: tasks first..last-1 in the order of arrival with all their calls, and the time of the cluster.

    The cluster is measured from the arrival of the first of them to that of the first one after them, or to the end of
    the run where nothing comes after. cut_off_ps: when the run ended.
    """

    first: int
    last: int
    start_ps: int
    end_ps: int
    cut_off_ps: int


def window(result: Result) -> Window:
    """The measuring window that the configuration states."""
    tasks, config = result.tasks, result.config
    count = len(tasks["task"])
    if not count:
        return Window(0, 0, 0, 0, 0)
    cut_off = (tasks["finished_ps"] == UNFINISHED).any()
    end_ps = ps_from_s(config.horizon_s or 0) if cut_off else int(tasks["finished_ps"].max())
    planned = count if config.horizon_s is None else max(count, config.tasks or 0)  # not all may have arrived
    first, after = (int((share or 0.0) * planned + 1e-9) for share in (config.warmup, config.cooldown))
    if first and config.arrivals == "closed":  # those that start together are no steady stream yet
        first = max(first, min(config.concurrency or 0, planned // 2))
    first, last = min(first, count - 1), min(count, planned - after)
    start_ps = int(tasks["arrival_ps"][first]) if first else int(tasks["arrival_ps"].min())
    return Window(first, last, start_ps, int(tasks["arrival_ps"][last]) if last < count else end_ps, end_ps)


def measured(result: Result, seen: Window) -> tuple[Columns, Columns]:
    """The rows of the tasks in the window and of their calls."""
    tasks, calls = result.tasks, result.calls
    rows = slice(*np.searchsorted(calls["task"], [seen.first, seen.last]))
    return (
        {name: column[seen.first : seen.last] for name, column in tasks.items()},
        {name: column[rows] for name, column in calls.items()},
    )


def summary(result: Result) -> dict[str, Any]:
    """Everything that summary.json holds, of whole numbers, floats, strings and None."""
    seen = window(result)
    tasks, calls = measured(result, seen)
    span_ps = seen.end_ps - seen.start_ps
    ended = _within(result.tasks["finished_ps"], seen)
    written = result.calls["output_tokens"][_within(result.calls["finished_ps"], seen)]
    out = {
        "digest": result.digest,
        "preset": result.config.preset,
        "seed": result.config.seed,
        "tasks": len(result.tasks["task"]),
        "calls": len(result.calls["call"]),
        "measured_tasks": len(tasks["task"]),
        "measured_calls": len(calls["call"]),
        "unfinished_tasks": int((tasks["finished_ps"] == UNFINISHED).sum()),
        "measured_from_s": ratio(seen.start_ps, PS_PER_S),
        "measured_to_s": ratio(seen.end_ps, PS_PER_S),
        "makespan_s": ratio(_makespan_ps(result, seen), PS_PER_S),
        "tasks_per_min": ratio(int(ended.sum()) * 60 * PS_PER_S, span_ps),
        "steady_tasks_per_min": steady_tasks_per_min(result.tasks),
        "output_tokens_per_s": ratio(exact_sum(written) * PS_PER_S, span_ps),
        "tct_s": spread(tct_ps(tasks, seen.cut_off_ps), PS_PER_S),
        "tool_s": spread(tasks["tool_ps"][tasks["finished_ps"] != UNFINISHED], PS_PER_S),
        **_latencies(calls),
        **_tokens(calls, prefix_caching=result.config.prefix_caching),
        **_cluster(result, seen),
        **_predictions(result.counts),
        "notes": dict(sorted(result.notes.items())),
    }
    if len(result.transfers["kind"]):
        out["transfers"] = _transfers(result.transfers)
    if len(result.tenants) > 1:
        out["tenants"] = _tenants(result.tenants, tasks, calls, seen.cut_off_ps)
        out["afs_deviation"] = _afs_deviation(result, seen)
    return out


def _predictions(counts: Mapping[str, int]) -> dict[str, Any]:
    """What policies counted, and of the next steps that followed: the part predicted, and of these the part right."""
    if not counts:
        return {}
    told: dict[str, Any] = {"counts": dict(sorted(counts.items()))}
    if "next_steps" in counts:
        told["next_step_coverage"] = ratio(counts["next_steps_predicted"], counts["next_steps"])
        told["next_step_accuracy"] = ratio(counts["next_steps_right"], counts["next_steps_predicted"])
    return told


def _transfers(transfers: Columns) -> dict[str, Any]:
    """Copies of the whole run by kind: how many, how large, how long; those given up apart."""
    told = {}
    for kind, name in enumerate(KINDS_OF_TRANSFERS):
        own = transfers["kind"] == kind
        done = own & (transfers["cancelled"] == 0)
        if own.any():
            told[name] = {
                "count": int(done.sum()),
                "cancelled": int((own & ~done).sum()),
                "gib": ratio(exact_sum(transfers["bytes"][done]), 2**30),
                "time_s": spread((transfers["ended_ps"] - transfers["started_ps"])[done], PS_PER_S),
            }
    return told


def _afs_deviation(result: Result, seen: Window) -> dict[str, Any]:
    """How far tenants were from their Agent Fair Shares, in parts of the capacity, over windows of a minute."""
    order = result.config.order  # a policy of somebody's own knows no weights, and its file may be gone
    weights = parse_weights(find("order", order).values.get("weights", "") if order.partition(":")[0] == "afs" else "")
    of_each = [weights.get(name, 1.0) for name in result.tenants]
    window_ps = WINDOW_S * PS_PER_S
    found = share_deviations(result.calls, result.tasks, seen.start_ps, seen.end_ps, of_each, window_ps)
    return {"windows_s": WINDOW_S, **spread(np.rint(found * 10**9).astype(np.int64), 10**9)}


def _within(times_ps: Ints, seen: Window) -> NDArray[np.bool_]:
    return (times_ps > seen.start_ps) & (times_ps <= seen.end_ps)


def _makespan_ps(result: Result, seen: Window) -> int:
    """From the first arrival to the end of the run."""
    return seen.cut_off_ps - int(result.tasks["arrival_ps"].min()) if len(result.tasks["task"]) else 0


def _latencies(calls: Columns) -> dict[str, Any]:
    return {
        "ttft_s": spread(ttft_ps(calls), PS_PER_S),
        "tpot_s": spread(tpot_ps(calls), PS_PER_S),
        "queueing_s": spread(calls["admitted_ps"] - calls["submitted_ps"], PS_PER_S),
        "call_s": spread(calls["finished_ps"] - calls["submitted_ps"], PS_PER_S),
    }


def _tokens(calls: Columns, *, prefix_caching: bool) -> dict[str, Any]:
    """Token counts; the shares are of all prompt tokens, so long prompts weigh more.

    Regenerated is what was prefilled although it had been computed before: lost from the cache of this replica, cached
    on another one, or (without prefix caching) never cached. Preemptions can bring the shares above one together.
    """
    names = ("prompt", "output", "kept", "hit", "regenerated_here", "regenerated_elsewhere")
    totals = {name: exact_sum(calls[f"{name}_tokens"]) for name in names}
    known = calls["hit_tokens"] + calls["regenerated_here_tokens"] + calls["regenerated_elsewhere_tokens"]
    uncached = np.zeros_like(known) if prefix_caching else np.maximum(calls["kept_tokens"] - known, 0)
    totals["regenerated_uncached"] = exact_sum(uncached)
    totals["first"] = exact_sum(np.maximum(calls["prompt_tokens"] - known - uncached, 0))
    regenerated = sum(total for name, total in totals.items() if name.startswith("regenerated"))
    return {
        **{f"{name}_tokens": total for name, total in totals.items()},
        "prefix_hit_rate": ratio(totals["hit"], totals["prompt"]),
        "regenerated_share": ratio(regenerated, totals["prompt"]),
        "carried_tokens": exact_sum(calls["carried_tokens"]),
        "reloaded_tokens": exact_sum(calls["reloaded_tokens"]),
        "preemptions": exact_sum(calls["preemptions"]),
    }


def _cluster(result: Result, seen: Window) -> dict[str, Any]:
    """Busy share of the GPUs and shares of KV block time, over all replicas and the time of the window."""
    replicas, span_ps = result.replicas, seen.end_ps - seen.start_ps
    block_ps = exact_sum(replicas["num_blocks"]) * span_ps
    held_ps, cached_ps = _block_time(result.occupancy, seen.start_ps, seen.end_ps)
    admitted = (result.calls["admitted_ps"] >= seen.start_ps) & (result.calls["admitted_ps"] <= seen.end_ps)
    reused_ps = exact_sum(result.calls["reused_block_us"][admitted]) * PS_PER_US
    busy_ps = sum(_busy_ps(result, number, seen) for number in replicas["replica"].tolist())
    return {
        "replicas": len(replicas["replica"]),
        "kv_blocks": exact_sum(replicas["num_blocks"]),
        "steps": exact_sum(replicas["steps"]),
        "evicted_blocks": exact_sum(replicas["evicted_blocks"]),
        "calls_in_flight": exact_sum(replicas["in_flight"]),
        "gpu_busy_share": ratio(busy_ps, len(replicas["replica"]) * span_ps),
        "kv_held_share": ratio(held_ps, block_ps),
        "kv_cached_share": ratio(cached_ps, block_ps),
        "kv_useful_share": ratio(held_ps + reused_ps, block_ps),
    }


def _busy_ps(result: Result, number: int, seen: Window) -> int:
    """How long a replica computed within the window, linear between the rows of its occupancy.

    A row counts all steps decided by then, so that what lies beyond the window is taken off its end.
    """
    last_end, total = (int(result.replicas[name][number]) for name in ("last_step_end_ps", "busy_ps"))
    if seen.start_ps == 0 and seen.end_ps == seen.cut_off_ps:
        return min(total - max(0, last_end - seen.end_ps), seen.end_ps)
    own = result.occupancy["replica"] == number
    times: list[int] = result.occupancy["time_ps"][own].tolist()
    busy: list[int] = result.occupancy["busy_ps"][own].tolist()
    if not times:
        return 0
    times.append(max(times[-1], last_end))
    busy.append(total)

    def at(time_ps: int) -> int:
        after = bisect_right(times, time_ps)
        if after == 0:
            return 0
        if after == len(times):
            return busy[-1]
        passed, length = time_ps - times[after - 1], times[after] - times[after - 1]
        return busy[after - 1] + (busy[after] - busy[after - 1]) * passed // length

    return min(max(0, at(seen.end_ps) - at(seen.start_ps)), seen.end_ps - seen.start_ps)


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


def _tenants(names: Sequence[str], tasks: Columns, calls: Columns, cut_off_ps: int) -> dict[str, dict[str, Any]]:
    """The same latencies for each tenant, by name."""
    tenant_of_call = tasks["tenant"][np.searchsorted(tasks["task"], calls["task"])]
    table: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        own_tasks = _where(tasks, tasks["tenant"] == number)
        own_calls = _where(calls, tenant_of_call == number)
        table[name] = {
            "tasks": len(own_tasks["task"]),
            "calls": len(own_calls["call"]),
            "tct_s": spread(tct_ps(own_tasks, cut_off_ps), PS_PER_S),
            "ttft_s": spread(ttft_ps(own_calls), PS_PER_S),
            "prompt_tokens": exact_sum(own_calls["prompt_tokens"]),
            "hit_tokens": exact_sum(own_calls["hit_tokens"]),
            "output_tokens": exact_sum(own_calls["output_tokens"]),
        }
    return table


def _where(columns: Columns, mask: NDArray[np.bool_]) -> Mapping[str, Ints]:
    return {name: column[mask] for name, column in columns.items()}


def figure_entry(label: str, result: Result, numbers: Mapping[str, Any]) -> dict[str, Any]:
    """What the figure shows of one run, small enough to hand to another process. `numbers` is its summary."""
    prompt = numbers["prompt_tokens"]
    seen = window(result)
    tasks, calls = measured(result, seen)
    shares = {
        name: ratio(numbers[f"{name}_tokens"], prompt) or 0.0
        for name in ("hit", "first", "regenerated_uncached", "regenerated_here", "regenerated_elsewhere")
    }
    return {
        "label": label,
        "seed": result.config.seed,
        "tct_s": curve(tct_ps(tasks, seen.cut_off_ps), PS_PER_S),
        "ttft_s": curve(ttft_ps(calls), PS_PER_S),
        "shares": shares,
    }
