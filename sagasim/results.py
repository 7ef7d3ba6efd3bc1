"""A folder of results: written whole or not at all, and read back.

config.toml       resolved configuration; running it again gives the same digest
summary.json      metrics (canonical JSON)
tasks, calls, occupancy, replicas, transfers .parquet    the log
figure.png        unless it was not wanted
timing.json       wall-clock facts of this very execution
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sagasim import __version__
from sagasim.compiled import active
from sagasim.config import merge, read_config, to_toml
from sagasim.errors import ResultsError
from sagasim.eventlog import CALLS, OCCUPANCY, REPLICAS, TASKS, TRANSFERS
from sagasim.importers.lines import printable
from sagasim.simulate import Result
from sagasim.userfile import is_there

if TYPE_CHECKING:
    import pyarrow as pa

    from sagasim.experiment import Run

__all__ = ["canonical_json", "read_json", "read_run", "staging", "write_json", "write_run", "write_timed"]

NAMES = ("task_name", "tenant_name")  # of the table of tasks
ROWS_OF_A_BYTE = 100  # a file of few bytes and more rows than that is no log: rows differ
TABLES = {"calls": CALLS, "tasks": TASKS, "occupancy": OCCUPANCY, "replicas": REPLICAS, "transfers": TRANSFERS}


@contextmanager
def staging(out: str | Path) -> Iterator[Path]:
    """A temporary folder beside `out`, renamed to `out` at the end, or removed if anything goes wrong.

    Raises ResultsError, before the body runs, if `out` exists or nothing can be written beside it.
    """
    target = Path(out)
    try:
        if target.exists() or target.is_symlink():
            raise ResultsError("exists already", where=str(out), expected="a folder that does not exist yet")
        made = _missing_parents(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        folder.chmod(0o777 & ~_umask())
    except OSError as error:
        raise ResultsError(f"cannot be made: {error.strerror}", where=str(out), expected="a writable place") from None
    try:
        yield folder
        _publish(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            _remove_if_empty(parent)
        raise


def _missing_parents(target: Path) -> list[Path]:
    """Folders above the target that have to be made, the deepest first."""
    return [parent for parent in target.parents if not parent.exists()]


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # somebody else uses it by now


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _publish(folder: Path, target: Path) -> None:
    try:
        if target.exists():
            raise ResultsError("has appeared meanwhile", where=str(target), expected="a folder of this run alone")
        folder.rename(target)
    except OSError as error:
        raise ResultsError(f"cannot be made: {error.strerror}", where=str(target)) from None


def canonical_json(value: object) -> str:
    """Sorted keys, two spaces, no NaN: equal values are equal bytes."""
    return json.dumps(value, sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value: object) -> None:
    try:
        path.write_text(canonical_json(value), encoding="utf-8")
    except OSError as error:
        raise ResultsError(f"cannot be written: {error.strerror}", where=path.name) from None


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise ResultsError(what, where=str(path), expected="a file that can be read") from None
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"not JSON: {error}", where=str(path), expected="a JSON document") from None


def write_run(folder: Path, result: Result, summary: Mapping[str, Any]) -> None:
    """Write all of a run but its figure and timing; the folder is made unless it exists."""
    try:
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text(to_toml(result.config), encoding="utf-8")
        for name, columns in _named(result).items():
            _write_table(folder / f"{name}.parquet", columns)
    except OSError as error:
        raise ResultsError(f"cannot be written: {error.strerror or error}", where="results") from None
    except UnicodeEncodeError:  # a trace below a folder whose name has another encoding
        what = f"a path that is no text: {printable(result.config.trace)}"
        raise ResultsError(what, where="results", expected="names of files and folders in UTF-8") from None
    write_json(folder / "summary.json", summary)


def write_timed(folder: Path, run: Run, **timing: float) -> None:
    """Write a run and how long everything took, its figure apart. timing: seconds of what came before."""
    started = time.perf_counter()
    write_run(folder, run.result, run.summary)
    run.timing.update(timing, writing_s=time.perf_counter() - started, versions=_versions())
    write_json(folder / "timing.json", run.timing)


def _versions() -> dict[str, str]:
    import pyarrow as pa

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "sagasim": __version__,
        "engine": "compiled" if active() else "source",
    }


def _named(result: Result) -> dict[str, dict[str, Any]]:
    """The tables of the log, with names beside the numbers of tasks and tenants."""
    tasks, calls = result.tasks, result.calls
    tenant_of_call = tasks["tenant"][np.searchsorted(tasks["task"], calls["task"])]
    return {
        "calls": {
            **calls,
            "task_name": _dictionary(calls["task"], result.task_names),
            "tenant_name": _dictionary(tenant_of_call, result.tenants),
        },
        "tasks": {
            **tasks,
            "task_name": _dictionary(tasks["task"], result.task_names),
            "tenant_name": _dictionary(tasks["tenant"], result.tenants),
        },
        "occupancy": dict(result.occupancy),
        "transfers": dict(result.transfers),
        "replicas": dict(result.replicas),
    }


def _dictionary(indices: Any, names: list[str]) -> pa.DictionaryArray:
    """Names by number. Built from buffers, as are all arrays here: pyarrow.array imports pandas where there is one."""
    import pyarrow as pa  # needed only here, and slow to import

    encoded = [name.encode() for name in names]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    words = pa.StringArray.from_buffers(len(names), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))
    numbers = np.ascontiguousarray(indices, dtype=np.int32)
    whole = pa.Array.from_buffers(pa.int32(), len(numbers), [None, pa.py_buffer(numbers)])
    return pa.DictionaryArray.from_arrays(whole, words)


def _write_table(path: Path, columns: Mapping[str, Any]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    arrays = [
        pa.Array.from_buffers(pa.int64(), len(column), [None, pa.py_buffer(np.ascontiguousarray(column))])
        if isinstance(column, np.ndarray)
        else column
        for column in columns.values()
    ]
    with path.open("wb") as file:  # pyarrow opens no path that is not UTF-8
        parquet.write_table(pa.Table.from_arrays(arrays, names=list(columns)), file, compression="zstd")


def read_run(folder: str | Path) -> Result:
    """The log of an earlier run, to be measured again. Events executed are not stored; they come back as 0.

    Raises ResultsError, or ConfigError for its config.toml.
    """
    folder = Path(folder)
    if not is_there(folder) or not folder.is_dir():
        raise ResultsError("no such folder", where=str(folder), expected="the --out of an earlier run")
    tables = {
        name: _read_table(folder / f"{name}.parquet", columns, NAMES if name == "tasks" else ())
        for name, columns in TABLES.items()
    }
    columns = {name: {key: tables[name][key].to_numpy() for key in TABLES[name]} for name in TABLES}
    tasks = tables["tasks"]
    tenants = dict(zip(columns["tasks"]["tenant"].tolist(), tasks["tenant_name"].to_pylist(), strict=True))
    if not all(0 <= number < len(tasks) for number in tenants):
        what = f"numbers of tenants from {min(tenants)} to {max(tenants)}"
        raise ResultsError(what, where=str(folder / "tasks.parquet"), expected="numbers from 0, one a task at most")
    config = merge(read_config(folder / "config.toml"))
    notes, counts = _told(folder / "summary.json")
    return Result(
        config=config,
        **columns,
        task_names=tasks["task_name"].to_pylist(),
        tenants=[tenants.get(number, "") for number in range(max(tenants, default=-1) + 1)],
        executed=0,
        notes=notes,
        counts=counts,
    )


def _told(path: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Notes and counts of a run, from its summary: what its log does not hold."""
    summary = read_json(path)
    notes = summary.get("notes", {}) if isinstance(summary, dict) else None
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise ResultsError("no notes of texts", where=str(path), expected="a file of sagasim run")
    counts = summary.get("counts", {})
    if not isinstance(counts, dict) or not all(isinstance(count, int) for count in counts.values()):
        raise ResultsError("no counts of whole numbers", where=str(path), expected="a file of sagasim run")
    return notes, counts


