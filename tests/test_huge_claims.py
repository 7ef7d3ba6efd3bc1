"""Small files that claim to be huge: refused or read, in little time and memory."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from reader_cases import json_lines, span

from sagasim.core import MAX_TOKENS
from sagasim.errors import SagasimError
from sagasim.importers import agentic_export, lines, otel_spans, session_lines, turns
from sagasim.trace import convert, open_trace, over_length, validate

SECONDS = 10


def packed(folder: Path, *parts: bytes | Iterable[bytes], name: str = "huge") -> Path:
    path = folder / name
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for part in parts:
            stream.writelines([part] if isinstance(part, bytes) else part)
    return path


def result_of(read: Callable[[], object], peak_mib: float = 0.0) -> str:
    """What a reader returns or says, if it does so soon and, where that is given, in so little memory."""
    if peak_mib:
        tracemalloc.start()
    started = time.process_time()
    try:
        said = str(read())
    except SagasimError as error:
        said = f"refused: {error}"
    took = time.process_time() - started
    if peak_mib:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < peak_mib * 2**20
    assert took < SECONDS
    return said


def test_lines_that_say_nothing(tmp_path: Path) -> None:
    table = b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,1\n"
    for head in (b"", table):
        path = packed(tmp_path, head, [b"\n" * 2**20] * 50)
        assert "100,000 empty lines" in result_of(partial(validate, path), 4)
        assert path.stat().st_size < 10**6


def test_a_document_of_short_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 2**20)
    path = packed(tmp_path, b'{"a":[\n', [b"1,\n" * 2**16] * 8)
    assert "not JSON" in result_of(lambda: validate(path), 5)  # as a list of lines it would be 15 MiB


def test_sessions_of_endless_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_lines, "HELD_BYTES", 2**23)
    steps = b'{"in":1,"out":1},' * 5000 + b'{"in":1,"out":1}]}\n'
    path = packed(tmp_path, (b'{"sid":"%d","steps":[' % n + steps for n in range(60)))
    assert "too many sessions and steps" in result_of(lambda: validate(path), 20)


def test_runs_of_endless_blocks(tmp_path: Path) -> None:
    step: dict[str, Any] = {"in": MAX_TOKENS - 1, "out": 1, "hr": [[0, 10**9]]}
    path = packed(tmp_path, json_lines({"sid": "s", "steps": [step, {**step, "hr": [[0, 10**18], [7, 2**62]]}]}))
    assert "longest context 100,000,000 tokens" in result_of(lambda: validate(path), 2)


def test_spans_of_one_endless_task(tmp_path: Path) -> None:
    spans = (
        json_lines({"resourceSpans": [{"scopeSpans": [{"spans": [
            span(str(n), "", n, n + 0.5, usage__input_tokens={"intValue": 5})]}]}]}) for n in range(21_000)
    )  # fmt: skip
    path = packed(tmp_path, spans)
    assert "a task of 21,000 calls; expected 1 to 20000" in result_of(lambda: validate(path), 40)


def test_an_agent_that_is_called_without_end(tmp_path: Path) -> None:
    below = {"operation__name": {"stringValue": "invoke_agent"}, "agent__name": {"stringValue": "worker"}}
    spans = [span("root", "", 0, 9, **below), *(span(str(n), "root", 1, 2, **below) for n in range(15_000))]
    spans.append(span("call", "14999", 1, 2, usage__input_tokens={"intValue": 5}))
    path = packed(tmp_path, (json_lines({"resourceSpans": [{"scopeSpans": [{"spans": [one]}]}]}) for one in spans))
    assert "1 tasks, 1 calls" in result_of(lambda: validate(path))


def test_prompts_of_endless_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otel_spans, "MAX_MESSAGES", 10_000)
    text = "[" + "{}," * 4000 + "{}]"
    call = span("s", "", 0, 1, usage__input_tokens={"intValue": 5}, input__messages={"stringValue": text})
    path = packed(tmp_path, json_lines({"resourceSpans": [{"scopeSpans": [{"spans": [call]}]}]}) * 50)
    assert "too many messages" in result_of(lambda: validate(path), 10)


REQUEST = b"INFO 11-21 14:04:13 [logger.py:39] Received request a: prompt: None, params: SamplingParams(max_tokens=5)"


def test_requests_of_one_name(tmp_path: Path) -> None:
    path = packed(tmp_path, [REQUEST + b", x\n"] * 15_000)
    assert "15,000 tasks" in result_of(lambda: validate(path))


def test_a_prompt_of_endless_ids(tmp_path: Path) -> None:
    path = packed(tmp_path, REQUEST, b", prompt_token_ids: [10", b", 10" * 2**20, b"], x\n")
    assert "longest context 1,048,58" in result_of(lambda: validate(path), 40)  # as texts the ids would be 60 MiB


def test_sessions_that_wait_for_each_other_in_a_chain(tmp_path: Path) -> None:
    size = 8000
    rows = [{"request_id": str(n), "session_id": f"s{n}", "input_length": 1, "output_length": 1} for n in range(size)]
    chain = [
        {**rows[n], "request_id": f"x{n}", "wait_for": [str(n + 1)]} for n in reversed(range(size - 1))
    ]  # each joins one more session before all those joined so far
    again = [{**rows[-1], "request_id": f"y{n}", "wait_for": [str(size - 2)]} for n in range(3 * size)]
    path = packed(tmp_path, json_lines(*rows, *chain, *again))
    assert f"a task of {5 * size - 1} calls" in result_of(lambda: validate(path))


def test_turns_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "MAX_ROWS", 1000)
    head = b"row,timestamp_ms,parent_row,blocks,gap_ms\n"
    path = packed(tmp_path, head, (b"%d,0,,1,\n" % n for n in range(5000)), name="turns")
    requests = packed(tmp_path, json_lines({"input_length": 1, "output_length": 1, "timestamp": 0}))
    said = result_of(lambda: list(open_trace(requests, turns=path).tasks()), 4)
    assert "turns:1002: too many turns; expected at most 1,000" in said


def test_a_call_of_all_tokens(tmp_path: Path) -> None:
    call = {"name": "a", "new_tokens": MAX_TOKENS - 1, "output_tokens": 1}
    path = packed(tmp_path, json_lines({"sagasim_trace": 1}, {"task": "t", "calls": [call]}))
    trace = open_trace(path)
    assert "longest context 100,000,000 tokens" in result_of(lambda: validate(path), 1)
    assert "where 131,072 fit" in result_of(lambda: list(over_length(trace.tasks(), 131_072)), 1)
    out = tmp_path / "out"
    for block_tokens in (1, MAX_TOKENS // agentic_export.MAX_ROW_IDS - 1):
        said = result_of(partial(convert, trace, out, "agentic_mooncake", block_tokens), 1)
        assert "expected at most 4,000,000 a prompt: larger blocks" in said
        assert not out.exists()
    assert result_of(lambda: convert(trace, out, "agentic_mooncake"), 40) == "{}"
    [row] = out.read_text().splitlines()
    assert len(json.loads(row)["hash_ids"]) == -(-(MAX_TOKENS - 1) // 512)
