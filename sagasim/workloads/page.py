"""The page that compares: python -m sagasim.workloads.page [--out docs] [--traces traces]

Writes workloads.md and its figures: for every workload what is recorded or published beside what is generated, worst
first, and a fit to two thirds of the recorded coding sessions against the last third. The same fits give the same
page.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sagasim.errors import SagasimError, TraceError
from sagasim.hardware import data_dir
from sagasim.rng import Stream
from sagasim.trace import open_trace
from sagasim.workloads import generate
from sagasim.workloads.compare import (
    Comparison,
    Row,
    compare_browser,
    compare_fit,
    compare_latencies,
    compare_published,
    held_out,
)
from sagasim.workloads.fit import write_fit
from sagasim.workloads.fit_sessions import fit_sessions
from sagasim.workloads.measure import METRICS
from sagasim.workloads.page_figures import draw_fit, draw_latencies
from sagasim.workloads.page_text import AFTER, BEFORE, NOTES

__all__ = ["main", "write_page"]

TASKS = {"coding-real": 3000, "chat": 8000, "tool-calling": 4000, "multi-agent": 4000}
BROWSER_TASKS, PUBLISHED_TASKS, LATENCIES = 10_000, 20_000, 1_000_000
ASIDE = 3  # one family of sessions in so many is kept aside


def write_page(out: Path, traces: Path) -> None:
    """Write workloads.md and figures/workloads-*.png into a folder."""
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    latencies = compare_latencies(LATENCIES)
    title = "Tools of swe-bench, webarena and multi-tenant: how many take less"
    draw_latencies(figures / "workloads-published.png", title, latencies)
    published = [latencies]
    for name in ("swe-bench", "webarena", "multi-tenant"):
        published += compare_published(name, PUBLISHED_TASKS)
    browser = compare_browser(BROWSER_TASKS)
    title = "browser-real: how much of all values lies below"
    draw_fit(figures / "workloads-browser-real.png", title, browser, "published p5, p50, p95, p99")
    fitted = [compare_fit(name, tasks) for name, tasks in TASKS.items()]
    for comparison in fitted:
        name = comparison.workload
        title = f"{name}: how much of all values lies below"
        draw_fit(figures / f"workloads-{name}.png", title, [comparison], "recorded")
    lines = [BEFORE, *_summary([*fitted, *browser, *published]), *_held_out(traces)]
    for comparison in sorted(fitted, key=lambda c: -c.worst.apart):
        lines += _section(comparison.workload, [comparison])
    lines += _section("browser-real", browser) + _section("published", published)
    (out / "workloads.md").write_text("\n".join([*lines, AFTER]), encoding="utf-8")


def _summary(comparisons: Sequence[Comparison]) -> list[str]:
    """The worst quantity of every workload: distances of distributions first, then differences of quantiles."""
    lines = ["| workload | measured by | worst quantity | apart | second worst | apart |", "|---|---|---|--:|---|--:|"]
    for comparison in sorted(comparisons, key=lambda c: (c.measure != "KS", -c.worst.apart)):
        cells = [comparison.workload, comparison.measure]
        for row in comparison.rows[:2]:
            cells += [row.name.replace("_", " "), _apart(comparison, row)]
        lines.append("| " + " | ".join(cells + [""] * (6 - len(cells))) + " |")
    return ["## Worst first", "", *lines, ""]


def _apart(comparison: Comparison, row: Row) -> str:
    return f"{row.apart:.3f}" if comparison.measure == "KS" else f"{100 * row.apart:.1f} %"


def _section(name: str, comparisons: Sequence[Comparison]) -> list[str]:
    heading = "swe-bench, webarena, multi-tenant" if name == "published" else name
    lines = [f"## {heading}", "", NOTES[name].strip(), "", f"![{heading}](figures/workloads-{name}.png)", ""]
    for comparison in comparisons:
        if len(comparisons) > 1:
            lines += [f"### {comparison.workload}", ""]
        lines += _table(comparison)
    return lines


def _table(comparison: Comparison) -> list[str]:
    heads = comparison.columns
    lines = [f"| quantity | {' | '.join(heads)} | {comparison.measure} |", "|---|" + "--:|" * (len(heads) + 1)]
    for row in comparison.rows:
        pairs = [f"{_number(s)} / {_number(g)}" for s, g in zip(row.stated, row.generated, strict=True)]
        cells = pairs if len(heads) == len(pairs) else [", ".join(pairs)]
        lines.append(
            f"| {METRICS.get(row.name, row.name.replace('_', ' '))} | {' | '.join(cells)} | {_apart(comparison, row)} |"
        )
    return [f"Stated / generated, worst first; {comparison.tasks:,} generated.", "", *lines, ""]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _held_out(traces: Path) -> list[str]:
    """A fit to two thirds of the families of coding sessions against the rest."""
    path = traces / "weka_claude_code.sessions.jsonl.gz"
    if not path.is_file():
        raise TraceError("no such file", where=str(path), expected="the folder of the embedded traces")
    tasks = list(open_trace(path).tasks(0))
    stream = Stream(0, "aside")
    aside_families = {family for family in sorted({t.family or t.name for t in tasks}) if stream.integer(1, ASIDE) == 1}
    own = [task for task in tasks if (task.family or task.name) not in aside_families]
    aside = [task for task in tasks if (task.family or task.name) in aside_families]
    folder = Path(tempfile.mkdtemp())
    try:
        write_fit({"kind": "sessions", **fit_sessions(own)}, folder / "fit.json")
        drawn = list(generate("coding-real", 3000, 1, fit=str(folder / "fit.json")).tasks())
    finally:
        shutil.rmtree(folder)
    lines = ["| quantity | generated from sessions aside | other sessions from sessions aside |", "|---|--:|--:|"]
    lines += [f"| {METRICS[name]} | {one:.3f} | {other:.3f} |" for name, one, other in held_out(own, aside, drawn)]
    text = (
        f"`coding-real` again, fitted to {len(own)} of the recorded sessions and compared with the other {len(aside)}\n"
        "(families of one conversation kept together). KS distances; the last column is how far the two parts of the\n"
        "recording are from each other, which no generator can be expected to beat."
    )
    return ["## On sessions that were kept aside", "", text, "", *lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagasim.workloads.page", description="Compare workloads.")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the page (default: docs)")
    parser.add_argument("--traces", type=Path, default=data_dir() / "traces", help="folder with the embedded traces")
    options = parser.parse_args(arguments)
    try:
        write_page(options.out, options.traces)
    except SagasimError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
