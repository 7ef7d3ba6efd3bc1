"""simulate(config, tasks) -> Result: the one place that knows every part."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sagasim import seams
from sagasim.agent import Agents
from sagasim.assembly import keeps_evicted, step_costs, what_looks, what_moves
from sagasim.batching import EngineSettings, InFlight, Logs, WaitingQueue
from sagasim.clock import Clock
from sagasim.cluster import Cluster, Engine
from sagasim.config import Config
from sagasim.core import Task
from sagasim.cost import StepCost, checked_calibration, load_calibration
from sagasim.epochs import Balancer
from sagasim.errors import CalibrationError, ConfigError, TraceError, nearest
from sagasim.eventlog import CALLS, OCCUPANCY, REPLICAS, TASKS, TRANSFERS, Columns, Table, digest
from sagasim.failures import parse_failures, schedule_failures
from sagasim.hardware import Gpu, Model, data_dir, load_gpu, load_model
from sagasim.kvcache import KVCache
from sagasim.laws import check_log
from sagasim.movement import STEAL, Mover
from sagasim.plan import PlannedTask
from sagasim.replica import Replica
from sagasim.rng import Stream
from sagasim.seams import ReplicaView
from sagasim.units import BLOCK_TOKENS, PS_PER_S, ps_from_s

if TYPE_CHECKING:
    from sagasim.reference import ReferenceReplica

    AnyReplica = Replica | ReferenceReplica

__all__ = ["Result", "calibration_name", "calibration_of", "engine_settings", "kv_blocks", "simulate"]

_PROGRESS_CALLS = 2000
_LONGEST_DAYS = 100  # of simulated time; an int64 of picoseconds holds 106
_LONGEST_PS = _LONGEST_DAYS * 86_400 * PS_PER_S


@dataclass(frozen=True, slots=True)
class Result:
    """The log of a run. calls, tasks, occupancy, replicas, transfers: columns as eventlog names them."""

    config: Config
    calls: Columns
    tasks: Columns
    occupancy: Columns
    replicas: Columns
    transfers: Columns
    task_names: list[str]
    tenants: list[str]  # name of each tenant number
    executed: int  # events that the engine executed; the steps that it simulated are in replicas
    notes: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # of what policies did, as far as they count it

    @property
    def digest(self) -> str:
        return digest({name: getattr(self, name) for name in ("calls", "tasks", "occupancy", "replicas", "transfers")})


def kv_blocks(
    model: Model, gpu: Gpu, tp: int, utilization: float, max_num_batched_tokens: int, dtype: str = "bf16"
) -> int:
    """KV blocks that fit beside the weights on every GPU of a replica; may be negative.

    As vLLM counts: utilization * memory - weights - runtime - the activation peak of a step with a full batch; one
    block is never used (the null block). Runtime (CUDA context, NCCL, workspaces) is taken as 2 GiB, the peak as
    the MLP's two intermediates and four hidden states in 2 bytes: assumptions, near what vLLM's profile run reports.
    """
    weights = model.weight_bytes_in(dtype) // tp
    mlp = model.mlp * max(1, model.experts_per_token)
    peak = max_num_batched_tokens * 2 * (2 * mlp // tp + 4 * model.hidden)
    room = int(utilization * gpu.memory_bytes) - weights - (2 << 30) - peak
    per_block = BLOCK_TOKENS * model.kv_bytes_in(dtype) // min(tp, model.kv_heads)
    return room // per_block - 1


def simulate(
    config: Config,
    tasks: Iterable[Task],
    *,
    progress: Callable[[int, int], None] | None = None,
    calibration: dict[str, Any] | None = None,
) -> Result:
    """Replay tasks (in order of arrival; an arrival of None counts as 0) on the cluster of a resolved configuration.

    progress: called now and then with the number of finished calls and the simulated time in ps.
    calibration: in place of the configured file. Raises ConfigError, PolicyError or CalibrationError before anything is
    simulated, TraceError for a task that does not fit the model.
    """
    env = Clock()
    settings = engine_settings(config)
    logs = Logs(Table(CALLS), Table(OCCUPANCY))
    ends = Table(TASKS)
    workflow = _workflow(config, tasks)
    told = _Told(env, progress, workflow)
    measured = calibration_of(config) if calibration is None else checked_calibration(calibration, "calibration")
    route = seams.find("route", config.route)
    router = route.build(workflow)
    replicas, told.forgets = _replicas(config, env, settings, step_costs(config, settings, measured), logs, told)
    if hasattr(router, "forget"):
        told.forgets.append(lambda plan: router.forget(plan.task.name))
    engines: list[Engine] = list(replicas)
    rng = Stream(config.seed, "route")
    cluster = Cluster(env, engines, router, rng, sees_cache=route.sees_cache, workflow=workflow)
    transfers = Table(TRANSFERS)
    told.mover = what_moves(config, cluster, measured, transfers, workflow)
    balancer = what_looks(config, cluster, router, workflow, told.mover)
    failed: list[str] = []
    if config.failures is not None:
        failed = schedule_failures(parse_failures(config.failures, len(replicas)), cluster)
        told.placed = cluster.placed
    checked = _checked(tasks, config)
    closed = config.concurrency if config.arrivals == "closed" else None
    agents = Agents(env, checked, cluster.submit, ends, concurrency=closed, ended=told.left)
    horizon = _LONGEST_PS if config.horizon_s is None else ps_from_s(config.horizon_s)
    with _rare_collections():
        ended = env.run_to(agents.done, horizon)
    if not ended:
        if config.horizon_s is None:
            expected = "less work, a faster cluster, or horizon_s"
            raise ConfigError(f"the run takes more than {_LONGEST_DAYS} days", where="cluster", expected=expected)
        agents.log_unfinished()
    for replica in replicas:
        if isinstance(replica, Replica):
            if not ended:
                replica.settle(horizon)
            replica.cache.check_integrity()
    calls, occupancy = logs.calls.columns("task", "call"), logs.occupancy.columns("time_ps", "replica")
    columns = _replica_columns(replicas, calls)
    moved = transfers.columns("started_ps")
    task_log = ends.columns("task")
    seats, began_again = settings.max_num_seqs, config.failures is not None
    check_log(calls, task_log, occupancy, columns, max_num_seqs=seats, began_again=began_again)
    return Result(
        config,
        calls,
        task_log,
        occupancy,
        columns,
        moved,
        agents.task_names,
        list(agents.tenants),
        sum(replica.executed for replica in replicas),
        _notes(config, workflow, balancer, moved, failed),
        _counts(workflow, cluster),
    )


def _notes(
    config: Config, workflow: Any, balancer: Balancer | None, moved: Columns, failed: list[str]
) -> dict[str, str]:
    """What policies have to say about the run, and which replicas were out."""
    notes: dict[str, str] = dict(workflow.notes()) if hasattr(workflow, "notes") else {}
    if config.prefetch != "none" and not keeps_evicted(config):
        notes["prefetch"] = "nothing to bring back: what is evicted is gone (host_memory_gb)"
    if failed:
        notes["replicas"] = ", ".join(failed)
    if balancer is not None:
        notes["moved"] = f"{balancer.count:,} waiting calls to another replica"
        stolen = moved["kind"] == STEAL
        if stolen.any():
            mean_ms = float((moved["ended_ps"] - moved["started_ps"])[stolen].mean()) / 10**9
            size = f"{float(moved['bytes'][stolen].mean()) / 2**30:.2f} GiB on average"
            count = int(stolen.sum())
            notes["carried"] = f"the cached context of {count:,} of them, {size}, in {mean_ms:.0f} ms on average"
    return notes


def _counts(workflow: Any, cluster: Cluster) -> dict[str, int]:
    counts: dict[str, int] = dict(workflow.counts()) if hasattr(workflow, "counts") else {}
    if cluster.epochs is not None:
        counts |= cluster.epochs.counts()
    return counts


class _Told:
    """Who is told that calls and tasks end."""

    def __init__(
        self, env: Clock, progress: Callable[[int, int], None] | None, workflow: seams.Workflow | None
    ) -> None:
        self.workflow = workflow
        self.forgets: list[Callable[[PlannedTask], None]] = []
        self.placed: dict[InFlight, int] | None = None
        self.mover: Mover | None = None
        self._env = env
        self._progress = progress
        self._count = 0

    def finished(self, call: InFlight) -> None:
        self._count += 1
        if self._progress is not None and self._count % _PROGRESS_CALLS == 0:
            self._progress(self._count, int(self._env.now))
        if self.placed is not None:
            del self.placed[call]
        if self.workflow is not None:
            plan = call.plan
            tools = tuple(tool.name for tool in plan.task.task.calls[plan.index].tools)
            now: int = self._env.now  # type: ignore[assignment]
            self.workflow.ended(call.request, tools, plan.output_tokens, now - call.admitted, now)
        if self.mover is not None:
            self.mover.finished(call, int(self._env.now))

    def left(self, plan: PlannedTask) -> None:
        if self.workflow is not None:
            self.workflow.left(plan.task.name, int(self._env.now))
        if self.mover is not None:
            self.mover.left(plan)
        for forget in self.forgets:
            forget(plan)


def _workflow(config: Config, tasks: Iterable[Task]) -> seams.Workflow | None:
    """The predictor of a configuration. One that is to know tasks beforehand walks through them first."""
    if config.predict == "none":
        return None
    found: Any = seams.find("predict", config.predict).build()
    if hasattr(found, "learn") and found.wants_tasks:
        if iter(tasks) is tasks:
            what = "tasks that can be read only once"
            raise ConfigError(what, where="predict", expected="a list of tasks for a predictor with hints")
        found.learn(tasks)
    return cast("seams.Workflow", found)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """The engine leaves no cycles behind: the collector looks seldom, and never at what was there before."""
    thresholds, ours = gc.get_threshold(), not gc.get_freeze_count()
    gc.set_threshold(1_000_000, 20, 20)
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        if ours:
            gc.unfreeze()
        gc.set_threshold(*thresholds)


def _replicas(
    config: Config,
    env: Clock,
    settings: EngineSettings,
    costs: list[StepCost],
    logs: Logs,
    told: _Told,
) -> tuple[list[AnyReplica], list[Callable[[PlannedTask], None]]]:
    """The replicas of a cluster, and what to tell when a task has ended."""
    order, evict = seams.find("order", config.order), seams.find("evict", config.evict)
    rank = seams.ranker(evict, told.workflow, queue=not keeps_evicted(config))
    on_finish = told.finished
    blocks, batch = settings.num_blocks, settings.evict_batch_blocks
    node_size = load_gpu(config.gpu).node_size
    loads = [0] * (config.gpus // config.tp)
    views = [ReplicaView(number, number * config.tp // node_size, blocks, loads) for number in range(len(loads))]
    queues = [WaitingQueue(order.build(told.workflow), in_order=order.in_order) for _ in views]
    if not config.reference:
        caches = [KVCache(blocks, view.replica, rank=rank, batch=batch) for view in views]
        fast = zip(views, caches, queues, strict=True)
        return [Replica(env, view, settings, costs, cache, queue, logs, on_finish) for view, cache, queue in fast], []
    from sagasim.reference import ReferenceReplica
    from sagasim.reference_cache import BlockNames, ReferenceCache

    names = BlockNames()
    return [
        ReferenceReplica(
            env, view, settings, costs, ReferenceCache(blocks, rank=rank, batch=batch), queue, logs, on_finish, names
        )
        for view, queue in zip(views, queues, strict=True)
    ], [names.forget]


def engine_settings(config: Config) -> EngineSettings:
    """Engine settings of a resolved configuration. Raises ConfigError for a cluster that could not start."""
    assert config.max_num_batched_tokens is not None
    assert config.max_num_seqs is not None
    assert config.max_model_len is not None
    model, gpu = load_model(config.model), load_gpu(config.gpu)
    blocks = config.num_gpu_blocks_override
    if blocks is None:
        share, budget = config.gpu_memory_utilization, config.max_num_batched_tokens
        blocks = kv_blocks(model, gpu, config.tp, share, budget, config.dtype)
    else:
        blocks -= 1  # the null block
    if blocks * BLOCK_TOKENS < config.max_model_len:
        raise ConfigError(
            f"{config.model} with a context of {config.max_model_len} tokens does not fit on {config.tp} {config.gpu}",
            where="cluster",
            expected=f"KV memory for one such context; there is room for {max(0, blocks * BLOCK_TOKENS)} tokens",
        )
    return EngineSettings(
        num_blocks=blocks,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        prefix_caching=config.prefix_caching,
        lag=2 if config.async_scheduling else 1,
        foreseen_stops=config.stop == "length",
        evict_batch_blocks=config.evict_batch_blocks,
        reserve_full_prompt=config.reserve_full_prompt,
    )


def calibration_name(config: Config) -> str:
    """Name of the embedded calibration of a configuration's GPU, model, tp and data type."""
    return f"{config.gpu}-{config.model}-tp{config.tp}-{config.dtype}"


