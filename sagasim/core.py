"""The vocabulary: what a trace says. Everything imports this file; it imports nobody but errors and units.

    Task      an agent workflow: tenant, arrival, calls
    Call      one LLM request: the context it extends and how much of it, new tokens, output tokens, tools after it
    Tool      what the agent does between two calls, and for how long
    Prefix    a named context that several tasks share (system prompt, tool schemas)

The prompt of a call is the first `keep_tokens` tokens of the context it extends, followed by `new_tokens` tokens of
its own. The context of a call is its prompt followed by its output. The context of a prefix is its own tokens after
those it keeps. Nothing here knows about replicas, blocks or time of execution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from sagasim.errors import TraceError
from sagasim.units import MAX_PS

__all__ = ["MAX_CALLS", "MAX_DURATION_PS", "MAX_TOKENS", "Call", "Prefix", "Task", "Tool", "check_task", "with_arrival"]

MAX_TOKENS: Final = 100_000_000  # of one context; more is a mistake in the trace
MAX_CALLS: Final = 20_000  # of one task
MAX_DURATION_PS: Final = MAX_PS // 100  # of one tool or arrival: about a day


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool execution. All tools of a call start when it ends and run side by side."""

    name: str
    duration_ps: int
    filled: bool = False  # the duration was not in the source but drawn from a stated distribution


@dataclass(frozen=True, slots=True)
class Prefix:
    """A context shared by name across tasks: `new_tokens` after the first `keep_tokens` of `extends`."""

    name: str
    new_tokens: int
    extends: str | None = None
    keep_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One LLM request.

    extends: name of an earlier call of the task or of one of its prefixes, or None for a context of its own.
    after: names of the calls that must have ended, tools included, before this one is sent.
    delay_ps: waiting between that moment and sending (a person reading, a timer).
    agent: name of the sub-agent that makes the call; "" is the main agent.
    """

    name: str
    new_tokens: int
    output_tokens: int
    extends: str | None = None
    keep_tokens: int = 0
    after: tuple[str, ...] = ()
    delay_ps: int = 0
    tools: tuple[Tool, ...] = ()
    agent: str = ""

    @property
    def prompt_tokens(self) -> int:
        return self.keep_tokens + self.new_tokens

    @property
    def tool_ps(self) -> int:
        """Time until the last of the tools is done."""
        return max((tool.duration_ps for tool in self.tools), default=0)


@dataclass(frozen=True, slots=True)
class Task:
    """An agent workflow. `arrival_ps` is None where the source does not say when the task started."""

    name: str
    calls: tuple[Call, ...]
    tenant: str = "default"
    arrival_ps: int | None = None
    prefixes: tuple[Prefix, ...] = ()
    agent: str = ""  # type of the agent, where known
    family: str = ""  # tasks of one family are repeats of one another (one conversation replayed, one problem retried)

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest context, output included."""
        return max(call.prompt_tokens + call.output_tokens for call in self.calls)


def with_arrival(task: Task, arrival_ps: int) -> Task:
    return replace(task, arrival_ps=arrival_ps)


def check_task(task: Task, where: str = "") -> None:
    """Raise TraceError unless the task can be replayed.

    Names are unique and refer backwards (so there are no cycles), numbers are in range, and a call that keeps part of
    an output runs after the call that wrote it.
    """
    where = where or f"task {task.name!r}"
    ends: dict[str, int] = {}  # context name -> its length in tokens
    calls: set[str] = set()
    outputs = _Outputs()
    if not 1 <= len(task.calls) <= MAX_CALLS:
        count = f"of {len(task.calls)} calls" if task.calls else "without calls"
        raise TraceError(f"a task {count}", where=where, expected=f"1 to {MAX_CALLS} calls")
    if task.arrival_ps is not None and not 0 <= task.arrival_ps <= MAX_DURATION_PS:
        raise TraceError("arrival out of range", where=where, expected=f"0 to {MAX_DURATION_PS // 10**12} s")
    for prefix in task.prefixes:
        place = f"{where}, prefix {prefix.name!r}"
        ends[prefix.name] = _checked_context(prefix, prefix.new_tokens, ends, place)
        if prefix.new_tokens < 1:
            raise TraceError("a prefix without tokens", where=place, expected="new_tokens >= 1")
    for call in task.calls:
        place = f"{where}, call {call.name!r}"
        ends[call.name] = _checked_context(call, call.new_tokens + call.output_tokens, ends, place)
        if call.prompt_tokens < 1 or call.output_tokens < 1:
            raise TraceError("an empty prompt or output", where=place, expected="at least one token of each")
        _check_times(call, place)
        for name in call.after:
            if name not in calls:
                raise TraceError(
                    f"runs after unknown call {name!r}", where=place, expected="a call earlier in the task"
                )
        outputs.check(call, place)
        calls.add(call.name)


