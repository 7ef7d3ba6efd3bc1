"""simulate(config, tasks) -> Result: the one place that knows every part."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim import seams
from sagasim.agent import Agents
from sagasim.batching import EngineSettings, InFlight, Logs, WaitingQueue
from sagasim.clock import Clock
from sagasim.cluster import Cluster, Engine
from sagasim.config import Config
from sagasim.core import Task
from sagasim.cost import StepCost, checked_calibration, load_calibration
from sagasim.errors import CalibrationError, ConfigError, TraceError
from sagasim.eventlog import CALLS, OCCUPANCY, REPLICAS, TASKS, Columns, Table, digest
from sagasim.hardware import Gpu, Model, data_dir, load_gpu, load_model
from sagasim.kvcache import KVCache
from sagasim.laws import check_log
from sagasim.plan import PlannedTask
from sagasim.replica import Replica
from sagasim.rng import Stream
from sagasim.seams import ReplicaView
from sagasim.units import BLOCK_TOKENS, MAX_PS, ps_from_s

if TYPE_CHECKING:
    from sagasim.reference import ReferenceReplica

    AnyReplica = Replica | ReferenceReplica

__all__ = ["Result", "calibration_of", "engine_settings", "kv_blocks", "simulate"]

_PROGRESS_CALLS = 2000


@dataclass(frozen=True, slots=True)
class Result:
    """The log of a run. calls, tasks, occupancy, replicas: columns as eventlog names them."""

    config: Config
    calls: Columns
    tasks: Columns
    occupancy: Columns
    replicas: Columns
    task_names: list[str]
    tenants: list[str]  # name of each tenant number
    executed: int  # events that the engine executed; the steps that it simulated are in replicas
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        tables = {"calls": self.calls, "tasks": self.tasks, "occupancy": self.occupancy, "replicas": self.replicas}
        return digest(tables)


def kv_blocks(model: Model, gpu: Gpu, tp: int, utilization: float, max_num_batched_tokens: int) -> int:
    """KV blocks that fit beside the weights on every GPU of a replica; may be negative.

    As vLLM counts: utilization * memory - weights - runtime - the activation peak of a step with a full batch; one
    block is never used (the null block). Runtime (CUDA context, NCCL, workspaces) is taken as 2 GiB, the peak as
    the MLP's two intermediates and four hidden states in 2 bytes: assumptions, near what vLLM's profile run reports.
    """
    weights = model.weight_bytes // tp
    peak = max_num_batched_tokens * 2 * (2 * model.mlp // tp + 4 * model.hidden)
    room = int(utilization * gpu.memory_bytes) - weights - (2 << 30) - peak
    per_block = BLOCK_TOKENS * model.kv_bytes_per_token // min(tp, model.kv_heads)
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
    count = 0

    def on_finish(_: InFlight) -> None:
        nonlocal count
        count += 1
        if progress is not None and count % _PROGRESS_CALLS == 0:
            progress(count, int(env.now))

    cost = StepCost(
        calibration_of(config) if calibration is None else checked_calibration(calibration, "calibration"),
        max_tokens=settings.max_num_batched_tokens,
        max_seqs=settings.max_num_seqs,
        asynchronous=settings.lag == 2,
    )
    route = seams.find("route", config.route)
    router = route.build()
    replicas, forgets = _replicas(config, env, settings, cost, logs, on_finish)
    if hasattr(router, "forget"):
        forgets.append(lambda plan: router.forget(plan.task.name))
    engines: list[Engine] = list(replicas)
    cluster = Cluster(env, engines, router, Stream(config.seed, "route"), sees_cache=route.sees_cache)

    def forget(plan: PlannedTask) -> None:
        for each in forgets:
            each(plan)

    checked = _checked(tasks, config)
    closed = config.concurrency if config.arrivals == "closed" else None
    agents = Agents(env, checked, cluster.submit, ends, concurrency=closed, ended=forget)
    horizon = MAX_PS if config.horizon_s is None else ps_from_s(config.horizon_s)
    with _rare_collections():
        ended = env.run_to(agents.done, horizon)
    if not ended:
        agents.log_unfinished()
    for replica in replicas:
        if isinstance(replica, Replica):
            if not ended:
                replica.settle(horizon)
            replica.cache.check_integrity()
    calls, occupancy = logs.calls.columns("task", "call"), logs.occupancy.columns("time_ps", "replica")
    columns = _replica_columns(replicas, calls)
    task_log = ends.columns("task")
    check_log(calls, task_log, occupancy, columns, settings.max_num_seqs)
    return Result(
        config,
        calls,
        task_log,
        occupancy,
        columns,
        agents.task_names,
        list(agents.tenants),
        sum(replica.executed for replica in replicas),
    )


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
    cost: StepCost,
    logs: Logs,
    on_finish: Callable[[InFlight], None],
) -> tuple[list[AnyReplica], list[Callable[[PlannedTask], None]]]:
    """The replicas of a cluster, and what to tell when a task has ended."""
    order, evict = seams.find("order", config.order), seams.find("evict", config.evict)
    rank = None if evict.queue_order else evict.build()
    blocks, batch = settings.num_blocks, settings.evict_batch_blocks
    node_size = load_gpu(config.gpu).node_size
    loads = [0] * (config.gpus // config.tp)
    views = [ReplicaView(number, number * config.tp // node_size, blocks, loads) for number in range(len(loads))]
    queues = [WaitingQueue(order.build(), in_order=order.in_order) for _ in views]
    if not config.reference:
        caches = [KVCache(blocks, view.replica, rank=rank, batch=batch) for view in views]
        fast = zip(views, caches, queues, strict=True)
        return [Replica(env, view, settings, cost, cache, queue, logs, on_finish) for view, cache, queue in fast], []
    from sagasim.reference import BlockNames, ReferenceCache, ReferenceReplica

    names = BlockNames()
    return [
        ReferenceReplica(
            env, view, settings, cost, ReferenceCache(blocks, rank=rank, batch=batch), queue, logs, on_finish, names
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
        blocks = kv_blocks(model, gpu, config.tp, config.gpu_memory_utilization, config.max_num_batched_tokens)
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
    )


def calibration_of(config: Config) -> dict[str, Any]:
    """The calibration that a configuration names, or the embedded one of its GPU, model and tp."""
    if config.calibration is not None:
        return load_calibration(Path(config.calibration))
    folder = data_dir() / "calibration"
    path = folder / f"{config.gpu}-{config.model}-tp{config.tp}-bf16.json"
    if not path.exists():
        there = sorted(p.stem for p in folder.glob("*-bf16.json"))
        raise CalibrationError(
            f"no embedded calibration for {config.model} on {config.gpu} with tp {config.tp}",
            where="calibration",
            expected=f"a file given by --set calibration=FILE, or one of: {', '.join(there)}",
        )
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
            )
        )
    return table.columns("replica")
