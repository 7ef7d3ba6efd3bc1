"""OpenTelemetry GenAI spans as tasks: a conversation, or else a trace, is one task.

LLM spans are calls, execute_tool spans the tools between them, invoke_agent spans inside others the sub-agents. A call
runs after the calls that had ended when it began, as far as they are of its own agent or below it (for the first call
of a sub-agent: of the agents above it); spans that overlap are side by side. What time is left is a delay.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sagasim.core import MAX_CALLS, MAX_DURATION_PS, Call, Prefix, Task, Tool, check_task
from sagasim.errors import TraceError
from sagasim.importers.otel_context import Contexts, system_prefixes
from sagasim.importers.otel_spans import Span, read_spans
from sagasim.units import PS_PER_US

__all__ = ["open_otel"]

APPEND_TEXT = (
    "not logged: an agent only appends, so a prompt that is at least as long as the one before repeats it and its "
    "output (less hidden reasoning): an assumption"
)
MESSAGES_TEXT = (
    "tokens of repeated messages: those of the call that wrote them, or its tokens in proportion to the characters"
)


def open_otel(
    path: Path, share: str = "prefix", *, document: bool = False
) -> tuple[dict[str, str], Callable[[int], Iterator[Task]]]:
    """(what is assumed, the tasks) of a file of spans. share: whether tasks share their instructions (`prefix`).

    Held in memory as a whole, without texts. LLM spans without input tokens (failed ones) and those around other LLM
    spans (a framework's around a client's) are left out; an output of 0 tokens counts as one.
    """
    groups = _groups(read_spans(path, document=document))
    if not groups:
        expected = "spans with gen_ai.operation.name and gen_ai.usage.input_tokens"
        raise TraceError("no LLM span with token counts", where=str(path), expected=expected)
    calls = [span for group in groups.values() for span in group.calls]
    for name, group in groups.items():
        if len(group.calls) > MAX_CALLS:  # told before the calls are compared with each other
            what, where = f"a task of {len(group.calls):,} calls", f"{group.calls[0].where}: task {name!r}"
            raise TraceError(what, where=where, expected=f"1 to {MAX_CALLS} calls")
    filled = {}
    if any(span.messages for span in calls):
        filled["keep_tokens"] = MESSAGES_TEXT
    if not all(span.messages for span in calls):
        filled["keep_tokens"] = f"{filled['keep_tokens']}; else {APPEND_TEXT}" if filled else APPEND_TEXT
    return filled, partial(_tasks, groups, share)


def _tasks(groups: dict[str, _Group], share: str, _seed: int) -> Iterator[Task]:
    first_us = min(group.start_us for group in groups.values())
    prefixes = system_prefixes([group.calls for group in groups.values()]) if share == "prefix" else {}
    for name, group in groups.items():
        task = _Builder(name, group, prefixes).task(group.start_us - first_us)
        check_task(task, f"{group.calls[0].where}: task {name!r}")
        yield task


class _Group:
    """The spans of one task. agent: agent span -> the agent that runs it; above: agent -> the agent above it."""

    def __init__(self) -> None:
        self.calls: list[Span] = []
        self.tools: list[Span] = []
        self.agent: dict[int, str] = {}  # id of a span -> name of its agent, "" for the main one
        self.above: dict[str, str] = {}
        self.again: dict[str, int] = {}  # name of a sub-agent -> how often it came
        self.main = ""

    @property
    def start_us(self) -> int:
        return min(span.start_us for span in self.calls)


def _groups(spans: list[Span]) -> dict[str, _Group]:
    """The tasks by name, in the order of their starts."""
    known = {(span.trace, span.span): span for span in spans}
    chains = {id(span): _chain(span, known) for span in spans if span.kind}
    outer = {id(up) for span in spans if span.kind == "llm" and span.prompt for up in chains[id(span)]}
    conversations: dict[str, set[str]] = {}
    for span in spans:
        if span.conversation:
            conversations.setdefault(span.trace, set()).add(span.conversation)
    groups: dict[str, _Group] = {}

    def order(span: Span) -> tuple[int, int, int]:
        return span.start_us, len(chains[id(span)]), span.end_us  # what is around comes first

    for span in sorted((span for span in spans if span.kind), key=order):
        chain = chains[id(span)]
        named = next((one.conversation for one in (span, *chain) if one.conversation), "")
        only = conversations.get(span.trace, ())
        name = named or (next(iter(only)) if len(only) == 1 else span.trace)
        group = groups.setdefault(name, _Group())
        _place(span, chain, group)
        if id(span) not in outer and span.kind == "llm" and span.prompt:
            group.calls.append(span)
        elif id(span) not in outer and span.kind == "tool":
            group.tools.append(span)
    return {name: group for name, group in groups.items() if group.calls}


def _chain(span: Span, known: dict[tuple[str, str], Span]) -> list[Span]:
    """The spans around a span, the nearest first; a cycle or what lies deeper than 100 ends it."""
    chain: list[Span] = []
    seen: set[int] = set()
    while span.parent and len(chain) < 100:
        above = known.get((span.trace, span.parent))
        if above is None or id(above) in seen:
            break
        chain.append(above)
        seen.add(id(above))
        span = above
    return chain


def _place(span: Span, chain: list[Span], group: _Group) -> None:
    """Say which agent a span belongs to. The first outermost agent is the main one, and any other of its name too."""
    around = [one for one in chain if one.kind == "agent"]
    if span.kind != "agent":
        if span.kind == "llm" and not around:
            group.main = group.main or span.name
        agent = group.agent.get(id(around[0]), "") if around else span.name if span.kind == "llm" else ""
        group.agent[id(span)] = "" if not around and agent == group.main else agent
        if group.agent[id(span)]:
            group.above.setdefault(group.agent[id(span)], "")
        return
    if not around:
        group.main = group.main or span.name
        name = "" if span.name == group.main else span.name
    else:
        name = span.name
        while name in group.above:
            group.again[span.name] = again = group.again.get(span.name, 1) + 1
            name = f"{span.name}#{again}"
    group.agent[id(span)] = name
    if name:
        group.above.setdefault(name, group.agent.get(id(around[0]), "") if around else "")


class _Builder:
    """Turns the spans of one task into calls. Sets of calls are bits, numbered by when the calls ended."""

    def __init__(self, name: str, group: _Group, prefixes: dict[int, Prefix]) -> None:
        self.name = name
        self.group = group
        ended = sorted(group.calls, key=lambda span: (span.end_us, span.start_us))
        self.ends = [span.end_us for span in ended]
        self.by_end = ended
        self.bit = {id(span): 1 << place for place, span in enumerate(ended)}
        self.below: dict[str, int] = {}  # agent -> calls of it and the agents below it, so far
        self.behind: dict[int, int] = {}  # span -> all calls it runs after
        self.after: dict[int, list[Span]] = {}
        self.names = {id(span): str(place) for place, span in enumerate(group.calls)}
        self.contexts = Contexts(prefixes)

    def task(self, arrival_us: int) -> Task:
        for span in self.group.calls:
            self._order(span)
        tools = self._tools()
        calls = [self._call(span, tools) for span in self.group.calls]
        arrival_ps = min(arrival_us * PS_PER_US, MAX_DURATION_PS + 1)  # what is beyond is refused with the task
        return Task(self.name, tuple(calls), "default", arrival_ps, self.contexts.used(), self.group.main)

    def _order(self, span: Span) -> None:
        """Find the calls that a call runs after: the latest that had ended, without those that they run after."""
        agent = self.group.agent[id(span)]
        mask = 0
        until = (1 << bisect_right(self.ends, span.start_us)) - 1
        scope = agent
        while True:
            mask = self.below.get(scope, 0) & until
            if mask or not scope:
                break
            scope = self.group.above[scope]
        covered, after = 0, []
        while mask:
            last = self.by_end[mask.bit_length() - 1]
            after.append(last)
            covered |= self.behind[id(last)] | self.bit[id(last)]
            mask &= ~covered
        self.after[id(span)], self.behind[id(span)] = after, covered
        scope = agent
        while True:
            self.below[scope] = self.below.get(scope, 0) | self.bit[id(span)]
            if not scope:
                break
            scope = self.group.above[scope]

    def _tools(self) -> dict[int, list[Tool]]:
        """Tools by the call after which they run: the last of their agent that had ended when they began.

        A tool that goes on beside the next call is left out, for nothing waited for it.
        """
        next_us: dict[int, int] = {}
        for span in self.group.calls:
            for before in self.after[id(span)]:
                next_us[id(before)] = min(next_us.get(id(before), span.start_us), span.start_us)
        ended: dict[str, list[Span]] = {}
        for span in self.by_end:
            ended.setdefault(self.group.agent[id(span)], []).append(span)
        tools: dict[int, list[Tool]] = {}
        for tool in self.group.tools:
            own = ended.get(self.group.agent[id(tool)], [])
            place = bisect_right(own, tool.start_us, key=lambda span: span.end_us)
            if place and tool.end_us <= next_us.get(id(own[place - 1]), tool.end_us):
                length_ps = min((tool.end_us - tool.start_us) * PS_PER_US, MAX_DURATION_PS)
                tools.setdefault(id(own[place - 1]), []).append(Tool(tool.name or "tool", length_ps))
        return tools

    def _call(self, span: Span, tools: dict[int, list[Tool]]) -> Call:
        after = self.after[id(span)]
        ready_us = self.group.start_us
        if after:
            ready_us = max(
                one.end_us + max((tool.duration_ps // PS_PER_US for tool in tools.get(id(one), ())), default=0)
                for one in after
            )
        name, agent = self.names[id(span)], self.group.agent[id(span)]
        bit, behind = self.bit[id(span)], self.behind[id(span)]
        extends, keep = self.contexts.add(span, name, agent, bit, behind)
        return Call(
            name,
            span.prompt - keep,
            max(span.output, 1),
            extends,
            keep,
            tuple(self.names[id(one)] for one in sorted(after, key=lambda one: int(self.names[id(one)]))),
            min(max(span.start_us - ready_us, 0) * PS_PER_US, MAX_DURATION_PS),
            tuple(tools.get(id(span), ())),
            agent,
        )
