"""Tasks as rows of the agentic_mooncake format, for whoever replays them elsewhere (traces/SCHEMA.md).

The format holds the lengths of requests, what they wait for and how long, and sharing as ids of blocks. Two prompts get
the same id for a block exactly if they are the same up to its end; so sharing is rounded down to whole blocks, and what
a prompt repeats of an earlier output is new to whoever reads it. All that is lost is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from typing import IO, Any

import orjson

from sagasim.core import Call, Prefix, Task, check_task
from sagasim.errors import ConfigError, TraceError
from sagasim.importers.names import Names
from sagasim.importers.writing import write_whole

__all__ = ["write_agentic_mooncake"]

PS_PER_MS = 10**9
MAX_ROW_IDS = 4_000_000  # of one request: what fits into a line that can be read again


def write_agentic_mooncake(
    path: str | Path, tasks: Callable[[], Iterable[Task]], block_tokens: int = 512
) -> dict[str, str]:
    """Write a file, whole or not at all; returns what was lost -> how much of it.

    tasks: gives the same tasks whenever it is called; they are read twice, for names that the file must not repeat.
    Requests keep their names and sub-agents theirs as sessions if no other task has them, else the task's name and a
    slash stand before them. Raises TraceError for a task that cannot be replayed or a file that cannot be written.
    """
    if type(block_tokens) is not int or not 1 <= block_tokens <= 10**6:
        raise ConfigError(f"block_tokens is {block_tokens!r:.40}", expected="a whole number from 1")
    writer = _Writer(block_tokens, *_clashes(tasks()))
    path = Path(path)

    def write(stream: IO[bytes]) -> None:
        for task in tasks():
            for row in writer.rows(task):
                stream.write(orjson.dumps(row) + b"\n")
        if not writer.tasks:
            raise TraceError("no tasks to write", where=str(path), expected="at least one task")

    write_whole(path, write)
    return writer.lost.texts(block_tokens)


def _clashes(tasks: Iterable[Task]) -> tuple[bool, bool]:
    """(whether two tasks have a call of one name, whether sub-agents and tasks together have a name twice)."""
    calls, sessions = Names(), Names()
    call_twice = agent_twice = False
    for task in tasks:
        if not sessions.add(task.name):
            agent_twice = True
        for call in task.calls:
            call_twice = call_twice or not calls.add(call.name)
        for agent in {call.agent for call in task.calls} - {""}:
            agent_twice = agent_twice or not sessions.add(agent)
    return call_twice, agent_twice


class _Lost:
    """Counts of what the format cannot hold."""

    def __init__(self) -> None:
        self.rounded_calls = self.rounded_tokens = self.output_calls = self.output_tokens = 0
        self.tools = self.filled = self.last = self.joins = self.tenants = self.kinds = self.families = self.agents = 0

    def texts(self, block_tokens: int) -> dict[str, str]:
        """What was lost -> how much, without what was not."""
        texts = {
            "sharing rounded down to whole blocks": (
                self.rounded_calls,
                f"{self.rounded_tokens:,} tokens of {self.rounded_calls:,} calls, blocks of {block_tokens:,} tokens",
            ),
            "outputs repeated in a prompt, now new blocks": (
                self.output_calls,
                f"{self.output_tokens:,} tokens of {self.output_calls:,} calls",
            ),
            "names of tools, which became delays": (self.tools, f"{self.tools:,} tools"),
            "marks of durations that are drawn": (self.filled, f"{self.filled:,} tools"),
            "tools after which no call comes": (self.last, f"{self.last:,} tools"),
            "waiting for several calls, each with tools": (
                self.joins,
                f"{self.joins:,} calls, which wait for the longest of the tools after the last call",
            ),
            "names of tenants": (self.tenants, f"{self.tenants:,} tasks"),
            "kinds of agents": (self.kinds, f"{self.kinds:,} tasks"),
            "families of tasks": (self.families, f"{self.families:,} tasks"),
            "sub-agents whose call is a task's first": (self.agents, f"{self.agents:,} tasks"),
        }
        return {what: text for what, (number, text) in texts.items() if number}


class _Blocks:
    """The blocks of a context. ids: of the full blocks of its prompt; later: of those that its output completes.

    parent, kept: context of which the first `kept` blocks are; ends: tokens -> id of a last block that is cut there.
    """

    __slots__ = ("ends", "ids", "keep", "kept", "later", "output", "parent")

    def __init__(self, parent: _Blocks | None, keep: int, block_tokens: int, *, output: bool) -> None:
        self.parent = parent
        self.keep = keep
        self.kept = keep // block_tokens
        self.output = output
        self.ids: list[int] = []
        self.later: dict[int, int] = {}
        self.ends: dict[int, int] = {}


class _Writer:
    """Makes rows of tasks, one after the other; only the blocks of shared prefixes stay."""

    def __init__(self, block_tokens: int, qualify_calls: bool, qualify_agents: bool) -> None:
        self.size = block_tokens
        self.qualify_calls = qualify_calls
        self.qualify_agents = qualify_agents
        self.tasks = 0
        self.lost = _Lost()
        self._prefixes: dict[str, _Blocks] = {}
        self._declared: dict[str, Prefix] = {}
        self._next = count()
        self._fresh = 0  # blocks of an earlier output that a prompt was the first to repeat

    def rows(self, task: Task) -> list[dict[str, Any]]:
        check_task(task)
        self.tasks += 1
        contexts = {prefix.name: self._prefix(prefix) for prefix in task.prefixes}
        lost = self.lost
        lost.tenants += task.tenant != "default"
        lost.kinds += bool(task.agent)
        lost.families += bool(task.family)
        lost.agents += bool(task.calls[0].agent)
        calls = {call.name: call for call in task.calls}
        waited = {name for call in task.calls for name in call.after}
        rows = [self._row(task, call, calls, contexts) for call in task.calls]
        for call in task.calls:
            lost.tools += len(call.tools)
            lost.filled += sum(tool.filled for tool in call.tools)
            lost.last += len(call.tools) if call.name not in waited else 0
        self._join(rows)
        return rows

    # ---- names, dependencies and times

    def _name(self, task: Task, call: str) -> str:
        return f"{task.name}/{call}" if self.qualify_calls else call

    def _session(self, task: Task, agent: str) -> str:
        if agent == task.calls[0].agent:
            return task.name
        if not agent:  # the main agent of a task that begins with a sub-agent
            return f"{task.name}/main"
        return f"{task.name}/{agent}" if self.qualify_agents else agent

    def _row(self, task: Task, call: Call, calls: dict[str, Call], contexts: dict[str, _Blocks]) -> dict[str, Any]:
        row: dict[str, Any] = {
            "request_id": self._name(task, call.name),
            "session_id": self._session(task, call.agent),
            "input_length": call.prompt_tokens,
            "output_length": call.output_tokens,
            "hash_ids": self._ids(call, contexts),
        }
        delay_ps = call.delay_ps
        if call.after:
            tool_ps = max(calls[name].tool_ps for name in call.after)
            self.lost.joins += len(call.after) > 1 and tool_ps > 0
            row["wait_for"] = [self._name(task, name) for name in call.after]
            if tool_ps:
                row["tool_wait_ms"] = tool_ps / PS_PER_MS
        elif task.arrival_ps is not None:
            least_ps = min(one.delay_ps for one in task.calls if not one.after)
            row["timestamp"] = (task.arrival_ps + delay_ps - least_ps) / PS_PER_MS
            delay_ps = least_ps
        if delay_ps:
            row["delay"] = delay_ps / PS_PER_MS
        return row

    def _join(self, rows: list[dict[str, Any]]) -> None:
        """Sessions of one task that wait for nothing of each other are named as started beside the first request."""
        leader = {row["session_id"]: row["session_id"] for row in rows}

        def root(session: str) -> str:
            while leader[session] != session:
                session = leader[session]
            return session

        session_of = {row["request_id"]: row["session_id"] for row in rows}
        for row in rows:
            for name in row.get("wait_for", ()):
                leader[root(row["session_id"])] = root(session_of[name])
        joined = root(rows[0]["session_id"])
        for row in rows:
            if root(row["session_id"]) != joined:
                rows[0].setdefault("branches", []).append(row["request_id"])
                leader[root(row["session_id"])] = joined

    # ---- blocks

    def _prefix(self, prefix: Prefix) -> _Blocks:
        blocks = self._prefixes.get(prefix.name)
        if blocks is None:
            parent = self._prefixes[prefix.extends] if prefix.extends is not None else None
            blocks = self._prefixes[prefix.name] = _Blocks(parent, prefix.keep_tokens, self.size, output=False)
            self._declared[prefix.name] = prefix
        elif self._declared[prefix.name] != prefix:
            expected = "one declaration per prefix name in a trace"
            raise TraceError(f"prefix {prefix.name!r} declared differently before", expected=expected)
        return blocks

    def _ids(self, call: Call, contexts: dict[str, _Blocks]) -> list[int]:
        """Ids of the blocks of a prompt, the last one perhaps filled in part."""
        parent = contexts[call.extends] if call.extends is not None else None
        keep, prompt = call.keep_tokens if parent is not None else 0, call.prompt_tokens
        if prompt // self.size > MAX_ROW_IDS:
            what = f"{prompt // self.size:,} blocks of {self.size} tokens"
            expected = f"at most {MAX_ROW_IDS:,} a prompt: larger blocks"
            raise TraceError(what, where=f"call {call.name!r}", expected=expected)
        own = contexts[call.name] = _Blocks(parent, keep, self.size, output=True)
        self._fresh = 0
        own.ids = self._leading(parent, own.kept) if parent is not None else []
        shared = len(own.ids) * self.size
        own.ids.extend(next(self._next) for _ in range(len(own.ids), prompt // self.size))
        ids = own.ids
        if prompt % self.size:
            last, known = self._last(own, prompt)
            ids = [*ids, last]
            shared = prompt if known else shared
        if self._fresh:
            self.lost.output_calls += 1
            self.lost.output_tokens += self._fresh * self.size
        if keep > shared:
            self.lost.rounded_calls += 1
            self.lost.rounded_tokens += keep - shared
        return ids

    def _leading(self, blocks: _Blocks, number: int) -> list[int]:
        """Ids of the first blocks of a context; those that nobody named before get one."""
        if number <= len(blocks.ids):
            return blocks.ids[:number]
        ids = blocks.ids[:]
        if blocks.parent is not None and not ids:
            ids = self._leading(blocks.parent, min(blocks.kept, number))
        for place in range(len(ids), number):
            block = blocks.later.get(place)
            if block is None:
                block = blocks.later[place] = next(self._next)
                self._fresh += blocks.output
            ids.append(block)
        return ids

    def _last(self, blocks: _Blocks, tokens: int) -> tuple[int, bool]:
        """(id of a last block that ends after `tokens` tokens of a context, whether a prompt had it before)."""
        while blocks.parent is not None and tokens <= blocks.keep:
            blocks = blocks.parent
        known = tokens in blocks.ends
        return (blocks.ends[tokens] if known else blocks.ends.setdefault(tokens, next(self._next))), known
