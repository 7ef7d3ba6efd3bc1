"""Generators of tasks: workloads that are published as statistics, and workloads fitted to recorded ones.

    task(index, seed, *, ...) -> Task        task number `index` of the workload with this seed

A workload is one such function under `@workload(name)`. Its keyword-only parameters are its options, each with a
default whose type says what is accepted (a number, a truth value, a text, or a tuple of these), and a line `option:
help` in the docstring. Task i depends on the seed and the options only: all randomness comes from `Stream(seed, name,
index)`.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sagasim.core import Task
from sagasim.errors import ConfigError, nearest
from sagasim.trace import Trace
from sagasim.userfile import run_file
from sagasim.workloads.spec import Option, check_like, option_help, parse_options

__all__ = ["Option", "Workload", "find", "generate", "workload", "workloads"]

F = TypeVar("F", bound=Callable[..., Task])
Sources = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True, slots=True)
class Workload:
    """A registered workload and the values of its options.

    filled: what no source records -> the distribution it is drawn from. sources: digest of the files that the tasks
    are made from besides the options (fitted parameters, the user's own file), given the options.
    """

    name: str
    task: Callable[..., Task]
    filled: dict[str, str]
    sources: Sources
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        return (inspect.getdoc(self.task) or "").split("\n", maxsplit=1)[0]

    @property
    def options(self) -> dict[str, Option]:
        """The keyword-only parameters by name."""
        text = inspect.getdoc(self.task) or ""
        return {
            name: Option(parameter.default, option_help(text, name))
            for name, parameter in inspect.signature(self.task).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY
        }


_REGISTRY: dict[str, Workload] = {}


def workload(name: str, *, filled: Mapping[str, str] | None = None, sources: Sources | None = None) -> Callable[[F], F]:
    """Register a function as the workload `name`."""
    if not name or set(name) & set(":,= \t\n"):
        raise ConfigError(f"{name!r} is no name of a workload", expected="letters, digits and hyphens")

    def register(task: F) -> F:
        texts = {"tasks": "generated"} if filled is None else dict(filled)
        found = Workload(name, task, texts, sources or (lambda _options: ""))
        for key, option in found.options.items():
            if option.default is inspect.Parameter.empty:
                raise ConfigError(f"option {key!r} has no default", where=f"workload {name!r}", expected="a default")
        _REGISTRY[name] = found
        return task

    return register


def workloads() -> list[Workload]:
    """All workloads that come with sagasim and those of the files loaded so far, by name."""
    _load_builtin()
    return [_REGISTRY[name] for name in sorted(_REGISTRY)]


def find(spec: str) -> Workload:
    """The workload of a specification: `name`, `name:key=value,key=value` or `./file.py:name[:key=value,...]`.

    The items of a tuple are separated by `|`: `swe-bench:mean_steps=20,output_tokens=50|200`. Raises ConfigError.
    """
    _load_builtin()
    path, _, rest = spec.rpartition(".py:")
    if path:
        _load_file(Path(f"{path}.py"))
    elif spec.endswith(".py"):
        raise ConfigError(f"{spec!r} names no workload", expected=f"{spec}:NAME")
    else:
        rest = spec
    name, _, arguments = rest.partition(":")
    if name not in _REGISTRY:
        raise ConfigError(f"unknown workload {name!r}", where="" if spec == name else spec, expected=_valid(name))
    found = _REGISTRY[name]
    return replace(found, values=parse_options(arguments, found.options, spec))


def _valid(name: str) -> str:
    return nearest(name, _REGISTRY) + ", or FILE.py:NAME"


def generate(name: str, tasks: int, seed: int = 0, **options: Any) -> Trace:
    """`tasks` tasks of a workload. Task i depends on the seed and the options, not on how many there are.

    name: a specification as `find` takes it; options given by keyword go over those in it. `sha256` of the trace is
    that of its name, all its parameters and what its workload is fitted to. Raises ConfigError for an unknown name or
    option, or a value that makes no sense.
    """
    found = find(name)
    known = found.options
    for key, value in options.items():
        if key not in known:
            expected = nearest(key, known) if known else f"no options: {found.name} has none"
            raise ConfigError(f"unknown option {key!r} of {found.name}", expected=expected)
        check_like(key, value, known[key].default)
    if type(tasks) is not int or tasks < 1:
        raise ConfigError(f"{tasks!r} tasks", where=found.name, expected="at least one task")
    values = {key: _hashable(value) for key, value in (found.values | options).items()}
    everything = {key: option.default for key, option in known.items()} | values
    make = partial(found.task, seed=seed, **values)
    make(0)  # a value that makes no sense is told now, not in the middle of a run
    parameters = {"workload": found.name, "tasks": tasks, "seed": seed} | everything
    if sources := found.sources(everything):
        parameters["sources"] = sources
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode()).hexdigest()
    return Trace(found.name, None, digest, found.filled, "generated", partial(_tasks, make, tasks))


def _hashable(value: Any) -> Any:
    return tuple(_hashable(item) for item in value) if isinstance(value, (list, tuple)) else value


def _tasks(make: Callable[[int], Task], count: int, _seed: int) -> Iterator[Task]:
    """The seed of a fill changes nothing: a generated trace has its own."""
    return (make(index) for index in range(count))


@functools.cache
def _load_builtin() -> None:
    from sagasim.workloads import (  # noqa: F401 - they register themselves
        browser_real,
        chat,
        coding_real,
        multi_agent,
        multi_tenant,
        swe_bench,
        tool_calling,
        webarena,
    )


@functools.cache
def _load_file(path: Path) -> None:
    before = dict(_REGISTRY)
    run_file(path, "a workload", ConfigError)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for name, found in _REGISTRY.items():
        if before.get(name) is not found:  # the tasks depend on the text of the file
            inner = found.sources
            _REGISTRY[name] = replace(found, sources=lambda options, inner=inner: digest + inner(options))  # type: ignore[misc]