class _Outputs:
    """Which calls must have ended before a call may keep a part of a context."""

    def __init__(self) -> None:
        self._calls: dict[str, Call] = {}
        self._number: dict[str, int] = {}
        self._silent: dict[str, int] = {}  # call -> leading tokens of its prompt that are nobody's output
        self._behind: list[int] = []  # call -> bit set of the calls it runs after, made up to where it was needed

    def check(self, call: Call, where: str) -> None:
        """Raise TraceError unless the call runs after every call of whose output it keeps a token."""
        parent = self._calls.get(call.extends) if call.extends is not None else None
        if parent is not None and call.keep_tokens > self._silent[parent.name] and parent.name not in call.after:
            self._climb(call, parent, where)
        silent = call.prompt_tokens
        if parent is not None:
            silent = min(silent, self._silent[parent.name]) if call.keep_tokens > self._silent[parent.name] else silent
        self._number[call.name] = len(self._number)
        self._calls[call.name] = call
        self._silent[call.name] = silent

    def _climb(self, call: Call, parent: Call | None, where: str) -> None:
        keep = call.keep_tokens
        behind = self._runs_after(call.after)
        while parent is not None and keep > self._silent[parent.name]:
            if behind >> self._number[parent.name] & 1:
                return  # and so after all whose output the parent keeps
            if keep > parent.prompt_tokens:
                raise TraceError(
                    f"keeps output of {parent.name!r} without running after it",
                    where=where,
                    expected=f"keep_tokens <= {parent.prompt_tokens} or {parent.name!r} in 'after'",
                )
            keep = min(keep, parent.keep_tokens)
            parent = self._calls.get(parent.extends) if parent.extends is not None else None

    def _runs_after(self, after: tuple[str, ...]) -> int:
        done = list(self._calls.values())
        for number in range(len(self._behind), len(done)):
            self._behind.append(self._union(done[number].after))
        return self._union(after)

    def _union(self, after: tuple[str, ...]) -> int:
        union = 0
        for name in after:
            union |= self._behind[self._number[name]] | 1 << self._number[name]
        return union


def _checked_context(item: Call | Prefix, added_tokens: int, ends: dict[str, int], where: str) -> int:
    """Length of the context that `item` adds, in tokens."""
    if item.name in ends:
        raise TraceError("name used twice", where=where, expected="names unique within a task")
    if item.extends is not None and item.extends not in ends:
        raise TraceError(f"extends unknown context {item.extends!r}", where=where, expected="an earlier call or prefix")
    available = ends[item.extends] if item.extends is not None else 0
    if not 0 <= item.keep_tokens <= available:
        raise TraceError(
            f"keeps {item.keep_tokens} tokens of a context of {available}", where=where, expected=f"0 to {available}"
        )
    length = item.keep_tokens + added_tokens
    if item.new_tokens < 0 or not 0 < length <= MAX_TOKENS:
        raise TraceError("token count out of range", where=where, expected=f"0 to {MAX_TOKENS} tokens")
    return length


def _check_times(call: Call, where: str) -> None:
    for what, duration in (("delay", call.delay_ps), *((f"tool {t.name!r}", t.duration_ps) for t in call.tools)):
        if not 0 <= duration <= MAX_DURATION_PS:
            raise TraceError(f"{what} out of range", where=where, expected=f"0 to {MAX_DURATION_PS // 10**12} s")
