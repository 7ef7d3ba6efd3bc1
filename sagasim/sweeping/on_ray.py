"""Workers on a Ray cluster: Ray places the jobs and runs those of a lost worker or node again."""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from sagasim.errors import ConfigError
from sagasim.sweeping.interrupts import undisturbed
from sagasim.sweeping.worker import Outcome, attempt

__all__ = ["RayEngine", "check_cluster"]

_RETRIES = 10  # of a job whose worker or node is lost
_ANSWER_S = 10
_AHEAD = 2  # jobs under way for each CPU of the cluster


class RayEngine:
    """As many jobs at a time as the cluster has CPUs, or `jobs`; every node needs the same sagasim and the same files.

    address: as ray.init takes it; None: that of the environment, or else a cluster of this machine alone. Raises
    ConfigError if there is no cluster.
    """

    def __init__(self, address: str | None = None, jobs: int | None = None) -> None:
        import ray

        self._ray = ray
        self._jobs = jobs
        self._running: dict[Any, str] = {}
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                with undisturbed():
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            except (OSError, ValueError, RuntimeError) as error:
                raise _no_cluster(error) from None
        self._attempt = ray.remote(num_cpus=1, max_retries=_RETRIES)(attempt)

    def has_room(self) -> bool:
        if self._jobs is not None:
            return len(self._running) < self._jobs
        return len(self._running) < _AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def submit(self, key: str, function: Callable[..., Any], *arguments: Any) -> None:
        self._running[self._attempt.remote(function, *arguments)] = key

    def finished(self, timeout_s: float) -> list[tuple[str, Outcome]]:
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout_s)
        ended = []
        for reference in done:
            key = self._running.pop(reference)
            try:
                ended.append((key, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                told = " ".join(str(error).split())[:300]
                ended.append((key, Outcome(reason=f"Ray gave it up: {type(error).__name__}: {told}")))
        return ended

    def close(self) -> None:
        if self._ours:
            self._ray.shutdown()  # which ends what the cluster still does for this process
        else:
            for reference in self._running:
                self._ray.cancel(reference)


def check_cluster(address: str | None) -> None:
    """Raise ConfigError if there is no Ray here, or nobody answers at a `host:port`: Ray would try for minutes."""
    if importlib.util.find_spec("ray") is None:
        expected = "pip install 'sagasim[ray]'"
        raise ConfigError("Ray is not installed", where="--engine ray", expected=expected)
    host, colon, port = (address or os.environ.get("RAY_ADDRESS", "")).removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(error) from None


def _no_cluster(error: Exception) -> ConfigError:
    what = " ".join(f"no cluster: {error}".split())[:300]
    return ConfigError(what, where="--address", expected="the address of a Ray cluster that runs")
