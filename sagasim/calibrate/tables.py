"""Tables of measurements: gzipped or plain CSV files, read by column.

calibration/SOURCES.md tells the columns of each source and where each file comes from.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import tomllib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sagasim.errors import CalibrationError

__all__ = [
    "Floats",
    "Mask",
    "Rows",
    "columns",
    "find_table",
    "number_column",
    "origin_of",
    "plain_name",
    "read_table",
    "source_entry",
]

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = dict[str, NDArray[np.float64] | NDArray[np.str_]]  # one table: column name -> values, all of one length

NUMBER = re.compile(r"-?\d+(\.\d*)?(e[-+]?\d+)?", re.IGNORECASE)
NAME = re.compile(r"[^a-z0-9.]+")
ORIGIN_KEYS = ("repository", "commit", "licence", "software", "changed")


def origin_of(source_dir: Path) -> dict[str, str]:
    """What origin.toml in a source folder or one above it says; of other folders no origin is known."""
    for folder in (source_dir, *source_dir.resolve().parents[:3]):
        path = folder / "origin.toml"
        if path.is_file():
            break
    else:
        return {}
    try:
        origin = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"not valid TOML ({error})", where=str(path)) from error
    for key in ORIGIN_KEYS:
        if not isinstance(origin.get(key), str):
            raise CalibrationError(f"key '{key}' is missing or not a text", where=str(path))
    return {key: value for key, value in origin.items() if isinstance(value, str)}


def source_entry(path: Path, origin: dict[str, str]) -> dict[str, str]:
    """One file of a calibration's provenance: its last folders and name, checksum, and where it comes from."""
    parts = path.resolve().parts
    start = parts.index("sources") if "sources" in parts else -4
    entry = {"file": "/".join(parts[start:]), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    told = {key: origin[key] for key in ("repository", "commit", "licence") if key in origin}
    return entry | (told or {"repository": "not stated: the folder has no origin.toml"})


def plain_name(name: str) -> str:
    """A name of a model or GPU for comparing: without the organisation, spaces and capitals."""
    return NAME.sub("", name.rsplit("/", 1)[-1].lower())


def find_table(folder: Path, name: str, *, engine: str = "") -> Path | None:
    """The file NAME.csv[.gz] or NAME-*.csv[.gz] of a folder, that of the engine where there are several.

    None if there is none. Raises CalibrationError if several remain.
    """
    paths = [
        path for ext in ("csv", "csv.gz") for path in (*folder.glob(f"{name}.{ext}"), *folder.glob(f"{name}-*.{ext}"))
    ]
    if len(paths) > 1 and engine:
        paths = [path for path in paths if path.name.startswith(f"{name}-{engine}-")]
    if len(paths) > 1:
        names = ", ".join(sorted(path.name for path in paths))
        raise CalibrationError(f"{len(paths)} tables '{name}' ({names})", where=str(folder), expected="one")
    return paths[0] if paths else None


def read_table(path: Path, needed: tuple[str, ...]) -> Rows:
    """One table by column: columns of numbers as float64 (an empty cell is NaN), the rest as text.

    Raises CalibrationError unless the file can be read and has the needed columns and a row.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise CalibrationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    return _table(path, needed, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=32)
def _table(path: Path, needed: tuple[str, ...], *version: int) -> Rows:
    """The table, read once for several fits; version: of the file's bytes."""
    del version
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
        lines = list(csv.reader(text.splitlines()))
    except OSError as error:
        raise CalibrationError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    except (EOFError, UnicodeDecodeError, csv.Error) as error:
        raise CalibrationError(f"cannot be read ({error})", where=str(path)) from error
    if len(lines) < 2 or any(len(line) != len(lines[0]) for line in lines):
        raise CalibrationError("no rows, or rows of unequal length", where=str(path))
    for name in needed:
        if name not in lines[0]:
            raise CalibrationError(f"no column '{name}'", where=str(path), expected=f"columns {', '.join(needed)}")
    rows: Rows = {}
    for name, column in zip(lines[0], zip(*lines[1:], strict=True), strict=True):
        distinct = set(column)
        if all(NUMBER.fullmatch(value) for value in distinct - {""}) and distinct != {""}:
            rows[name] = np.array([float(value) if value else np.nan for value in column])
        else:
            rows[name] = np.array(column)
    return rows


def number_column(rows: Rows, name: str, where: Path) -> Floats:
    """A column that has to hold numbers."""
    column = rows[name]
    if column.dtype != np.float64:
        raise CalibrationError(f"column '{name}' holds text", where=str(where), expected="numbers")
    return np.asarray(column, dtype=np.float64)


def columns(rows: Rows, keep: Mask, *names: str) -> list[Floats]:
    """Columns of numbers, only the rows to keep; there must be some."""
    if not keep.any():
        raise CalibrationError(f"no row of a table fits the model and its split (looking for {', '.join(names)})")
    found = []
    for name in names:
        column = rows[name][keep]
        if column.dtype != np.float64 or not np.isfinite(np.asarray(column, dtype=np.float64)).all():
            raise CalibrationError(f"column '{name}' of a table holds something else than numbers")
        found.append(np.asarray(column, dtype=np.float64))
    return found
