"""The page of SAGA's results: python -m sagasim.saga_page --sweeps DIR [--out docs]

Writes saga-results.md and figures/saga-*.png from the sweeps of docs/examples/saga-*.toml, whose folders lie in DIR as
saga-swe, saga-coding, saga-strategies, saga-hints and saga-fairness (make saga).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import optimize

from sagasim.errors import SagasimError
from sagasim.oracle.page import markdown
from sagasim.stats import mean_interval
from sagasim.sweeping.table import read_results
from sagasim.units import BLOCK_TOKENS
from sagasim.workloads import find

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["fit_bound", "main", "write_page"]

TEXT = Path(__file__).with_name("saga_page.md")  # what stands before the numbers
LOADS = ("at once", "load 0.5", "load 0.8", "load 0.95")
WORKS = {"saga-swe": "swe-bench, 500 tasks", "saga-coding": "coding-real, 200 sessions"}
# arXiv 2605.00528: task completion time of SWE-bench in s without a mechanism, with all of them 203.4
ABLATED = {
    "saga-no-affinity": 398.2,
    "saga-no-wa-lru": 312.8,
    "saga-no-ttl": 289.1,
    "saga-no-stealing": 267.3,
    "saga-no-prefetch": 241.6,
    "saga-no-afs": 218.7,
}
STRATEGIES = {"saga": 8.7, "saga-bfs": 12.4, "saga-dfs": 4.2}  # tasks a minute
WHOLE_S = 203.4
DELTA = 0.05
FITTED_LOAD = 0.8

Row = dict[str, Any]


def rows_of(folder: Path) -> list[Row]:
    """The results of a sweep; its points are told apart by `point`, the first words of their labels."""
    rows: list[Row] = read_results(folder).to_pylist()
    return rows


def by_seed(rows: Iterable[Row], metric: str, **keys: Any) -> dict[int, float]:
    """A metric by seed, of the points with these keys; without those that have none."""
    chosen = [row for row in rows if all(row.get(key) == value for key, value in keys.items())]
    return {row["seed"]: row[metric] for row in chosen if row.get(metric) is not None}


def change(own: Mapping[int, float], base: Mapping[int, float]) -> dict[str, float | None]:
    """Mean of own / base - 1 over the seeds, in per cent, with its 95 % interval."""
    return mean_interval([100 * (own[seed] / base[seed] - 1) for seed in sorted(own) if base.get(seed)])


def told(found: Mapping[str, float | None], unit: str = "") -> str:
    """`-3.1 [-4.0, -2.2]`, without interval for one seed."""
    mean, low, high = found["mean"], found.get("low"), found.get("high")
    if mean is None:
        return ""
    text = f"{mean:+.1f}{unit}"
    return text if low is None or high is None else f"{text} [{low:+.1f}, {high:+.1f}]"


def mean_of(values: Mapping[int, float], form: str = ",.1f") -> str:
    return format(sum(values.values()) / len(values), form) if values else ""


# ---- the comparison


def compared(rows: Sequence[Row]) -> list[str]:
    """Mean completion times by load and memory, and how much sooner or later SAGA is."""
    head = ["load, KV memory", "vllm-0.6 s", "vllm-0.15 s", "saga s", "saga %", "its p95 %", "its TTFT p95 %"]
    lines = [[*head, "saga-no-host %"]]
    for point, size in settings(rows):
        here = {"arrival": point, "num_gpu_blocks_override": size}

        def of(preset: str, metric: str = "tct_s.mean", here: dict[str, Any] = here) -> dict[int, float]:
            return by_seed(rows, metric, preset=preset, **here)

        changes = [told(change(of("saga", m), of("vllm-0.15", m))) for m in ("tct_s.mean", "tct_s.p95", "ttft_s.p95")]
        means = [mean_of(of(preset)) for preset in ("vllm-0.6", "vllm-0.15", "saga")]
        lines.append([f"{point}, {memory(size)}", *means, *changes, told(change(of("saga-no-host"), of("vllm-0.15")))])
    return markdown(lines)


def memory(blocks: int) -> str:
    return f"{(blocks - 1) * BLOCK_TOKENS / 1000:,.0f} K"


def settings(rows: Sequence[Row]) -> list[tuple[str, int]]:
    return [(point, size) for point in LOADS for size in _sizes(rows)]


def with_arrivals(rows: Sequence[Row]) -> list[Row]:
    """Each row with the name of its arrivals."""
    return [{**row, "arrival": "at once" if row.get("load") is None else f"load {row['load']:g}"} for row in rows]


def draw_compared(out: Path, works: Mapping[str, Sequence[Row]]) -> None:
    """One dot and interval per setting: SAGA's mean completion time against vllm-0.15's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(works), sharey=True, squeeze=False)[0]
    for axes, (name, rows) in zip(panels, works.items(), strict=True):
        _dots(axes, rows)
        axes.set_title(WORKS[name], fontsize=10)
        axes.set_xlabel("change of the mean task completion time (%)")
    figure.suptitle("saga against vllm-0.15: left of the line it is sooner (95 % intervals over seeds)", fontsize=11)
    figure.savefig(out, dpi=110)


