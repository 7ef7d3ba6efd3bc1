"""Sweeps: what a file asks for, points under content hashes, and points that fail."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sweep_cases import GRID, MINE, SMALL, hashes, rows, stamps

from sagasim.config import resolve
from sagasim.cost import constant_calibration
from sagasim.errors import ConfigError, PolicyError
from sagasim.experiment import Variant, execute, variants
from sagasim.sweeping import runner
from sagasim.sweeping.points import Fingerprints, planned
from sagasim.sweeping.runner import Progress, run_sweep
from sagasim.sweeping.spec import expand
from sagasim.sweeping.store import Folder
from sagasim.sweeping.worker import attempt, measure
from sagasim.work import prepare


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what is asked for


@given(
    st.dictionaries(
        st.sampled_from(["gpus", "tp", "max_num_seqs", "seed"]), st.sets(st.integers(1, 99), min_size=1, max_size=4)
    ),
    st.lists(st.integers(1, 99), max_size=4),
    st.integers(1, 3),
)
def test_a_sweep_is_the_product_of_its_lists(grid: dict[str, set[int]], listed: list[int], seeds: int) -> None:
    spec: dict[str, Any] = {"trace": "weka", "grid": {key: sorted(values) for key, values in grid.items()}}
    spec["points"] = [{"evict_batch_blocks": value} for value in listed]
    if "seed" not in grid:
        spec["seeds"] = seeds
    found = [(*sorted(one.own.items()), seed) for one in expand(spec, "sweep") for seed in one.seeds]
    axes = [len(values) for values in grid.values()] + [max(1, len(listed)), 1 if "seed" in grid else seeds]
    assert len(found) == math.prod(axes)
    assert len(set(found)) == len(found) // max(1, len(listed)) * max(1, len(set(listed)))


def test_seeds_start_where_the_seed_says() -> None:
    assert [one.seeds for one in expand(SMALL | {"seed": 5, "seeds": 3}, "sweep")] == [(5, 6, 7)]
    assert [one.seeds for one in expand(SMALL | {"seeds": [4, 2]}, "sweep")] == [(4, 2)]
    assert [one.seeds for one in expand(SMALL | {"grid": {"seeds": [4, 2]}}, "sweep")] == [(4,), (2,)]


def test_what_a_point_says_takes_the_place_of_what_all_say() -> None:
    spec = SMALL | {"arrivals": "bursty", "load": 0.5, "points": [{"rate": 3.0}, {"load": 0.7}, {"trace": "weka"}]}
    first, second, third = expand(spec, "sweep")
    assert (first.base | first.own, second.base | second.own, third.base | third.own) == (
        {"workload": "tool-calling", "tasks": 3, "gpus": 4, "arrivals": "bursty", "rate_per_min": 3.0},
        {"workload": "tool-calling", "tasks": 3, "gpus": 4, "arrivals": "bursty", "load": 0.7},
        {"trace": "weka", "tasks": 3, "gpus": 4, "arrivals": "bursty", "load": 0.5},
    )


# ---- points


def test_points_are_the_runs_of_a_comparison(here: Path) -> None:
    run_sweep(GRID, here / "out")
    systems = [Variant(preset, {"preset": preset}) for preset in GRID["grid"]["preset"]]
    works, configs = variants([SMALL | {"rate_per_min": 60.0}], systems, 2)
    expected = {
        (name, config.seed): execute(prepare(works[config.seed]).under(config)).summary for name, config in configs
    }
    found = {(row["preset"], row["seed"]): row for row in rows(here / "out")}
    assert found.keys() == expected.keys()
    for key, summary in expected.items():
        assert found[key]["digest"] == summary["digest"]
        assert found[key]["tct_s.mean"] == summary["tct_s"]["mean"]
        stored = Folder(here / "out").result(found[key]["point"])
        assert stored is not None
        assert stored["summary"] == summary


def test_a_point_alone_is_a_run(here: Path) -> None:
    own = SMALL | {"rate_per_min": 60.0, "preset": "vllm-0.6", "max_num_seqs": 2, "seed": 7}
    run_sweep(own, here / "out")
    assert rows(here / "out")[0]["digest"] == execute(prepare(resolve(own))).summary["digest"]


def test_all_systems_meet_the_same_tasks_whatever_the_preset(here: Path) -> None:
    spec = {"trace": "tau-bench", "tasks": 4, "gpus": 8, "rate": 60, "seeds": 2}
    spec |= {"grid": {"preset": ["vllm-0.6", "saga"], "max_num_seqs": [4, 8]}}
    points, _ = planned(expand(spec, "sweep"))
    works = {point.config.seed: point.work for point in points}
    assert len(points) == 8
    assert all(point.work == works[point.config.seed] for point in points)
    assert all(point.config.resample for point in points)  # several seeds: the recording is drawn again


def test_a_hash_stands_for_the_content_of_a_declared_graph(here: Path) -> None:
    def at(file: str) -> str:
        (found,) = hashes(SMALL | {"predict": f"aeg:hints=declared,graph={file}"})
        return found

    (here / "one.json").write_text('{"kind": {"x": {"x": 1}}}')
    shutil.copy("one.json", "two.json")
    first = at("one.json")
    assert at("two.json") == first
    (here / "two.json").write_text('{"kind": {"x": {"x": 0.5, "": 0.5}}}')
    assert at("two.json") != first


def test_a_hash_stands_for_content_not_for_places(here: Path) -> None:
    (here / "a").mkdir()
    (here / "a" / "mine.py").write_text(MINE)
    (here / "a" / "slow.json").write_text(json.dumps(constant_calibration(1000)))
    (here / "a" / "t.jsonl").write_text(
        '{"sagasim_trace":1}\n{"task":"t","calls":[{"name":"a","new_tokens":50,"output_tokens":9}]}\n'
    )
    shutil.copytree("a", "b")

    def at(place: str, **changed: Any) -> str:
        named = {"order": f"./{place}/mine.py:shortest", "calibration": f"{place}/slow.json"}
        (found,) = hashes({"trace": f"{place}/t.jsonl", "gpus": 4} | named | changed)
        return found

    first = at("a")
    assert at("b") == first
    assert at("a", order="./a/mine.py:shortest:weight=2") != first
    for name in ("mine.py", "slow.json", "t.jsonl"):
        whole = (here / "b" / name).read_text()
        (here / "b" / name).write_text(whole.replace("1000", "1001") if name == "slow.json" else whole + "\n")
        assert at("b") != first, name
        (here / "b" / name).write_text(whole)
    assert at("b") == first


@pytest.mark.parametrize(
    ("key", "value"), [("gpus", 8), ("model", "llama-3.1-8b"), ("route", "least-loaded"), ("seed", 1), ("rate", 61)]
)
def test_a_hash_knows_every_key(key: str, value: Any) -> None:
    assert hashes(SMALL | {"rate": 60, "tp": 1, "model": "qwen3-32b"} | {key: value}) != hashes(
        SMALL | {"rate": 60, "tp": 1, "model": "qwen3-32b"}
    )


def test_a_hash_does_not_know_how_a_thing_was_said() -> None:
    said = hashes(SMALL | {"preset": "vllm-0.6", "seed": 0})
    assert hashes(SMALL | {"grid": {"preset": ["vllm-0.6"]}}) == said
    assert hashes(SMALL | {"points": [{"preset": "vllm-0.6", "label": "old"}], "route": "least-loaded"}) == said


def test_an_embedded_calibration_that_is_fitted_again_is_another_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(SMALL)
    monkeypatch.setattr("sagasim.sweeping.points.calibration_of", lambda config: constant_calibration(1000))
    assert hashes(SMALL) != before


def test_sources_of_another_version_are_another_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(SMALL)
    monkeypatch.setattr(Fingerprints, "_sagasim", lambda self: "other sources")
    assert hashes(SMALL) != before


def test_a_load_is_a_fraction_of_what_the_own_cluster_can_do() -> None:
    grid = {"gpus": [4, 8], "preset": ["vllm-0.6", "vllm-0.15"], "max_num_seqs": [8, 9]}
    spec = {"workload": "tool-calling", "tasks": 3, "load": 0.5, "grid": grid}
    prints = Fingerprints()
    points, _ = planned(expand(spec, "sweep"))
    by_gpus: dict[int, set[str]] = {}
    for point in points:
        by_gpus.setdefault(point.config.gpus, set()).add(prints.of_capacity(point.work))
    assert [len(found) for found in by_gpus.values()] == [1, 1]
    assert by_gpus[4] != by_gpus[8]


class Recorder:
    """Runs jobs in this process, one after the other, and remembers them."""

    def __init__(self, _: int) -> None:
        self.waiting: list[tuple[str, Any, tuple[Any, ...]]] = []

    jobs: ClassVar[list[str]] = []

    def has_room(self) -> bool:
        return not self.waiting

    def submit(self, key: str, function: Any, *arguments: Any) -> None:
        self.jobs.append(function.__name__)
        self.waiting.append((key, function, arguments))

    def finished(self, timeout_s: float) -> list[tuple[str, Any]]:
        done = [(key, attempt(function, *arguments)) for key, function, arguments in self.waiting]
        self.waiting.clear()
        return done

    def close(self) -> None:
        assert not self.waiting


def test_each_capacity_is_measured_once(here: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LocalEngine", Recorder)
    monkeypatch.setattr(Recorder, "jobs", [])
    spec = {"workload": "tool-calling", "tasks": 2, "model": "llama-3.1-8b", "tp": 1, "seeds": 2}
    spec |= {"grid": {"load": [0.25, 0.5], "gpus": [1, 2], "preset": ["vllm-0.6", "vllm-0.15"]}}
    run_sweep(spec, here / "out")
    assert sorted(Recorder.jobs) == ["measure"] * 16 + ["measure_capacity"] * 2
    rates = {(row["gpus"], row["load"]): row["rate_per_min"] for row in rows(here / "out")}
    assert len({row["rate_per_min"] for row in rows(here / "out")}) == len(rates) == 4
    for gpus in (1, 2):
        assert rates[gpus, 0.5] == pytest.approx(2 * rates[gpus, 0.25], rel=1e-8)
    own = {key: value for key, value in spec.items() if key not in ("seeds", "grid")}
    assert rates[2, 0.5] == prepare(resolve(own | {"gpus": 2, "load": 0.5})).config.rate_per_min
    run_sweep(spec | {"seeds": 3}, here / "out")
    assert sorted(Recorder.jobs) == ["measure"] * 24 + ["measure_capacity"] * 4


def test_no_capacity_is_no_point_of_that_load(here: Path, own_cache: Path) -> None:
    """Where a capacity cannot be measured its points fail, with that reason, and the others run."""
    (here / "mine.py").write_text(MINE)
    (here / "t.jsonl").write_text(
        '{"sagasim_trace":1}\n{"task":"t","calls":[{"name":"a","new_tokens":50,"output_tokens":9}]}\n'
    )
    points = [{"trace": "t.jsonl", "load": 0.5, "max_model_len": 20}, {"workload": "tool-calling", "tasks": 2}]
    swept = run_sweep({"gpus": 4, "points": points}, here / "out")
    assert (swept.done, len(swept.failed)) == (1, 1)
    assert "59 tokens where 20 fit" in swept.failed[0].reason


# ---- what fails


def test_points_that_fail_do_not_stop_the_others_and_run_again(here: Path) -> None:
    (here / "mine.py").write_text(MINE)
    orders = [f"./mine.py:{name}" for name in ("broken", "shortest", "dies", "leaves")]
    spec = SMALL | {"rate": 600, "seeds": 2, "grid": {"order": ["fcfs", *orders]}}
    swept = run_sweep(spec, here / "out", jobs=2)
    assert (swept.points, swept.done, swept.ran, len(swept.failed)) == (10, 4, 4, 6)
    assert {row["label"] for row in rows(here / "out")} == {"order=fcfs", "order=mine.py:shortest"}
    reasons = {one.label.partition(":")[2]: one.reason for one in swept.failed}
    assert reasons["broken"] == "ZeroDivisionError: division by zero (mine.py, line 13)"
    assert reasons["leaves"] == "SystemExit: gone (mine.py, line 18)"
    assert "was killed" in reasons["dies"]
    with open(here / "out" / "failed.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert [(one["point"], one["reason"]) for one in listed] == [(one.hash, one.reason) for one in swept.failed]
    before = stamps(here / "out")
    again = run_sweep(spec, here / "out", jobs=2)
    assert (again.ran, len(again.failed)) == (0, 6)
    assert stamps(here / "out") == before
    spec["grid"] = {"order": ["fcfs"]}
    assert run_sweep(spec, here / "out").failed == []
    assert not (here / "out" / "failed.csv").exists()


def test_a_worker_that_is_killed_once_costs_nothing(here: Path) -> None:
    """The policy kills its worker the first time only; what ran beside it runs again too, and is no failure."""
    once = MINE.replace("    os.kill", "    try: os.mkdir('once')\n    except FileExistsError: return 0\n    os.kill")
    (here / "mine.py").write_text(once)
    swept = run_sweep(SMALL | {"rate": 600, "seeds": 6, "order": "./mine.py:dies"}, here / "out", jobs=2)
    assert (here / "once").is_dir()
    assert (swept.done, swept.failed) == (6, [])


def test_combinations_that_make_no_sense_are_failures_but_wrong_values_are_mistakes(here: Path) -> None:
    free = {"workload": "tool-calling", "tasks": 3}
    spec = free | {"grid": {"gpus": [4, 8], "tp": [4, 8]}}
    swept = run_sweep(spec, here / "out")
    assert (swept.points, swept.done) == (4, 3)
    assert [(one.hash, one.label, one.reason.partition(";")[0]) for one in swept.failed] == [
        ("", "gpus=4 tp=8", "gpus: 4 is not divisible by tp = 8")
    ]
    with pytest.raises(ConfigError, match=r"sweep, gpus=9, tp=4: gpus: 9 is not divisible by tp = 4"):
        run_sweep(free | {"grid": {"gpus": [8, 9], "tp": [4, 8]}}, here / "new")
    with pytest.raises(ConfigError, match=r"sweep, point 2: gpus: 9 is not divisible"):
        run_sweep(SMALL | {"points": [{"gpus": 4}, {"gpus": 9}]}, here / "new")
    assert not (here / "new").exists()


def test_a_worker_refuses_other_files_than_the_sweep_began_with(here: Path) -> None:
    (here / "mine.py").write_text(MINE)
    (point,) = planned(expand(SMALL | {"order": "./mine.py:shortest"}, "sweep"))[0]
    assert attempt(measure, point, None).reason is None
    (here / "mine.py").write_text(MINE.replace("weight *", "-weight *"))

    def change(now: Progress) -> None:
        (here / "mine.py").write_text(MINE + "\n# edited meanwhile")

    swept = run_sweep(SMALL | {"order": "./mine.py:shortest"}, here / "out", progress=change)
    assert "are not what they were where the sweep began" in swept.failed[0].reason
    assert run_sweep(SMALL | {"order": "./mine.py:shortest"}, here / "out").failed == []


def test_a_policy_of_the_running_program_is_refused() -> None:
    from sagasim.seams import _REGISTRY, policy

    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def at_home(request, now_ps):\n    return 0\n", namespace)
    policy("order", "at-home")(namespace["at_home"])
    try:
        with pytest.raises(PolicyError, match=r"where no worker finds it; expected \./file\.py:name"):
            hashes(SMALL | {"order": "at-home"})
    finally:
        del _REGISTRY["order", "at-home"]
