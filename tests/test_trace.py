"""The native format, its errors, and what is done with traces as a whole."""

from __future__ import annotations

import gzip
import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Call, Prefix, Task, Tool
from sagasim.errors import ConfigError, TraceError
from sagasim.importers import lines
from sagasim.trace import (
    LengthReport,
    open_trace,
    over_length,
    take,
    trace_names,
    trace_stats,
    validate,
    write_trace,
)

ROOT = Path(__file__).parent.parent
HEADER = {"sagasim_trace": 1}
CALL: dict[str, Any] = {"name": "a", "new_tokens": 10, "output_tokens": 5}
NEXT: dict[str, Any] = {"name": "b", "extends": "a", "new_tokens": 1, "output_tokens": 1}
US = 10**6
S = 10**12


def task_of(*calls: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"task": "t", "calls": list(calls), **fields}


def file_of(folder: Path, *rows: Any, name: str = "x.jsonl", header: Any = HEADER) -> Path:
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in (header, *rows)))
    return path


def read(path: Path) -> list[Task]:
    return list(open_trace(path).tasks())


# ---- reading


def test_the_documented_example(tmp_path: Path) -> None:
    text = (ROOT / "docs/trace-format.md").read_text()
    path = tmp_path / "example.jsonl"
    path.write_text(re.search(r"```jsonl\n(.*?)```", text, re.DOTALL).group(1))  # type: ignore[union-attr]
    trace = open_trace(path)
    review, question = trace.tasks()
    assert (trace.name, trace.format) == ("example", "native")
    assert trace.filled == {"tool_s": "log-normal, median 2 s"}
    system = Prefix("system", 1200)
    read_call, left, right, merge = review.calls
    assert review.prefixes == question.prefixes == (system,)
    assert (review.tenant, review.agent, review.arrival_ps) == ("blue", "reviewer", S // 2)
    assert (read_call.extends, read_call.keep_tokens, read_call.after) == ("system", 1200, ())
    assert left == Call("left", 2000, 400, "read", 1580, ("read",), agent="sub/left")
    assert right.tools == (Tool("code", 25 * S // 10, True),)
    assert merge == Call("merge", 750, 500, "read", 1580, ("left", "right"), 125 * S // 100)
    assert question.calls == (Call("answer", 60, 120, "system", 1200),)


def test_defaults(tmp_path: Path) -> None:
    rows = task_of(CALL, NEXT, {"name": "c", "new_tokens": 3, "output_tokens": 1, "after": []})
    [task] = read(file_of(tmp_path, rows))
    assert task == Task(
        "t",
        (Call("a", 10, 5), Call("b", 1, 1, "a", 15, ("a",)), Call("c", 3, 1)),
    )


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x"])
def test_gzip_is_told_by_its_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = json.dumps(HEADER) + "\n" + json.dumps(task_of(CALL))
    path.write_bytes(gzip.compress(text.encode()))
    assert len(read(path)) == 1
    path.write_text(text + "\n\n")
    assert len(read(path)) == 1


def test_every_pass_is_fresh(tmp_path: Path) -> None:
    trace = open_trace(file_of(tmp_path, task_of(CALL), task_of(CALL, task="u")))
    first = trace.tasks()
    next(first)
    assert [task.name for task in trace.tasks()] == ["t", "u"]
    assert [task.name for task in first] == ["u"]


# ---- mistakes: (rows after the header, what the line must say)

BAD_TASKS: list[tuple[Any, str]] = [
    ("not json", "not JSON"),
    ("{", "not JSON"),
    ("[]", "a list instead of an object"),
    ("null", "null instead of an object"),
    ('"x"', "a string instead of an object"),
    ("7", "a number instead of an object"),
    ("[" * 100_000, "depth limit exceeded"),
    ('{"task": NaN}', "not JSON"),
    ('{"task": -Infinity}', "not JSON"),
    ('{"task": ' + "1" * 5000 + "}", "not JSON"),
    ("", "empty line"),
    ({}, "task is null"),
    ({"task": "t"}, "calls is null"),
    ({"task": 1, "calls": [CALL]}, "task is 1"),
    ({"task": "", "calls": [CALL]}, "printable characters"),
    ({"task": "a\nb", "calls": [CALL]}, "printable characters"),
    ({"task": "\ud800", "calls": [CALL]}, "no low surrogate"),
    ({"task": "x" * 1000, "calls": [CALL]}, "printable characters"),
    (task_of(), "a task without calls"),
    (task_of(calls={}), "calls is an object"),
    (task_of(CALL, tenat="x"), "'tenant' perhaps"),
    (task_of(CALL, tenant=3), "tenant is 3"),
    (task_of(CALL, arrival_s=-1), "arrival_s is -1"),
    (task_of(CALL, arrival_s=True), "arrival_s is True"),
    (task_of(CALL, arrival_s="0"), "arrival_s is '0'"),
    (task_of(CALL, arrival_s=1e9), "a number from 0 to 92234"),
    ('{"task": "t", "arrival_s": 1e999, "calls": []}', "infinity"),
    (task_of(3), "a call is 3"),  # type: ignore[arg-type]
    (task_of({**CALL, "newtokens": 3}), "'new_tokens' perhaps"),
    (task_of({**CALL, "name": None}), "name of a call"),
    (task_of({**CALL, "new_tokens": True}), "new_tokens is True"),
    (task_of({**CALL, "new_tokens": 1.0}), "new_tokens is 1.0"),
    (task_of({**CALL, "new_tokens": "10"}), "new_tokens is '10'"),
    (task_of({**CALL, "new_tokens": -1}), "new_tokens is -1"),
    (task_of({**CALL, "new_tokens": 10**10}), "from 0 to 100000000"),
    (task_of({**CALL, "new_tokens": 10**40}), "new_tokens is 1e+40"),
    (task_of({**CALL, "new_tokens": 0}), "an empty prompt"),
    (task_of({**CALL, "output_tokens": 0}), "output_tokens is 0"),
    (task_of({"name": "a", "output_tokens": 1}), "new_tokens is missing"),
    (task_of({"name": "a", "new_tokens": 1}), "output_tokens is missing"),
    (task_of(CALL, CALL), "name used twice"),
    (task_of(CALL, {**NEXT, "extends": "z"}), "unknown context 'z'"),
    (task_of({**NEXT, "extends": "a"}, CALL), "unknown context 'a'"),
    (task_of(CALL, {**NEXT, "extends": "b"}), "unknown context 'b'"),
    (task_of(CALL, {**NEXT, "extends": 3}), "unknown context 3"),
    (task_of(CALL, {**NEXT, "extends": ["a"]}), "unknown context"),
    (task_of(CALL, {**NEXT, "keep_tokens": 16}), "keeps 16 tokens of a context of 15"),
    (task_of(CALL, {**NEXT, "keep_tokens": -1}), "keep_tokens is -1"),
    (task_of({**CALL, "keep_tokens": 5}), "keeps 5 tokens of a context of 0"),
    (task_of(CALL, {**NEXT, "after": []}), "without running after it"),
    (task_of(CALL, {**NEXT, "after": "a"}), "after is 'a'"),
    (task_of(CALL, {**NEXT, "after": [1]}), "after is 1"),
    (task_of(CALL, {**NEXT, "after": ["z"]}), "unknown call 'z'"),
    (task_of({**CALL, "after": ["b"]}, NEXT), "unknown call 'b'"),
    (task_of({**CALL, "after": ["a"]}), "unknown call 'a'"),
    (task_of(CALL, {**NEXT, "after": ["a", "a"]}), "twice"),
    (task_of({**CALL, "delay_s": -0.5}), "delay_s is -0.5"),
    (task_of({**CALL, "delay_s": 1e6}), "delay_s"),
    (task_of({**CALL, "tools": {}}), "tools is an object"),
    (task_of({**CALL, "tools": [1]}), "a tool is 1"),
    (task_of({**CALL, "tools": [{"name": "x"}]}), "s of a tool is null"),
    (task_of({**CALL, "tools": [{"name": "x", "s": -1}]}), "s of a tool is -1"),
    (task_of({**CALL, "tools": [{"name": "x", "s": True}]}), "s of a tool is True"),
    (task_of({**CALL, "tools": [{"name": "", "s": 1}]}), "name of a tool"),
    (task_of({**CALL, "tools": [{"name": "x", "s": 1, "filled": 1}]}), "true or false"),
    (task_of({**CALL, "tools": [{"name": "x", "s": 1, "fill": True}]}), "'filled' perhaps"),
    (task_of(CALL, prefixes=3), "prefixes is 3"),
    (task_of(CALL, prefixes=[{"name": "p", "new_tokens": 0}]), "new_tokens is 0"),
    (task_of(CALL, prefixes=[{"name": "p"}]), "new_tokens is missing"),
    (task_of(CALL, prefixes=[{"name": "p", "new_tokens": 5, "extends": "q"}]), "unknown context 'q'"),
    (task_of(CALL, prefixes=[{"name": "p", "new_tokens": 5, "output_tokens": 1}]), "unknown key 'output_tokens'"),
    (task_of(CALL, prefixes=[{"name": "a", "new_tokens": 5}]), "name used twice"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "says"), BAD_TASKS, ids=range(len(BAD_TASKS)))
def test_a_mistake_in_a_task(tmp_path: Path, row: Any, says: str) -> None:
    path = file_of(tmp_path, task_of(CALL, task="fine"), row, task_of(CALL, task="last"))
    with pytest.raises(TraceError) as caught:
        read(path)
    message = str(caught.value)
    assert says in message, message
    assert f"{path}:3" in message
    assert caught.value.expected
    assert "\n" not in message
    assert len(message) < 900


BAD_HEADERS: list[tuple[Any, str]] = [
    ({"sagasim_trace": 2}, "format version 2"),
    ({"sagasim_trace": True}, "format version True"),
    ({"sagasim_trace": "1"}, "format version '1'"),
    ({"sagasim_trace": 1, "naem": "x"}, "'name' perhaps"),
    ({"sagasim_trace": 1, "name": 3}, "name is 3"),
    ({"sagasim_trace": 1, "filled": []}, "filled is a list"),
    ({"sagasim_trace": 1, "filled": {"tool_s": 3}}, "tool_s is 3"),
    ({"sagasim": 1}, "unknown format"),
    ({}, "unknown format"),
    ([], "unknown format"),
]


@pytest.mark.parametrize(("header", "says"), BAD_HEADERS, ids=range(len(BAD_HEADERS)))
def test_a_mistake_in_the_header(tmp_path: Path, header: Any, says: str) -> None:
    path = file_of(tmp_path, task_of(CALL), header=header)
    with pytest.raises(TraceError, match=re.escape(says)) as caught:
        read(path)
    assert f"{path}:1" in str(caught.value)


def packed_example() -> bytes:
    rows = [HEADER, *(task_of(CALL, task=f"t{i}") for i in range(50))]
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "only a newline": (b"\n", "an empty file"),
    "empty gzip": (gzip.compress(b""), "an empty file"),
    "header alone": (json.dumps(HEADER).encode(), "a header without tasks"),
    "binary": (bytes(range(128, 256)) * 20, "not text"),
    "zeros": (b"\0" * 100, "not text"),
    "gzip magic alone": (b"\x1f\x8b", "broken gzip"),
    "cut gzip": (packed_example()[:-60], "broken gzip"),
    "cut gzip trailer": (packed_example()[:-4], "broken gzip"),
    "flipped gzip": (packed_example()[:40] + b"\xff\xff" + packed_example()[42:], "broken gzip"),
    "wrong check sum": (packed_example()[:-8] + b"\0\0\0\0" + packed_example()[-4:], "broken gzip"),
    "cut line": (f"{json.dumps(HEADER)}\n{json.dumps(task_of(CALL))[:-3]}".encode(), "ends inside a line"),
    "same task twice": ("\n".join(map(json.dumps, [HEADER, task_of(CALL), task_of(CALL)])).encode(), "'t' twice"),
    "utf-16": (json.dumps(HEADER).encode("utf-16"), "not text"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_is_no_trace(tmp_path: Path, case: str) -> None:
    data, says = BAD_FILES[case]
    path = tmp_path / "bad.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=re.escape(says)) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no such file"):
        open_trace(tmp_path / "nothing.jsonl")
    with pytest.raises(TraceError, match="a folder"):
        open_trace(tmp_path)
    with pytest.raises(TraceError, match="not a regular file"):
        open_trace("/dev/null")
    with pytest.raises(TraceError, match="'weka' perhaps"):
        open_trace("wekka")


def test_a_prefix_has_one_declaration(tmp_path: Path) -> None:
    rows = [task_of(CALL, task=str(n), prefixes=[{"name": "p", "new_tokens": n}]) for n in (5, 6)]
    with pytest.raises(TraceError, match="prefix 'p' declared differently"):
        read(file_of(tmp_path, *rows))


def test_a_small_file_that_unpacks_to_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 2**20)
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(64):
            stream.write(b" " * 2**20)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    with pytest.raises(TraceError, match="too long"):
        open_trace(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20


def test_options_are_checked(tmp_path: Path) -> None:
    path = file_of(tmp_path, task_of(CALL))
    for name, options in [
        (path, {"block_tokens": 512}),
        ("weka", {"block_tokens": 512}),
        ("weka", {"share": "prefixes"}),
        ("agentic-mooncake-sample", {"block_token": 512}),
        ("agentic-mooncake-sample", {"block_tokens": 0}),
        ("agentic-mooncake-sample", {"block_tokens": True}),
    ]:
        with pytest.raises(ConfigError):
            open_trace(name, **options)


def test_validate_says_it_in_one_line(tmp_path: Path) -> None:
    line = validate(file_of(tmp_path, task_of(CALL, NEXT)))
    assert line.startswith("x: native, 1 tasks, 2 calls, 0 shared prefixes, longest context 17 tokens, sha256 ")
    assert "\n" not in line


# ---- writing

NAMES = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=5)
TIMES = st.integers(0, 92_233 * 10**6).map(lambda us: us * US)
TOOLS = st.lists(st.builds(Tool, NAMES, TIMES, st.booleans()), max_size=2).map(tuple)
FILE_PREFIXES = (Prefix("pré", 40), Prefix("q", 7, "pré", 40), Prefix("r", 9, "pré", 3))


@st.composite
def whole_tasks(draw: st.DrawFn, name: str) -> Task:
    """Any task that can be replayed."""
    prefixes = FILE_PREFIXES[: draw(st.integers(0, 3))]
    ends = {"pré": 40, "q": 47, "r": 12}
    ends = {prefix.name: ends[prefix.name] for prefix in prefixes}
    silent = dict(ends)  # tokens at the start of a context that nobody's output is part of
    calls: list[Call] = []
    for place in range(draw(st.integers(1, 6))):
        parent = draw(st.sampled_from([None, *ends]))
        after = tuple(draw(st.lists(st.sampled_from([call.name for call in calls]), unique=True))) if calls else ()
        most = 0 if parent is None else ends[parent]
        if parent is not None and parent not in after:
            most = silent[parent]
        keep = draw(st.integers(0, most))
        new = draw(st.integers(0 if keep else 1, 10**5))
        output = draw(st.integers(1, 10**4))
        call = Call(f"c{place}", new, output, parent, keep, after, draw(TIMES), draw(TOOLS), draw(NAMES | st.just("")))
        ends[call.name] = keep + new + output
        silent[call.name] = keep + new if parent is None or keep <= silent[parent] else silent[parent]
        calls.append(call)
    arrival = draw(st.none() | TIMES)
    return Task(name, tuple(calls), draw(NAMES), arrival, prefixes, draw(NAMES | st.just("")))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), packed=st.booleans(), count=st.integers(1, 3))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, data: Any, packed: bool, count: int
) -> None:
    tasks = [data.draw(whole_tasks(f"t{place}")) for place in range(count)]
    path = tmp_path_factory.mktemp("w") / ("x.gz" if packed else "x")
    header = {"name": "näme", "source": "s", "licence": "l", "filled": {"tool_s": "text"}}
    assert write_trace(path, tasks, header) == path
    trace = open_trace(path)
    assert list(trace.tasks()) == tasks
    assert (trace.name, trace.filled) == ("näme", {"tool_s": "text"})


