"""What moves KV and what is looked at in epochs, put together as a configuration says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sagasim import seams
from sagasim.batching import EngineSettings
from sagasim.cluster import Cluster
from sagasim.config import Config
from sagasim.cost import StepCost, beside_copies
from sagasim.epochs import Balancer, Epochs, Preempter
from sagasim.eventlog import Table
from sagasim.hardware import Gpu, load_gpu, load_model
from sagasim.links import Links, Port
from sagasim.movement import Mover
from sagasim.rng import Stream
from sagasim.tiers import HostMemory
from sagasim.units import BLOCK_TOKENS, ps_from_s

__all__ = ["keeps_evicted", "step_costs", "what_looks", "what_moves"]


def step_costs(config: Config, settings: EngineSettings, calibration: dict[str, Any]) -> list[StepCost]:
    """Times of steps beside copies in 0, 1 and 2 directions; one for all where nothing is ever copied."""
    told = calibration.get("transfers", {}).get("decode_slowdown_percent", {})
    one = round(100 * config.copy_slowdown) if config.copy_slowdown else 100 + max(told.values(), default=60)
    # Published, one report of vLLM's offloading: steps of 15 ms take 24 beside loads, 42 beside loads and stores.
    both = round(100 * config.copy_slowdown_both) if config.copy_slowdown_both else max(one, 280 if not told else one)
    percents = [100, one, both] if _moves(config) else [100]
    costs = [
        StepCost(
            calibration if percent == 100 else beside_copies(calibration, percent),
            max_tokens=settings.max_num_batched_tokens,
            max_seqs=settings.max_num_seqs,
            asynchronous=settings.lag == 2,
        )
        for percent in percents
    ]
    return costs if len(costs) > 1 else costs * 3


def _moves(config: Config) -> bool:
    """Whether KV ever moves between replicas or tiers."""
    return keeps_evicted(config) or (config.balance != "none" and config.balance_carries)


def keeps_evicted(config: Config) -> bool:
    """Whether host memory takes what replicas evict."""
    return config.host_memory_gb > 0 and config.prefix_caching


def what_moves(
    config: Config, cluster: Cluster, calibration: dict[str, Any], log: Table, workflow: seams.Workflow | None
) -> Mover | None:
    """What moves KV: over NVLink within a node, the network between nodes, PCIe to host memory and back."""
    if not _moves(config):
        return None
    model, gpu, tp = load_model(config.model), load_gpu(config.gpu), config.tp
    block_bytes = BLOCK_TOKENS * model.kv_bytes_in(config.dtype)
    bandwidth = {"host memory": gpu.host_memory_bytes_per_s}
    for way in ("out", "in"):
        bandwidth[f"nvlink {way}"] = gpu.intra_node_bytes_per_s * tp
        bandwidth[f"net {way}"] = gpu.inter_node_bytes_per_s * tp
        bandwidth[f"pcie {way}"] = _copy_rate(config, gpu, calibration, way) * max(1, tp // gpu.pcie_uplink_gpus)
    hosts: list[Any] = []
    ports: list[tuple[tuple[Port, ...], tuple[Port, ...]]] = []
    if keeps_evicted(config):
        blocks = int(config.host_memory_gb * 2**30) // block_bytes
        kind: Any = HostMemory
        if config.reference:
            from sagasim.reference_cache import ReferenceHost

            kind = ReferenceHost
        hosts = [kind(blocks) for _ in range(cluster.views[-1].node + 1)]
        for view in cluster.views:
            uplink = view.replica * tp // max(tp, gpu.pcie_uplink_gpus)
            memory: tuple[Port, ...] = (("host memory", view.node),) if gpu.host_memory_bytes_per_s else ()
            ports.append(((("pcie out", uplink), *memory), (("pcie in", uplink), *memory)))
    prefetch = None
    if config.prefetch != "none":
        prefetch = seams.find("prefetch", config.prefetch).build(workflow)
    worth: Callable[[seams.IdleContext], bool] | None = None
    if hasattr(workflow, "step"):  # what a predictor knows to have ended is not kept
        steps: Any = workflow
        worth = lambda idle: steps.step(idle.task, idle.agent) is not None  # noqa: E731
    cluster.mover = mover = Mover(
        cluster, Links(cluster.env, bandwidth), block_bytes, log, hosts, ports, prefetch, worth
    )
    return mover


def _copy_rate(config: Config, gpu: Gpu, calibration: dict[str, Any], way: str) -> int:
    """Bytes a second between a GPU and host memory, out of the GPU or into it: given, measured, or derived.

    Measured: of the largest copy in the calibration. Derived: 0.8 of the link's rate, as SAGA's authors report 25 GB/s
    of the 31.5 of PCIe 4.0 x16.
    """
    if config.host_gb_per_s is not None:
        return round(config.host_gb_per_s * 10**9)
    rows = calibration.get("transfers", {}).get(f"{'d2h' if way == 'out' else 'h2d'} auto", [])
    if rows:
        piece, count, ps = max(rows, key=lambda row: row[0] * row[1])
        return int(piece * count * 10**12 // ps)
    return gpu.pcie_bytes_per_s * 8 // 10


def what_looks(
    config: Config, cluster: Cluster, router: Any, workflow: seams.Workflow | None, mover: Mover | None
) -> Balancer | None:
    """Let policies move waiting calls and preempt running ones; a router that remembers where tasks are is told."""
    balancer: Balancer | None = None
    actions: list[Balancer | Preempter] = []
    if config.balance != "none":
        decide = seams.find("balance", config.balance).build(workflow)
        rng = Stream(config.seed, "balance")
        carries = mover if config.balance_carries else None
        balancer = Balancer(cluster, decide, getattr(router, "moved", None), rng, carries)
        actions.append(balancer)
    if config.preempt != "none":
        preempt = seams.find("preempt", config.preempt).build(workflow)
        actions.append(Preempter(cluster, preempt, ps_from_s(config.preempt_after_s)))
    if actions:
        cluster.epochs = Epochs(cluster, ps_from_s(config.balance_epoch_s), actions)
    return balancer
