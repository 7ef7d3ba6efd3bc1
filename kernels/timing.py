"""Times of kernels: CUDA events over captured graphs, so that launches from Python are not part of them.

Every function takes calls that do the same work on different memory, so many that the L2 cache cannot hold what they
touch, and runs them in turn. Without a GPU the same calls run once in a row by the host's clock, which keeps the whole
path exercised and is no measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

__all__ = ["SAMPLES", "l2_bytes", "time_beside", "time_eager", "time_graph"]

Call = Callable[[], object]

SAMPLES = 20  # at least; more where they are cheap
MOST_SAMPLES = 60
SAMPLE_S = 400e-6  # a sample replays the graph until it is at least this long: events resolve 0.5 us
BUDGET_S = 0.15  # for the samples of a row
DRY_SAMPLES = 2
LEAST_S = 1e-9


def l2_bytes(device: torch.device) -> int:
    """Size of the L2 cache; without a GPU a little, so that calls rotate there too."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 4096


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def _by_the_host(calls: Sequence[Call]) -> list[float]:
    samples = []
    for i in range(max(DRY_SAMPLES, len(calls))):
        start = time.perf_counter()
        calls[i % len(calls)]()
        samples.append(max(LEAST_S, time.perf_counter() - start))
    return samples


def _span(work: Call) -> float:
    """Seconds on the GPU from before `work` to after it."""
    first, last = _events()
    first.record()
    work()
    last.record()
    last.synchronize()
    return max(LEAST_S, first.elapsed_time(last) * 1e-3)


def captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """One graph of all calls; they run once before, which compiles kernels."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _sampled(work: Call, units: int) -> list[float]:
    """Seconds a unit, of samples that are long enough each and together within BUDGET_S where SAMPLES allow it."""
    _span(work)
    once = min(_span(work) for _ in range(2))
    repeats = max(1, round(SAMPLE_S / once))
    count = min(MOST_SAMPLES, max(SAMPLES, int(BUDGET_S / (once * repeats))))

    def repeated() -> None:
        for _ in range(repeats):
            work()

    return [_span(repeated) / (units * repeats) for _ in range(count)]


def time_graph(calls: Sequence[Call], device: torch.device) -> list[float]:
    """Seconds a call, replayed from one graph that holds all calls once."""
    if device.type != "cuda":
        return _by_the_host(calls)
    return _sampled(captured(calls).replay, len(calls))


def time_eager(calls: Sequence[Call], device: torch.device) -> list[float]:
    """Seconds a call as Python issues it, between events: what the host needs for issuing counts where it is longer."""
    if device.type != "cuda":
        return _by_the_host(calls)

    def all_calls() -> None:
        for call in calls:
            call()

    return _sampled(all_calls, len(calls))


def time_beside(calls: Sequence[Call], background: Call, device: torch.device) -> list[float]:
    """Seconds a call from a graph while `background`, queued again and again on a second stream, is under way.

    A sample counts if the background was still running when the graph ended; else it is queued more often.
    """
    if device.type != "cuda":
        background()
        return _by_the_host(calls)
    graph, side = captured(calls), torch.cuda.Stream()
    repeats, samples = 2, []
    while len(samples) < SAMPLES:
        started, ended = torch.cuda.Event(), torch.cuda.Event(enable_timing=True)
        with torch.cuda.stream(side):
            background()
            started.record()
            for _ in range(repeats):
                background()
            ended.record()
        torch.cuda.current_stream().wait_event(started)
        first, last = _events()
        first.record()
        graph.replay()
        last.record()
        torch.cuda.synchronize()
        if last.elapsed_time(ended) > 0:
            samples.append(max(LEAST_S, first.elapsed_time(last) * 1e-3) / len(calls))
        else:
            repeats *= 2
    return samples
