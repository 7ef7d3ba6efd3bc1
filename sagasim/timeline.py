"""A run as a Perfetto trace: batches, calls, KV copies and counters of the replicas, and tasks, from the log alone.

ui.perfetto.dev opens the file; docs/timeline.md says what it shows.
"""

from __future__ import annotations

import gzip
import io
import os
from dataclasses import dataclass
from pathlib import Path

from sagasim.errors import ConfigError, ResultsError
from sagasim.report import config_label, work_label
from sagasim.simulate import Result
from sagasim.timeline_rows import Rows, rows_of
from sagasim.timeline_slices import Picture
from sagasim.units import PS_PER_S
from sagasim.userfile import is_there

__all__ = ["MAX_EVENTS", "Drawn", "check_timeline_path", "write_timeline"]

MAX_EVENTS = 1_000_000  # about 40 MB, which a browser opens in seconds
_TASKS = 200
_OF_RESULTS = {".toml", ".json", ".parquet", ".png"}


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a timeline holds. left_out: a line on the time that is not shown; empty if all is."""

    events: int
    left_out: str


def check_timeline_path(path: str | Path, out: str | Path | None = None) -> Path:
    """The path of a timeline that can be written: a new file in a folder that exists, or in `out`, which will.

    Raises ResultsError.
    """
    path = Path(path)
    if is_there(path) or not path.name:
        raise ResultsError("exists already", where=str(path), expected="the name of a new file")
    if out is not None and path.parent.absolute() == Path(out).absolute():
        if path.suffix in _OF_RESULTS:
            what = f"{path.name!r} may be another file of the results"
            raise ResultsError(what, where=str(path), expected="a name like timeline.pftrace")
        return path
    if not is_there(path.parent) or not path.parent.is_dir():
        raise ResultsError("no such folder", where=str(path.parent), expected="a folder that can be written")
    return path


def write_timeline(
    result: Result,
    path: str | Path,
    *,
    max_events: int = MAX_EVENTS,
    tasks: int = _TASKS,
    start_s: float = 0.0,
) -> Drawn:
    """Write a run as a Perfetto trace, whole or not at all; one whose name ends in .gz is compressed.

    max_events: beginnings and ends of slices and values of counters, at most. A longer run is shown from start_s (of
    simulated time) on, as far as that allows. tasks: how many get a track of their own, at most, evenly drawn. Raises
    ResultsError, or ConfigError for bounds that make no sense.
    """
    path = check_timeline_path(path)
    fixed = 2 * (1 + len(result.replicas["replica"]))
    if max_events < fixed:
        raise ConfigError(f"{max_events} events", where="max_events", expected=f"at least {fixed} for this run")
    rows = rows_of(result, max_events - fixed, tasks, start_s)
    left_out = _left_out(rows)
    title = f"{config_label(result.config)}; {work_label(result.config, len(result.tasks['task']))}"
    notes = {"shown": left_out or "the whole run", "tasks with a track": _sampled(result, rows)}
    notes |= {"digest": result.digest, **dict(sorted(result.notes.items()))}
    picture = Picture(result, rows, title, notes)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            if path.suffix == ".gz":  # without name and time: the same run gives the same bytes
                with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed, io.BufferedWriter(packed, 1 << 16) as out:
                    out.writelines(picture.packets())
            else:
                file.writelines(picture.packets())
        temporary.replace(path)
    except OSError as error:
        raise ResultsError(f"cannot be written: {error.strerror or error}", where=str(path)) from None
    finally:
        temporary.unlink(missing_ok=True)
    return Drawn(picture.count, left_out)


def _left_out(rows: Rows) -> str:
    if rows.start_ps == 0 and rows.until_ps is None:
        return ""
    start, ran = (f"{time / PS_PER_S:,.6g} s" for time in (rows.start_ps, rows.run_ps))
    until = "the end" if rows.until_ps is None else f"{rows.until_ps / PS_PER_S:,.6g} s"
    return f"{start} to {until} of {ran}: what ends before that or begins after it is left out"


def _sampled(result: Result, rows: Rows) -> str:
    if not rows.every:
        return "none"
    which = "all" if rows.every == 1 else f"one of {rows.every}"
    return f"{which}: {len(rows.tasks['task']):,} of {len(result.tasks['task']):,}"
