"""What a sweep or a comparison holds: settings with their metrics by seed.

A setting is a system (preset, policies, engine: what is compared) in a scenario (work and cluster: what it meets).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sagasim.comparison import METRICS
from sagasim.config import KINDS
from sagasim.errors import ConfigError, nearest
from sagasim.experiment import OF_THE_WORK
from sagasim.stats import mean_interval

__all__ = ["KEY", "MAIN", "MEMORY", "Column", "Interval", "Runs", "Setting", "axis_title", "column", "short"]

BASE = "vllm-0.15"  # of a sweep, if it is there
MAIN = METRICS[0][0]  # mean completion time: what is asked for first
MEMORY = ("gpu_memory_utilization", "num_gpu_blocks_override", "host_memory_gb")
_CLUSTER = {"gpus", "gpu", "model", "tp", "dtype", "calibration", "failures", *MEMORY[:2]}
_WORK = OF_THE_WORK - {"preset"}
_PRESSURE = {"arrivals", "rate_per_min", "load", "concurrency", "arrival_cv", "diurnal_period_s", "diurnal_amplitude"}
Interval = Mapping[str, float | None]  # mean, low and high
_TITLES = {
    "tct_s.mean": "task completion, mean (s)",
    "tct_s.p95": "task completion, p95 (s)",
    "tct_s.p99": "task completion, p99 (s)",
    "ttft_s.p95": "first token, p95 (s)",
    "tasks_per_min": "tasks a minute",
    "prefix_hit_rate": "cache hits (% of prompt tokens)",
    "regenerated_share": "prefilled again (% of prompt tokens)",
}
_BETTER_HIGH = ("tasks_per_min", "steady_tasks_per_min", "output_tokens_per_s", "prefix_hit_rate")
_BETTER_LOW = ("tct_s", "ttft_s", "tpot_s", "queueing_s", "call_s", "regenerated_share", "unfinished_tasks")
KEY = tuple(_TITLES)  # metrics of the tables


@dataclass(frozen=True, slots=True)
class Column:
    """A metric: its path, a title with its unit, whether it is a share, shown in percent.

    better: -1 where less of it is better, 1 where more is, 0 where neither can be said.
    """

    path: str
    title: str
    share: bool
    better: int


def column(path: str) -> Column:
    """The metric of a path of summary.json."""
    share = path.endswith(("_rate", "_share"))
    title = _TITLES.get(path) or next((title for name, title, _ in METRICS if name == path), path)
    low = path.partition(".")[0] in (*_BETTER_LOW, "preemptions")
    better = 1 if path in _BETTER_HIGH else -1 if low else 0
    return Column(path, title + (" (%)" if share and "%" not in title else ""), share, better)


@dataclass(frozen=True, slots=True)
class Setting:
    """One combination with all its seeds.

    label: the name that it was given, if any. values: of every axis; said: the axes that its name tells.
    place: where it stands in the file of the sweep. by_seed: metrics, by seed and path; None where a run has no value.
    """

    label: str | None
    values: Mapping[str, Any]
    said: Sequence[str]
    place: int
    by_seed: Mapping[int, Mapping[str, float | None]]
    _intervals: dict[str, Interval | None] = field(default_factory=dict, repr=False, compare=False)

    def name(self, axes: Sequence[str]) -> str:
        """The label, and the axes that its name tells, of those given."""
        parts = [self.label] if self.label is not None else []
        return " ".join(parts + [told(axis, self.values[axis]) for axis in axes if axis in self.said])

    def known(self, path: str) -> list[float]:
        """Values of a metric by seed, those that there are."""
        return [value for seed in sorted(self.by_seed) if (value := self.by_seed[seed].get(path)) is not None]

    def interval(self, path: str) -> Interval | None:
        """Mean of a metric over seeds, with its interval; None where no run has a value. Computed once."""
        if path not in self._intervals:
            known = self.known(path)
            self._intervals[path] = mean_interval(known) if known else None
        return self._intervals[path]


def told(axis: str, value: Any) -> str:
    """A value of an axis, with its key unless it speaks for itself."""
    return short(value) if axis == "preset" else f"{axis}={short(value)}"


def short(value: Any) -> str:
    """A value in few letters: of a path its last part."""
    if isinstance(value, str):
        return value.rsplit("/", 1)[-1]
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Runs:
    """A sweep or a comparison. axes: the keys that vary, seeds apart; preset: what a system is called that has no name.

    facts: what was run, as names and texts; notes: what was assumed; content: of comparison.json, if it is one.
    entries: what figures show of each run, where its log is there.
    """

    kind: str
    title: str
    axes: Sequence[str]
    preset: str
    settings: Sequence[Setting]
    facts: Sequence[tuple[str, str]]
    notes: Mapping[str, str]
    content: Mapping[str, Any] | None = None
    entries: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({seed for setting in self.settings for seed in setting.by_seed})

    @cached_property
    def scenario_axes(self) -> list[str]:
        """The axes of what systems meet; the others are their own. The first of these that leaves enough to compare:

        all that every setting says, where there are presets to compare; work and cluster; the work alone.
        """
        said = {axis for axis in self.axes if all(axis in setting.said for setting in self.settings)}
        choices = [_WORK | _CLUSTER, _WORK]
        if "preset" in self.axes:
            choices.insert(0, _WORK | _CLUSTER | said - {"preset"})
        for keys in choices:
            axes = [axis for axis in self.axes if axis in keys]
            met = Counter(_meets(setting, axes) for setting in self.settings)
            if 2 * sum(count for count in met.values() if count > 1) >= len(self.settings):
                return axes
        return [axis for axis in self.axes if axis in choices[0]]

    @cached_property
    def numeric_axes(self) -> list[str]:
        """The axes with several numbers."""
        found = [axis for axis in self.axes if KINDS[axis] in (int, float)]
        return [axis for axis in found if len({s.values[axis] for s in self.settings} - {None}) > 1]

    def system(self, setting: Setting) -> str:
        return setting.name([axis for axis in self.axes if axis not in self.scenario_axes]) or self.preset

    def scenario(self, setting: Setting) -> str:
        """Work and cluster in words; empty where they do not vary."""
        return _meets(setting, self.scenario_axes)

    def work(self, setting: Setting) -> str:
        """What is served, in words, but not how much of it arrives: throughput may be compared within it."""
        return _meets(setting, [axis for axis in self.axes if axis in _WORK and axis not in _PRESSURE])

    @cached_property
    def scenarios(self) -> dict[str, dict[str, Setting]]:
        """The settings by scenario and system."""
        found: dict[str, dict[str, Setting]] = {}
        for setting in self.settings:
            found.setdefault(self.scenario(setting), {})[self.system(setting)] = setting
        return found

    @cached_property
    def systems(self) -> list[str]:
        """Names of systems, in the order of the file."""
        return list(dict.fromkeys(self.system(one) for one in sorted(self.settings, key=lambda one: one.place)))

    def base(self, wanted: str | None) -> str:
        """The system that the others are compared with. Raises ConfigError if there is none of that name."""
        if wanted is not None and wanted not in self.systems:
            raise ConfigError(f"no system {wanted!r}", where="--base", expected=nearest(wanted, self.systems))
        return wanted or (BASE if self.kind == "sweep" and BASE in self.systems else self.systems[0])

    def metric(self, wanted: str | None) -> Column:
        """The metric that figures show. Raises ConfigError if there is none of that name."""
        paths = dict.fromkeys(path for s in self.settings for row in s.by_seed.values() for path in row)
        if wanted is not None and wanted not in paths:
            raise ConfigError(f"no metric {wanted!r}", where="--metric", expected=nearest(wanted, paths))
        return column(wanted or MAIN)

    def columns(self, paths: Sequence[str]) -> list[Column]:
        """Of these metrics those that some setting has a value of."""
        return [column(path) for path in paths if any(setting.known(path) for setting in self.settings)]


def _meets(setting: Setting, axes: Sequence[str]) -> str:
    """The values of axes, whether or not the name of the setting tells them."""
    return " ".join(told(axis, setting.values[axis]) for axis in axes if setting.values[axis] is not None)


def axis_title(axis: str) -> str:
    """An axis of a chart, with its unit where it has one."""
    return {
        "concurrency": "tasks at a time (concurrency)",
        "rate_per_min": "tasks that arrive in a minute (rate)",
        "load": "load (fraction of capacity)",
        "gpus": "GPUs",
        "gpu_memory_utilization": "part of GPU memory used (gpu_memory_utilization)",
        "num_gpu_blocks_override": "KV blocks a replica (num_gpu_blocks_override)",
        "host_memory_gb": "host memory of a node (GiB)",
    }.get(axis, axis)
