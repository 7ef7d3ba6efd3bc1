"""The figure of a run or a comparison, drawn by a process of its own.

Importing matplotlib takes as long as simulating ten thousand calls. So `Painter` starts `python -m sagasim.figures`
before the simulation; that process imports, waits on its standard input for one line of JSON, draws, and exits. A
figure that fails is a warning: results never depend on it.
"""

from __future__ import annotations

import gc
import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "LINES",
    "Entry",
    "Painter",
    "by_label",
    "completion_panel",
    "draw",
    "finish",
    "lay_out",
    "log_axis",
    "tail_panel",
    "tokens_panel",
]

_TIMEOUT_S = 120
_TICK_LETTERS = 32  # of all labels below a panel, before they run into each other
# Okabe and Ito's palette: told apart by colour-blind readers too.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SOURCES = (  # where prompt tokens came from: name in the data, legend, colour
    ("hit", "found in the prefix cache", "#7FC8A9"),
    ("first", "new", "#D9D9D9"),
    ("regenerated_uncached", "again: never cached", "#D6604D"),
    ("regenerated_here", "again: evicted here", "#F4A582"),
    ("regenerated_elsewhere", "again: cached elsewhere", "#67001F"),
)

Entry = Mapping[str, Any]  # of metrics.figure_entry


class Painter:
    """The drawing process: started on entering, told what to draw by `send`, ended on leaving whatever happens."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Painter:
        home = str(Path(__file__).parents[1])  # the child finds the same package, installed or not
        path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "sagasim.figures"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends the child
            )
        except OSError:
            self._process = None
        return self

    def send(
        self, out: Path, title: str, entries: Sequence[Entry], note: str = "", compared: Entry | None = None
    ) -> None:
        """Have the figure drawn at `out`, while the caller goes on; the note stands below its title.

        compared: content of a comparison, for the larger figure of that.
        """
        if self._process is None or self._process.stdin is None:
            return
        order = json.dumps(
            {"out": str(out), "title": title, "note": note, "entries": list(entries), "compared": compared}
        )
        try:
            self._process.stdin.write(order + "\n")
            self._process.stdin.flush()
        except OSError:
            return  # the process has ended; wait() says why

    def wait(self) -> str | None:
        """None once the figure is drawn, or one line saying why there is none."""
        if self._process is None:
            return "the drawing process could not be started"
        try:
            _, errors = self._process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"drawing took more than {_TIMEOUT_S} s"
        if self._process.returncode:
            return (errors.strip().splitlines() or ["the drawing process failed"])[-1]
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stderr):
            if stream is not None and not stream.closed:
                stream.close()
        self._process.wait()


def _blank() -> Figure:
    """An empty figure with its three axes, saved once to nowhere: what takes time and needs no data."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(dpi=100)
    _add_axes(figure)
    FigureCanvasAgg(figure)
    figure.savefig(io.BytesIO())
    return figure


def _add_axes(figure: Figure) -> None:
    grid = figure.add_gridspec(2, 2)
    for cell in (grid[0, 0], grid[0, 1], grid[1, :]):
        figure.add_subplot(cell)