def test_written_bytes_repeat_and_nothing_is_overwritten(tmp_path: Path) -> None:
    tasks = [Task("t", (Call("a", 1, 1),))]
    first, second = (write_trace(tmp_path / name, tasks, {}) for name in ("a.gz", "b.gz"))
    assert first.read_bytes() == second.read_bytes()
    assert open_trace(first).sha256 == open_trace(second).sha256
    with pytest.raises(TraceError, match="exists already"):
        write_trace(first, tasks, {})
    with pytest.raises(TraceError, match="cannot be written"):
        write_trace(tmp_path / "no" / "x", tasks, {})


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    good = Task("t", (Call("a", 1, 1),))
    for tasks in (
        [],
        [good, good],
        [good, Task("u", ())],
        [Task("u", (Call("a", 1, 1, delay_ps=1),))],
        [Task("u\n", (Call("a", 1, 1),))],
        [
            good,
            Task("u", (Call("a", 1, 1),), prefixes=(Prefix("p", 1),)),
            Task("v", good.calls, prefixes=(Prefix("p", 2),)),
        ],
    ):
        with pytest.raises(TraceError):
            write_trace(tmp_path / "x.jsonl", tasks, {})
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(TraceError, match="'filled' perhaps"):
        write_trace(tmp_path / "x.jsonl", [good], {"fill": {}})

    def broken() -> Any:
        yield good
        raise KeyError

    with pytest.raises(KeyError):
        write_trace(tmp_path / "x.jsonl", broken(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", trace_names())
def test_imported_tasks_survive_the_native_format(tmp_path: Path, name: str) -> None:
    tasks = list(open_trace(name).tasks(seed=3))
    path = write_trace(tmp_path / "x.jsonl", tasks, {"name": name, "filled": open_trace(name).filled})
    start = time.perf_counter()
    assert read(path) == tasks
    assert time.perf_counter() - start < 10


# ---- what is done with tasks


def small(name: str = "t", arrival_ps: int | None = None) -> Task:
    calls = (
        Call("a", 100, 10),
        Call("b", 20, 10, "a", 110, ("a",), tools=(Tool("x", 2 * S), Tool("y", S, True))),
        Call("side", 500, 10, "a", 50, ("a",)),
        Call("c", 20, 10, "b", 140, ("b",)),
        Call("d", 5, 5, after=("side", "c")),
    )
    return Task(name, calls, arrival_ps=arrival_ps)


def test_over_length_modes() -> None:
    report = LengthReport()
    tasks = [small("long"), Task("short", (Call("a", 10, 1),))]
    with pytest.raises(TraceError, match=r"task 'long': a context of 560 tokens where 400 fit; expected .*drop, trunc"):
        list(over_length(tasks, 400, None))
    assert [task.name for task in over_length(tasks, 400, "drop", report)] == ["short"]
    assert list(over_length(tasks, 400, "extend", report)) == tasks
    cut, short = over_length(tasks, 400, "truncate", report)
    assert ([call.name for call in cut.calls], short) == (["a", "b", "c"], tasks[1])
    assert report == LengthReport(dropped=1, truncated=1, calls_cut=2, extended=1)
    assert list(over_length(tasks, 560, None)) == tasks
    with pytest.raises(ConfigError):
        list(over_length(tasks, 1, "cut"))  # type: ignore[arg-type]


def test_truncating_to_nothing_drops() -> None:
    report = LengthReport()
    assert list(over_length([small()], 50, "truncate", report)) == []
    assert report == LengthReport(dropped=1)


@settings(max_examples=150, deadline=None)
@given(task=whole_tasks("t"), limit=st.integers(1, 300_000))
def test_a_truncated_task_fits_and_can_be_replayed(task: Task, limit: int) -> None:
    from sagasim.core import check_task

    for cut in over_length([task], limit, "truncate"):
        check_task(cut)
        assert cut.max_tokens <= limit
        assert set(cut.calls) <= set(task.calls)


def test_take_starts_again(tmp_path: Path) -> None:
    prefix = [{"name": "p", "new_tokens": 5}]
    trace = open_trace(file_of(tmp_path, *(task_of(CALL, task=name, prefixes=prefix) for name in "xyz")))
    assert [task.name for task in take(trace, 2, 0)] == ["x", "y"]
    taken = list(take(trace, 8, 0))
    assert [task.name for task in taken] == ["x", "y", "z", "x#2", "y#2", "z#2", "x#3", "y#3"]
    assert {task.prefixes for task in taken} == {(Prefix("p", 5),)}
    assert list(take(trace, 0, 0)) == []


def test_stats_by_hand() -> None:
    stats = trace_stats([small()])
    assert (stats["tasks"], stats["calls"], stats["tools"]) == (1, 5, 2)
    assert stats["prefix_share"] == (110 + 50 + 140) / (130 + 550 + 160 + 5)
    assert stats["prompt_tokens"]["mean"] == (100 + 130 + 550 + 160 + 5) / 5
    assert stats["output_tokens"]["p50"] == 10
    assert stats["tool_s"]["mean"] == 1.5
    assert stats["tool_filled_share"] == 0.5
    assert (stats["longest_context_tokens"], stats["tasks_over_131072_tokens"]) == (560, 0)
    assert trace_stats([])["prompt_tokens"] is None
