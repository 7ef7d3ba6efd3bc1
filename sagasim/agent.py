"""Agents: one SimPy process per task (and per chain of calls that runs beside its main one), closed loop.

An agent sends a call, waits for its end, runs its tools, goes on: a slower cluster delays the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator

from simpy import Environment, Event

from sagasim.core import Task
from sagasim.eventlog import UNFINISHED, Table
from sagasim.expectation import Expectation
from sagasim.plan import PlannedCall, PlannedTask, Prefixes, plan_task

__all__ = ["Agents"]

Submit = Callable[[PlannedCall], Event]
Process = Generator[Event, None, None]


class Agents:
    """Starts the tasks when they arrive, or `concurrency` at a time, and logs their ends."""

    __slots__ = (
        "_active", "_closed", "_ended", "_exhausted", "_expectation", "_log", "_prefixes", "_submit", "_tasks",
        "done", "env", "task_names", "tenants",
    )  # fmt: skip

    def __init__(
        self,
        env: Environment,
        tasks: Iterator[Task],
        submit: Submit,
        log: Table,
        *,
        concurrency: int | None,
        ended: Callable[[PlannedTask], None],
    ) -> None:
        self.env = env
        self.done = env.event()  # all tasks have ended
        self.task_names: list[str] = []
        self.tenants: dict[str, int] = {}
        self._tasks = tasks
        self._submit = submit
        self._log = log
        self._closed = concurrency is not None
        self._ended = ended
        self._prefixes = Prefixes()
        self._expectation = Expectation()
        self._active: dict[int, PlannedTask] = {}
        self._exhausted = False
        if concurrency is None:
            env.process(self._arrivals())
        else:
            for _ in range(concurrency):
                if self._exhausted:
                    break
                self._start_next()

    def _arrivals(self) -> Process:
        for task in self._tasks:
            wait = (task.arrival_ps or 0) - self.env.now
            if wait > 0:
                yield self.env.timeout(wait)
            self._start(task)
        self._exhausted = True
        self._check_done()

    def _start_next(self) -> None:
        task = next(self._tasks, None)
        if task is None:
            self._exhausted = True
            self._check_done()
        else:
            self._start(task)

    def _start(self, task: Task) -> None:
        tenant = self.tenants.setdefault(task.tenant, len(self.tenants))
        plan = plan_task(task, len(self.task_names), tenant, self._prefixes)
        now: int = self.env.now  # type: ignore[assignment]
        plan.arrival_ps = now
        plan.expected_tct_ps = self._expectation.at(now, task.agent)
        self.task_names.append(task.name)
        self._active[plan.number] = plan
        run = _Run(self, plan)
        for chain in plan.chains:
            self.env.process(run.chain(chain))

    def _end(self, plan: PlannedTask) -> None:
        now: int = self.env.now  # type: ignore[assignment]
        self._expectation.learn(now, plan.task.agent, now - plan.arrival_ps)
        self._log_task(plan, now)
        del self._active[plan.number]
        self._ended(plan)
        plan.calls, plan.chains = [], []  # calls know their task: without this the collector would have to find them
        if self._closed:
            self._start_next()
        else:
            self._check_done()

    def _log_task(self, plan: PlannedTask, finished_ps: int) -> None:
        calls = plan.calls
        prompt = output = tool = 0
        for call in calls:
            prompt += call.prompt_tokens
            output += call.output_tokens
            tool += call.tool_ps
        log = self._log
        log.append(log.pack(plan.number, plan.tenant, plan.arrival_ps, finished_ps, len(calls), prompt, output, tool))

    def log_unfinished(self) -> None:
        """The rows of the tasks that have begun and not ended; their end is UNFINISHED."""
        for plan in self._active.values():
            self._log_task(plan, UNFINISHED)

    def _check_done(self) -> None:
        if self._exhausted and not self._active and not self.done.triggered:
            self.done.succeed()


class _Run:
    """A task in progress."""

    __slots__ = ("agents", "chains_left", "ends", "plan")

    def __init__(self, agents: Agents, plan: PlannedTask) -> None:
        self.agents = agents
        self.plan = plan
        self.chains_left = len(plan.chains)
        self.ends = {call.index: agents.env.event() for call in plan.calls if call.awaited}

    def chain(self, calls: list[PlannedCall]) -> Process:
        env, submit = self.agents.env, self.agents._submit
        for call in calls:
            for other in call.joins:
                if not self.ends[other].processed:
                    yield self.ends[other]
            if call.delay_ps:
                yield env.timeout(call.delay_ps)
            yield submit(call)  # until its tools are done, and the delay of the next call if that is all there is to it
            if call.awaited:
                self.ends[call.index].succeed()
        self._chain_done()

    def _chain_done(self) -> None:
        self.chains_left -= 1
        if not self.chains_left:
            self.agents._end(self.plan)
