"""What vLLM leaves behind: the server's log in the words of several versions, requests and benchmarks as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagasim.core import Call, Prefix, Task
from sagasim.errors import TraceError
from sagasim.trace import open_trace, validate

S = 10**12
PARAMS = (
    "n=1, best_of=1, temperature=0.0, stop=[], stop_token_ids=[7], ignore_eos={eos}, max_tokens={most}, min_tokens=0"
)


def received(
    name: str, prompt: str | None = None, ids: list[int] | None = None, most: int | None = 64, *,
    form: str = "0.8", at: str = "11-21 14:04:13", eos: bool = False,
) -> str:  # fmt: skip
    """A line in the words of a version of vLLM."""
    params = f"SamplingParams({PARAMS.format(most=most, eos=eos)})"
    rest = "lora_request: None, prompt_adapter_request: None."
    if form == "0.12":
        return (
            f"(APIServer pid=1) INFO {at} [logger.py:40] Received request {name}: params: {params}, lora_request: None."
        )
    if form == "0.2":
        return (
            f"INFO {at} async_llm_engine.py:371] Received request {name}: prompt: {prompt!r}, "
            f"sampling params: {params}, prompt token ids: {ids}."
        )
    if form == "0.3":
        return (
            f"INFO {at} async_llm_engine.py:436] Received request {name}: prompt: {prompt!r}, prefix_pos: None,"
            f"sampling_params: {params}, prompt_token_ids: {ids}, lora_request: None."
        )
    if form == "0.6":
        return (
            f"INFO {at} logger.py:36] Received request {name}: prompt: {prompt!r}, params: {params}, "
            f"prompt_token_ids: {ids}, {rest}"
        )
    return (
        f"INFO {at} [logger.py:39] Received request {name}: prompt: {prompt!r}, params: {params}, "
        f"prompt_token_ids: {ids}, prompt_embeds shape: None, lora_request: None."
    )


NOISE = [
    "INFO:     Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)",
    "",
    'INFO:     10.0.0.1:41834 - "POST /v1/completions HTTP/1.1" 200 OK',
    "INFO 11-21 14:04:13 [async_llm.py:252] Added request cmpl-1-0.",
]


def read(folder: Path, lines: list[str], seed: int = 0) -> list[Task]:
    path = folder / "server.log"
    path.write_text("\n".join([*NOISE, *lines]) + "\n")
    trace = open_trace(path)
    assert trace.format == "vllm_log"
    return list(trace.tasks(seed))


@pytest.mark.parametrize("form", ["0.2", "0.3", "0.6", "0.8"])
def test_every_form_with_token_ids(tmp_path: Path, form: str) -> None:
    ids = list(range(40))
    lines = [
        received("cmpl-1-0", "He said: 'max_tokens=5'\n\t\"x\"", ids, form=form, eos=True),
        received("cmpl-2-0", None, [*ids[:35], 9, 9], form=form, at="11-21 14:04:15", eos=True, most=3),
    ]
    one, two = read(tmp_path, lines)
    shared = Prefix("blocks/1", 32)  # two whole blocks of 16 tokens
    assert one == Task("cmpl-1-0", (Call("cmpl-1-0", 8, 64, "blocks/1", 32),), arrival_ps=0, prefixes=(shared,))
    assert two == Task("cmpl-2-0", (Call("cmpl-2-0", 5, 3, "blocks/1", 32),), arrival_ps=2 * S, prefixes=(shared,))


def test_texts_count_four_characters_a_token_and_are_dropped(tmp_path: Path) -> None:
    text = "You are ünsafe\\n 'quoted' \"twice\"\n" * 10
    lines = [
        received(name, text[:size] + end, eos=True) for name, size, end in [("a", 320, "x"), ("b", 320, "yyyyyyyy")]
    ]
    a, b = read(tmp_path, lines)
    assert [task.calls[0].prompt_tokens for task in (a, b)] == [81, 82]
    assert [task.calls[0].keep_tokens for task in (a, b)] == [80, 80]
    trace = open_trace(tmp_path / "server.log")
    assert trace.filled == {"prompt_tokens": "4 characters a token where only the text is logged: an assumption"}


def test_details_and_answers_of_later_versions(tmp_path: Path) -> None:
    details = (
        "DEBUG 11-21 14:04:12 [logger.py:36] Request {}: prompt: 'x', prompt_token_ids: {}, prompt_embeds shape: None."
    )
    lines = [
        "\x1b[36m(APIServer pid=7)\x1b[0;0m " + details.format("chatcmpl-1 details", list(range(20))),
        "\x1b[36m(APIServer pid=7)\x1b[0;0m " + received("chatcmpl-1", form="0.12"),
        "INFO 11-21 14:04:14 [logger.py:70] Generated response chatcmpl-1: output: 'it\\'s', "
        "output_token_ids: [1, 2, 3], finish_reason: stop",
        received("chatcmpl-2", form="0.12", most=50),
        "INFO 11-21 14:04:14 [logger.py:70] Generated response chatcmpl-2 (streaming complete): output: "
        "'<streaming_complete: 17 tokens>', output_token_ids: None, finish_reason: streaming_complete",
        received("cmpl-3-0", form="0.12", most=50),
        "INFO 11-21 14:04:14 [logger.py:70] Generated response cmpl-3: output: 'abc', finish_reason: length",
        received("chatcmpl-4", form="0.12", most=50),
        *(
            f"INFO 11-21 14:04:14 [logger.py:70] Generated response chatcmpl-4 (streaming delta): output: 'a', "
            f"output_token_ids: {ids}, finish_reason: None" for ids in ([1], [2, 3], [])
        ),
        "INFO 11-21 14:04:14 [logger.py:70] Generated response unknown: output: 'a', finish_reason: stop",
    ]  # fmt: skip
    tasks = read(tmp_path, lines)
    assert [task.calls[0].output_tokens for task in tasks] == [3, 17, 50, 3]
    assert tasks[0].calls[0].prompt_tokens == 20
    assert set(open_trace(tmp_path / "server.log").filled) == {"prompt_tokens"}


def test_what_is_drawn_depends_on_seed_and_request_alone(tmp_path: Path) -> None:
    lines = [received(f"r{n}", form="0.12", most=300) for n in range(3000)]
    tasks = read(tmp_path, lines)
    outputs = [task.calls[0].output_tokens for task in tasks]
    assert 1 <= min(outputs) < max(outputs) == 300  # never more than was asked for
    assert np.median(outputs) == pytest.approx(115, rel=0.08)
    prompts = [task.calls[0].prompt_tokens for task in tasks]
    assert np.percentile(prompts, [50, 95]) == pytest.approx([1016, 4085], rel=0.1)
    assert read(tmp_path, lines[7:9]) == [Task(task.name, task.calls, arrival_ps=0) for task in tasks[7:9]]
    assert read(tmp_path, lines[:20], seed=1) != tasks[:20]
    filled = open_trace(tmp_path / "server.log").filled
    assert set(filled) == {"output_tokens", "prompt_tokens"}
    assert "log-normal, median 115" in filled["output_tokens"]


def test_throughput_lines_scale_what_is_drawn(tmp_path: Path) -> None:
    said = (
        "(APIServer pid=1) INFO 11-21 14:04:23 [loggers.py:123] Engine 000: Avg prompt throughput: 20000.0 tokens/s, "
        "Avg generation throughput: 4000.5 tokens/s, Running: 0 reqs"
    )
    lines = [received(f"r{n}", form="0.12", most=None) for n in range(1000)] + [said] * 10
    tasks = read(tmp_path, lines)
    assert np.mean([task.calls[0].output_tokens for task in tasks]) == pytest.approx(400, rel=0.1)
    assert np.mean([task.calls[0].prompt_tokens for task in tasks]) == pytest.approx(2000, rel=0.1)


def test_odd_logs(tmp_path: Path) -> None:
    lines = [
        received("a", None, [1], at="12-31 23:59:58", eos=True),
        received("a", None, [1], at="01-01 00:00:01", eos=True),
        "INFO 01-01 00:00:01 [logger.py:39] Received request e: prompt: 'x', params: PoolingParams(dim=None), "
        "prompt_token_ids: [5], lora_request: None.",
        received("late", None, [2], at="01-01 00:00:00", eos=True),
    ]
    tasks = read(tmp_path, lines)
    assert [(task.name, task.arrival_ps) for task in tasks] == [("a", 0), ("a#2", 3 * S), ("late", 2 * S)]
    untimed = "INFO [request_logger.py:63] " + received("b", form="0.12").split("] ", 1)[1]
    assert {task.arrival_ps for task in read(tmp_path, [*lines, untimed])} == {None}


BAD_LOGS = [
    ([received("a", None, [1]).replace("11-21", "13-45")], "the time"),
    ([received("a", None, [1]).replace("prompt: None", r"prompt: '\x'")], "a prompt that cannot be read"),
    (["INFO 11-21 14:04:13 [logger.py:39] Received request a: params: PoolingParams(dim=None)."], "no request that"),
]


@pytest.mark.parametrize(("lines", "says"), BAD_LOGS, ids=range(len(BAD_LOGS)))
def test_a_log_that_cannot_be_read(tmp_path: Path, lines: list[str], says: str) -> None:
    if "\\x" in lines[0]:
        lines = [lines[0].replace("prompt_token_ids: [1]", "prompt_token_ids: None")]
    with pytest.raises(TraceError, match=says) as caught:
        read(tmp_path, lines)
    assert "server.log" in str(caught.value)


# ---- JSON


def lines_of(folder: Path, rows: list[Any], **options: Any) -> Path:
    path = folder / "x"
    path.write_text("".join(json.dumps(row, **options) + "\n" for row in rows))
    return path


def test_requests_of_a_run(tmp_path: Path) -> None:
    row = {"request_id": "a", "input_toks": 7, "output_toks": 3, "arrival_time": 1787267981.5, "queued_ts": 1.0}
    rows = [row, row | {"request_id": "b", "arrival_time": 1787267980.25, "output_toks": 0},
            row | {"request_id": "c", "output_toks": None}]  # fmt: skip
    path = lines_of(tmp_path, rows)
    assert list(open_trace(path).tasks()) == [
        Task("a", (Call("a", 7, 3),), arrival_ps=S * 5 // 4),
        Task("b", (Call("b", 7, 1),), arrival_ps=0),
    ]
    untimed = {key: value for key, value in row.items() if key not in ("arrival_time", "request_id")}
    tasks = list(open_trace(lines_of(tmp_path, [row, untimed])).tasks())
    assert [(task.name, task.arrival_ps) for task in tasks] == [("a", None), ("row 2", None)]
    assert validate(path).startswith("x: vllm_requests, 2 tasks")


@pytest.mark.parametrize("indent", [None, 2])
def test_results_of_a_benchmark(tmp_path: Path, indent: int | None) -> None:
    result = {
        "date": "20260101", "backend": "vllm", "request_rate": "inf", "completed": 2, "input_lens": [10, 20, 30],
        "output_lens": [1, 2, 0], "start_times": [100.5, 100.0, 101.0], "errors": ["", "", "timeout"],
    }  # fmt: skip
    trace = open_trace(lines_of(tmp_path, [result], indent=indent))
    assert trace.format == "vllm_bench"
    assert list(trace.tasks()) == [
        Task("request 1", (Call("request 1", 10, 1),), arrival_ps=S // 2),
        Task("request 2", (Call("request 2", 20, 2),), arrival_ps=0),
    ]
    older = {key: value for key, value in result.items() if key not in ("start_times", "errors")}
    tasks = list(open_trace(lines_of(tmp_path, [older])).tasks())
    assert [(task.arrival_ps, task.calls[0].output_tokens) for task in tasks] == [(None, 1), (None, 2), (None, 1)]


REQUEST = {"request_id": "a", "input_toks": 7, "output_toks": 3, "arrival_time": 5.0}
BENCH: dict[str, Any] = {"input_lens": [10], "output_lens": [1], "start_times": [1.0], "errors": [""]}
BAD_JSON = [
    ([REQUEST, REQUEST], "request 'a' twice"),
    ([REQUEST | {"input_toks": 0}], "input_toks is 0"),
    ([REQUEST | {"input_toks": "7"}], "input_toks is '7'"),
    ([REQUEST | {"output_toks": -1}], "output_toks is -1"),
    ([REQUEST | {"output_toks": None}], "no request that succeeded"),
    ([REQUEST | {"request_id": 5}], "request_id is 5"),
    ([REQUEST | {"arrival_time": "noon"}], "arrival_time is 'noon'"),
    ([REQUEST, REQUEST | {"request_id": "b", "arrival_time": 1e8}], "arrival after the first one"),
    ([BENCH | {"input_lens": 5}], "input_lens is 5"),
    ([BENCH | {"input_lens": [0]}], "input_lens is 0"),
    ([BENCH | {"output_lens": [1, 2]}], "2 output_lens for 1 input_lens"),
    ([BENCH | {"start_times": [None]}], "start_times is null"),
    ([BENCH | {"errors": ["timeout"]}], "no request that succeeded"),
    ([BENCH | {"errors": []}], "0 errors for 1"),
    ([BENCH, BENCH], "not JSON"),
]


@pytest.mark.parametrize(("rows", "says"), BAD_JSON, ids=range(len(BAD_JSON)))
def test_mistakes_are_one_line(tmp_path: Path, rows: list[Any], says: str) -> None:
    with pytest.raises(TraceError, match=re.escape(says)) as caught:
        list(open_trace(lines_of(tmp_path, rows)).tasks())
    assert str(tmp_path / "x") in str(caught.value)
