"""What the page says of a sweep, a comparison or a run: one section for each thing that there is to say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sagasim.figures import lay_out
from sagasim.figures_compared import levels_panel
from sagasim.html_report.differences import Difference, Differences, losses, sentences
from sagasim.html_report.figures import (
    Point,
    differences_figure,
    front,
    heat_maps,
    lines_figure,
    pareto_figure,
    points,
    visible,
)
from sagasim.html_report.model import KEY, MEMORY, Column, Runs, Setting, axis_title, column, short
from sagasim.html_report.page import Cell, Child, Element, element, figure, section, table
from sagasim.html_report.svg import to_svg
from sagasim.importers.lines import printable
from sagasim.metrics import rounded
from sagasim.report import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["fronts", "means", "misses_figure", "runs_page"]

_LOSERS = 8  # systems whose losses are told in words
ACROSS, ALONG = "tasks_per_min", "tct_s.p95"  # of the Pareto front
_MISSES = Column("prefix_hit_rate", "prompt tokens not found in the cache (%)", True, -1)
Table = tuple[list[str], list[list[Cell]], int]


def runs_page(runs: Runs, found: Differences, metric: Column) -> Iterator[Element]:
    """The elements of the page, below its title. To be called under svg.drawing()."""
    yield _lead(runs, found)
    steps = [("step times", runs.notes["step times"])] if "step times" in runs.notes else []
    yield _facts([*runs.facts, ("seeds" if len(runs.seeds) > 1 else "seed", _seeds(runs.seeds)), *steps])
    heads, rows, texts = means(runs)
    told = "Means over seeds, below each its 95 % interval (Student's t). " if len(runs.seeds) > 1 else ""
    yield section(
        "Every setting" if len(rows) > 1 else "The setting",
        element("p", told, element("span", "A click on a head sorts.", class_="screen"), class_="soft"),
        table(heads, rows, texts=texts, label="means of every setting"),
    )
    if found.cells:
        yield _differences(runs, found)
    yield from _pareto(runs)
    yield from _swept(runs, metric)
    yield from _misses(runs)
    if runs.content is not None:
        yield from _compared(runs.content, runs.systems)
    if runs.entries:
        yield _distributions(runs.entries)
    if runs.notes:
        last = section("What the numbers rest on", _facts(sorted(runs.notes.items())))
        last.set("class", "last")
        yield last


def _facts(facts: Sequence[tuple[str, str]]) -> Element:
    return element("dl", *(part for name, text in facts for part in (element("dt", name), element("dd", text))))


def _lead(runs: Runs, found: Differences) -> Element:
    told = [element("p", f"{text}.") for text in sentences(found, runs)]
    if found.cells and found.seeds > 1:
        what = "; in brackets 95 % intervals over seeds" if found.seeds > 2 else ""
        text = f"Mean completion time, on the same tasks seed by seed ({found.seeds} seeds){what}."
        told.append(element("p", text, class_="soft"))
    elif len(runs.seeds) == 1:
        told.append(element("p", "A single seed: no intervals, no tests.", class_="soft"))
    return element("div", *told, class_="lead")


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[-1] + 1)):
        return f"{len(seeds)}, from {seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds[:20])) + (", ..." if len(seeds) > 20 else "")


# ---- tables


def means(runs: Runs) -> Table:
    """Heads and rows of the table of all settings, and how many of its first columns are texts."""
    labelled = any(one.label is not None for one in runs.settings)
    axes = list(runs.axes)
    columns = runs.columns(KEY)
    names = [*(["name"] if labelled else []), *axes] or ["system"]
    rows = []
    for one in runs.settings:
        cells = [Cell(one.name(axes))] if labelled else []
        cells += [_axis(one.values[axis]) for axis in axes]
        count = len(one.by_seed)
        rows.append([*(cells or [Cell(runs.preset)]), Cell(str(count), value=count), *(_mean(one, c) for c in columns)])
    heads = [*names, "seeds", *(each.title for each in columns)]
    return heads, rows, len(names)


def _axis(value: Any) -> Cell:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return Cell(short(value), value=float(value), kind="text")
    return Cell("" if value is None else short(value), kind="text")


def _mean(setting: Setting, each: Column) -> Cell:
    interval = setting.interval(each.path)
    if interval is None:
        return Cell("-")
    scale = 100 if each.share else 1
    mean, low, high = (None if (v := interval[key]) is None else rounded(scale * v) for key in ("mean", "low", "high"))
    missing = len(setting.by_seed) - len(setting.known(each.path))
    small = "" if low is None else f"[{number(low, 3)}, {number(high, 3)}]"
    return Cell(number(mean), small + (f" {missing} without" if missing else ""), mean)


def _difference(cell: Difference | None) -> Cell:
    if cell is None or cell.cell["mean"] is None:
        return Cell("-")
    text, _, interval = cell.text.strip().partition(" [")
    ratio = cell.cell["ratio"]
    value = cell.cell["mean"] if cell.column.share or ratio is None else ratio - 1
    return Cell(text, f"[{interval}" if interval else "", value, cell.verdict)


def _differences(runs: Runs, found: Differences) -> Element:
    heads, rows, texts = _one_scenario(runs, found) if len(found.scenarios) == 1 else _scenarios(runs, found)
    parts: list[Child] = [element("p", _method(found), class_="soft"), *_lost(found)]
    drawing = differences_figure(found)
    if drawing is not None:
        drawn, left = drawing
        alt = f"Differences from {found.base} in percent, with 95 % intervals"
        caption = "Filled: clearly better (green) or worse (red). Hollow: not clear. Lines are 95 % intervals."
        caption += f" {left:,} more rows are in the table alone." if left else ""
        parts.append(figure(to_svg(drawn, alt, "differences-"), caption))
    parts.append(table(heads, rows, texts=texts, label=f"differences from {found.base}"))
    return section(f"Differences from {found.base}", *parts)


def _one_scenario(runs: Runs, found: Differences) -> Table:
    """A row for each metric."""
    (scenario,) = found.scenarios
    rows = []
    for each in found.columns:
        cells = [found.cells.get((scenario, system, each.path)) for system in found.systems]
        rows.append([Cell(each.title), _mean(runs.scenarios[scenario][found.base], each), *map(_difference, cells)])
    return ["metric", found.base, *found.systems], rows, 1


def _scenarios(runs: Runs, found: Differences) -> Table:
    """A row for each scenario and system."""
    axes = runs.scenario_axes
    rows = []
    for scenario in found.scenarios:
        values = runs.scenarios[scenario][found.base].values
        for system in found.systems:
            cells = [found.cells.get((scenario, system, each.path)) for each in found.columns]
            if any(cells):
                names = [*(_axis(values[axis]) for axis in axes), Cell(system, kind="text")]
                rows.append([*names, *map(_difference, cells)])
    return [*axes, "system", *(each.title for each in found.columns)], rows, len(axes) + 1


def _method(found: Differences) -> str:
    text = (
        "Relative differences are ratios of geometric means, those of percentages are in points. Systems are compared "
        "seed by seed on the same tasks."
    )
    if found.seeds < 2:
        return text
    return (
        f"{text} In brackets: 95 % intervals over seeds. Better and worse mark p < 0.05 of a paired t-test over seeds, "
        f"with Holm's correction for {found.family}."
    )


def _lost(found: Differences) -> Iterator[Element]:
    lost = losses(found)
    losers = [system for system, told in lost.items() if told]
    for system in losers[:_LOSERS]:
        yield element("p", element("b", f"Where {system} loses to {found.base}: "), "; ".join(lost[system]) + ".")
    if len(losers) > _LOSERS:
        names = ", ".join(losers[_LOSERS:])
        yield element("p", element("b", f"Systems that lose to {found.base} too, see the table: "), f"{names}.")
    others = [system for system in lost if system not in losers]
    if others:
        yield element("p", element("b", f"Nowhere clearly worse than {found.base}: "), f"{', '.join(others)}.")


# ---- figures


def _groups(runs: Runs) -> dict[str, list[Setting]]:
    """The settings by what their throughput may be compared within."""
    groups: dict[str, list[Setting]] = {}
    for one in runs.settings:
        groups.setdefault(runs.work(one), []).append(one)
    across, along = column(ACROSS), column(ALONG)
    return {name: each for name, each in groups.items() if len(points(each, across, along)) > 1}


def fronts(runs: Runs) -> dict[str, list[Point]]:
    """The Pareto front of each work with several settings."""
    across, along = column(ACROSS), column(ALONG)
    return {name: front(points(each, across, along)) for name, each in _groups(runs).items()}


def _pareto(runs: Runs) -> Iterator[Element]:
    groups = _groups(runs)
    if not groups:
        return
    across, along = column(ACROSS), column(ALONG)
    drawn, best = pareto_figure(groups, runs, across, along)
    alt = f"{along.title} over {across.title}, with the Pareto front"
    parts: list[Child] = [figure(to_svg(drawn, alt, "pareto-"), _front_caption(runs))]

    def name_of(point: Point) -> str:
        return point.setting.name(runs.axes) or runs.preset

    for name, each in best.items():
        items = [
            element("li", f"{name_of(p)}: {number(p.throughput[0])} tasks a minute, p95 {number(p.tct[0])} s")
            for p in each
        ]
        parts += [element("p", element("b", f"On the front{f' ({name})' if name else ''}:")), element("ol", *items)]
    if len(groups) > len(best):
        parts.append(element("p", f"{len(groups) - len(best)} more, without a panel.", class_="soft"))
    yield section("Pareto front: throughput against completion time", *parts)


def _front_caption(runs: Runs) -> str:
    bars = " Thin lines are 95 % intervals." if len(runs.seeds) > 1 else ""
    return f"Filled points are on the front of the means: no other is at least as good in both; of equals one.{bars}"


def _swept(runs: Runs, metric: Column) -> Iterator[Element]:
    """Heat maps over two keys, lines over one."""
    axes = runs.numeric_axes
    if not runs.columns([metric.path]) or not axes:
        return
    if len(axes) > 1:
        drawn, left = heat_maps(runs, axes[0], axes[1], metric)
        alt = f"Heat maps of {metric.title} over {axes[0]} and {axes[1]}"
        more = f" {left:,} more maps are left out." if left else ""
        caption = f"Means over seeds, one scale of colours for all.{more}"
        title = f"{_capital(metric.title)}, by {axes[0]} and {axes[1]}"
        yield section(title, figure(to_svg(drawn, alt, "heat-"), caption))
        return
    shown = runs.columns(list(dict.fromkeys([metric.path, "ttft_s.p95", "tasks_per_min"])))
    drawn, left = lines_figure(runs, axes[0], [(each, _as_it_is) for each in shown])
    alt = f"{', '.join(each.title for each in shown)} over {axes[0]}"
    yield section(f"Over {axis_title(axes[0])}", figure(to_svg(drawn, alt, "lines-"), _bands(runs, left)))


def _misses(runs: Runs) -> Iterator[Element]:
    """Miss-ratio curves, where a memory was swept."""
    for axis in runs.numeric_axes:
        if axis in MEMORY and runs.columns([_MISSES.path]):
            drawn, left = misses_figure(runs, axis)
            alt = f"{_MISSES.title} over {axis}"
            yield section(
                f"Miss-ratio curves over {axis}", figure(to_svg(drawn, alt, f"misses-{axis}-"), _bands(runs, left))
            )


def misses_figure(runs: Runs, axis: str) -> tuple[Figure, int]:
    """Prompt tokens not found in the cache over a memory size, in percent, and how many lines are left out."""
    return lines_figure(runs, axis, [(_MISSES, lambda share: 100.0 - share)])


def _as_it_is(value: float) -> float:
    return value


def _bands(runs: Runs, left: int) -> str:
    bands = "; bands are 95 % intervals." if len(runs.seeds) > 1 else "."
    return f"Means over seeds{bands}" + (f" {left:,} more lines are left out." if left else "")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# ---- of a comparison alone


def _compared(content: Mapping[str, Any], systems: Sequence[str]) -> Iterator[Element]:
    from matplotlib.figure import Figure

    levels = content.get("slo", {})
    which = [name for name in ("expected", "idle") if name in levels]
    if which:
        drawn = Figure(figsize=(11.5, 3.6), layout="constrained")
        for axes, name in zip(drawn.subplots(1, len(which), squeeze=False)[0], which, strict=True):
            levels_panel(axes, levels, name, {system: [] for system in systems})
        alt = "Share of tasks that end within m times their expected time, and their time alone"
        yield section("Service levels", figure(to_svg(drawn, alt, "levels-"), "Bands are 95 % intervals over seeds."))
    tenants = content.get("tenants") or {}
    if tenants:
        heads = ["tenant", *(f"{name}, {key} (s)" for name in systems for key in ("mean", "p99"))]
        rows = [
            [
                Cell(printable(tenant)),
                *(_second(own.get(name, {}).get(key)) for name in systems for key in ("mean", "p99")),
            ]
            for tenant, own in tenants.items()
        ]
        yield section("Task completion by tenant", table(heads, rows, texts=1, label="completion times by tenant"))


def _second(value: Any) -> Cell:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return Cell(number(value) if known else "-", value=float(value) if known else None)


def _distributions(entries: Sequence[Mapping[str, Any]]) -> Element:
    from matplotlib.figure import Figure

    drawn = Figure()
    lay_out(drawn, "", [{**entry, "label": visible(entry["label"])} for entry in entries])
    alt = "How many tasks are done after how long, how many calls wait how long, and where prompt tokens came from"
    several = " Thin lines are single seeds." if len({entry["seed"] for entry in entries}) > 1 else ""
    caption = f"Tasks by completion time, calls by time to first token, prompt tokens by where they came from.{several}"
    return section("Tasks, calls and tokens", figure(to_svg(drawn, alt, "tasks-"), caption))
