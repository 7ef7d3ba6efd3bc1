"""The command `report`: what it does, and what it has to say as text. Nothing is printed here."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sagasim.errors import ConfigError, ResultsError
from sagasim.html_report.differences import Differences, differences, sentences
from sagasim.html_report.model import MAIN, Runs, column, short
from sagasim.html_report.page import MARK, element, whole
from sagasim.html_report.reading import (
    is_comparison,
    is_oracle,
    is_run,
    is_sweep,
    read_comparison,
    read_single,
    read_study,
    read_sweep,
)
from sagasim.html_report.sections import fronts, means, runs_page
from sagasim.html_report.study import lead_sentence, study_page
from sagasim.html_report.svg import drawing
from sagasim.importers.lines import printable
from sagasim.oracle.output import table as study_table
from sagasim.report import aligned
from sagasim.userfile import is_there

__all__ = ["report_command"]

_ROWS = 40  # of a table on the terminal
_COLUMNS = 4  # of differences there
_BAR = 20  # letters of a bar
_PARTS = " ▏▎▍▌▋▊▉█"
_HEAD_BYTES = 400  # in which a page of ours says so


def report_command(args: argparse.Namespace, width: int = 0) -> str:
    """Write the page and return the tables. width: letters of a line of the terminal; 0: no bars beside the table."""
    folder = Path(args.folder)
    if not is_there(folder) or not folder.is_dir():
        raise ResultsError("no such folder", where=str(folder), expected="what run, compare, sweep or oracle wrote")
    out = folder / "report.html" if args.out is None else Path(args.out)
    _check_free(out)
    with drawing():
        if is_sweep(folder) or is_comparison(folder) or (is_run(folder) and not is_oracle(folder)):
            page, text = _of_runs(_read(folder), args.base, args.metric, width)
        elif is_oracle(folder):
            for option, value in (("--base", args.base), ("--metric", args.metric)):
                if value is not None:
                    raise ConfigError("a study of the oracle has none", where=option, expected="a sweep or comparison")
            study = read_study(folder)
            title = f"Cache policies beside the optimum: {printable(folder.resolve().name)}"
            page = whole(title, element("h1", title), *study_page(study))
            text = f"{study_table(study)}\n\n{lead_sentence(study)}"
        else:
            expected = "results.parquet, comparison.json, oracle.json or summary.json in it"
            raise ResultsError("no results", where=str(folder), expected=expected)
    _write(out, page)
    return f"{text}\nreport in {out}"


def _read(folder: Path) -> Runs:
    if is_sweep(folder):
        return read_sweep(folder)
    return read_comparison(folder) if is_comparison(folder) else read_single(folder)


def _of_runs(runs: Runs, base: str | None, metric: str | None, width: int) -> tuple[bytes, str]:
    shown = runs.metric(metric)
    found = differences(runs, runs.base(base))
    page = whole(runs.title, element("h1", runs.title), *runs_page(runs, found, shown))
    return page, _text(runs, found, width)


# ---- the page as a file


def _check_free(out: Path) -> None:
    """Raise ResultsError unless the page can be written there; only a page that was written here is written over."""
    try:
        if "\0" in str(out):
            raise ResultsError("no name of a file", where=printable(out), expected="the name of a new file")
        if out.is_dir():
            raise ResultsError("a folder", where=str(out), expected="the name of a file")
        if not out.parent.is_dir():
            raise ResultsError("no such folder", where=str(out.parent), expected="a folder that can be written")
        if is_there(out) or out.is_symlink():
            with open(out, "rb") as file:
                head = file.read(_HEAD_BYTES)
            if f'content="{MARK}"'.encode() not in head:
                expected = "a new file, or one that `sagasim report` wrote"
                raise ResultsError("exists already and is no report", where=str(out), expected=expected)
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise ResultsError(what, where=str(out), expected="the name of a new file") from None


def _write(out: Path, page: bytes) -> None:
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name[:100]}.", suffix=".partial")
        with open(handle, "wb") as file:
            file.write(page)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(out)
        temporary = None
    except OSError as error:
        raise ResultsError(
            f"cannot be written: {error.strerror}", where=str(out), expected="a writable place"
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


# ---- the terminal


def _text(runs: Runs, found: Differences, width: int) -> str:
    parts = [runs.title, *(f"{text}." for text in sentences(found, runs)), "", _means(runs, width)]
    if found.cells:
        parts += ["", _difference_table(runs, found)]
    for name, best in fronts(runs).items():
        parts += ["", f"Pareto front of tasks a minute and p95 completion{f' ({name})' if name else ''}:"]
        parts += [f"  {point.setting.name(runs.axes) or runs.preset}" for point in best]
    return "\n".join(parts)


def _means(runs: Runs, width: int) -> str:
    heads, rows, texts = means(runs)
    text = [heads, *([cell.text for cell in row] for row in rows[:_ROWS])]
    lines = aligned(_narrow(text, texts), left=texts).split("\n")
    timed = heads[texts + 1 : texts + 2] == [column(MAIN).title]  # unless no task ended anywhere
    if timed and width >= max(map(len, lines)) + 2 + _BAR:
        lines = _with_bars(lines, [row[texts + 1].value or 0.0 for row in rows[:_ROWS]])
    more = len(rows) - _ROWS
    return "\n".join(lines + ([f"... and {more:,} more, on the page"] if more > 0 else []))


def _narrow(rows: Sequence[Sequence[str]], texts: int) -> list[list[str]]:
    """The same with short heads."""
    words = {"task completion": "TCT", "first token": "TTFT", " of prompt tokens": "", "prefilled again": "again"}
    heads = list(rows[0])
    for old, new in words.items():
        heads[texts:] = [head.replace(old, new) for head in heads[texts:]]
    return [heads, *map(list, rows[1:])]


def _with_bars(lines: Sequence[str], values: Sequence[float]) -> list[str]:
    """A bar behind each line, as long as its mean completion time."""
    longest = max(values, default=0.0)
    wide = max(map(len, lines))
    bars = [_bar(value / longest) if longest else "" for value in values]
    head = [lines[0].ljust(wide) + "  " + "TCT mean", lines[1] + "  " + "-" * _BAR]
    return head + [f"{line.ljust(wide)}  {bar}".rstrip() for line, bar in zip(lines[2:], bars, strict=True)]


def _bar(share: float) -> str:
    whole_parts, eighths = divmod(round(share * _BAR * 8), 8)
    return _PARTS[8] * whole_parts + (_PARTS[eighths] if eighths else "")


def _difference_table(runs: Runs, found: Differences) -> str:
    """A row for each scenario and system, or for each metric where there is one scenario."""
    marks = {"better": " * better", "worse": " * worse", "differs": " *", "": ""}
    cells = {key: cell.text.strip() + marks[cell.verdict] for key, cell in found.cells.items()}
    note = f"* p < 0.05: paired t-test over seeds, Holm's correction for {found.family}" if found.seeds > 1 else ""
    if len(found.scenarios) == 1:
        (scenario,) = found.scenarios
        rows = [[c.title, *(cells.get((scenario, s, c.path), "-") for s in found.systems)] for c in found.columns]
        return "\n".join([aligned([[f"difference from {found.base}", *found.systems], *rows]), *filter(None, [note])])
    columns, axes = found.columns[:_COLUMNS], runs.scenario_axes
    rows = []
    for scenario in found.scenarios:
        values = runs.scenarios[scenario][found.base].values
        names = ["" if values[axis] is None else short(values[axis]) for axis in axes]
        for system in found.systems:
            if (scenario, system, columns[0].path) in cells:
                rows.append([*names, system, *(cells[scenario, system, each.path] for each in columns)])
    head = _narrow([[*axes, "system", *(each.title for each in columns)]], len(axes) + 1)
    lines = [f"difference from {found.base}", aligned([*head, *rows[:_ROWS]], left=len(axes) + 1)]
    more = len(rows) - _ROWS
    return "\n".join([*lines, *([f"... and {more:,} more, on the page"] if more > 0 else []), *filter(None, [note])])
