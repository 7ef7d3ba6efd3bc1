"""Timelines as files: their bounds, their bytes, and the command that writes them."""

from __future__ import annotations

import gzip
import re
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.cli import main
from sagasim.errors import ConfigError, ResultsError
from sagasim.results import read_run
from sagasim.timeline import write_timeline
from sagasim.timeline_rows import lanes
from tests.timeline_cases import Timeline, drawn, small

INTERVALS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), st.integers(0, 9)), max_size=40)


@given(INTERVALS)
def test_lanes_are_as_few_as_can_be(intervals: list[tuple[int, int, int]]) -> None:
    """Nothing overlaps in a lane, and a group has as many lanes as it has intervals at one moment."""
    groups, begins, lengths = np.array(intervals, dtype=np.int64).reshape(-1, 3).T
    ends = begins + lengths
    found = lanes(groups, begins, ends)
    taken = [
        (g, lane, b + part)
        for g, lane, b, n in zip(groups, found, begins, lengths, strict=True)
        for part in range(max(n, 1))
    ]
    assert len(taken) == len(set(taken))
    for group in set(groups.tolist()):
        most = max(Counter(time for g, _, time in taken if g == group).values())
        assert set(found[groups == group].tolist()) == set(range(most))


def items(timeline: Timeline) -> Counter[Any]:
    """All that is shown or left out as a whole, with its time; tools belong to their call."""
    found: Counter[Any] = Counter()
    for one in timeline.slices:
        path, call = timeline.path(one.track), one.name not in ("queue", "prefill", "decode", "tools")
        if call and (one.parent is not None or not re.fullmatch(r"run|replica \d+ .*\)", path)):
            phases = tuple(sorted(one.phases().items())) if path.endswith("/calls") else ()
            found[path, one.name, one.begin, one.end, phases] += 1
    for track, values in timeline.counters.items():
        for time, value in values:
            found[timeline.path(track), value, time] += 1
    return found


def test_whatever_fits_is_shown_and_no_more(tmp_path: Path) -> None:
    whole, told = drawn(small(), tmp_path)
    assert told.left_out == ""
    assert drawn(small(), tmp_path, max_events=told.events)[1] == told
    for most in (told.events - 1, told.events // 2, 1000, 6):
        part, told = drawn(small(), tmp_path, max_events=most)
        assert told.events <= most
        assert told.left_out
        assert drawn(small(), tmp_path, max_events=told.events)[1] == told
        assert part.on("run")[0].args["shown"] == told.left_out
        kept, missing = items(part), items(whole) - items(part)
        assert not kept - items(whole)
        first = min(item[2] for item in missing)
        assert all(item[2] <= first for item in kept)
        until = float(told.left_out.split(" s ")[1].removeprefix("to ").replace(",", ""))
        assert until == pytest.approx(first / 10**9, rel=1e-5)
        assert most == 6 or told.events > most - 100  # a time that fits no more begins only with what begins then
    with pytest.raises(ConfigError, match="at least 6 for this run"):
        write_timeline(small(), tmp_path / "u.pftrace", max_events=5)


def test_a_later_part(tmp_path: Path) -> None:
    whole, _ = drawn(small(), tmp_path)
    start = 200.0
    part, told = drawn(small(), tmp_path, start_s=start, max_events=2000)
    assert told.left_out.startswith("200 s to ")
    assert told.events <= 2000
    last = max(s.begin for s in part.on("/calls"))
    calls = [(s.name, s.begin, s.end) for s in whole.on("/calls") if s.end >= start * 10**9 and s.begin <= last]
    assert sorted((s.name, s.begin, s.end) for s in part.on("/calls")) == sorted(calls)
    for track, values in whole.counters.items():  # they are known when it begins
        before = [value for time, value in values if time <= start * 10**9]
        (same,) = [found for found in part.counters if part.path(found) == whole.path(track)]
        first = [value for time, value in part.counters[same] if time <= start * 10**9]
        assert first[-1] == before[-1]
    for found in part.arrows().values():
        assert len(found) >= 2
    for wrong in (-1.0, 1e6):
        with pytest.raises(ConfigError, match="outside of the run; expected seconds within the run, from 0 to"):
            write_timeline(small(), tmp_path / "u.pftrace", start_s=wrong)


@pytest.mark.parametrize(("tasks", "shown"), [(0, 0), (1, 1), (5, 4), (11, 6), (12, 12), (200, 12)])
def test_tasks_are_drawn_evenly(tmp_path: Path, tasks: int, shown: int) -> None:
    timeline, _ = drawn(small(), tmp_path, tasks=tasks)
    found = {track.name for track in timeline.tracks.values() if track.name.startswith("task ")}
    every = 12 // shown if shown else 1
    assert found == {f"task {n}: {small().task_names[n]}" for n in range(0, 12, every)[:shown]}
    assert all(len(ends) > 1 for ends in timeline.arrows().values())
    told = timeline.on("run")[0].args["tasks with a track"]
    assert told == ("none" if not shown else "all: 12 of 12" if shown == 12 else f"one of {every}: {shown} of 12")


# ---- files


def test_same_run_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.pftrace", "b.pftrace", "c.pftrace.gz", "d.pftrace.gz")]
    for path in paths:
        write_timeline(small(), path)
    plain, again, packed, packed_again = (path.read_bytes() for path in paths)
    assert plain == again
    assert packed == packed_again
    assert len(packed) < len(plain) / 3
    assert gzip.decompress(packed) == plain
    assert packed[3:8] == bytes(5)  # no name of a file in its head, and no time
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in paths}


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.pftrace"
    path.write_text("mine")
    with pytest.raises(ResultsError, match=r"t\.pftrace: exists already"):
        write_timeline(small(), path)
    assert path.read_text() == "mine"
    with pytest.raises(ResultsError, match="no such folder"):
        write_timeline(small(), tmp_path / "no" / "t.pftrace")
    for name in ("full", "full.gz"):
        monkeypatch.setattr("sagasim.timeline.Picture.packets", full)
        with pytest.raises(ResultsError, match=r"full.*: cannot be written: No space left"):
            write_timeline(small(), tmp_path / name)
    assert [one.name for one in tmp_path.iterdir()] == ["t.pftrace"]


