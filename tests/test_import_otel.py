"""OpenTelemetry GenAI spans: what spans become, in the words of several instrumentations."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.core import Prefix, Task, Tool, check_task
from sagasim.errors import ConfigError, TraceError
from sagasim.trace import open_trace

S = 10**12
START_NS = 1_788_364_167 * 10**9


def any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [any_value(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": [{"key": k, "value": any_value(v)} for k, v in value.items()]}}
    return {"stringValue": value}


def attributes(values: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": any_value(value)} for key, value in values.items()]


def span(
    name: str, start_s: float, end_s: float, parent: str = "", trace: str = "t1", events: Any = None, **values: Any
) -> dict[str, Any]:
    """A span; keywords are attributes, `__` standing for a dot."""
    given = {key.replace("__", "."): value for key, value in values.items()}
    made = {
        "traceId": trace,
        "spanId": name,
        "parentSpanId": parent,
        "name": name,
        "startTimeUnixNano": str(START_NS + round(start_s * 10**9)),
        "endTimeUnixNano": START_NS + round(end_s * 10**9),
        "attributes": attributes(given),
    }
    return made | ({"events": events} if events is not None else {})


def llm(name: str, start_s: float, end_s: float, tokens: int, output: int = 10, parent: str = "", **more: Any) -> Any:
    usage = {"gen_ai__operation__name": "chat", "gen_ai__usage__input_tokens": tokens}
    return span(name, start_s, end_s, parent, **usage, gen_ai__usage__output_tokens=output, **more)


def tool(name: str, start_s: float, end_s: float, parent: str = "", **more: Any) -> Any:
    return span(name, start_s, end_s, parent, gen_ai__operation__name="execute_tool", gen_ai__tool__name=name, **more)


def agent(name: str, start_s: float, end_s: float, parent: str = "", **more: Any) -> Any:
    values = {"gen_ai__operation__name": "invoke_agent", "gen_ai__agent__name": name.split("~")[0]}
    return span(name, start_s, end_s, parent, **values, **more)


def export(*spans: Any) -> dict[str, Any]:
    resource = {"attributes": attributes({"service.name": "demo"})}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": {"name": "x"}, "spans": list(spans)}]}]}


def read(folder: Path, *spans: Any, **options: Any) -> list[Task]:
    """Each span in a line of its own, the last first: exporters write a span when it ends."""
    path = folder / "x"
    path.write_text("".join(json.dumps(export(one)) + "\n" for one in reversed(spans)))
    trace = open_trace(path, **options)
    assert trace.format == "otel"
    tasks = list(trace.tasks())
    for task in tasks:
        check_task(task)
    return tasks


def test_calls_tools_and_delays(tmp_path: Path) -> None:
    [task] = read(
        tmp_path,
        agent("coder", 0, 20),
        llm("a", 1, 3, 100, 20, "coder"),
        tool("grep", 3.5, 5, "coder"),
        tool("ls", 3, 4, "coder"),
        span("http", 3, 4, "coder", http__method="GET"),
        llm("b", 6, 7, 150, 5, "coder"),
        llm("c", 9, 10, 80, 5, "coder"),
        tool("deploy", 10, 19.5, "coder"),
    )
    a, b, c = task.calls
    assert (task.name, task.agent, task.arrival_ps) == ("t1", "coder", 0)
    assert [call.agent for call in task.calls] == ["", "", ""]
    assert a.tools == (Tool("ls", S), Tool("grep", 3 * S // 2))
    assert (b.after, b.delay_ps) == (("0",), 3 * S // 2)  # 3 s from end to start, the longest tool 1.5 s
    assert (b.extends, b.keep_tokens, b.new_tokens) == ("0", 120, 30)  # only appended
    assert (c.after, c.delay_ps, c.extends, c.keep_tokens) == (("1",), 2 * S, None, 0)  # began anew
    assert c.tools == (Tool("deploy", 95 * S // 10),)


def test_spans_that_overlap_are_parallel(tmp_path: Path) -> None:
    [task] = read(
        tmp_path, llm("a", 0, 1, 100), llm("b", 2, 5, 120), llm("c", 2, 4, 130), tool("late", 4, 8), llm("d", 6, 7, 200)
    )
    assert [call.after for call in task.calls] == [(), ("0",), ("0",), ("1", "2")]
    assert [call.delay_ps for call in task.calls] == [0, S, S, S]
    assert task.calls[1].tools == task.calls[2].tools == ()  # nothing waited for the late tool
    assert {call.extends for call in task.calls[1:3]} == {"0"}


def test_sub_agents(tmp_path: Path) -> None:
    [task] = read(
        tmp_path,
        agent("boss", 0, 30),
        llm("a", 0, 1, 100, parent="boss"),
        tool("call_helper", 1, 9, "boss"),
        agent("helper", 2, 9, "call_helper"),
        llm("h1", 2, 4, 50, parent="helper"),
        tool("web", 4, 5, "helper"),
        llm("h2", 5, 8, 90, parent="helper"),
        agent("helper~2", 3, 7, "boss"),
        llm("k1", 3, 6, 40, parent="helper~2"),
        llm("b", 10, 12, 300, parent="boss"),
    )
    calls = {call.name: call for call in task.calls}
    assert [call.agent for call in task.calls] == ["", "helper", "helper#2", "helper", ""]
    assert [call.after for call in task.calls] == [(), ("0",), ("0",), ("1",), ("2", "3")]
    assert calls["0"].tools == ()  # the tool that is an agent is its calls
    assert calls["1"].tools == (Tool("web", S),)
    assert [call.delay_ps for call in task.calls] == [0, S, 2 * S, 0, 2 * S]
    assert (calls["4"].extends, calls["3"].extends, calls["1"].extends) == ("0", "1", None)


def test_a_conversation_of_several_traces_is_one_task(tmp_path: Path) -> None:
    said = {"gen_ai__conversation__id": "conv 7"}
    tasks = read(
        tmp_path,
        agent("bot", 0, 2, trace="t1", **said),
        llm("a", 0, 2, 100, parent="bot", trace="t1"),
        agent("bot", 60, 63, trace="t2", **said),
        llm("b", 61, 63, 130, parent="bot", trace="t2"),
        llm("other", 5, 6, 10, trace="t3"),
    )
    assert [(task.name, task.arrival_ps, len(task.calls)) for task in tasks] == [("conv 7", 0, 2), ("t3", 5 * S, 1)]
    second = tasks[0].calls[1]
    assert (second.after, second.delay_ps, second.agent, second.keep_tokens) == (("0",), 59 * S, "", 110)


def test_the_inner_of_two_spans_for_one_call_counts(tmp_path: Path) -> None:
    [task] = read(
        tmp_path, llm("framework", 0, 5, 100), llm("client", 1, 4, 100, parent="framework"), llm("b", 6, 7, 120)
    )
    assert [(call.prompt_tokens, call.after) for call in task.calls] == [(100, ()), (120, ("0",))]


def test_other_names_of_the_counts(tmp_path: Path) -> None:
    [task] = read(
        tmp_path,
        span("a", 0, 1, gen_ai__usage__prompt_tokens=70, gen_ai__usage__completion_tokens=0),
        span("b", 2, 3, llm__usage__prompt_tokens=80.0, llm__usage__completion_tokens=6),
        span("failed", 4, 5, gen_ai__operation__name="chat", error__type="timeout"),
        llm("anthropic", 6, 7, 5, gen_ai__usage__cache_read__input_tokens=90),
        llm("hidden", 8, 9, 200, 50, gen_ai__usage__reasoning__output_tokens=30),
        llm("next", 10, 11, 300),
        llm("shrunk", 12, 13, 150, gen_ai__usage__cache_read__input_tokens=60),
    )
    assert [(call.prompt_tokens, call.output_tokens) for call in task.calls[:3]] == [(70, 1), (80, 6), (95, 10)]
    assert [call.keep_tokens for call in task.calls] == [0, 71, 86, 105, 220, 60]


# ---- messages


def message(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


SYSTEM, ASK, ANSWER, MORE = (
    message("system", "s" * 1000), message("user", "u" * 200), message("assistant", "a" * 50),
    message("user", "m" * 99),
)  # fmt: skip
FORMS = {
    "a JSON text": lambda said: {"gen_ai__input__messages": json.dumps(said)},
    "structured": lambda said: {"gen_ai__input__messages": said},
    "an attribute each": lambda said: {
        f"gen_ai__prompt__{n}__{key}": value
        for n, one in enumerate(said) for key, value in (("role", one["role"]), ("content", json.dumps(one)))
    },
    "an event each": lambda said: {
        "events": [
            {"name": f"gen_ai.{one['role']}.message", "attributes": attributes({"gen_ai.content": json.dumps(one)})}
            for one in said
        ]
    },
    "one event": lambda said: {
        "events": [{"name": "gen_ai.content.prompt", "attributes": attributes({"gen_ai.prompt": json.dumps(said)})}]
    },
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_messages_say_what_is_shared(tmp_path: Path, form: str) -> None:
    said = FORMS[form]
    [task] = read(
        tmp_path,
        llm("a", 0, 1, 400, 30, **said([SYSTEM, ASK])),
        llm("b", 2, 3, 500, 30, **said([SYSTEM, ASK, ANSWER, MORE])),
        llm("c", 4, 5, 600, 30, **said([SYSTEM, message("user", "another"), ANSWER])),
        llm("d", 6, 7, 700, 30, **said([SYSTEM, ASK, message("user", "no answer")])),
        share="session",
    )
    a, b, c, d = task.calls
    assert (a.extends, a.keep_tokens) == (None, 0)
    assert (b.extends, b.keep_tokens) == ("0", 430)  # the prompt as counted, and the answer that follows it
    assert c.extends == "1"  # the latest of those with the same system message
    assert 0.6 * 500 < c.keep_tokens < 0.8 * 500  # in proportion to characters
    assert d.extends == "1"
    assert d.keep_tokens > c.keep_tokens
    text = (tmp_path / "x").read_text()
    assert "ssss" in text
    assert "ssss" not in repr(task)


def test_a_prompt_never_repeats_an_answer_that_it_did_not_wait_for(tmp_path: Path) -> None:
    long = FORMS["structured"]([SYSTEM, ASK, ANSWER, MORE])
    [task] = read(
        tmp_path,
        agent("boss", 0, 20),
        agent("x", 0, 20, "boss"),
        agent("y", 0, 20, "boss"),
        llm("a", 0, 3, 400, 30, parent="x", **FORMS["structured"]([SYSTEM, ASK])),
        llm("other", 0, 10, 50, parent="y", **FORMS["structured"]([MORE])),
        llm("b", 4, 5, 500, 30, parent="x", **long),
        llm("c", 11, 12, 500, 30, parent="y", **long),
        share="session",
    )
    c = task.calls[-1]
    assert (c.after, c.extends, c.keep_tokens) == (("1",), "0", 400)  # the question, not the answer


def test_tasks_share_their_instructions(tmp_path: Path) -> None:
    tasks = read(
        tmp_path,
        llm("a", 0, 1, 400, trace="t1", **FORMS["structured"]([SYSTEM, ASK])),
        llm("b", 2, 3, 380, trace="t2", **FORMS["structured"]([SYSTEM, MORE])),
        llm("c", 4, 5, 500, trace="t3", **FORMS["structured"]([MORE])),
        llm("d", 6, 7, 100, trace="t4", gen_ai__system_instructions="be brief", **FORMS["structured"]([ASK])),
    )
    [shared] = tasks[0].prefixes
    assert shared == Prefix("instructions/1", shared.new_tokens)
    assert tasks[1].prefixes == (shared,)
    assert (tasks[1].calls[0].extends, tasks[1].calls[0].keep_tokens) == (shared.name, shared.new_tokens)
    assert tasks[2].prefixes == ()
    assert tasks[3].prefixes[0].name == "instructions/2"
    assert not any(task.prefixes for task in open_trace(tmp_path / "x", share="session").tasks())


# ---- the file


def test_one_document_and_what_wraps_it(tmp_path: Path) -> None:
    one = export(llm("a", 0, 1, 100), llm("b", 2, 3, 150))
    batches = {"batches": one["resourceSpans"]}
    for document in (one, batches, {"trace": one}):
        for indent in (None, 2):
            (tmp_path / "x").write_text(json.dumps(document, indent=indent))
            [task] = open_trace(tmp_path / "x").tasks()
            assert [call.prompt_tokens for call in task.calls] == [100, 150]


GOOD = llm("a", 0, 1, 100)
BAD: list[tuple[Any, str]] = [
    (export(), "no LLM span with token counts"),
    (export(tool("x", 0, 1)), "no LLM span with token counts"),
    ({"resourceSpans": 5}, "resourceSpans is 5"),
    ({"resourceSpans": [5]}, "an entry of resourceSpans is 5"),
    ({"resourceSpans": [{"scopeSpans": {}}]}, "scopeSpans is an object"),
    ({"resourceSpans": [{"scopeSpans": [{"spans": [None]}]}]}, "a span is null"),
    (export({**GOOD, "traceId": 5}), "traceId is missing or no id"),
    (export({**GOOD, "spanId": ""}), "spanId is missing or no id"),
    (export({**GOOD, "startTimeUnixNano": "noon"}), "startTimeUnixNano is 'noon'"),
    (export({**GOOD, "startTimeUnixNano": "9" * 19}), "startTimeUnixNano is 999"),
    (export({**GOOD, "endTimeUnixNano": None}), "endTimeUnixNano is null"),
    (export({**GOOD, "attributes": 5}), "attributes is 5"),
    (export({**GOOD, "attributes": [5]}), "an attribute is 5"),
    (export({**GOOD, "events": 5}), "events is 5"),
    (export(llm("a", 0, 1, -5)), "gen_ai.usage.input_tokens is -5"),
    (export(llm("a", 0, 1, 10**9)), "gen_ai.usage.input_tokens is 1000000000"),
    (export(llm("a", 0, 1, "many")), "gen_ai.usage.input_tokens is 'many'"),  # type: ignore[arg-type]
    (export(GOOD, llm("b", 1e6, 1e6 + 1, 5, trace="t2")), "arrival out of range"),
]


@pytest.mark.parametrize(("document", "says"), BAD, ids=range(len(BAD)))
def test_mistakes_are_one_line(tmp_path: Path, document: Any, says: str) -> None:
    (tmp_path / "x").write_text(json.dumps(document) + "\n")
    with pytest.raises(TraceError, match=re.escape(says)) as caught:
        list(open_trace(tmp_path / "x").tasks())
    assert str(tmp_path / "x") in str(caught.value)


def test_deep_values_and_options(tmp_path: Path) -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    path = tmp_path / "x"
    path.write_text(json.dumps(export(llm("a", 0, 1, 5, gen_ai__input__messages=json.dumps(deep)))) + "\n")
    with pytest.raises(TraceError, match="nested too deeply"):
        open_trace(path)
    path.write_text(json.dumps(export(GOOD)) + "\n")
    with pytest.raises(ConfigError, match="'share' perhaps"):
        open_trace(path, shared="session")


def test_parents_that_go_round(tmp_path: Path) -> None:
    [task] = read(tmp_path, agent("x", 0, 9, "y"), agent("y", 0, 9, "x"), llm("a", 1, 2, 50, parent="x"))
    assert len(task.calls) == 1


@st.composite
def span_sets(draw: st.DrawFn) -> list[Any]:
    """Any tree of agents with calls and tools at any times."""
    spans: list[Any] = [agent("main", 0, 100)]
    agents = ["main"]
    for number in range(draw(st.integers(1, 12))):
        start = draw(st.integers(0, 20))
        end = start + draw(st.integers(0, 6))
        parent = draw(st.sampled_from([*agents, ""]))
        kind = draw(st.sampled_from(["llm", "llm", "llm", "tool", "agent"]))
        name = f"s{number}"
        if kind == "agent":
            spans.append(agent(draw(st.sampled_from(["main", "sub", "aux"])) + f"~{number}", start, end, parent))
            agents.append(spans[-1]["spanId"])
        elif kind == "tool":
            spans.append(tool(name, start, end, parent))
        else:
            said = draw(st.none() | st.lists(st.sampled_from([SYSTEM, ASK, ANSWER, MORE]), min_size=1, max_size=5))
            messages = {} if said is None else FORMS["structured"](said)
            tokens = 1000 * draw(st.integers(0, 2)) + number + 10  # tells a span from all others
            spans.append(llm(name, start, end, tokens, draw(st.integers(0, 30)), parent, **messages))
    spans.append(llm("last", 0, 1, 5, parent="main"))
    return spans


def counts(span: Any) -> int:
    return next(int(a["value"]["intValue"]) for a in span["attributes"] if a["key"] == "gen_ai.usage.input_tokens")


@settings(max_examples=300, deadline=None)
@given(spans=span_sets())
def test_any_spans_make_tasks_that_start_their_calls_when_they_did(
    tmp_path_factory: pytest.TempPathFactory, spans: list[Any]
) -> None:
    tasks = read(tmp_path_factory.mktemp("o"), *spans)
    calls = [call for task in tasks for call in task.calls]
    chats = [one for one in spans if any(a["value"].get("stringValue") == "chat" for a in one["attributes"])]
    assert sorted(call.prompt_tokens for call in calls) == sorted(map(counts, chats))
    # replayed with the recorded lengths, every call starts when it did
    spans_of = {counts(one): one for one in chats}
    for task in tasks:
        end: dict[str, int] = {}
        first = min(int(spans_of[call.prompt_tokens]["startTimeUnixNano"]) for call in task.calls)
        for call in task.calls:
            one = spans_of[call.prompt_tokens]
            start = max((end[name] for name in call.after), default=first) + call.delay_ps // 1000
            assert start == int(one["startTimeUnixNano"])
            end[call.name] = one["endTimeUnixNano"] + call.tool_ps // 1000
