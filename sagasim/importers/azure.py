"""The CSV of Azure's public LLM inference traces: when a request came, its prompt and output tokens. Nothing is shared.

Columns, as github.com/Azure/AzurePublicDataset names them (2023 and 2024): TIMESTAMP, ContextTokens, GeneratedTokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from sagasim.core import MAX_DURATION_PS, Call, Task
from sagasim.errors import TraceError
from sagasim.importers.csv_rows import csv_rows
from sagasim.importers.lines import MAX_SECONDS
from sagasim.units import PS_PER_US

__all__ = ["COLUMNS", "read_azure"]

COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def read_azure(path: Path) -> Iterator[Task]:
    """One task of one call for each row, in the order of the file; arrivals count from the first row on.

    Rows are not kept, so the file may be larger than memory. An output of 0 tokens counts as one. Raises TraceError
    for a row that cannot be read and for one before the first or more than a day after it.
    """
    first: datetime | None = None
    for row in csv_rows(path, COLUMNS):
        moment = _moment(row.cells[0], row.where)
        first = moment if first is None else first
        since = moment - first
        arrival_ps = ((since.days * 86_400 + since.seconds) * 10**6 + since.microseconds) * PS_PER_US
        if not 0 <= arrival_ps <= MAX_DURATION_PS:
            what, expected = f"TIMESTAMP is {row.cells[0]!r:.40}", f"at most {MAX_SECONDS:.0f} s after the first row"
            raise TraceError(what, where=row.where, expected=f"{expected}, none before it")
        prompt, output = row.whole(1, 1), max(row.whole(2), 1)
        name = f"row {row.number}"
        yield Task(name, (Call(name, prompt, output),), arrival_ps=arrival_ps)


def _moment(text: str, where: str) -> datetime:
    """A date and time; without a zone it is taken as UTC. Digits beyond the microsecond are cut off."""
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        expected = "a date and time such as 2023-11-16 18:17:03.9799600"
        raise TraceError(f"TIMESTAMP is {text!r:.60}", where=where, expected=expected) from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
