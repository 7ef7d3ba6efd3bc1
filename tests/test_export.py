"""Export: native loses nothing, agentic_mooncake what it says; round trips against a naive reading of both."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Call, Prefix, Task, Tool, check_task
from sagasim.errors import ConfigError, TraceError
from sagasim.importers.agentic_export import write_agentic_mooncake
from sagasim.trace import Trace, convert, open_trace, trace_names
from tests.test_importers import common, content, mooncake_rows
from tests.test_trace import whole_tasks

S = 10**12


def written(folder: Path, tasks: list[Task], block_tokens: int = 4) -> tuple[Path, dict[str, str]]:
    path = folder / "out.jsonl"
    return path, write_agentic_mooncake(path, lambda: tasks, block_tokens)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def read(path: Path, block_tokens: int = 4) -> list[Task]:
    return list(open_trace(path, block_tokens=block_tokens).tasks())


@settings(max_examples=300, deadline=None)
@given(rows=mooncake_rows())
def test_what_the_format_holds_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    """Whole blocks, names, sessions, dependencies, waits and arrivals: import(export(x)) == x."""
    folder = tmp_path_factory.mktemp("m")
    for place, row in enumerate(rows):
        row["input_length"] = max(4 * len(row["hash_ids"]), 4)
        row["hash_ids"] = row["hash_ids"] or [1000 + place]
        if "wait_for" in row:
            row["delay"] = 1.5 * place
        elif place % 2:
            row["timestamp"] = 10.125 * place
    (folder / "in").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = read(folder / "in")
    path, lost = written(folder, tasks)
    assert read(path) == tasks
    assert lost == {}


@settings(max_examples=250, deadline=None)
@given(data=st.data(), count=st.integers(1, 3), block_tokens=st.sampled_from([1, 3, 16, 512]))
def test_sharing_is_rounded_down_to_whole_blocks(
    tmp_path_factory: pytest.TempPathFactory, data: Any, count: int, block_tokens: int
) -> None:
    tasks = [small(data.draw(whole_tasks(f"t{place}"))) for place in range(count)]
    path, lost = written(tmp_path_factory.mktemp("w"), tasks, block_tokens)
    back = read(path, block_tokens)
    for task in back:
        check_task(task)
    before = {f"{task.name}/{name}": prompt for task in tasks for name, prompt in content([task]).items()}
    after = content(back)
    if set(after) != set(before):  # names that no two tasks share are kept
        before = {name.partition("/")[2]: prompt for name, prompt in before.items()}
    assert {name: len(prompt) for name, prompt in after.items()} == {name: len(p) for name, p in before.items()}
    for left in before:
        for right in before:
            if left < right:
                shared = common(before[left], before[right])
                whole = shared // block_tokens * block_tokens
                if shared == len(before[left]) == len(before[right]):
                    whole = shared  # two prompts that are the same share their last block too
                assert common(after[left], after[right]) == whole, (left, right)
    exact = all(call.keep_tokens % block_tokens == 0 for task in tasks for call in task.calls)
    assert not (exact and "sharing rounded down to whole blocks" in lost)


def small(task: Task) -> Task:
    """The same task with contexts short enough for a reference that counts every token."""
    ends: dict[str | None, int] = {None: 0}
    prefixes, calls = [], []
    for prefix in task.prefixes:
        keep = min(prefix.keep_tokens, ends[prefix.extends])
        prefixes.append(replace(prefix, keep_tokens=keep))
        ends[prefix.name] = keep + prefix.new_tokens
    silent: dict[str | None, int] = dict(ends)
    for call in task.calls:
        most = ends[call.extends] if call.extends in call.after else silent[call.extends]
        keep = min(call.keep_tokens, most)
        made = replace(
            call,
            keep_tokens=keep,
            new_tokens=max(call.new_tokens % 40, not keep),
            output_tokens=call.output_tokens % 20 + 1,
        )
        calls.append(made)
        ends[made.name] = made.prompt_tokens + made.output_tokens
        silent[made.name] = made.prompt_tokens if keep <= silent[made.extends] else silent[made.extends]
    return replace(task, prefixes=tuple(prefixes), calls=tuple(calls))


def timed() -> Task:
    calls = (
        Call("a", 8, 4, tools=(Tool("x", 2 * S), Tool("y", S, True)), delay_ps=S),
        Call("b", 4, 4, "a", 8, ("a",), S // 2, (Tool("z", 3 * S),), "sub"),
        Call("c", 4, 4, "a", 12, ("a",)),
        Call("d", 1, 4, "c", 6, ("b", "c"), tools=(Tool("end", S),)),
        Call("e", 4, 1, delay_ps=3 * S, agent="lone"),
    )
    return Task("t", calls, "blue", 5 * S, agent="kind", family="7")


def test_times_names_and_what_is_lost(tmp_path: Path) -> None:
    path, lost = written(tmp_path, [timed()])
    rows = {row["request_id"]: row for row in rows_of(path)}
    assert rows["a"] == {
        "request_id": "a", "session_id": "t", "input_length": 8, "output_length": 4, "hash_ids": [0, 1],
        "timestamp": 5000.0, "delay": 1000.0, "branches": ["e"],
    }  # fmt: skip
    assert rows["b"] == {
        "request_id": "b", "session_id": "sub", "input_length": 12, "output_length": 4, "hash_ids": [0, 1, 2],
        "wait_for": ["a"], "tool_wait_ms": 2000.0, "delay": 500.0,
    }  # fmt: skip
    assert rows["c"]["hash_ids"] == [0, 1, 3, 4]
    assert rows["d"]["hash_ids"] == [0, 5]
    assert (rows["d"]["tool_wait_ms"], rows["e"]["timestamp"]) == (3000.0, 7000.0)
    assert lost == {
        "sharing rounded down to whole blocks": "2 tokens of 1 calls, blocks of 4 tokens",
        "outputs repeated in a prompt, now new blocks": "4 tokens of 1 calls",
        "names of tools, which became delays": "4 tools",
        "marks of durations that are drawn": "1 tools",
        "tools after which no call comes": "1 tools",
        "waiting for several calls, each with tools": (
            "1 calls, which wait for the longest of the tools after the last call"
        ),
        "names of tenants": "1 tasks",
        "kinds of agents": "1 tasks",
        "families of tasks": "1 tasks",
    }  # fmt: skip
    [back] = read(path)
    calls = {call.name: call for call in back.calls}
    assert (back.name, back.arrival_ps) == ("t", 5 * S)
    assert [call.agent for call in back.calls] == ["", "sub", "", "", "lone"]
    assert {name: call.delay_ps for name, call in calls.items()} == {
        "a": S, "b": 5 * S // 2, "c": 2 * S, "d": 3 * S, "e": 3 * S,
    }  # fmt: skip


def test_names_that_two_tasks_have(tmp_path: Path) -> None:
    prefix = (Prefix("p", 6),)
    tasks = [Task(name, (Call("0", 4, 1, "p", 6),), prefixes=prefix) for name in "xy"]
    path, _ = written(tmp_path, tasks)
    assert [(row["request_id"], row["session_id"]) for row in rows_of(path)] == [("x/0", "x"), ("y/0", "y")]
    assert [row["hash_ids"] for row in rows_of(path)] == [[0, 1, 2], [0, 3, 4]]
    subs = [Task(n, (Call(f"{n}0", 4, 1), Call(f"{n}1", 4, 1, after=(f"{n}0",), agent="sub"))) for n in "xy"]
    (tmp_path / "out.jsonl").unlink()
    path, _ = written(tmp_path, subs)
    assert [row["session_id"] for row in rows_of(path)] == ["x", "x/sub", "y", "y/sub"]
    first = Task("t", (Call("a", 4, 1, agent="sub"), Call("b", 4, 1, after=("a",))))
    (tmp_path / "out.jsonl").unlink()
    path, lost = written(tmp_path, [first])
    assert lost == {"sub-agents whose call is a task's first": "1 tasks"}
    assert [task.name for task in read(path)] == ["t"]


@pytest.mark.parametrize("name", trace_names())
def test_embedded_traces_survive(tmp_path: Path, name: str) -> None:
    """Lengths, dependencies and starts as in the source; where nothing is said to be lost, all of it."""
    trace = open_trace(name)
    lost = convert(trace, tmp_path / "x.jsonl.gz", "agentic_mooncake", 512)
    tasks = list(trace.tasks())
    back = list(open_trace(tmp_path / "x.jsonl.gz", block_tokens=512).tasks())
    assert [len(task.calls) for task in back] == [len(task.calls) for task in tasks]
    for task, one in zip(tasks, back, strict=True):
        assert one.arrival_ps == task.arrival_ps
        for call, row in zip(task.calls, one.calls, strict=True):
            assert (row.prompt_tokens, row.output_tokens) == (call.prompt_tokens, call.output_tokens)
            assert len(row.after) == len(call.after)
    if not lost:
        assert back == tasks
    assert ("sharing rounded down to whole blocks" in lost) == name.startswith(
        ("swe", "tau", "weka", "lmc", "mooncake")
    )


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    good = Task("t", (Call("a", 1, 1),))
    for tasks in ([], [good, Task("u", ())], [Task("t", (Call("a", 1, 1, after=("z",)),))]):
        with pytest.raises(TraceError):
            written(tmp_path, tasks)
        assert list(tmp_path.iterdir()) == []
    clash = [Task(n, (Call(n, 1, 1),), prefixes=(Prefix("p", size),)) for n, size in (("x", 1), ("y", 2))]
    with pytest.raises(TraceError, match="declared differently"):
        written(tmp_path, clash)
    with pytest.raises(ConfigError, match="block_tokens"):
        written(tmp_path, [good], 0)
    written(tmp_path, [good])
    with pytest.raises(TraceError, match="exists already"):
        written(tmp_path, [good])
    with pytest.raises(ConfigError, match=r"unknown format 'mooncake'.*'agentic_mooncake' perhaps"):
        convert(open_trace("tau-bench"), tmp_path / "y", "mooncake")


def test_native_is_lossless_for_every_task(tmp_path: Path) -> None:
    trace = Trace("x", None, "", {"k": "text"}, "made", lambda _seed: iter([timed()]))
    assert convert(trace, tmp_path / "x.jsonl") == {}
    again = open_trace(tmp_path / "x.jsonl")
    assert list(again.tasks()) == [timed()]
    assert again.filled == {"k": "text"}
