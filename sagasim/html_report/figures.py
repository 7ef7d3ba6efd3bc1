"""Panels of the page: differences, the Pareto front, heat maps, lines over a swept key. Drawn under svg.drawing()."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from sagasim.figures import LINES, finish
from sagasim.html_report.differences import Difference, Differences
from sagasim.html_report.model import Column, Interval, Runs, Setting, axis_title, short
from sagasim.report import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Point", "differences_figure", "front", "heat_maps", "lines_figure", "pareto_figure", "visible"]

_WIDTH = 11.5  # inches; the page shows it at its own width
_MOST_LINES_OF_ROWS = 40  # of the names of what differs
_MOST_PANELS = 4
_MOST_MAPS = 9
_MOST_LINES = 14
_STYLES = ("-", "--")
_WIDE = 3.0  # ratios with such a range are shown on a logarithmic axis
_FAR = 8.0  # values with such a ratio are shown on a logarithmic axis
_WORDS = {1: "#009E73", -1: "#C0392B", 0: "#555555"}


def visible(label: str, most: int = 48) -> str:
    """A label as a legend shows it: not endless, and one that begins with an underscore would be left out."""
    label = label if len(label) <= most else f"{label[: most - 1]}…"
    return f" {label}" if label.startswith("_") else label


def _wrapped(label: str, letters: int, lines: int = 3) -> str:
    return "\n".join(textwrap.wrap(label, letters, max_lines=lines, placeholder=" …"))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _colours(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and line style of each system."""
    return {name: (LINES[i % len(LINES)], _STYLES[i // len(LINES) % len(_STYLES)]) for i, name in enumerate(names)}


def _scaled(interval: Interval, each: Column) -> tuple[float, float, float]:
    """Mean, low and high as they are shown; without an interval all three are the mean."""
    scale = 100.0 if each.share else 1.0
    mean = interval["mean"] or 0.0
    low, high = (interval[side] for side in ("low", "high"))
    return scale * mean, scale * (mean if low is None else low), scale * (mean if high is None else high)


# ---- differences


def differences_figure(found: Differences) -> tuple[Figure, int] | None:
    """A panel for each other system: its differences from the base in percent, with intervals, better and worse apart.

    Rows are scenarios, of the mean completion time; where there is one scenario, metrics. None if nothing has a ratio.
    Also how many rows are left out.
    """
    single = len(found.scenarios) == 1
    systems = found.systems[:_MOST_PANELS]
    rows: dict[str, list[Difference]] = {}
    for (scenario, system, _), cell in found.cells.items():
        wanted = not cell.column.share if single else cell.column == found.columns[0]
        if system in systems and cell.cell["ratio"] is not None and wanted:
            rows.setdefault(cell.column.title.partition(" (")[0] if single else scenario, []).append(cell)
    texts = {name: _wrapped(name, 40) for name in rows}
    names: list[str] = []
    for name in rows:
        if sum(texts[shown].count("\n") + 1 for shown in [*names, name]) <= _MOST_LINES_OF_ROWS:
            names.insert(0, name)
    if not names:
        return None
    titles = [_wrapped(f"{system} against {found.base}", 130 // len(systems)) for system in systems]
    lines = len(names) + sum(texts[name].count("\n") for name in names) + max(title.count("\n") for title in titles)
    figure = _figure(_WIDTH, 1.1 + 0.27 * len(names) + 0.17 * (lines - len(names)))
    panels = figure.subplots(1, len(systems), sharey=True, squeeze=False)[0]
    for axes, system, title in zip(panels, systems, titles, strict=True):
        shown = [(row, cell) for row, name in enumerate(names) for cell in rows[name] if cell.system == system]
        for row, cell in shown:
            _difference(axes, row, cell)
        axes.axvline(1, color="#777777", linewidth=1)
        axes.set_yticks(range(len(names)), [texts[name] for name in names])
        axes.set_ylim(-0.6, len(names) - 0.4)
        axes.set_title(title, fontsize=9.5, loc="left")
        axes.margins(x=0.08)
        _ratio_axis(axes, "" if single else " of mean task completion", found.base)
        finish(axes)
    return figure, len(rows) - len(names)


def _difference(axes: Axes, row: int, cell: Difference) -> None:
    ratio, low, high = (cell.cell[key] for key in ("ratio", "ratio_low", "ratio_high"))
    reach = [[max(0.0, ratio - (low or ratio))], [max(0.0, (high or ratio) - ratio)]]
    colour = _WORDS[{"better": 1, "worse": -1}.get(cell.verdict, 0)]
    fill = colour if cell.verdict else "white"
    axes.errorbar([ratio], [row], xerr=reach, fmt="o", color=colour, markerfacecolor=fill, markersize=5, capsize=2.5)


def _ratio_axis(axes: Axes, what: str, base: str) -> None:
    """Ratios as differences in percent, or where they lie far apart as ratios, on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter

    low, high = axes.get_xlim()
    if high > _WIDE * max(low, 0.1):
        axes.set_xscale("log")
        _plain(axes.xaxis, "log")
        axes.set_xlabel(f"ratio{what} to {base}")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:,g} x"))
        return
    axes.set_xlabel(f"difference{what} (%)")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: _percentage(ratio)))


def _percentage(ratio: float) -> str:
    value = round(100 * (ratio - 1), 6)
    return f"{value:+,g}" if value else "0"


# ---- Pareto front


class Point(NamedTuple):
    """A setting by throughput and completion time, each as mean, low and high over seeds."""

    setting: Setting
    throughput: tuple[float, float, float]
    tct: tuple[float, float, float]


def points(settings: Sequence[Setting], across: Column, along: Column) -> list[Point]:
    """The settings that have both metrics."""
    found = []
    for one in settings:
        throughput, tct = one.interval(across.path), one.interval(along.path)
        if throughput is not None and tct is not None:
            found.append(Point(one, _scaled(throughput, across), _scaled(tct, along)))
    return found


def front(found: Sequence[Point]) -> list[Point]:
    """Those that no other is at least as good as in both and better in one, by throughput."""
    best, least = [], math.inf
    for point in sorted(found, key=lambda p: (-p.throughput[0], p.tct[0])):
        if point.tct[0] < least:
            best.append(point)
            least = point.tct[0]
    return best[::-1]


def pareto_figure(
    groups: Mapping[str, Sequence[Setting]], runs: Runs, across: Column, along: Column
) -> tuple[Figure, dict[str, list[Point]]]:
    """A panel for each work, with its front; and the fronts. Numbers beside points of a front are those of the list."""
    names = list(groups)[:_MOST_PANELS]
    columns = min(2, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(_WIDTH if columns > 1 else 0.8 * _WIDTH, 4.2 * rows)
    colours = _colours(runs.systems[: len(LINES)])
    fronts: dict[str, list[Point]] = {}
    panels = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for axes, name in zip(panels, names, strict=False):
        found = points(groups[name], across, along)
        fronts[name] = front(found)
        _pareto(axes, found, fronts[name], runs, colours)
        axes.set_title(name, fontsize=9.5, loc="left")
        axes.set_xlabel(f"{across.title}, more is better")
        axes.set_ylabel(f"{along.title}, less is better")
        _grow(axes.set_yscale, [p.tct[0] for p in found])
        _plain(axes.yaxis, axes.get_yscale())
        finish(axes)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    return figure, fronts


def _pareto(
    axes: Axes, found: Sequence[Point], best: Sequence[Point], runs: Runs, colours: Mapping[str, tuple[str, str]]
) -> None:
    axes.plot([p.throughput[0] for p in best], [p.tct[0] for p in best], color="#999999", linewidth=5, alpha=0.35)
    axes.plot([], [], color="#999999", linewidth=5, alpha=0.35, label="Pareto front")
    by_system: dict[str, list[Point]] = {name: [] for name in (*colours, "other systems")}
    for point in found:
        name = runs.system(point.setting)
        by_system[name if name in colours else "other systems"].append(point)
    for system, own in by_system.items():
        colour = colours.get(system, ("#999999", ""))[0]
        own.sort(key=lambda point: point in best)  # on top of those that are as good
        if own:
            x, y = [p.throughput[0] for p in own], [p.tct[0] for p in own]
            across, along = _reach([p.throughput for p in own]), _reach([p.tct for p in own])
            axes.errorbar(x, y, xerr=across, yerr=along, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.6)
            face = [colour if point in best else "white" for point in own]
            axes.scatter(x, y, s=34, c=face, edgecolors=colour, linewidths=1.3, label=visible(system), zorder=3)
    for place, point in enumerate(best, 1):
        at = (point.throughput[0], point.tct[0])
        beside = (7, -12) if place % 2 else (-9, 6)  # points of a front may be as good as equal
        axes.annotate(f"{place}", at, beside, textcoords="offset points", ha="center", weight="bold")


def _reach(each: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """How far intervals reach below and above their means; not below zero, where neither metric can be."""
    return [[mean - max(0.0, low) for mean, low, _ in each], [high - mean for mean, _, high in each]]


# ---- one or two swept keys


def lines_figure(
    runs: Runs, axis: str, metrics: Sequence[tuple[Column, Callable[[float], float]]]
) -> tuple[Figure, int]:
    """A panel for each metric over the values of a key: a line for each name of what else varies, with its intervals.

    Also how many lines are left out.

    metrics: each with what is done to its mean and interval before they are shown.
    """
    rest = [key for key in runs.axes if key != axis]
    found: dict[str, list[Setting]] = {}
    for one in sorted(runs.settings, key=lambda one: one.place):
        if one.values[axis] is not None:
            found.setdefault(one.name(rest) or runs.preset, []).append(one)
    names = list(found)[:_MOST_LINES]
    figure = _figure(_WIDTH if len(metrics) > 1 else 0.8 * _WIDTH, 3.6)
    panels = figure.subplots(1, len(metrics), squeeze=False)[0].tolist()
    for axes, (each, shown) in zip(panels, metrics, strict=True):
        values = [one.values[axis] for name in names for one in found[name]]
        for name, (colour, style) in _colours(names).items():
            own = sorted(found[name], key=lambda one: one.values[axis])
            known = [(one.values[axis], i) for one in own if (i := one.interval(each.path)) is not None]
            ends = [[shown(value) for value in _scaled(i, each)] for _, i in known]
            x = [value for value, _ in known]
            axes.plot(x, [e[0] for e in ends], style, color=colour, marker="o", markersize=4, label=visible(name))
            axes.fill_between(x, [min(e) for e in ends], [max(e) for e in ends], color=colour, alpha=0.16, linewidth=0)
        _grow(axes.set_xscale, values)
        ticks = sorted(set(values))
        axes.set_xticks(ticks if len(ticks) <= 10 else ticks[:: math.ceil(len(ticks) / 10)])
        _plain(axes.xaxis, "ticks")
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(axis_title(axis))
        axes.set_title(each.title, fontsize=9.5, loc="left")
        finish(axes)
        if axes is not panels[0] and axes.get_legend() is not None:
            axes.get_legend().remove()
    return figure, len(found) - len(names)


def heat_maps(runs: Runs, across: str, along: str, each: Column) -> tuple[Figure, int]:
    """One map for each name of what else varies, on one scale of colours; and how many maps are left out."""
    from matplotlib.colors import LogNorm, Normalize

    rest = [key for key in runs.axes if key not in (across, along)]
    found: dict[str, dict[tuple[Any, Any], float]] = {}
    for one in sorted(runs.settings, key=lambda one: one.place):
        interval = one.interval(each.path)
        if interval is not None:
            values = found.setdefault(one.name(rest) or runs.preset, {})
            values[one.values[across], one.values[along]] = _scaled(interval, each)[0]
    names = list(found)[:_MOST_MAPS]
    x, y = (_values(runs, axis) for axis in (across, along))
    shown = [value for name in names for value in found[name].values()]
    least, most = min(shown), max(shown)
    norm = (LogNorm if least > 0 and most / least > _FAR else Normalize)(least, most if most > least else least + 1)
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = _figure(_WIDTH * (0.3 + 0.7 * columns / 3), rows * (0.9 + 0.34 * max(4, len(y))))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel().tolist()
    for axes, name in zip(panels, names, strict=False):
        _map(axes, [[found[name].get((a, b)) for a in x] for b in y], norm)
        axes.set_title(_wrapped(name, 100 // columns), fontsize=9, loc="left")
        axes.set_xticks([place + 0.5 for place in range(len(x))], [short(value) for value in x])
        axes.set_yticks([place + 0.5 for place in range(len(y))], [short(value) for value in y])
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel(axis_title(across), fontsize=9)
    figure.supylabel(textwrap.fill(axis_title(along), 24), fontsize=9, ha="center")
    return figure, len(found) - len(names)


def _values(runs: Runs, axis: str) -> list[Any]:
    return sorted({one.values[axis] for one in runs.settings} - {None})


def _map(axes: Axes, cells: Sequence[Sequence[float | None]], norm: Any) -> None:
    """Cells as rectangles, each with its value."""
    import numpy as np
    from matplotlib import colormaps

    palette = colormaps["Blues"]
    plain = np.array([[math.nan if value is None else value for value in row] for row in cells])
    axes.pcolormesh(np.ma.masked_invalid(plain), cmap=palette, norm=norm, edgecolors="white", linewidth=1.5)
    axes.set_facecolor("#EEEEEE")
    axes.set(xlim=(0, len(cells[0])), ylim=(0, len(cells)))
    for row, values in enumerate(cells):
        for place, value in enumerate(values):
            colour = "white" if value is not None and norm(value) > 0.55 else "black"
            axes.text(place + 0.5, row + 0.5, number(value), ha="center", va="center", color=colour)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


# ---- scales


def _grow(set_scale: Callable[[str], Any], values: Sequence[float]) -> None:
    """A logarithmic scale for values that lie far apart."""
    if values and min(values) > 0 and max(values) / min(values) >= _FAR:
        set_scale("log")


def _plain(axis: Any, scale: str) -> None:
    """Ticks as plain numbers, on a logarithmic scale at 1, 2 and 5."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    if scale == "log":
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_locator(NullLocator())
