"""Service levels as a curve: the share of tasks that end within m times a base, for multipliers m.

idle       the task alone on the idle cluster, nothing cached, under vllm-0.15
expected   its mean completion time at half the cluster's capacity under vllm-0.15, over RUNS streams of arrivals

Both are measured by simulation on the very tasks that are compared, so they are the same for every system. Policies
never see them: what a policy may expect is learned from tasks that have ended (expectation.py).

No policy can attain every multiplier. Decoding slows down as a batch fills memory, so a cluster that is half full
cannot keep a task near its idle time; `crowding` says how much slower a step is then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.arrivals import arriving
from sagasim.config import PRESETS, Config
from sagasim.core import Task
from sagasim.cost import StepCost
from sagasim.errors import ConfigError
from sagasim.eventlog import UNFINISHED
from sagasim.metrics import measured, ratio, rounded, tct_ps, window
from sagasim.simulate import Result, calibration_of, engine_settings, simulate
from sagasim.sources import prefixes_under
from sagasim.units import BLOCK_TOKENS
from sagasim.work import Work, capacity

__all__ = ["MULTIPLIERS", "attainment", "bases", "crowding", "slowdowns"]

MULTIPLIERS = (1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
RUNS = 2
_PRESET = "vllm-0.15"

Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]


def bases(work: Work, progress: Progress | None = None, *, expected: bool = True) -> dict[str, Ints]:
    """Base times of the tasks in ps, by number of the task: idle, and expected where the capacity can be measured.

    expected: False if the idle times are enough; the others take several times as long to measure.
    """
    apart = (prefixes_under(task, task.name) for task in work.tasks)  # nothing of one is of use to the next
    found = {"idle": _run(_plain(work.config, arrivals="closed", concurrency=1), apart, progress)}
    if not expected:
        return found
    try:
        half = 0.5 * capacity(work.config, progress)
    except ConfigError:  # too few tasks to tell a capacity
        return found
    config = _plain(work.config, arrivals="poisson", rate_per_min=rounded(half))
    runs = [_run(config, arriving(work.tasks, config, f"expected {run}"), progress) for run in range(RUNS)]
    found["expected"] = sum(runs[1:], start=runs[0]) // RUNS
    return found


def _plain(config: Config, **arrivals: Any) -> Config:
    """The cluster and work of a configuration under the preset that bases are measured with."""
    none = {"rate_per_min": None, "load": None, "concurrency": None, "horizon_s": None, "warmup": 0.0, "cooldown": 0.0}
    return replace(config, **{**PRESETS[_PRESET], **none, **arrivals}, preset=_PRESET, reference=False)


def _run(config: Config, tasks: Iterable[Task], progress: Progress | None) -> Ints:
    return tct_ps(simulate(config, tasks, progress=progress).tasks)


def slowdowns(result: Result, base_ps: Ints) -> NDArray[np.float64]:
    """Completion time over base of each measured task; infinite where it had not ended."""
    seen = window(result)
    tasks, _ = measured(result, seen)
    taken = tct_ps(tasks, seen.cut_off_ps) / base_ps[seen.first : seen.last]
    taken[tasks["finished_ps"] == UNFINISHED] = np.inf
    return taken


def attainment(slowdown: NDArray[np.float64], mask: NDArray[np.bool_] | None = None) -> list[float | None]:
    """Share of the tasks (of those in the mask) within each multiplier; tasks that had not ended are not."""
    own = slowdown if mask is None else slowdown[mask]
    return [ratio(int((own <= multiplier).sum()), len(own)) for multiplier in MULTIPLIERS]


def crowding(config: Config, mean_context_tokens: int) -> Mapping[str, float]:
    """How many calls of this context fill half of a replica's KV memory, and how much slower a decode step is then."""
    settings = engine_settings(config)
    cost = StepCost(
        calibration_of(config),
        max_tokens=settings.max_num_batched_tokens,
        max_seqs=settings.max_num_seqs,
        asynchronous=settings.lag == 2,
    )
    context = max(1, mean_context_tokens)
    calls = max(1, min(settings.max_num_seqs, settings.num_blocks * BLOCK_TOKENS // 2 // context))
    slower = cost.step(calls, calls * context, context, ()) / cost.step(1, context, context, ())
    return {"calls": calls, "context_tokens": context, "slower": rounded(slower)}
