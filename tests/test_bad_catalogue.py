"""A catalogue of bad input, through the command line: exit 2 and one line that names what, where and what was expected.

Whatever the mistake, nothing is written: the folder holds afterwards what it held before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from bad_settings import BAD_CALIBRATIONS, BAD_COMMANDS, BAD_CONFIGS, BAD_OPTIONS, BAD_POLICIES
from bad_traces import BAD_TRACES, BAD_TURNS
from pyarrow import parquet
from reader_cases import TRACES
from strategies import config

from sagasim.cli import main
from sagasim.core import Call, Task
from sagasim.cost import constant_calibration
from sagasim.errors import SagasimError
from sagasim.metrics import summary
from sagasim.results import read_run, write_run
from sagasim.simulate import simulate


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder; what Python caches of a module is not anybody's result."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refused(capsys: pytest.CaptureFixture[str], argv: Sequence[str], words: Sequence[str]) -> None:
    """The command fails with one line that holds all the words, and leaves everything as it was."""
    before = contents(Path())
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.endswith(" s simulated")]
    assert (stop.value.code, out, len(lines)) == (2, "", 1), err
    assert lines[0].startswith("sagasim: ")
    assert lines[0].isprintable()
    assert len(lines[0]) < 1000
    assert [word for word in words if word not in lines[0]] == [], lines[0]
    assert contents(Path()) == before


RUN = ("--gpus", "8", "--no-figures", "--out", "new")


@pytest.mark.parametrize("case", BAD_TRACES)
def test_a_trace(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = BAD_TRACES[case]
    Path("bad").write_bytes(content)
    refused(capsys, ["run", "--trace", "./bad", *RUN], words)
    refused(capsys, ["trace", "validate", "bad"], words)
    refused(capsys, ["trace", "stats", "bad"], words)
    for to in ("native", "agentic_mooncake"):
        refused(capsys, ["trace", "convert", "bad", "--to", to, "--out", "copy.jsonl.gz"], words)


@pytest.mark.parametrize("case", BAD_TURNS)
def test_turns(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = BAD_TURNS[case]
    Path("requests").write_bytes(TRACES["requests"])
    Path("turns").write_bytes(content)
    refused(capsys, ["run", "--trace", "./requests", "--set", "turns=turns", *RUN], words)
    refused(capsys, ["trace", "validate", "requests", "--turns", "turns"], words)


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_configuration(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = BAD_CONFIGS[case]
    Path("bad.toml").write_bytes(content)
    source = [] if b"workload" in content or b"trace" in content else ["--trace", "tau-bench"]
    refused(capsys, ["run", "--config", "bad.toml", *source, "--no-figures", "--out", "new"], words)
    refused(
        capsys,
        ["compare", "--presets", "vllm-0.6", "--config", "bad.toml", *source, "--no-figures", "--out", "new"],
        words,
    )


def mine() -> None:
    """Something that is in the way, and a call of 10^8 tokens."""
    Path("mine").mkdir()
    Path("mine/file").write_text("precious")
    call = {"name": "a", "new_tokens": 10**8 - 1, "output_tokens": 1}
    Path("mine/huge").write_text(f'{{"sagasim_trace":1}}\n{json.dumps({"task": "t", "calls": [call]})}\n')


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_an_option(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    options, words = BAD_OPTIONS[case]
    mine()
    refused(capsys, ["run", "--trace", "tau-bench", "--tasks", "2", *RUN, *options], words)


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_a_command(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, words = BAD_COMMANDS[case]
    mine()
    refused(capsys, argv, words)


@pytest.mark.parametrize("case", BAD_CALIBRATIONS)
def test_a_calibration(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = BAD_CALIBRATIONS[case]
    Path("bad.json").write_bytes(content)
    argv = ["run", "--trace", "tau-bench", "--tasks", "2", *RUN, "--set", "calibration=bad.json"]
    refused(capsys, argv, ["bad.json", *words])


@pytest.mark.parametrize("case", BAD_POLICIES)
def test_a_policy(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    kind, content, words = BAD_POLICIES[case]
    Path(f"{case}.py").write_bytes(content)
    spec = f"./{case}.py:mine"
    refused(capsys, ["run", "--trace", "tau-bench", "--tasks", "2", *RUN, f"--{kind}", spec], words)


# ---- folders of results, which Python reads


def table(change: Callable[[pa.Table], pa.Table], name: str = "tasks") -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / f"{name}.parquet"
        parquet.write_table(change(parquet.read_table(path)), path)

    return damage


def column(name: str, values: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda old: old.set_column(old.column_names.index(name), name, values(old[name].to_pylist()))


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes())) and None


def endless(_: pa.Table) -> pa.Table:
    """Ten million equal rows, which take no room in a file."""
    return pa.table({name: np.zeros(10_000_000, dtype=np.int64) for name in ("replica", "num_blocks")})


BAD_RESULTS: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no table": (
        lambda folder: (folder / "calls.parquet").unlink(),
        ("calls.parquet", "cannot be read", "sagasim run"),
    ),
    "empty": (bytes_of("calls.parquet", lambda _: b""), ("calls.parquet", "cannot be read", "sagasim run")),
    "cut": (bytes_of("tasks.parquet", lambda old: old[:-20]), ("tasks.parquet", "cannot be read", "sagasim run")),
    "a CSV": (bytes_of("tasks.parquet", lambda _: b"task,tenant\n1,2\n"), ("tasks.parquet", "cannot be read")),
    "no column": (table(lambda old: old.drop_columns(["tenant"])), ("tasks.parquet", "lacks column 'tenant'")),
    "no names": (table(lambda old: old.drop_columns(["task_name"])), ("tasks.parquet", "lacks column 'task_name'")),
    "other columns": (
        table(lambda _: pa.table({"x": [1]}), "replicas"),
        ("replicas.parquet", "lacks column 'replica'"),
    ),
    "a column of texts": (
        table(column("arrival_ps", lambda old: pa.array(map(str, old)))),
        ("'arrival_ps' of string", "whole numbers"),
    ),
    "a column with gaps": (
        table(column("calls", lambda old: pa.array([None, *old[1:]], pa.int64()))),
        ("'calls' of int64 with 1 gaps", "whole numbers"),
    ),
    "names of numbers": (
        table(column("tenant_name", lambda old: pa.array(range(len(old))))),
        ("'tenant_name' of int64", "names, as sagasim run"),
    ),
    "endless tenants": (
        table(column("tenant", lambda old: pa.array([2**60 + n for n in range(len(old))]))),
        ("tasks.parquet", "numbers of tenants", "from 0"),
    ),
    "endless rows": (table(endless, "replicas"), ("replicas.parquet", "claims 10,000,000 rows", "in its size")),
    "no configuration": (lambda folder: (folder / "config.toml").unlink(), ("config.toml", "cannot be read")),
    "a configuration": (bytes_of("config.toml", lambda old: old + b"x = 1"), ("config.toml", "unknown key 'x'")),
    "no summary": (lambda folder: (folder / "summary.json").unlink(), ("summary.json", "cannot be read", "a file")),
    "a broken summary": (bytes_of("summary.json", lambda _: b"{"), ("summary.json", "not JSON", "a JSON document")),
    "a nested summary": (bytes_of("summary.json", lambda _: b"[" * 10**5), ("summary.json", "not JSON")),
    "a list": (bytes_of("summary.json", lambda _: b"[]"), ("summary.json", "no notes of texts", "sagasim run")),
    "other notes": (bytes_of("summary.json", lambda _: b'{"notes": {"a": 1}}'), ("summary.json", "no notes of texts")),
}


@pytest.mark.parametrize("case", BAD_RESULTS)
def test_results(case: str, here: Path) -> None:
    tasks = [Task(f"t{n}", (Call("a", 40 + n, 3),), ("x", "y")[n % 2], n) for n in range(4)]
    result = simulate(config(), tasks, calibration=constant_calibration(1000))
    write_run(here / "run", result, summary(result))
    assert read_run("run").digest == result.digest
    damage, words = BAD_RESULTS[case]
    damage(here / "run")
    with pytest.raises(SagasimError) as caught:
        read_run("run")
    line = str(caught.value)
    assert line.isprintable()
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize("name", ["none", "file", "x" * 300])
def test_results_that_are_no_folder(name: str, here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(SagasimError, match="no such folder; expected the --out of an earlier run"):
        read_run(name)
