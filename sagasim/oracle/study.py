"""Every policy at every memory size on the same accesses: hits, misses, and the ratio to the optimum.

    from_run(result, tasks, ...) -> Inputs       the access log of a run
    from_tasks(config, tasks, ...) -> Inputs     calls as instants on one cache of the whole cluster's memory
    study(inputs, policies, memory) -> Study     the rows

Misses that are first touches are no policy's fault: ratios are of the others, the regenerated blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from sagasim.config import Config
from sagasim.core import Task
from sagasim.errors import LawError, PolicyError
from sagasim.hardware import Model, load_model
from sagasim.oracle.accesses import (
    Access,
    Log,
    Progress,
    access_of,
    bare_log,
    pooled_log,
    run_logs,
    run_plans,
    task_accesses,
)
from sagasim.oracle.blocks import BLOCK_ORDERS, replay_blocks
from sagasim.oracle.future import NextUses
from sagasim.oracle.rules import RULES, Setting
from sagasim.oracle.scored import Timeline, bare_timeline, replay_scored, run_timeline
from sagasim.oracle.segments import replay_segments
from sagasim.seams import Policy, find, policies
from sagasim.simulate import Result, engine_settings
from sagasim.units import BLOCK_TOKENS

__all__ = [
    "OPTIMUM",
    "POOLED",
    "RUN",
    "UNLIMITED",
    "Inputs",
    "Row",
    "Study",
    "from_accesses",
    "from_run",
    "from_tasks",
    "offline_policies",
    "study",
]  # fmt: skip

OPTIMUM, POOLED, UNLIMITED, RUN = "belady", "belady-pooled", "unlimited", "as-run"
DEFAULT_PREDICT = "aeg"


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is replayed. pooled: all calls on one cache, where there are several; run: what the run itself found."""

    logs: list[Log]
    pooled: Log | None
    pins: str
    even_tokens: float = float("inf")  # depth at which attention costs as much as all else
    seed: int = 0
    timeline: Timeline | None = None
    tasks: Iterable[Task] = ()
    predict: str = DEFAULT_PREDICT
    batch: int = 1
    run: tuple[str, int, int] | None = None  # eviction, blocks hit, blocks regenerated here


@dataclass(frozen=True, slots=True)
class Row:
    """One policy at one memory size, in blocks; hits of None: infeasible, since running calls hold more than there is.

    optimum: regenerated blocks under the optimum of the same memory. elsewhere: further regenerated blocks, which were
    cached on another replica at some time.
    """

    policy: str
    memory: float | None  # as a fraction; None: unlimited
    memory_blocks: int | None
    accesses: int
    hits: int | None
    regenerated: int | None
    elsewhere: int | None
    optimum: int | None

    @property
    def misses(self) -> int | None:
        return None if self.hits is None else self.accesses - self.hits

    @property
    def ratio(self) -> float | None:
        """Regenerated blocks over those of the optimum; None where that is infeasible or regenerates nothing."""
        return self.regenerated / self.optimum if self.regenerated is not None and self.optimum else None


@dataclass(frozen=True, slots=True)
class Study:
    """The rows, by policy and then by memory, and what they are about."""

    rows: list[Row]
    calls: int
    caches: int
    blocks: int  # of all caches together
    reads: int
    first: int
    pins: str


def attention_even_tokens(model: Model) -> float:
    """Depth at which a token's attention takes as many operations as its products with the weights."""
    return 2.0 * model.params / (4.0 * model.layers * model.heads * model.head_dim)


def offline_policies(*, blind: bool = False) -> list[str]:
    """Every policy that can be replayed: the orders and rules of this package, and the engine's scored evictions.

    blind: only those that look at blocks alone.
    """
    own = [*BLOCK_ORDERS, *RULES]
    scored = [] if blind else [p.name for p in policies("evict") if not p.queue_order and not p.clairvoyant]
    return own + [name for name in scored if name not in own]


def from_run(result: Result, tasks: Iterable[Task], *, pins: bool) -> Inputs:
    """The log of a run; tasks: those that it replayed. Raises ResultsError if they are not."""
    accesses = [access_of(plan) for plan in run_plans(result, tasks)]
    logs = run_logs(result, accesses, pins=pins)
    config, calls = result.config, result.calls
    here = int(calls["regenerated_here_tokens"].sum()) // BLOCK_TOKENS
    found = int(calls["hit_tokens"].sum()) // BLOCK_TOKENS
    return Inputs(
        logs,
        pooled_log(result, accesses, pins=pins) if len(logs) > 1 else None,
        "run" if pins else "none",
        attention_even_tokens(load_model(config.model)),
        config.seed,
        run_timeline(result) if pins else None,
        tasks,
        config.predict if config.predict != "none" else DEFAULT_PREDICT,
        config.evict_batch_blocks,
        (config.evict, found, here) if pins and config.prefix_caching else None,
    )


