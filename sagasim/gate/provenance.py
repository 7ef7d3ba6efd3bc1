"""Where the numbers of a baseline come from, and what of that is another now."""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np

from sagasim import __version__
from sagasim.errors import ConfigError, ResultsError
from sagasim.gate.cases import CaseSet
from sagasim.gate.measure import Measured
from sagasim.results import canonical_json
from sagasim.seams import option_files
from sagasim.simulate import calibration_name, calibration_of
from sagasim.sources import shares
from sagasim.userfile import is_there

__all__ = ["day", "differences", "provenance"]


def provenance(cases: CaseSet, measured: Mapping[str, Sequence[Measured]], folder: Path) -> dict[str, Any]:
    """Versions, and a hash of all that the cases read: calibrations, tasks, and files by their names there.

    Raises ResultsError for a file that cannot be read.
    """
    calibrations, files = {}, {}
    with chdir(folder):
        for name, keys in cases.cases.items():
            config = cases.config(name, cases.settings.seeds[0])
            calibrations[config.calibration or calibration_name(config)] = _sha(
                canonical_json(calibration_of(config)).encode()
            )
            files.update({str(path): _sha(_content(path)) for path in _files(keys)})
    return {
        "sagasim": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "calibrations": calibrations,
        "files": files,
        "tasks": {name: own[0].tasks for name, own in measured.items()},
    }


def _files(keys: Mapping[str, Any]) -> Iterator[Path]:
    """Files that a configuration names, by themselves or as `./file.py:name`."""
    mixed = list(shares(keys["mix"], "mix")) if "mix" in keys else []
    for text in [*(value for value in keys.values() if isinstance(value, str)), *mixed]:
        yield from map(Path, option_files(text))
        path, colon, _ = text.rpartition(".py:")
        if colon:
            yield Path(f"{path}.py")
        elif is_there(Path(text)) and Path(text).is_file():
            yield Path(text)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        raise ResultsError(what, where=str(path), expected="a file that can be read") from None


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def day() -> str:
    """Today, or the day of SOURCE_DATE_EPOCH, in UTC. Raises ConfigError."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        now = (
            datetime.datetime.now(datetime.UTC)
            if epoch is None
            else datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
        )
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"{str(epoch)[:60]!r} is no time", where="SOURCE_DATE_EPOCH", expected="seconds since 1970"
        ) from None
    return now.date().isoformat()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What is another now: versions with both values, files and calibrations by name."""
    found = [f"{key} {old[key]} -> {new[key]}" for key in ("sagasim", "python", "numpy") if old.get(key) != new[key]]
    for key, what in (("calibrations", "calibration "), ("files", "file ")):
        before = old.get(key)
        known = before if isinstance(before, dict) else {}
        found += [f"{what}{name}" for name, sha in new[key].items() if known.get(name) != sha]
    return found
