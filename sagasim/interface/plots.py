"""Panels of the figures side by side, as figures that a notebook shows by themselves. matplotlib is imported here."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sagasim.errors import ConfigError, nearest
from sagasim.figures import LINES, Entry, by_label, completion_panel, finish, log_axis, tail_panel, tokens_panel
from sagasim.figures_compared import levels_panel, memory_panel, size_panel, tenant_panel

__all__ = ["Plot", "lines", "panels_of", "side_by_side"]

_WIDTH, _HEIGHT = 5.4, 3.7  # inches of a panel
_BARS = 2.6  # of a row with nothing but the bars of tokens
_LETTERS = 15  # of a title that fit an inch
_WIDE = 3  # ratios that lie farther apart than this are shown on a logarithmic axis
_TICKS = 12  # values that each get a tick of their own
Panel = Callable[[Axes], None]


class Plot(Figure):
    """A figure that shows itself at the end of a cell, whatever the backend; `.savefig(file)` keeps it."""

    def _repr_png_(self) -> bytes:
        drawn = io.BytesIO()
        self.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.1)
        return drawn.getvalue()


def panels_of(entries: Sequence[Entry], content: Mapping[str, Any] | None = None) -> dict[str, Panel]:
    """What can be drawn of one run, or of several under the content of their comparison.json, by name."""
    groups = by_label(entries)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0.0), "borderaxespad": 5.5, "fontsize": 8, "frameon": False}
    panels: dict[str, Panel] = {
        "tasks": partial(completion_panel, groups=groups),
        "first_token": partial(tail_panel, groups=groups),
        "tokens": partial(tokens_panel, groups=groups, place={**below, "ncols": 3}),
        "memory": partial(memory_panel, groups=groups),
    }
    if content is not None:
        panels["sizes"] = partial(size_panel, groups=groups)
        for which in content["slo"]:
            panels[f"levels_{which}"] = partial(levels_panel, slo=content["slo"], which=which, groups=groups)
        if content["tenants"]:
            panels["tenants"] = partial(tenant_panel, tenants=content["tenants"], groups=groups)
        if len(content["presets"]) > 1:
            panels["differences"] = partial(_differences_panel, content=content)
    return panels


def side_by_side(panels: Mapping[str, Panel], names: Sequence[str], title: str, note: str = "") -> Plot:
    """The named panels, two in a row, a last one alone. Raises ConfigError for a name that is not there."""
    for name in names:
        if name not in panels:
            raise ConfigError(f"no panel {name!r}", where="plot", expected=nearest(name, panels))
    rows = [names[i : i + 2] for i in range(0, len(names), 2)]
    heights = [_BARS if row == ("tokens",) else _HEIGHT for row in rows]
    width = (1.35 if len(names) == 1 else 2.0) * _WIDTH
    figure = Plot(figsize=(width, sum(heights)), dpi=100, layout="constrained")
    lines = [*textwrap.wrap(title, int(width * 0.85 * _LETTERS)), *textwrap.wrap(note, int(width * _LETTERS))]
    heading = figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10.5)
    heading.set_linespacing(1.3)
    grid = figure.add_gridspec(len(rows), 2, height_ratios=heights)
    for number, row in enumerate(rows):
        for column, name in enumerate(row):
            panels[name](figure.add_subplot(grid[number, :] if len(row) == 1 else grid[number, column]))
    return figure


def _differences_panel(axes: Axes, content: Mapping[str, Any]) -> None:
    """How many times each metric of the first system the others have, with the intervals over seeds."""
    baseline, *others = content["presets"]
    shown = {
        metric["title"]: cells
        for metric in reversed(content["metrics"])
        for cells in [[metric["by_preset"][name]["difference"] for name in others]]
        if not metric["share"] and all(cell.get("ratio") is not None for cell in cells)
    }
    height = 0.7 / len(others)
    for number, name in enumerate(others):
        ratios = [cells[number]["ratio"] for cells in shown.values()]
        lows = [cells[number]["ratio_low"] or cells[number]["ratio"] for cells in shown.values()]
        highs = [cells[number]["ratio_high"] or cells[number]["ratio"] for cells in shown.values()]
        places = [row + height * ((len(others) - 1) / 2 - number) for row in range(len(shown))]
        bars = [
            [r - low for r, low in zip(ratios, lows, strict=True)],
            [h - r for r, h in zip(ratios, highs, strict=True)],
        ]
        colour = LINES[(number + 1) % len(LINES)]
        axes.errorbar(ratios, places, xerr=bars, fmt="o", color=colour, markersize=5, capsize=3, label=name)
    axes.axvline(1, color="#777777", linewidth=1)
    axes.set_yticks(range(len(shown)), list(shown), fontsize=9)
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlabel(f"ratio to {baseline}")
    axes.set_title(f"Beside {baseline}: 95 % intervals over seeds", fontsize=10, loc="left")
    low, high = axes.get_xlim()
    if high > _WIDE * max(low, 0.1):
        log_axis(axes)
    finish(axes)


def lines(
    found: Mapping[str, Sequence[tuple[Any, Mapping[str, float | None]]]], x: str, y: str, limit: float | None
) -> Plot:
    """One metric over one key: a line for each label, through means with their intervals."""
    figure = Plot(figsize=(1.35 * _WIDTH, _HEIGHT + 0.5), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    several = False
    for (label, points), colour in zip(found.items(), LINES * len(found), strict=False):
        at = [value if isinstance(value, (int, float)) else str(value) for value, _ in points]
        means = [point["mean"] or 0.0 for _, point in points]
        low, high = (
            [own if (own := point[side]) is not None else point["mean"] or 0.0 for _, point in points]
            for side in ("low", "high")
        )
        several = several or low != high
        axes.plot(at, means, color=colour, marker="o", markersize=4, label=label or None)
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)
    if limit is not None:
        axes.axhline(limit, color="#777777", linestyle="--", linewidth=1, label=f"limit: {limit:,g}")
    ticks = sorted({value for points in found.values() for value, _ in points if isinstance(value, (int, float))})
    if 0 < len(ticks) <= _TICKS:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    title = y[:1].upper() + y[1:] + (": mean and 95 % interval over seeds" if several else "")
    axes.set_title(title, fontsize=10, loc="left")
    finish(axes)
    return figure
