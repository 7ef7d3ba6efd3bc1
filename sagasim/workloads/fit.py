"""Fits of workloads: python -m sagasim.workloads.fit --traces DIR --out traces/fits

Looks at every file in DIR for what it holds, never for whose it is: session files whose first line says which kind of
workload it is, requests with the table of their inferred parents, lengths of single requests, published statistics.
Each workload that something was found for becomes one JSON file. The same files give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sagasim.core import Task
from sagasim.errors import SagasimError, TraceError
from sagasim.importers.lines import parse, read_lines
from sagasim.trace import open_trace
from sagasim.workloads.fit_browser import fit_browser
from sagasim.workloads.fit_chat import conversations, fit_single
from sagasim.workloads.fit_multi_agent import fit_multi_agent
from sagasim.workloads.fit_sessions import fit_sessions
from sagasim.workloads.measure import measure
from sagasim.workloads.tables import COARSE, FINE

__all__ = ["fit_file", "fit_folder", "main", "measured", "write_fit"]

SESSIONS = {"coding_interactive": "coding-real", "tool_calling": "tool-calling", "multi_agent": "multi-agent"}
STATISTICS = "STATS.md"
TURNS = ".derived_turns.csv.gz"
REQUESTS = ".requests.jsonl.gz"
METHOD = {
    "sessions": "empirical quantile tables by situation; ranks correlated as normal scores, ARMA(1, 1) in a session; "
    "hazards of ending, compaction and reset; see fit_sessions.py",
    "multi-agent": "empirical quantile tables; a chain of repeat, continue, restart and new; see fit_multi_agent.py",
    "browser": "published quantiles as knots; order of prompts searched on a grid; see fit_browser.py",
}
MEASURED = tuple(n / 50 for n in range(51))


def measured(tasks: Sequence[Task]) -> dict[str, dict[str, Any]]:
    """Metric -> n, mean, the quantiles that reports show, and a table of 51, of the tasks that a fit is made from."""
    found = {}
    for name, values in measure(tasks).items():
        if len(values):
            p5, p50, p95, p99 = (round(float(v), 4) for v in np.quantile(values, (0.05, 0.5, 0.95, 0.99)))
            row: dict[str, Any] = {"n": len(values), "mean": round(float(values.mean()), 4)}
            row |= {"p5": p5, "p50": p50, "p95": p95, "p99": p99}
            found[name] = row | {"quantiles": [round(float(v), 4) for v in np.quantile(values, MEASURED)]}
    return found


def fit_file(path: Path, workload: str, name: str = "") -> dict[str, Any]:
    """A fit of one trace that open_trace reads, as if it were of this workload."""
    tasks = [task for task in open_trace(path).tasks(0) if any(not call.agent for call in task.calls)]
    if not tasks:
        raise TraceError("no tasks", where=str(path), expected="at least one")
    kind = "multi-agent" if workload == "multi-agent" else "sessions"
    fitted = fit_multi_agent(tasks) if kind == "multi-agent" else fit_sessions(tasks)
    return _head(kind, name or workload, [path], len(tasks)) | fitted | {"measured": measured(tasks)}


def _head(kind: str, workload: str, paths: Sequence[Path], tasks: int) -> dict[str, Any]:
    files = [{"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in paths]
    return {
        "kind": kind,
        "workload": workload,
        "provenance": {"files": files, "method": METHOD[kind], "n": tasks},
        "grids": {str(len(grid)): [round(p, 4) for p in grid] for grid in (FINE, COARSE)},
    }


def fit_folder(folder: Path) -> dict[str, dict[str, Any]]:
    """Workload -> fit, of everything in a folder that is recognised."""
    if not folder.is_dir():
        raise TraceError("no such folder", where=str(folder), expected="a folder with traces")
    fits = {}
    for path in sorted(folder.glob("*.sessions.jsonl*")):
        kind = parse(next(iter(read_lines(path)))[1], f"{path}:1").get("workload")
        if isinstance(kind, str) and kind in SESSIONS:
            fits[SESSIONS[kind]] = fit_file(path, SESSIONS[kind])
    for turns in sorted(folder.glob(f"*{TURNS}")):
        requests = turns.with_name(turns.name.removesuffix(TURNS) + REQUESTS)
        if requests.is_file():
            fits["chat"] = _fit_chat(requests, turns, sorted(folder.glob("azure*conv*.csv.gz")))
    if (folder / STATISTICS).is_file():
        fitted = fit_browser(folder / STATISTICS)
        sessions = sum(round(agent["sessions"]) for agent in fitted["agents"].values())
        fits["browser-real"] = _head("browser", "browser-real", [folder / STATISTICS], sessions) | fitted
    return fits


def _fit_chat(requests: Path, turns: Path, single: Sequence[Path]) -> dict[str, Any]:
    tasks = conversations(requests, turns)
    fit = _head("sessions", "chat", [requests, turns, *single[:1]], len(tasks)) | fit_sessions(tasks)
    if single:
        fit["single"] = fit_single(single[0])
    return fit | {"measured": measured(tasks)}


def write_fit(fit: Mapping[str, Any], path: Path) -> None:
    """Write a fit such that it can be read: one line for each list of numbers."""
    path.write_text(_text(fit, 0) + "\n", encoding="utf-8")


def _text(value: Any, depth: int) -> str:
    if isinstance(value, dict) and value:
        inner = "  " * (depth + 1)
        rows = [f"{inner}{json.dumps(key)}: {_text(item, depth + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + "\n" + "  " * depth + "}"
    if isinstance(value, list) and any(isinstance(item, (list, dict)) for item in value):
        inner = "  " * (depth + 1)
        return "[\n" + ",\n".join(inner + _text(item, depth + 1) for item in value) + "\n" + "  " * depth + "]"
    return json.dumps(value)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagasim.workloads.fit", description="Fit workloads to traces.")
    parser.add_argument("--traces", type=Path, required=True, help="folder with traces")
    parser.add_argument("--out", type=Path, required=True, help="folder for the fits, made if it is not there")
    options = parser.parse_args(arguments)
    try:
        fits = fit_folder(options.traces)
        if not fits:
            raise TraceError("nothing to fit", where=str(options.traces), expected="traces as traces/SCHEMA.md says")
    except SagasimError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name, fit in sorted(fits.items()):
        write_fit(fit, options.out / f"{name}.json")
        sys.stderr.write(f"{name}: {fit['provenance']['n']} tasks\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
