"""The Agent Execution Graph of SAGA (arXiv 2605.00528): which step follows which, and what it needs.

A vertex is an LLM step, told apart by the tool that it asks for; an edge is a step that follows, with its probability.
The graph of an agent type is inferred online from the sequences of tools (transition counts, rows normalised), or known
beforehand ("hints"): fitted on the other sessions of the same type, or, as a bound to compare with, the very session.

Left open by the paper and chosen here: several tools of one step count as the first; edges below `theta_conf` are no
prediction of the next step, but the chance that any step follows counts all of them; before `cold_start` tasks of a
type have ended, nothing is predicted. A wrong prediction costs time, never correctness.
"""

from __future__ import annotations

import json
import math
from bisect import insort
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from sagasim.core import Task
from sagasim.errors import PolicyError, nearest
from sagasim.policies.fair_share import FairShare
from sagasim.seams import Request, policy

__all__ = ["Aeg", "Graph", "Latency", "Step", "read_graph"]

NO_TOOL = "none"
DECLARED = 1_000_000  # parts of a declared probability
END = ""  # what follows the last step of a task
HINTS = ("none", "declared", "fitted", "perfect")


class Latency:
    """Latency of one tool in ps, learned online: a log-normal whose mean and variance of the logarithm are moving
    averages (factor `ema`; the artifact's 0.1), or the empirical quantile of the last `WINDOW` of them.
    """

    WINDOW = 512

    def __init__(self, ema: float, *, empirical: bool = False) -> None:
        self._ema = ema
        self._mean = self._variance = 0.0
        self._known = False
        self._empirical = empirical
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []

    def learn(self, latency_ps: int) -> None:
        log = math.log(max(latency_ps, 1_000_000))  # nothing is shorter than a microsecond
        if not self._known:
            self._known, self._mean = True, log
        step = log - self._mean
        self._mean += self._ema * step
        self._variance = (1 - self._ema) * (self._variance + self._ema * step * step)
        if self._empirical:
            self._recent.append(latency_ps)
            insort(self._sorted, latency_ps)
            if len(self._recent) > self.WINDOW:
                self._sorted.remove(self._recent.popleft())

    def median_ps(self) -> int | None:
        """The median of the log-normal; None before anything is known."""
        return round(math.exp(self._mean) / 1e6) * 10**6 if self._known else None

    def q95_ps(self) -> int | None:
        """The 95 % quantile; None before anything is known."""
        if not self._known:
            return None
        if self._empirical:
            return self._sorted[min(len(self._sorted) - 1, int(0.95 * len(self._sorted)))]
        return round(math.exp(self._mean + 1.6448536269514722 * math.sqrt(self._variance)) / 1e6) * 10**6