def _dots(axes: Axes, rows: Sequence[Row]) -> None:
    chosen = settings(rows)
    for place, (point, size) in enumerate(reversed(chosen)):
        here = {"arrival": point, "num_gpu_blocks_override": size}
        found = change(
            by_seed(rows, "tct_s.mean", preset="saga", **here), by_seed(rows, "tct_s.mean", preset="vllm-0.15", **here)
        )
        mean, low, high = found["mean"], found.get("low"), found.get("high")
        if mean is None:
            continue
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color="#0072B2", linewidth=2)
        worse = low is not None and low > 0
        axes.plot(mean, place, "o", color="#D55E00" if worse else "#0072B2", markersize=6)
    axes.set_yticks(range(len(chosen)), [f"{point}, {memory(size)} tokens" for point, size in reversed(chosen)])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(axis="x", alpha=0.3)


# ---- mechanisms, hints


def ablations(rows: Sequence[Row]) -> list[str]:
    """Each mechanism left out, beside the paper's table; positive: later without it."""
    sizes = _sizes(rows)
    names = sorted({row["preset"] for row in rows if row["preset"].startswith("saga-no-")})
    base = {size: by_seed(rows, "tct_s.mean", preset="saga", num_gpu_blocks_override=size) for size in sizes}
    lines = [["", *(f"change %, {memory(size)}" for size in sizes), "paper %"]]
    lines.append(["saga", *(f"mean TCT {mean_of(base[size])} s" for size in sizes), f"{WHOLE_S} s"])
    for name in names:
        own = [by_seed(rows, "tct_s.mean", preset=name, num_gpu_blocks_override=size) for size in sizes]
        paper = f"{100 * (ABLATED[name] / WHOLE_S - 1):+.0f}" if name in ABLATED else ""
        lines.append([name, *(told(change(o, base[size])) for o, size in zip(own, sizes, strict=True)), paper])
    return markdown(lines)


def strategies(rows: Sequence[Row]) -> list[str]:
    """Throughput by strategy, beside the paper's."""
    lines = [["KV memory, strategy", "tasks/min", "against saga %", "paper %", "mean TCT s"]]
    for size in _sizes(rows):
        here = {"num_gpu_blocks_override": size}
        base = by_seed(rows, "steady_tasks_per_min", preset="saga", **here)
        for name in ("saga", "saga-bfs", "saga-dfs", "vllm-0.15", "throughput"):
            own = by_seed(rows, "steady_tasks_per_min", preset=name, **here)
            paper = f"{100 * (STRATEGIES[name] / STRATEGIES['saga'] - 1):+.0f}" if name in STRATEGIES else ""
            against = told(change(own, base)) if name != "saga" else ""
            tct = by_seed(rows, "tct_s.mean", preset=name, **here)
            lines.append([f"{memory(size)}, {name}", mean_of(own), against, paper, mean_of(tct)])
    return markdown(lines)


def _sizes(rows: Sequence[Row]) -> list[int]:
    return sorted({row["num_gpu_blocks_override"] for row in rows}, reverse=True)


def hints(rows: Sequence[Row]) -> list[str]:
    """What is predicted without hints, and what that costs."""
    head = ["work", "of the next steps predicted", "of these right", "TCT against fitted %", "perfect against fitted %"]
    lines = [head]
    for work in dict.fromkeys(row["label"] for row in rows):
        own = [row for row in rows if row["label"] == work]
        part = [by_seed(own, key, predict="aeg") for key in ("next_step_coverage", "next_step_accuracy")]
        shown = [mean_of({k: 100 * v for k, v in found.items()}, ".0f") for found in part]
        tct = {row["predict"]: by_seed(own, "tct_s.mean", predict=row["predict"]) for row in own}
        costs = [told(change(tct[word], tct["aeg:hints=fitted"])) for word in ("aeg", "aeg:hints=perfect")]
        lines.append([work, *(f"{text} %" if text else "none" for text in shown), *costs])
    lines.append(["paper (SWE-bench)", "", "87 %", "+15.6", ""])
    return markdown(lines)


