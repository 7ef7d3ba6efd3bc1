"""Timing against a GPU that is played: its clock moves as calls say, so times are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import few, pytestmark, torch  # noqa: F401

from kernels import timing
from kernels.timing import SAMPLES, time_beside, time_eager, time_graph

GPU = SimpleNamespace(type="cuda")


class Played:
    """A GPU of two streams with one clock each, in seconds; what is captured runs when it is replayed."""

    def __init__(self) -> None:
        self.clocks = {"main": 0.0, "side": 0.0}
        self.stream = "main"
        self.capturing: list[Callable[[], object]] | None = None

    def work(self, seconds: float) -> None:
        if self.capturing is not None:
            self.capturing.append(lambda: self.work(seconds))
        else:
            self.clocks[self.stream] += seconds

    def wait(self, waiting: str, until_s: float) -> None:
        self.clocks[waiting] = max(self.clocks[waiting], until_s)

    @contextmanager
    def graph(self, made: Graph, pool: object = None) -> Iterator[None]:
        self.capturing = made.calls
        yield
        self.capturing = None

    @contextmanager
    def on(self, chosen: Stream) -> Iterator[None]:
        before, self.stream = self.stream, chosen.name
        yield
        self.stream = before

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put this GPU in the place of torch.cuda's."""
        played = {
            "Stream": lambda: Stream(self, "side"), "current_stream": lambda: Stream(self, self.stream),
            "Event": lambda enable_timing=False: Event(self, enable_timing), "CUDAGraph": Graph, "graph": self.graph,
            "stream": self.on, "synchronize": lambda: None,
        }  # fmt: skip
        for name, value in played.items():
            monkeypatch.setattr(torch.cuda, name, value)


@dataclass
class Stream:
    gpu: Played
    name: str

    def wait_stream(self, other: Stream) -> None:
        self.gpu.wait(self.name, self.gpu.clocks[other.name])

    def wait_event(self, event: Event) -> None:
        self.gpu.wait(self.name, event.time)


@dataclass
class Event:
    gpu: Played
    timing: bool
    time: float = 0.0

    def record(self) -> None:
        self.time = self.gpu.clocks[self.gpu.stream]

    def synchronize(self) -> None:
        """It has happened."""

    def elapsed_time(self, other: Event) -> float:
        assert self.timing
        assert other.timing
        return (other.time - self.time) * 1e3


class Graph:
    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []

    def replay(self) -> None:
        for call in self.calls:
            call()


@few
@given(st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=5))
def test_a_sample_is_the_mean_of_the_calls_that_take_turns(seconds: list[float]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        gpu = Played()
        gpu.patch(monkeypatch)
        calls: list[Callable[[], object]] = [lambda s=s: gpu.work(s) for s in seconds]  # type: ignore[misc]
        mean = sum(seconds) / len(seconds)
        for measure in (time_graph, time_eager):
            samples = measure(calls, GPU)  # type: ignore[arg-type]
            assert len(samples) >= SAMPLES
            assert samples == pytest.approx([mean] * len(samples))


def test_short_graphs_are_replayed_until_events_resolve_them() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        gpu = Played()
        gpu.patch(monkeypatch)
        time_graph([lambda: gpu.work(1e-6)], GPU)  # type: ignore[arg-type]
        assert gpu.clocks["main"] >= SAMPLES * timing.SAMPLE_S


def test_a_background_is_under_way_in_every_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies shorter than the graph are queued more often until one still runs when the graph has ended."""
    gpu = Played()
    gpu.patch(monkeypatch)
    started: list[float] = []

    def copy() -> None:
        started.append(gpu.clocks[gpu.stream])
        gpu.work(1e-3)

    samples = time_beside([lambda: gpu.work(2e-2)] * 2, copy, GPU)  # type: ignore[arg-type]
    assert samples == pytest.approx([2e-2] * SAMPLES)
    assert len(started) > SAMPLES * 40  # 40 ms of copies beside each


def test_without_a_gpu_calls_are_run_and_take_some_time() -> None:
    ran: list[int] = []
    samples = time_graph([lambda: ran.append(1), lambda: ran.append(2), lambda: ran.append(3)], torch.device("cpu"))
    assert ran == [1, 2, 3]
    assert min(samples) > 0
