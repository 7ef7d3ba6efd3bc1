"""Every mistake of a user is one line on stderr: what, where, what was expected. Exit 2, nothing written."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sagasim.cli import main
from sagasim.config import resolve
from sagasim.errors import ConfigError

RUN = ["run", "--trace", "tau-bench", "--tasks", "2", "--gpus", "8"]
TASK = {"task": "a", "calls": [{"name": "1", "new_tokens": 50, "output_tokens": 4}]}


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The one line that a command which must fail prints."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 2, err
    assert out == ""
    assert err.startswith("sagasim: ")
    assert err.count("\n") == 1, err
    assert err.endswith("\n")
    return err


def names_here() -> list[str]:
    return [path.name for path in Path().iterdir()]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "abc"], ["--gpus", "'abc'", "a whole number"]),
        (["--gpus", "0"], ["gpus", "0 is out of range"]),
        (["--gpus", "-8"], ["gpus", "-8 is out of range"]),
        (["--gpus", "9"], ["gpus", "9 is not divisible by tp = 4"]),
        (["--tp", "3"], ["tp", "1, 2, 4 or 8"]),
        (["--gpu", "h20"], ["h20", "'h200' perhaps"]),
        (["--model", "llama-3.1-70"], ["llama-3.1-70", "'llama-3.1-70b' perhaps"]),
        (["--preset", "vllm-0.5"], ["preset", "vllm-0.5", "vllm-0.15"]),
        (["--tasks", "0"], ["tasks", "0 is out of range"]),
        (["--tasks", "1e3"], ["--tasks", "'1e3'", "a whole number"]),
        (["--seed", "-1"], ["seed", "-1 is out of range"]),
        (["--load", "0"], ["load", "at most 2"]),
        (["--load", "2.5"], ["load", "2.5 is out of range", "at most 2"]),
        (["--load", "nan"], ["load", "nan is out of range"]),
        (["--rate", "inf"], ["rate_per_min", "inf is out of range"]),
        (["--rate", "-1"], ["rate_per_min", "above 0"]),
        (["--concurrency", "0"], ["concurrency", "0 is out of range"]),
        (["--over-length", "cut"], ["over_length", "drop, extend, truncate"]),
        (["--max-model-len", "200000"], ["max_model_len", "200000 is beyond", "--over-length extend"]),
        (["--max-model-len", "1"], ["max_model_len", "1 is out of range"]),
        (["--rate", "3", "--concurrency", "5"], ["--rate and --concurrency exclude each other"]),
        (["--rate", "3", "--load", "0.5"], ["--rate and --load exclude each other"]),
        (["--workload", "swe"], ["--trace and --workload exclude each other"]),
        (["--set", "max_num_seq=3"], ["max_num_seq=3", "'max_num_seqs' perhaps"]),
        (["--set", "max_num_seqs"], ["--set max_num_seqs", "key=value"]),
        (["--set", "max_num_seqs=many"], ["max_num_seqs=many", "a whole number"]),
        (["--set", "prefix_caching=yes"], ["prefix_caching=yes", "true or false"]),
        (["--set", "stop=never"], ["stop", "'never'", "eos, length"]),
        (["--set", "gpu_memory_utilization=1.5"], ["gpu_memory_utilization", "at most 1"]),
        (["--set", "max_num_seqs=9000"], ["max_num_batched_tokens", "8192 is below max_num_seqs = 9000"]),
        (["--set", "arrivals=poisson"], ["arrivals", "rate_per_min or load"]),
        (["--set", "arrivals=at-once", "--rate", "3"], ["arrivals", "rate_per_min does not go with at-once"]),
        (["--set", "calibration="], ["calibration", "empty"]),
        (["--route", "prefix-afinity"], ["prefix-afinity", "'prefix-affinity' perhaps"]),
        (["--route", "prefix-affinity:treshold=1"], ["treshold=1", "'threshold' perhaps"]),
        (["--order", "./nowhere.py:mine"], ["nowhere.py", "no such file"]),
        (["--config", "nowhere.toml"], ["nowhere.toml", "cannot be read"]),
        (["--trace", "wekka"], ["wekka", "'weka' perhaps"]),
        (["--trace", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["--taks", "3"], ["unknown option '--taks'", "'--tasks' perhaps"]),
        (["stray"], ["unexpected 'stray'"]),
        (["--gpus"], ["--gpus", "expected one argument"]),
    ],
)
def test_a_wrong_option(
    options: list[str], words: list[str], capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    line = fails(capsys, *RUN, *options, "--out", "new/results", "--no-figures")
    assert [word for word in words if word not in line] == [], line
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["COMMAND"]),
        (["rnu"], ["rnu", "'run' perhaps"]),
        (["run", "--out", "x"], ["no source of tasks", "--trace FILE|NAME"]),
        (RUN, ["--out", "no folder"]),
        ([*RUN, "--out", ""], ["--out", "no folder"]),
        (["run", "--workload", "nonsense", "--out", "x"], ["nonsense", "one of"]),
        (["compare", "--trace", "weka", "--out", "x"], ["--presets"]),
        (["compare", "--presets", "vllm-0.6,vllm-0.7", "--trace", "weka", "--out", "x"], ["vllm-0.7", "perhaps"]),
        (["compare", "--presets", "vllm-0.6,vllm-0.6", "--trace", "weka", "--out", "x"], ["each name once"]),
        (["compare", "--presets", "vllm-0.6", "--seeds", "0", "--trace", "weka", "--out", "x"], ["--seeds"]),
        (["compare", "--presets", "vllm-0.6", "--seeds", "x", "--trace", "weka", "--out", "x"], ["--seeds", "'x'"]),
        (["trace"], ["COMMAND"]),
        (["trace", "stat", "weka"], ["stat", "'stats' perhaps"]),
        (["trace", "validate", "nowhere.jsonl"], ["nowhere.jsonl"]),
        (["trace", "convert", "weka"], ["--out"]),
        (["check"], ["SPEC"]),
        (["check", "no-such-policy"], ["no-such-policy"]),
        (["gpus", "--all"], ["unknown option '--all'"]),
    ],
)
def test_a_wrong_command(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    line = fails(capsys, *argv)
    assert [word for word in words if word not in line] == [], line
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gpus = ", ["not TOML", "bad.toml"]),
        ("gpu = 7", ["key 'gpu'", "7 does not fit", "text"]),
        ("gpus = true", ["key 'gpus'", "True does not fit", "a whole number"]),
        ("gpus = 8.0", ["key 'gpus'", "a whole number"]),
        ("gpuz = 8", ["gpuz", "perhaps"]),
        ("[cluster]\ngpus = 8", ["cluster", "unknown key"]),
        ("reference = 1", ["key 'reference'", "true or false"]),
        ("load = '0.8'", ["key 'load'", "a number"]),
    ],
)
def test_a_wrong_configuration_file(text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_text(text)
    line = fails(capsys, "run", "--config", "bad.toml", "--out", "new")
    assert [word for word in words if word not in line] == [], line
    assert names_here() == ["bad.toml"]


def test_a_configuration_file_that_is_not_text(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.toml").write_bytes(b"\xff\xfe\x00")
    assert "not TOML" in fails(capsys, "run", "--config", "bad.toml", "--out", "new")


def test_an_existing_folder_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("here").mkdir()
    Path("here/mine.txt").write_text("precious")
    started = time.process_time()
    assert "exists already" in fails(capsys, *RUN, "--out", "here")
    assert time.process_time() - started < 5
    assert Path("here/mine.txt").read_text() == "precious"
    assert names_here() == ["here"]


def test_a_dangling_link_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    Path("here").symlink_to("nowhere")
    assert "exists already" in fails(capsys, *RUN, "--out", "here")


def test_a_file_in_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("")
    assert "cannot be made" in fails(capsys, *RUN, "--out", "file/results")
    assert names_here() == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    assert "cannot be made" in fails(capsys, *RUN, "--out", "locked/results")


HEADER = {"sagasim_trace": 1}


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["not json"],
        ["[]"],
        ['{"a": 1}'],
        [json.dumps(HEADER)],
        [json.dumps(HEADER), "{}"],
        [json.dumps(HEADER), json.dumps({**TASK, "calls": []})],
        [json.dumps(HEADER), json.dumps({**TASK, "arrival_s": -1})],
        [json.dumps(HEADER), json.dumps({**TASK, "arrival_s": "NaN"})],
        [json.dumps(HEADER), json.dumps(TASK), json.dumps(TASK)],
        [json.dumps(HEADER), json.dumps(TASK)[:-5]],
    ],
    ids=range(11),
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_trace(lines: list[str], packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    data = "".join(line + "\n" for line in lines).encode()
    name = "bad.jsonl.gz" if packed else "bad.jsonl"
    Path(name).write_bytes(gzip.compress(data) if packed else data)
    line = fails(capsys, "run", "--trace", name, "--gpus", "8", "--out", "new", "--no-figures")
    assert name in line or "bad" in line
    assert names_here() == [name]


def test_a_cut_gzip_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(HEADER).encode() * 100)[:40])
    assert "cut.jsonl.gz" in fails(capsys, "run", "--trace", "cut.jsonl.gz", "--out", "new")


def test_python_meets_the_same_errors() -> None:
    with pytest.raises(ConfigError, match="no source of tasks"):
        resolve({})
    with pytest.raises(ConfigError, match="unknown key 'gpuz'"):
        resolve({"gpuz": 1})
    with pytest.raises(ConfigError, match="'8' does not fit"):
        resolve({"trace": "weka", "gpus": "8"})


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(number: int, code: int, empty_folder: Path) -> None:
    command = [sys.executable, "-m", "sagasim", "run", "--trace", "weka", "--over-length", "extend", "--reference"]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [*command, "--out", "results"],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 20
    while not list(empty_folder.iterdir()) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert list(empty_folder.iterdir()) == []
