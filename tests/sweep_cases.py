"""Sweeps that several tests run, and what they look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sagasim.sweeping.points import planned
from sagasim.sweeping.spec import expand
from sagasim.sweeping.table import read_results

SMALL: dict[str, Any] = {"workload": "tool-calling", "tasks": 3, "gpus": 4}
GRID = SMALL | {"rate": 60, "seeds": 2, "grid": {"preset": ["vllm-0.6", "vllm-0.15"]}}


def hashes(spec: Mapping[str, Any]) -> list[str]:
    points, failures = planned(expand(spec, "sweep"))
    assert not failures
    return [point.hash for point in points]


def rows(folder: str | Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_results(folder).to_pylist()
    return found


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "points").iterdir()}


MINE = '''
import os, signal
from sagasim.seams import policy

@policy("order", "shortest")
def shortest(request, now_ps, *, weight: float = 1.0):
    """Short prompts first."""
    return weight * request.prompt_tokens

@policy("order", "broken")
def broken(request, now_ps):
    """None at all."""
    return 1 / 0

@policy("order", "leaves")
def leaves(request, now_ps):
    """None at all."""
    raise SystemExit("gone")

@policy("order", "dies")
def dies(request, now_ps):
    """None at all."""
    os.kill(os.getpid(), signal.SIGKILL)
'''
