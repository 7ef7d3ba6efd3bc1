"""The CSV file of measurements: a row for each kernel, dtype and parameters; resumable, and safe against being cut off.

params is a JSON object with sorted keys; unit is "s" for a time, "bytes/s" for a rate; median, p10 and p90 are over n
samples. device is the GPU's name, or INTERPRETER: times of Triton's interpreter say nothing about any GPU.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import quantiles

__all__ = ["COLUMNS", "INTERPRETER", "Provenance", "RowFile", "RowFileError", "params_text", "read_rows", "summarised"]

COLUMNS = (
    "kernel", "dtype", "params", "unit", "median", "p10", "p90", "n",
    "device", "driver", "torch", "triton", "commit", "date",
)  # fmt: skip
INTERPRETER = "interpreter (not a measurement)"
UNITS = ("s", "bytes/s")
HEADER = ",".join(COLUMNS).encode() + b"\n"


class RowFileError(ValueError):
    """A file that is no file of measurements, or one of another device."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where and with what rows were measured."""

    device: str
    driver: str
    torch: str
    triton: str
    commit: str


def params_text(params: Mapping[str, object]) -> str:
    """Parameters as they stand in a row: the same parameters are the same text."""
    return json.dumps(params, sort_keys=True, separators=(",", ":"))


def summarised(samples: Sequence[float]) -> tuple[float, float, float]:
    """Median, p10 and p90 of at least two samples (linear between them)."""
    cuts = quantiles(samples, n=10, method="inclusive")
    return cuts[4], cuts[0], cuts[8]


def _fields(line: str) -> list[str]:
    return next(csv.reader([line]), [])


def _checked(fields: list[str], where: str) -> dict[str, str]:
    row = dict(zip(COLUMNS, fields, strict=False))
    try:
        numbers = [float(row[key]) for key in ("median", "p10", "p90")]
        valid = len(fields) == len(COLUMNS) and isinstance(json.loads(row["params"]), dict) and int(row["n"]) > 0
    except (KeyError, ValueError):
        valid, numbers = False, [0.0]
    if not valid or row["unit"] not in UNITS or not all(0 < number < inf for number in numbers):
        raise RowFileError(f"{where}: not a measurement; expected {', '.join(COLUMNS)}")
    return row


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file, checked. Raises RowFileError naming the line, OSError where it cannot be read."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if not lines or _fields(lines[0]) != list(COLUMNS):
        raise RowFileError(f"{path}:1: not a file of measurements; expected the columns {', '.join(COLUMNS)}")
    return [_checked(_fields(line), f"{path}:{number}") for number, line in enumerate(lines[1:], start=2) if line]


class RowFile:
    """A file of measurements that grows. Rows that are in it are known; a torn last line is taken off.

    Raises RowFileError where the file holds something else, or rows of another device.
    """

    def __init__(self, path: Path, provenance: Provenance) -> None:
        self.path = path
        self._provenance = provenance
        self._known: set[tuple[str, str, str]] = set()
        self.repaired = path.exists() and _repair(path)
        if path.exists() and path.stat().st_size:
            for row in read_rows(path):
                if row["device"] != provenance.device:
                    expected = f"rows of {provenance.device}, or a new file"
                    raise RowFileError(f"{path}: has rows of {row['device']}; expected {expected}")
                self._known.add((row["kernel"], row["dtype"], row["params"]))
        else:
            self._append(list(COLUMNS))

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, key: tuple[str, str, str]) -> bool:
        """Whether (kernel, dtype, params_text) has been measured."""
        return key in self._known

    def add(
        self, kernel: str, dtype: str, params: Mapping[str, object], unit: str, samples: Sequence[float], date: str
    ) -> None:
        """Append a row, on disk before this returns."""
        text = params_text(params)
        numbers = [f"{value:.6g}" for value in summarised(samples)]
        p = self._provenance
        row = [
            kernel,
            dtype,
            text,
            unit,
            *numbers,
            str(len(samples)),
            p.device,
            p.driver,
            p.torch,
            p.triton,
            p.commit,
            date,
        ]
        self._append(row)
        self._known.add((kernel, dtype, text))

    def _append(self, fields: list[str]) -> None:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(fields)
        with self.path.open("a", encoding="utf-8", newline="") as stream:
            stream.write(line.getvalue())
            stream.flush()
            os.fsync(stream.fileno())


def _repair(path: Path) -> bool:
    """Take a last line off that was not written to its end. A file of something else is left to be refused."""
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole == len(data) or not data.startswith(HEADER[: len(data)]):
        return False
    with path.open("r+b") as stream:
        stream.truncate(whole)
    return True
