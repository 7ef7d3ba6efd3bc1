"""Importers: what real files hold, what hand-made ones must become, and sharing against a naive computation."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Call, Prefix, Task, Tool, check_task
from sagasim.errors import TraceError
from sagasim.importers.runs import RunTrie
from sagasim.trace import open_trace, trace_names, trace_stats

S = 10**12
TRACES = Path(__file__).parent.parent / "traces"


def write(folder: Path, rows: list[Any], name: str = "x.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(folder: Path, rows: list[Any], seed: int = 0, **options: Any) -> list[Task]:
    return list(open_trace(write(folder, rows), **options).tasks(seed))


# ---- the embedded files


def test_files_are_those_of_the_sources() -> None:
    text = (TRACES / "SOURCES.md").read_text()
    rows = re.findall(r"\| `(\S+)` \| (\d+) \| (\d+) \| (\d+) \| `([0-9a-f]{64})` \|", text)
    assert len(rows) == 11
    for name, size, count, _requests, digest in rows:
        data = (TRACES / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size), digest)
        lines = (gzip.decompress(data) if name.endswith("gz") else data).count(b"\n")
        assert lines - name.endswith(".csv.gz") == int(count)  # a CSV has a header
    digests = {row[0]: row[4] for row in rows}
    for name in trace_names():
        trace = open_trace(name)
        both = "mooncake_conversation.{}.gz"
        if name == "mooncake-conversation-turns":
            digest = digests[both.format("requests.jsonl")] + digests[both.format("derived_turns.csv")]
            assert trace.sha256 == hashlib.sha256(digest.encode()).hexdigest()
        else:
            assert trace.sha256 == digests[(trace.path or Path()).name]


# name: tasks, calls, prompt p5 p50 p95 p99 mean, output p5 p50 p95 p99 mean, prefix share; published statistics
MEASURED: dict[str, tuple[int, int, tuple[float, ...], tuple[float, ...], float]] = {
    "weka": (464, 32_114, (31_789, 101_507, 288_993, 483_497, 118_090), (87, 214, 1504, 3629, 434), 0.973),
    "swe-bench-mini": (327, 12_517, (2498, 13_691, 37_894, 61_019, 16_245), (23, 91, 1103, 2494, 285), 0.981),
    "tau-bench": (136, 1678, (3696, 4766, 8527, 9789, 5256), (20, 43, 175, 298, 61.7), 0.973),
    "lmcache-miniswe": (13, 268, (1303, 3941, 7567, 10_324, 3951), (51.4, 96, 251, 291, 114), 0.953),
}


@pytest.mark.parametrize("name", MEASURED)
def test_real_files_against_their_statistics(name: str) -> None:
    count, calls, prompts, outputs, share = MEASURED[name]
    tasks = [without_sub_agents(task) for task in open_trace(name).tasks()]
    stats = trace_stats(tasks)
    assert (stats["tasks"], stats["calls"]) == (count, calls)
    assert list(stats["prompt_tokens"].values()) == pytest.approx(prompts, rel=0.001)
    assert list(stats["output_tokens"].values()) == pytest.approx(outputs, rel=0.005)
    assert stats["prefix_share"] == pytest.approx(share, abs=0.01)
    assert stats["prefix_share"] == pytest.approx(share, abs=0.0015)  # in fact to what was printed


def without_sub_agents(task: Task) -> Task:
    return replace(task, calls=tuple(call for call in task.calls if not call.agent))


def mean_share(task_list: list[Task]) -> float:
    shares = [call.keep_tokens / call.prompt_tokens for task in task_list for call in task.calls[1:]]
    return float(np.mean(shares))


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("weka", 0.966),
        ("swe-bench-mini", 0.966),
        ("tau-bench", 0.973),
        ("lmcache-miniswe", 0.950),
        ("lmcache-magagent", 0.864),
    ],
)
def test_mean_prefix_share_of_real_files(name: str, share: float) -> None:
    assert mean_share([without_sub_agents(task) for task in open_trace(name).tasks()]) == pytest.approx(
        share, abs=0.002
    )


def test_steps_and_waits_of_real_files() -> None:
    weka = list(open_trace("weka").tasks())
    main = [without_sub_agents(task) for task in weka]
    steps = np.percentile([len(task.calls) for task in main], [5, 50, 95, 99])
    assert steps == pytest.approx([4, 45.5, 215, 347], abs=1)
    waits: dict[str, list[float]] = {"tool": [], "user": []}
    for task in main:
        for call in task.calls:
            for tool in call.tools:
                if not tool.filled:
                    waits[tool.name].append(tool.duration_ps / S)
    assert np.percentile(waits["tool"], [50, 95]) == pytest.approx([9, 157], rel=0.05)
    assert np.percentile(waits["user"], [50, 95]) == pytest.approx([133, 3120], rel=0.05)
    subs = [call for task in weka for call in task.calls if call.agent]
    assert (len(subs), len({call.agent for call in subs})) == (518, 50)
    assert sum(tool.filled for task in weka for call in task.calls for tool in call.tools) == 83
    stats = trace_stats(weka)
    assert stats["tasks_over_131072_tokens"] == 302


def test_magagent_leaves_out_what_was_not_exported() -> None:
    stats = trace_stats(open_trace("lmcache-magagent").tasks())
    assert (stats["tasks"], stats["calls"]) == (16, 490 - 24)
    assert stats["output_tokens"]["p50"] == pytest.approx(330, rel=0.02)


def test_drawn_tools_stay_within_the_recorded_step() -> None:
    packed = (TRACES / "swebench_mini_swe_gemini3.sessions.jsonl.gz").read_bytes()
    lines = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    cycles = {(line["sid"], str(n)): step.get("cyc_s") for line in lines for n, step in enumerate(line["steps"])}
    tasks = list(open_trace("swe-bench-mini").tasks(7))
    assert min(task.arrival_ps or 0 for task in tasks) == 0
    assert max(task.arrival_ps or 0 for task in tasks) == 6219 * S
    for task in tasks:
        for call in task.calls:
            cycle = cycles[task.name, call.name]
            assert all(tool.filled for tool in call.tools)
            assert cycle is None or call.tool_ps <= cycle * S
    assert {tool.name for task in tasks for call in task.calls for tool in call.tools} >= {"bash/test", "bash/explore"}


def test_tau_bench_names_its_tools() -> None:
    tasks = list(open_trace("tau-bench").tasks())
    names = [tool.name for task in tasks for call in task.calls for tool in call.tools]
    assert names.count("user") == 796
    assert "get_user_details" in names
    shared = {prefix.name: prefix.new_tokens for task in tasks for prefix in task.prefixes}
    assert shared["tau_bench/tools/2414"] == 2414
    assert all(task.calls[0].extends in shared for task in tasks)


@pytest.mark.parametrize("name", trace_names())
def test_importing_twice_gives_the_same(name: str) -> None:
    first, second, other = (list(open_trace(name).tasks(seed)) for seed in (1, 1, 2))
    assert first == second
    assert [unfilled(task) for task in first] == [unfilled(task) for task in other]
    drawn = any(tool.filled for task in first for call in task.calls for tool in call.tools)
    assert (first != other) == (drawn and not name.startswith(("lmcache", "mooncake")))


def unfilled(task: Task) -> Task:
    """The task with 0 for every drawn duration."""
    calls = tuple(
        replace(call, tools=tuple(replace(tool, duration_ps=0) if tool.filled else tool for tool in call.tools))
        for call in task.calls
    )
    return replace(task, calls=calls)


def test_a_fill_does_not_depend_on_other_tasks(tmp_path: Path) -> None:
    lines = gzip.decompress((TRACES / "swebench_mini_swe_gemini3.sessions.jsonl.gz").read_bytes()).splitlines()
    rows = [json.loads(line) for line in lines[:6]]
    whole = {task.name: task.calls for task in read(tmp_path, rows)}
    part = {task.name: task.calls for task in read(tmp_path, rows[3:])}
    assert part == {name: whole[name] for name in part}


def test_sessions_may_share_nothing() -> None:
    alone = list(open_trace("weka", share="session").tasks())
    assert not any(task.prefixes for task in alone)
    assert all(task.calls[0].extends is None for task in alone)
    shared = list(open_trace("weka").tasks())
    assert all(task.calls[0].extends for task in shared)
    assert [len(task.calls) for task in alone] == [len(task.calls) for task in shared]


# ---- session files made by hand


def weka_step(runs: list[list[int]], tokens: int, start_s: float = 0.0, **fields: Any) -> dict[str, Any]:
    return {"t": start_s, "in": tokens, "out": 10, "llm_s": 1.0, "pre_s": 2.0, "trig": "tool", "hr": runs, **fields}


def session(sid: str, steps: list[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    return {"sid": sid, "src": "weka", "steps": steps, "block_size": 64, **fields}


def test_block_ids_find_the_longest_earlier_prefix(tmp_path: Path) -> None:
    steps = [
        weka_step([[10, 3]], 200),
        weka_step([[10, 6]], 390),
        weka_step([[10, 3], [50, 2]], 330),
        weka_step([[10, 5], [70, 1]], 400),
        weka_step([[90, 1]], 64),
        weka_step([[10, 3]], 192, out=0),
    ]
    [task] = read(tmp_path, [session("s", steps)])
    assert [(call.extends, call.keep_tokens) for call in task.calls] == [
        (None, 0), ("0", 192), ("1", 192), ("1", 320), (None, 0), ("3", 192),
    ]  # fmt: skip
    assert [call.new_tokens for call in task.calls][-1] == 0
    assert task.calls[-1].output_tokens == 1
    assert task.calls[0].tools == (Tool("tool", 2 * S),)
    assert task.calls[-1].tools == ()


def test_prefixes_nest_and_stop_at_the_prompt(tmp_path: Path) -> None:
    sizes = {"tool_tokens": 1000, "system_tokens": 100}
    rows = [
        session("a", [weka_step([[1, 31]], 2000)], **sizes),
        session("b", [weka_step([[9, 16]], 1050)], **sizes),
        session("c", [weka_step([[9, 16]], 1050)], tool_tokens=1000, system_tokens=None),
        session("d", [weka_step([[9, 16]], 1050)], tool_tokens=0, system_tokens=7),
    ]
    a, b, c, d = read(tmp_path, rows)
    tools, system = Prefix("weka/tools/1000", 1000), Prefix("weka/system/1000/100", 100, "weka/tools/1000", 1000)
    assert a.prefixes == b.prefixes == (tools, system)
    assert (a.calls[0].extends, a.calls[0].keep_tokens, a.calls[0].new_tokens) == (system.name, 1100, 900)
    assert (b.calls[0].keep_tokens, b.calls[0].new_tokens) == (1050, 0)
    assert (c.prefixes, c.calls[0].keep_tokens) == ((tools,), 1000)
    assert d.prefixes == (Prefix("weka/system/0/7", 7),)


def sub_agent(sid: str, spawn_s: float, wall_s: float, after: int, **fields: Any) -> dict[str, Any]:
    steps = [weka_step([[500, 2]], 140, 0.0), weka_step([[500, 3]], 200, 4.0)]
    return session(sid, steps, parent="p", spawn_t=spawn_s, agent_wall_s=wall_s, spawn_after_step=after) | fields


PARENT = session(
    "p", [weka_step([[1, 2]], 150, 0.0), weka_step([[1, 4]], 300, 21.0, pre_s=20.0), weka_step([[1, 5]], 350, 30.0)]
)


def test_a_parent_waits_for_its_sub_agent(tmp_path: Path) -> None:
    # the parent answers at 1 s, the sub-agent runs from 4 s to 16 s (the moment spawn_t), the parent goes on at 21 s
    for rows in ([PARENT, sub_agent("p/a", 16.0, 12.0, 0)], [sub_agent("p/a", 16.0, 12.0, 0), PARENT]):
        [task] = read(tmp_path, rows)
        assert [call.name for call in task.calls] == ["0", "p/a#0", "p/a#1", "1", "2"]
        first, sub, last, joined, end = task.calls
        assert first.tools == ()
        assert (sub.after, sub.delay_ps, sub.agent, sub.extends) == (("0",), 3 * S, "p/a", None)
        assert last.after == ("p/a#0",)
        assert (last.extends, last.keep_tokens) == ("p/a#0", 128)
        assert (joined.after, joined.delay_ps) == (("0", "p/a#1"), (20 - 3 - 12) * S)
        assert joined.tools == (Tool("tool", 2 * S),)
        assert end.after == ("1",)


def test_a_sub_agent_that_is_still_busy_runs_side_by_side(tmp_path: Path) -> None:
    [task] = read(tmp_path, [PARENT, sub_agent("p/a", 100.0, 99.0, 0), sub_agent("p/b", 15.0, 13.0, 0)])
    calls = {call.name: call for call in task.calls}
    assert calls["1"].after == ("0", "p/b#1")
    assert calls["1"].delay_ps == (20 - 1 - 13) * S
    assert calls["p/a#0"].after == ("0",)


def test_a_spawn_time_that_can_only_be_the_start(tmp_path: Path) -> None:
    [task] = read(tmp_path, [PARENT, sub_agent("p/a", 5.0, 12.0, 0)])
    calls = {call.name: call for call in task.calls}
    assert calls["p/a#0"].delay_ps == 4 * S
    assert (calls["1"].after, calls["1"].delay_ps) == (("0", "p/a#1"), 4 * S)


def test_sub_agents_before_after_and_below(tmp_path: Path) -> None:
    rows = [
        PARENT,
        sub_agent("p/early", 8.0, 6.0, -1),
        sub_agent("p/late", 60.0, 10.0, 99),
        sub_agent("q", 3.0, 2.0, 0, parent="p/early"),
        sub_agent("r", 9.0, 8.0, -1, parent="p/early"),
        sub_agent("alone", 9.0, 8.0, 3, parent="nobody"),
    ]
    task, alone = read(tmp_path, rows)
    calls = {call.name: call for call in task.calls}
    assert (calls["p/early#0"].after, calls["p/early#0"].delay_ps) == ((), 2 * S)
    assert (calls["p/late#0"].after, calls["p/late#0"].delay_ps) == (("2",), 19 * S)
    assert calls["q#0"].after == ("p/early#0",)
    assert (calls["r#0"].after, calls["r#0"].delay_ps) == ((), 3 * S)
    assert alone.name == "alone"
    assert [call.agent for call in alone.calls] == ["", ""]
    assert len(task.calls) == 3 + 2 * 4


def test_a_sub_agent_with_the_same_tools_believes_the_block_ids(tmp_path: Path) -> None:
    sizes = {"tool_tokens": 100, "system_tokens": 20}
    rows = [PARENT | sizes, sub_agent("p/a", 16.0, 12.0, 0) | sizes, sub_agent("p/b", 16.0, 12.0, 0, tool_tokens=90)]
    [task] = read(tmp_path, rows)
    calls = {call.name: call for call in task.calls}
    assert calls["0"].extends == "weka/system/100/20"
    assert calls["p/a#0"].extends is None
    assert calls["p/b#0"].extends in {"p/a#0", "p/a#1"}


def test_append_only_sessions_repeat_all_but_the_reasoning(tmp_path: Path) -> None:
    steps = [
        {"in": 100, "out": 50, "reason": 30, "cyc_s": 2, "tools": [{"n": "bash", "c": "wait", "s": None}]},
        {"in": 200, "out": 5, "reason": 0, "cyc_s": 3, "tools": [{"n": "bash", "c": "new class", "s": 1.5}]},
        {"in": 90, "out": 5},
    ]
    rows = [{"sid": "a", "src": "another_agent", "t0_epoch": 1763511695.5, "steps": steps},
            {"sid": "b", "src": "another_agent", "t0_epoch": 1763511690, "steps": steps[:1]}]  # fmt: skip
    a, b = read(tmp_path, rows)
    assert [(call.extends, call.keep_tokens) for call in a.calls] == [(None, 0), ("0", 120), ("1", 90)]
    assert (a.arrival_ps, b.arrival_ps) == (55 * S // 10, 0)
    assert a.calls[0].tools[0].name == "bash/wait"
    assert a.calls[0].tools[0].filled
    assert a.calls[0].tool_ps <= 2 * S
    assert a.calls[1].tools == (Tool("bash/new class", 15 * S // 10),)


def test_log_times_and_repeats_of_any_earlier_request(tmp_path: Path) -> None:
    steps = [
        {"t": 0.0, "in": 100, "out": 10, "pfx_tok": None, "pfx_from": None},
        {"t": 3.0, "in": 0, "out": 10, "pfx_tok": 0, "pfx_from": None},
        {"t": 5.0, "in": 300, "out": 100, "pfx_tok": 0, "pfx_from": None},
        {"t": 5.5, "in": 200, "out": 100, "pfx_tok": 100, "pfx_from": 0},
        {"t": 9.0, "in": 100, "out": 100, "pfx_tok": 100, "pfx_from": 1},
    ]
    [task] = read(tmp_path, [{"sid": "a", "steps": steps}, {"sid": "empty", "steps": []}])
    assert [(call.name, call.extends, call.keep_tokens) for call in task.calls] == [
        ("0", None, 0), ("2", None, 0), ("3", "0", 100), ("4", None, 0),
    ]  # fmt: skip
    assert [call.tools for call in task.calls] == [
        (Tool("tool", 4 * S, True),), (Tool("tool", 0, True),), (Tool("tool", 25 * S // 10, True),), (),
    ]  # fmt: skip


def test_recorded_waits_come_first(tmp_path: Path) -> None:
    steps = [
        {"t": 0, "llm_s": 2, "in": 5, "out": 1, "tools": [{"n": "sql", "s": None}]},
        {"t": 5, "llm_s": 2, "in": 5, "out": 1},
        {"t": 6, "in": 5, "out": 1, "trig": "user"},
        {"in": 5, "out": 1, "trig": "user", "pre_s": -0.5},
        {"in": 5, "out": 1, "trig": "user", "pre_s": 1e7},
    ]
    [task] = read(tmp_path, [{"sid": "a", "steps": steps}])
    assert [call.tools for call in task.calls[:3]] == [(Tool("sql", 3 * S),), (Tool("user", 0),)[:0], ()]
    assert task.calls[3].tool_ps <= 92_234 * S
    check_task(task)


BAD_SESSIONS: list[tuple[dict[str, Any], str]] = [
    ({"sid": 3, "steps": []}, "sid is 3"),
    ({"sid": "a", "steps": {}}, "steps is an object"),
    ({"sid": "a", "steps": [3]}, "a step is 3"),
    ({"sid": "a", "steps": [{"out": 1}]}, "in is missing"),
    ({"sid": "a", "steps": [{"in": 1}]}, "out is missing"),
    ({"sid": "a", "steps": [{"in": True, "out": 1}]}, "in is True"),
    ({"sid": "a", "steps": [{"in": -1, "out": 1}]}, "in is -1"),
    ({"sid": "a", "steps": [{"in": 1.5, "out": 1}]}, "in is 1.5"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "t": -1}]}, "t is -1"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "t": "x"}]}, "t is 'x'"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "hr": 5}]}, "hr is 5"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "hr": [[1]]}]}, "hr holds"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "hr": [[1, -1]]}]}, "hr holds"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "hr": [[1, True]]}]}, "hr holds"),
    ({"sid": "a", "block_size": 0, "steps": [{"in": 1, "out": 1, "hr": []}]}, "block_size is 0"),
    ({"sid": "a", "tool_tokens": -5, "steps": [{"in": 1, "out": 1}]}, "tool_tokens"),
    ({"sid": "a", "t0_epoch": "x", "steps": [{"in": 1, "out": 1}]}, "t0_epoch is 'x'"),
    ({"sid": "a", "parent": 3, "steps": []}, "parent is 3"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1}, {"in": 1, "out": 1, "pfx_tok": 1, "pfx_from": 1}]}, "pfx_from is 1"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1}, {"in": 1, "out": 1, "pfx_tok": "1"}]}, "pfx_tok is '1'"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "reason": -1}, {"in": 1, "out": 1}]}, "reason is -1"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "tools": 3}, {"in": 1, "out": 1}]}, "tools is 3"),
    ({"sid": "a", "steps": [{"in": 1, "out": 1, "tools": [{"n": 3}]}]}, "name of a tool is 3"),
    ({"sid": "fine", "steps": []}, "session 'fine' twice"),
    ({"sid": "a", "parent": "b", "steps": [{"in": 1, "out": 1}]}, "its own ancestor"),
]


@pytest.mark.parametrize(("row", "says"), BAD_SESSIONS, ids=range(len(BAD_SESSIONS)))
def test_a_mistake_in_a_session(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    rows = [{"sid": "fine", "steps": [{"in": 1, "out": 1}]}, row]
    rows += [{"sid": "b", "parent": "a", "steps": [{"in": 1, "out": 1}]}] if row.get("parent") == "b" else []
    with pytest.raises(TraceError, match=re.escape(says)) as caught:
        read(tmp_path, rows)
    assert "x.jsonl:2" in str(caught.value)


# ---- sharing by run-length coded ids


def expanded(runs: list[list[int]]) -> list[int]:
    return [first + place for first, count in runs for place in range(count)]


def common(left: list[Any], right: list[Any]) -> int:
    return next((n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))


RUNS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)).map(list), max_size=5)


@settings(max_examples=600, deadline=None)
@given(st.lists(RUNS, max_size=12))
def test_runs_against_block_by_block(sequences: list[list[list[int]]]) -> None:
    trie = RunTrie()
    for call, runs in enumerate(sequences):
        blocks = [common(expanded(runs), expanded(earlier)) for earlier in sequences[:call]]
        best = max(blocks, default=0)
        latest = max((n for n, shared in enumerate(blocks) if shared == best), default=-1) if best else -1
        assert trie.add(runs, call) == (latest, best)


# ---- agentic_mooncake


def row(name: str, ids: list[int], **fields: Any) -> dict[str, Any]:
    sizes = {"input_length": 512 * len(ids), "output_length": 5, "hash_ids": ids}
    return {"request_id": name, "session_id": "s", **sizes, **fields}


def test_waits_and_arrivals(tmp_path: Path) -> None:
    rows = [
        row("a", [1], timestamp=1500.5),
        row("b", [1, 2], timestamp=1600, wait_for=["a"], delay=10.0, tool_wait_ms=0.25, extra=1),
        row("c", [1, 3], timestamp=2000.5),
        row("d", [1, 2, 4], wait_for=["b", "c", "b"], tool_wait_ms=None, delay=1e12),
    ]
    [task] = read(tmp_path, rows)
    assert (task.name, task.arrival_ps) == ("s", 15005 * S // 10_000)
    assert [call.after for call in task.calls] == [(), ("a",), (), ("b", "c")]
    assert [call.delay_ps for call in task.calls[:3]] == [0, 10_250_000_000, S // 2]
    assert [(call.extends, call.keep_tokens) for call in task.calls] == [
        (None, 0), ("a", 512), ("b", 512), ("b", 1024),
    ]  # fmt: skip
    assert not any(call.tools for call in task.calls)


def test_sessions_share_named_blocks(tmp_path: Path) -> None:
    rows = [row("a", [1, 2, 3]), row("b", [1, 2, 4], session_id="t"), row("c", [1, 9], session_id="u")]
    a, b, c = read(tmp_path, rows)
    assert a.prefixes == b.prefixes == (Prefix("blocks/1", 512), Prefix("blocks/2", 512, "blocks/1", 512))
    assert c.prefixes == a.prefixes[:1]
    assert [task.calls[0].keep_tokens for task in (a, b, c)] == [1024, 1024, 512]
    assert a.arrival_ps is None


def test_sessions_that_wait_for_each_other_are_one_task(tmp_path: Path) -> None:
    rows = [
        row("x", [7], session_id="other", timestamp=0),
        row("a", [1], branches=["sub"]),
        row("sub", [2], session_id="child"),
        row("b", [1, 3], wait_for=["a", "late"], branches=["beside"], delay=3),
        row("late", [4], session_id="child", wait_for=["sub"]),
        row("beside", [5], session_id="third", tool_wait_ms=1),
        {"input_length": 5, "output_length": 0},
    ]
    other, task, single = read(tmp_path, rows)
    assert (other.name, task.name, single.name) == ("other", "s", "row 7")
    calls = {call.name: call for call in task.calls}
    assert {name: call.agent for name, call in calls.items()} == {
        "a": "", "sub": "child", "b": "", "late": "child", "beside": "third",
    }  # fmt: skip
    assert calls["beside"].after == ("a", "late")
    assert calls["beside"].delay_ps == 4 * 10**9
    assert list(calls).index("late") < list(calls).index("b")
    assert single.calls == (Call("row 7", 5, 1),)


def test_unix_times_count_from_the_first(tmp_path: Path) -> None:
    tasks = read(tmp_path, [row("a", [1], timestamp=1.76e12), row("b", [1], session_id="t", timestamp=1.76e12 + 250)])
    assert [task.arrival_ps for task in tasks] == [0, S // 4]


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    (row("a", [1]), "request 'a' twice"),
    (row("b", [1]) | {"input_length": 0}, "input_length is 0"),
    (row("b", [1]) | {"input_length": "512"}, "input_length is '512'"),
    (row("b", [1]) | {"output_length": -1}, "output_length is -1"),
    (row("b", [1, 2], input_length=400), "2 block ids for 400 tokens"),
    (row("b", [1, 2], input_length=2000), "block_tokens=1000 would fit"),
    (row("b", [1, True]), "hash_ids holds"),
    (row("b", ["1"]), "hash_ids holds"),  # type: ignore[list-item]
    (row("b", [1], hash_ids=3), "hash_ids is 3"),
    (row("b", [1], wait_for=["z"]), "unknown request 'z'"),
    (row("b", [1], wait_for="a"), "wait_for is 'a'"),
    (row("b", [1], wait_for=["b"]), "wait for each other"),
    (row("b", [1], branches=["z"]), "unknown request 'z'"),
    (row("b", [1], timestamp=-1), "timestamp is -1"),
    (row("b", [1], delay=-1), "delay is -1"),
    (row("b", [1], delay=True), "delay is True"),
    (row("b", [1], tool_wait_ms="x"), "tool_wait_ms is 'x'"),
    (row("b", [1], session_id=4), "session_id is 4"),
    (row("b", [1], request_id=4), "request_id is 4"),
]


@pytest.mark.parametrize(("bad", "says"), BAD_ROWS, ids=range(len(BAD_ROWS)))
def test_a_mistake_in_a_request(tmp_path: Path, bad: dict[str, Any], says: str) -> None:
    with pytest.raises(TraceError, match=re.escape(says)) as caught:
        read(tmp_path, [row("a", [1]), bad])
    assert "x.jsonl:2" in str(caught.value)


def content(tasks: list[Task]) -> dict[str, list[tuple[str, int]]]:
    """What every token of every prompt is: a name that is equal where the content is known to be equal."""
    prompts: dict[str, list[tuple[str, int]]] = {}
    for task in tasks:
        contexts: dict[str | None, list[tuple[str, int]]] = {None: []}
        for prefix in task.prefixes:
            own = [(f"prefix {prefix.name}", place) for place in range(prefix.new_tokens)]
            contexts[prefix.name] = contexts[prefix.extends][: prefix.keep_tokens] + own
        for call in task.calls:
            own = [(f"{task.name} {call.name}", place) for place in range(call.new_tokens + call.output_tokens)]
            contexts[call.name] = contexts[call.extends][: call.keep_tokens] + own
            prompts[call.name] = contexts[call.name][: call.prompt_tokens]
    return prompts


@st.composite
def mooncake_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Small files with blocks of 4 tokens: forks, repeats, partly filled last blocks, ends without an id."""
    rows: list[dict[str, Any]] = []
    for place in range(draw(st.integers(1, 10))):
        base = draw(st.sampled_from([[], *(earlier["hash_ids"] for earlier in rows)]))
        ids = base[: draw(st.integers(0, len(base)))] + draw(st.lists(st.integers(0, 2), max_size=4))
        length = 4 * len(ids) + draw(st.integers(-3 if ids else 1, 3))
        if rows and draw(st.booleans()):
            fields: dict[str, Any] = {"wait_for": [rows[-1]["request_id"]], "session_id": rows[-1]["session_id"]}
        else:
            fields = {"session_id": draw(st.sampled_from("xyz"))}
        rows.append(row(f"r{place}", ids, **fields) | {"input_length": length})
    return rows


