"""Policies of SAGA (arXiv 2605.00528): workflow-aware LRU with tool-call-aware time to live, session affinity, Agent
Fair Share. They ask the run's predictor (`--predict aeg`) what it expects of each agent.
"""

from __future__ import annotations

from collections.abc import Sequence

from sagasim.errors import PolicyError
from sagasim.policies.aeg import NO_TOOL, Aeg, Step
from sagasim.policies.fair_share import FairShare, parse_weights
from sagasim.policies.route import Replicas, SessionAffinity
from sagasim.rng import Stream
from sagasim.seams import IdleContext, Memory, Request, policy
from sagasim.units import BLOCK_TOKENS, PS_PER_S

__all__ = [
    "AfsOrder",
    "PreemptByUrgency",
    "PrefetchAtToolEnd",
    "SagaAffinity",
    "WaLru",
    "lifo",
    "pressure",
    "time_to_live_ps",
]


def pressure(used: float, low: float, high: float) -> float:
    """Memory pressure m = clip((used - low) / (high - low), 0, 1), Algorithm 1."""
    return min(1.0, max(0.0, (used - low) / (high - low)))


def time_to_live_ps(latency_q95_ps: int, m: float, most_s: float) -> int:
    """TTL = min(Q95 * (1 - 0.5 m), most), Eq. 6."""
    return min(round(latency_q95_ps * (1.0 - 0.5 * m)), round(most_s * PS_PER_S))


@policy(
    "evict",
    "wa-lru",
    together=True,
    sees_workflow=True,
    limits={
        "alpha": (0, 1e6),
        "beta": (0, 1e6),
        "gamma": (0, 1e6),
        "ttl_low": (0, 1),
        "ttl_high": (0, 1),
        "ttl_max_s": (0, 1e6),
    },
)
class WaLru:
    """Workflow-aware LRU with tool-call-aware time to live, by session.

    P_evict = alpha R + beta (1 - P_reuse) + gamma S, the largest goes first (Eqs. 1-5): R is the idle time and S the
    size of the session's cached context, each over the largest there is; P_reuse = P(a step follows) * cached /
    (cached + max(1, E[observation tokens])). A session whose tool has run for less than its TTL is protected: it goes
    only when nothing else is left, again by P_evict (protect=True). In the artifact's reading (protect=False) the TTL
    matters through P_reuse alone, which is 0 once it is over.

    Left open by the paper: the memory that pressure looks at is taken as the blocks held by running calls and by idle
    contexts of tasks that have not ended; the TTL follows the pressure of the moment.
    """

    def __init__(
        self,
        workflow: Aeg,
        *,
        alpha: float = 0.3,
        beta: float = 0.5,
        gamma: float = 0.2,
        ttl: bool = True,
        protect: bool = True,
        ttl_low: float = 0.7,
        ttl_high: float = 0.9,
        ttl_max_s: float = 300.0,
    ) -> None:
        if ttl_low >= ttl_high:
            raise PolicyError(f"ttl_low {ttl_low:g}", where="wa-lru", expected=f"less than ttl_high, {ttl_high:g}")
        self._workflow = workflow
        self._weights = (alpha, beta, gamma)
        self._ttl, self._protect = ttl, protect
        self._low, self._high, self._most_s = ttl_low, ttl_high, ttl_max_s

    def __call__(self, idles: Sequence[IdleContext], now_ps: int, memory: Memory) -> list[tuple[int, float]]:
        sizes: dict[tuple[str, str], int] = {}
        since: dict[tuple[str, str], int] = {}
        for idle in idles:
            session = (idle.task, idle.agent)
            sizes[session] = sizes.get(session, 0) + idle.blocks
            since[session] = max(since.get(session, 0), idle.since_ps)
        steps = {session: self._workflow.step(*session) for session in sizes}
        alive = sum(size for session, size in sizes.items() if steps[session] is not None)
        m = pressure((memory.held_blocks + alive) / memory.num_blocks, self._low, self._high)
        oldest = max(1, now_ps - min(since.values()))
        largest = max(sizes.values())
        alpha, beta, gamma = self._weights
        ranks = {}
        for session, size in sizes.items():
            step = steps[session]
            safe = step is not None and self._unexpired(step, now_ps, m)
            reuse = self._reuse(step, session[1], size) if safe or not self._ttl or self._protect else 0.0
            evict = alpha * (now_ps - since[session]) / oldest + beta * (1 - reuse) + gamma * size / largest
            ranks[session] = (int(safe and self._ttl and self._protect), -evict)
        return [ranks[idle.task, idle.agent] for idle in idles]

    def _unexpired(self, step: Step, now_ps: int, m: float) -> bool:
        """Whether the session is about to go on: a call of it is under way, or its tool may still be running."""
        if step.running or step.tool is None:
            return True
        q95 = None if step.tool == NO_TOOL else self._workflow.latency_q95_ps(step.tool)
        return q95 is not None and now_ps - step.since_ps <= time_to_live_ps(q95, m, self._most_s)

    def _reuse(self, step: Step | None, agent: str, blocks: int) -> float:
        """P_reuse of a session's cached context, Eq. 4."""
        if step is None:
            return 0.0
        cached = blocks * BLOCK_TOKENS
        overlap = cached / (cached + max(1.0, self._workflow.observation_tokens(step)))
        return min(1.0, (1.0 if step.running else self._workflow.follows(step, agent)) * overlap)


