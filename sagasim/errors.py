"""Every error a user can cause, as one line: what, where, what was expected, the nearest valid name.

    SagasimError                the root; the command line prints it and exits with 2
    |-- TraceError              a trace file or task that cannot be replayed
    |-- ConfigError             an option, configuration file or cluster that makes no sense
    |-- PolicyError             a policy that is unknown, cannot be loaded or breaks its contract
    |-- CalibrationError        a calibration, model or GPU description that cannot be used
    `-- ResultsError            a results folder that cannot be written or read

A broken law is a bug in sagasim, not a mistake of the user: LawError is not a SagasimError and ends in a traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CalibrationError",
    "ConfigError",
    "LawError",
    "PolicyError",
    "ResultsError",
    "SagasimError",
    "TraceError",
    "nearest",
]


_LONGEST = 1000  # letters of a message


class SagasimError(Exception):
    """A mistake of the user, told in one line.

    what: the problem; where: file, line or option; expected: what would have been valid.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "") -> None:
        self.what = what
        self.where = where
        self.expected = expected
        parts = [f"{where}: {what}" if where else what]
        if expected:
            parts.append(f"expected {expected}")
        super().__init__(_one_line("; ".join(parts)))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: the one line, as the command line does, without the frames below."""
        return [f"{type(self).__name__}: {self}"]


def _one_line(text: str) -> str:
    """Without line breaks and what cannot be printed, and not endless: the middle of a long message is left out."""
    line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"


class TraceError(SagasimError):
    """A trace file or task that cannot be replayed."""


class ConfigError(SagasimError):
    """An option, configuration file or cluster that makes no sense."""


class PolicyError(SagasimError):
    """A policy that is unknown, cannot be loaded or breaks its contract."""


class CalibrationError(SagasimError):
    """A calibration, model or GPU description that cannot be used."""


class ResultsError(SagasimError):
    """A results folder that cannot be written or read."""


class LawError(Exception):
    """The simulator broke one of its own laws: always a bug, never the user's mistake."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """What was expected in place of `name`: the nearest valid name first, else all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"'{close[0]}' perhaps (one of: {listed})" if close else f"one of: {listed}"
