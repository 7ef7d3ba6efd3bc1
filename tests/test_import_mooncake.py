"""Mooncake's requests: sharing against a naive count, and the conversations inferred for them."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Task, Tool, check_task
from sagasim.errors import ConfigError, TraceError
from sagasim.trace import open_trace, trace_stats
from sagasim.trace_stats import TraceStats

S = 10**12
BLOCK = 512
TRACES = Path(__file__).parent.parent / "traces"
TURNS = TRACES / "mooncake_conversation.derived_turns.csv.gz"
REQUESTS = TRACES / "mooncake_conversation.requests.jsonl.gz"


def write(folder: Path, rows: list[dict[str, Any]], name: str = "x.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def reused_tokens(tasks: list[Task]) -> list[int]:
    """Tokens of each prompt that an infinite cache holds, in the order of the tasks."""
    stats = TraceStats()
    reused = []
    for task in tasks:
        before = stats.reusable
        stats.add(task)
        reused.append(stats.reusable - before)
    return reused


def seen_blocks(rows: list[dict[str, Any]]) -> list[int]:
    """Leading blocks of each row that an earlier row has had."""
    seen: set[int] = set()
    found = []
    for row in rows:
        ids = row["hash_ids"]
        found.append(next((n for n, one in enumerate(ids) if one not in seen), len(ids)))
        seen.update(ids)
    return found


# traces/SOURCES.md: p5 p50 p95 p99 mean of prompts, outputs, times between requests, share of reusable blocks; and
# that share over all blocks
MEASURED = {
    "mooncake-conversation": (
        7689,
        (901, 7284, 40_537, 89_976, 12_449),
        (10, 356, 713, 1166, 348),
        (0.0, 0.0, 3.0, 3.001, 0.307),
        (0.017, 0.300, 0.962, 0.989, 0.370),
        0.350,
    ),
    "mooncake-synthetic": (
        2600,
        (20, 5823, 42_884, 57_555, 13_186),
        (3, 135, 568, 776, 184),
        (0.013, 0.181, 0.800, 1.228, 0.262),
        (0.0, 0.0, 0.986, 1.0, 0.233),
        0.428,
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_real_files_against_their_statistics(name: str) -> None:
    calls, prompts, outputs, gaps, shares, share = MEASURED[name]
    trace = open_trace(name)
    tasks = list(trace.tasks())
    stats = trace_stats(tasks)
    assert (stats["tasks"], stats["calls"], stats["quantiles"]) == (calls, calls, "exact")
    assert list(stats["prompt_tokens"].values()) == pytest.approx(prompts, abs=0.51)
    assert list(stats["output_tokens"].values()) == pytest.approx(outputs, abs=0.51)
    assert list(stats["interarrival_s"].values()) == pytest.approx(gaps, abs=0.0006)
    # every task shares exactly what a naive count of block ids says
    rows = [json.loads(line) for line in gzip.decompress((trace.path or Path()).read_bytes()).splitlines()]
    blocks = seen_blocks(rows)
    reused = reused_tokens(tasks)
    assert reused == [min(n * BLOCK, row["input_length"]) for n, row in zip(blocks, rows, strict=True)]
    found = [n / len(row["hash_ids"]) for n, row in zip(blocks, rows, strict=True)]
    assert [*np.percentile(found, [5, 50, 95, 99]), np.mean(found)] == pytest.approx(shares, abs=0.0006)
    assert sum(blocks) / sum(len(row["hash_ids"]) for row in rows) == pytest.approx(share, abs=0.0006)


def test_conversations_of_the_real_file() -> None:
    trace = open_trace("mooncake-conversation-turns")
    assert "assumption" in trace.filled["user_s"]
    tasks = list(trace.tasks())
    rows = list(csv.DictReader(gzip.decompress(TURNS.read_bytes()).decode().splitlines()))
    calls = {call.name: call for task in tasks for call in task.calls}
    assert len(calls) == len(rows) == 7689
    for place, row in enumerate(rows, start=1):
        parent = row["parent_row"]
        assert calls[f"row {place}"].after == ((f"row {int(parent) + 1}",) if parent else ())
    lengths = [len(task.calls) for task in tasks]
    assert np.mean(lengths) == pytest.approx(1.46, abs=0.005)  # published: 1.46, p95 3, p99 6, 31 % with a parent
    assert list(np.percentile(lengths, [95, 99])) == [3, 6]
    assert sum(bool(call.after) for call in calls.values()) / len(calls) == pytest.approx(0.31, abs=0.005)
    assert sum(len(task.calls) for task in tasks if task.arrival_ps is None) == 0
    open_loop = sum(reused_tokens(list(open_trace("mooncake-conversation").tasks())))
    assert sum(reused_tokens(tasks)) == pytest.approx(open_loop, rel=1e-4)  # sharing does not depend on the reading


def test_a_wait_is_the_gap_less_an_estimate_of_the_answer(tmp_path: Path) -> None:
    rows = [
        {
            "timestamp": 1000 * second,
            "input_length": 512 * len(ids) + 7,
            "output_length": output,
            "hash_ids": [*ids, 99],
        }
        for second, output, ids in [(0, 100, [1, 2]), (9, 5, [1, 2, 3]), (30, 5, [1, 2, 4]), (31, 5, [1, 2, 3, 5])]
    ]
    rows[3]["hash_ids"] = [1, 2, 3, 5, 6]
    turns = tmp_path / "turns.csv"
    turns.write_text(
        "row,timestamp_ms,parent_row,shared_blocks,blocks,gap_ms\n"
        "50,0,,0,3,\n51,9000,50,2,4,9000\n52,30000,50,2,4,30000\n53,31000,51,3,5,\n"
    )
    [task] = open_trace(write(tmp_path, rows), turns=turns).tasks()
    first, second, third, fourth = task.calls
    check_task(task)
    assert (task.name, task.arrival_ps) == ("row 1", 0)
    assert first.tools == (Tool("user", 8 * S, True),)  # 9 s less 100 x 10 ms: the shorter wait of two children
    assert [call.after for call in task.calls] == [(), ("row 1",), ("row 1",), ("row 2",)]
    assert [call.delay_ps for call in task.calls] == [0, 0, 21 * S, 0]
    assert second.tools == (Tool("user", 22 * S - S // 20, True),)  # no gap in the file: the time between the requests
    assert (third.tools, fourth.tools) == ((), ())
    assert (second.extends, second.keep_tokens, fourth.extends) == ("row 1", 1024, "row 2")


@pytest.mark.parametrize(("first", "last"), [(0, 7689), (0, 100), (5000, 5600), (7000, 7689)])
@pytest.mark.parametrize("whole", [True, False], ids=["all turns", "their turns"])
def test_either_file_may_be_a_slice(tmp_path: Path, first: int, last: int, whole: bool) -> None:
    lines = gzip.decompress(REQUESTS.read_bytes()).splitlines(keepends=True)
    turns = gzip.decompress(TURNS.read_bytes()).splitlines(keepends=True)
    (tmp_path / "r").write_bytes(b"".join(lines[first:last]))
    (tmp_path / "t").write_bytes(b"".join(turns if whole else [turns[0], *turns[first + 1 : last + 1]]))
    tasks = list(open_trace(tmp_path / "r", turns=tmp_path / "t").tasks())
    parents = [line.split(b",")[2] for line in turns[first + 1 : last + 1]]
    inside = sum(bool(parent) and int(parent) >= first for parent in parents)
    assert sum(bool(call.after) for task in tasks for call in task.calls) == inside
    assert sum(len(task.calls) for task in tasks) == last - first


HEADER = "row,timestamp_ms,parent_row,blocks,gap_ms\n"
ROWS = [{"timestamp": 1000 * n, "input_length": 600, "output_length": 1, "hash_ids": [1, n + 2]} for n in range(3)]
GOOD = "0,0,,2,\n1,1000,0,2,1000\n2,2000,,2,\n"
BAD_TURNS = [
    ("", "an empty file"),
    (HEADER, "no rows"),
    ("row,timestamp_ms,blocks,gap_ms\n0,0,2,\n", "no column 'parent_row'"),
    (HEADER + "0,0,,2,\n1,1000,0,2,1000\n", "2 turns that are not those of the 3 requests"),
    (HEADER + "0,0,,2,\n1,1000,0,3,1000\n2,2000,,2,\n", "not those of the 3 requests"),
    (HEADER + "0,0,,2,\n1,1001,0,2,1000\n2,2000,,2,\n", "not those of the 3 requests"),
    (HEADER + "0,0,,2,\n2,1000,0,2,1000\n2,2000,,2,\n", "row 2; expected row 1"),
    (HEADER + "0,0,,2,\n1,1000,1,2,1000\n2,2000,,2,\n", "parent_row is 1"),
    (HEADER + "0,0,0,2,\n1,1000,,2,1000\n2,2000,,2,\n", "parent_row is 0"),
    (HEADER + "0,0,,2,\n1,1000,0,2,-5\n2,2000,,2,\n", "gap_ms is '-5'"),
    (HEADER + "0,0,,2,\n1,1000,x,2,5\n2,2000,,2,\n", "parent_row is 'x'"),
]


@pytest.mark.parametrize(("text", "says"), BAD_TURNS, ids=range(len(BAD_TURNS)))
def test_turns_that_do_not_fit(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "t").write_text(text)
    path = write(tmp_path, ROWS)
    with pytest.raises(TraceError, match=re.escape(says) if says != "an empty file" else "no rows") as caught:
        list(open_trace(path, turns=tmp_path / "t").tasks())
    assert str(tmp_path / "t") in str(caught.value)
    (tmp_path / "t").write_text(HEADER + GOOD)
    assert len(list(open_trace(path, turns=tmp_path / "t").tasks())) == 2


def test_turns_are_for_requests_alone(tmp_path: Path) -> None:
    (tmp_path / "t").write_text(HEADER + GOOD)
    with pytest.raises(TraceError, match="has a session of its own"):
        list(open_trace(write(tmp_path, [row | {"session_id": "s"} for row in ROWS]), turns=tmp_path / "t").tasks())
    with pytest.raises(ConfigError, match="unknown option 'turns'"):
        open_trace("weka", turns=tmp_path / "t")
    with pytest.raises(TraceError, match=r"no such file|cannot be read"):
        list(open_trace("mooncake-conversation", turns=tmp_path / "none").tasks())
    with pytest.raises(TraceError, match="turns without their requests"):
        open_trace(tmp_path / "t")


@settings(max_examples=250, deadline=None)
@given(times=st.lists(st.integers(0, 1), min_size=1, max_size=9), data=st.data())
def test_a_run_of_rows_is_found_wherever_it_lies(
    tmp_path_factory: pytest.TempPathFactory, times: list[int], data: Any
) -> None:
    folder = tmp_path_factory.mktemp("t")
    first = data.draw(st.integers(0, len(times) - 1))
    last = data.draw(st.integers(first + 1, len(times)))
    rows = [{"timestamp": t, "input_length": 600, "output_length": 1, "hash_ids": [1, 2]} for t in times[first:last]]
    lines = [f"{n},{t},,2,\n" for n, t in enumerate(times)]
    (folder / "t").write_text(HEADER + "".join(lines))
    tasks = list(open_trace(write(folder, rows), turns=folder / "t").tasks())
    assert len(tasks) == last - first
    (folder / "t").write_text(HEADER + "".join(lines[: last - first - 1] or ["0,7,,2,\n"]))
    with pytest.raises(TraceError, match="not those of"):
        list(open_trace(folder / "x.jsonl", turns=folder / "t").tasks())
