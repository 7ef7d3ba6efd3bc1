"""Session files: one agent session per line, its requests as `steps` (traces/SCHEMA.md).

What a line holds decides how it is read, never the name of the file: block ids (`hr`) or a token count (`pfx_tok`) say
what a prompt shares, else the agent only appends; recorded gaps (`pre_s`), step times (`cyc_s`) or log times (`t`) say
how long the tools took, else that is drawn (sagasim.fill). A session and its sub-agents are one task.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path

from sagasim.core import Call, Prefix, Task, check_task
from sagasim.errors import TraceError
from sagasim.importers.lines import duration, sequence, text, whole
from sagasim.importers.runs import RunTrie
from sagasim.importers.session_lines import NEVER, SPAWN_SLACK_S, Line, Step, load_sessions
from sagasim.importers.session_tools import filled_texts, quantised, tools_after
from sagasim.rng import Stream
from sagasim.units import PS_PER_S

__all__ = ["filled_texts", "read_sessions"]

HR_BLOCK_TOKENS = 64  # where a line does not say block_size


def read_sessions(path: Path, seed: int = 0, share: str = "prefix") -> Iterator[Task]:
    """The tasks of a session file in the order of its lines; sub-agents are part of their parent's task.

    The whole file is held in memory, for sub-agents may stand anywhere in it. share: "prefix" (sessions whose tool and
    system sizes are equal share them) or "session" (sessions share nothing). Requests without input tokens are left
    out, and tasks without any other request. An output of 0 tokens counts as one.
    """
    roots = load_sessions(path)
    first = min((line.fields["t0_epoch"] for line in roots if line.fields.get("t0_epoch") is not None), default=0)
    for root in roots:
        if root.steps:
            epoch = root.fields.get("t0_epoch")
            arrival = None if epoch is None else duration(epoch - first, "t0_epoch less the first one", root.where)
            task = _Builder(root, share, Stream(seed, "fill", root.sid)).task(arrival)
            check_task(task, root.where)
            yield task


class _Builder:
    """Turns one session and its sub-agents into a task."""

    def __init__(self, root: Line, share: str, stream: Stream) -> None:
        self.root = root
        self.share = share
        self.stream = stream
        self.trie = RunTrie()
        self.calls: list[Call] = []
        self.number: dict[tuple[str, int], int] = {}  # (sid, index in the source) -> place in calls
        self.prefixes: dict[str, Prefix] = {}
        self.tool_sizes: set[int] = set()

    def task(self, arrival_ps: int | None) -> Task:
        for line, position in _order(self.root):
            self._add(line, position)
        return Task(
            self.root.sid,
            tuple(self.calls),
            arrival_ps=arrival_ps,
            prefixes=tuple(self.prefixes.values()),
            agent=self.root.fields.get("agent") or "",
            family=self._family(),
        )

    def _family(self) -> str:
        """Sessions of one family replay one conversation or try one task again."""
        for key in ("family", "task"):
            value = self.root.fields.get(key)
            if type(value) is int or value:
                return text(str(value), key, self.root.where)
        return ""

    def _add(self, line: Line, position: int) -> None:
        step = line.steps[position]
        extends, keep = self._context(line, position)
        after, delay = self._start(line, position)
        main = line is self.root
        self.number[line.sid, step.index] = len(self.calls)
        self.calls.append(
            Call(
                name=str(step.index) if main else f"{line.sid}#{step.index}",
                new_tokens=step.prompt - keep,
                output_tokens=step.output,
                extends=extends,
                keep_tokens=keep,
                after=after,
                delay_ps=delay,
                tools=() if position in line.spawned else tools_after(line, position, self.stream),
                agent="" if main else line.sid,
            )
        )

    # ---- what a prompt shares

    def _context(self, line: Line, position: int) -> tuple[str | None, int]:
        """(what the prompt extends, tokens it keeps)."""
        step = line.steps[position]
        found, keep = self._repeated(line, position)
        if position == 0 and self.share == "prefix":
            prefix = self._shared_prefix(line, step, keep)
            if prefix is not None:
                return prefix
        return (self.calls[found].name, keep) if keep else (None, 0)

    def _repeated(self, line: Line, position: int) -> tuple[int, int]:
        """(place of the earlier call that a step repeats most of, tokens)."""
        step = line.steps[position]
        fields, where = step.fields, f"{line.where}, step {step.index}"
        if "hr" in fields:
            size = line.fields.get("block_size")
            size = HR_BLOCK_TOKENS if size is None else whole(size, "block_size", line.where, 1)
            found, blocks = self.trie.add(_checked_runs(fields["hr"], where), len(self.calls))
            return (found, min(size * blocks, step.prompt, self.calls[found].prompt_tokens)) if blocks else (NEVER, 0)
        if position == 0 or ("pfx_tok" in fields and fields["pfx_tok"] is None):
            return NEVER, 0
        if "pfx_tok" in fields:
            return self._earlier(line, position, whole(fields["pfx_tok"], "pfx_tok", where))
        before = line.steps[position - 1]
        reason = before.fields.get("reason")
        hidden = 0 if reason is None else min(whole(reason, "reason", where), before.output)
        return self._earlier(line, position, before.prompt + before.output - hidden)

    def _earlier(self, line: Line, position: int, keep: int) -> tuple[int, int]:
        """(place of the call that a step repeats, tokens): the one `pfx_from` names, else the one before."""
        step = line.steps[position]
        source = step.fields.get("pfx_from")
        source = line.steps[position - 1].index if source is None else source
        whole(source, "pfx_from", f"{line.where}, step {step.index}", 0, step.index - 1)
        number = self.number.get((line.sid, source))
        if number is None:
            return NEVER, 0
        context = self.calls[number].prompt_tokens + self.calls[number].output_tokens
        return number, min(keep, step.prompt, context)

    def _shared_prefix(self, line: Line, step: Step, repeated: int) -> tuple[str, int] | None:
        """The tools and system prompt that a first request shares with other sessions, where it shares more by that.

        Within a session the block ids say what is shared, so a second agent with the same tools takes no prefix.
        """
        sizes = [line.fields.get(key) or 0 for key in ("tool_tokens", "system_tokens")]
        tool, system = (whole(size, "tool_tokens or system_tokens", line.where) for size in sizes)
        keep = min(tool + system, step.prompt)
        if repeated >= keep or (tool in self.tool_sizes and "hr" in step.fields):
            return None
        self.tool_sizes.add(tool)
        source = line.fields.get("src") or "sessions"
        name = ""
        if tool:
            name = f"{source}/tools/{tool}"
            self.prefixes[name] = Prefix(name, tool)
        if system:
            below, name = name, f"{source}/system/{tool}/{system}"
            self.prefixes[name] = Prefix(name, system, below or None, tool)
        return name, keep

    # ---- when a call is sent

    def _start(self, line: Line, position: int) -> tuple[tuple[str, ...], int]:
        """(calls that must have ended, waiting after that in ps).

        After a step that spawned sub-agents the recorded gap is a delay, not a tool, for the sub-agents run within it;
        a request that starts when a sub-agent is done runs after it and waits for what is left of the gap.
        """
        if position == 0:
            return _spawned_start(line, self) if line is not self.root else ((), 0)
        before = line.steps[position - 1]
        after = [self.name(line, position - 1)]
        children = line.spawned.get(position - 1)
        if not children:
            return tuple(after), 0
        gap_s = max((tool.duration_ps for tool in tools_after(line, position - 1, self.stream)), default=0) / PS_PER_S
        start_s = line.steps[position].start_s
        busy_s = 0.0
        for child in children:
            child_start_s, child_end_s = child.spawn_times()
            last = self.number.get((child.sid, child.steps[-1].index))
            if start_s is not None and start_s >= child_end_s - SPAWN_SLACK_S and last is not None:
                after.append(self.calls[last].name)
                busy_s = max(busy_s, max(0.0, child_start_s - before.end_s) + child.wall_s)
        return tuple(after), quantised(max(0.0, gap_s - busy_s))

    def name(self, line: Line, position: int) -> str:
        return self.calls[self.number[line.sid, line.steps[position].index]].name

    def first(self, line: Line) -> Call:
        return self.calls[self.number[line.sid, line.steps[0].index]]


def _spawned_start(line: Line, builder: _Builder) -> tuple[tuple[str, ...], int]:
    """When the first request of a sub-agent is sent."""
    parent = line.parent or line
    start_s, _ = line.spawn_times()
    if line.position != NEVER:
        lead_s = max(0.0, start_s - parent.steps[line.position].end_s)
        return (builder.name(parent, line.position),), quantised(lead_s)
    if parent is builder.root:
        return (), quantised(start_s)
    first = builder.first(parent)
    return first.after, min(first.delay_ps + quantised(start_s), quantised(float("1e9")))


def _order(root: Line) -> Iterator[tuple[Line, int]]:
    """(line, position) of all steps of a session and its sub-agents by start time.

    Every step comes after the one before it, and a sub-agent after the step that spawned it, whatever the times say; of
    two steps at the same time the one of the deeper sub-agent comes first.
    """
    heap: list[tuple[float, int, int, Line, int]] = []
    bases: dict[str, float] = {}
    serial = 0

    def push(line: Line, position: int, now_s: float, depth: int) -> None:
        nonlocal serial
        serial += 1
        start_s = line.steps[position].start_s
        when_s = now_s if start_s is None else max(now_s, bases[line.sid] + start_s)
        heapq.heappush(heap, (when_s, -depth, serial, line, position))

    def spawn(line: Line, position: int, now_s: float, depth: int) -> None:
        for child in line.spawned.get(position, ()):
            bases[child.sid] = bases[line.sid] + child.spawn_times()[0]
            push(child, 0, now_s, depth + 1)

    bases[root.sid] = 0.0
    push(root, 0, 0.0, 0)
    spawn(root, NEVER, 0.0, 0)
    while heap:
        now_s, minus_depth, _, line, position = heapq.heappop(heap)
        yield line, position
        if position == 0 and line is not root:
            spawn(line, NEVER, now_s, -minus_depth)
        spawn(line, position, now_s, -minus_depth)
        if position + 1 < len(line.steps):
            push(line, position + 1, now_s, -minus_depth)


def _checked_runs(raw: object, where: str) -> list[list[int]]:
    runs = sequence(raw, "hr", where)
    for run in runs:
        if type(run) is not list or len(run) != 2 or type(run[0]) is not int or type(run[1]) is not int or run[1] < 1:
            raise TraceError("hr holds something else than runs", where=where, expected="[[first id, count], ...]")
    return runs
