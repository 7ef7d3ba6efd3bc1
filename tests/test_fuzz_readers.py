"""Damaged files: every reader takes them or says in one line what is wrong, and is done soon."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reader_cases import CALIBRATION, CONFIG, HARDWARE, TRACES, damaged, other_bytes
from strategies import config as small

from sagasim.config import check_config, merge, read_config, to_toml
from sagasim.core import Call, Task, check_task
from sagasim.cost import StepCost, constant_calibration, load_calibration
from sagasim.errors import SagasimError
from sagasim.hardware import load_gpu, load_model
from sagasim.metrics import summary
from sagasim.results import read_run, write_run
from sagasim.seams import find
from sagasim.simulate import simulate
from sagasim.sources import shares
from sagasim.trace import Trace, convert, open_trace
from sagasim.trace_stats import TraceStats

SECONDS = 5  # of one file of a few kilobytes
QUICK, LONG = 150, 3000  # files of each kind


def read_or_refused(read: Callable[[], object], *said: str) -> None:
    """Whatever happens is fine but another error, several lines or a long time."""
    started = time.process_time()
    try:
        read()
    except SagasimError as error:
        message = str(error)
        assert message
        assert message.isprintable()
        assert len(message) < 1_500
        assert [word for word in said if word not in message] == []
    assert time.process_time() - started < SECONDS


def walk(trace: Trace, out: Path) -> None:
    """Read the tasks, count them, and write them down: what is read can be replayed and kept."""
    stats = TraceStats()
    tokens = 0
    for task in islice(trace.tasks(1), 2000):
        check_task(task)
        stats.add(task)
        tokens += sum(call.prompt_tokens for call in task.calls)
    stats.summary()
    for to in ("native", "agentic_mooncake"):
        if to == "native" or tokens < 10**8:
            convert(trace, out.with_suffix(f".{to}"), to)


def check_trace(folder: Path, name: str, content: bytes) -> None:
    path = folder / "damaged"
    path.write_bytes(content)
    options: dict[str, Any] = {}
    if name == "turns":
        (folder / "requests").write_bytes(TRACES["requests"])
        options, path = {"turns": path}, folder / "requests"
    elif name == "requests":
        (folder / "turns").write_bytes(TRACES["turns"])
        options = {"turns": folder / "turns"}
    read_or_refused(lambda: walk(open_trace(path, **options), folder / "written"))


def check_config_file(folder: Path, content: bytes) -> None:
    (folder / "c.toml").write_bytes(content)

    def read() -> None:
        config = merge(read_config(folder / "c.toml"))
        check_config(config)
        assert tomllib.loads(to_toml(config))  # what is accepted can be written beside the results
        for key in ("tenants", "mix"):
            if (text := getattr(config, key)) is not None:
                shares(text, key)
        find("route", config.route)

    read_or_refused(read)


def check_calibration(folder: Path, content: bytes) -> None:
    (folder / "c.json").write_bytes(content)

    def read() -> None:
        cost = StepCost(load_calibration(folder / "c.json"), max_tokens=64, max_seqs=8, asynchronous=True)
        last = 0
        for context in (1, 2, 1000, 10**6):
            now = cost.step(3, 3 * context, context, [(5, context)])
            assert now >= last
            last = now

    read_or_refused(read)


def check_hardware(folder: Path, name: str, content: bytes) -> None:
    path = folder / f"{name}.toml"
    path.write_bytes(content)
    read_or_refused(lambda: load_model(path) if name == "model" else load_gpu(path))


def check_results(folder: Path, results: dict[str, bytes], name: str, content: bytes) -> None:
    for file, good in results.items():
        (folder / file).write_bytes(content if file == name else good)

    def read() -> None:
        result = read_run(folder)
        assert len(result.digest) == 64
        assert len(result.task_names) == len(result.tasks["task"])

    read_or_refused(read)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a small run by name."""
    folder = tmp_path_factory.mktemp("results")
    config = small(gpus=2)
    tasks = [Task(f"t{n}", (Call("a", 40 + n, 3),), ("x", "y")[n % 2], n) for n in range(5)]
    result = simulate(config, tasks, calibration=constant_calibration(1000))
    write_run(folder, result, summary(result))
    return {path.name: path.read_bytes() for path in folder.iterdir()}


RESULTS = ("config.toml", "summary.json", "tasks.parquet", "calls.parquet", "occupancy.parquet", "replicas.parquet")


def fuzzed(examples: int) -> settings:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("name", TRACES)
@fuzzed(QUICK)
@given(data=st.data())
def test_traces(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    check_trace(tmp_path_factory.mktemp("t"), name, damaged(data.draw, TRACES[name]))


@fuzzed(2 * QUICK)
@given(data=st.data())
def test_configurations(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_config_file(tmp_path_factory.mktemp("c"), damaged(data.draw, CONFIG))


@fuzzed(2 * QUICK)
@given(data=st.data())
def test_calibrations(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    check_calibration(tmp_path_factory.mktemp("c"), damaged(data.draw, CALIBRATION))


@fuzzed(QUICK)
@given(data=st.data(), name=st.sampled_from(["model", "gpu"]))
def test_models_and_gpus(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    check_hardware(tmp_path_factory.mktemp("h"), name, damaged(data.draw, HARDWARE[name]))


@fuzzed(2 * QUICK)
@given(data=st.data(), name=st.sampled_from(RESULTS))
def test_results(
    tmp_path_factory: pytest.TempPathFactory, results: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    damage = other_bytes if name.endswith(".parquet") else damaged
    check_results(tmp_path_factory.mktemp("r"), results, name, damage(data.draw, results[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACES)
@fuzzed(LONG)
@given(data=st.data())
def test_traces_for_long(tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject) -> None:
    check_trace(tmp_path_factory.mktemp("t"), name, damaged(data.draw, TRACES[name]))


@pytest.mark.slow
@fuzzed(LONG)
@given(data=st.data(), name=st.sampled_from(RESULTS))
def test_everything_else_for_long(
    tmp_path_factory: pytest.TempPathFactory, results: dict[str, bytes], name: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("e")
    check_config_file(folder, damaged(data.draw, CONFIG))
    check_calibration(folder, damaged(data.draw, CALIBRATION))
    damage = other_bytes if name.endswith(".parquet") else damaged
    check_results(folder, results, name, damage(data.draw, results[name]))
