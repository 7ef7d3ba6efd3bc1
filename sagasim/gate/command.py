"""The command `gate`: what it does, and what it has to say as text. Nothing is printed here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sagasim.config import parse_value
from sagasim.errors import ConfigError, ResultsError
from sagasim.gate.baseline import Baseline, baseline_text, read_baseline
from sagasim.gate.cases import DEFAULT_SET, read_set
from sagasim.gate.judge import judge, known_case
from sagasim.gate.measure import Measured, Progress, measure, tolerance_factor, with_rates
from sagasim.gate.output import github, junit, resolution, sentence, table
from sagasim.gate.provenance import day, differences, provenance
from sagasim.userfile import is_there

__all__ = ["gate_command"]

_MOST_JOBS = 1024


def gate_command(args: argparse.Namespace, progress: Progress) -> tuple[str, int]:
    """Compare, or write a baseline. The text to print, and the exit status: 1 if anything is worse than allowed."""
    path = Path(args.baseline)
    jobs = _jobs(args.jobs)
    if args.update:
        if args.junit is not None:
            raise ConfigError("--update judges nothing", where="--junit", expected="one of the two")
        return _update(path, args.set_file, jobs, progress), 0
    if args.set_file is not None:
        raise ConfigError("a set without --update", where="--from", expected="--update, which writes a baseline of it")
    if not is_there(path):
        raise ResultsError("no such file", where=str(path), expected="a baseline, as --update writes it")
    baseline = read_baseline(path)
    if args.junit is not None:
        _check_place(Path(args.junit))
    measured = measure(baseline.case_set, 0, path.parent, jobs, progress)
    judged = judge(baseline, measured)
    parts = [table(judged)]
    others = differences(baseline.provenance, provenance(baseline.case_set, measured, path.parent))
    if others:
        parts.append(f"other than in the baseline: {', '.join(others)}")
    parts.append(sentence(judged, str(path)))
    if args.junit is not None:
        _write(Path(args.junit), junit(judged))
    if args.github or os.environ.get("GITHUB_ACTIONS") == "true":
        parts += filter(None, [github(judged, str(path))])
    return "\n".join(parts), int(judged.fails)


def _update(path: Path, set_file: str | None, jobs: int, progress: Progress) -> str:
    """Write the baseline: of the set, else of the cases it has already, else of the default set."""
    _check_place(path)
    written = day()
    old = read_baseline(path, edited=True) if is_there(path) else None  # and nothing else is ever overwritten
    wanted = read_set(Path(set_file)) if set_file is not None else old.case_set if old else read_set(DEFAULT_SET)
    wanted = with_rates(wanted, path.parent)
    settings = wanted.settings
    measured = measure(wanted, settings.twins, path.parent, jobs, progress)
    factor = tolerance_factor(settings, len(wanted.cases))
    cases = {name: known_case(keys, measured[name], settings, factor) for name, keys in wanted.cases.items()}
    origin = {"written": written, **provenance(wanted, measured, path.parent)}
    seeds, twins = len(settings.seeds), settings.twins
    origin["tolerances"] = (
        f"{factor:.4g} paired_sd / sqrt({seeds}): {seeds} seeds, {twins} twins, level {settings.level:g}"
    )
    new = Baseline(settings, cases, origin)
    _write(path, baseline_text(new))
    parts = [] if old is None else [_moved(old, new, measured)]
    return "\n".join([*parts, resolution(new), f"baseline in {path}"])


def _moved(old: Baseline, new: Baseline, measured: Mapping[str, Sequence[Measured]]) -> str:
    """How the new baseline differs from the old one, in the cases that both have with the same work."""
    both = {}
    for name, case in old.cases.items():
        if old.settings.seeds == new.settings.seeds and name in new.cases and case.work == new.cases[name].work:
            known = {path: one for path, one in case.metrics.items() if path in new.settings.metrics}
            both[name] = replace(case, metrics=known)
    if not both:
        return "no case has the work that it had before"
    return table(judge(replace(old, cases=both), measured)) + "\n"


def _jobs(text: str | None) -> int:
    if text is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    jobs = int(parse_value("seed", text, "--jobs"))  # a whole number too
    if not 1 <= jobs <= _MOST_JOBS:
        raise ConfigError(f"{jobs} is out of range", where="--jobs", expected=f"a whole number from 1 to {_MOST_JOBS}")
    return jobs


def _check_place(path: Path) -> None:
    """Raise ResultsError if the file surely cannot be written, before anything is simulated."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise ResultsError("cannot be written", where=str(path), expected="a file in a folder that can be written")


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise ResultsError(
            f"cannot be written: {error.strerror}", where=str(path), expected="a writable place"
        ) from None
