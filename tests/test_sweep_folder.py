"""The folder of a sweep: taken up again, grown, damaged, locked and merged; and its table."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from sweep_cases import GRID, MINE, SMALL, rows, stamps

from sagasim.errors import ResultsError
from sagasim.sweeping.points import Point, planned
from sagasim.sweeping.runner import Progress, merge_sweeps, run_sweep
from sagasim.sweeping.spec import expand, read_spec
from sagasim.sweeping.store import Folder, locked
from sagasim.sweeping.table import content_digest, read_results


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- the folder


def test_what_is_there_is_not_run_again_and_a_sweep_can_grow(here: Path) -> None:
    first = run_sweep(GRID, here / "out")
    before = stamps(here / "out")
    again = run_sweep(GRID, here / "out")
    assert (first.ran, again.ran, again.digest) == (4, 0, first.digest)
    larger = {key: value for key, value in GRID.items() if key != "gpus"}
    larger |= {"seeds": 3, "grid": {"preset": ["vllm-0.6", "vllm-0.15"], "gpus": [4, 8]}}
    grown = run_sweep(larger, here / "out")
    assert (grown.points, grown.ran) == (12, 8)
    assert {name: stamp for name, stamp in stamps(here / "out").items() if name in before} == before
    assert run_sweep(larger, here / "fresh").digest == grown.digest != first.digest
    assert run_sweep(GRID, here / "out").digest == first.digest  # the table is that of the sweep at hand


def damage_by_cutting(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def damage_by_a_flipped_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_by_emptying(path: Path) -> None:
    path.write_bytes(b"")


def damage_by_another_point(path: Path) -> None:
    path.write_bytes(next(other for other in path.parent.iterdir() if other != path).read_bytes())


def damage_by_something_else(path: Path) -> None:
    path.write_text('{"summary": {"tct_s": {"mean": 0.1}}}')


@pytest.mark.parametrize(
    "damage",
    [
        damage_by_cutting,
        damage_by_a_flipped_bit,
        damage_by_emptying,
        damage_by_another_point,
        damage_by_something_else,
    ],
)
def test_a_torn_or_foreign_file_is_done_again(damage: Callable[[Path], None], here: Path) -> None:
    before = run_sweep(GRID, here / "out")
    victim = sorted((here / "out" / "points").iterdir())[1]
    damage(victim)
    (here / "out" / "points" / "tmp1.partial").write_text("half")
    after = run_sweep(GRID, here / "out")
    assert (after.ran, after.digest) == (1, before.digest)
    assert not list((here / "out").rglob("*.partial"))


def test_two_sweeps_do_not_share_a_folder(here: Path) -> None:
    with locked(here / "out"), pytest.raises(ResultsError, match=r"process \d+ sweeps in it; expected to wait"):
        run_sweep(GRID, here / "out")
    assert run_sweep(GRID, here / "out").done == 4


def test_a_folder_of_something_else_is_left_alone(here: Path) -> None:
    (here / "mine").mkdir()
    (here / "mine" / "file").write_text("precious")
    with pytest.raises(ResultsError, match="holds something else; expected a new folder"):
        run_sweep(GRID, here / "mine")
    assert [path.name for path in (here / "mine").iterdir()] == ["file"]


def test_sweep_toml_is_the_same_sweep(here: Path) -> None:
    spec = SMALL | {"load": None, "rate": 60, "points": [{"preset": "vllm-0.6", "label": "old"}, {"tasks": 2}]}
    swept = run_sweep(spec | {"seeds": 2}, here / "out")
    assert read_results(here / "out")["label"].to_pylist() == ["tasks=2", "tasks=2", "old", "old"]
    again = run_sweep(here / "out" / "sweep.toml", here / "out")
    assert (again.ran, again.digest) == (0, swept.digest)
    content = tomllib.loads((here / "out" / "sweep.toml").read_text())
    assert {point["point"] for point in content["points"]} == {row["point"] for row in rows(here / "out")}


def test_folders_merge_to_what_one_sweep_had_been(here: Path) -> None:
    whole = run_sweep(GRID | {"seeds": 4}, here / "whole")
    run_sweep(GRID | {"seeds": [0, 1]}, here / "a")
    run_sweep(GRID | {"seeds": [1, 2, 3], "preset": "vllm-0.6", "grid": {}}, here / "b")
    run_sweep(GRID | {"seeds": [2, 3], "preset": "vllm-0.15", "grid": {}}, here / "c")
    merged = merge_sweeps([here / "a", here / "b", here / "c"], here / "all")
    assert (merged.points, merged.done, merged.ran, merged.digest) == (8, 8, 8, whole.digest)
    assert run_sweep(GRID | {"seeds": 4}, here / "all").ran == 0
    into = merge_sweeps([here / "b", here / "c"], here / "a")  # into one that is there
    assert (into.ran, into.digest) == (4, whole.digest)


def test_a_torn_point_is_not_merged(here: Path) -> None:
    run_sweep(GRID, here / "a")
    damage_by_cutting(sorted((here / "a" / "points").iterdir())[0])
    merged = merge_sweeps([here / "a"], here / "b")
    assert (merged.points, merged.done) == (4, 3)
    assert run_sweep(GRID, here / "b").ran == 1


def test_two_results_of_one_point_do_not_merge(here: Path) -> None:
    run_sweep(GRID, here / "a")
    shutil.copytree("a", "b")
    folder = Folder(here / "b")
    name = sorted((here / "b" / "points").iterdir())[0].stem
    stored = folder.result(name)
    assert stored is not None
    stored["summary"]["notes"] = {"tasks": "under another name"}  # which is no other result
    folder.store(name, {"config": stored["config"], "summary": stored["summary"]})
    assert merge_sweeps([here / "a", here / "b"], here / "same").done == 4
    stored["summary"]["calls"] += 1
    folder.store(name, {"config": stored["config"], "summary": stored["summary"]})
    with pytest.raises(ResultsError, match=f"point {name} has two results"):
        merge_sweeps([here / "a", here / "b"], here / "all")


# ---- the table


def test_the_table_is_tidy(here: Path) -> None:
    spec = SMALL | {"tasks": 6, "rate": 60, "seeds": 2, "grid": {"max_num_seqs": [64, 8]}}
    spec["points"] = [{}, {"tenants": "a@1+b@1"}]
    run_sweep(spec, here / "out")
    table = read_results(here / "out")
    names = table.column_names
    assert names[:9] == [
        "point", "label", "workload", "tasks", "tenants", "rate_per_min", "gpus", "max_num_seqs", "seed",
    ]  # fmt: skip
    assert {"tct_s.mean", "tct_s.p99", "prefix_hit_rate", "summary.tasks", "tenants.a.tct_s.p99"} <= set(names)
    assert not any(name.startswith("notes") for name in names)
    found = table.to_pylist()
    order = [(row["tenants"] or "", row["max_num_seqs"], row["seed"]) for row in found]
    assert order == sorted(order)
    assert found[0]["label"] == "max_num_seqs=8"
    assert found[-1]["label"] == "tenants=a@1+b@1 max_num_seqs=64"
    assert found[0]["tenants.a.tct_s.p99"] is None
    assert found[0]["summary.tasks"] == 6
    assert str(table.schema.field("preemptions").type) == "int64"
    assert str(table.schema.field("tct_s.mean").type) == "double"


def test_equal_content_is_an_equal_digest_whoever_ran_it(here: Path) -> None:
    one, two = run_sweep(GRID, here / "a", jobs=1), run_sweep(GRID, here / "b", jobs=2)
    reordered = GRID | {"grid": {"preset": ["vllm-0.15", "vllm-0.6"]}}
    assert one.digest == two.digest == run_sweep(reordered, here / "c").digest == content_digest(one.table())
    assert run_sweep(GRID | {"tasks": 2}, here / "d").digest != one.digest


def test_a_sweep_without_any_result_has_an_empty_table(here: Path) -> None:
    (here / "mine.py").write_text(MINE)
    swept = run_sweep(SMALL | {"order": "./mine.py:broken"}, here / "out")
    assert (swept.done, len(swept.failed), read_results(here / "out").num_rows) == (0, 1, 0)


def test_results_that_are_not_there(here: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be read"):
        read_results(here)


def test_progress_counts_to_the_end(here: Path) -> None:
    told: list[Progress] = []
    run_sweep(GRID, here / "out", progress=told.append)
    assert (told[0].points, told[0].done, told[0].per_s) == (4, 0, None)
    assert (told[-1].done, told[-1].failed, told[-1].left_s) == (4, 0, 0)
    assert [now.done for now in told] == sorted(now.done for now in told)
    run_sweep(GRID | {"seeds": 3}, here / "out", progress=told.append)
    assert told[-1].done == 6
    assert min(now.done for now in told if now.points == 6) == 4


def test_a_file_is_read_as_a_mapping_is(here: Path) -> None:
    (here / "s.toml").write_text('workload = "tool-calling"\ntasks = 3\ngpus = 4\nseeds = 2\n[grid]\nload = [0.5]\n')
    spec = SMALL | {"seeds": 2, "grid": {"load": [0.5]}}
    assert expand(read_spec(here / "s.toml"), "x") == expand(spec, "x")


def test_a_point_can_be_sent_to_another_process() -> None:
    import pickle

    (point,) = planned(expand(SMALL, "sweep"))[0]
    assert isinstance(point, Point)
    assert pickle.loads(pickle.dumps(point)) == point