# ---- fairness


def fit_bound(rho: Any, ratio: Any, deviation: Any) -> tuple[float, float, float]:
    """(c, a, b) of deviation = c * rho ** a * ratio ** b, by least squares of the logarithms; arrays of one length."""
    design = np.stack([np.ones_like(rho), np.log(rho), np.log(ratio)], axis=1)
    found = optimize.lsq_linear(design, np.log(deviation)).x
    return math.exp(found[0]), float(found[1]), float(found[2])


def fairness(rows: Sequence[Row]) -> list[str]:
    """The bound's form fitted at one load, and what it says of the others."""
    points = [_point(row) for row in rows if row.get("afs_deviation.mean")]
    at = {load: np.array([p[1:] for p in points if p[0] == load]) for load in sorted({p[0] for p in points})}
    c, a, b = fit_bound(*at[FITTED_LOAD].T)
    lines = [["load", "runs", "mean deviation", "predicted / measured, geometric mean", "90 % of runs within"]]
    for load, (rho, ratio, deviation) in ((load, found.T) for load, found in at.items()):
        logs = np.log(c * rho**a * ratio**b / deviation)
        within = float(np.exp(np.quantile(np.abs(logs), 0.9)))
        fitted = " (fitted)" if load == FITTED_LOAD else ""
        cells = [f"{len(rho)}", f"{deviation.mean():.3f}", f"{math.exp(logs.mean()):.2f}", f"a factor of {within:.2f}"]
        lines.append([f"{load:g}{fitted}", *cells])
    verdict = "agrees with" if abs(a - 1) < 0.25 and abs(b - 0.5) < 0.125 else "does not agree with"
    return [
        f"Deviation = {c:.3f} rho^{a:.2f} (log(N / delta) / n)^{b:.2f}, where the bound's form has exponents 1 "
        f"and 0.5: the measured scaling {verdict} it.",
        "",
        *markdown(lines),
    ]


def _point(row: Row) -> tuple[float, float, float, float]:
    """load, rho, log(N / delta) / n, deviation. rho: the largest tenant's demand over the mean one's."""
    found = find(row["workload"])
    options = {name: option.default for name, option in found.options.items()} | found.values
    counts = options["tenants"]
    demand = [rate * steps for rate, steps in zip(options["tasks_per_min"], options["mean_steps"], strict=True)]
    mean = sum(d * n for d, n in zip(demand, counts, strict=True)) / sum(counts)
    ratio = math.log(sum(counts) / DELTA) / (row["tasks"] / sum(counts))
    return row["load"], max(demand) / mean, ratio, row["afs_deviation.mean"]


# ---- the page


def write_page(sweeps: Path, out: Path) -> None:
    """Write OUT/saga-results.md and its figures."""
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    works = {name: with_arrivals(rows_of(sweeps / name)) for name in WORKS}
    draw_compared(figures / "saga-compared.png", works)
    strategy = rows_of(sweeps / "saga-strategies")
    parts = {
        "compared_swe": compared(works["saga-swe"]),
        "compared_coding": compared(works["saga-coding"]),
        "ablations": ablations(strategy),
        "strategies": strategies(strategy),
        "hints": hints(rows_of(sweeps / "saga-hints")),
        "fairness": fairness(rows_of(sweeps / "saga-fairness")),
    }
    text = TEXT.read_text(encoding="utf-8")
    for name, lines in parts.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines))
    (out / "saga-results.md").write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m sagasim.saga_page", description="Write the page of SAGA's results."
    )
    parser.add_argument("--sweeps", required=True, type=Path, help="folder with the folders of the sweeps")
    parser.add_argument("--out", default=Path("docs"), type=Path, help="folder of saga-results.md and figures/")
    args = parser.parse_args(arguments)
    try:
        write_page(args.sweeps, args.out)
    except SagasimError as error:
        sys.stderr.write(f"saga_page: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
