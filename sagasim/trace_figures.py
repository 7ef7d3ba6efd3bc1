"""The figure of `sagasim trace stats`: six small pictures that say what a trace is like."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sagasim.errors import ConfigError, TraceError
from sagasim.trace_stats import Counts, TraceStats
from sagasim.userfile import is_there

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_figure_path", "draw_stats"]

_BLUE, _ORANGE, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "#6B6B6B"
_BINS = 36
_MILLIONTHS = 1e4  # of a percent
_US = 1e6


def check_figure_path(path: str | Path) -> Path:
    """The path of a figure that can be written: a .png that does not exist yet. Raises ConfigError or TraceError."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path.name!r} is no figure", where="--figure", expected="a name that ends in .png")
    if is_there(path):
        raise TraceError("exists already", where=str(path), expected="the name of a new file")
    if not is_there(path.parent) or not path.parent.is_dir():
        raise TraceError("no such folder", where=str(path.parent), expected="a folder that can be written")
    return path


def draw_stats(path: str | Path, title: str, stats: TraceStats, notes: Sequence[str] = ()) -> Path:
    """Draw what a trace holds as a PNG, whole or not at all. notes: what is drawn or assumed, below the pictures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    path = check_figure_path(path)
    figure = Figure(figsize=(13, 7.4), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel().tolist()
    painters: tuple[Callable[[Axes, TraceStats], None], ...] = (_lengths, _prompts, _outputs, _places, _waits, _shares)
    for axis, paint in zip(axes, painters, strict=True):
        paint(axis, stats)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, x=0.012, ha="left", fontsize=14, fontweight="bold")
    figure.text(0.012, 0.012, _wrapped(notes), fontsize=8, color=_GREY, va="bottom")
    lines = _wrapped(notes).count("\n") + 1 if notes else 0
    figure.tight_layout(rect=(0, 0.012 + 0.02 * lines, 1, 0.97), h_pad=2.4, w_pad=2.2)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        figure.savefig(temporary, format="png", metadata={"Software": None})
        temporary.replace(path)
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise TraceError(what, where=str(path), expected="a folder that can be written") from None
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _wrapped(notes: Sequence[str]) -> str:
    from textwrap import shorten, wrap

    return "\n".join(line for note in notes[:3] for line in wrap(shorten(note, 330, placeholder=" ..."), 190))


# ---- the six pictures


def _lengths(axis: Axes, stats: TraceStats) -> None:
    if stats.lengths.count and stats.lengths.items()[-1][0] > 1:
        _histogram(axis, stats.lengths, "How long a task is", "calls a task", "tasks", _BLUE)
    elif stats.gaps.count and stats.gaps.items()[0][0] >= 0:
        _histogram(axis, stats.gaps, "How often a request comes", "seconds to the next request", "requests", _BLUE, _US)
    else:
        _nothing(axis, "How long a task is", "every task is one call")


def _prompts(axis: Axes, stats: TraceStats) -> None:
    _histogram(axis, stats.prompts, "How long prompts are", "prompt tokens a call", "calls", _BLUE)


def _outputs(axis: Axes, stats: TraceStats) -> None:
    _histogram(axis, stats.outputs, "How much a call writes", "output tokens a call", "calls", _GREEN)


def _places(axis: Axes, stats: TraceStats) -> None:
    """Prompt tokens over the place of a call in its task, which doubles from one point to the next."""
    title = "How contexts grow"
    places = sorted(stats.by_place)
    if len(places) < 2:
        _nothing(axis, title, "every task is one call")
        return
    spreads = [stats.by_place[place].quantiles(0.05, 0.5, 0.95) for place in places]
    low, middle, high = (list(values) for values in zip(*spreads, strict=True))
    x = list(range(len(places)))
    axis.fill_between(x, low, high, color=_BLUE, alpha=0.18, linewidth=0, label="9 of 10 calls")
    axis.plot(x, middle, color=_BLUE, linewidth=2.2, marker="o", markersize=4, label="median")
    names = [str(1 << place - 1) if place == 1 else f"{1 << place - 1}-{(1 << place) - 1}" for place in places]
    axis.set_xticks(x, names, rotation=30 if len(x) > 6 else 0, ha="right" if len(x) > 6 else "center", fontsize=8)
    _label(axis, title, "place of the call in its task", "prompt tokens")
    axis.yaxis.set_major_formatter(lambda value, _: _short(value))
    axis.set_ylim(0, 1.28 * max(high))
    axis.legend(loc="upper left", frameon=False, fontsize=8)


def _waits(axis: Axes, stats: TraceStats) -> None:
    """Tools and people, side by side as the parts that last at most so long."""
    title = "How long tools and people take"
    kinds = [("tools", stats.tools, _ORANGE), ("people", stats.users, _BLUE), ("other delays", stats.delays, _GREY)]
    kinds = [kind for kind in kinds if kind[1].count]
    if not kinds:
        _nothing(axis, title, "no tools, no people, no delays")
        return
    for name, counts, colour in kinds:
        items = counts.items()
        ends = list(accumulate(times for _, times in items))
        x = [max(value / _US, 1e-3) for value, _ in items]
        y = [100 * end / counts.count for end in ends]
        middle = counts.quantiles(0.5)[0] / _US
        label = f"{name}: half within {_short(middle)} s"
        axis.plot([x[0], *x], [0, *y], color=colour, linewidth=2, drawstyle="steps-post", label=label)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: _short(value))
    axis.set_ylim(0, 106 + 12 * len(kinds))
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.legend(loc="upper left", frameon=False, fontsize=8)
    _label(axis, title, "seconds", "% that are done by then")


def _shares(axis: Axes, stats: TraceStats) -> None:
    """How much of a prompt earlier ones have had: what an infinite cache would save."""
    title = "How much of a prompt repeats earlier ones"
    bins = [0] * 20
    for value, times in stats.reused.items():
        bins[min(value * 20 // 10**6, 19)] += times
    if not stats.reused.count or stats.reused.total == 0:
        _nothing(axis, title, "no prompt repeats another")
        return
    heights = [100 * times / stats.reused.count for times in bins]
    axis.bar([2.5 + 5 * place for place in range(20)], heights, width=4.5, color=_GREEN)
    share = 100 * stats.reusable / stats.prompts.total
    axis.axvline(share, color="black", linewidth=1.2, linestyle="--")
    _note(axis, share, f"{share:.0f} % of all tokens", left=share > 50)
    axis.set_xlim(0, 100)
    axis.set_ylim(0, 1.18 * max(heights))
    _label(axis, title, "% of a prompt (in an infinite cache)", "% of calls")


# ---- parts


def _histogram(axis: Axes, counts: Counts, title: str, x: str, of: str, colour: str, scale: float = 1.0) -> None:
    """Bars over a logarithmic axis, the median marked; what is too small for it counts as the smallest."""
    items = [(value / scale, times) for value, times in counts.items()]
    positive = [value for value, _ in items if value > 0]
    if not positive:
        _nothing(axis, title, "nothing to show")
        return
    low = max(positive[0], 1e-3)  # of a second; tokens and calls are 1 at least
    high = max(positive[-1], low * 1.5)
    step = math.log(high / low) / _BINS
    bins = [0] * _BINS
    for value, times in items:
        bins[min(max(int(math.log(max(value, low) / low) / step), 0), _BINS - 1)] += times
    edges = [low * math.exp(step * place) for place in range(_BINS + 1)]
    heights = [100 * times / counts.count for times in bins]
    axis.bar(edges[:-1], heights, width=[right - left for left, right in pairwise(edges)],
             align="edge", color=colour, edgecolor="white", linewidth=0.5)  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter(lambda value, _: _short(value))
    axis.xaxis.set_minor_formatter(lambda _value, _: "")
    axis.set_ylim(0, 1.18 * max(heights))
    middle = max(counts.quantiles(0.5)[0] / scale, low)
    axis.axvline(middle, color="black", linewidth=1.2, linestyle="--")
    _note(axis, middle, f"median {_short(middle)}", left=math.log(middle / low) > 0.6 * math.log(high / low))
    _label(axis, title, x, f"% of {of}")


def _note(axis: Axes, x: float, text: str, *, left: bool) -> None:
    """A word beside a line, above the bars."""
    axis.annotate(text, (x, 1), xycoords=("data", "axes fraction"), xytext=(-6 if left else 6, -2), va="top",
                  textcoords="offset points", ha="right" if left else "left", fontsize=9)  # fmt: skip


def _label(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left", fontsize=11)
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def _nothing(axis: Axes, title: str, text: str) -> None:
    _label(axis, title, "", "")
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=_GREY)


def _short(value: float) -> str:
    """A number for an axis: 2K, 1.5M, 0.01."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
