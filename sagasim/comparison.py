"""Several systems on the same work, over seeds: runs, statistics, and what the figure shows.

compare(variants) -> {"metrics": rows, "slo": curves, ...}    what comparison.json holds
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.config import Config
from sagasim.experiment import Run, execute
from sagasim.metrics import figure_entry, measured, ratio, rounded, window
from sagasim.report import length_note, work_label
from sagasim.slo import MULTIPLIERS, attainment, bases, crowding, slowdowns
from sagasim.stats import LEVEL, adjusted, mean_interval, paired
from sagasim.work import Work, prepare

__all__ = ["METRICS", "Compared", "compare", "comparison", "comparison_entry"]

Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]

# Rows of a comparison: path in the summary, title, whether it is a share
METRICS = (
    ("tct_s.mean", "task completion, mean (s)", False),
    ("tct_s.p50", "task completion, p50 (s)", False),
    ("tct_s.p95", "task completion, p95 (s)", False),
    ("tct_s.p99", "task completion, p99 (s)", False),
    ("ttft_s.p50", "time to first token, p50 (s)", False),
    ("ttft_s.p99", "time to first token, p99 (s)", False),
    ("tpot_s.mean", "time per output token, mean (s)", False),
    ("queueing_s.mean", "queueing of a call, mean (s)", False),
    ("tasks_per_min", "tasks a minute", False),
    ("prefix_hit_rate", "prompt tokens found in the cache", True),
    ("regenerated_share", "prompt tokens prefilled again", True),
    ("gpu_busy_share", "time that replicas compute", True),
    ("kv_useful_share", "KV blocks in use or hit again", True),
    ("unfinished_tasks", "tasks cut off by the end of the run", False),
    ("preemptions", "preemptions", False),
)
_BINS = 5  # of tasks by size
_TIMES = 160  # points of memory use over time


@dataclass(slots=True)
class Compared:
    """What a comparison found: the content of comparison.json, the entries of its figure, base times by seed."""

    content: dict[str, Any] = field(default_factory=dict)
    entries: list[dict[str, Any]] = field(default_factory=list)
    bases: dict[int, dict[str, Ints]] = field(default_factory=dict)  # ps, by number of the task; see slo.bases


def compare(
    works: Mapping[int, Config],
    variants: Sequence[tuple[str, Config]],
    *,
    slo: bool | str = True,
    progress: Callable[[str], Progress] | None = None,
    finished: Callable[[str, Run, float], None] | None = None,
) -> Compared:
    """Run every variant on the work of its seed, both from `experiment.variants`, and compare them with the first.

    slo: measure the bases of service levels too ("idle": only the times alone). progress: makes the progress callback
    of what it names. finished: is told the name, the run and the seconds of preparing its work, once a run is done.
    """
    import time

    out = Compared()
    summaries: dict[str, list[dict[str, Any]]] = {}
    levels: dict[str, list[dict[str, Any]]] = {}
    work: Work | None = None
    base: dict[str, Any] = {}
    for name, config in variants:
        seconds = 0.0
        if work is None or work.config.seed != config.seed:
            started = time.perf_counter()
            work = prepare(works[config.seed], progress and progress("capacity"))
            seconds = time.perf_counter() - started
            told = progress and progress("service levels")
            base = out.bases[config.seed] = bases(work, told, expected=slo != "idle") if slo else {}
        run = execute(work.under(config), progress and progress(f"{name} seed {config.seed}"))
        if finished is not None:
            finished(f"{name}-seed{config.seed}", run, seconds)
        summaries.setdefault(name, []).append(run.summary)
        level = {which: slowdowns(run.result, times) for which, times in base.items()}
        levels.setdefault(name, []).append({which: attainment(slowdown) for which, slowdown in level.items()})
        out.entries.append(comparison_entry(name, run, level))
    assert work is not None
    out.content = {
        "work": work_label(work.config, run.summary["tasks"]),
        "window": _window_note([one for each in summaries.values() for one in each]),
        "length": length_note(run.summary),
        "presets": list(summaries),
        "seeds": sorted({config.seed for _, config in variants}),
        "resampled": run.result.config.resample and run.result.config.workload is None,
        "digests": {name: [one["digest"] for one in each] for name, each in summaries.items()},
        "metrics": comparison(summaries),
        "slo": _levels(levels),
        "tenants": _tenants(summaries),
        "notes": _notes(summaries),
    }
    if slo:
        out.content["crowding"] = crowding(run.result.config, _mean_context(run))
    return out


def _window_note(summaries: Sequence[Mapping[str, Any]]) -> str:
    """How many tasks were measured in a run, and how many of them had not ended; from the least to the most."""
    told = []
    for key, text in (("measured_tasks", "tasks measured"), ("unfinished_tasks", "of them cut off")):
        counts = [one[key] for one in summaries]
        span = f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
        told.append(f"{span} {text}")
    arrived = max(one["tasks"] for one in summaries)
    cut = any(one["unfinished_tasks"] for one in summaries)
    return f"{told[0]} of at most {arrived:,} a run" + (f", {told[1]}" if cut else "")


def _notes(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """What is true of every run, and what is of a system, in the run with the first seed, under its name."""
    everywhere = [one["notes"] for each in summaries.values() for one in each]
    common = {key: text for key, text in everywhere[0].items() if all(other.get(key) == text for other in everywhere)}
    out = dict(common)
    for name, each in summaries.items():
        out |= {f"{name}, {key}": text for key, text in each[0]["notes"].items() if key not in common}
    return out


def _mean_context(run: Run) -> int:
    calls = run.result.calls
    return int((calls["prompt_tokens"] + calls["output_tokens"] // 2).mean()) if len(calls["call"]) else 1


# ---- statistics


def comparison(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of metrics: for each system its values by seed, their mean, and how it differs from the first system.

    p: of the paired test, corrected for all the tests of the table together; significant: whether it is below LEVEL.
    """
    baseline, *others = summaries
    rows: list[dict[str, Any]] = []
    for path, title, share in METRICS:
        values = {name: [_at(one, path) for one in each] for name, each in summaries.items()}
        systems = {name: _system(own, values[baseline], name != baseline) for name, own in values.items()}
        rows.append({"metric": path, "title": title, "share": share, "by_preset": systems})
    cells = [row["by_preset"][name]["difference"] for row in rows for name in others]
    for cell, p in zip(cells, adjusted([cell["p_paired"] for cell in cells]), strict=True):
        cell["p"] = p
        cell["significant"] = None if p is None else p < LEVEL
    return rows


