"""What a study says: a table, misses.csv, oracle.json and a figure."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim.errors import ResultsError
from sagasim.figures import LINES
from sagasim.metrics import rounded
from sagasim.oracle.study import OPTIMUM, POOLED, RUN, UNLIMITED, Row, Study
from sagasim.report import aligned

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["content", "draw", "heading", "lay_out", "table", "table_rows", "write_csv"]

COLUMNS = ("policy", "memory_blocks", "accesses", "hits", "misses", "ratio")
_PINNED = {"run": "running calls hold what they held in the run", "none": "calls are instants"}
_STYLES = ("-", "--", ":", "-.")


def ratio_text(row: Row) -> str:
    """The ratio, or why there is none."""
    if row.hits is None:
        return "infeasible"
    if row.ratio is not None:
        return f"{row.ratio:.4g}"
    return "optimum 0" if row.optimum == 0 else ""


def table(study: Study) -> str:
    """Regenerated blocks and, in brackets, their ratio to the optimum: a row for each policy, a column a size."""
    return "\n".join([heading(study), "", aligned(table_rows(study)), *_notes(study, _by_policy(study))])


def table_rows(study: Study) -> list[list[str]]:
    """The cells of the table, its titles first."""
    sizes = list(dict.fromkeys(row.memory for row in study.rows if row.memory is not None))
    rows = [["regenerated blocks (over the optimum)", *(f"memory {size:g}" for size in sizes)]]
    for policy, found in _by_policy(study).items():
        if policy != UNLIMITED:
            rows.append([policy, *(_cell(found.get(size)) for size in sizes)])
    return rows


def _by_policy(study: Study) -> dict[str, dict[float | None, Row]]:
    by_policy: dict[str, dict[float | None, Row]] = {}
    for row in study.rows:
        by_policy.setdefault(row.policy, {})[row.memory] = row
    return by_policy


def heading(study: Study) -> str:
    """How much was replayed, and how, on two lines."""
    caches = "one cache" if study.caches == 1 else f"{study.caches} replicas"
    share = 100 * study.first / study.reads if study.reads else 0.0
    return (
        f"{study.calls:,} calls, {caches}, {study.blocks:,} blocks in all; {_PINNED[study.pins]}\n"
        f"{study.reads:,} blocks read, {study.first:,} of them ({share:.3g} %) for the first time: never in a ratio"
    )


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row.regenerated is None:
        return "infeasible"
    if row.policy in (OPTIMUM, POOLED):
        return f"{row.regenerated:,}"
    ratio = ratio_text(row)
    return f"{row.regenerated:,} ({ratio})" if ratio else f"{row.regenerated:,}"


def _notes(study: Study, by_policy: dict[str, dict[float | None, Row]]) -> list[str]:
    notes = []
    if any(row.hits is None for row in study.rows):
        notes.append("infeasible: the calls of a moment alone hold more than that memory")
    if any(row.optimum == 0 and row.policy != POOLED for row in study.rows):
        notes.append("optimum 0: the optimum regenerates nothing, so there is no ratio")
    if POOLED in by_policy:
        shares = []
        for size, best in by_policy[POOLED].items():
            own = by_policy[OPTIMUM][size]
            if best.regenerated and own.regenerated is not None and own.elsewhere is not None:
                shares.append(f"{(own.regenerated + own.elsewhere) / best.regenerated:.4g} at {size:g}")
        notes.append(
            f"{POOLED}: one cache of the whole cluster's memory, a bound for blocks regenerated here and elsewhere"
            + (f"; over it, {OPTIMUM} is {', '.join(shares)}" if shares else "")
        )
    return ["", *notes] if notes else []


def write_csv(path: Path, study: Study) -> None:
    """misses.csv: every row; ratio says `infeasible` or `optimum 0` where there is none."""
    try:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for row in study.rows:
                cells = (row.policy, row.memory_blocks, row.accesses, row.hits, row.misses)
                writer.writerow([*("" if cell is None else cell for cell in cells), ratio_text(row)])
    except OSError as error:
        raise ResultsError(f"cannot be written: {error.strerror}", where=path.name) from None


def content(study: Study) -> dict[str, Any]:
    """What oracle.json holds: the rows with all their parts."""
    rows = []
    for row in study.rows:
        ratio = None if row.ratio is None else rounded(row.ratio)
        rows.append({**asdict(row), "misses": row.misses, "ratio": ratio})
    facts = {key: value for key, value in asdict(study).items() if key != "rows"}
    return {**facts, "rows": rows}


def draw(path: Path, title: str, study: Study) -> None:
    """Miss ratio and ratio to the optimum by memory size, one line for each policy."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=100)
    FigureCanvasAgg(figure)
    lay_out(figure, title, study)
    figure.savefig(path, metadata={"Software": None}, pil_kwargs={"compress_level": 3})


def lay_out(figure: Figure, title: str, study: Study) -> None:
    """The same on a figure that is empty, saved nowhere."""
    figure.set_size_inches(14, 6.2)
    left, right = figure.subplots(1, 2, sharex=True)
    for number, (name, rows) in enumerate(_lines(study).items()):
        style = {
            "color": LINES[number % len(LINES)],
            "linestyle": _STYLES[number // len(LINES) % len(_STYLES)],
            "marker": "o",
            "markersize": 4,
            "linewidth": 2.4 if name == OPTIMUM else 1.6,
        }
        misses = [(row.memory, 100 * row.misses / max(1, row.accesses)) for row in rows if row.misses is not None]
        left.plot(*zip(*misses, strict=True), **style, label=name)
        ratios = [(row.memory, row.ratio) for row in rows if row.ratio is not None and name != POOLED]
        if ratios:
            right.plot(*zip(*ratios, strict=True), **style)
    first = 100 * study.first / max(1, study.reads)
    left.axhline(first, color="#777777", linewidth=1, linestyle=":", label="first touches (unlimited)")
    _dress(left, study, "Misses", "blocks read (%)")
    left.set_ylim(bottom=0)
    _dress(right, study, "Regenerated blocks over the optimum's", "ratio")
    if right.lines:
        _ratio_axis(right)
    else:
        text = "no ratio: the optimum regenerates nothing, or running calls do not fit"
        right.text(0.5, 0.5, text, ha="center", color="#777777", transform=right.transAxes)
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold")
    figure.text(0.012, 0.925, heading(study).replace("\n", ". "), fontsize=9, color="#444444", va="top")
    figure.legend(loc="center right", fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0, 0.85, 0.915))


def _lines(study: Study) -> dict[str, Sequence[Row]]:
    """Feasible rows of each policy, by memory."""
    lines: dict[str, list[Row]] = {}
    for row in study.rows:
        if row.hits is not None and row.policy != UNLIMITED and not row.policy.startswith(RUN):
            lines.setdefault(row.policy, []).append(row)
    return {name: sorted(rows, key=lambda row: row.memory or 0) for name, rows in lines.items()}


def _dress(axes: Axes, study: Study, title: str, label: str) -> None:
    sizes = sorted({row.memory for row in study.rows if row.memory is not None and row.hits is not None})
    axes.set_title(title, fontsize=11, loc="left")
    axes.set_xlabel(f"memory (of the {study.blocks:,} blocks there are)")
    axes.set_ylabel(label)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _ratio_axis(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    ticks = [digit * 10.0**power for power in range(6) for digit in (1, 2, 5) if 0.9 <= digit * 10.0**power <= high]
    axes.set_ylim(min(low, 0.95), high)
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.minorticks_off()
