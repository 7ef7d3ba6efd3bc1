"""Lines of session files, checked: sessions, their requests, and which session spawned which (traces/SCHEMA.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sagasim.errors import TraceError
from sagasim.importers.lines import (
    mapping,
    number,
    object_bytes,
    optional_seconds,
    parse,
    read_lines,
    sequence,
    text,
    tokens,
    whole,
)

__all__ = ["NEVER", "Line", "Step", "load_sessions"]

NEVER = -1  # the position before the first step
HELD_BYTES = 2**30  # of a whole file as Python objects, for it is held in memory
SPAWN_SLACK_S = 1.5  # times of Claude Code sessions are rounded to about a second


@dataclass(slots=True)
class Step:
    """One request that can be replayed: `index` is its place in the source, `fields` what the source says."""

    index: int
    fields: dict[str, Any]
    prompt: int
    output: int
    start_s: float | None
    llm_s: float | None

    @property
    def end_s(self) -> float:
        """End of the response in seconds after the start of the session, as far as it is known."""
        return (self.start_s or 0.0) + (self.llm_s or 0.0)


@dataclass(slots=True)
class Line:
    """One line of the file: a session or a sub-agent.

    spawned: position in `steps`, or NEVER -> the sub-agents that start after that step. parent, position: the session
    that spawned this one and after which of its steps.
    """

    sid: str
    where: str
    fields: dict[str, Any]
    steps: list[Step]
    spawned: dict[int, list[Line]] = field(default_factory=dict)
    parent: Line | None = None
    position: int = NEVER

    @property
    def wall_s(self) -> float:
        """Seconds from the first request to the end of the session."""
        recorded = optional_seconds(self.fields, "agent_wall_s", self.where)
        return recorded if recorded is not None else self.steps[-1].end_s

    def spawn_times(self) -> tuple[float, float]:
        """(start, end) in seconds after the parent's start.

        `spawn_t` of Claude Code sessions is the moment the result came back: it is read as such wherever the wall time
        fits between the parent's response and that moment, and as the start otherwise.
        """
        spawn_s = optional_seconds(self.fields, "spawn_t", self.where) or 0.0
        earliest = self.parent.steps[self.position].end_s if self.parent and self.position != NEVER else 0.0
        if spawn_s - self.wall_s >= earliest - SPAWN_SLACK_S:
            return max(spawn_s - self.wall_s, 0.0), spawn_s
        return spawn_s, spawn_s + self.wall_s


def load_sessions(path: Path) -> list[Line]:
    """The sessions of a file that are nobody's sub-agent, in the order of the file. Holds the whole file in memory."""
    lines = _lines(path)
    roots = []
    for line in lines.values():
        parent = lines.get(line.fields.get("parent") or "")
        if parent is None or parent is line or not parent.steps:
            roots.append(line)
        elif line.steps:
            line.parent, line.position = parent, _position(line, parent)
            parent.spawned.setdefault(line.position, []).append(line)
    _check_reached(roots, lines)
    return roots


def _lines(path: Path) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    held = 0
    for count, raw in read_lines(path):
        where = f"{path}:{count}"
        fields = parse(raw, where)
        held += object_bytes(raw)
        if held > HELD_BYTES:
            expected = f"at most {HELD_BYTES >> 20:,} MiB as objects in a file of this format"
            raise TraceError("too many sessions and steps", where=where, expected=expected)
        sid = text(fields.get("sid"), "sid", where)
        if sid in lines:
            raise TraceError(f"session {sid!r} twice", where=where, expected="sids unique within the file")
        where = f"{where}: session {sid!r}"
        for key in ("src", "agent", "parent"):
            if fields.get(key) is not None:
                text(fields[key], key, where)
        if fields.get("t0_epoch") is not None:
            number(fields["t0_epoch"], "t0_epoch", where, 0, 1e11)
        steps = sequence(fields.pop("steps", None), "steps", where)
        read = [_step(step, index, where) for index, step in enumerate(steps)]
        lines[sid] = Line(sid, where, fields, [step for step in read if step.prompt])
    return lines


def _step(raw: object, index: int, where: str) -> Step:
    where = f"{where}, step {index}"
    fields = mapping(raw, "a step", where)
    prompt, output = tokens(fields, "in", where), tokens(fields, "out", where)
    start_s, llm_s = optional_seconds(fields, "t", where), optional_seconds(fields, "llm_s", where)
    return Step(index, fields, prompt, max(output, 1), start_s, llm_s)


def _position(line: Line, parent: Line) -> int:
    """Position in the parent's steps after which a sub-agent starts."""
    after = line.fields.get("spawn_after_step")
    after = whole(NEVER if after is None else after, "spawn_after_step", line.where, NEVER)
    return max((position for position, step in enumerate(parent.steps) if step.index <= after), default=NEVER)


def _check_reached(roots: list[Line], lines: dict[str, Line]) -> None:
    reached: set[str] = set()
    stack = list(roots)
    while stack:
        line = stack.pop()
        reached.add(line.sid)
        stack.extend(child for children in line.spawned.values() for child in children)
    for line in lines.values():
        if line.steps and line.sid not in reached:
            what = f"session {line.sid!r} is its own ancestor"
            raise TraceError(what, where=line.where, expected="parents without a cycle")