@policy("route", "saga-affinity", limits={"most_load": (0, 1e6)})
class SagaAffinity(SessionAffinity):
    """The replica that holds the session if its load is below `most_load`, else the least loaded one.

    Left open by the paper: load is the share of KV memory that the calls in flight would hold at the mean context of
    the calls seen so far; the session moves to where it was sent last.
    """

    def __init__(self, *, most_load: float = 0.8) -> None:
        super().__init__()
        self._most_load = most_load
        self._calls = self._tokens = 0

    def __call__(self, request: Request, replicas: Replicas, now_ps: int, rng: Stream) -> int:
        self._calls += 1
        self._tokens += request.prompt_tokens
        home = self._home.get(request.task)
        if home is not None:
            view = replicas[home]
            held = (view.loads[home] + 1) * self._tokens
            if held <= self._most_load * view.num_blocks * BLOCK_TOKENS * self._calls:
                return home
        home = self._home[request.task] = self._least_loaded(request, replicas, now_ps, rng)
        return home


@policy("order", "lifo")
def lifo(request: Request, now_ps: int) -> int:
    """Last come, first served: SAGA's depth-first order."""
    return -now_ps


@policy(
    "order",
    "afs",
    sees_workflow=True,
    limits={"deadline": (0, 1e6), "least_slack_s": (1e-6, 1e6), "epoch_s": (0, 1e6), "most_boost": (1, 1e6)},
)
class AfsOrder:
    """The most urgent call first: remaining GPU work over time to the deadline (Eq. 8), and by tenants' shares (Eq. 9).

    The deadline is the task's arrival + 1.5 x the completion time learned for its type when it arrived, or since then
    where nothing was known. Remaining work is the expected number of calls still to come times the mean time of one.
    Left open by the paper: slack below `least_slack_s` counts as that; before any task has ended all are alike urgent;
    urgency is taken when a call is enqueued. How a share acts is open too: with several tenants at work (shares=True)
    urgency is multiplied by the tenant's share, taken every `epoch_s`, over the part of the service it had of late, by
    `most_boost` either way at most. weights: `gold@3+basic@1`.
    """

    def __init__(
        self,
        workflow: Aeg,
        *,
        deadline: float = 1.5,
        least_slack_s: float = 1.0,
        shares: bool = True,
        weights: str = "",
        epoch_s: float = 5.0,
        most_boost: float = 4.0,
    ) -> None:
        self._workflow = workflow
        self._deadline = deadline
        self._least_ps = round(least_slack_s * PS_PER_S)
        self._shares = shares
        self._weights = parse_weights(weights)
        self._epoch_ps = max(1, round(epoch_s * PS_PER_S))
        self._most = most_boost
        self._key = (deadline, least_slack_s, weights, epoch_s, most_boost)  # replicas of one policy share the factors

    def __call__(self, request: Request, now_ps: int) -> float:
        return -self.urgency(request, now_ps)

    def urgency(self, request: Request, now_ps: int) -> float:
        """Remaining work over slack, times what the tenant is owed."""
        step = self._workflow.step(request.task, request.agent)
        expected_ps = self._expected_ps(request.expected_tct_ps, step)
        if expected_ps is None or step is None:
            return 0.0
        work = self._workflow.remaining_calls(step, request.agent) * self._workflow.mean_service_ps(step)
        urgency = work / self._slack_ps(request.arrival_ps, expected_ps, now_ps)
        return urgency * self._factor(request.tenant, now_ps) if self._shares else urgency

    def tenant_shares(self, now_ps: int) -> dict[str, float]:
        """Eq. 9: the part of the capacity that each tenant with tasks at work is entitled to."""
        sums: dict[str, float] = {}
        for task, (tenant, arrival_ps, expected_ps) in self._workflow.fair_share.tasks.items():
            until_ps = self._expected_ps(expected_ps, self._workflow.step(task, "")) or PS_PER_S
            work = self._workflow.remaining_work_ps(task) / self._slack_ps(arrival_ps, until_ps, now_ps)
            sums[tenant] = sums.get(tenant, 0.0) + work
        return FairShare.of(sums, self._weights)

    def _expected_ps(self, at_arrival_ps: int | None, step: Step | None) -> int | None:
        """Completion time of tasks like this one: as known when it arrived, or what has been learned since."""
        return at_arrival_ps or self._workflow.expected_tct_ps(step)

    def _slack_ps(self, arrival_ps: int, expected_ps: int, now_ps: int) -> int:
        return max(arrival_ps + round(self._deadline * expected_ps) - now_ps, self._least_ps)

    def _factor(self, tenant: str, now_ps: int) -> float:
        fair_share = self._workflow.fair_share
        if len(fair_share.tenants) < 2:
            return 1.0
        epoch = now_ps // self._epoch_ps
        known = fair_share.factors.get(self._key)
        if known is None or known[0] != epoch:
            shares, had = self.tenant_shares(now_ps), fair_share.had()
            most = self._most
            factors = {
                name: min(most, max(1 / most, share / had[name])) if had.get(name) else most
                for name, share in shares.items()
            }
            known = fair_share.factors[self._key] = (epoch, factors)
        return known[1].get(tenant, 1.0)