def _at(summary: Mapping[str, Any], path: str) -> float | None:
    value: Any = summary
    for key in path.split("."):
        value = value[key]
    return None if value is None else float(value)


def _system(own: Sequence[float | None], base: Sequence[float | None], other: bool) -> dict[str, Any]:
    """None stands for what some seed has no value of."""
    known = [value for value in own if value is not None]
    whole = len(known) == len(own)
    found: dict[str, Any] = {"values": list(own), **(mean_interval(known) if whole else {"mean": None})}
    if other:
        pairs = [(a, b) for a, b in zip(own, base, strict=True) if a is not None and b is not None]
        if len(pairs) == len(own):
            found["difference"] = paired([a for a, _ in pairs], [b for _, b in pairs])
            mean = found["difference"]["mean"]
            at = sum(b for _, b in pairs) / len(pairs)
            found["difference"]["relative"] = rounded(mean / at) if at else None
        else:
            found["difference"] = {"mean": None, "p_paired": None}
    return found


def _levels(levels: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Attainment over multipliers, with intervals over seeds, for each base and system."""
    out: dict[str, Any] = {}
    for which in next(iter(levels.values()))[0]:
        curves = {}
        for name, each in levels.items():
            points = zip(*(one[which] for one in each if which in one), strict=True)
            curves[name] = [mean_interval([p or 0.0 for p in point]) for point in points]
        out[which] = {"multipliers": list(MULTIPLIERS), "by_preset": curves}
    return out


def _tenants(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean and p99 completion time by tenant and system, averaged over seeds; empty for a single tenant."""
    names = sorted({tenant for each in summaries.values() for one in each for tenant in one.get("tenants", {})})
    out: dict[str, Any] = {}
    for tenant in names:
        out[tenant] = {}
        for name, each in summaries.items():
            own = [one["tenants"][tenant]["tct_s"] for one in each if tenant in one.get("tenants", {})]
            for key in ("mean", "p99"):
                known = [spread[key] for spread in own if spread[key] is not None]
                out[tenant].setdefault(name, {})[key] = rounded(sum(known) / len(known)) if known else None
    return out


# ---- what the figure shows


def comparison_entry(name: str, run: Run, level: Mapping[str, Any]) -> dict[str, Any]:
    """What a figure shows of one run. level: slowdowns of its tasks over the bases that were measured, if any."""
    entry = figure_entry(name, run.result, run.summary)
    entry["memory"] = _memory(run)
    if "idle" in level:
        entry["by_size"] = _by_size(run, level["idle"])
    return entry


def _by_size(run: Run, slowdown: Any) -> list[list[float]]:
    """[median output tokens, mean slowdown, p95 slowdown] of as many tasks each, by size; without those cut off."""
    tasks, _ = measured(run.result, window(run.result))
    known = np.isfinite(slowdown)
    sizes, own = tasks["output_tokens"][known], slowdown[known]
    order = np.argsort(sizes, kind="stable")
    parts = [part for part in np.array_split(order, _BINS) if len(part)]
    return [[float(np.median(sizes[p])), float(own[p].mean()), float(np.quantile(own[p], 0.95))] for p in parts]


def _memory(run: Run) -> dict[str, list[float]]:
    """Shares of all KV blocks held by running calls, and cached and idle, at equal steps of simulated time."""
    result = run.result
    seen = window(result)
    occupancy = result.occupancy
    blocks = int(result.replicas["num_blocks"].sum())
    start = int(result.tasks["arrival_ps"].min()) if len(result.tasks["task"]) else 0
    times = np.linspace(start, seen.cut_off_ps, _TIMES).astype(np.int64)
    held, cached = np.zeros(_TIMES, dtype=np.int64), np.zeros(_TIMES, dtype=np.int64)
    for number in result.replicas["replica"].tolist():
        own = np.flatnonzero(occupancy["replica"] == number)
        row = np.searchsorted(occupancy["time_ps"][own], times, side="right") - 1
        known = row >= 0
        held[known] += occupancy["held_blocks"][own][row[known]]
        cached[known] += occupancy["cached_blocks"][own][row[known]]
    return {
        "s": [round((t - start) / 1e12, 3) for t in times.tolist()],
        "held": [ratio(value, blocks) or 0.0 for value in held.tolist()],
        "cached": [ratio(value, blocks) or 0.0 for value in cached.tolist()],
    }
