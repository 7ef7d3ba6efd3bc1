"""Access logs in formats that libCacheSim reads, and its traces as access logs.

    oracleGeneral   24 bytes a request, little-endian: time (s, uint32), object (uint64), size (uint32), position of the
                    object's next request (int64, -1: none)
    csv             the same columns under the header time,obj_id,obj_size,next_access_vtime

An exported request is a block: each call asks for all full blocks that it reads, writes and leaves, in the order of
admission, the first block of its prompt first. Nothing is pinned there, and nothing is known of prefixes.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sagasim.errors import ResultsError, TraceError
from sagasim.oracle.accesses import Access, Log, bare_log
from sagasim.oracle.future import NEVER, NextUses
from sagasim.plan import Branch
from sagasim.units import PS_PER_S

__all__ = ["FORMATS", "export", "is_foreign", "read_foreign", "unit_accesses", "unit_requests"]

FORMATS = ("oracleGeneral", "csv")
REQUEST = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
HEADER = ("time", "obj_id", "obj_size", "next_access_vtime")
_BLOCK_BITS = 32


def unit_requests(log: Log, blocks: int = 1) -> Iterator[NDArray[np.void]]:
    """Call by call, the requests for single blocks (or for runs of `blocks` blocks) in the order of admission."""
    order = [event for event in log.order if event >= 0]
    times = _opened_ps(log)
    units = [_unit(log.accesses[event], blocks) for event in order]
    uses = NextUses(bare_log(units, 0, log.name))
    starts = np.cumsum([0, *(unit.left for unit in units)])
    numbers: dict[Branch, int] = {}
    for number, unit in enumerate(units):
        made = np.zeros(unit.left, dtype=REQUEST)
        made["time"] = times[number] // PS_PER_S
        made["size"] = 1
        at = 0
        for branch, end in unit.path:
            stop = min(end, unit.left)
            made["object"][at:stop] = (numbers.setdefault(branch, len(numbers)) << _BLOCK_BITS) + np.arange(at, stop)
            at = max(at, stop)
        at = 0
        for end, when in uses.of(number):
            made["next"][at:end] = -1 if when == NEVER else starts[when // 2] + np.arange(at, end)
            at = end
        yield made


def _unit(access: Access, blocks: int) -> Access:
    """The same path in larger blocks: one is there where its last block is."""
    left = access.left // blocks
    path = [(branch, end // blocks) for branch, end in access.path]
    ends = [0, *(end for _, end in path)]
    kept = tuple(part for part, before in zip(path, ends, strict=False) if part[1] > before)
    return Access(kept, left, left, left, left)


def _opened_ps(log: Log) -> list[int]:
    times, at = [], 0
    for stop, time in zip(log.stops, log.times_ps, strict=True):
        times += [time] * sum(event >= 0 for event in log.order[at:stop])
        at = stop
    return times


def export(log: Log, path: Path, form: str, blocks: int = 1) -> int:
    """Write all requests, for runs of `blocks` blocks; returns their number."""
    count = 0
    try:
        if form == "oracleGeneral":
            with open(path, "wb") as file:
                for made in unit_requests(log, blocks):
                    file.write(made.tobytes())
                    count += len(made)
        else:
            with open(path, "w", encoding="utf-8", newline="") as text:
                writer = csv.writer(text, lineterminator="\n")
                writer.writerow(HEADER)
                for made in unit_requests(log, blocks):
                    writer.writerows(made.tolist())
                    count += len(made)
    except OSError as error:
        raise ResultsError(f"cannot be written: {error.strerror}", where=path.name) from None
    return count


# ---- traces of libCacheSim


def is_foreign(name: str) -> bool:
    """Whether a file is a trace of libCacheSim: by its name, or by the header of a .csv."""
    if ".oracleGeneral" in Path(name).name:
        return True
    if not name.endswith(".csv") or not Path(name).is_file():
        return False
    with open(name, encoding="utf-8", errors="replace") as file:
        return file.readline().strip().split(",")[:2] == list(HEADER[:2])


def read_foreign(name: str) -> list[Access]:
    """Every request as an access to a block of its own. Raises TraceError."""
    try:
        objects, sizes = _read_csv(name) if name.endswith(".csv") else _read_binary(name)
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", where=name, expected="a trace of libCacheSim") from None
    if not len(objects):
        raise TraceError("no requests", where=name, expected="a trace of libCacheSim")
    if len(set(sizes)) > 1:
        raise TraceError("objects of several sizes", where=name, expected="objects of one size, as KV blocks are")
    return unit_accesses(objects)


def unit_accesses(objects: Sequence[object]) -> list[Access]:
    """One access for each object in turn, each a prompt of a single block."""
    known: dict[object, Access] = {}
    accesses = []
    for name in objects:
        access = known.get(name)
        if access is None:
            access = known[name] = Access(Branch(None, 0).path, 1, 1, 1, 1)
        accesses.append(access)
    return accesses


def _read_binary(name: str) -> tuple[list[int], list[int]]:
    size = Path(name).stat().st_size
    if name.endswith((".zst", ".gz", ".xz")) or size % REQUEST.itemsize:
        expected = f"uncompressed requests of {REQUEST.itemsize} bytes"
        raise TraceError("no whole number of requests", where=name, expected=expected)
    found = np.fromfile(name, dtype=REQUEST)
    return found["object"].tolist(), np.unique(found["size"]).tolist()


def _read_csv(name: str) -> tuple[list[str], list[str]]:
    objects, sizes = [], []
    with open(name, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        missing = [column for column in HEADER[:3] if column not in header]
        if missing:
            raise TraceError(f"no column {missing[0]!r}", where=name, expected=f"the columns {', '.join(HEADER[:3])}")
        at, size = header.index("obj_id"), header.index("obj_size")
        for number, row in enumerate(rows, 2):
            if len(row) != len(header):
                raise TraceError(f"{len(row)} cells", where=f"{name}, line {number}", expected=f"{len(header)} cells")
            objects.append(row[at])
            sizes.append(row[size])
    return objects, sizes
