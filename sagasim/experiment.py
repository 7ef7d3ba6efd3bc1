"""From a configuration to results: read or generate the tasks, simulate, measure; and the same for several presets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sagasim.arrivals import assign
from sagasim.capacity import backlog_config, capacity_config, capacity_per_min
from sagasim.config import PRESETS, Config, resolve
from sagasim.core import Task
from sagasim.errors import TraceError
from sagasim.hardware import load_model
from sagasim.metrics import rounded, summary
from sagasim.simulate import Result, calibration_of, simulate
from sagasim.trace import LengthReport, Trace, open_trace, over_length, take, trace_names
from sagasim.workloads import generate

__all__ = ["METRICS", "Run", "Work", "comparison", "execute", "prepare", "variants"]

Progress = Callable[[int, int], None]

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom; later ones from the expansion below.
_T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_Z95 = 1.959964

# Rows of a comparison: path in the summary, title, whether it is a share
METRICS = (
    ("tct_s.mean", "task completion, mean (s)", False),
    ("tct_s.p95", "task completion, p95 (s)", False),
    ("ttft_s.p50", "time to first token, p50 (s)", False),
    ("ttft_s.p99", "time to first token, p99 (s)", False),
    ("tpot_s.mean", "time per output token, mean (s)", False),
    ("queueing_s.mean", "queueing of a call, mean (s)", False),
    ("steady_tasks_per_min", "tasks a minute, between 20 % and 80 % done", False),
    ("prefix_hit_rate", "prompt tokens found in the cache", True),
    ("regenerated_share", "prompt tokens prefilled again", True),
    ("gpu_busy_share", "time that replicas compute", True),
    ("kv_useful_share", "KV blocks in use or hit again", True),
    ("preemptions", "preemptions", False),
)


@dataclass(frozen=True, slots=True)
class Work:
    """Tasks with their arrivals, the configuration that they complete, and what was filled, extended or dropped."""

    config: Config
    tasks: list[Task]
    notes: dict[str, str]

    def under(self, config: Config) -> Work:
        """The same tasks under another preset."""
        own = self.config
        same = replace(
            config,
            trace=own.trace,
            arrivals=own.arrivals,
            tasks=own.tasks,
            max_model_len=own.max_model_len,
            rate_per_min=own.rate_per_min,
        )
        return replace(self, config=same)


def prepare(config: Config, progress: Progress | None = None) -> Work:
    """Read or generate the tasks of a resolved configuration and let them arrive.

    Raises TraceError or ConfigError. A load is turned into a rate here, by a simulation of its own the first time.
    """
    source = _source(config)
    if source.path is not None and config.trace not in trace_names():
        config = replace(config, trace=str(source.path.resolve()))  # config.toml is read from any folder
    if config.load is not None and config.rate_per_min is None:
        config = replace(config, rate_per_min=rounded(config.load * _capacity(config, progress)))
    tasks, config, notes = _fitting(config, source)
    if config.arrivals == "auto":
        timed = all(task.arrival_ps is not None for task in tasks)
        config = replace(config, arrivals="recorded" if timed else "at-once")
    return Work(config, _arriving(tasks, config), notes)


def _capacity(config: Config, progress: Progress | None) -> float:
    fixed = capacity_config(config)
    source = _source(fixed)

    def backlog() -> tuple[Config, list[Task]]:
        sample, complete, _ = _fitting(fixed, source)
        wanted = backlog_config(fixed, complete, sample)
        tasks, complete, _ = _fitting(wanted, _source(wanted))
        return complete, tasks

    return capacity_per_min(fixed, source.sha256, backlog, progress)


def _arriving(tasks: list[Task], config: Config) -> list[Task]:
    """The tasks with their arrivals; those of a closed loop come as others end, in the order given."""
    if config.arrivals == "closed":
        return tasks
    rate = config.rate_per_min
    return list(assign(tasks, config.arrivals, rate_per_s=None if rate is None else rate / 60, seed=config.seed))


def _source(config: Config) -> Trace:
    if config.workload is not None:
        return generate(config.workload, config.tasks or 1, config.seed)
    name = config.trace or ""
    trace = open_trace(name)
    return open_trace(name, block_tokens=config.block_tokens) if trace.format == "agentic_mooncake" else trace


def _fitting(config: Config, source: Trace) -> tuple[list[Task], Config, dict[str, str]]:
    """As many tasks as asked for, those beyond the model's length treated as asked for."""
    report = LengthReport()
    stream = source.tasks(config.seed) if config.tasks is None else take(source, config.tasks, config.seed)
    limit = config.max_model_len or 0
    if config.over_length == "extend":  # counted against the model itself, also when the run is repeated
        limit = load_model(config.model).max_model_len
    tasks = list(over_length(stream, limit, config.over_length, report))  # type: ignore[arg-type]
    if not tasks:
        raise TraceError("no task is left", where=source.name, expected="tasks that fit, or over_length = extend")
    longest = max(task.max_tokens for task in tasks)
    config = replace(config, tasks=len(tasks) + report.dropped, max_model_len=max(config.max_model_len or 0, longest))
    notes = {f"filled {what}": text for what, text in source.filled.items()}
    notes["tasks"] = f"{source.name} ({source.format}), sha256 {source.sha256}"
    return tasks, config, {**notes, **_length_notes(report, limit, longest)}


