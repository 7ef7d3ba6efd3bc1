"""The folder of a replay, laid out as LLMServingSim lays out its vLLM runs, so that the same reader takes both.

config.json          the machine
vllm_meta.json       engine arguments, workload, cache and hardware
vllm_requests.jsonl  one call a line: tokens; when it arrived, was first scheduled, gave its first and its last token
vllm_timeseries.csv  each second: throughputs, running and waiting calls, share of the cache in use
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.scheduler import Request

__all__ = ["Tick", "machine", "request_fields", "write_run"]

TICK_S = 1.0
TICK_COLUMNS = "t,prompt_throughput,gen_throughput,running,waiting,kv_cache_pct"


@dataclass(frozen=True, slots=True)
class Tick:
    """One second of a run: tokens a second of prompts and outputs, calls, per cent of the blocks held."""

    t: float
    prompt_throughput: float
    gen_throughput: float
    running: int
    waiting: int
    kv_cache_pct: float


def request_fields(number: int, request: Request, started_epoch_s: float, started_s: float) -> dict[str, Any]:
    """A line of vllm_requests.jsonl. arrival_time counts from the epoch, *_ts are seconds of the engine's clock.

    cached_toks, and call, the name in the trace, are this engine's own.
    """
    return {
        "request_id": f"replay-{number}",
        "input_toks": request.prompt_tokens,
        "output_toks": request.produced,
        "arrival_time": started_epoch_s + request.queued_s,
        "queued_ts": started_s + request.queued_s,
        "scheduled_ts": started_s + request.scheduled_s,
        "first_token_ts": started_s + request.first_token_s,
        "last_token_ts": started_s + request.last_token_s,
        "cached_toks": request.cached_tokens,
        "call": request.name,
    }


def machine(model: str, hardware: str, memory_gb: float, share: float) -> dict[str, Any]:
    """config.json: one node, one instance. Bandwidths that were not measured here are null."""
    instance = {
        "model_name": model,
        "hardware": hardware,
        "npu_mem": {"mem_size": memory_gb, "mem_bw": None, "mem_latency": 0, "mem_util": share},
        "num_npus": 1,
        "tp_size": 1,
        "pd_type": None,
    }
    node = {
        "num_instances": 1,
        "cpu_mem": {"mem_size": None, "mem_bw": None, "mem_latency": 0},
        "instances": [instance],
    }
    return {"num_nodes": 1, "link_bw": None, "link_latency": None, "nodes": [node]}


def write_run(
    out: Path, config: dict[str, Any], meta: dict[str, Any], requests: Sequence[dict[str, Any]], ticks: Sequence[Tick]
) -> None:
    """Write the folder, whole or not at all. It must not exist."""
    folder = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (folder / "vllm_meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        lines = "".join(json.dumps(fields, ensure_ascii=False) + "\n" for fields in requests)
        (folder / "vllm_requests.jsonl").write_text(lines, encoding="utf-8")
        rows = [TICK_COLUMNS] + [
            f"{t.t},{t.prompt_throughput},{t.gen_throughput},{t.running},{t.waiting},{t.kv_cache_pct}" for t in ticks
        ]
        (folder / "vllm_timeseries.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
