"""The tables a calibration is fitted on: a folder per GPU with gzipped CSV files and origin.toml.

calibration/SOURCES.md tells the columns and where each file comes from.
"""

from __future__ import annotations

import csv
import gzip
import re
import tomllib
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sagasim.errors import CalibrationError

__all__ = ["TABLES", "Floats", "Rows", "columns", "origin_of", "read_table", "table_path"]

Floats = NDArray[np.float64]
Rows = dict[str, NDArray[np.float64] | NDArray[np.str_]]  # one table: column name -> values, all of one length

HEADS = ("num_heads", "num_key_value_heads", "attn_dtype", "kv_cache_dtype", "batch_size")
NUMBER = re.compile(r"\d+(\.\d+)?(e-?\d+)?")
TABLES = {  # name -> the columns a fit reads besides latency_ms
    "generation_attention": (*HEADS, "step"),
    "context_attention": (*HEADS, "isl"),
    "gemm": ("gemm_dtype", "m", "n", "k"),
    "custom_allreduce": ("backend", "num_gpus", "message_size"),
    "nccl": ("op_name", "nccl_dtype", "num_gpus", "message_size"),
}


def origin_of(source_dir: Path) -> dict[str, str]:
    """Repository, commit, licence, GPU and software of a source folder."""
    path = source_dir / "origin.toml"
    try:
        origin = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"not valid TOML ({error})", where=str(path)) from error
    for key in ("repository", "commit", "licence", "gpu", "software", "changed"):
        if not isinstance(origin.get(key), str):
            raise CalibrationError(f"key '{key}' is missing or not a text", where=str(path))
    return origin


def table_path(source_dir: Path, table: str) -> Path:
    paths = sorted(source_dir.glob(f"{table}-*.csv.gz"))
    if len(paths) != 1:
        raise CalibrationError(f"{len(paths)} files {table}-*.csv.gz", where=str(source_dir), expected="exactly one")
    return paths[0]


@lru_cache(maxsize=16)
def read_table(source_dir: Path, table: str) -> Rows:
    """One table by column: numbers as float64, the rest as text, and `us`, the latency in microseconds."""
    path = table_path(source_dir, table)
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CalibrationError(f"cannot be read ({error})", where=str(path)) from error
    if len(lines) < 2 or any(len(line) != len(lines[0]) for line in lines):
        raise CalibrationError("no rows, or rows of unequal length", where=str(path))
    for name in (*TABLES[table], "latency_ms"):
        if name not in lines[0]:
            raise CalibrationError(f"no column '{name}'", where=str(path))
    rows: Rows = {}
    for name, column in zip(lines[0], zip(*lines[1:], strict=True), strict=True):
        values = np.array(column)
        rows[name] = values.astype(np.float64) if all(NUMBER.fullmatch(value) for value in set(column)) else values
    if rows["latency_ms"].dtype != np.float64:
        raise CalibrationError("a latency_ms is not a number", where=str(path))
    rows["us"] = np.asarray(rows["latency_ms"], dtype=np.float64) * 1e3
    return rows


def columns(rows: Rows, keep: NDArray[np.bool_], *names: str) -> list[Floats]:
    """Columns of numbers, only the rows to keep; there must be some."""
    if not keep.any():
        raise CalibrationError(f"no row of a table fits the model and its split (looking for {', '.join(names)})")
    return [np.asarray(rows[name], dtype=np.float64)[keep] for name in names]
