"""The native trace format: a header line, then one task per line (docs/trace-format.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from sagasim.core import Call, Prefix, Task, Tool, check_task
from sagasim.errors import TraceError, nearest
from sagasim.importers.lines import duration, mapping, parse, read_lines, sequence, text, tokens
from sagasim.importers.names import Names
from sagasim.importers.writing import write_whole
from sagasim.units import PS_PER_S, PS_PER_US

__all__ = ["VERSION", "read_header", "read_native", "write_trace"]

VERSION = 1
HEADER_KEYS = frozenset({"sagasim_trace", "name", "source", "licence", "filled"})
TASK_KEYS = frozenset({"task", "tenant", "arrival_s", "agent", "family", "prefixes", "calls"})
PREFIX_KEYS = frozenset({"name", "extends", "keep_tokens", "new_tokens"})
CALL_KEYS = PREFIX_KEYS | {"output_tokens", "after", "delay_s", "tools", "agent"}
TOOL_KEYS = frozenset({"name", "s", "filled"})
WHAT = {"task": TASK_KEYS, "prefix": PREFIX_KEYS, "call": CALL_KEYS, "tool": TOOL_KEYS, "header": HEADER_KEYS}


def read_header(line: bytes, where: str) -> dict[str, Any]:
    """The checked header: name, source, licence (strings) and filled (what is drawn -> its distribution)."""
    header = parse(line, where)
    _known(header, "header", where)
    if type(header.get("sagasim_trace")) is not int or header["sagasim_trace"] != VERSION:
        version = header.get("sagasim_trace")
        raise TraceError(f"format version {version!r:.40}", where=where, expected=f'"sagasim_trace": {VERSION}')
    return check_header(header, where)


def check_header(header: Mapping[str, Any], where: str) -> dict[str, Any]:
    checked: dict[str, Any] = {"sagasim_trace": VERSION}
    _known(header, "header", where)
    for key in ("name", "source", "licence"):
        if key in header:
            checked[key] = text(header[key], key, where)
    filled = mapping(header.get("filled", {}), "filled", where)
    checked["filled"] = {text(key, "a key of filled", where): text(value, key, where) for key, value in filled.items()}
    return checked


def read_native(path: Path) -> Iterator[Task]:
    """The tasks of a native file, one in memory at a time, checked."""
    seen = Names()
    known: dict[str, Prefix] = {}
    lines = read_lines(path)
    first, line = next(lines)
    read_header(line, f"{path}:{first}")
    for count, line in lines:
        where = f"{path}:{count}"
        task = _task(parse(line, where), where)
        check_across(task, where, seen, known)
        yield task
    if not len(seen):
        raise TraceError("a header without tasks", where=str(path), expected="one task per line after the header")


def check_across(task: Task, where: str, seen: Names, known: dict[str, Prefix]) -> None:
    """Raise TraceError where `task` contradicts the tasks before it; remembers it in `seen` and `known`."""
    if not seen.add(task.name):
        raise TraceError(f"task {task.name!r} twice", where=where, expected="task names unique within the file")
    for prefix in task.prefixes:
        if known.setdefault(prefix.name, prefix) != prefix:
            expected = "one declaration per prefix name in a file"
            raise TraceError(f"prefix {prefix.name!r} declared differently before", where=where, expected=expected)


def _task(fields: dict[str, Any], where: str) -> Task:
    _known(fields, "task", where)
    name = text(fields.get("task"), "task", where)
    where = f"{where}: task {name!r}"
    ends: dict[str, int] = {}
    prefixes = tuple(_prefix(raw, where, ends) for raw in sequence(fields.get("prefixes", []), "prefixes", where))
    calls = []
    before: tuple[str, ...] = ()
    for raw in sequence(fields.get("calls"), "calls", where):
        call = _call(raw, where, ends, before)
        before = (call.name,)
        calls.append(call)
    arrival = fields.get("arrival_s")
    task = Task(
        name=name,
        calls=tuple(calls),
        tenant=text(fields["tenant"], "tenant", where) if "tenant" in fields else "default",
        arrival_ps=None if arrival is None else duration(arrival, "arrival_s", where),
        prefixes=prefixes,
        agent=_agent(fields, where),
        family=text(fields["family"], "family", where) if "family" in fields else "",
    )
    check_task(task, where)
    return task


def _agent(fields: dict[str, Any], where: str) -> str:
    agent = fields.get("agent", "")
    return agent if agent == "" else text(agent, "agent", where)


def _prefix(raw: object, where: str, ends: dict[str, int]) -> Prefix:
    fields = mapping(raw, "a prefix", where)
    _known(fields, "prefix", where)
    name = text(fields.get("name"), "name of a prefix", where)
    new = tokens(fields, "new_tokens", f"{where}, prefix {name!r}", 1)
    extends, keep = _extended(fields, f"{where}, prefix {name!r}", ends)
    ends[name] = keep + new
    return Prefix(name, new, extends, keep)


def _extended(fields: dict[str, Any], where: str, ends: dict[str, int]) -> tuple[str | None, int]:
    """What an item extends and how much of it it keeps: the whole context unless it says otherwise."""
    extends = fields.get("extends")
    if extends is None:
        return None, tokens(fields, "keep_tokens", where) if "keep_tokens" in fields else 0
    if type(extends) is not str or extends not in ends:
        what = f"extends unknown context {extends!r:.60}"
        raise TraceError(what, where=where, expected=_nearest_earlier(extends, ends))
    return extends, tokens(fields, "keep_tokens", where) if "keep_tokens" in fields else ends[extends]


def _nearest_earlier(name: object, names: Iterable[str]) -> str:
    listed = list(names)[:1000]
    return f"an earlier call or prefix, {nearest(str(name)[:60], listed)}" if listed else "an earlier call or prefix"


def _call(raw: object, where: str, ends: dict[str, int], before: tuple[str, ...]) -> Call:
    if type(raw) is not dict:
        mapping(raw, "a call", where)
    fields: dict[str, Any] = raw  # type: ignore[assignment]
    if not fields.keys() <= CALL_KEYS:
        _known(fields, "call", where)
    name, new, output = fields.get("name"), fields.get("new_tokens"), fields.get("output_tokens")
    if type(name) is not str or not 0 < len(name) <= 100 or not name.isprintable():
        name = text(name, "name of a call", where)
    if type(new) is not int or type(output) is not int or not (0 <= new < 10**8 and 0 < output < 10**8):
        place = f"{where}, call {name!r}"
        new, output = tokens(fields, "new_tokens", place), tokens(fields, "output_tokens", place, 1)
    extends, keep = (None, 0)
    if "extends" in fields or "keep_tokens" in fields:
        extends, keep = _extended(fields, f"{where}, call {name!r}", ends)
    ends[name] = keep + new + output
    after, delay = before, 0
    tools: tuple[Tool, ...] = ()
    if "after" in fields:
        after = _after(fields["after"], f"{where}, call {name!r}")
    if "delay_s" in fields:
        delay = duration(fields["delay_s"], "delay_s", f"{where}, call {name!r}")
    if fields.get("tools"):
        tools = _tools(fields["tools"], f"{where}, call {name!r}")
    elif "tools" in fields:
        sequence(fields["tools"], "tools", where)
    agent = _agent(fields, where) if "agent" in fields else ""
    return Call(name, new, output, extends, keep, after, delay, tools, agent)


def _after(raw: object, where: str) -> tuple[str, ...]:
    names = tuple(text(name, "after", where) for name in sequence(raw, "after", where))
    if len(set(names)) < len(names):
        raise TraceError("'after' names a call twice", where=where, expected="every call once")
    return names


def _tools(raw: object, where: str) -> tuple[Tool, ...]:
    tools = []
    for item in sequence(raw, "tools", where):
        fields = mapping(item, "a tool", where)
        if not fields.keys() <= TOOL_KEYS:
            _known(fields, "tool", where)
        name, filled = text(fields.get("name"), "name of a tool", where), fields.get("filled", False)
        if type(filled) is not bool:
            raise TraceError("filled is not a truth value", where=where, expected="true or false")
        tools.append(Tool(name, duration(fields.get("s"), "s of a tool", where), filled))
    return tuple(tools)


def _known(fields: Mapping[str, Any], kind: str, where: str) -> None:
    valid = WHAT[kind]
    for key in fields:
        if key not in valid:
            raise TraceError(f"unknown key {key[:60]!r} of a {kind}", where=where, expected=nearest(key[:60], valid))


def write_trace(path: str | Path, tasks: Iterable[Task], header: Mapping[str, Any]) -> Path:
    """Write a native file, whole or not at all; gzip if the name ends in .gz, the same bytes every time.

    header: name, source, licence, filled; all optional. Raises TraceError if the file exists, has no tasks, or a task
    cannot be replayed or written without loss (times are whole microseconds).
    """
    checked = check_header(header, "header")
    return write_whole(Path(path), lambda stream: _write(stream, tasks, checked, Path(path)))


def _write(stream: IO[bytes], tasks: Iterable[Task], header: dict[str, Any], path: Path) -> None:
    seen = Names()
    known: dict[str, Prefix] = {}
    stream.write(_line(header))
    for task in tasks:
        where = f"task {task.name!r}"
        check_task(task, where)
        check_across(task, where, seen, known)
        stream.write(_line(task_fields(task)))
    if not len(seen):
        raise TraceError("no tasks to write", where=str(path), expected="at least one task")


def _line(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _seconds(duration_ps: int, where: str) -> float:
    if duration_ps % PS_PER_US:
        raise TraceError(f"{duration_ps} ps", where=where, expected="whole microseconds")
    return duration_ps / PS_PER_S


def task_fields(task: Task) -> dict[str, Any]:
    """The JSON object of a task, defaults left out."""
    where = f"task {task.name!r}"
    fields: dict[str, Any] = {"task": text(task.name, "task", where)}
    if task.tenant != "default":
        fields["tenant"] = text(task.tenant, "tenant", where)
    if task.arrival_ps is not None:
        fields["arrival_s"] = _seconds(task.arrival_ps, where)
    if task.agent:
        fields["agent"] = text(task.agent, "agent", where)
    if task.family:
        fields["family"] = text(task.family, "family", where)
    if task.prefixes:
        fields["prefixes"] = [_context_fields(prefix, where) for prefix in task.prefixes]
    before: tuple[str, ...] = ()
    fields["calls"] = []
    for call in task.calls:
        fields["calls"].append(_call_fields(call, before, where))
        before = (call.name,)
    return fields


def _context_fields(item: Call | Prefix, where: str) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": text(item.name, "name", where)}
    if item.extends is not None:
        fields |= {"extends": item.extends, "keep_tokens": item.keep_tokens}
    fields["new_tokens"] = item.new_tokens
    return fields


def _call_fields(call: Call, before: tuple[str, ...], where: str) -> dict[str, Any]:
    fields = _context_fields(call, where)
    fields["output_tokens"] = call.output_tokens
    if call.after != before:
        fields["after"] = list(call.after)
    if call.delay_ps:
        fields["delay_s"] = _seconds(call.delay_ps, where)
    if call.tools:
        fields["tools"] = [_tool_fields(tool, where) for tool in call.tools]
    if call.agent:
        fields["agent"] = text(call.agent, "agent", where)
    return fields


def _tool_fields(tool: Tool, where: str) -> dict[str, Any]:
    fields = {"name": text(tool.name, "name of a tool", where), "s": _seconds(tool.duration_ps, where)}
    return fields | {"filled": True} if tool.filled else fields
