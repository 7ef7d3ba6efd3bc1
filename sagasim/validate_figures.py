"""Figures of calibrations and validations, drawn on a file; matplotlib is imported only here."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagasim.calibrate.files import write_whole
from sagasim.errors import ResultsError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sagasim.calibrate.check import Report
    from sagasim.curves import CurveReport
    from sagasim.validate import Validation

__all__ = ["draw_check", "draw_curves", "draw_errors", "draw_validation"]

_REAL, _TOLD, _FAINT = "#000000", "#D55E00", "#BBBBBB"  # black, and two that colour-blind readers tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MOST_SHOWN = 1.0  # per cent: a panel of errors shows at least this much up and down
_AXES = {"ttft_s": "time to first token (s)", "tpot_s": "time per output token (s)", "e2e_s": "end to end (s)"}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: Figure, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise ResultsError(f"no figure ({path.suffix or 'no suffix'})", where=str(path), expected="a name in .png")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110, metadata={"Software": None})
    try:
        write_whole(path, drawn.getvalue())
    except OSError as error:
        raise ResultsError(f"no figure ({error})", where=str(path), expected="a .png that can be written") from error


def draw_validation(validation: Validation, path: Path) -> None:
    """Distributions of TTFT, TPOT and end-to-end time: the recorded server and the simulator."""
    figure = _figure(11, 3.4)
    figure.suptitle(validation.title, fontsize=10)
    for axes, (name, (real, told)) in zip(figure.subplots(1, 3), validation.samples.items(), strict=True):
        for values, colour, label in ((real, _REAL, "recorded"), (told, _TOLD, "simulated")):
            share = np.arange(1, len(values) + 1) / max(1, len(values))
            axes.step(np.sort(values), share, where="post", color=colour, label=label, linewidth=1.4)
        axes.set_xlabel(_AXES[name])
        axes.set_ylim(0, 1)
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of requests")
    figure.axes[0].legend(frameon=False, loc="lower right")
    _saved(figure, path)


def draw_check(report: Report, path: Path) -> None:
    """Relative error of every row over its measured time, a panel a term, the worst first."""
    ranked = {row["term"]: row for row in report.rows()}
    compared = sorted((c for c in report.compared if len(c.told)), key=lambda c: list(ranked).index(c.term))
    columns = 3
    rows = -(-len(compared) // columns)
    figure = _figure(11, 2.6 * rows + 0.4)
    figure.suptitle(f"{report.title}: a point for every measured row", fontsize=10)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes, one in zip(panels, compared, strict=False):
        error = 100.0 * (one.told / one.measured - 1.0)
        axes.plot(one.measured, error, ".", color=_COLOURS[0], markersize=3, alpha=0.5)
        axes.axhline(0.0, color=_REAL, linewidth=0.8)
        axes.set_xscale("log")
        row = ranked[one.term]
        axes.set_title(f"{one.term}: MAPE {row['mape']:.1%}, bias {row['bias']:+.1%}", fontsize=8)
        axes.set_xlabel("measured (us)", fontsize=8)
        largest = max(MOST_SHOWN, 1.05 * float(np.abs(error).max()))
        axes.set_ylim(-largest, largest)
        axes.tick_params(labelsize=7, which="both")
        axes.grid(alpha=0.3)
    for axes in panels[::columns]:
        axes.set_ylabel("error (%)", fontsize=8)
    for axes in panels[len(compared) :]:
        axes.set_axis_off()
    _saved(figure, path)


def draw_curves(report: CurveReport, path: Path) -> None:
    """TPOT and TTFT, simulated over measured, on the diagonal where they agree."""
    figure = _figure(9, 4.4)
    axes = figure.subplots(1, 2)
    for index, (name, panel) in enumerate(zip(("TTFT", "TPOT"), axes, strict=True)):
        for number, (model, gpu) in enumerate(report.groups()):
            pairs = [
                ((point.ttft_ms, point.tpot_ms)[index], told[index])
                for point, told in zip(report.points, report.told, strict=True)
                if (point.model, point.gpu) == (model, gpu)
            ]
            real, told_ms = zip(*pairs, strict=True)
            colour = _COLOURS[number % len(_COLOURS)]
            panel.plot(real, told_ms, ".", color=colour, markersize=5, alpha=0.7, label=f"{model} on {gpu}")
        every = [(point.ttft_ms, point.tpot_ms)[index] for point in report.points]
        line = np.array([0.7 * min(every), 1.4 * max(every)])
        panel.plot(line, line, color=_REAL, linewidth=0.8)
        panel.fill_between(line, 0.9 * line, 1.1 * line, color=_FAINT, alpha=0.4, linewidth=0, label="within 10 %")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel(f"{name} measured (ms)")
        panel.set_ylabel(f"{name} simulated (ms)")
        panel.grid(alpha=0.3)
    axes[0].legend(frameon=False, fontsize=8)
    _saved(figure, path)


def draw_errors(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Bars of errors, the worst first; rows: what, error and target, both shares."""
    figure = _figure(9, 0.28 * len(rows) + 1.0)
    axes = figure.subplots()
    place = np.arange(len(rows))[::-1]
    over = [row["error"] > row["target"] for row in rows]
    for missed, colour, label in ((False, _COLOURS[0], "within the target"), (True, _TOLD, "missed")):
        if (own := np.array(over) == missed).any():
            errors = np.array([100 * row["error"] for row in rows])
            axes.barh(place[own], errors[own], color=colour, label=label)
    axes.plot([100 * row["target"] for row in rows], place, "|", color=_REAL, markersize=12, label="target")
    axes.set_yticks(place, [row["what"] for row in rows], fontsize=7)
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.set_xlabel("mean absolute error; of runs, the error of the mean or p99 (%)")
    axes.grid(alpha=0.3, axis="x")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _saved(figure, path)
