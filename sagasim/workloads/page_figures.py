"""The figures of docs/workloads.md: distribution functions, generated beside recorded or published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sagasim.workloads.compare import QUANTILES, Comparison, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_fit", "draw_latencies"]

STATED, GENERATED = "#000000", "#D55E00"
COLUMNS = 4
TITLES = {
    "steps": "calls of a task",
    "first_input_tokens": "first prompt (tokens)",
    "prompt_tokens": "prompt of a call (tokens)",
    "output_tokens": "output of a call (tokens)",
    "growth_tokens": "growth of the prompt (tokens)",
    "growth_after_tool_tokens": "growth after a tool (tokens)",
    "growth_after_user_tokens": "growth after a user (tokens)",
    "gap_after_tool_s": "gap after a tool (s)",
    "gap_after_user_s": "gap after a user (s)",
    "prefix_share": "share of the prompt that repeats",
    "peak_tokens": "longest prompt of a task (tokens)",
    "final_tokens": "last prompt of a task (tokens)",
    "cycle_s": "time of a step (s)",
    "task_wall_s": "time of a task (s)",
}
LINEAR = {"prefix_share"}


def draw_fit(out: Path, title: str, comparisons: Sequence[Comparison], stated: str) -> None:
    """One row of panels for four quantities of each comparison; stated: what the black line or points are."""
    panels = [(comparison, row) for comparison in comparisons for row in _ordered(comparison)]
    _draw(out, title, [(_heading(c, r, len(comparisons)), r, _unit(r)) for c, r in panels], stated, QUANTILES)


def draw_latencies(out: Path, title: str, comparison: Comparison) -> None:
    """Tool latencies: the published quantiles as points on the generated distribution function."""
    panels = [(_heading(comparison, row, 1), row, row.name) for row in sorted(comparison.rows, key=lambda r: r.name)]
    _draw(out, title, panels, "published P50, P95, P99", (0.5, 0.95, 0.99))


def _ordered(comparison: Comparison) -> list[Row]:
    order = list(TITLES)
    rows = [row for row in comparison.rows if row.generated_curve is not None]
    if any(row.name == "growth_after_tool_tokens" for row in rows) ^ any("growth_after_user" in r.name for r in rows):
        rows = [row for row in rows if not row.name.startswith("growth_after")]  # the same as all growth
    return sorted(rows, key=lambda row: order.index(row.name))


def _heading(comparison: Comparison, row: Row, many: int) -> str:
    apart = f"KS {row.apart:.3f}" if comparison.measure == "KS" else f"off by {100 * row.apart:.0f} % at most"
    return f"{comparison.workload.split(', ')[-1]}: {apart}" if many > 1 else apart


def _unit(row: Row) -> str:
    return TITLES.get(row.name, row.name)


def _draw(
    out: Path, title: str, panels: Sequence[tuple[str, Row, str]], stated: str, probabilities: Sequence[float]
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    rows = math.ceil(len(panels) / COLUMNS)
    figure = Figure(figsize=(12, 0.9 + 2.5 * rows), dpi=100)
    FigureCanvasAgg(figure)
    height = 0.9 + 2.5 * rows
    grid = figure.add_gridspec(
        rows, COLUMNS, left=0.055, right=0.985, top=1 - 0.95 / height, bottom=0.55 / height, hspace=0.62, wspace=0.28
    )
    figure.suptitle(title, x=0.012, y=1 - 0.12 / height, ha="left", va="top", fontsize=12, fontweight="bold")
    for place, (heading, row, unit) in enumerate(panels):
        axes = figure.add_subplot(grid[place // COLUMNS, place % COLUMNS])
        _panel(axes, row, probabilities)
        axes.set_title(heading, fontsize=9.5, loc="left")
        axes.set_xlabel(unit, fontsize=9)
        axes.set_ylabel("values below (%)" if place % COLUMNS == 0 else "", fontsize=9)
    points = panels[0][1].stated_curve is None or len(panels[0][1].stated_curve) <= len(QUANTILES)
    handles = [
        Line2D([], [], color=GENERATED, linewidth=2, label="generated"),
        Line2D([], [], color=STATED, linewidth=0 if points else 1.3, marker="o" if points else "", label=stated),
    ]
    figure.legend(
        handles=handles,
        loc="upper right",
        ncols=2,
        fontsize=9.5,
        frameon=False,
        bbox_to_anchor=(0.99, 1 - 0.05 / height),
    )
    figure.savefig(out, metadata={"Software": None})


def _panel(axes: Axes, row: Row, probabilities: Sequence[float]) -> None:
    drawn, stated = row.generated_curve, row.stated_curve
    if drawn is None:
        return
    axes.plot(drawn, np.linspace(0, 100, len(drawn)), color=GENERATED, linewidth=2)
    if stated is not None and len(stated) > len(QUANTILES):
        axes.plot(stated, np.linspace(0, 100, len(stated)), color=STATED, linewidth=1.3)
    else:
        known = [value for value in (row.stated if stated is None else stated) if value is not None]
        axes.plot(known[: len(probabilities)], [100 * p for p in probabilities], "o", color=STATED, markersize=4.5)
    _scale(axes, row)
    axes.set_ylim(0, 101)
    axes.set_yticks([0, 50, 95], ["0", "50", "95"])
    axes.tick_params(labelsize=8.5)
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _bulk(row: Row) -> tuple[float, float]:
    """The values to show: without the outermost 2 %, or 5 % where a few losses would take all the width."""
    curve = row.generated_curve if row.stated_curve is None else row.stated_curve
    if curve is None or len(curve) <= len(QUANTILES):
        known = [value for value in row.stated[: len(QUANTILES)] if value is not None]
        return known[0], known[-1]
    few = len(curve) // 50
    low, high = float(curve[few]), float(curve[-1 - few])
    if row.stated_curve is None:  # published quantiles only: all of them are shown
        return low, max(high, *(value for value in row.stated if value is not None))
    return (float(curve[len(curve) // 20 + 1]), high) if low < 0 else (low, high)


def _scale(axes: Axes, row: Row) -> None:
    """A logarithmic axis over the bulk of the values where they spread over more than about one power of ten."""
    low, high = _bulk(row)
    if row.name in LINEAR:
        axes.set_xlim(0, 1)
        return
    if low > 0 and high / low > 8:
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xlim(low / 1.5, high * 1.5)
        ticks = [10.0**p for p in range(math.ceil(math.log10(low / 1.5)), math.floor(math.log10(high * 1.5)) + 1)]
        if len(ticks) < 2:
            ticks = [m * 10.0**p for p in range(-3, 8) for m in (1, 3) if low / 1.5 <= m * 10.0**p <= high * 1.5]
        axes.set_xticks(ticks, [_short(tick) for tick in ticks])
        return
    margin = 0.05 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.3g} M"
    return f"{value / 1e3:,.3g} K" if abs(value) >= 1e4 else f"{value:,.4g}"
