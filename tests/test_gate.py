"""The command `gate`: what it prints, writes and exits with; its baseline file."""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import junitparser
import pytest

from sagasim.cli import main
from sagasim.config import resolve
from sagasim.gate.baseline import read_baseline
from sagasim.gate.cases import DEFAULT_SET, read_set
from sagasim.gate.command import gate_command
from sagasim.simulate import calibration_of
from tests.strategies import slowed

ROOT = Path(__file__).parents[1]
SET = """
seeds = 2
twins = 1
[cases.tau]
trace = "tau-bench"
tasks = 6
gpus = 8
calibration = "./cal.json"
[cases."old, 1"]
preset = "vllm-0.6"
workload = "webarena"
tasks = 4
gpus = 8
rate_per_min = 20
"""
CALIBRATION = calibration_of(resolve({"trace": "tau-bench"}))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside one with a set in it."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets" / "set.toml").write_text(SET)
    (tmp_path / "sets" / "cal.json").write_text(json.dumps(CALIBRATION))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def gate(capsys: pytest.CaptureFixture[str], *options: str, baseline: str = "sets/gate.json") -> tuple[int, str]:
    """Exit status, and what was printed: on stdout, or as the one line of a mistake."""
    jobs = [] if "--jobs" in options else ["--jobs", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["gate", "--baseline", baseline, *jobs, *options])
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.endswith(" runs")]
    assert (len(lines), out) == (1, "") if stop.value.code == 2 else lines == []
    return int(stop.value.code or 0), out or lines[0]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A baseline of the set."""
    path = tmp_path_factory.mktemp("first") / "gate.json"
    (path.parent / "set.toml").write_text(SET)
    (path.parent / "cal.json").write_text(json.dumps(CALIBRATION))
    options = {"baseline": str(path), "set_file": str(path.parent / "set.toml"), "update": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        args = argparse.Namespace(**options, jobs="1", junit=None, github=False)
        _, code = gate_command(args, lambda done, total: None)
    assert code == 0
    return path.read_bytes()


@pytest.fixture
def written(folder: Path, first: bytes) -> Path:
    """The baseline, beside its set."""
    Path("sets/gate.json").write_bytes(first)
    return Path("sets/gate.json")


def slow_down(factor: float) -> None:
    Path("sets/cal.json").write_text(json.dumps(slowed(CALIBRATION, factor)))


# ---- quiet, worse, better


@pytest.mark.usefixtures("written")
def test_what_is_unchanged_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = gate(capsys)
    assert code == 0
    assert out.splitlines() == [
        "unchanged: 4 runs have the digests of the baseline; 18 of 18 metrics are as in the baseline",
        "gate: no metrics worse than sets/gate.json allows",
    ]


@pytest.mark.usefixtures("written")
def test_what_is_worse_is_told_and_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    slow_down(2.0)
    code, out = gate(capsys)
    assert code == 1
    lines = out.splitlines()
    assert lines[0].split() == ["case", "metric", "baseline", "now", "change", "allowed", "verdict"]
    rows = [line for line in lines if line.startswith("tau ")]
    assert rows[0].endswith("worse")
    (tpot,) = (line for line in rows if "tpot_s.mean" in line)
    assert "+1" in tpot  # all times of a step are twice as long
    assert 95 < float(tpot.split("+")[1].split()[0]) < 105
    assert "2 of 4 runs have other digests" in out
    assert "old, 1" not in out
    assert "other than in the baseline: calibration ./cal.json, file cal.json" in out
    sizes = [abs(float(row.split("%")[0].split()[-1])) / float(row.split("%")[1]) for row in rows if "worse" in row]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.usefixtures("written")
def test_what_is_better_is_told_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    slow_down(0.5)
    code, out = gate(capsys)
    assert code == 0
    assert "better" in out.splitlines()[2]
    assert out.splitlines()[-1].startswith("gate: no metrics worse than sets/gate.json allows, ")
    assert out.splitlines()[-1].endswith(" better")


@pytest.mark.usefixtures("written")
def test_an_edited_tolerance_is_what_counts(capsys: pytest.CaptureFixture[str]) -> None:
    slow_down(2.0)
    content = json.loads(Path("sets/gate.json").read_text())
    for known in content["cases"]["tau"]["metrics"].values():
        known["tolerance"] = 9.0
    Path("sets/gate.json").write_text(json.dumps(content))
    code, out = gate(capsys)
    assert (code, "worse" in out.splitlines()[1]) == (0, False)
    content["settings"]["metrics"] = {"prefix_hit_rate": {"better": "higher"}}  # the others are left out
    Path("sets/gate.json").write_text(json.dumps(content))
    assert "2 of 2 metrics are as in the baseline" in gate(capsys)[1]


def test_policies_of_the_user_are_judged_in_processes_of_their_own(folder: Path) -> None:
    """The whole way: a policy in a file beside the baseline is rewritten, then made worse. From another folder."""
    before = (ROOT / "tests" / "gate" / "routing.py").read_text()
    rewritten = before.replace('"home"', '"was"').replace('"home-rewritten"', '"home"')
    worse = before.replace("away: float = 0.0", "away: float = 0.5")
    assert before not in (rewritten, worse)
    case = '[cases.a]\nroute = "./routing.py:home"\nworkload = "webarena"\ntasks = 8\ngpus = 16\nrate_per_min = 30\n'
    (folder / "sets" / "set.toml").write_text(f"seeds = [3, 5]\ntwins = 2\n{case}")

    def run(text: str, *options: str) -> tuple[int, str]:
        (folder / "sets" / "routing.py").write_text(text)
        command = [sys.executable, "-m", "sagasim", "gate", "--baseline", "sets/gate.json", "--jobs", "2", *options]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout

    assert run(before, "--update", "--from", "sets/set.toml")[0] == 0
    assert run(before)[1].startswith("unchanged")
    code, out = run(rewritten)
    assert (code, out.splitlines()[0][:9]) == (0, "unchanged")
    assert "other than in the baseline: file routing.py" in out
    code, out = run(worse)
    assert code == 1
    assert "prefix_hit_rate" in "".join(line for line in out.splitlines() if line.endswith("worse"))


# ---- the file


def test_the_same_bytes_however_many_at_a_time(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    first = written.read_bytes()
    code, out = gate(capsys, "--update", "--from", "sets/set.toml", "--jobs", "2")
    assert (code, out.splitlines()[-1]) == (0, "baseline in sets/gate.json")
    assert written.read_bytes() == first
    code, out = gate(capsys, "--update")  # of the cases that are in it
    assert (code, written.read_bytes()) == (0, first)
    assert out.startswith("unchanged: 4 runs")


def test_what_the_file_says(written: Path) -> None:
    content = json.loads(written.read_text())
    assert content["provenance"]["written"] == "2023-11-14"
    assert set(content["provenance"]["files"]) == {"cal.json"}
    assert set(content["provenance"]) >= {"sagasim", "python", "numpy", "calibrations", "tasks", "tolerances"}
    case = content["cases"]["tau"]
    assert case["config"] == {
        "trace": "tau-bench", "tasks": 6, "gpus": 8, "calibration": "./cal.json", "resample": True,
    }  # fmt: skip
    assert "resample" not in content["cases"]["old, 1"]["config"]
    for known in case["metrics"].values():
        assert known["mean"] == pytest.approx(sum(known["values"]) / 2)
    assert all("[" not in line or "]" in line for line in written.read_text().splitlines())  # one line for a list
    seen = read_baseline(written)
    assert seen.settings.metrics["prefix_hit_rate"].better == "higher"
    assert seen.cases["tau"].metrics["preemptions"].scale == 1.0  # there are none


def test_an_update_tells_what_moved_and_what_will_be_seen(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    slow_down(1.5)
    before = written.read_bytes()
    code, out = gate(capsys, "--update")
    assert code == 0
    assert "worse" in out.splitlines()[2]
    assert "fails beyond" in out
    assert written.read_bytes() != before
    assert gate(capsys)[0] == 0


def test_a_load_becomes_a_rate_that_stays(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagasim.work.capacity", lambda config, progress: 30.0)
    Path("sets/set.toml").write_text('seeds = 1\n[cases.a]\nworkload = "webarena"\ntasks = 3\ngpus = 8\nload = 0.5\n')
    gate(capsys, "--update", "--from", "sets/set.toml")
    assert read_baseline(Path("sets/gate.json")).cases["a"].config["rate_per_min"] == 15.0
    monkeypatch.setattr("sagasim.work.capacity", lambda config, progress: 99.0)
    assert gate(capsys)[1].startswith("unchanged")
    assert gate(capsys, "--update")[1].startswith("unchanged")


def test_the_default_set() -> None:
    found = read_set(DEFAULT_SET)
    assert {keys["preset"] for keys in found.cases.values()} == {"vllm-0.6", "vllm-0.15", "saga"}
    assert {"trace", "workload"} <= {key for keys in found.cases.values() for key in keys}
    for name in found.cases:
        found.config(name, 0)


def test_our_own_baseline_is_of_the_default_set() -> None:
    own = read_baseline(ROOT / "tests" / "gate" / "baseline.json")
    default = read_set(DEFAULT_SET)
    assert own.settings == default.settings
    assert {name: dict(case.config) for name, case in own.cases.items()} == default.cases


# ---- XML and annotations


@pytest.mark.usefixtures("written")
def test_junit(capsys: pytest.CaptureFixture[str]) -> None:
    slow_down(2.0)
    code, out = gate(capsys, "--junit", "gate.xml")
    assert code == 1
    found = junitparser.JUnitXml.fromfile("gate.xml")
    worse = sum(line.endswith("worse") for line in out.splitlines())
    assert (found.tests, found.failures, found.errors) == (18, worse, 0)
    suites = {suite.name: suite for suite in found}
    assert set(suites) == {"tau", "old, 1"}
    assert (suites["old, 1"].tests, suites["old, 1"].failures) == (9, 0)
    failed = [test for test in suites["tau"] if test.result]
    assert len(failed) == worse
    for test in failed:
        assert isinstance(test.result[0], junitparser.Failure)
        assert test.classname == "sagasim.gate.tau"
        assert test.result[0].type == "worse"
        assert test.name in test.result[0].message
    assert [path.name for path in Path().iterdir() if path.is_file()] == ["gate.xml"]


@pytest.mark.usefixtures("written")
def test_annotations(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "::" not in gate(capsys, "--github")[1]  # nothing to say
    slow_down(2.0)
    assert "::" not in gate(capsys)[1]
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    out = gate(capsys)[1]
    errors = [line for line in out.splitlines() if line.startswith("::error ")]
    assert len(errors) == sum(line.endswith("worse") for line in out.splitlines() if not line.startswith("::")) > 0
    for line in errors:
        assert line.startswith("::error file=sets/gate.json,title=sagasim gate%3A ")
        assert line.count("::") == 2
        assert "%25 is allowed" in line.split("::")[2]
        assert "% " not in line
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    assert gate(capsys, "--github")[1] == out


# ---- mistakes


def other(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content.update(changes)


def in_tau(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["cases"]["tau"].update(changes)


def in_metric(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["cases"]["tau"]["metrics"]["tct_s.mean"].update(changes)


def in_settings(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["settings"].update(changes)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (other(sagasim_gate=None), ["gate.json", "no baseline", "--update"]),
        (other(sagasim_gate=2), ["gate.json", "form 2", "expected form 1"]),
        (other(settings=3), ["gate.json", "no 'settings'"]),
        (other(provenance=None), ["gate.json", "no 'provenance'"]),
        (other(cases={}), ["gate.json", "no cases"]),
        (other(measured="0"), ["gate.json", "changed by hand", "--update"]),
        (in_tau(config={"trace": "weka"}), ["changed by hand"]),
        (in_tau(config={"trace": "weka", "seed": 3}), ["case 'tau'", "a seed of its own"]),
        (in_tau(config={"trace": math.nan}), ["gate.json", "a number that is none"]),
        (in_tau(config=[]), ["case 'tau'", "a list is no table"]),
        (in_tau(digests=["1"]), ["case 'tau'", "digests", "2 seeds"]),
        (in_tau(digests=["1", "2"]), ["changed by hand"]),
        (in_tau(work=[1, 2]), ["case 'tau'", "work"]),
        (in_tau(metrics=None), ["case 'tau'", "no 'metrics'"]),
        (in_metric(values=[1.0]), ["tct_s.mean", "one for each of 2 seeds"]),
        (in_metric(values=[1.0, "2"]), ["tct_s.mean", "values", "'2' does not fit"]),
        (in_metric(mean=1.0), ["tct_s.mean", "a mean of 1"]),
        (in_metric(tolerance=-0.1), ["tct_s.mean", "below 0"]),
        (in_metric(tolerance="much"), ["tct_s.mean", "tolerance", "'much' does not fit"]),
        (in_metric(tolerance=1e400), ["gate.json", "a number that is none"]),
        (in_metric(tolerance=10**4000), ["tolerance", "a number of 13288 bits does not fit"]),
        (in_settings(seeds=[0, 0]), ["settings", "2 seeds, 1 of them different"]),
        (in_settings(seeds=[0, 2]), ["changed by hand"]),
        (in_settings(seeds=[0]), ["case", "1 seeds"]),
        (in_settings(twins=0), ["settings, twins", "from 1 to 100"]),
        (in_settings(level=0.9), ["settings, level", "0.9 is out of range"]),
        (in_settings(levle=0.1), ["unknown key 'levle'", "'level' perhaps"]),
        (in_settings(metrics=[1]), ["metrics", "no table"]),
        (in_settings(metrics={"tct_s.mean": 1}), ["metric 'tct_s.mean'", "1 is no table"]),
        (in_settings(metrics={"tct_s.mean": {"betters": 1}}), ["unknown key 'betters'", "'better' perhaps"]),
        (in_settings(metrics={"tct_s.max": {}}), ["metric 'tct_s.max'", "better = 'lower' or 'higher'"]),
        (in_settings(metrics={"tct_s.mean": {"min_effect": -1}}), ["min_effect", "a number from 0 on"]),
    ],
)
def test_a_damaged_baseline(
    edit: Callable[[dict[str, Any]], None], words: list[str], capsys: pytest.CaptureFixture[str], written: Path
) -> None:
    content = json.loads(written.read_text())
    edit(content)
    written.write_text(json.dumps(content))
    code, line = gate(capsys)
    assert code == 2
    assert [word for word in words if word not in line] == [], line


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"\xff\xfe", b"{" * 100_000, b'{"sagasim_gate": 1', b"<testsuites/>", b'{"tct_s": 1}']
)
def test_what_is_no_baseline_is_never_overwritten(capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    Path("sets/gate.json").write_bytes(content)
    for options in ([], ["--update"], ["--update", "--from", "sets/set.toml"]):
        code, line = gate(capsys, *options)
        assert code == 2
        assert "sets/gate.json" in line
        assert Path("sets/gate.json").read_bytes() == content


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["sets/gate.json", "no such file", "--update"]),
        (["--from", "sets/set.toml"], ["--from", "without --update"]),
        (["--update", "--junit", "x.xml"], ["--junit"]),
        (["--update", "--from", "none.toml"], ["none.toml", "cannot be read"]),
        (["--update", "--from", "sets"], ["sets", "cannot be read"]),
        (["--update", "--jobs", "0"], ["--jobs", "0 is out of range"]),
        (["--update", "--jobs", "two"], ["--jobs", "'two' does not fit"]),
    ],
)
def test_a_wrong_option(options: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, line = gate(capsys, *options)
    assert (code, [word for word in words if word not in line]) == (2, []), line
    assert not Path("sets/gate.json").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seeds = ", ["set.toml", "not TOML"]),
        ("seeds = 2", ["set.toml", "no cases", "[cases.NAME]"]),
        ("cases = 3", ["set.toml", "no cases"]),
        ("[cases]\na = 3", ["case 'a'", "3 is no table"]),
        ('[cases.""]\ngpus = 8', ["case ''", "no name"]),
        ("[cases.a]\nseed = 3", ["case 'a'", "a seed of its own"]),
        ("[cases.a]\ngpus = 8", ["case 'a'", "no source of tasks"]),
        ("[cases.a]\ntraec = 'weka'", ["case 'a'", "unknown key 'traec'", "'trace' perhaps"]),
        ("[cases.a]\ntrace = 'none.jsonl'\ngpus = 8", ["case 'a'", "none.jsonl"]),
        ("[cases.a]\nworkload = 'chat'\norder = './none.py:x'\ngpus = 8\ntasks = 2", ["case 'a'", "none.py"]),
        ("seeds = 0x" + "f" * 5000 + "\n[cases.a]\ntrace = 'weka'", ["seeds", "a number of 20000 bits"]),
        ("seed = 3\n[cases.a]\ntrace = 'weka'", ["unknown key 'seed'", "'seeds' perhaps"]),
        (
            '[metrics."tct.mean"]\nbetter = "lower"\n[cases.a]\ntrace = "tau-bench"\ntasks = 2\ngpus = 8',
            ["case 'a'", "no number 'tct.mean'", "'tct_s.mean' perhaps"],
        ),
        (
            '[metrics."notes.tasks"]\nbetter = "lower"\n[cases.a]\ntrace = "tau-bench"\ntasks = 2\ngpus = 8',
            ["case 'a'", "no number 'notes.tasks'"],
        ),
    ],
)
def test_a_wrong_set(text: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("sets/set.toml").write_text(text)
    code, line = gate(capsys, "--update", "--from", "sets/set.toml")
    assert (code, [word for word in words if word not in line]) == (2, []), line
    assert not Path("sets/gate.json").exists()


def test_other_tasks_are_no_pair(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trace = (ROOT / "traces" / "taubench_airline_gpt4o.sessions.jsonl.gz").read_bytes()
    Path("sets/own.jsonl.gz").write_bytes(trace)
    text = SET.replace('"tau-bench"', '"./own.jsonl.gz"')
    Path("sets/set.toml").write_text(text)
    assert gate(capsys, "--update", "--from", "sets/set.toml")[0] == 0
    assert gate(capsys)[0] == 0
    other = (ROOT / "traces" / "swebench_mini_swe_gemini3.sessions.jsonl.gz").read_bytes()
    Path("sets/own.jsonl.gz").write_bytes(other)
    code, line = gate(capsys, "--junit", "gate.xml")
    assert code == 2
    assert [word for word in ("case 'tau'", "other tasks", "seed 0", "--update") if word not in line] == []
    assert not Path("gate.xml").exists()
    code, out = gate(capsys, "--update")
    assert code == 0
    assert "tau " not in out.split("fails beyond")[0]  # nothing of it can be compared


@pytest.mark.parametrize("place", ["sets", "nowhere/gate.xml"])
def test_a_place_that_cannot_be_written_is_told_first(
    place: str, capsys: pytest.CaptureFixture[str], written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagasim.gate.command.measure", None)  # is not come to
    code, line = gate(capsys, "--junit", place)
    assert (code, place in line) == (2, True)


def test_a_day_that_is_none(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    code, line = gate(capsys, "--update", "--from", "sets/set.toml")
    assert (code, "SOURCE_DATE_EPOCH" in line) == (2, True)
    assert not Path("sets/gate.json").exists()
