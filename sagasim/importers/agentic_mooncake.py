"""Requests with block ids: Mooncake's traces, and the agentic_mooncake format of which they are the simple case.

One JSON object per request, prompts as lists of block ids (traces/SCHEMA.md).

Two prompts share exactly the blocks at their start whose ids are equal, in the whole file: inside a session a request
extends the earlier one it shares most with, across sessions it extends a named prefix `blocks/<n>`. A last block that
`input_length` fills only in part is shared as far as both prompts cover it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from sagasim.core import MAX_DURATION_PS, Call, Prefix, Task, Tool, check_task
from sagasim.errors import TraceError
from sagasim.importers.blocks import BlockTrie, Node
from sagasim.importers.lines import MAX_ROWS, number, parse, read_lines, sequence, text, tokens
from sagasim.units import PS_PER_US

__all__ = ["BLOCK_TOKENS", "Row", "check_room", "read_agentic_mooncake", "tasks_of"]

BLOCK_TOKENS = 512
WAITS = ("delay", "tool_wait_ms")  # both are waited after the last dependency
MAX_IDS = 20_000_000  # of a whole file, a gigabyte or so
DAY_US = 86_400 * 10**6


class Row:
    """One request. after: the requests it waits for; wait_us: how long after the last of them.

    prompt, hashed: its tokens, and how many of them the block ids cover. ids: of its blocks, without the first `common`
    ones where those are the same in `before`, the request before it in its session: what sessions repeat is held once.
    """

    __slots__ = (
        "after", "before", "branches", "common", "hashed", "ids", "name", "output", "prompt", "session", "start_us",
        "tools", "wait_us", "where",
    )  # fmt: skip

    def __init__(
        self,
        name: str,
        session: str,
        where: str,
        prompt: int,
        hashed: int,
        output: int,
        ids: list[int],
        after: tuple[str, ...],
        wait_us: int,
        start_us: int | None,
        branches: tuple[str, ...],
    ) -> None:
        self.name = name
        self.session = session
        self.where = where
        self.prompt = prompt
        self.hashed = hashed
        self.output = output
        self.ids = ids
        self.after = after
        self.wait_us = wait_us
        self.start_us = start_us
        self.branches = branches
        self.tools: tuple[Tool, ...] = ()
        self.before: Row | None = None
        self.common = 0


def read_agentic_mooncake(
    path: Path, block_tokens: int = BLOCK_TOKENS, link: Callable[[dict[str, Row]], None] | None = None
) -> Iterator[Task]:
    """One task per session, in the order of the first rows; sessions that wait for each other are one task.

    The whole file is held in memory, for any two rows of it may share a prefix. Requests without session_id are tasks
    of their own. Block ids that are missing altogether mean that nothing is shared. link: what else is known about the
    rows, written into them before they become tasks.
    """
    rows = _load(path, block_tokens)
    if link is not None:
        link(rows)
    _start_branches(rows)
    _rebase(rows)
    yield from tasks_of(rows, block_tokens)


def tasks_of(rows: dict[str, Row], block_tokens: int) -> Iterator[Task]:
    """The tasks that requests by name make up; their lists of block ids are used up."""
    groups = [_ordered(group) for group in _groups(rows)]
    trie = BlockTrie(block_tokens)
    found: list[list[tuple[int, int, Node | None]]] = []
    for session, group in enumerate(groups):
        known: dict[str, list[int]] = {}
        found.append([trie.add(_whole(row, known), row.hashed, session, place) for place, row in enumerate(group)])
        for row in group:
            row.ids = []  # the tree holds what is new in them
    for group, matches in zip(groups, found, strict=True):
        task = _task(group, matches, trie)
        check_task(task, f"{group[0].where}: task {task.name!r}")
        yield task


def _whole(row: Row, known: dict[str, list[int]]) -> list[int]:
    """All ids of a request; `known` holds those of the latest requests by name."""
    chain = [row]
    while chain[-1].name not in known and chain[-1].before is not None:
        chain.append(chain[-1].before)
    for one in reversed(chain):
        if one.name not in known:
            known[one.name] = one.ids if one.before is None else known.pop(one.before.name)[: one.common] + one.ids
    return known[row.name]


def _load(path: Path, block_tokens: int) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    latest: dict[str, tuple[Row, list[int]]] = {}  # session -> its latest request and all ids of that
    ids = 0
    file = str(path)
    for count, line in read_lines(path):
        where = f"{file}:{count}"
        row = _row(parse(line, where), where, count, block_tokens)
        if row.name in rows:
            raise TraceError(f"request {row.name!r} twice", where=where, expected="request ids unique within the file")
        rows[row.name] = row
        if row.session != row.name:
            whole = row.ids
            if row.session in latest:
                row.before, row.common = latest[row.session][0], _same(whole, latest[row.session][1])
                row.ids = whole[row.common :]
            latest[row.session] = (row, whole)
        ids += len(row.ids)
        check_room(len(rows), ids, where)
    for row in rows.values():
        for name in row.after + row.branches:
            if name not in rows:
                raise TraceError(f"unknown request {name!r}", where=row.where, expected="request ids of this file")
    return rows


def _same(left: list[int], right: list[int]) -> int:
    """How many items at the start of two lists are equal."""
    low, high = 0, min(len(left), len(right))
    if left[:high] == right[:high]:  # the usual case: one goes on from the other
        return high
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def check_room(rows: int, ids: int, where: str) -> None:
    """Raise TraceError where a file has more rows or block ids than fit into memory with ease."""
    if rows > MAX_ROWS:
        raise TraceError("too many requests", where=where, expected=f"at most {MAX_ROWS:,} in a file of this format")
    if ids > MAX_IDS:
        raise TraceError("too many block ids", where=where, expected=f"at most {MAX_IDS:,} in a file of this format")


def _rebase(rows: dict[str, Row]) -> None:
    """Times that begin more than a day after 0 (Unix time) count from the first one on."""
    first = min((row.start_us for row in rows.values() if row.start_us is not None), default=0)
    if first > DAY_US:
        for row in rows.values():
            row.start_us = None if row.start_us is None else row.start_us - first


def _row(fields: dict[str, Any], where: str, count: int, block_tokens: int) -> Row:
    get = fields.get
    name, session, start_ms, ids = get("request_id"), get("session_id"), get("timestamp"), get("hash_ids")
    name = f"row {count}" if name is None else text(name, "request_id", where)
    prompt = tokens(fields, "input_length", where, 1)
    ids = [] if ids is None else sequence(ids, "hash_ids", where)
    if ids:
        _check_ids(ids, prompt, block_tokens, where)
    wait_ms = 0.0
    for key in WAITS:
        if (value := get(key)) is not None:
            wait_ms += number(value, key, where, 0, 1e12)
    return Row(
        name,
        name if session is None else text(session, "session_id", where),
        where,
        prompt,
        min(prompt, len(ids) * block_tokens),
        max(tokens(fields, "output_length", where), 1),
        ids,
        _names(get("wait_for"), "wait_for", where),
        round(wait_ms * 1000),
        None if start_ms is None else round(number(start_ms, "timestamp", where, 0, 1e14) * 1000),
        _names(get("branches"), "branches", where),
    )


def _names(raw: object, key: str, where: str) -> tuple[str, ...]:
    if raw is None:
        return ()
    names = [text(name, key, where) for name in sequence(raw, key, where)]
    return tuple(names) if len(names) < 2 else tuple(dict.fromkeys(names))


def _check_ids(ids: list[Any], prompt: int, block_tokens: int, where: str) -> None:
    if set(map(type, ids)) != {int}:
        raise TraceError("hash_ids holds something else than whole numbers", where=where, expected="a list of ids")
    if not prompt // block_tokens <= len(ids) <= -(-prompt // block_tokens):
        what = f"{len(ids)} block ids for {prompt} tokens"
        fits = -(-prompt // len(ids))
        expected = f"blocks of {block_tokens} tokens (block_tokens={fits} would fit this row)"
        raise TraceError(what, where=where, expected=expected)


def _start_branches(rows: dict[str, Row]) -> None:
    """A branch without dependencies or time of its own starts beside the request that names it."""
    for row in rows.values():
        for name in row.branches:
            branch = rows[name]
            if not branch.after and row.after and branch.start_us is None:
                branch.after, branch.wait_us = row.after, row.wait_us + branch.wait_us


def _groups(rows: dict[str, Row]) -> list[list[Row]]:
    """Rows by session; sessions joined by wait_for or branches together, first session first."""
    leader: dict[str, str] = {}

    def root(name: str) -> str:
        while leader.setdefault(name, name) != name:
            leader[name] = name = leader[leader[name]]  # half the way next time: chains of sessions stay short
        return name

    order = {row.session: place for place, row in enumerate(reversed(rows.values()))}
    for row in rows.values():
        for other in row.after + row.branches:
            session = rows[other].session
            if session != row.session:
                first, second = sorted((root(row.session), root(session)), key=lambda name: -order[name])
                leader[second] = first
    groups: dict[str, list[Row]] = {}
    for row in rows.values():
        groups.setdefault(root(row.session), []).append(row)
    return list(groups.values())


def _ordered(rows: list[Row]) -> list[Row]:
    """The rows in file order, or where a row waits for a later one, every row after those it waits for."""
    seen: set[str] = set()
    for row in rows:
        if not seen.issuperset(row.after):
            break
        seen.add(row.name)
    else:
        return rows
    named = {row.name: row for row in rows}
    try:
        return [named[name] for name in TopologicalSorter({row.name: row.after for row in rows}).static_order()]
    except CycleError as error:
        where = named[error.args[1][0]].where
        raise TraceError("requests that wait for each other", where=where, expected="no cycle in wait_for") from None


def _task(rows: list[Row], matches: list[tuple[int, int, Node | None]], trie: BlockTrie) -> Task:
    starts = [row.start_us for row in rows if not row.after and row.start_us is not None]
    arrival_us = min(starts, default=None)
    prefixes: dict[str, Prefix] = {}
    main = rows[0].session
    calls: list[Call] = []
    for row, (place, shared, end) in zip(rows, matches, strict=True):
        extends, keep = (rows[place].name, shared) if shared else (None, 0)
        node, across = trie.shared_across(end, row.hashed)
        if node is not None and across > keep:
            extends, keep = trie.declare(node, prefixes), across
        wait_us = row.wait_us
        if not row.after and row.start_us is not None and arrival_us is not None:
            wait_us += row.start_us - arrival_us
        calls.append(
            Call(
                row.name,
                row.prompt - keep,
                row.output,
                extends,
                keep,
                row.after,
                min(wait_us * PS_PER_US, MAX_DURATION_PS),
                row.tools,
                "" if row.session == main else row.session,
            )
        )
    arrival_ps = None if arrival_us is None else arrival_us * PS_PER_US
    return Task(main, tuple(calls), arrival_ps=arrival_ps, prefixes=tuple(prefixes.values()))
