"""Traces: a name or a file in, tasks out; what they hold, what is too long, how many of them.

open_trace("weka")  ->  Trace  ->  .tasks(seed)  ->  take, over_length, arrivals.assign  ->  simulate
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sagasim.core import Call, Task
from sagasim.errors import ConfigError, TraceError, nearest
from sagasim.hardware import data_dir
from sagasim.importers.agentic_mooncake import BLOCK_TOKENS, looks_like_agentic_mooncake, read_agentic_mooncake
from sagasim.importers.lines import parse, read_lines
from sagasim.importers.native import read_header, read_native, write_trace
from sagasim.importers.sessions import filled_texts, looks_like_sessions, read_sessions

__all__ = [
    "LengthReport",
    "Trace",
    "open_trace",
    "over_length",
    "take",
    "trace_names",
    "trace_stats",
    "validate",
    "write_trace",
]

EMBEDDED = {
    "agentic-mooncake-sample": "agentic_mooncake_sample.jsonl",
    "lmcache-magagent": "lmcache_magagent.sessions.jsonl.gz",
    "lmcache-miniswe": "lmcache_miniswe.sessions.jsonl.gz",
    "swe-bench-mini": "swebench_mini_swe_gemini3.sessions.jsonl.gz",
    "tau-bench": "taubench_airline_gpt4o.sessions.jsonl.gz",
    "weka": "weka_claude_code.sessions.jsonl.gz",
}
OPTIONS = {"native": (), "sessions": ("share",), "agentic_mooncake": ("block_tokens",)}
SHARES = ("prefix", "session")
LONG_TOKENS = 131_072  # the context length of the models sagasim knows

Mode = Literal["drop", "truncate", "extend"]


@dataclass(frozen=True)
class Trace:
    """A source of tasks.

    path: of the file, None for a generator; sha256: hex, of the bytes of the file or the parameters of the generator;
    filled: what the source lacks -> the distribution it is drawn from.
    """

    name: str
    path: Path | None
    sha256: str
    filled: dict[str, str]
    format: str
    read: Callable[[int], Iterator[Task]] = field(repr=False, compare=False)

    def tasks(self, seed: int = 0) -> Iterator[Task]:
        """The tasks from the first on; the seed decides what is filled and nothing else. Raises TraceError."""
        return self.read(seed)


def trace_names() -> list[str]:
    """Names of the embedded traces."""
    return sorted(EMBEDDED)


def open_trace(name_or_path: str | Path, **options: Any) -> Trace:
    """An embedded trace by name, or a file whose format its first line tells.

    Options: block_tokens=512 for agentic_mooncake; share="prefix" or "session" for session files (whether sessions
    share tools and system prompt). Raises TraceError for a file, ConfigError for an option that makes no sense.
    """
    path = _path(str(name_or_path))
    lines = read_lines(path)
    _, line = next(lines)
    where = f"{path}:1"
    first = parse(line, where)
    trace_format = _format(first, where)
    _check_options(trace_format, options)
    name = str(name_or_path) if str(name_or_path) in EMBEDDED else path.name.split(".")[0]
    filled: dict[str, str] = {}
    read: Callable[[int], Iterator[Task]]
    if trace_format == "native":
        header = read_header(line, where)
        name, filled = header.get("name", name), header["filled"]
        read = partial(_unseeded, partial(read_native, path))
    elif trace_format == "sessions":
        filled = filled_texts(first)
        read = partial(_sessions, path, options.get("share", "prefix"))
    else:
        read = partial(_unseeded, partial(read_agentic_mooncake, path, options.get("block_tokens", BLOCK_TOKENS)))
    return Trace(name, path, _digest(path), filled, trace_format, read)


def _unseeded(read: Callable[[], Iterator[Task]], _seed: int) -> Iterator[Task]:
    """Formats that leave nothing to fill."""
    return read()


def _sessions(path: Path, share: str, seed: int) -> Iterator[Task]:
    return read_sessions(path, seed, share)


def _path(name: str) -> Path:
    if name in EMBEDDED:
        return data_dir() / "traces" / EMBEDDED[name]
    path = Path(name)
    if not path.exists() and path.name == name and "." not in name:
        raise TraceError(f"unknown trace {name!r}", expected=f"a file, or {nearest(name, EMBEDDED)}")
    return path


def _format(first: dict[str, Any], where: str) -> str:
    if "sagasim_trace" in first:
        return "native"
    if looks_like_sessions(first):
        return "sessions"
    if looks_like_agentic_mooncake(first):
        return "agentic_mooncake"
    keys = ", ".join(sorted(first)[:5]) or "none"
    expected = "a native header (sagasim_trace), a session (sid, steps) or a request (input_length, output_length)"
    raise TraceError(f"unknown format (keys: {keys:.80})", where=where, expected=expected)


def _check_options(trace_format: str, options: dict[str, Any]) -> None:
    valid = OPTIONS[trace_format]
    for key, value in options.items():
        if key not in valid:
            expected = nearest(key, valid) if valid else "no options"
            raise ConfigError(f"unknown option {key!r} of a trace in format {trace_format}", expected=expected)
        if key == "share" and value not in SHARES:
            raise ConfigError(f"share is {value!r}", expected=nearest(str(value), SHARES))
        if key == "block_tokens" and (type(value) is not int or not 1 <= value <= 10**6):
            raise ConfigError(f"block_tokens is {value!r}", expected="a whole number from 1")


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror})", where=str(path), expected="a readable file") from None


def validate(name_or_path: str | Path, **options: Any) -> str:
    """One line about a trace that can be replayed; raises TraceError for one that cannot."""
    trace = open_trace(name_or_path, **options)
    tasks = calls = longest = 0
    prefixes: set[str] = set()
    for task in trace.tasks():
        tasks += 1
        calls += len(task.calls)
        prefixes.update(prefix.name for prefix in task.prefixes)
        longest = max(longest, task.max_tokens)
    return (
        f"{trace.name}: {trace.format}, {tasks:,} tasks, {calls:,} calls, {len(prefixes):,} shared prefixes, longest "
        f"context {longest:,} tokens, sha256 {trace.sha256[:16]}"
    )


def take(trace: Trace, count: int, seed: int = 0) -> Iterator[Task]:
    """The first `count` tasks of a trace in its order.

    A trace that is shorter starts again: the tasks of the second round are named `<name>#2`, and so on. Their prefixes
    keep their names, so the rounds share them.
    """
    left = count
    for turn in range(1, count + 1):
        before = left
        for task in trace.tasks(seed):
            if not left:
                return
            left -= 1
            yield task if turn == 1 else replace(task, name=f"{task.name}#{turn}")
        if not left:
            return
        if left == before:
            raise TraceError("no tasks", where=trace.name, expected="at least one task")


@dataclass
class LengthReport:
    """What over_length has done so far: tasks left out, tasks cut short, calls cut from those, tasks left too long."""

    dropped: int = 0
    truncated: int = 0
    calls_cut: int = 0
    extended: int = 0


def over_length(
    tasks: Iterable[Task], limit: int, mode: Mode | None = None, report: LengthReport | None = None
) -> Iterator[Task]:
    """The tasks whose contexts, output included, fit into `limit` tokens; the others as `mode` says.

    None: TraceError. drop: left out. truncate: calls over the limit and all that follow from them are cut; a task
    without any call left is dropped. extend: unchanged. Counts are added to `report`.
    """
    report = LengthReport() if report is None else report
    if mode not in (None, "drop", "truncate", "extend"):
        raise ConfigError(f"unknown mode {mode!r}", where="over_length", expected="drop, truncate or extend")
    for task in tasks:
        if task.max_tokens <= limit:
            yield task
        elif mode is None:
            what = f"a context of {task.max_tokens:,} tokens where {limit:,} fit"
            raise TraceError(what, where=f"task {task.name!r}", expected="over_length = drop, truncate or extend")
        elif mode == "extend":
            report.extended += 1
            yield task
        else:
            kept = _within(task, limit) if mode == "truncate" else ()
            if kept:
                report.truncated += 1
                report.calls_cut += len(task.calls) - len(kept)
                yield replace(task, calls=kept)
            else:
                report.dropped += 1


def _within(task: Task, limit: int) -> tuple[Call, ...]:
    """The calls that fit and neither run after nor extend one that does not."""
    cut: set[str] = set()
    kept = []
    for call in task.calls:
        if call.prompt_tokens + call.output_tokens > limit or call.extends in cut or not cut.isdisjoint(call.after):
            cut.add(call.name)
        else:
            kept.append(call)
    return tuple(kept)


def trace_stats(tasks: Iterable[Task]) -> dict[str, Any]:
    """What a trace holds: counts, and p5, p50, p95, p99 and mean of tokens and of tool seconds.

    prefix_share: tokens kept per prompt token over all calls but the first of each task; tool_filled_share: part of the
    tools whose duration is drawn.
    """
    prompts, outputs, lengths, seconds = [], [], [], []
    kept = repeated = filled = longest = over = 0
    for task in tasks:
        lengths.append(len(task.calls))
        longest = max(longest, task.max_tokens)
        over += task.max_tokens > LONG_TOKENS
        for place, call in enumerate(task.calls):
            prompts.append(call.prompt_tokens)
            outputs.append(call.output_tokens)
            if place:
                kept += call.keep_tokens
                repeated += call.prompt_tokens
            for tool in call.tools:
                seconds.append(tool.duration_ps / 1e12)
                filled += tool.filled
    return {
        "tasks": len(lengths),
        "calls": len(prompts),
        "calls_per_task": _summary(lengths),
        "prompt_tokens": _summary(prompts),
        "output_tokens": _summary(outputs),
        "prefix_share": kept / repeated if repeated else None,
        "tools": len(seconds),
        "tool_s": _summary(seconds),
        "tool_filled_share": filled / len(seconds) if seconds else None,
        "longest_context_tokens": longest,
        f"tasks_over_{LONG_TOKENS}_tokens": over,
    }


def _summary(values: list[Any]) -> dict[str, float] | None:
    if not values:
        return None
    p5, p50, p95, p99 = np.percentile(values, [5, 50, 95, 99])
    return {"p5": float(p5), "p50": float(p50), "p95": float(p95), "p99": float(p99), "mean": float(np.mean(values))}
