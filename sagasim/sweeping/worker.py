"""One point of a sweep, in whatever process: nothing is written here, results go back to the sweep."""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import sagasim.policies
from sagasim.config import Config
from sagasim.errors import SagasimError, TraceError
from sagasim.experiment import execute
from sagasim.metrics import rounded
from sagasim.sweeping.points import Fingerprints, Point
from sagasim.work import capacity, prepare

__all__ = ["Outcome", "attempt", "begin", "measure", "measure_capacity"]

assert sagasim.policies  # imported before workers are forked

_prepared = functools.lru_cache(maxsize=1)(prepare)  # the next point often has the same tasks
_fingerprints = Fingerprints()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it: a value, or in one line why there is none."""

    value: Any = None
    reason: str | None = None


def begin() -> None:
    """Make this process a worker: Ctrl-C is its parent's matter, and it does not outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()


def attempt(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """The outcome of a call. Whatever a policy raises becomes a text: its class may not exist where it is told."""
    gc.set_threshold(1_000_000, 50, 50)  # as in the command line
    try:
        return Outcome(function(*arguments))
    except SagasimError as error:
        return Outcome(reason=str(error))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - one point must not take the others with it
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(reason=f"{told} ({Path(place.filename).name}, line {place.lineno})")
    finally:
        gc.collect()  # the parts of an engine refer to each other: nothing else would free them for long


def measure_capacity(work: Config) -> float:
    """Tasks a minute that a load is a fraction of."""
    return capacity(work)


def measure(point: Point, per_min: float | None) -> dict[str, Any]:
    """Run a point: {"config", "summary", "seconds"}. per_min: the capacity, if its work has a load.

    Raises SagasimError, and whatever a policy of the user raises.
    """
    started = time.perf_counter()
    for module in point.modules:
        importlib.import_module(module)
    if _fingerprints.of_point(point.work, point.config) != point.hash:
        what = "files or sagasim itself are not what they were where the sweep began"
        raise TraceError(what, where=f"point {point.hash}", expected="the same files everywhere, unchanged meanwhile")
    work = point.work
    if per_min is not None:
        assert work.load is not None
        work = replace(work, rate_per_min=rounded(work.load * per_min))
    run = execute(_prepared(work).under(point.config))
    config = {key: value for key, value in asdict(run.result.config).items() if value is not None}
    return {"config": config, "summary": run.summary, "seconds": round(time.perf_counter() - started, 3)}
