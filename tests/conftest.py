"""What several tests need: results made by hand, and no cache of the real user."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job and its children ignore it
os.environ["SAGASIM_PURE"] = "1"  # tests plant errors in the sources; test_compiled.py runs what is compiled

from sagasim.config import Config
from sagasim.eventlog import CALLS, OCCUPANCY, REPLICAS, TASKS, TRANSFERS, Columns
from sagasim.simulate import Result

settings.register_profile("sagasim", deadline=None, suppress_health_check=[HealthCheck.too_slow])  # no test is timed
settings.load_profile("sagasim")

Rows = list[dict[str, int]]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every test has a cache folder of its own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def columns(names: tuple[str, ...], rows: Rows) -> Columns:
    """Rows as int64 columns; what a row leaves out is 0."""
    return {name: np.array([row.get(name, 0) for row in rows], dtype=np.int64) for name in names}


@pytest.fixture
def make_result() -> Callable[..., Result]:
    """make_result(calls=[...], tasks=[...], occupancy=[...], replicas=[...]): a Result of these rows."""

    def make(
        calls: Rows,
        tasks: Rows,
        occupancy: Rows = (),  # type: ignore[assignment]
        replicas: Rows = ({"num_blocks": 10},),  # type: ignore[assignment]
        tenants: tuple[str, ...] = ("default",),
        **config: Any,
    ) -> Result:
        return Result(
            config=Config(**{"trace": "weka", "preset": "vllm-0.15", **config}),
            calls=columns(CALLS, list(calls)),
            tasks=columns(TASKS, list(tasks)),
            occupancy=columns(OCCUPANCY, list(occupancy)),
            replicas=columns(REPLICAS, list(replicas)),
            transfers=columns(TRANSFERS, []),
            task_names=[f"task-{i}" for i in range(len(tasks))],
            tenants=list(tenants),
            executed=7,
            notes={"calibration": "derived"},
        )

    return make


@pytest.fixture
def two_task_rows() -> Mapping[str, Rows]:
    """Two tasks of one and two calls on one replica of ten blocks, over 10 s. Times are whole seconds."""
    s = 10**12
    return {
        "calls": [
            {"task": 0, "call": 0, "submitted_ps": 0, "admitted_ps": 0, "first_token_ps": s, "finished_ps": 3 * s,
             "prompt_tokens": 100, "output_tokens": 3, "tool_ps": s},
            {"task": 1, "call": 0, "submitted_ps": 2 * s, "admitted_ps": 3 * s, "first_token_ps": 4 * s,
             "finished_ps": 4 * s, "prompt_tokens": 100, "output_tokens": 1, "hit_tokens": 16},
            {"task": 1, "call": 1, "submitted_ps": 4 * s, "admitted_ps": 6 * s, "first_token_ps": 8 * s,
             "finished_ps": 10 * s, "prompt_tokens": 200, "output_tokens": 5, "kept_tokens": 101, "hit_tokens": 48,
             "regenerated_here_tokens": 32, "regenerated_elsewhere_tokens": 8, "preemptions": 1,
             "reused_block_us": 4_000_000},
        ],
        "tasks": [
            {"task": 0, "tenant": 0, "arrival_ps": 0, "finished_ps": 4 * s, "calls": 1, "tool_ps": s},
            {"task": 1, "tenant": 1, "arrival_ps": 2 * s, "finished_ps": 10 * s, "calls": 2},
        ],
        "occupancy": [
            {"time_ps": 0, "replica": 0, "held_blocks": 7},
            {"time_ps": 3 * s, "replica": 0, "held_blocks": 2, "cached_blocks": 7},
            {"time_ps": 10 * s, "replica": 0, "held_blocks": 0, "cached_blocks": 9},
        ],
        "replicas": [{"num_blocks": 10, "calls": 3, "steps": 12, "busy_ps": 8 * s}],
    }  # fmt: skip


@pytest.fixture
def two_tasks(make_result: Callable[..., Result], two_task_rows: Mapping[str, Rows]) -> Result:
    return make_result(**two_task_rows, tenants=("acme", "zeta"))
