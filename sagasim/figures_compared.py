"""The figure of a comparison: eight panels at most, one colour for each system."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim.figures import (
    LINES,
    Entry,
    by_label,
    completion_panel,
    finish,
    log_axis,
    tail_panel,
    tokens_panel,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "draw_compared",
    "lay_out_compared",
    "levels_panel",
    "memory_panel",
    "size_panel",
    "tenant_panel",
]

Groups = Mapping[str, Sequence[Entry]]
_MOST_TENANTS = 12


def draw_compared(out: Path, title: str, entries: Sequence[Entry], note: str, compared: Mapping[str, Any]) -> None:
    """Draw a comparison as a PNG; `compared` is its content, as in comparison.json."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=100)
    FigureCanvasAgg(figure)
    lay_out_compared(figure, title, entries, note, compared)
    figure.savefig(out, metadata={"Software": None}, pil_kwargs={"compress_level": 3})


def lay_out_compared(
    figure: Figure, title: str, entries: Sequence[Entry], note: str, compared: Mapping[str, Any]
) -> None:
    """The same on a figure that is empty, saved nowhere."""
    groups = by_label(entries)
    tenants = compared["tenants"]
    bars = max(1.5 + 0.42 * len(groups), 0.9 + 0.25 * min(len(tenants), _MOST_TENANTS) * len(groups) if tenants else 0)
    height = 7.6 + bars
    figure.set_size_inches(16, height)
    grid = figure.add_gridspec(
        3,
        3,
        height_ratios=[3, 3, bars],
        left=0.055,
        right=0.985,
        top=1 - 0.95 / height,
        bottom=1.0 / height,
        hspace=0.42,
        wspace=0.24,
    )
    figure.suptitle(title, x=0.012, y=1 - 0.12 / height, ha="left", va="top", fontsize=14, fontweight="bold")
    figure.text(0.012, 1 - 0.55 / height, note, ha="left", va="center", fontsize=10, color="#444444")
    completion_panel(figure.add_subplot(grid[0, 0]), groups)
    tail_panel(figure.add_subplot(grid[0, 1]), groups)
    memory_panel(figure.add_subplot(grid[0, 2]), groups)
    levels_panel(figure.add_subplot(grid[1, 0]), compared["slo"], "expected", groups)
    levels_panel(figure.add_subplot(grid[1, 1]), compared["slo"], "idle", groups)
    size_panel(figure.add_subplot(grid[1, 2]), groups)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.55 / bars), "ncols": 5, "fontsize": 9, "frameon": False}
    tokens_panel(figure.add_subplot(grid[2, :2] if tenants else grid[2, :]), groups, below)
    if tenants:
        tenant_panel(figure.add_subplot(grid[2, 2]), tenants, groups)


def _colours(groups: Groups) -> dict[str, str]:
    return dict(zip(groups, LINES * len(groups), strict=False))


def memory_panel(axes: Axes, groups: Groups) -> None:
    """Of the first seed only: runs of other seeds last differently."""
    for name, colour in _colours(groups).items():
        memory = groups[name][0]["memory"]
        held = [100 * share for share in memory["held"]]
        full = [100 * (a + b) for a, b in zip(memory["held"], memory["cached"], strict=True)]
        minutes = [second / 60 for second in memory["s"]]
        axes.plot(minutes, held, color=colour, linewidth=2, label=f"{name}: held by running calls")
        axes.plot(minutes, full, color=colour, linewidth=1.2, linestyle=":", label=f"{name}: and cached")
    axes.set_title("KV memory over time (all replicas, first seed)", fontsize=10, loc="left")
    axes.set_xlabel("simulated time (min)")
    axes.set_ylabel("KV blocks (%)")
    axes.set_ylim(0, 104)
    axes.set_yticks([0, 20, 40, 60, 80, 100])
    finish(axes)


def levels_panel(axes: Axes, slo: Mapping[str, Any], which: str, groups: Groups) -> None:
    titles = {
        "expected": "Tasks within m x their expected time (at half load)",
        "idle": "Tasks within m x their time alone (idle cluster)",
    }
    axes.set_title(titles[which], fontsize=10, loc="left")
    if which not in slo:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color="#777777", transform=axes.transAxes)
        return
    multipliers = slo[which]["multipliers"]
    for name, colour in _colours(groups).items():
        curve = slo[which]["by_preset"][name]
        axes.plot(multipliers, [100 * p["mean"] for p in curve], color=colour, marker="o", markersize=4, label=name)
        if all(p["low"] is not None for p in curve):
            low = [100 * max(p["low"], 0.0) for p in curve]
            high = [100 * min(p["high"], 1.0) for p in curve]
            axes.fill_between(multipliers, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.set_xscale("log")
    ticks = [m for m in multipliers if m != 2.5]
    axes.set_xticks(ticks, [f"{m:g}" for m in ticks])
    axes.set_xlabel("multiplier m")
    axes.set_ylabel("tasks (%)")
    axes.set_ylim(0, 102)
    finish(axes)


def size_panel(axes: Axes, groups: Groups) -> None:
    axes.set_title("Slowdown by size of the task (lower is better)", fontsize=10, loc="left")
    if not all("by_size" in entry for entries in groups.values() for entry in entries):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color="#777777", transform=axes.transAxes)
        return
    for name, colour in _colours(groups).items():
        runs = [entry["by_size"] for entry in groups[name] if entry["by_size"]]
        bins = min((len(run) for run in runs), default=0)
        points = [[sum(run[b][i] for run in runs) / len(runs) for i in range(3)] for b in range(bins)]
        sizes = [point[0] for point in points]
        axes.plot(sizes, [p[1] for p in points], color=colour, marker="o", markersize=4, label=f"{name}: mean")
        axes.plot(sizes, [p[2] for p in points], color=colour, linewidth=1.2, linestyle=":", label=f"{name}: p95")
    axes.set_xlabel("output tokens of the task (median of each fifth of the tasks)")
    axes.set_ylabel("completion time / time alone")
    log_axis(axes)
    axes.set_ylim(bottom=0)
    finish(axes)


def tenant_panel(axes: Axes, tenants: Mapping[str, Any], groups: Groups) -> None:
    shown = list(tenants)[:_MOST_TENANTS][::-1]
    width = 0.8 / len(groups)
    for i, (name, colour) in enumerate(_colours(groups).items()):
        rows = [row + width * ((len(groups) - 1) / 2 - i) for row in range(len(shown))]
        means = [tenants[tenant].get(name, {}).get("mean") or 0.0 for tenant in shown]
        axes.barh(rows, means, height=width, color=colour, label=name)
    left_out = len(tenants) - len(shown)
    text = f" (first {_MOST_TENANTS} of {len(tenants)})" if left_out else ""
    axes.set_title(f"Mean task completion by tenant{text}", fontsize=10, loc="left")
    axes.set_yticks(range(len(shown)), [name if len(name) < 22 else name[:20] + "…" for name in shown])
    axes.set_xlabel("task completion time (s)")
    finish(axes)