def _length_notes(report: LengthReport, limit: int, longest: int) -> dict[str, str]:
    notes = {}
    if report.extended:
        text = f"{report.extended} tasks are longer than {limit:,} tokens; the model's length is taken as {longest:,}"
        notes["extended"] = text
    if report.truncated:
        notes["truncated"] = f"{report.truncated} tasks, by {report.calls_cut} calls beyond {limit:,} tokens"
    if report.dropped:
        notes["dropped"] = f"{report.dropped} tasks longer than {limit:,} tokens"
    return notes


@dataclass(frozen=True, slots=True)
class Run:
    """One execution: its log, its metrics, and how long everything took."""

    result: Result
    summary: dict[str, Any]
    timing: dict[str, Any]


def execute(work: Work, progress: Progress | None = None) -> Run:
    """Simulate and measure prepared work. timing: wall-clock facts, different each time."""
    started = time.perf_counter()
    result = simulate(work.config, work.tasks, progress=progress)
    simulated = time.perf_counter()
    result = replace(result, notes={"step times": _step_times(work.config), **work.notes, **result.notes})
    measured = summary(result)
    ended = time.perf_counter()
    simulating = simulated - started
    timing = {
        "simulating_s": simulating,
        "measuring_s": ended - simulated,
        "calls": measured["calls"],
        "calls_per_s": measured["calls"] / simulating if simulating > 0 else None,
        "steps": measured["steps"],
        "events": result.executed,
    }
    return Run(result, measured, timing)


def _step_times(config: Config) -> str:
    """Which parts of the time of a step are published, derived or measured: `published: linear, ...; derived: host`."""
    calibration = calibration_of(config)
    named = {name: part for name, part in calibration.items() if isinstance(part, dict) and name != "provenance"}
    terms = {term["name"]: term for key in ("token_terms", "sequence_terms") for term in calibration[key]}
    by_status: dict[str, list[str]] = {}
    for name, part in {**named, **terms}.items():
        by_status.setdefault(part.get("status", "of unknown origin"), []).append(name.replace("_", " "))
    return "; ".join(f"{status}: {', '.join(sorted(names))}" for status, names in sorted(by_status.items()))


def variants(layers: Sequence[Mapping[str, Any]], presets: Sequence[str], seeds: int) -> list[Config]:
    """A resolved configuration for each seed and preset.

    The layers override what the presets say; but from a layer that names a preset itself (the config.toml of a run),
    nothing that presets decide is taken.
    """
    base = resolve(*layers).seed
    decided = {"preset"}.union(*PRESETS.values())
    others = [
        {key: value for key, value in layer.items() if "preset" not in layer or key not in decided} for layer in layers
    ]
    return [
        resolve({"preset": preset}, *others, {"seed": seed}) for seed in range(base, base + seeds) for preset in presets
    ]


def comparison(summaries: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of metrics: for each preset the mean over seeds and the paired difference from the first preset."""
    baseline = next(iter(summaries))
    rows = []
    for path, title, share in METRICS:
        values = {preset: [_at(one, path) for one in each] for preset, each in summaries.items()}
        by_preset = {
            preset: {"values": own, "mean": _mean(own), "difference": _difference(own, values[baseline])}
            for preset, own in values.items()
        }
        rows.append({"metric": path, "title": title, "share": share, "by_preset": by_preset})
    return rows


def _at(measured: Mapping[str, Any], path: str) -> float | None:
    value: Any = measured
    for key in path.split("."):
        value = value[key]
    return None if value is None else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    """None if any seed has none."""
    known = [value for value in values if value is not None]
    return rounded(math.fsum(known) / len(known)) if known and len(known) == len(values) else None


def _difference(own: Sequence[float | None], other: Sequence[float | None]) -> dict[str, float | None]:
    """Mean of the differences of the same seeds, with its 95 % interval (Student's t) if there are several seeds.

    relative: the difference as a fraction of the other mean.
    """
    pairs = [a - b for a, b in zip(own, other, strict=True) if a is not None and b is not None]
    base = _mean(other)
    if not pairs or len(pairs) != len(own):
        return {"mean": None, "low": None, "high": None, "relative": None}
    mean = math.fsum(pairs) / len(pairs)
    low = high = None
    if len(pairs) > 1:
        variance = math.fsum((pair - mean) ** 2 for pair in pairs) / (len(pairs) - 1)
        half = _t95(len(pairs) - 1) * math.sqrt(variance / len(pairs))
        low, high = rounded(mean - half), rounded(mean + half)
    return {"mean": rounded(mean), "low": low, "high": high, "relative": rounded(mean / base) if base else None}


def _t95(freedom: int) -> float:
    """Student's t, 97.5 %; beyond the table by Fisher's expansion in 1 / freedom, good to 2e-4."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = _Z95
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3
