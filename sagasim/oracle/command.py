"""The command `oracle`: what it does, and what it has to say as text. Nothing is printed here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sagasim.config import resolve
from sagasim.errors import ConfigError, nearest
from sagasim.experiment import execute
from sagasim.oracle.accesses import Progress
from sagasim.oracle.formats import FORMATS, export, is_foreign, read_foreign
from sagasim.oracle.options import MEMORY
from sagasim.oracle.output import content, draw, table, write_csv
from sagasim.oracle.study import Inputs, Study, from_accesses, from_run, from_tasks, offline_policies, study
from sagasim.report import work_label
from sagasim.results import read_run, staging, write_json
from sagasim.work import prepare

__all__ = ["memory_sizes", "oracle_command", "write_study"]

_MOST_MEMORY = 1e6

Simulating = Callable[[int, int], None]


def oracle_command(
    args: argparse.Namespace, layers: Sequence[Mapping[str, Any]], progress: Progress, simulating: Simulating
) -> str:
    """Replay, write the folder if one is named, and return the table."""
    memory = memory_sizes(args.memory)
    names = _names(args.policies)
    pins = _word("--pins", args.pins or "run", ("run", "none"))
    form = None if args.export is None else _word("--export", args.export, FORMATS)
    if form is not None and not args.out:
        raise ConfigError("no folder for the accesses", where="--export", expected="--out DIR")
    with staging(args.out) if args.out else nullcontext() as folder:
        inputs, title = _inputs(args, layers, pins, progress, simulating)
        found = study(inputs, names or offline_policies(blind=inputs.timeline is None), memory, progress)
        text = table(found)
        if folder is not None:
            text += "\n" + write_study(folder, title, found, inputs, form, figure=not args.no_figures)
    return text + (f"\nresults in {args.out}" if args.out else "")


def _inputs(
    args: argparse.Namespace,
    layers: Sequence[Mapping[str, Any]],
    pins: str,
    progress: Progress,
    simulating: Simulating,
) -> tuple[Inputs, str]:
    if args.run is not None:
        others = [key for layer in layers for key in layer]
        if others:
            raise ConfigError(
                f"the run decides {others[0]!r}", where="--run", expected="no options of tasks, cluster or policies"
            )
        result = read_run(args.run)
        work = prepare(result.config)
        inputs = from_run(result, work.tasks, pins=pins == "run")
        return inputs, work_label(result.config, len(result.task_names))
    if args.trace is not None and is_foreign(args.trace):
        if args.pins == "run":
            raise ConfigError("a trace of blocks holds nothing", where="--pins", expected="none")
        accesses = read_foreign(args.trace)
        return from_accesses(accesses), f"{Path(args.trace).name}: {len(accesses):,} requests"
    work = prepare(resolve(*layers), simulating)
    tasks = work.config.tasks or 0
    if pins == "none":
        return from_tasks(work.config, work.tasks, progress), work_label(work.config, tasks)
    result = execute(work, simulating).result
    return from_run(result, work.tasks, pins=True), work_label(work.config, len(result.task_names))


def write_study(folder: Path, title: str, found: Study, inputs: Inputs, form: str | None, *, figure: bool) -> str:
    write_csv(folder / "misses.csv", found)
    write_json(folder / "oracle.json", content(found))
    if figure:
        draw(folder / "figure.png", title, found)
    if form is None:
        return ""
    requests = 0
    for number, log in enumerate(inputs.logs):
        ending = "oracleGeneral" if form == "oracleGeneral" else "csv"
        name = "accesses" if len(inputs.logs) == 1 else f"accesses-{number}"
        requests += export(log, folder / f"{name}.{ending}", form)
    return f"{requests:,} requests written as {form}"


def memory_sizes(text: str | None) -> list[float]:
    if text is None:
        return list(MEMORY)
    sizes = []
    for item in text.split(","):
        try:
            size = float(item)
        except ValueError:
            size = 0.0
        if not 0 < size <= _MOST_MEMORY:
            raise ConfigError(f"{item!r} does not fit", where="--memory", expected="numbers above 0, as in 0.5,1,2")
        sizes.append(size)
    return sorted(set(sizes))


def _names(text: str | None) -> list[str]:
    """Names of policies; a comma within the parameters of one does not end it."""
    names: list[str] = []
    for item in filter(None, (text or "").split(",")):
        if names and "=" in item and ":" not in item.partition("=")[0] and ":" in names[-1]:
            names[-1] += f",{item}"
        else:
            names.append(item.strip())
    return list(dict.fromkeys(names))


def _word(option: str, text: str, words: Sequence[str]) -> str:
    if text not in words:
        raise ConfigError(f"{text!r} does not fit", where=option, expected=nearest(text, words))
    return text