def _read_table(path: Path, numbers: tuple[str, ...], names: tuple[str, ...]) -> pa.Table:
    """The columns of a file that hold whole numbers and names, none missing."""
    import pyarrow as pa
    from pyarrow import parquet

    expected = "a file of sagasim run"
    try:
        with parquet.ParquetFile(path) as file:
            rows, most = file.metadata.num_rows, ROWS_OF_A_BYTE * path.stat().st_size
            if rows > most:
                raise ResultsError(f"claims {rows:,} rows", where=str(path), expected=f"at most {most:,} in its size")
            missing = [name for name in (*numbers, *names) if name not in file.schema_arrow.names]
            if missing:
                raise ResultsError(f"lacks column {missing[0]!r}", where=str(path), expected=expected)
            table = file.read(columns=[*numbers, *names])
    except (OSError, ValueError, pa.ArrowException) as error:
        what = f"cannot be read: {printable(error)}"
        raise ResultsError(what, where=str(path), expected=expected) from None
    text = pa.dictionary(pa.int32(), pa.string())
    for name in (*numbers, *names):
        column = table[name]
        if column.type != (pa.int64() if name in numbers else text) or column.null_count:
            kind = "whole numbers" if name in numbers else "names"
            what = f"column {name!r} of {column.type} with {column.null_count} gaps"
            raise ResultsError(what, where=str(path), expected=f"{kind}, as sagasim run writes them")
    return table
