"""What a sweep has to say, as text. Nothing is printed here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sagasim.metrics import rounded
from sagasim.report import aligned, number
from sagasim.sweeping.runner import Progress, Swept

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["failure_line", "interrupted_line", "progress_line", "sweep_report"]

_COLUMNS = (  # of the table of results, title, decimals of a share in percent
    ("tct_s.mean", "TCT mean (s)", False),
    ("tct_s.p99", "TCT p99 (s)", False),
    ("ttft_s.p99", "TTFT p99 (s)", False),
    ("prefix_hit_rate", "hit rate", True),
    ("tasks_per_min", "tasks/min", False),
)
_ROWS = 40  # of combinations that are shown


def progress_line(now: Progress) -> str:
    """Points done, how fast, how long it will take."""
    text = f"{now.done:,} of {now.points:,} points"
    if now.failed:
        text += f", {now.failed:,} failed"
    if now.per_s is not None and now.left_s is not None:
        text += f", {number(now.per_s, 3)} points/s, {_duration(now.left_s)} left"
    return text


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def sweep_report(swept: Swept) -> str:
    """Means over seeds for each combination, and where the results are."""
    table = swept.table()
    missing = swept.points - swept.done - len(swept.failed)
    counts = f"{swept.done:,} of {swept.points:,} points" + (f", {swept.ran:,} of them new" if swept.ran else "")
    if missing:
        counts += f"; {missing:,} not run yet"
    shown = _means(table) + "\n" if table.num_rows else ""
    file = Path(swept.folder) / "results.parquet"
    return f"{shown}{counts}\ndigest {swept.digest}\nresults in {file}"


def _means(table: pa.Table) -> str:
    rows = table.select(["label", *(name for name, _, _ in _COLUMNS)]).to_pylist()
    by_label: dict[str, list[dict[str, float | None]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    text = [["mean over seeds", "seeds", *(title for _, title, _ in _COLUMNS)]]
    for label, each in list(by_label.items())[:_ROWS]:
        cells = []
        for name, _, share in _COLUMNS:
            known = [value for row in each if (value := row[name]) is not None]
            mean = rounded(sum(known) / len(known)) if known else None
            cells.append(f"{100 * mean:.1f} %" if share and mean is not None else number(mean))
        text.append([label, str(len(each)), *cells])
    more = len(by_label) - _ROWS
    return aligned(text) + (f"\n... and {more:,} more, in the table" if more > 0 else "")


def failure_line(swept: Swept) -> str:
    """How many points failed, and why the first one did."""
    first = swept.failed[0]
    count = f"{len(swept.failed):,} of {swept.points:,} points failed"
    return f"{count}, see {Path(swept.folder) / 'failed.csv'}; {first.label} seed {first.seed}: {first.reason}"


def interrupted_line(now: Progress | None, out: str) -> str:
    """How to go on."""
    kept = "no point was begun" if now is None else f"{now.done:,} of {now.points:,} points are kept in {out}"
    return f"interrupted; {kept}; the same command goes on from there"