def calibration_of(config: Config) -> dict[str, Any]:
    """The calibration that a configuration names, or the embedded one of its GPU, model, tp and data type."""
    if config.calibration is not None:
        return load_calibration(Path(config.calibration))
    folder = data_dir() / "calibration"
    name = calibration_name(config)
    path = folder / f"{name}.json"
    if not path.is_file():
        known = nearest(name, [file.stem for file in folder.glob("*.json")])
        expected = f"--set calibration=FILE, written by `sagasim calibrate fit`, or {known}"
        raise CalibrationError(f"no embedded calibration {name}", where="calibration", expected=expected)
    return load_calibration(path)


def _checked(tasks: Iterable[Task], config: Config) -> Iterator[Task]:
    limit = config.max_model_len
    assert limit is not None
    for task in tasks:
        if task.max_tokens > limit:
            raise TraceError(
                f"a context of {task.max_tokens} tokens",
                where=f"task {task.name!r}",
                expected=f"at most {limit} (--max-model-len), or --over-length drop, truncate or extend",
            )
        yield task


def _replica_columns(replicas: Sequence[AnyReplica], calls: Columns) -> Columns:
    table = Table(REPLICAS)
    for replica in replicas:
        number = replica.view.replica
        table.append(
            table.pack(
                number,
                replica.view.num_blocks,
                int((calls["replica"] == number).sum()),
                replica.steps,
                replica.busy,
                replica.step_end,
                replica.cache.evicted,
                replica.preemptions,
                replica.view.loads[number],
                replica.prefetched,
            )
        )
    return table.columns("replica")
