"""An eviction that knows the trace, in the closed loop: `--predict truth --evict clairvoyant`.

It keeps the contexts that are read again soonest, for the most part: a context has one rank for all of its blocks.
Evictions change when later calls run, so this is no bound, only a system that nobody can build; it may be beaten.
Bounds for the accesses of one run are what `sagasim oracle` gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from sagasim.core import MAX_TOKENS, Task
from sagasim.errors import PolicyError
from sagasim.plan import Context
from sagasim.policies.aeg import Aeg
from sagasim.seams import IdleContext, Memory, policy

__all__ = ["Clairvoyant", "Truth"]


class _Course:
    """How far a task is: its contexts by the call that sent them, when calls ended, tools included."""

    def __init__(self, task: Task) -> None:
        self.calls = task.calls
        index = {call.name: i for i, call in enumerate(task.calls)}
        self.parents = [index.get(call.extends or "", -1) for call in task.calls]
        self.after = [[index[name] for name in call.after] for call in task.calls]
        self.contexts: dict[Context, int] = {}
        self.sent: set[int] = set()
        self.done_ps: dict[int, int] = {}
        self.next = 0  # all calls before this one have been sent
        self._following: dict[int, int | None] = {}

    def following(self, owner: int) -> int | None:
        """The first call not yet sent whose prompt holds at least half of a call's context."""
        known = self._following.get(owner, owner)
        if known is None or (known >= self.next and known not in self.sent):
            return known if known != owner else None
        wanted = self.calls[owner].prompt_tokens
        calls = (c for c in range(max(self.next, known), len(self.calls)) if c not in self.sent)
        found = next((call for call in calls if 2 * self._shared(call, owner) >= wanted), None)
        self._following[owner] = found
        return found

    def _shared(self, call: int, other: int) -> int:
        """Tokens that the contexts of two calls have in common from the first on."""
        ends = [MAX_TOKENS, MAX_TOKENS]
        pair = [call, other]
        while pair[0] != pair[1]:
            later = 0 if pair[0] > pair[1] else 1
            at = pair[later]
            ends[later] = min(ends[later], self.calls[at].keep_tokens)
            pair[later] = self.parents[at]
        return min(ends)


@policy("predict", "truth")
class Truth(Aeg):
    """The very tasks that are replayed, tools and their times included: clairvoyant."""

    def __init__(self) -> None:
        super().__init__(hints="perfect")
        self._tasks: dict[str, Task] = {}
        self._courses: dict[str, _Course] = {}

    def learn(self, tasks: Iterable[Task]) -> None:
        known = list(tasks)
        super().learn(known)
        self._tasks = {task.name: task for task in known}

    def sent(self, request: Any, now_ps: int) -> None:
        super().sent(request, now_ps)
        course = self._courses.get(request.task)
        if course is None:
            course = self._courses[request.task] = _Course(self._tasks[request.task])
        course.contexts[request.context] = request.call
        course.sent.add(request.call)
        while course.next in course.sent:
            course.sent.discard(course.next)
            course.next += 1

    def ended(self, request: Any, tools: tuple[str, ...], output_tokens: int, service_ps: int, now_ps: int) -> None:
        super().ended(request, tools, output_tokens, service_ps, now_ps)
        course = self._courses[request.task]
        course.done_ps[request.call] = now_ps + course.calls[request.call].tool_ps

    def left(self, task: str, now_ps: int) -> None:
        super().left(task, now_ps)
        self._courses.pop(task, None)

    def read_next_ps(self, idle: IdleContext, now_ps: int) -> int | None:
        """When the next call that reads this context is sent; None: never. Calls under way are taken to end now."""
        course = self._courses.get(idle.task)
        owner = None if course is None else course.contexts.get(idle.context)
        if course is None or owner is None:
            return None
        call = course.following(owner)
        if call is None:
            return None
        ready = [course.done_ps.get(i, now_ps + course.calls[i].tool_ps) for i in course.after[call]]
        return max(ready, default=now_ps) + course.calls[call].delay_ps


@policy("evict", "clairvoyant", together=True, sees_workflow=True, clairvoyant=True)
class Clairvoyant:
    """What is never read again goes first, then what is read again latest: knows the trace, needs --predict truth."""

    def __init__(self, workflow: Aeg) -> None:
        if not isinstance(workflow, Truth):
            raise PolicyError("needs to know the trace", where="clairvoyant", expected="--predict truth")
        self._truth = workflow

    def __call__(self, idles: Sequence[IdleContext], now_ps: int, memory: Memory) -> list[tuple[bool, int]]:
        times = [self._truth.read_next_ps(idle, now_ps) for idle in idles]
        return [
            (time is not None, idle.since_ps if time is None else -time)
            for idle, time in zip(idles, times, strict=True)
        ]
