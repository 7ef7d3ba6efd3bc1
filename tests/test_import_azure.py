"""Azure's CSV: the real files against their statistics, hand-made ones, mistakes."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from sagasim.core import Call, Task
from sagasim.errors import TraceError
from sagasim.trace import open_trace, trace_stats

S = 10**12
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def read(folder: Path, text: str, name: str = "x") -> list[Task]:
    path = folder / name
    path.write_text(text)
    return list(open_trace(path).tasks())


# traces/SOURCES.md: p5 p50 p95 p99 mean of prompts, outputs and times between requests
MEASURED = {
    "azure-code": (7148, (76, 1460, 7147, 7436, 2028), (6, 13, 87, 249, 27.5), (0.000, 0.061, 0.399, 2.033, 0.320)),
    "azure-conversation": (
        13_828,
        (181, 1016, 4085, 4122, 1203),
        (39, 115, 447, 598, 201),
        (0.006, 0.111, 0.528, 0.826, 0.169),
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_real_files_against_their_statistics(name: str) -> None:
    calls, prompts, outputs, gaps = MEASURED[name]
    stats = trace_stats(open_trace(name).tasks())
    assert (stats["tasks"], stats["calls"], stats["reusable_share"]) == (calls, calls, 0)
    assert list(stats["prompt_tokens"].values()) == pytest.approx(prompts, abs=0.51)
    assert list(stats["output_tokens"].values()) == pytest.approx(outputs, rel=0.002)
    assert list(stats["interarrival_s"].values()) == pytest.approx(gaps, abs=0.0006)


def test_rows_become_tasks_of_one_call(tmp_path: Path) -> None:
    text = HEADER + "2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.4799609,5,0\n"
    assert read(tmp_path, text) == [
        Task("row 1", (Call("row 1", 4808, 10),), arrival_ps=0),
        Task("row 2", (Call("row 2", 5, 1),), arrival_ps=S // 2),
    ]


def test_columns_in_any_order_zones_and_gzip(tmp_path: Path) -> None:
    text = "\ufeffgeneratedtokens,Region,ContextTokens,TIMESTAMP\n"
    text += "3,west,7,2024-05-10 00:00:00.009930+00:00\n4,east,8,2024-05-10 02:00:01.009930+02:00\n\n"
    path = tmp_path / "x"
    path.write_bytes(gzip.compress(text.encode()))
    trace = open_trace(path)
    assert trace.format == "azure"
    assert [(task.arrival_ps, task.calls[0].new_tokens) for task in trace.tasks()] == [(0, 7), (S, 8)]


ROW = "2023-11-16 18:17:03,1,1\n"
BAD = [
    (HEADER, "no rows"),
    (HEADER + "2023-11-16 18:17:03,1\n", "2 cells"),
    (HEADER + "yesterday,1,1\n", "TIMESTAMP is 'yesterday'"),
    (HEADER + "2023-11-16 18:17:03,0,1\n", "ContextTokens is 0"),
    (HEADER + "2023-11-16 18:17:03,1.5,1\n", "ContextTokens is '1.5'"),
    (HEADER + "2023-11-16 18:17:03,-1,1\n", "ContextTokens is '-1'"),
    (HEADER + "2023-11-16 18:17:03,1," + "9" * 40 + "\n", "GeneratedTokens is '999"),
    (HEADER + "2023-11-16 18:17:03,1,\n", "GeneratedTokens is ''"),
    (HEADER + ROW + "2023-11-16 18:17:02,1,1\n", "none before it"),
    (HEADER + ROW + "2023-11-19 18:17:02,1,1\n", "TIMESTAMP is"),
    (HEADER + ROW + "x" * 20_000 + "\n", "too long"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=range(len(BAD)))
def test_mistakes_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(TraceError, match=re.escape(says)) as caught:
        read(tmp_path, text)
    assert str(tmp_path / "x") in str(caught.value)
    assert caught.value.expected


def test_rows_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(HEADER + ROW * 5 + "broken\n")
    tasks = open_trace(path).tasks()
    assert [next(tasks).name for _ in range(5)][-1] == "row 5"
    with pytest.raises(TraceError, match="x:7"):
        next(tasks)