@settings(max_examples=400, deadline=None)
@given(rows=mooncake_rows())
def test_sharing_is_exactly_that_of_the_block_ids(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    tasks = read(tmp_path_factory.mktemp("m"), rows, block_tokens=4)
    prompts = content(tasks)
    declared: dict[str, Prefix] = {}
    for task in tasks:
        check_task(task)
        assert all(declared.setdefault(prefix.name, prefix) == prefix for prefix in task.prefixes)
    for left in rows:
        assert len(prompts[left["request_id"]]) == left["input_length"]
        for right in rows:
            if left is not right:
                blocks = common(left["hash_ids"], right["hash_ids"])
                wanted = min(4 * blocks, left["input_length"], right["input_length"])
                assert common(prompts[left["request_id"]], prompts[right["request_id"]]) == wanted


def test_the_sample() -> None:
    tasks = list(open_trace("agentic-mooncake-sample").tasks())
    assert len(tasks) == 12
    assert {len(task.calls) for task in tasks} == {20}
    rows = [json.loads(line) for line in (TRACES / "agentic_mooncake_sample.jsonl").read_text().splitlines()]
    prompts = {call.name: call.prompt_tokens for task in tasks for call in task.calls}
    assert prompts == {r["request_id"]: r["input_length"] for r in rows}
    waits = {call.name: call.delay_ps for task in tasks for call in task.calls if call.after}
    assert waits == {r["request_id"]: round(r["tool_wait_ms"] * 1000) * 10**6 for r in rows if "wait_for" in r}


@pytest.mark.bench
def test_speed(tmp_path: Path) -> None:
    rows = []
    for number in range(600):
        ids = list(range(16))
        for step in range(20):
            ids = ids + [10**5 + number * 1000 + step * 10 + place for place in range(3)]
            waits = {"wait_for": [f"{number}-{step - 1}"], "tool_wait_ms": 123.456} if step else {"timestamp": number}
            rows.append(row(f"{number}-{step}", ids, session_id=f"s{number}", **waits))
    path = write(tmp_path, rows)
    times = []
    for _ in range(5):
        start = time.process_time()
        assert sum(len(task.calls) for task in open_trace(path).tasks()) == 12_000
        times.append(time.process_time() - start)
    assert min(times) < 0.25
