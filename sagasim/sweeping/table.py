"""The results of a sweep as one tidy table: a row for each point, in an order that the points alone decide."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim.config import KINDS, Config
from sagasim.errors import ResultsError
from sagasim.importers.lines import printable
from sagasim.metrics import flat
from sagasim.sweeping.store import Entry

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["content_digest", "labels", "read_results", "results_table", "write_table"]

KEYS = tuple(field.name for field in fields(Config))
_TEXTS = ("notes",)  # of a summary: in the points' own files only
_SAME = ("preset", "seed")  # of a summary: the configuration says them


def results_table(found: Sequence[tuple[Entry, Mapping[str, Any]]]) -> pa.Table:
    """The table of points and what was stored of them.

    Columns: `point` (its hash), `label`, every key of the configuration that varies or was given, `seed`, then all
    numbers of summary.json with dots between their names. A number that has the name of a key is `summary.NAME`.
    Rows are sorted by the keys, in the order of the configuration, then by seed.
    """
    import pyarrow as pa

    given = set().union(*(entry.given for entry, _ in found)) if found else set()
    configs = [body["config"] for _, body in found]
    varied = {key for key in KEYS if len({_order(config.get(key)) for config in configs}) > 1}
    keys = [key for key in KEYS if key in given | varied and key != "seed"]
    rows = sorted(found, key=lambda row: (*(_order(row[1]["config"].get(key)) for key in (*keys, "seed")), row[0].hash))
    names = labels([(entry.label, entry.given) for entry, _ in rows])
    columns: dict[str, Any] = {"point": pa.array([entry.hash for entry, _ in rows], pa.string())}
    columns["label"] = pa.array(names, pa.string())
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    for key in (*keys, "seed"):
        columns[key] = pa.array([body["config"].get(key) for _, body in rows], types[KINDS[key]])
    told = [dict(flat({k: v for k, v in body["summary"].items() if k not in (*_TEXTS, *_SAME)})) for _, body in rows]
    for name in dict.fromkeys(name for row in told for name in row):
        values = [row.get(name) for row in told]
        kinds = {type(value) for value in values if value is not None}
        kind = str if str in kinds else int if kinds == {int} else float
        columns[f"summary.{name}" if name in KEYS else name] = pa.array(values, types[kind])
    return pa.table(columns)


def _order(value: Any) -> tuple[int, Any]:
    """A key to sort by, whatever the value; what is not set comes first."""
    if value is None:
        return (0, 0)
    return (2, value) if isinstance(value, str) else (1, value)


def labels(found: Sequence[tuple[str | None, Mapping[str, Any]]]) -> list[str]:
    """A short text for each point, of its own label and what was said of it: the label, or the keys that vary.

    The seed is left out; where nothing varies it is the preset.
    """
    said = [given for _, given in found]
    varied = [key for key in KEYS if key != "seed" and len({_order(given.get(key)) for given in said}) > 1]
    return [label or _text(given, varied) for label, given in found]


def _text(given: Mapping[str, Any], varied: Sequence[str]) -> str:
    told = [f"{key}={_short(given[key])}" for key in varied if key in given]
    return " ".join(told) or str(given.get("preset", "default"))


def _short(value: Any) -> str:
    if isinstance(value, str):
        return value.rsplit("/", 1)[-1]
    return f"{value:g}" if isinstance(value, float) else str(value)


def content_digest(table: pa.Table) -> str:
    """SHA-256 of names, types and values: that of equal tables is equal, whatever wrote them."""
    sha = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        sha.update(json.dumps([field.name, str(field.type), column.to_pylist()]).encode())
    return sha.hexdigest()


def write_table(table: pa.Table) -> bytes:
    """The table as a Parquet file, its digest among the file's metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    digest = {b"sagasim.digest": content_digest(table).encode()}
    parquet.write_table(table.replace_schema_metadata(digest), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content


def read_results(folder: str | Path) -> pa.Table:
    """The table of a sweep, as a pyarrow.Table. Raises ResultsError."""
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(folder) / "results.parquet"
    try:
        with path.open("rb") as file:
            return parquet.read_table(file)
    except (OSError, ValueError, pa.ArrowException) as error:
        what = f"cannot be read: {printable(error)}"
        expected = "the folder of a sweep that has ended"
        raise ResultsError(what, where=str(path), expected=expected) from None
