"""A trace as the calls of a closed loop: when each is due, once the calls it follows and their tools have ended.

Tokens follow the contexts of the trace: what two prompts share there is equal here, token for token. New tokens are
random, from the name of what brings them; outputs are what the engine produced.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

import torch

from kernels.scheduler import Request
from kernels.trace import Call, Task, TraceFileError

__all__ = ["ClosedLoop"]


@dataclass(slots=True, eq=False)
class _Running:
    """A task under way. prompts, contexts: tokens by call; free_s: call -> when it and its tools have ended."""

    task: Task
    prompts: dict[str, list[int]] = field(default_factory=dict)
    contexts: dict[str, list[int]] = field(default_factory=dict)
    free_s: dict[str, float] = field(default_factory=dict)
    waits_for: dict[str, int] = field(default_factory=dict)  # call -> calls it follows that have not ended


class ClosedLoop:
    """Calls in the order in which they fall due; each ended one makes others due.

    tasks: in the order of the trace. limit: tokens; tasks with a longer context are left out and counted. concurrency:
    so many tasks at a time, the next begins when one ends; None: tasks begin when the trace says.
    """

    def __init__(self, tasks: Iterator[Task], vocab: int, limit: int, concurrency: int | None, seed: int = 0) -> None:
        self._tasks, self._vocab, self._limit, self._seed = tasks, vocab, limit, seed
        self._due: list[tuple[float, int, _Running, Call]] = []
        self._prefixes: dict[str, list[int]] = {}
        self._sent: dict[str, tuple[_Running, Call]] = {}
        self._count = 0
        self.dropped = self.started = 0
        if concurrency is None:
            for task in self._fitting():
                if task.arrival_s is None:
                    raise TraceFileError(f"task {task.name!r} has no arrival time; expected one, or --concurrency N")
                self._begin(task, task.arrival_s)
        for _ in range(concurrency or 0):
            self._next(0.0)

    def _fitting(self) -> Iterator[Task]:
        for task in self._tasks:
            if task.longest_tokens <= self._limit:
                yield task
            else:
                self.dropped += 1

    def _next(self, now_s: float) -> None:
        task = next(self._fitting(), None)
        if task is not None:
            self._begin(task, now_s)

    def _begin(self, task: Task, start_s: float) -> None:
        running = _Running(task)
        self.started += 1
        for call in task.calls.values():
            running.waits_for[call.name] = len(call.after)
            if not call.after:
                self._push(running, call, start_s)

    def _push(self, running: _Running, call: Call, when_s: float) -> None:
        self._count += 1
        heapq.heappush(self._due, (when_s + call.wait_s, self._count, running, call))

    @property
    def next_s(self) -> float | None:
        """When the next call is due, in seconds from the start; None while all wait for others."""
        return self._due[0][0] if self._due else None

    def send(self, now_s: float) -> Iterator[Request]:
        """The calls that are due by now; each was queued when it fell due."""
        while self._due and self._due[0][0] <= now_s:
            due_s, number, running, call = heapq.heappop(self._due)
            name = f"{running.task.name}/{call.name}"
            if name in self._sent:
                name = f"{name}#{number}"
            self._sent[name] = running, call
            prompt = list(self._prompt(running, call))
            yield Request(name, prompt, len(prompt), call.output_tokens, due_s)

    def ended(self, request: Request, now_s: float) -> None:
        """Take in a call that has ended: its tools start now, and what follows it may fall due."""
        running, call = self._sent.pop(request.name)
        running.contexts[call.name] = request.tokens
        running.free_s[call.name] = now_s + call.tools_s
        for other in running.task.calls.values():
            if call.name in other.after:
                running.waits_for[other.name] -= 1
                if not running.waits_for[other.name]:
                    self._push(running, other, max(running.free_s[name] for name in other.after))
        if len(running.free_s) == len(running.task.calls):
            self._next(max(running.free_s.values()))

    def _prompt(self, running: _Running, call: Call) -> list[int]:
        """Needs the outputs of ended calls alone: of others, a call keeps no more than their prompts."""
        if call.name not in running.prompts:
            own = self._fresh(f"{running.task.name}/{call.name}", call.new_tokens)
            running.prompts[call.name] = self._kept(running, call) + own
        return running.prompts[call.name]

    def _kept(self, running: _Running, item: Call) -> list[int]:
        if item.extends is None or not item.keep_tokens:
            return []
        task, name = running.task, item.extends
        if name in running.contexts:
            context = running.contexts[name]
        elif name in task.calls:
            context = self._prompt(running, task.calls[name])
        else:
            context = self._prefix(running, task.prefixes[name])
        if item.keep_tokens > len(context):
            raise TraceFileError(
                f"task {task.name!r}: {item.name!r} keeps output of {name!r}; expected it to run after that call"
            )
        return context[: item.keep_tokens]

    def _prefix(self, running: _Running, prefix: Call) -> list[int]:
        """Tokens of a context that tasks share by name: the same in all of them."""
        if prefix.name not in self._prefixes:
            own = self._fresh(f"prefix/{prefix.name}", prefix.new_tokens)
            self._prefixes[prefix.name] = self._kept(running, prefix) + own
        return self._prefixes[prefix.name]

    def _fresh(self, name: str, count: int) -> list[int]:
        seed = int.from_bytes(blake2b(f"{self._seed}/{name}".encode(), digest_size=7).digest(), "big")
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(self._vocab, (count,), generator=generator).tolist()
