"""Speed and memory of the engine, as ratios to a bare SimPy loop: `python tests/bench_engine.py [--full]`.

Facts and ratios, never a timed test: a slow machine is slow for both, and other jobs on it disturb both.
"""

from __future__ import annotations

import gc
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import simpy

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from sagasim.config import Config  # noqa: E402
from sagasim.core import Task  # noqa: E402
from sagasim.simulate import simulate  # noqa: E402
from sagasim.workloads import generate  # noqa: E402

Row = tuple[str, float, str]


def bare(steps: int = 1500, processes: int = 64) -> float:
    """CPU seconds of one timeout of a bare SimPy loop."""
    env = simpy.Environment()

    def process() -> Iterator[simpy.Event]:
        while True:
            yield env.timeout(1)

    for _ in range(processes):
        env.process(process())
    start = time.process_time()
    env.run(until=steps)
    return (time.process_time() - start) / (steps * processes)


def config(concurrency: int) -> Config:
    """64 H200 with 16 replicas of Llama 3.1 70B, limits as vLLM 0.15 sets them."""
    return Config(
        gpus=64,
        tp=4,
        gpu="h200",
        model="llama-3.1-70b",
        max_model_len=131072,
        max_num_batched_tokens=8192,
        max_num_seqs=1024,
        arrivals="closed",
        concurrency=concurrency,
    )


def cost(concurrency: int, tasks: Iterable[Task]) -> tuple[float, int]:
    """CPU seconds per LLM call, and the number of calls."""
    gc.collect()
    start = time.process_time()
    calls = len(simulate(config(concurrency), tasks).calls["task"])
    return (time.process_time() - start) / calls, calls


def ratios(tasks: int = 400, repetitions: int = 5) -> list[Row]:
    """(1) One LLM call in bare timeouts: median of repetitions, a bare loop before and after each."""
    work = list(generate("swe-bench", tasks=tasks, seed=0).tasks())
    rows: list[Row] = []
    for concurrency in (64, 480):
        found, calls = [], 0
        for _ in range(repetitions):
            before = bare()
            each, calls = cost(concurrency, work)
            found.append(2 * each / (before + bare()))
        rows.append((f"LLM call / bare timeout, {concurrency} agents, {calls} calls", statistics.median(found), ""))
        rows.append((f"    least of {repetitions}", min(found), ""))
    return rows


def growth(counts: Iterable[int]) -> list[Row]:
    """(2) Cost and peak memory per call as runs grow; tasks are generated meanwhile, and that is counted.

    64 agents, so that the shortest run too is mostly one with all of them at work. The first count is measured again
    at the end: what the machine does meanwhile shows between the two.
    """
    rows: list[Row] = []
    costs: list[float] = []
    counts = list(counts)
    for count in (*counts, counts[0]):
        trace = generate("swe-bench", tasks=max(1, count // 37), seed=0)
        loop = bare()
        each, calls = cost(64, trace.tasks())
        costs.append(2 * each / (loop + bare()))
        rows.append((f"LLM call with its generation / bare timeout, {calls} calls", costs[-1], ""))
    growth = max(costs[1:-1], default=costs[0]) / ((costs[0] + costs[-1]) / 2)
    rows.append(("    the dearest against the mean of first and last", growth, "times"))
    for count in (2_000, 10_000):  # traced runs are slow: memory is measured on small ones
        trace = generate("swe-bench", tasks=max(1, count // 37), seed=0)
        tracemalloc.start()
        calls = len(simulate(config(64), trace.tasks()).calls["task"])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append((f"peak memory per call, {calls} calls", peak / calls, "bytes"))
    return rows


def write_sessions(path: Path, agents: int, calls: int) -> None:
    """Sessions in agentic_mooncake form: 16 shared blocks of 512 tokens, private ones that grow; 24 K on average."""
    with path.open("w") as lines:
        fresh = 16
        blocks = {agent: list(range(16)) for agent in range(agents)}
        for index in range(calls):
            for agent in range(agents):
                added = 13 if not index else 3 if index % 2 else 1
                blocks[agent] += range(fresh, fresh + added)
                fresh += added
                record = {"session_id": f"s{agent}", "input_length": 512 * len(blocks[agent]), "output_length": 100}
                record |= {"hash_ids": blocks[agent]}
                record |= {"delay": 500} if index else {"timestamp": agent * 100}
                lines.write(json.dumps(record) + "\n")


def whole_run(folder: Path, agents: int = 600, calls: int = 20) -> list[Row]:
    """(3) A whole run as a user starts it, wall time, beside the bare loop in the same minute."""
    path = folder / "sessions.jsonl"
    write_sessions(path, agents, calls)
    command = [sys.executable, "-m", "sagasim", "run", "--trace", str(path), "--gpus", "64", "--tp", "1"]
    command += ["--model", "llama-3.1-8b", "--preset", "vllm-0.15", "--out", str(folder / "out")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", "sagasim"], cwd=ROOT, check=True)  # as when installed
    walls, scaled = [], []
    for _ in range(5):
        before = bare()
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        walls.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        scaled.append(walls[-1] * 2 / (before + bare()) / 300_000)
        shutil.rmtree(folder / "out")
    return [
        (f"whole run of {agents} agents x {calls} calls, median of 5", statistics.median(walls), "s"),
        ("    the same where the bare loop makes 300 thousand timeouts a second", statistics.median(scaled), "s"),
        ("    least and most of these", min(scaled), "s"),
        ("", max(scaled), "s"),
    ]


@pytest.mark.bench
def test_engine_speed(tmp_path: Path) -> None:
    rows = ratios(tasks=40, repetitions=1) + growth([1_000]) + whole_run(tmp_path, 60, 5)
    show(rows)
    assert len(rows) == 13
    assert all(value > 0 for _, value, _ in rows)


def show(rows: list[Row]) -> None:
    for name, value, unit in rows:
        print(f"{name:72} {value:12,.1f} {unit}")


if __name__ == "__main__":
    bare()  # the first one is slow
    show(ratios())
    show(growth([10_000, 100_000, 1_000_000] if "--full" in sys.argv else [10_000, 50_000]))
    with tempfile.TemporaryDirectory() as temporary:
        show(whole_run(Path(temporary)))
