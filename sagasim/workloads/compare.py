"""Generated against recorded or published: the numbers of docs/workloads.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sagasim.core import Task
from sagasim.fill import LATENCY_MS, LLM_S_PER_OUTPUT_TOKEN, latency_ps
from sagasim.rng import Stream
from sagasim.units import PS_PER_S
from sagasim.workloads import generate
from sagasim.workloads.measure import Series, distance, main_calls, measure
from sagasim.workloads.react import TOOL_NAMES
from sagasim.workloads.tables import load_fit

__all__ = [
    "QUANTILES",
    "Comparison",
    "Row",
    "compare_browser",
    "compare_fit",
    "compare_latencies",
    "compare_published",
    "held_out",
]

QUANTILES = (0.05, 0.5, 0.95, 0.99)
KINDS = {"coding-real": "sessions", "tool-calling": "sessions", "chat": "sessions", "multi-agent": "multi-agent"}
PS_PER_MS = PS_PER_S // 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One quantity: what is stated, what is generated, how far they are apart, and curves for the figure.

    apart: the Kolmogorov-Smirnov distance where the distribution is known, else the largest relative difference.
    """

    name: str
    stated: Sequence[float | None]
    generated: Sequence[float | None]
    apart: float
    stated_curve: Series | None = None  # quantiles at equal steps of the probability
    generated_curve: Series | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All quantities of a workload, worst first. columns: heads of stated and generated."""

    workload: str
    measure: str  # what `apart` is
    columns: tuple[str, ...]
    tasks: int  # generated ones
    rows: list[Row] = field(default_factory=list)

    @property
    def worst(self) -> Row:
        return self.rows[0]


def _sorted(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (-row.apart, row.name))


def compare_fit(workload: str, tasks: int, seed: int = 1) -> Comparison:
    """A workload that is fitted to recorded tasks against the quantiles of these, which its fit holds."""
    recorded: Mapping[str, Any] = load_fit(workload, KINDS[workload])["measured"]
    generated = measure(generate(workload, tasks, seed).tasks())
    timeless = "gap_s" not in load_fit(workload, KINDS[workload]).get("step", {"gap_s": None})
    rows = []
    for name, row in recorded.items():
        values = generated[name]
        if len(values) and not (timeless and name.startswith("gap")):
            stated = [row[key] for key in ("p5", "p50", "p95", "p99", "mean")]
            drawn = [*np.quantile(values, QUANTILES).tolist(), float(values.mean())]
            curve = np.array(row["quantiles"])
            own = np.quantile(values, np.linspace(0, 1, len(curve)))
            rows.append(Row(name, stated, drawn, _apart(curve, values), curve, own))
    return Comparison(workload, "KS", ("p5", "p50", "p95", "p99", "mean"), tasks, _sorted(rows))


def _apart(quantiles: Series, values: Series) -> float:
    """Kolmogorov-Smirnov distance of a sample from a distribution of which quantiles at equal steps are known.

    At these quantiles only, where both distribution functions are known: equal values count as any of their ranks.
    """
    ordered = np.sort(values)
    steps = np.linspace(0, 1, len(quantiles))
    below = np.searchsorted(ordered, quantiles, "left") / len(ordered)
    upto = np.searchsorted(ordered, quantiles, "right") / len(ordered)
    return float(np.maximum(np.maximum(below - steps, steps - upto), 0).max())


def _relative(stated: Sequence[float | None], drawn: Sequence[float | None]) -> float:
    pairs = zip(stated, drawn, strict=True)
    return max((abs(d - s) / abs(s) for s, d in pairs if s and d is not None), default=0.0)


def compare_browser(tasks: int, seed: int = 1) -> list[Comparison]:
    """Browser agents against their published quantiles."""
    fit = load_fit("browser-real", "browser")
    drawn = list(generate("browser-real", tasks, seed).tasks())
    found = []
    for name, published in fit["published"].items():
        own = [task for task in drawn if task.agent.endswith(name)]
        series = _browser_series(own)
        rows = []
        for key, row in published.items():
            stated = [row[part] for part in ("p5", "p50", "p95", "p99", "mean")]
            values = series[key]
            generated = [*np.quantile(values, QUANTILES).tolist(), float(values.mean())]
            apart = _relative(stated, generated)
            known = np.array(stated[:4], dtype=np.float64)
            rows.append(Row(key, stated, generated, apart, known, np.quantile(values, np.linspace(0, 1, 51))))
        columns = ("p5", "p50", "p95", "p99", "mean")
        found.append(Comparison(f"browser-real, {name}", "largest difference", columns, len(own), _sorted(rows)))
    return found


def _browser_series(tasks: Sequence[Task]) -> dict[str, Series]:
    """What is published of browser agents; a step takes what its browser takes and 10 ms per output token."""
    series = measure(tasks)
    times = [[call.tool_ps / PS_PER_S + LLM_S_PER_OUTPUT_TOKEN * call.output_tokens for call in t.calls] for t in tasks]
    series["cycle_s"] = np.array([second for of in times for second in of[:-1]])
    series["task_wall_s"] = np.array(
        [t.calls[0].delay_ps / PS_PER_S + sum(of) for t, of in zip(tasks, times, strict=True)]
    )
    series["final_tokens"] = np.array([task.calls[-1].prompt_tokens for task in tasks], dtype=np.float64)
    return series


def compare_published(workload: str, tasks: int, seed: int = 1) -> list[Comparison]:
    """swe-bench, webarena or multi-tenant against what the SAGA paper and its artifact state."""
    drawn = list(generate(workload, tasks, seed).tasks())
    if workload != "multi-tenant":
        return [_published(workload, drawn, _STATED[workload], _MIX[workload])]
    kinds = ("heavy", "medium", "light")
    found = [
        _published(f"multi-tenant, {kind}", [t for t in drawn if t.tenant.startswith(kind)], _STATED[kind], _MIX[kind])
        for kind in kinds
    ]
    shares = [sum(t.tenant.startswith(kind) for t in drawn) / len(drawn) for kind in kinds]
    weights = [48 / 92, 32 / 92, 12 / 92]
    rows = [
        Row(f"share of {kind} tasks", [w], [s], _relative([w], [s]))
        for kind, w, s in zip(kinds, weights, shares, strict=True)
    ]
    found.append(Comparison("multi-tenant, tasks", "largest difference", ("value",), len(drawn), _sorted(rows)))
    return found


# mean and largest number of steps, smallest and largest first prompt and output, mean observation; arXiv 2605.00528
_STATED: dict[str, tuple[float, int | None, tuple[int, int], tuple[int, int], float]] = {
    "swe-bench": (37, 150, (2000, 4000), (100, 500), 350),
    "webarena": (18, 80, (4000, 8000), (50, 200), 800),
    "heavy": (100, None, (3000, 5000), (200, 600), 400),
    "medium": (30, None, (2000, 4000), (100, 400), 400),
    "light": (10, None, (1500, 3000), (50, 200), 400),
}
_HALVES = (0.5, 0.0, 0.5, 0.0)
_MIX: dict[str, tuple[float, float, float, float]] = {
    "swe-bench": (0.45, 0.40, 0.10, 0.05),
    "webarena": (0.05, 0.15, 0.75, 0.05),
    **dict.fromkeys(("heavy", "medium", "light"), _HALVES),
}


def _published(
    name: str,
    tasks: Sequence[Task],
    stated: tuple[float, int | None, tuple[int, int], tuple[int, int], float],
    mix: tuple[float, float, float, float],
) -> Comparison:
    mean_steps, most, prompts, outputs, observed = stated
    calls = [main_calls(task) for task in tasks]
    steps = np.array([len(of) for of in calls], dtype=np.float64)
    first = np.array([of[0].prompt_tokens for of in calls], dtype=np.float64)
    output = np.array([call.output_tokens for of in calls for call in of], dtype=np.float64)
    fresh = np.array([call.new_tokens for of in calls for call in of[1:]], dtype=np.float64)
    tools = [tool for of in calls for call in of for tool in call.tools]
    pairs: list[tuple[str, Sequence[float | None], Sequence[float | None]]] = [
        ("steps: mean, largest", (mean_steps, most), (float(steps.mean()), float(steps.max()))),
        ("first prompt (tokens): smallest, largest", prompts, (float(first.min()), float(first.max()))),
        ("output (tokens): smallest, largest", outputs, (float(output.min()), float(output.max()))),
        ("observation (tokens): mean", (observed,), (float(fresh.mean()),)),
    ]
    for kind, weight in zip(TOOL_NAMES, mix, strict=True):
        own = sum(tool.name == kind for tool in tools)
        if own:
            pairs.append((f"{kind}: share of tools", (weight,), (own / len(tools),)))
    rows = [Row(what, said, drawn, _relative(said, drawn)) for what, said, drawn in pairs]
    return Comparison(name, "largest difference", ("values",), len(tasks), _sorted(rows))


def compare_latencies(draws: int) -> Comparison:
    """The tools of these three workloads, each drawn often: a P99 of few draws says little."""
    rows = []
    for kind, stated in LATENCY_MS.items():
        stream = Stream(1, "latencies", kind)
        drawn = np.array([latency_ps(stream, stated) for _ in range(draws)]) / PS_PER_MS
        found = np.quantile(drawn, (0.5, 0.95, 0.99)).tolist()
        curve = np.quantile(drawn, np.linspace(0, 1, 501))
        rows.append(Row(f"{kind} tool (ms)", stated, found, _relative(stated, found), None, curve))
    return Comparison("tools of the three", "largest difference", ("P50", "P95", "P99"), draws, _sorted(rows))


def held_out(tasks: Sequence[Task], aside: Sequence[Task], generated: Sequence[Task]) -> list[tuple[str, float, float]]:
    """Metric, distance of generated tasks from those kept aside, distance of the recorded ones fitted to from them."""
    one, other, drawn = measure(tasks), measure(aside), measure(generated)
    found = [(name, distance(drawn[name], other[name]), distance(one[name], other[name])) for name in one]
    return sorted(found, key=lambda row: -row[1])
