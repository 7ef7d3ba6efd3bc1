"""What the page says of a study of the oracle: miss-ratio curves, and every policy beside the optimum."""

from __future__ import annotations

from collections.abc import Iterator

from sagasim.html_report.page import Cell, Element, element, figure, section, table
from sagasim.html_report.svg import to_svg
from sagasim.oracle.output import heading, lay_out, table_rows
from sagasim.oracle.output import table as study_text
from sagasim.oracle.study import OPTIMUM, POOLED, Row, Study

__all__ = ["lead_sentence", "study_page"]


def study_page(study: Study) -> Iterator[Element]:
    """The elements of the page, below its title. To be called under svg.drawing()."""
    from matplotlib.figure import Figure

    yield element("div", element("p", lead_sentence(study)), class_="lead")
    yield element("p", heading(study).replace("\n", ". ") + ".", class_="soft")
    drawn = Figure()
    lay_out(drawn, "", study)
    for text in list(drawn.texts):  # the heading: it stands above
        text.remove()
    drawn.tight_layout(rect=(0, 0, 0.85, 1))
    caption = "Left: blocks read that were not in the cache. Right: blocks computed again, over those of the optimum."
    alt = "Misses, and regenerated blocks over those of the optimum, by memory size, for every policy"
    yield section("Miss-ratio curves", figure(to_svg(drawn, alt, "misses-"), caption))
    heads, *rows = table_rows(study)
    cells = [[Cell(row[0]), *map(_cell, row[1:])] for row in rows]
    lines = [line for part in study_text(study).split("\n\n")[2:] for line in part.split("\n")]
    notes = [element("p", line, class_="soft") for line in lines]
    body = table(heads, cells, texts=1, label="regenerated blocks by policy and memory")
    yield section("Every policy beside the optimum", body, *notes)


def _cell(text: str) -> Cell:
    """A count of blocks, its ratio to the optimum below it."""
    count, _, ratio = text.partition(" (")
    digits = count.replace(",", "")
    return Cell(count, f"({ratio}" if ratio else "", float(digits) if digits.isdigit() else None)


def lead_sentence(study: Study) -> str:
    """Who is nearest to the optimum and who is farthest, at the memory with ratios that is nearest to all there is."""
    rated = [row for row in study.rows if row.ratio is not None and row.policy not in (OPTIMUM, POOLED) and row.memory]
    if not rated:
        return "There is no ratio to the optimum: it regenerates nothing, or running calls do not fit."
    size = min((row.memory or 0.0 for row in rated), key=lambda memory: abs(memory - 1))
    here = sorted((row for row in rated if row.memory == size), key=lambda row: (row.ratio or 0.0, row.policy))
    text = f"At memory {size:g}, {here[0].policy} regenerates {_times(here[0])} as many blocks as the optimum"
    if len(here) > 1:
        text += f", the least of {len(here)} policies; {here[-1].policy} {_times(here[-1])}, the most"
    return text + "."


def _times(row: Row) -> str:
    return f"{row.ratio:.3g} times"
