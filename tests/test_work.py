"""Work: long traces are read again instead of being kept, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sagasim import work
from sagasim.config import resolve
from sagasim.errors import TraceError
from sagasim.experiment import execute
from sagasim.seams import KINDS
from sagasim.work import prepare, with_whole_paths


@pytest.mark.parametrize("arrivals", [{"rate_per_min": 60.0}, {"concurrency": 5}, {"arrivals": "at-once"}])
def test_reading_again_gives_the_same_run(monkeypatch: pytest.MonkeyPatch, arrivals: dict[str, object]) -> None:
    config = resolve({"trace": "tau-bench", "tasks": 30, "gpus": 8, "over_length": "drop", **arrivals})
    kept = prepare(config)
    monkeypatch.setattr(work, "KEPT_CALLS", 50)
    again = prepare(config)
    assert isinstance(kept.tasks, list)
    assert not isinstance(again.tasks, list)
    assert (again.config, again.notes) == (kept.config, kept.notes)
    for _ in range(2):
        assert execute(again).summary["digest"] == execute(kept).summary["digest"]


def test_a_mix_and_tenants_run() -> None:
    config = resolve({"mix": "tau-bench@2+swe-bench@1", "tasks": 12, "gpus": 8, "rate_per_min": 60.0})
    summary = execute(prepare(config)).summary
    assert summary["tasks"] == 12
    assert set(summary["tenants"]) == {"tau-bench", "swe-bench"}


def test_no_task_is_left() -> None:
    with pytest.raises(TraceError, match="no task is left"):
        prepare(resolve({"trace": "tau-bench", "max_model_len": 500, "over_length": "drop"}))


def test_files_are_named_so_that_they_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies of every kind, and files among their options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "graph.json").write_text("{}")
    named = dict.fromkeys(KINDS, "./mine.py:own")
    found = with_whole_paths(replace(resolve({"workload": "swe-bench"}), **named))
    assert {getattr(found, kind) for kind in KINDS} == {f"{tmp_path}/mine.py:own"}
    found = with_whole_paths(
        resolve({"workload": "swe-bench", "predict": "aeg:hints=declared,graph=graph.json,ema=0.2"})
    )
    assert found.predict == f"aeg:hints=declared,graph={tmp_path}/graph.json,ema=0.2"
    assert with_whole_paths(found) == found