def read_graph(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """A declared graph: agent type -> tool of a step ("none": no tool) -> that of the next ("": none) -> probability.

    Probabilities that leave a step sum to 1. Raises PolicyError.
    """
    expected = '{"agent type": {"tool": {"next tool": probability}}}, each step\'s summing to 1'
    try:
        found = json.loads(path.read_bytes())
        fits = all(
            abs(sum(following.values()) - 1) < 1e-3 and min(following.values()) >= 0
            for rows in found.values()
            for following in rows.values()
        )
    except OSError as error:
        raise PolicyError(f"cannot be read ({error.strerror})", where=str(path), expected=expected) from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise PolicyError("no graph", where=str(path), expected=expected)
    return cast("dict[str, dict[str, dict[str, float]]]", found)


class Graph:
    """What is known of one agent type. Counts of transitions, tokens of observations, service times."""

    def __init__(self) -> None:
        self.tasks = 0  # that have ended
        self.steps = 0
        self.after: dict[str, dict[str, int]] = {}  # tool of a step -> tool of the next one (END: none) -> times seen
        self.observed: dict[str, tuple[int, int]] = {}  # tool -> times, tokens that came with the next prompt
        self.service: tuple[int, int] = (0, 0)  # calls, ps
        self.completion: tuple[int, int] = (0, 0)  # tasks that have ended here, ps from arrival to end

    def count(self, tool: str, following: str, times: int = 1) -> None:
        row = self.after.setdefault(tool, {})
        row[following] = row.get(following, 0) + times

    def follows(self, tool: str) -> float:
        """Chance that any step follows one with this tool; without experience of the tool, that of all steps."""
        row = self.after.get(tool)
        ends = sum(r.get(END, 0) for r in self.after.values()) if not row else row.get(END, 0)
        total = sum(sum(r.values()) for r in self.after.values()) if not row else sum(row.values())
        return 1.0 - ends / total if total else 0.0

    def next_tool(self, tool: str, theta: float) -> str | None:
        """The most likely next step, if its edge is kept; ties by name."""
        row = self.after.get(tool)
        if not row:
            return None
        likely = min(row, key=lambda name: (-row[name], name))
        return likely if row[likely] >= theta * sum(row.values()) else None

    def observation_tokens(self, tool: str) -> float:
        """Mean tokens that a step with this tool adds to the next prompt besides its output."""
        times, tokens = self.observed.get(tool) or tuple(map(sum, zip((0, 0), *self.observed.values(), strict=True)))
        return tokens / times if times else 0.0


class Step:
    """Where one agent of a task is: its last step, and whether its tool is running."""

    __slots__ = ("calls", "context_tokens", "graph", "predicted", "running", "since_ps", "task", "tool")

    def __init__(self, task: str, graph: Graph) -> None:
        self.task = task
        self.graph = graph
        self.tool: str | None = None  # of the last ended step; None before there is one
        self.running = False  # a call of it is under way
        self.since_ps = 0  # when the tool began
        self.context_tokens = 0  # of the last ended step, output included
        self.calls = 0
        self.predicted: str | None = None


@policy("predict", "aeg", limits={"theta_conf": (0, 1), "cold_start": (0, 1e6), "ema": (0, 1), "p_term": (1e-6, 1)})
class Aeg:
    """SAGA's Agent Execution Graph, inferred online or with hints."""

    def __init__(
        self,
        *,
        hints: str = "none",
        theta_conf: float = 0.7,
        cold_start: int = 30,
        ema: float = 0.1,
        empirical: bool = False,
        p_term: float = 0.05,
        graph: str = "",
    ) -> None:
        if hints not in HINTS:
            raise PolicyError(f"unknown hints {hints!r}", where="aeg", expected=nearest(hints, HINTS))
        self.wants_tasks = hints in ("fitted", "perfect")
        self._hints = hints
        self._theta = theta_conf
        self._cold_start = cold_start
        self._ema = ema
        self._empirical = empirical
        self._p_term = p_term
        self._graphs: dict[str, Graph] = {}
        self._steps: dict[tuple[str, str], Step] = {}
        self._agents: dict[str, list[str]] = {}  # task -> its agents, to forget them
        self._latencies: dict[str, Latency] = {}
        self._future: dict[str, dict[tuple[str, int], str]] = {}  # perfect hints: task -> (agent, step) -> tool or END
        self._own: dict[str, dict[tuple[str, str], int]] = {}  # fitted hints: task -> its own transitions
        self.fair_share = FairShare()
        self._right = self._guesses = self._followed = 0
        if (hints == "declared") != bool(graph):
            raise PolicyError("declared hints are of a file", where="aeg", expected="hints=declared,graph=FILE.json")
        if graph:
            for agent, rows in read_graph(Path(graph)).items():
                for tool, following in rows.items():
                    for name, probability in following.items():
                        self._graph(agent).count(tool, name, round(probability * DECLARED))

    # ---- what is known beforehand

    def learn(self, tasks: Iterable[Task]) -> None:
        """Hints: the transitions of all sessions; what a session itself did is taken out when it is asked about."""
        for task in tasks:
            graph = self._graph(task.agent)
            graph.tasks += 1
            sequences: dict[str, list[str]] = {}
            for call in task.calls:
                sequences.setdefault(call.agent, []).append(call.tools[0].name if call.tools else NO_TOOL)
            own: dict[tuple[str, str], int] = {}
            future: dict[tuple[str, int], str] = {}
            for agent, tools in sequences.items():
                graph.steps += len(tools)
                for place, pair in enumerate(zip(tools, [*tools[1:], END], strict=True)):
                    graph.count(*pair)
                    own[pair] = own.get(pair, 0) + 1
                    future[agent, place] = pair[1]
            if self._hints == "fitted":
                self._own[task.name] = own
            else:
                self._future[task.name] = future

    # ---- what happens (seams.Workflow)

    def sent(self, request: Request, now_ps: int) -> None:
        """A call is sent: the tool of its agent's last step has ended."""
        self.fair_share.sent(request)
        step = self._step(request)
        if step.tool is not None and not step.running:
            if step.tool != NO_TOOL:
                self._latency(step.tool).learn(now_ps - step.since_ps)
            added = max(0, request.prompt_tokens - step.context_tokens)
            times, tokens = step.graph.observed.get(step.tool, (0, 0))
            step.graph.observed[step.tool] = (times + 1, tokens + added)
        step.running = True

    def ended(self, request: Request, tools: tuple[str, ...], output_tokens: int, service_ps: int, now_ps: int) -> None:
        """A call has its last token, and asks for these tools."""
        step = self._step(request)
        tool = tools[0] if tools else NO_TOOL
        graph = step.graph
        if step.tool is not None and self._hints == "none":
            graph.count(step.tool, tool)
        if step.tool is not None:
            self._judge(step, tool)
        self.fair_share.ended(request.tenant, service_ps, now_ps)
        calls, total = graph.service
        graph.service = (calls + 1, total + service_ps)
        step.tool, step.running, step.since_ps = tool, False, now_ps
        step.context_tokens = request.prompt_tokens + output_tokens
        step.calls += 1
        step.predicted = self._predicted(step, request.agent)

    def left(self, task: str, now_ps: int) -> None:
        """A task has ended: its agents took no further step."""
        told = self.fair_share.left(task)
        graph = None
        for agent in self._agents.pop(task, ()):
            step = self._steps.pop((task, agent))
            graph = step.graph
            if step.tool is not None and self._hints == "none":
                graph.count(step.tool, END)
                graph.steps += step.calls
            self._judge(step, END)
        if graph is not None and told is not None:
            ended, total = graph.completion
            graph.completion = (ended + 1, total + now_ps - told[1])
        if graph is not None and self._hints == "none":
            graph.tasks += 1

    # ---- what policies ask

    def step(self, task: str, agent: str) -> Step | None:
        """Where an agent is; None if it is unknown or its task has ended."""
        return self._steps.get((task, agent))

    def follows(self, step: Step, agent: str) -> float:
        """Chance that another step follows: the sum of the edges that leave the last one."""
        if step.tool is None:
            return 1.0
        future = self._future.get(step.task)
        if future is not None:
            return float(future.get((agent, step.calls - 1), END) != END)
        graph = self._without_own(step)
        return graph.follows(step.tool) if self._warm(graph) else 0.0

    def observation_tokens(self, step: Step) -> float:
        """Tokens that the next prompt is expected to add."""
        return step.graph.observation_tokens(step.tool or NO_TOOL)

    def latency_q95_ps(self, tool: str) -> int | None:
        latency = self._latencies.get(tool)
        return None if latency is None else latency.q95_ps()

    def expected_tct_ps(self, step: Step | None) -> int | None:
        """Mean completion time so far of tasks of this type; None before any has ended."""
        ended, total = step.graph.completion if step is not None else (0, 0)
        return total // ended if ended else None

    def latency_median_ps(self, tool: str) -> int | None:
        latency = self._latencies.get(tool)
        return None if latency is None else latency.median_ps()

    def remaining_work_ps(self, task: str) -> float:
        """Expected GPU work of a task still to come: calls of all its agents times the mean time of one."""
        agents = self._agents.get(task, ())
        steps = [(self._steps[task, agent], agent) for agent in agents]
        return sum(self.remaining_calls(step, agent) * self.mean_service_ps(step) for step, agent in steps)

    def remaining_calls(self, step: Step, agent: str) -> float:
        """Expected calls still to come, the one under way included: 1 / p_term of the type, as far as it is known."""
        future = self._future.get(step.task)
        if future is not None:
            return float(sum(1 for who, place in future if who == agent and place >= step.calls))
        graph = step.graph
        ended = graph.tasks
        p_term = ended / graph.steps if ended and graph.steps and self._warm(graph) else self._p_term
        return 1.0 / max(p_term, 1e-6)

    def mean_service_ps(self, step: Step) -> int:
        """Mean time of a call of this type from its first step on; 1 s before any has ended."""
        calls, total = step.graph.service
        return total // calls if calls else 10**12

    def counts(self) -> dict[str, int]:
        return {"next_steps": self._followed, "next_steps_predicted": self._guesses, "next_steps_right": self._right}

    def notes(self) -> dict[str, Any]:
        """How often the next step was predicted, and how often rightly; a step is the tool asked for, or the end."""
        text = f"{self._right:,} right of {self._guesses:,} predicted of {self._followed:,} (hints: {self._hints})"
        notes = {"next steps": text}
        if self._hints == "perfect":
            notes["clairvoyant"] = "the predictor knows the sessions that are replayed"
        return notes

    # ---- inside

    def _judge(self, step: Step, followed: str) -> None:
        self._followed += 1
        if step.predicted is not None:
            self._guesses += 1
            self._right += step.predicted == followed

    def _graph(self, agent_type: str) -> Graph:
        graph = self._graphs.get(agent_type)
        if graph is None:
            graph = self._graphs[agent_type] = Graph()
        return graph

    def _step(self, request: Request) -> Step:
        key = (request.task, request.agent)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = Step(request.task, self._graph(request.agent_type))
            self._agents.setdefault(request.task, []).append(request.agent)
        return step

    def _latency(self, tool: str) -> Latency:
        latency = self._latencies.get(tool)
        if latency is None:
            latency = self._latencies[tool] = Latency(self._ema, empirical=self._empirical)
        return latency

    def _warm(self, graph: Graph) -> bool:
        return self._hints != "none" or graph.tasks >= self._cold_start

    def _without_own(self, step: Step) -> Graph:
        """Fitted hints come from other sessions: the row of the last tool without what this session adds to it."""
        own = self._own.get(step.task)
        if own is None or step.tool is None:
            return step.graph
        row = dict(step.graph.after.get(step.tool, {}))
        for (tool, following), times in own.items():
            if tool == step.tool:
                row[following] -= times
        without = Graph()
        without.tasks = step.graph.tasks
        without.after = {step.tool: {name: times for name, times in row.items() if times > 0}}
        return without

    def _predicted(self, step: Step, agent: str) -> str | None:
        future = self._future.get(step.task)
        if future is not None:
            return future.get((agent, step.calls - 1), END)
        graph = self._without_own(step)
        return graph.next_tool(step.tool or NO_TOOL, self._theta) if self._warm(graph) else None
