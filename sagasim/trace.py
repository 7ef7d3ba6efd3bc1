"""Traces: a name or a file in, tasks out; what they hold, what is too long, how many of them.

open_trace("weka")  ->  Trace  ->  .tasks(seed)  ->  take, over_length, arrivals  ->  simulate
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from sagasim.core import Call, Task
from sagasim.errors import ConfigError, TraceError, nearest
from sagasim.hardware import data_dir
from sagasim.importers.formats import detect, open_source
from sagasim.importers.lines import printable
from sagasim.importers.native import write_trace
from sagasim.trace_stats import trace_stats
from sagasim.units import PS_PER_US
from sagasim.userfile import is_there

__all__ = [
    "LengthReport",
    "Trace",
    "convert",
    "format_of",
    "open_trace",
    "over_length",
    "round_ps",
    "take",
    "trace_names",
    "trace_stats",
    "validate",
    "write_trace",
]

_MOONCAKE = "mooncake_conversation.requests.jsonl.gz"
EMBEDDED: dict[str, tuple[str, dict[str, str]]] = {  # name -> its file, and the files that are its options
    "agentic-mooncake-sample": ("agentic_mooncake_sample.jsonl", {}),
    "azure-code": ("azure_llm_2023_code.csv.gz", {}),
    "azure-conversation": ("azure_llm_2023_conv.csv.gz", {}),
    "lmcache-magagent": ("lmcache_magagent.sessions.jsonl.gz", {}),
    "lmcache-miniswe": ("lmcache_miniswe.sessions.jsonl.gz", {}),
    "mooncake-conversation": (_MOONCAKE, {}),
    "mooncake-conversation-turns": (_MOONCAKE, {"turns": "mooncake_conversation.derived_turns.csv.gz"}),
    "mooncake-synthetic": ("mooncake_synthetic.requests.jsonl.gz", {}),
    "swe-bench-mini": ("swebench_mini_swe_gemini3.sessions.jsonl.gz", {}),
    "tau-bench": ("taubench_airline_gpt4o.sessions.jsonl.gz", {}),
    "weka": ("weka_claude_code.sessions.jsonl.gz", {}),
}
TARGETS = ("native", "agentic_mooncake")

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
    """An embedded trace by name, or a file whose format its content tells.

    Options: share="prefix" or "session" for sessions and OpenTelemetry spans (whether tasks share their instructions);
    block_tokens=512 and turns=FILE for requests with block ids (FILE says which request answers which). Raises
    TraceError for a file, ConfigError for an option that makes no sense.
    """
    name = str(name_or_path)
    path, given = _path(name)
    options = given | options
    source = open_source(path, options)
    name = name if name in EMBEDDED else source.name or printable(path.name.split(".")[0])
    files = [path] if options.get("turns") is None else [path, Path(options["turns"])]
    return Trace(name, path, _digest(files), source.filled, source.format, source.read)


def format_of(name_or_path: str | Path) -> str:
    """The format of a trace, as its content tells. Raises TraceError."""
    return detect(_path(str(name_or_path))[0])


def _path(name: str) -> tuple[Path, dict[str, Any]]:
    """The file of a trace, and the options that an embedded one comes with."""
    if name in EMBEDDED:
        folder = data_dir() / "traces"
        file, files = EMBEDDED[name]
        return folder / file, {key: folder / value for key, value in files.items()}
    path = Path(name)
    if not is_there(path) and path.name == name and "." not in name:
        raise TraceError(f"unknown trace {name!r}", expected=f"a file, or {nearest(name, EMBEDDED)}")
    return path, {}


def _digest(paths: list[Path]) -> str:
    """SHA-256 of a file; of several, that of their digests one after the other."""
    digests = []
    for path in paths:
        try:
            with path.open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
            raise TraceError(what, where=str(path), expected="a readable file") from None
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def convert(
    trace: Trace, path: str | Path, to: str = "native", block_tokens: int = 512, seed: int = 0
) -> dict[str, str]:
    """Write a trace in another format, whole or not at all; returns what the format cannot hold, with counts.

    to: "native" loses nothing; "agentic_mooncake" keeps lengths, dependencies, waits, and sharing in whole blocks of
    `block_tokens` tokens. Raises TraceError, or ConfigError for an unknown format.
    """
    if to not in TARGETS:
        raise ConfigError(f"unknown format {to!r}", where="--to", expected=nearest(to, TARGETS))
    if to == "native":
        write_trace(path, trace.tasks(seed), {"name": trace.name, "filled": trace.filled})
        return {}
    from sagasim.importers.agentic_export import write_agentic_mooncake

    return write_agentic_mooncake(path, lambda: trace.tasks(seed), block_tokens)


def validate(source: str | Path | Trace, seed: int = 0) -> str:
    """One line about a trace that can be replayed; raises TraceError for one that cannot."""
    trace = source if isinstance(source, Trace) else open_trace(source)
    tasks = calls = longest = 0
    prefixes: set[str] = set()
    for task in trace.tasks(seed):
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
    keep their names, so the rounds share them. Recorded arrivals go on a mean gap after the last one before.
    """
    left = count
    first, last, recorded = None, 0, 0
    for turn in range(1, count + 1):
        before = left
        for task in trace.tasks(seed):
            if not left:
                return
            left -= 1
            if turn > 1:
                later = (
                    None if task.arrival_ps is None else task.arrival_ps + (turn - 1) * round_ps(first, last, recorded)
                )
                task = replace(task, name=f"{task.name}#{turn}", arrival_ps=later)
            elif task.arrival_ps is not None:
                first = task.arrival_ps if first is None else min(first, task.arrival_ps)
                last, recorded = max(last, task.arrival_ps), recorded + 1
            yield task
        if not left:
            return
        if left == before:
            raise TraceError("no tasks", where=trace.name, expected="at least one task")


def round_ps(first_ps: int | None, last_ps: int, count: int) -> int:
    """How much later a recording of so many arrivals begins again: its length and a mean gap, in whole microseconds."""
    length = last_ps - (first_ps or 0)
    return length + length // max(1, count - 1) // PS_PER_US * PS_PER_US


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
