"""Generators of workloads that are published as statistics only."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from sagasim.core import Task
from sagasim.errors import ConfigError, nearest
from sagasim.trace import Trace
from sagasim.workloads import swe_bench

__all__ = ["WORKLOADS", "generate"]

# name -> task(index, seed, **options), one task from streams of its own
WORKLOADS: dict[str, Callable[..., Task]] = {"swe-bench": swe_bench.task}
FILLED: dict[str, dict[str, str]] = {"swe-bench": swe_bench.FILLED}


def generate(name: str, tasks: int, seed: int = 0, **options: Any) -> Trace:
    """`tasks` tasks of a workload. Task i depends on the seed and the options, not on how many there are.

    Options are the keyword parameters of the workload's function. `sha256` of the trace is that of its name and all
    its parameters. Raises ConfigError for an unknown name or option, or a value that makes no sense.
    """
    if name not in WORKLOADS:
        raise ConfigError(f"unknown workload {name!r}", expected=nearest(name, WORKLOADS))
    make = WORKLOADS[name]
    defaults = {
        key: parameter.default
        for key, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key, value in options.items():
        if key not in defaults:
            raise ConfigError(f"unknown option {key!r} of {name}", expected=nearest(key, defaults))
        _check_like(key, value, defaults[key])
    if type(tasks) is not int or tasks < 1:
        raise ConfigError(f"{tasks!r} tasks", where=name, expected="at least one task")
    parameters = {"workload": name, "tasks": tasks, "seed": seed} | defaults | options
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    make(0, seed, **options)  # a value that makes no sense is told now, not in the middle of a run
    read = partial(_tasks, partial(make, seed=seed, **options), tasks)
    return Trace(name, None, digest, FILLED[name], "generated", read)


def _tasks(make: Callable[[int], Task], count: int, _seed: int) -> Iterator[Task]:
    """The seed of a fill changes nothing: a generated trace has its own."""
    return (make(index) for index in range(count))


def _check_like(key: str, value: object, default: object) -> None:
    """Raise ConfigError unless `value` is made of finite numbers like `default`."""
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(default):
            raise ConfigError(f"{key} is {value!r:.60}", expected=f"{len(default)} values such as {default}")
        for item, like in zip(value, default, strict=True):
            _check_like(key, item, like)
        return
    fits = type(value) is int or (type(value) is float and isinstance(default, float) and math.isfinite(value))
    if not fits or value < 0:  # type: ignore[operator]
        expected = f"a {'' if isinstance(default, float) else 'whole '}number from 0, such as {default}"
        raise ConfigError(f"{key} is {value!r:.60}", expected=expected)
