"""Points per second of a sweep, two processes against one and Ray: `python tests/bench_sweep.py [--ray]`.

Facts and ratios, never a timed test. Other jobs on the machine take their share of the second core: the busy share of
the workers says what is lost to the sweep itself, whatever else runs.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

from sagasim.sweeping.runner import Progress, run_sweep  # noqa: E402

Row = tuple[str, float, str]
REPETITIONS = 5


def spec(tasks: int, points: int) -> dict[str, Any]:
    """Points that take about a tenth of a second for 60 tasks with the compiled engine."""
    return {"workload": "swe-bench", "tasks": tasks, "gpus": 8, "rate": 30, "seeds": points}


def swept(what: dict[str, Any], folder: Path, **how: Any) -> tuple[float, float]:
    """Points per second from the first point on, and the share of the time that each worker computed."""
    marks: list[tuple[float, int]] = []

    def progress(now: Progress) -> None:
        if now.done and (not marks or marks[-1][1] < now.done):
            marks.append((time.perf_counter(), now.done))

    before = len(list(folder.iterdir()))
    out = folder / f"out{before}"
    ended = run_sweep(what, out, progress=progress, **how)
    assert ended.done == what["seeds"], ended.failed
    seconds = marks[-1][0] - marks[0][0]
    work = sum(json.loads(path.read_text())["body"]["seconds"] for path in (out / "points").iterdir())
    work *= (marks[-1][1] - marks[0][1]) / ended.done  # without the first, before which nothing is timed
    return (marks[-1][1] - marks[0][1]) / seconds, work / seconds / how["jobs"]


def two_against_one(folder: Path, tasks: int, points: int, repetitions: int) -> list[Row]:
    """One process and two by turns, in the same minutes."""
    ratios, busy, speeds = [], [], []
    for _ in range(repetitions):
        one, _ = swept(spec(tasks, points), folder, jobs=1)
        two, share = swept(spec(tasks, points), folder, jobs=2)
        speeds.append(one)
        ratios.append(two / one)
        busy.append(share)
    return [
        (f"points a second, one process, {tasks} tasks a point", statistics.median(speeds), ""),
        ("two processes / one, median", statistics.median(ratios), "times"),
        ("    least and most", min(ratios), "times"),
        ("", max(ratios), "times"),
        ("busy share of two workers, median", 100 * statistics.median(busy), "%"),
    ]


def ray_against_processes(folder: Path, tasks: int, points: int, repetitions: int) -> list[Row]:
    """Ray on this machine against processes of its own, by turns, two points at a time."""
    import ray

    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    run_sweep(spec(2, 4), folder / "warm", engine="ray", jobs=2)  # its workers start
    ratios, speeds = [], []
    for _ in range(repetitions):
        local, _ = swept(spec(tasks, points), folder, jobs=2)
        on_ray, _ = swept(spec(tasks, points), folder, jobs=2, engine="ray")
        speeds.append(local)
        ratios.append(on_ray / local)
    ray.shutdown()
    return [
        (f"points a second, two processes, {tasks} tasks a point", statistics.median(speeds), ""),
        ("Ray / processes, median", statistics.median(ratios), "times"),
        ("    least and most", min(ratios), "times"),
        ("", max(ratios), "times"),
    ]


@pytest.mark.bench
def test_sweep_speed(tmp_path: Path) -> None:
    rows = two_against_one(tmp_path, 30, 8, 1)
    show(rows)
    assert all(value > 0 for _, value, _ in rows)


def show(rows: list[Row]) -> None:
    for name, value, unit in rows:
        print(f"{name:60} {value:10,.2f} {unit}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        show(two_against_one(Path(temporary), 60, 40, REPETITIONS))
        show(two_against_one(Path(temporary), 600, 12, REPETITIONS))
        if "--ray" in sys.argv:
            show(ray_against_processes(Path(temporary), 600, 12, REPETITIONS))
