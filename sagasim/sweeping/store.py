"""The folder of a sweep: one file for each point, and what is needed to show the sweep later.

sweep.toml          the sweep, resolved: keys of every point, and a table [[points]] with the hash of each
points/HASH.json    {"sha256": of the rest, "body": {"point", "config", "summary", "seconds"}}
results.parquet     the table
failed.csv          points without a result and why, if there are any
sweep.lock          held while a sweep is at work here; a process that ends, however it ends, holds it no longer

Every file appears whole or not at all. A file of a point that is torn or belongs elsewhere counts as none.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import io
import json
import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sagasim.errors import ResultsError
from sagasim.sweeping.points import Failure, Point

__all__ = ["Entry", "Folder", "entries", "locked"]

_HEAD = b'{"sha256":"'
_NECK = b'","body":'
_HEX = 64
_HINT = "room and rights to write; the same command then goes on from here"


@dataclass(frozen=True, slots=True)
class Entry:
    """A point as sweep.toml names it. given: every key that was said of it."""

    hash: str
    given: Mapping[str, Any]
    label: str | None


class Folder:
    """The folder of a sweep. A file of it is on the disk before it has its name; ResultsError if it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def result(self, point: str) -> dict[str, Any] | None:
        """What was stored of a point; None if nothing was, or not by a sweep."""
        try:
            content = self._file(point).read_bytes()
        except OSError:
            return None
        start = len(_HEAD) + _HEX + len(_NECK)
        body = content[start:-2]
        sha = hashlib.sha256(body).hexdigest().encode()
        if content != _HEAD + sha + _NECK + body + b"}\n":
            return None
        found = json.loads(body)
        return found if isinstance(found, dict) and found.get("point") == point and "summary" in found else None

    def store(self, point: str, body: Mapping[str, Any]) -> None:
        text = json.dumps({"point": point, **body}, allow_nan=False, ensure_ascii=False).encode()
        sha = hashlib.sha256(text).hexdigest().encode()
        self.write(self._file(point), _HEAD + sha + _NECK + text + b"}\n")

    def _file(self, point: str) -> Path:
        return self.path / "points" / f"{point}.json"

    def write(self, path: Path, content: bytes) -> None:
        """Write a file of the folder, whole or not at all."""
        temporary: str | None = None
        try:
            path.parent.mkdir(exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
            with open(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.fsync(file.fileno())
            Path(temporary).replace(path)
            temporary = None
        except OSError as error:
            raise ResultsError(f"cannot be written: {error.strerror}", where=str(path), expected=_HINT) from None
        finally:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)

    def write_spec(self, points: Sequence[Point]) -> None:
        """sweep.toml: what is said of every point above, the rest in a table for each."""
        first = points[0].base
        common = {k: v for k, v in first.items() if all(k in p.base and p.base[k] == v for p in points)}
        self._write_toml(
            common,
            [
                ({k: v for k, v in point.base.items() if k not in common} | point.own, point.hash, point.label)
                for point in points
            ],
        )

    def write_entries(self, found: Sequence[Entry]) -> None:
        """sweep.toml of entries of several sweeps."""
        first = found[0].given
        common = {k: v for k, v in first.items() if all(k in e.given and e.given[k] == v for e in found)}
        common.pop("seed", None)
        rest = [{k: v for k, v in entry.given.items() if k not in common} for entry in found]
        self._write_toml(common, [(own, e.hash, e.label) for own, e in zip(rest, found, strict=True)])

    def _write_toml(self, common: Mapping[str, Any], rest: Iterable[tuple[dict[str, Any], str, str | None]]) -> None:
        import tomli_w  # only where a sweep is written

        points = [own | ({} if label is None else {"label": label}) | {"point": name} for own, name, label in rest]
        self.write(self.path / "sweep.toml", tomli_w.dumps({**common, "points": points}).encode())

    def write_failures(self, failures: Sequence[Failure]) -> None:
        """failed.csv, or none where nothing failed."""
        path = self.path / "failed.csv"
        if not failures:
            path.unlink(missing_ok=True)
            return
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["point", "label", "seed", "reason"])
        rows.writerows([one.hash, one.label, one.seed, one.reason] for one in failures)
        self.write(path, text.getvalue().encode())


@contextmanager
def locked(out: str | Path) -> Iterator[Folder]:
    """The folder of a sweep, made unless it is there, while nobody else sweeps in it.

    Raises ResultsError if somebody does, or if the folder holds other things or cannot be written.
    """
    path = Path(out)
    expected = "a new folder, or that of a sweep"
    try:
        if path.exists() and not _is_free(path):
            raise ResultsError("holds something else", where=str(out), expected=expected)
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / "sweep.lock", "a+", encoding="utf-8")  # noqa: SIM115 - closed below
    except OSError as error:
        raise ResultsError(f"cannot be made: {error.strerror}", where=str(out), expected="a writable place") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            what = f"process {lock.read(20).strip() or 'unknown'} sweeps in it"
            raise ResultsError(what, where=str(out), expected="to wait for it, or another folder") from None
        except OSError as error:
            raise ResultsError(f"cannot be locked: {error.strerror}", where=str(out)) from None
        try:
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            for torn in (*path.glob("*.partial"), *path.glob("points/*.partial")):
                torn.unlink(missing_ok=True)
        except OSError as error:
            raise ResultsError(f"cannot be written: {error.strerror}", where=str(out), expected=_HINT) from None
        yield Folder(path)


def _is_free(path: Path) -> bool:
    """Whether a sweep may write here: nothing is there, or a sweep is."""
    if not path.is_dir():
        return False
    return not any(path.iterdir()) or any((path / name).exists() for name in ("sweep.lock", "sweep.toml"))


def entries(folder: str | Path) -> list[Entry]:
    """The points that the sweep of a folder asks for. Raises ResultsError unless there is a sweep in it."""
    path = Path(folder) / "sweep.toml"
    expected = "a folder of `sagasim sweep`"
    try:
        content = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ResultsError(f"cannot be read: {error.strerror}", where=str(path), expected=expected) from None
    except (ValueError, RecursionError) as error:
        raise ResultsError(f"not TOML: {str(error)[:200]}", where=str(path), expected=expected) from None
    points = content.pop("points", None)
    if not isinstance(points, list) or not points or not all(isinstance(p, dict) and _named(p) for p in points):
        raise ResultsError("no points with their hashes", where=str(path), expected=expected)
    found = []
    for point in points:
        own = {key: value for key, value in point.items() if key not in ("point", "label")}
        found.append(Entry(point["point"], content | own, point.get("label")))
    return found


def _named(point: dict[str, Any]) -> bool:
    name = point.get("point")
    return isinstance(name, str) and name.isalnum() and isinstance(point.get("label", ""), str)
