"""Conversations inferred for a trace of single requests: which request answers which earlier one (traces/SCHEMA.md).

A CSV with the columns row, timestamp_ms, parent_row, blocks and gap_ms, one line for each request of the whole trace.
It turns open-loop requests into closed-loop conversations: a request waits for its parent and for the person between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sagasim.core import MAX_CALLS, MAX_DURATION_PS, Tool
from sagasim.errors import TraceError
from sagasim.fill import LLM_S_PER_OUTPUT_TOKEN
from sagasim.importers.agentic_mooncake import Row
from sagasim.importers.csv_rows import csv_rows
from sagasim.importers.lines import MAX_ROWS
from sagasim.units import PS_PER_US

__all__ = ["TURNS_TEXT", "link_turns"]

COLUMNS = ("row", "timestamp_ms", "parent_row", "blocks", "gap_ms")
MAX_ROW = 10**12
TURNS_TEXT = (
    "a person's time between two turns: the time between the two requests less 10 ms per output token of the first, at "
    "least 0 (the source does not say when a response ended): an assumption"
)
_US_PER_OUTPUT_TOKEN = round(LLM_S_PER_OUTPUT_TOKEN * 10**6)

_Key = tuple[int, int]  # timestamp in us, blocks


@dataclass(slots=True)
class _Turn:
    row: int
    key: _Key
    parent: int | None
    gap_us: int | None


def link_turns(rows: dict[str, Row], path: Path) -> None:
    """Write the conversations of a CSV into the requests: session, parent and wait of each.

    The requests are a run of the CSV's rows, told by their times and numbers of blocks, so either file may be a slice;
    a parent outside the requests starts no conversation: its child does. The wait is a tool `user` of the parent, drawn
    by TURNS_TEXT and so filled; where a parent has several children, the shortest of their waits, and what a child
    waits longer is its delay. Raises TraceError where the files do not belong together.
    """
    requests = list(rows.values())
    for request in requests:
        if request.session != request.name or request.after or request.branches:
            what = f"request {request.name!r} has a session of its own"
            raise TraceError(what, where=request.where, expected="requests without session_id for turns")
    turns = _load(path)
    offset = _offset(requests, turns, path)
    place = {turn.row: number for number, turn in enumerate(turns[offset : offset + len(requests)])}
    waits: dict[int, list[tuple[Row, int]]] = {}
    sizes: dict[str, int] = {}
    for request, turn in zip(requests, turns[offset:], strict=False):
        number = None if turn.parent is None else place.get(turn.parent)
        parent = None if number is None else requests[number]
        if parent is not None and number is not None and sizes[parent.session] < MAX_CALLS:
            request.session, request.after = parent.session, (parent.name,)
            gap_us = (request.start_us or 0) - (parent.start_us or 0) if turn.gap_us is None else turn.gap_us
            thought_us = max(gap_us - _US_PER_OUTPUT_TOKEN * parent.output, 0)
            waits.setdefault(number, []).append((request, min(thought_us, MAX_DURATION_PS // PS_PER_US)))
        sizes[request.session] = sizes.get(request.session, 0) + 1
    for number, children in waits.items():
        least_us = min(wait_us for _, wait_us in children)
        requests[number].tools = (Tool("user", least_us * PS_PER_US, True),)
        for request, wait_us in children:
            request.wait_us += wait_us - least_us


def _load(path: Path) -> list[_Turn]:
    turns: list[_Turn] = []
    for line in csv_rows(path, COLUMNS):
        row = line.whole(0, 0, MAX_ROW)
        if turns and row != turns[-1].row + 1:
            raise TraceError(f"row {row}", where=line.where, expected=f"row {turns[-1].row + 1} after the one before")
        parent = line.whole(2, 0, row - 1) if line.cells[2].strip() else None
        gap_us = line.whole(4, 0, 10**11) * 1000 if line.cells[4].strip() else None
        if len(turns) >= MAX_ROWS:
            raise TraceError("too many turns", where=line.where, expected=f"at most {MAX_ROWS:,} in a file")
        turns.append(_Turn(row, (line.whole(1, 0, 10**14) * 1000, line.whole(3)), parent, gap_us))
    return turns


def _offset(requests: Sequence[Row], turns: Sequence[_Turn], path: Path) -> int:
    """Place among the turns of the first request."""
    offset = _find([(row.start_us or 0, len(row.ids)) for row in requests], [turn.key for turn in turns])
    if offset is None:
        what = f"{len(turns):,} turns that are not those of the {len(requests):,} requests"
        raise TraceError(what, where=str(path), expected="a row with the time and blocks of each request, in order")
    return offset


def _find(wanted: list[_Key], keys: list[_Key]) -> int | None:
    """Where a list lies in another one as a whole (Knuth, Morris and Pratt: linear whatever the lists hold)."""
    back = [0] * len(wanted)
    matched = 0
    for place in range(1, len(wanted)):
        while matched and wanted[place] != wanted[matched]:
            matched = back[matched - 1]
        matched += wanted[place] == wanted[matched]
        back[place] = matched
    matched = 0
    for place, key in enumerate(keys):
        while matched and key != wanted[matched]:
            matched = back[matched - 1]
        matched += key == wanted[matched]
        if matched == len(wanted):
            return place + 1 - matched
    return None
