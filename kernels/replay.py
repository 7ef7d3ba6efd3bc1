"""Replay a recorded trace on a real engine: python -m kernels.replay --trace FILE --minutes M --out DIR

A Llama-shaped decoder with random weights serves the calls of the trace in real time, each sent when the calls it
follows and their tools have ended. After M minutes nothing more is sent; what runs is finished. DIR is laid out as
`sagasim validate` reads it. --dry-run serves a tiny model in Triton's interpreter: it shows that all of it works, and
its times mean nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.calls import ClosedLoop
    from kernels.engine import Engine
    from kernels.run_files import Tick
    from kernels.scheduler import Request

__all__ = ["main", "serve"]

IDLE_S = 2e-4  # longest sleep while nothing is due: what a call may start late
PROGRESS_S = 10.0
MEMORY_SHARE = 0.9
DRY_BLOCKS = 64


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.replay", description=__doc__)
    parser.add_argument("--trace", type=Path, required=True, help="a native trace (docs/trace-format.md)")
    parser.add_argument("--minutes", type=float, required=True, help="send calls for so long")
    parser.add_argument("--out", type=Path, required=True, help="a new folder for the results")
    parser.add_argument("--concurrency", type=int, help="so many tasks at a time, instead of the trace's arrival times")
    parser.add_argument("--tasks", type=int, help="the first N tasks of the trace")
    parser.add_argument("--model", default="Llama-3.1-8B", help="shape of the model (one GPU must hold its weights)")
    parser.add_argument("--max-num-seqs", type=int, default=128)
    parser.add_argument("--max-num-batched-tokens", type=int, default=2048)
    parser.add_argument("--max-model-len", type=int, default=32_768, help="tasks with longer contexts are left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="tiny model in the interpreter, on the CPU")
    options = parser.parse_args(arguments)
    for name in ("minutes", "concurrency", "tasks", "max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        value = getattr(options, name)
        if value is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')} is {value}; expected a number above 0")
    if options.max_num_batched_tokens < options.max_num_seqs:
        parser.error(f"--max-num-batched-tokens is less than --max-num-seqs, {options.max_num_seqs}")
    if options.out.exists() or not options.out.parent.is_dir():
        parser.error(f"--out: {options.out} exists already or lies in no folder; expected the name of a new folder")
    return options


def _engine(options: argparse.Namespace) -> Engine:
    import torch

    from kernels.engine import Engine, fitting_blocks
    from kernels.grid import SHAPES, TINY

    limits: dict[str, Any] = {
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "max_model_len": options.max_model_len,
    }
    if options.dry_run:
        return Engine(TINY, torch.device("cpu"), dtype=torch.float32, blocks=DRY_BLOCKS, seed=options.seed, **limits)
    if options.model not in SHAPES:
        sys.exit(f"kernels.replay: unknown model {options.model!r}; expected one of {', '.join(SHAPES)}")
    shape = SHAPES[options.model]
    blocks = fitting_blocks(shape, torch.bfloat16, MEMORY_SHARE)
    if blocks * 16 < options.max_model_len:
        sys.exit(
            f"kernels.replay: {options.model} leaves room for {blocks * 16} tokens; expected --max-model-len or more"
        )
    return Engine(shape, torch.device("cuda:0"), blocks=blocks, seed=options.seed, **limits)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class _Clock:
    """Seconds since the start, of the monotonic clock."""

    def __init__(self) -> None:
        self.start_s, self.start_epoch_s = time.monotonic(), time.time()

    def __call__(self) -> float:
        return time.monotonic() - self.start_s


class _Ticks:
    """One Tick a second, from the engine's counters."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._last = engine, (0, 0)
        self.ticks: list[Tick] = []

    def until(self, now_s: float) -> None:
        from kernels.run_files import TICK_S, Tick

        engine, scheduler = self._engine, self._engine.scheduler
        while now_s >= (len(self.ticks) + 1) * TICK_S:
            prompts, outputs = engine.prompt_tokens - self._last[0], engine.output_tokens - self._last[1]
            self._last = engine.prompt_tokens, engine.output_tokens
            held = round(100 * (1 - scheduler.blocks.free / scheduler.blocks.count), 2)
            running, waiting = len(scheduler.running), len(scheduler.waiting)
            t = (len(self.ticks) + 1) * TICK_S
            self.ticks.append(Tick(t, prompts / TICK_S, outputs / TICK_S, running, waiting, held))


