"""A small serving engine: the scheduler's steps run on the model, as CUDA graphs where the step has a captured size.

A step is synchronous: plan, one copy of its numbers to the GPU, one graph, one copy of the tokens back. Decode steps
and mixed steps of up to 512 tokens replay graphs, padded to the next captured size; larger ones are launched kernel by
kernel, which their work on the GPU hides.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from kernels.blocks import BLOCK_TOKENS, Blocks
from kernels.device import interpreted
from kernels.grid import TINY, Shape
from kernels.model import Llama, StepShape
from kernels.scheduler import Request, Scheduler, Work

__all__ = ["Engine", "decode_sizes", "fitting_blocks", "host_step_s"]

MIXED_SIZES = (32, 64, 128, 256, 512)
MIXED_CHUNKS = 8
RESERVED_BYTES = 4 * 2**30  # activations, workspaces and graphs
WARM_STEPS, TIMED_STEPS = 5, 40


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Batch sizes that are captured: those of vLLM (config/vllm.py, _set_cudagraph_sizes), up to one that holds all."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, 513, 16)]
    return sizes[: bisect_left(sizes, max_num_seqs) + 1]


def fitting_blocks(shape: Shape, dtype: torch.dtype, share: float) -> int:
    """Blocks of KV cache that a share of this GPU's memory holds beside the weights."""
    weights = sum(n * k for n, k in shape.linear(1)[:4]) * shape.layers + 2 * shape.vocab * shape.hidden
    total = torch.cuda.get_device_properties(0).total_memory
    block = 2 * shape.layers * shape.kv_heads * BLOCK_TOKENS * shape.head_dim
    return int((share * total - RESERVED_BYTES - weights * dtype.itemsize) // (block * dtype.itemsize))


class _Graph:
    """A step of one shape, captured: its numbers go in through `load`, its tokens come out of `run`."""

    def __init__(self, model: Llama, step: StepShape, pool: Any) -> None:
        self.step = step
        self._host = torch.tensor(step.filled({}), dtype=torch.int32).pin_memory()
        self._buffer = self._host.to(model.device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            model.forward(self._buffer, step)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self._out = model.forward(self._buffer, step)

    def load(self, numbers: list[int]) -> None:
        self._host.copy_(torch.tensor(numbers, dtype=torch.int32))
        self._buffer.copy_(self._host, non_blocking=True)

    def run(self) -> torch.Tensor:
        self.graph.replay()
        return self._out


class Engine:
    """One replica. Its clock is time.monotonic unless another is given."""

    def __init__(
        self,
        shape: Shape,
        device: torch.device,
        *,
        dtype: torch.dtype = torch.bfloat16,
        blocks: int,
        max_num_seqs: int = 128,
        max_num_batched_tokens: int = 2048,
        max_model_len: int = 32_768,
        clock: Callable[[], float] = time.monotonic,
        seed: int = 0,
    ) -> None:
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens is {max_num_batched_tokens}; expected at least max_num_seqs, {max_num_seqs}"
            )
        columns = -(-max_model_len // BLOCK_TOKENS)
        self.model = Llama(shape, device, dtype, blocks, max_num_seqs, columns, seed)
        self.scheduler = Scheduler(Blocks(blocks), max_num_seqs, max_num_batched_tokens)
        self.max_model_len, self.max_num_seqs, self.clock = max_model_len, max_num_seqs, clock
        self._columns = columns
        self.sizes = decode_sizes(max_num_seqs)
        self._graphs: dict[StepShape, _Graph] = {}
        self.prompt_tokens = self.output_tokens = 0  # computed so far

    def capture(self) -> None:
        """Capture every graph, largest first, in one pool of memory. Without a GPU there are none."""
        if self.model.device.type != "cuda":
            return
        pool = None
        steps = [self._padded(size, 0, size) for size in reversed(self.sizes)]
        steps += [self._padded(0, 1, size) for size in reversed(MIXED_SIZES)]
        for step in steps:
            if step not in self._graphs:
                self._graphs[step] = _Graph(self.model, step, pool)
                pool = pool or self._graphs[step].graph.pool()
        torch.cuda.synchronize()

    def add(self, request: Request) -> None:
        """Queue a request. Raises ValueError where it can never run."""
        length = request.prompt_tokens + request.output_tokens
        most = min(self.max_model_len, self.scheduler.blocks.count * BLOCK_TOKENS)
        if not request.prompt_tokens or not request.output_tokens or length > most:
            raise ValueError(
                f"request {request.name!r} has {length} tokens; expected a prompt and an output, {most} at most"
            )
        self.scheduler.add(request)

    @property
    def busy(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def _padded(self, decodes: int, chunks: int, tokens: int) -> StepShape:
        """The shape of a step: a captured size where there is one, else exactly what it needs."""
        if not chunks and decodes <= self.sizes[-1]:
            size = self.sizes[bisect_left(self.sizes, decodes)]
            return StepShape(size, size, 0)
        if chunks <= MIXED_CHUNKS and tokens <= MIXED_SIZES[-1]:
            size = MIXED_SIZES[bisect_left(MIXED_SIZES, tokens)]
            return StepShape(size, min(size, self.max_num_seqs), MIXED_CHUNKS)
        return StepShape(tokens, decodes, chunks)

    def step(self) -> list[Request]:
        """Run one step; the requests that have ended with it. At least one request must be there."""
        work = self.scheduler.plan(self.clock())
        work.sort(key=lambda item: item.new > 1)  # decodes first, else in order
        decodes = sum(1 for item in work if item.new == 1)
        step = self._padded(decodes, len(work) - decodes, sum(item.new for item in work))
        self._write_tables(work)
        numbers = step.filled(_numbers(work, decodes))
        graph = self._graphs.get(step)
        if graph is not None:
            graph.load(numbers)
            out = graph.run()
        else:
            buffer = torch.tensor(numbers, dtype=torch.int32)
            if self.model.device.type == "cuda":
                buffer = buffer.pin_memory().to(self.model.device, non_blocking=True)
            longest = max((item.request.computed + item.new for item in work[decodes:]), default=None)
            out = self.model.forward(buffer, step, longest)
        tokens = out[: len(work)].tolist()  # waits for the GPU
        prompts = sum(max(0, min(i.new, i.request.prompt_tokens - i.request.computed)) for i in work)
        produced = sum(i.request.produced for i in work)
        ended = self.scheduler.done(work, tokens, self.clock())
        self.prompt_tokens += prompts
        self.output_tokens += sum(i.request.produced for i in work) - produced
        return ended

    def _write_tables(self, work: list[Work]) -> None:
        positions: list[int] = []
        blocks: list[int] = []
        for item in work:
            start = item.request.row * self._columns
            added = item.request.blocks[item.first_block :]
            positions += range(start + item.first_block, start + item.first_block + len(added))
            blocks += added
        self.model.set_blocks(positions, blocks)


def _numbers(work: list[Work], decodes: int) -> dict[str, list[int]]:
    """The fields of a step's buffer."""
    fields: dict[str, list[int]] = {"tokens": [], "positions": [], "slots": [], "outputs": []}
    for item in work:
        request, first, end = item.request, item.request.computed, item.request.computed + item.new
        fields["tokens"] += request.tokens[first:end]
        fields["positions"] += range(first, end)
        fields["slots"] += [
            request.blocks[p // BLOCK_TOKENS] * BLOCK_TOKENS + p % BLOCK_TOKENS for p in range(first, end)
        ]
        fields["outputs"].append(len(fields["tokens"]) - 1)
    chunks = work[decodes:]
    fields["decode_rows"] = [item.request.row for item in work[:decodes]]
    fields["decode_lens"] = [item.request.computed + 1 for item in work[:decodes]]
    fields["chunk_rows"] = [item.request.row for item in chunks]
    fields["chunk_lens"] = [item.request.computed + item.new for item in chunks]
    starts = [decodes]
    for item in chunks:
        starts.append(starts[-1] + item.new)
    fields["chunk_starts"] = starts if chunks else []
    return fields


def host_step_s(sequences: int, device: torch.device) -> list[float]:
    """What a decode step takes beyond its graph: wall time of a tiny model's steps less the time of the graph alone."""
    dry = interpreted()
    steps = 2 if dry else WARM_STEPS + TIMED_STEPS
    blocks = sequences * (2 + steps // BLOCK_TOKENS) + 1
    limits: dict[str, Any] = {"max_num_seqs": sequences, "max_num_batched_tokens": max(2048, BLOCK_TOKENS * sequences)}
    engine = Engine(TINY, device, blocks=blocks, max_model_len=64, **limits)
    engine.capture()
    for i in range(sequences):
        prompt = [(i + j) % TINY.vocab for j in range(BLOCK_TOKENS)]
        engine.add(Request(str(i), prompt, len(prompt), steps + 2))
    engine.step()  # all prompts
    taken = []
    for _ in range(steps):
        start = time.perf_counter()
        engine.step()
        taken.append(time.perf_counter() - start)
    if dry:
        return taken
    graph = engine._graphs[engine._padded(sequences, 0, sequences)]
    alone = []
    for _ in range(TIMED_STEPS):
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        graph.run()
        last.record()
        last.synchronize()
        alone.append(first.elapsed_time(last) * 1e-3)
    return [max(1e-9, wall - median(alone)) for wall in taken[WARM_STEPS:]]
