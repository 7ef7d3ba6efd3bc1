"""One small policy of each kind, and a workload: the examples of docs/policies.md."""

from sagasim.core import Call, Task, Tool
from sagasim.policies.aeg import Aeg
from sagasim.rng import Stream
from sagasim.seams import policy
from sagasim.workloads import workload


@policy("route", "most-cached", sees_cache=True)
def most_cached(request, replicas, now_ps, rng, *, tokens_a_call: int = 2000):
    """Where most of the prompt is cached; each call in flight counts against it."""
    worth = [v.hit_tokens - tokens_a_call * v.in_flight for v in replicas]
    return worth.index(max(worth))


@policy("order", "old-tasks-first")
def old_tasks_first(request, now_ps):
    """Calls of the task that arrived first."""
    return request.arrival_ps


@policy("evict", "large-first")
def large_first(idle, now_ps, *, spare_s: float = 5.0):
    """The largest context first; those just used only after all others."""
    just_used = now_ps - idle.since_ps < spare_s * 1e12
    return (just_used, -idle.blocks)


@policy("predict", "longest-tool")
class LongestTool(Aeg):
    """As `aeg`, but a tool is expected to take as long as it ever did."""

    def __init__(self):
        super().__init__(cold_start=3)
        self._began = {}  # (task, agent) -> its running tool, and since when
        self._longest_ps = {}

    def ended(self, request, tools, output_tokens, service_ps, now_ps):
        super().ended(request, tools, output_tokens, service_ps, now_ps)
        if tools:
            self._began[request.task, request.agent] = (tools[0], now_ps)

    def sent(self, request, now_ps):
        super().sent(request, now_ps)
        agent = (request.task, request.agent)
        tool, began_ps = self._began.pop(agent, (None, now_ps))
        longest_ps = self._longest_ps.get(tool, 0)
        self._longest_ps[tool] = max(now_ps - began_ps, longest_ps)

    def latency_q95_ps(self, tool):
        return self._longest_ps.get(tool)


@policy("balance", "even-out")
def even_out(replicas, now_ps, rng, *, apart: int = 2):
    """From the longest queue to the replica with the fewest calls in flight."""
    longest = max(replicas, key=lambda view: view.waiting)
    least = min(replicas, key=lambda view: view.in_flight)
    if longest.waiting and longest.in_flight - least.in_flight >= apart:
        return [(longest.replica, least.replica)]
    return []


@policy("prefetch", "half-time", sees_workflow=True)
class HalfTime:
    """After half of the time that the tool takes as a rule."""

    def __init__(self, workflow):
        self._workflow = workflow

    def __call__(self, request, now_ps):
        step = self._workflow.step(request.task, request.agent)
        if step is None or step.tool is None:
            return None
        median_ps = self._workflow.latency_median_ps(step.tool)
        return None if median_ps is None else median_ps // 2


@policy("preempt", "later-tasks")
def later_tasks(waiting, running, now_ps):
    """Calls of tasks that arrived after the waiting call's, the last one first."""
    arrived = sorted(((r.arrival_ps, i) for i, r in enumerate(running)), reverse=True)
    return [place for when, place in arrived if when > waiting.arrival_ps]


@workload("questions")
def questions(index, seed, *, tool_s: float = 3.0):
    """A question, a search, an answer.

    tool_s: mean time of the search in seconds
    """
    stream = Stream(seed, "questions", index)
    duration_us = round(stream.exponential(tool_s) * 1e6)
    search = Tool("search", duration_us * 10**6, filled=True)
    tokens = stream.integer(500, 2000)
    ask = Call("ask", new_tokens=tokens, output_tokens=60, tools=(search,))
    answer = Call(
        "answer",
        new_tokens=3000,
        output_tokens=400,
        extends="ask",
        keep_tokens=tokens + 60,
        after=("ask",),
    )
    return Task(f"question-{index}", (ask, answer))