def full(self: object) -> Any:
    yield b"begun"
    raise OSError(28, "No space left on device")


def test_the_command_writes_what_the_saved_run_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["run", "--trace", "tau-bench", "--tasks", "4", "--gpus", "8", "--no-figures"]

    def run(*options: str) -> tuple[int | str | None, str, str]:
        with pytest.raises(SystemExit) as stop:
            main([*command, *options])
        return (stop.value.code, *capsys.readouterr())

    code, out, err = run("--out", "deep/a", "--timeline", "deep/a/seen.pftrace")
    assert (code, err) == (0, "")
    assert "results in deep/a, timeline in deep/a/seen.pftrace" in out
    write_timeline(read_run("deep/a"), "again.pftrace")
    assert Path("again.pftrace").read_bytes() == Path("deep/a/seen.pftrace").read_bytes()
    for wrong, what in (
        ("again.pftrace", "exists already"),
        ("no/t.pftrace", "no such folder"),
        ("b/summary.json", "may be another file of the results"),
    ):
        code, out, err = run("--out", "b", "--timeline", wrong)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert what in err
    assert not Path("b").exists()
    monkeypatch.setattr("sagasim.timeline.MAX_EVENTS", 500)
    monkeypatch.setitem(write_timeline.__kwdefaults__, "max_events", 500)
    code, out, err = run("--out", "b", "--timeline", "short.pftrace.gz")
    assert code == 0
    assert re.fullmatch(r"sagasim: the timeline shows 0 s to [\d.,]+ s of [\d.,]+ s: .* left out\n", err)
    assert Timeline(Path("short.pftrace.gz")).events <= 500


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[1] / "docs/timeline.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    ((_, command), (_, code)) = re.findall(r"^```(sh|python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    with pytest.raises(SystemExit) as stop:
        main([*shlex.split(command.replace("\\\n", " "))[1:], "--no-figures"])
    assert stop.value.code == 0, capsys.readouterr().err
    assert Timeline(Path("results/seen/timeline.pftrace.gz")).on("/calls")
    exec(compile(code, "timeline.md", "exec"), {})
    assert min(one.end for one in Timeline(Path("later.pftrace")).on("/calls")) >= 600 * 10**9
