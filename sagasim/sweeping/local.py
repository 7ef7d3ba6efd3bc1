"""Workers on this machine: a pool of processes, forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from signal import SIGINT
from types import ModuleType
from typing import Any, NamedTuple, Protocol

from sagasim.sweeping.interrupts import undisturbed
from sagasim.sweeping.worker import Outcome, attempt, begin

__all__ = ["Engine", "LocalEngine"]

_DEATHS = 2  # a job that saw its pool break so often runs alone; if the pool breaks again, it is the reason


class Job(NamedTuple):
    """A function of sagasim.sweeping.worker with its arguments, under a key of whoever submits it."""

    key: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Engine(Protocol):
    """Where jobs run."""

    def has_room(self) -> bool:
        """Whether another job would keep a worker busy."""

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        """Run it some time."""

    def finished(self, timeout_s: float) -> list[tuple[str, Outcome]]:
        """Jobs that ended; waits until there is one, at most so long."""

    def close(self) -> None:
        """End all workers at once, whatever they do."""


class LocalEngine:
    """`jobs` processes. One that dies (killed, out of memory) takes its pool with it: all its jobs run again."""

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._others = set(multiprocessing.active_children())
        self._waiting: deque[Job] = deque()
        self._running: dict[Future[Outcome], Job] = {}
        self._deaths: Counter[str] = Counter()
        _start_server()
        self._pool = self._new_pool()

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._jobs, multiprocessing.get_context("forkserver"), initializer=begin)

    def has_room(self) -> bool:
        return not self._waiting and len(self._running) <= self._jobs  # one more than workers, so that none waits

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        self._waiting.append(Job(key, function, arguments))
        self._feed()

    def _feed(self) -> None:
        """Give what waits to the pool. A suspect, which saw two pools break, is alone in it."""
        while self._waiting:
            job = self._waiting[0]
            if self._running and any(self._is_suspect(one) for one in (job, *self._running.values())):
                return
            try:
                with undisturbed(), _no_main():
                    future = self._pool.submit(attempt, job.function, *job.arguments)
            except BrokenProcessPool:
                if self._running:
                    return  # `finished` will see it
                self._renew()
                continue
            self._running[future] = self._waiting.popleft()

    def _is_suspect(self, job: Job) -> bool:
        return self._deaths[job.key] >= _DEATHS

    def _renew(self) -> None:
        self._pool.shutdown()
        self._pool = self._new_pool()

    def finished(self, timeout_s: float) -> list[tuple[str, Outcome]]:
        done, _ = wait(self._running, timeout=timeout_s, return_when=FIRST_COMPLETED)
        if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
            self._renew()
            done = set(self._running)
        alone = len(self._running) == 1
        ended: list[tuple[str, Outcome]] = []
        for future in done:
            job = self._running.pop(future)
            if not isinstance(future.exception(), BrokenProcessPool):
                ended.append((job.key, future.result()))
                continue
            self._deaths[job.key] += 1
            if alone and self._deaths[job.key] > _DEATHS:
                ended.append((job.key, Outcome(reason=f"its process was killed {self._deaths[job.key]} times")))
            else:
                self._waiting.append(job)
        self._feed()
        return ended

    def close(self) -> None:
        for process in multiprocessing.active_children():
            if process not in self._others:
                process.kill()
        self._pool.shutdown(cancel_futures=True)


def _start_server() -> None:
    """Start the process that workers are forked from, deaf to Ctrl-C, which a terminal sends to all of them."""
    forkserver.set_forkserver_preload(["sagasim.sweeping.worker"])
    resource_tracker.ensure_running()  # it lets Ctrl-C through again when it has started
    home = str(Path(__file__).parents[2])  # it imports the same package, installed or not
    path = os.environ.get("PYTHONPATH")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGINT})
    try:
        os.environ["PYTHONPATH"] = home if path is None else f"{home}{os.pathsep}{path}"
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


@contextmanager
def _no_main() -> Iterator[None]:
    """Hide the running program from new workers: they would import it, and a script that sweeps would sweep again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
