"""Native traces (docs/trace-format.md), read with the standard library alone, so that a GPU machine needs no more.

Only what a replay needs is kept and checked. Files of other formats become native ones with sagasim.trace.write_trace,
which also checks them fully.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Call", "Task", "TraceFileError", "read_trace"]


class TraceFileError(ValueError):
    """A file that is no native trace, or a task in it that cannot be replayed."""


@dataclass(frozen=True, slots=True)
class Call:
    """A call or, without output, a prefix. wait_s: delay before it; tools_s: its longest tool after it."""

    name: str
    extends: str | None
    keep_tokens: int
    new_tokens: int
    output_tokens: int = 0
    after: tuple[str, ...] = ()
    wait_s: float = 0.0
    tools_s: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return self.keep_tokens + self.new_tokens

    @property
    def context_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True, slots=True)
class Task:
    """prefixes and calls by name, each after those it extends or follows; arrival_s: None where unknown."""

    name: str
    arrival_s: float | None
    prefixes: dict[str, Call]
    calls: dict[str, Call] = field(default_factory=dict)

    @property
    def longest_tokens(self) -> int:
        return max(call.context_tokens for call in self.calls.values())


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of each line, plain or gzip as the first bytes say."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if zipped else path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                where = f"{path}:{number}"
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise TraceFileError(f"{where}: not an object; expected one JSON object a line")
                yield where, value
    except (OSError, EOFError) as error:
        raise TraceFileError(f"{path}: cannot be read ({error}); expected a trace file") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TraceFileError(f"{path}: not JSON lines ({str(error)[:80]}); expected a native trace") from None


def read_trace(path: Path) -> Iterator[Task]:
    """The tasks of a native trace, one in memory at a time. Raises TraceFileError."""
    lines = _lines(path)
    where, header = next(lines, (str(path), {}))
    if header.get("sagasim_trace") != 1:
        raise TraceFileError(
            f'{where}: not a native trace; expected a header with "sagasim_trace": 1 (sagasim.trace.write_trace)'
        )
    for where, fields in lines:
        yield _task(fields, where)


def _task(fields: dict[str, Any], where: str) -> Task:
    try:
        arrival = fields.get("arrival_s")
        task = Task(str(fields["task"]), None if arrival is None else float(arrival), {})
        for raw in fields.get("prefixes", []):
            task.prefixes[raw["name"]] = _item(raw, task, where, 0, ())
        before: tuple[str, ...] = ()
        for raw in fields["calls"]:
            call = _item(raw, task, where, int(raw["output_tokens"]), tuple(raw.get("after", before)))
            if call.prompt_tokens < 1 or call.output_tokens < 1:
                raise TraceFileError(f"{where}: call {call.name!r} has no prompt or output; expected both")
            task.calls[call.name] = call
            before = (call.name,)
    except (KeyError, TypeError, AttributeError) as error:
        raise TraceFileError(f"{where}: a task without {error}; expected the native format") from None
    if not task.calls:
        raise TraceFileError(f"{where}: task {task.name!r} has no calls; expected at least one")
    return task


def _item(raw: dict[str, Any], task: Task, where: str, output_tokens: int, after: tuple[str, ...]) -> Call:
    name, extends = raw["name"], raw.get("extends")
    parent = None if extends is None else task.calls.get(extends) or task.prefixes.get(extends)
    available = 0 if parent is None else parent.context_tokens
    keep = int(raw.get("keep_tokens", available))
    unknown = [other for other in after if other not in task.calls]
    if unknown or (extends is not None and parent is None):
        named = unknown[0] if unknown else extends
        raise TraceFileError(f"{where}: {name!r} follows {named!r}; expected an earlier call or prefix of the task")
    if name in task.calls or name in task.prefixes or not 0 <= keep <= available or int(raw["new_tokens"]) < 0:
        raise TraceFileError(f"{where}: {name!r} comes twice or keeps {keep} of {available} tokens; expected neither")
    tools = max((float(tool["s"]) for tool in raw.get("tools", [])), default=0.0)
    wait = float(raw.get("delay_s", 0.0))
    return Call(name, extends, keep, int(raw["new_tokens"]), output_tokens, after, wait, tools)
