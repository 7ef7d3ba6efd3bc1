"""Capacity: the tasks a minute that a cluster finishes when it never runs out of work.

One run answers it: preset vllm-0.15, seed 0, a closed population of agents behind which more tasks always wait, and
the rate between the moments at which 20 % and 80 % of the tasks had ended. The population is what fills MEMORY_SHARE
of the cluster's KV memory at the mean context of a call; the tasks are ROUNDS times as many, at least CAPACITY_TASKS.
With more agents the preset evicts contexts that come back, and its rate falls instead of rising, so there is no
capacity to be found there. Nothing of it depends on the preset or seed that is then compared: a load means the same
rate for all of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from sagasim.compiled import cache_folder
from sagasim.config import PRESETS, Config
from sagasim.core import Task
from sagasim.errors import ConfigError
from sagasim.hardware import data_dir
from sagasim.metrics import steady_tasks_per_min
from sagasim.simulate import engine_settings, simulate
from sagasim.units import BLOCK_TOKENS

__all__ = ["CAPACITY_TASKS", "backlog_config", "capacity_config", "capacity_per_min"]

CAPACITY_TASKS = 512
MEMORY_SHARE = 0.7
ROUNDS = 3
_PRESET = "vllm-0.15"


def capacity_per_min(
    config: Config,
    source: str,
    backlog: Callable[[], tuple[Config, Iterable[Task]]],
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Tasks a minute under permanent backlog, from the user's cache folder if it was measured before.

    config: of capacity_config; source: hash of its trace or generator; backlog: the tasks and the configuration with
    its population. Raises ConfigError if the tasks are too few to tell.
    """
    path = cache_folder() / f"capacity-{_key(config, source)}.json"
    known = _read(path)
    if known is None:
        tasks = simulate(*backlog(), progress=progress).tasks
        known = steady_tasks_per_min(tasks)
        if known is None:
            what = f"{len(tasks['task'])} tasks do not tell a capacity"
            raise ConfigError(what, where="load", expected="--rate for so few tasks")
        _write(path, known)
    return known


def capacity_config(config: Config) -> Config:
    """The configuration of the run that measures, before its population is known: workload and cluster stay."""
    fixed: dict[str, Any] = {"arrivals": "closed", "rate_per_min": None, "load": None, "concurrency": None, "seed": 0}
    fixed |= {"resample": False, "tenants": None, "horizon_s": None, "warmup": 0.0, "cooldown": 0.0, "time_scale": 1.0}
    return replace(config, **fixed, **PRESETS[_PRESET], preset=_PRESET, tasks=CAPACITY_TASKS, reference=False)


def backlog_config(fixed: Config, complete: Config, sample: Iterable[Task]) -> Config:
    """`fixed` with its population: it fills MEMORY_SHARE of the KV memory if each agent holds a call's mean context."""
    lengths = [call.prompt_tokens + call.output_tokens for task in sample for call in task.calls]
    replicas = fixed.gpus // fixed.tp
    room = MEMORY_SHARE * engine_settings(complete).num_blocks * BLOCK_TOKENS * replicas
    agents = max(replicas, int(room * len(lengths) / sum(lengths)))
    return replace(fixed, concurrency=agents, tasks=max(CAPACITY_TASKS, ROUNDS * agents))


def _key(config: Config, source: str) -> str:
    """Hash of all that determines the answer: configuration, source, code and what describes the hardware."""
    sha = hashlib.sha256(json.dumps({**asdict(config), "trace": source}, sort_keys=True).encode())
    for path in _determining(config):
        sha.update(path.name.encode())
        sha.update(path.read_bytes())
    return sha.hexdigest()[:32]


def _determining(config: Config) -> list[Path]:
    """The files that a run depends on besides its tasks."""
    named = (config.calibration, config.gpu, config.model)
    own = [Path(name) for name in named if name is not None and Path(name).is_file()]
    data = data_dir() / "calibration"
    embedded = [path for path in data.rglob("*") if path.suffix in (".json", ".toml") and "sources" not in path.parts]
    return [*own, *sorted(embedded), *sorted(Path(__file__).parent.rglob("*.py"))]


def _read(path: Path) -> float | None:
    """A capacity measured before; None if there is none or it cannot be trusted."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["tasks_per_min"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return value if isinstance(value, float) and 0 < value < float("inf") else None


def _write(path: Path, value: float) -> None:
    """Remember it, whole or not at all; a cache that cannot be written is no mistake."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"tasks_per_min": value}, file)
        Path(temporary).replace(path)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
