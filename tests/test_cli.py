"""The commands from outside: what they print and write, and that the same input gives the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sagasim import capacity
from sagasim.cli import main
from sagasim.comparison import METRICS, comparison
from sagasim.config import resolve
from sagasim.errors import ResultsError
from sagasim.eventlog import CALLS, TASKS
from sagasim.figures import Painter, draw
from sagasim.hardware import data_dir
from sagasim.metrics import figure_entry, summary
from sagasim.report import comparison_report, number, run_report
from sagasim.results import read_run, staging
from sagasim.simulate import Result, calibration_of
from sagasim.work import prepare
from tests.strategies import slowed

SMALL = ["--trace", "tau-bench", "--tasks", "4", "--gpus", "8", "--no-figures"]
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sagasim(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What a command that must succeed prints on stdout."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == 0, err
    assert [line for line in err.splitlines() if not line.endswith(" s simulated")] == []  # progress at most
    return out


def read_json(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_run_writes_a_whole_folder(capsys: pytest.CaptureFixture[str]) -> None:
    out = sagasim(capsys, "run", *SMALL, "--out", "deep/er/results")
    names = {path.name for path in Path("deep/er/results").iterdir()}
    tables = {f"{name}.parquet" for name in ("tasks", "calls", "occupancy", "replicas", "transfers")}
    assert names == {"config.toml", "summary.json", "timing.json", *tables}
    assert [path.name for path in Path("deep/er").iterdir()] == ["results"]
    found = read_json("deep/er/results/summary.json")
    assert found["tasks"] == 4
    assert found["digest"] in out
    assert "filled tool_s" in out
    timing = read_json("deep/er/results/timing.json")
    assert {"start_up_s", "reading_s", "simulating_s", "writing_s", "calls_per_s", "steps", "events"} <= set(timing)
    assert set(timing["versions"]) == {"python", "numpy", "pyarrow", "sagasim", "engine"}


def test_config_toml_reproduces_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    sagasim(capsys, "run", *SMALL, "--rate", "7", "--seed", "3", "--set", "max_num_seqs=2", "--out", "a")
    sagasim(capsys, "run", "--config", "a/config.toml", "--no-figures", "--out", "b")
    for name in ("config.toml", "summary.json", "calls.parquet", "tasks.parquet", "occupancy.parquet"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes(), name


def test_an_extended_run_is_reproduced_with_its_notes(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--model", "llama-3-70b", "--gpu", "h200", "--over-length", "extend", "--set", "calibration=cal.json"]
    embedded = json.loads((data_dir() / "calibration/h200-llama-3.1-70b-tp4-bf16.json").read_text())
    Path("cal.json").write_text(json.dumps({**embedded, "model": "llama-3-70b"}))
    out = sagasim(capsys, "run", *SMALL, "--tasks", "12", *options, "--out", "a")
    assert "longer than 8,192 tokens" in out
    sagasim(capsys, "run", "--config", "a/config.toml", "--no-figures", "--out", "b")
    assert Path("a/summary.json").read_bytes() == Path("b/summary.json").read_bytes()


def test_compare_takes_a_configuration_without_its_policies(capsys: pytest.CaptureFixture[str]) -> None:
    sagasim(capsys, "run", *SMALL, "--preset", "vllm-0.6", "--seed", "5", "--out", "a")
    options = ["--config", "a/config.toml", "--no-figures", "--no-slo", "--seeds", "1", "--order", "fcfs"]
    sagasim(capsys, "compare", "--presets", "vllm-0.6,vllm-0.15", *options, "--out", "c")
    assert 'route = "prefix-affinity"' in Path("c/vllm-0.15-seed5/config.toml").read_text()
    assert read_json("c/vllm-0.6-seed5/summary.json") == read_json("a/summary.json")


def test_a_file_is_found_again_from_another_folder(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sagasim(capsys, "trace", "convert", "tau-bench", "--out", "mine.jsonl")
    sagasim(capsys, "run", "--trace", "mine.jsonl", "--tasks", "2", "--gpus", "8", "--no-figures", "--out", "a")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    sagasim(capsys, "run", "--config", "../a/config.toml", "--no-figures", "--out", "b")
    assert read_json("../a/summary.json") == read_json("b/summary.json")


def test_parquet_is_for_everyone(capsys: pytest.CaptureFixture[str]) -> None:
    sagasim(capsys, "run", *SMALL, "--out", "a")
    calls, tasks = pd.read_parquet("a/calls.parquet"), pd.read_parquet("a/tasks.parquet")
    assert list(calls.columns) == [*CALLS, "task_name", "tenant_name"]
    assert list(tasks.columns) == [*TASKS, "task_name", "tenant_name"]
    assert {str(kind) for kind in calls.dtypes} == {"int64", "category"}
    assert list(tasks["task_name"]) == list(calls.groupby("task")["task_name"].first())


def test_an_old_run_can_be_measured_again(capsys: pytest.CaptureFixture[str]) -> None:
    sagasim(capsys, "run", *SMALL, "--out", "a")
    again = read_run("a")
    assert summary(again) == read_json("a/summary.json")
    with pytest.raises(ResultsError, match="no such folder"):
        read_run("b")
    Path("a/calls.parquet").write_bytes(b"PAR1")
    with pytest.raises(ResultsError, match=r"calls\.parquet"):
        read_run("a")


def test_reference_gives_the_same_digest(capsys: pytest.CaptureFixture[str]) -> None:
    sagasim(capsys, "run", *SMALL, "--out", "fast")
    sagasim(capsys, "run", *SMALL, "--reference", "--out", "slow")
    assert read_json("fast/summary.json")["digest"] == read_json("slow/summary.json")["digest"]


def test_compare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "CAPACITY_TASKS", 20)
    out = sagasim(capsys, "compare", "--presets", "vllm-0.6,vllm-0.15", "--seeds", "2", *SMALL, "--out", "c")
    runs = {f"{preset}-seed{seed}" for preset in ("vllm-0.6", "vllm-0.15") for seed in (0, 1)}
    assert {path.name for path in Path("c").iterdir()} == {*runs, "comparison.json"}
    found = read_json("c/comparison.json")
    assert found["presets"] == ["vllm-0.6", "vllm-0.15"]
    assert found["seeds"] == [0, 1]
    (row,) = [row for row in found["metrics"] if row["metric"] == "tct_s.mean"]
    means = [read_json(f"c/{preset}-seed1/summary.json")["tct_s"]["mean"] for preset in ("vllm-0.6", "vllm-0.15")]
    assert [row["by_preset"][preset]["values"][1] for preset in ("vllm-0.6", "vllm-0.15")] == means
    assert "95 % interval" in out
    for which in ("idle", "expected"):
        for curve in found["slo"][which]["by_preset"].values():
            shares = [point["mean"] for point in curve]
            assert shares == sorted(shares)
            assert f"tasks within m times their {'time alone' if which == 'idle' else 'expected'}" in out


def test_compare_variants_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    """The same preset under another name differs in nothing; a planted slowdown of 3 % is found."""
    slower = slowed(calibration_of(resolve({"trace": "tau-bench", "gpus": 8})), 1.03)
    Path("slow.json").write_text(json.dumps(slower))
    systems = ["--variant", "same=vllm-0.15", "--variant", "slow=vllm-0.15 calibration=slow.json"]
    options = ["--workload", "swe-bench", "--tasks", "8", "--gpus", "8", "--rate", "20", "--no-figures", "--no-slo"]
    out = sagasim(capsys, "compare", "--presets", "vllm-0.15", *systems, *options, "--out", "c")
    row = read_json("c/comparison.json")["metrics"][0]["by_preset"]
    assert row["same"]["difference"]["p"] == 1
    assert row["same"]["values"] == row["vllm-0.15"]["values"]
    assert 1.015 < row["slow"]["difference"]["ratio"] < 1.03
    assert row["slow"]["difference"]["significant"] is True
    assert "*" in out


def test_load_is_the_same_rate_for_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "CAPACITY_TASKS", 20)
    options = ["--workload", "swe-bench", "--tasks", "3", "--gpus", "4", "--load", "0.5", "--no-figures"]
    sagasim(capsys, "compare", "--presets", "vllm-0.6,vllm-0.15", "--seeds", "2", "--no-slo", *options, "--out", "c")
    configs = [path.read_text() for path in Path("c").glob("*/config.toml")]
    rates = {line for text in configs for line in text.splitlines() if line.startswith("rate_per_min")}
    assert len(configs) == 4
    assert len(rates) == 1
    name = "vllm-0.6-seed1"
    monkeypatch.setattr(capacity, "simulate", None)  # config.toml needs no second measurement
    sagasim(capsys, "run", "--config", f"c/{name}/config.toml", "--no-figures", "--out", "d")
    assert read_json(f"c/{name}/summary.json") == read_json("d/summary.json")


def test_capacity_is_remembered(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> None:
    monkeypatch.setattr(capacity, "CAPACITY_TASKS", 10)
    config = resolve({"workload": "swe-bench", "tasks": 2, "gpus": 4, "load": 0.5})
    rate = prepare(config).config.rate_per_min
    (entry,) = (own_cache / "sagasim").iterdir()
    monkeypatch.setattr(capacity, "simulate", None)
    assert prepare(config).config.rate_per_min == rate
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache))
    monkeypatch.setattr(capacity, "CAPACITY_TASKS", 10)
    for broken in ("", "{}", '{"tasks_per_min": "many"}', '{"tasks_per_min": -1.0}', '{"tasks_per_min": NaN}', "[]"):
        entry.write_text(broken)
        assert prepare(config).config.rate_per_min == rate


def test_a_cache_that_cannot_be_written_is_no_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(capacity, "CAPACITY_TASKS", 10)
    config = resolve({"workload": "swe-bench", "tasks": 2, "gpus": 4, "load": 0.5})
    assert (prepare(config).config.rate_per_min or 0) > 0


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    listed = sagasim(capsys, "policies")
    assert "threshold=0.3" in listed
    assert max(map(len, listed.splitlines())) <= 160
    assert "h200" in sagasim(capsys, "gpus")
    assert "llama-3.1-70b" in sagasim(capsys, "models")
    assert "136 tasks" in sagasim(capsys, "trace", "validate", "tau-bench")
    assert "prompt_tokens" in sagasim(capsys, "trace", "stats", "tau-bench")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert sagasim(capsys, "--version") == "sagasim 0.1.0\n"
    for command in ("run", "compare", "trace", "check"):
        text = sagasim(capsys, command, "--help")
        assert max(map(len, text.splitlines())) <= 120


def test_a_reader_that_leaves_early(empty_folder: Path) -> None:
    command = f"{sys.executable} -m sagasim policies | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command], env=ENVIRONMENT, cwd=empty_folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_the_figure_is_drawn_by_another_process(capsys: pytest.CaptureFixture[str]) -> None:
    sagasim(capsys, "run", *SMALL[:-1], "--out", "a")
    assert Path("a/figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_fails_loses_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, empty_folder: Path
) -> None:
    (empty_folder / "broken").mkdir()
    (empty_folder / "broken/matplotlib.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setenv("PYTHONPATH", str(empty_folder / "broken"))
    with pytest.raises(SystemExit) as stop:
        main(["run", *SMALL[:-1], "--out", "a"])
    assert stop.value.code == 0
    assert "warning: no figure: ImportError: broken on purpose" in capsys.readouterr().err
    assert Path("a/summary.json").exists()
    assert not Path("a/figure.png").exists()


def test_a_painter_that_is_not_needed_ends() -> None:
    with Painter() as painter:
        process = painter._process
        assert process is not None
    assert process.poll() is not None


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::PendingDeprecationWarning")  # matplotlib's own
def test_figures_of_nothing_and_of_much(two_tasks: Result, tmp_path: Path) -> None:
    entry = figure_entry("x", two_tasks, summary(two_tasks))
    empty = {**entry, "label": "nothing", "tct_s": [], "ttft_s": []}
    many = [{**entry, "label": f"a rather long name of a preset, number {i}"} for i in range(9)]
    for number_of, entries in enumerate(([], [empty], [entry, entry, empty], many)):
        draw(tmp_path / f"{number_of}.png", "title", entries)
        assert (tmp_path / f"{number_of}.png").stat().st_size > 5_000


def test_report_of_a_run_by_hand(two_tasks: Result) -> None:
    text = run_report(two_tasks.config, summary(two_tasks))
    assert "acme" in text
    assert "16.0 %" in text
    assert "calibration: derived" in text


def test_numbers_for_reading() -> None:
    shown = [number(value) for value in (None, 0, 3, 1234567, 0.000123456, 12.3456, 123456.7, -5.0)]
    assert shown == ["-", "0", "3", "1,234,567", "0.0001235", "12.35", "123,457", "-5"]


def test_rows_of_a_comparison_by_hand(two_tasks: Result) -> None:
    one = summary(two_tasks)

    def with_mean(mean: float | None) -> dict[str, Any]:
        return {**one, "tct_s": {**one["tct_s"], "mean": mean}}

    rows = comparison({"a": [with_mean(m) for m in (10, 20, 30)], "b": [with_mean(m) for m in (9, 17, 28)]})
    assert [row["metric"] for row in rows] == [path for path, _, _ in METRICS]
    cell = rows[0]["by_preset"]["b"]
    assert (cell["mean"], cell["difference"]["mean"], cell["difference"]["relative"]) == (18, -2, -0.1)
    assert cell["difference"]["p"] == pytest.approx(min(1, cell["difference"]["p_paired"] * len(METRICS)))
    assert cell["difference"]["significant"] is False
    assert rows[1]["by_preset"]["b"]["difference"]["p"] == 1  # the same for both
    assert "difference" not in rows[0]["by_preset"]["a"]
    missing = comparison({"a": [with_mean(None)], "b": [with_mean(3)]})[0]["by_preset"]
    assert missing["a"]["mean"] is None
    assert missing["b"]["difference"]["mean"] is None


def test_comparison_of_one_preset_has_no_differences(two_tasks: Result) -> None:
    content = {
        "work": "w",
        "window": "all",
        "resampled": False,
        "presets": ["a"],
        "seeds": [0],
        "metrics": comparison({"a": [summary(two_tasks)]}),
        "slo": {},
        "notes": {},
    }
    assert "difference" not in comparison_report(content)


def test_staging_renames_at_the_end(tmp_path: Path) -> None:
    with staging(tmp_path / "a/b/out") as folder:
        assert folder.parent == tmp_path / "a/b"
        assert not (tmp_path / "a/b/out").exists()
        (folder / "x").write_text("")
    assert [path.name for path in (tmp_path / "a/b").iterdir()] == ["out"]


def test_staging_cleans_up(tmp_path: Path) -> None:
    def fail() -> None:
        with staging(tmp_path / "a/b/out") as folder:
            (folder / "x").write_text("")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="appeared meanwhile"), staging(tmp_path / "out"):
        (tmp_path / "out").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.bench
def test_a_whole_process_is_fast(empty_folder: Path) -> None:
    """12,517 calls, figure included."""
    seconds = []
    for turn in range(5):
        command = [sys.executable, "-m", "sagasim", "run", "--trace", "swe-bench-mini", "--out", f"{turn}"]
        started = time.perf_counter()
        subprocess.run(command, env=ENVIRONMENT, cwd=empty_folder, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    print(f"\nsagasim run, 12,517 calls: {min(seconds):.2f} s at best of {len(seconds)}")
    assert min(seconds) < 4
