"""Rows of CSV files nobody has checked: a header line that names the columns, then plain cells without quotes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sagasim.core import MAX_TOKENS
from sagasim.errors import TraceError, nearest
from sagasim.importers.lines import printable, raw_lines, whole

__all__ = ["CsvRow", "csv_rows", "header_cells"]

LINE_CHARACTERS = 10_000
_DIGITS = 18  # of a whole number: enough for nanoseconds


@dataclass(frozen=True, slots=True)
class CsvRow:
    """The cells of a row under the columns that were asked for; number: its place, 1 for the first after the header."""

    number: int
    where: str
    columns: Sequence[str]
    cells: list[str]

    def whole(self, place: int, low: int = 0, high: int = MAX_TOKENS) -> int:
        """The whole number under a column."""
        text = self.cells[place].strip()
        value: object = int(text) if text.isascii() and text.isdecimal() and len(text) <= _DIGITS else text
        return whole(value, self.columns[place], self.where, low, high)


def header_cells(line: bytes) -> list[str]:
    """Names of the columns, as far as a line can be a header."""
    return [cell.strip() for cell in line[:LINE_CHARACTERS].decode("utf-8", "replace").split(",")]


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[CsvRow]:
    """The rows of a file, plain or gzip, one in memory at a time; `columns` in any order, others are ignored."""
    names: list[str] = []
    places: list[int] = []
    number = 0
    for count, line in raw_lines(path):
        where = f"{path}:{count}"
        if len(line) > LINE_CHARACTERS:
            raise TraceError("a row that is too long", where=where, expected=f"at most {LINE_CHARACTERS} characters")
        if not names:
            names = header_cells(line)
            places = [_place(names, column, where) for column in columns]
            continue
        if line.isspace():
            continue
        try:
            cells = line.decode().rstrip("\r\n").split(",")
        except UnicodeDecodeError:
            raise TraceError("not text", where=where, expected="a row of CSV, in UTF-8") from None
        if len(cells) != len(names):
            raise TraceError(f"{len(cells)} cells", where=where, expected=f"{len(names)} cells, as in the header")
        number += 1
        yield CsvRow(number, where, columns, [cells[place] for place in places])
    if not number:
        raise TraceError("no rows", where=str(path), expected="a header line and at least one row")


def _place(names: list[str], column: str, where: str) -> int:
    lowered = [name.lower() for name in names]
    if column.lower() not in lowered:
        expected = nearest(column, [printable(name, 40) for name in names[:50]])
        raise TraceError(f"no column {column!r}", where=where, expected=expected)
    return lowered.index(column.lower())