def serve(engine: Engine, loop: ClosedLoop, seconds: float, clock: _Clock) -> tuple[list[Request], list[Tick]]:
    """Serve calls as they fall due, for `seconds`, and finish those that run; ended calls in the order of arrival."""
    ended: list[Request] = []
    ticks, said_s = _Ticks(engine), 0.0
    while True:
        now_s = clock()
        if now_s < seconds:
            for request in loop.send(now_s):
                engine.add(request)
        if engine.busy:
            for request in engine.step():
                ended.append(request)
                loop.ended(request, clock())
        elif now_s >= seconds or loop.next_s is None:
            break
        else:
            time.sleep(max(0.0, min(IDLE_S, loop.next_s - now_s)))
        ticks.until(clock())
        if now_s - said_s >= PROGRESS_S:
            said_s = now_s
            print(f"[{now_s / 60:.1f} of {seconds / 60:.1f} min] {len(ended)} calls done", file=sys.stderr, flush=True)
    ended.sort(key=lambda request: (request.queued_s, request.name))
    return ended, ticks.ticks


def _hardware(dry: bool) -> dict[str, Any]:
    import torch

    from kernels.rows import INTERPRETER

    if dry:
        return {"torch_version": torch.__version__, "cuda_version": None, "device_count": 0, "device_name": INTERPRETER,
                "device_total_memory_bytes": 0, "device_capability": None}  # fmt: skip
    properties = torch.cuda.get_device_properties(0)
    return {
        "torch_version": torch.__version__,
        "cuda_version": torch.version.cuda,
        "device_count": torch.cuda.device_count(),
        "device_name": properties.name,
        "device_total_memory_bytes": properties.total_memory,
        "device_capability": f"{properties.major}.{properties.minor}",
    }


def _meta(options: argparse.Namespace, engine: Engine, loop: ClosedLoop, times: tuple[str, str]) -> dict[str, Any]:
    from kernels.bench import provenance

    count = engine.scheduler.blocks.count
    commit = provenance().commit
    limits = {"max_num_seqs": options.max_num_seqs, "max_num_batched_tokens": options.max_num_batched_tokens}
    return {
        "schema_version": 1,
        "model": engine.model.shape.name,
        "vllm_version": f"none: sagasim kernels.replay {commit}",
        "engine_kwargs": {
            "model": engine.model.shape.name, "tensor_parallel_size": 1, "data_parallel_size": 1,
            "enable_expert_parallel": False, **limits, "max_model_len": options.max_model_len,
            "dtype": str(engine.model.dtype).removeprefix("torch."), "kv_cache_dtype": "auto", "seed": options.seed,
        },
        "dataset_path": options.trace.name,
        "dataset_hash": hashlib.sha256(options.trace.read_bytes()).hexdigest(),
        "started_at": times[0],
        "finished_at": times[1],
        "tick_seconds": 1.0,
        "kv_cache": {
            "num_gpu_blocks": count, "num_cpu_blocks": None, "block_size": 16,
            "gpu_memory_utilization": MEMORY_SHARE, "enable_prefix_caching": True, "kv_cache_memory_bytes": None,
            "num_kv_tokens": 16 * count,
        },
        "hardware": _hardware(options.dry_run),
        "resolved_config": {
            "scheduler_config": {"async_scheduling": False, "enable_chunked_prefill": True, **limits},
            "compilation_config": {"cudagraph_capture_sizes": engine.sizes},
        },
        "replay": {
            "concurrency": options.concurrency, "tasks_started": loop.started, "tasks_too_long": loop.dropped,
            "preemptions": engine.scheduler.preemptions, "weights": "random",
        },
    }  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0, or 2 for mistakes of the user, with nothing written."""
    options = _arguments(arguments)
    if options.dry_run:
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        sys.exit("kernels.replay: no GPU here; expected one, or --dry-run to try the interpreter")
    from kernels.calls import ClosedLoop
    from kernels.run_files import machine, request_fields, write_run
    from kernels.trace import TraceFileError, read_trace

    try:
        next(read_trace(options.trace), None)  # mistakes in it are told before weights are made
        engine = _engine(options)
        most = min(options.max_model_len, engine.scheduler.blocks.count * 16)
        engine.capture()
        clock = _Clock()
        engine.clock = clock
        started = _now()
        tasks = islice(read_trace(options.trace), options.tasks)
        loop = ClosedLoop(tasks, engine.model.shape.vocab, most, options.concurrency, options.seed)
        ended, ticks = serve(engine, loop, 60 * options.minutes, clock)
    except TraceFileError as error:
        print(f"kernels.replay: {error}", file=sys.stderr)
        return 2
    if not ended:
        print(f"kernels.replay: {options.trace}: no call ended in time; expected more --minutes", file=sys.stderr)
        return 2
    meta = _meta(options, engine, loop, (started, _now()))
    requests = [request_fields(i, r, clock.start_epoch_s, clock.start_s) for i, r in enumerate(ended)]
    memory = meta["hardware"]["device_total_memory_bytes"] / 1e9
    config = machine(engine.model.shape.name, meta["hardware"]["device_name"], memory, MEMORY_SHARE)
    write_run(options.out, config, {**meta, "num_requests": len(ended)}, requests, ticks)
    print(f"{len(ended)} calls of {loop.started} tasks: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