def from_tasks(config: Config, tasks: Iterable[Task], progress: Progress | None = None) -> Inputs:
    """The calls of tasks as instants, on one cache with the memory of all replicas of a resolved configuration."""
    accesses, sent_ps = task_accesses(tasks, progress)
    num_blocks = engine_settings(config).num_blocks * (config.gpus // config.tp)
    return Inputs(
        [bare_log(accesses, num_blocks, "cluster", sent_ps)],
        None,
        "none",
        attention_even_tokens(load_model(config.model)),
        config.seed,
        bare_timeline(accesses, sent_ps),
        tasks,
        config.predict if config.predict != "none" else DEFAULT_PREDICT,
        config.evict_batch_blocks,
    )


def from_accesses(accesses: Sequence[Access]) -> Inputs:
    """A foreign trace: one cache, whose memory of 1 is all that the trace ever touches."""
    log = bare_log(accesses, 0, "trace")
    return Inputs([replace(log, num_blocks=log.first)], None, "none")


def study(inputs: Inputs, names: Sequence[str], memory: Sequence[float], progress: Progress | None = None) -> Study:
    """Replay. The optimum is always a row, and so are unlimited memory, the pooled optimum, and the run itself.

    Raises PolicyError for an unknown policy. Nothing beats the optimum: LawError if something does.
    """
    wanted = [OPTIMUM, *(name for name in names if name != OPTIMUM)]
    chosen = {name: _Replay(name, inputs) for name in wanted}
    sizes = {size: [max(1, _scaled(log.num_blocks, size)) for log in inputs.logs] for size in memory}
    feasible = {s: all(log.most_held <= n for log, n in zip(inputs.logs, sizes[s], strict=True)) for s in sizes}
    reads, first = sum(log.reads for log in inputs.logs), sum(log.first for log in inputs.logs)
    total, done = len(wanted) * len(sizes), 0
    rows: list[Row] = []
    optimum: dict[float, int] = {}
    beyond = first - (inputs.pooled.first if inputs.pooled is not None else first)
    for name, replay in chosen.items():
        for size, blocks in sizes.items():
            hits = replay.hits(blocks) if feasible[size] else None
            done += 1
            if progress is not None:
                progress(f"{name} at {size:g}", done, total)
            again = None if hits is None else reads - first - hits
            if name == OPTIMUM and again is not None:
                optimum[size] = again
            elif again is not None and again < optimum[size]:
                raise LawError(f"{name} regenerates {again} blocks, the optimum {optimum[size]}")
            elsewhere = None if hits is None else beyond
            rows.append(Row(name, size, sum(blocks), reads, hits, again, elsewhere, optimum.get(size)))
    rows += _bounds(inputs, list(sizes), reads, first, optimum)
    calls = len(inputs.logs[0].accesses)
    return Study(rows, calls, len(inputs.logs), sum(log.num_blocks for log in inputs.logs), reads, first, inputs.pins)


def _scaled(num_blocks: int, size: float) -> int:
    return round(num_blocks * Fraction(str(size)))


class _Replay:
    """One policy on all logs."""

    def __init__(self, name: str, inputs: Inputs) -> None:
        self._name = name
        self._inputs = inputs
        self._uses = [NextUses(log) for log in inputs.logs] if name == OPTIMUM else [None] * len(inputs.logs)
        self._evict = None if name in (*BLOCK_ORDERS, *RULES) else _scored(name)
        if self._evict is not None and inputs.timeline is None:
            raise PolicyError(
                "needs the times of a run or of tasks",
                where=name,
                expected=f"one of: {', '.join((*BLOCK_ORDERS, *RULES))}",
            )

    def hits(self, blocks: Sequence[int]) -> int:
        inputs = self._inputs
        if self._evict is not None:
            assert inputs.timeline is not None
            predict = find("predict", inputs.predict) if self._evict.sees_workflow else None
            return replay_scored(inputs.logs, blocks, self._evict, predict, inputs.timeline, inputs.tasks, inputs.batch)
        hits = 0
        for number, (log, memory, uses) in enumerate(zip(inputs.logs, blocks, self._uses, strict=True)):
            if self._name in BLOCK_ORDERS:
                hits += replay_blocks(log, memory, self._name, uses)
            else:
                setting = Setting(memory, inputs.even_tokens, inputs.seed + number)
                hits += replay_segments(log, memory, RULES[self._name](setting))
        return hits


def _scored(name: str) -> Policy:
    try:
        found = find("evict", name)
    except PolicyError as error:
        if not error.what.startswith("unknown evict policy"):
            raise
        known = ", ".join(offline_policies())
        raise PolicyError(f"unknown policy {name!r}", where="--policies", expected=f"one of: {known}") from None
    if found.queue_order or found.clairvoyant:
        raise PolicyError("cannot be replayed", where=name, expected=f"one of: {', '.join(offline_policies())}")
    return found


def _bounds(inputs: Inputs, sizes: list[float], reads: int, first: int, optimum: dict[float, int]) -> list[Row]:
    """The pooled optimum at each size, unlimited memory, and what the run itself found."""
    rows = []
    pooled = inputs.pooled
    if pooled is not None:
        uses = NextUses(pooled)
        for size in sizes:
            blocks = sum(max(1, _scaled(log.num_blocks, size)) for log in inputs.logs)
            hits = replay_blocks(pooled, blocks, OPTIMUM, uses) if pooled.most_held <= blocks else None
            again = None if hits is None else reads - pooled.first - hits
            rows.append(Row(POOLED, size, blocks, reads, hits, again, None if hits is None else 0, again))
    rows.append(Row(UNLIMITED, None, None, reads, reads - first, 0, first - (pooled or inputs.logs[0]).first, None))
    if inputs.run is not None:
        name, hits, again = inputs.run
        blocks = sum(log.num_blocks for log in inputs.logs)
        beyond = first - (pooled.first if pooled is not None else first)
        rows.append(Row(f"{RUN}: {name}", 1.0, blocks, reads, hits, again, beyond, optimum.get(1.0)))
    return rows