def by_label(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """The entries of each label, seeds together, in the order of the first ones."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(entry["label"], []).append(entry)
    return groups


def draw(out: Path, title: str, entries: Sequence[Entry], note: str = "", figure: Figure | None = None) -> None:
    """Draw the entries, one line or bar for each label (seeds of one label are averaged), as a PNG."""
    figure = figure or _blank()
    lay_out(figure, title, entries, note)
    figure.savefig(out, metadata={"Software": None}, pil_kwargs={"compress_level": 3})


def lay_out(figure: Figure, title: str, entries: Sequence[Entry], note: str = "") -> None:
    """The same on a figure that is empty, saved nowhere."""
    groups = by_label(entries)
    figure.set_size_inches(11, 5.2 + 0.38 * len(groups))
    if not figure.axes:
        _add_axes(figure)
    bars = 1.15 + 0.38 * len(groups)
    left = max(0.075, 0.03 + 0.0065 * max((len(label) for label in groups), default=0))
    grid = figure.add_gridspec(
        2,
        2,
        height_ratios=[3.1, bars],
        left=left,
        right=0.98,
        top=0.86 if note else 0.89,
        bottom=0.16,
        hspace=0.45,
        wspace=0.2,
    )
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold")
    figure.text(0.012, 0.925, note, ha="left", va="center", fontsize=9, color="#444444")
    panels = ((completion_panel, grid[0, 0]), (tail_panel, grid[0, 1]), (tokens_panel, grid[1, :]))
    for axes, (panel, cell) in zip(figure.axes, panels, strict=True):
        axes.set_subplotspec(cell)
        panel(axes, groups)


def _mean_curve(entries: Sequence[Entry], name: str) -> list[float]:
    """The quantiles averaged over seeds; empty if no seed has any."""
    curves = [entry[name] for entry in entries if entry[name]]
    return [sum(points) / len(curves) for points in zip(*curves, strict=True)]


def _positive(curve: Sequence[float]) -> list[float]:
    """Seconds that a logarithmic axis can show."""
    return [max(value, 1e-3) for value in curve]


def completion_panel(axes: Axes, groups: Mapping[str, Sequence[Entry]]) -> None:
    for (label, entries), colour in zip(groups.items(), LINES * len(groups), strict=False):
        curve = _positive(_mean_curve(entries, "tct_s"))
        if curve:
            shares = [100 * i / (len(curve) - 1) for i in range(len(curve))]
            text = f"{label}: median {_seconds(curve[len(curve) // 2])}"
            axes.plot(curve, shares, color=colour, linewidth=2, label=text)
            for entry in entries if len(entries) > 1 else ():
                axes.plot(_positive(entry["tct_s"]), shares, color=colour, linewidth=0.6, alpha=0.5)
    axes.set_title("Tasks completed (left is better)", fontsize=10, loc="left")
    axes.set_xlabel("task completion time (s)")
    axes.set_ylabel("tasks (%)")
    axes.set_ylim(0, 100)
    log_axis(axes)
    finish(axes)


def tail_panel(axes: Axes, groups: Mapping[str, Sequence[Entry]]) -> None:
    for (label, entries), colour in zip(groups.items(), LINES * len(groups), strict=False):
        curve = _positive(_mean_curve(entries, "ttft_s"))
        if curve:
            steps = len(curve) - 1
            shares = [100 * (1 - i / steps) for i in range(steps)]  # without the maximum, whose share is 0
            text = f"{label}: p99 {_seconds(curve[round(0.99 * steps)])}"
            axes.plot(curve[:-1], shares, color=colour, linewidth=2, label=text)
    axes.set_yscale("log")
    axes.set_title("Calls that wait longer for their first token (lower is better)", fontsize=10, loc="left")
    axes.set_xlabel("time to first token (s)")
    axes.set_ylabel("calls (%)")
    axes.set_ylim(0.5, 100)
    axes.set_yticks([1, 10, 100], ["1", "10", "100"])
    log_axis(axes)
    finish(axes)


def tokens_panel(axes: Axes, groups: Mapping[str, Sequence[Entry]], place: Mapping[str, Any] | None = None) -> None:
    labels = list(groups)[::-1]
    starts = [0.0] * len(labels)
    for name, legend, colour in _SOURCES:
        widths = [100 * sum(e["shares"][name] for e in groups[label]) / len(groups[label]) for label in labels]
        axes.barh(labels, widths, left=starts, color=colour, label=legend, height=0.62)
        for row, width in enumerate(widths):
            if width >= 4:
                dark = name in ("regenerated_elsewhere", "regenerated_uncached")
                axes.text(
                    starts[row] + width / 2,
                    row,
                    f"{width:.0f} %",
                    ha="center",
                    va="center",
                    fontsize=9,
                    color="white" if dark else "black",
                )
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_title(
        "Prompt tokens: found in the cache, or prefilled for the first time or again", fontsize=10, loc="left"
    )
    axes.set_xlabel("prompt tokens (%)", labelpad=1)
    axes.set_xlim(0, max([100.0, *starts]))
    axes.spines[["top", "right"]].set_visible(False)
    if place is None:
        handles = axes.get_legend_handles_labels()
        axes.figure.legend(*handles, loc="lower center", ncols=len(_SOURCES), fontsize=8.5, frameon=False)
    else:
        axes.legend(**place)


def _seconds(value: float) -> str:
    return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s"


def log_axis(axes: Axes) -> None:
    """A logarithmic x axis with ticks that can be read: powers of ten, or 1, 2, 5 where those would be few."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [digit * 10.0**power for power in decades for digit in (1, 2, 5) if low <= digit * 10.0**power <= high]
    if len(ticks) > 8 or sum(len(f"{tick:,g}") for tick in ticks) > _TICK_LETTERS:
        ticks = [10.0**power for power in decades if low <= 10.0**power <= high]
    axes.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
    axes.set_xlim(low, high)


def finish(axes: Axes) -> None:
    axes.minorticks_off()  # half of the drawing time
    axes.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=9, frameon=False)


def _child() -> None:
    """Import while the parent simulates, then draw what the one line on standard input says."""
    gc.disable()  # it looks at all of matplotlib again and again: a fifth of the time, for nothing
    figure = _blank()
    line = sys.stdin.readline()
    if line:
        order = json.loads(line)
        out, compared = Path(order["out"]), order["compared"]
        if compared is None:
            draw(out, order["title"], order["entries"], order["note"], figure)
        else:
            from sagasim.figures_compared import draw_compared

            draw_compared(out, order["title"], order["entries"], order["note"], compared)
        os._exit(0)  # the file is closed; taking matplotlib apart would keep the parent waiting


if __name__ == "__main__":
    _child()