@policy(
    "preempt",
    "urgency",
    sees_workflow=True,
    limits={"ratio": (0, 1e6), "deadline": (0, 1e6), "least_slack_s": (1e-6, 1e6)},
)
class PreemptByUrgency:
    """Running calls that are less than 1/ratio as urgent (Eq. 8) as the waiting one, the least urgent first.

    Parameters besides are those of the order `afs`. A call that waits without any urgency makes none give way.
    """

    def __init__(self, workflow: Aeg, *, ratio: float = 2.0, deadline: float = 1.5, least_slack_s: float = 1.0) -> None:
        self._ratio = ratio
        self._afs = AfsOrder(workflow, deadline=deadline, least_slack_s=least_slack_s, shares=False)

    def __call__(self, waiting: Request, running: Sequence[Request], now_ps: int) -> list[int]:
        urgency = self._afs.urgency(waiting, now_ps)
        ranked = sorted((self._afs.urgency(request, now_ps), place) for place, request in enumerate(running))
        return [place for other, place in ranked if urgency > self._ratio * other]


@policy("prefetch", "tool-end", sees_workflow=True, limits={"at": (0, 1e6), "least_chance": (0, 1)})
class PrefetchAtToolEnd:
    """Before the tool is expected to end: after `at` of its median time, if another step is likely to follow.

    What the next step needs is its agent's context: in a chain the context just left, whatever step follows. Left open
    by the paper: when; bringing back too early only takes memory from others.
    """

    def __init__(self, workflow: Aeg, *, at: float = 0.8, least_chance: float = 0.5) -> None:
        self._workflow = workflow
        self._at = at
        self._least_chance = least_chance

    def __call__(self, request: Request, now_ps: int) -> int | None:
        step = self._workflow.step(request.task, request.agent)
        if step is None or step.tool is None or step.tool == NO_TOOL:
            return None
        if self._workflow.follows(step, request.agent) < self._least_chance:
            return None
        median_ps = self._workflow.latency_median_ps(step.tool)
        return None if median_ps is None else round(self._at * median_ps)
