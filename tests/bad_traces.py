"""Broken traces of every format, each with words that the one line about it must hold."""

from __future__ import annotations

import gzip
from typing import Any

from reader_cases import TRACES, json_lines, span

__all__ = ["BAD_TRACES", "BAD_TURNS"]

HEADER = {"sagasim_trace": 1}
CALL: dict[str, Any] = {"name": "a", "new_tokens": 10, "output_tokens": 5}
NEXT: dict[str, Any] = {"name": "b", "extends": "a", "new_tokens": 1, "output_tokens": 1}
LOG = "INFO {} [logger.py:39] Received request a: prompt: {}, params: SamplingParams(max_tokens=5), lora: None\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
PACKED = gzip.compress(TRACES["native"])


def native(*rows: Any, header: Any = HEADER) -> bytes:
    return json_lines(header, *rows)


def task(*calls: Any, **fields: Any) -> dict[str, Any]:
    return {"task": "t", "calls": list(calls), **fields}


def sessions(*steps: Any, **fields: Any) -> bytes:
    return json_lines({"sid": "s", "steps": list(steps), **fields})


def requests(**fields: Any) -> bytes:
    good = {"input_length": 600, "output_length": 1, "hash_ids": [1, 2]}
    return json_lines(good, {**good, "request_id": "r", **fields})


def azure(*rows: str) -> bytes:
    return (AZURE + "2023-11-16 18:17:03,100,1\n" + "".join(f"{row}\n" for row in rows)).encode()


def log(at: str = "11-21 14:04:13", prompt: str = "'x'") -> bytes:
    return LOG.format(at, prompt).encode()


def otel(**fields: Any) -> bytes:
    good = span("s", "", 0, 1, usage__input_tokens={"intValue": 5})
    return json_lines({"resourceSpans": [{"scopeSpans": [{"spans": [{**good, **fields}]}]}]})


def counted(**value: Any) -> dict[str, Any]:
    return {"attributes": [{"key": "gen_ai.usage.input_tokens", "value": value}]}


STEP = {"in": 100, "out": 5}
LOOP = [{"sid": "a", "parent": "b", "steps": [STEP]}, {"sid": "b", "parent": "a", "steps": [STEP]}]
WAITS = [{"request_id": one, "input_length": 5, "output_length": 1, "wait_for": [other]} for one, other in ("ab", "ba")]

BAD_TRACES: dict[str, tuple[bytes, tuple[str, ...]]] = {
    # files that are none
    "empty": (b"", ("bad:", "an empty file", "at least one line")),
    "blank": (b"\n\n \n", ("an empty file",)),
    "only a mark": (b"\xef\xbb\xbf", ("bad:1", "unknown format")),
    "zeros": (bytes(100), ("bad:1", "not text", "expected")),
    "binary": (bytes(range(128, 256)) * 20, ("bad:1", "not text", "a native trace")),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), ("bad:1", "not text")),
    "prose": (b"Dear simulator,\nplease run.\n", ("bad:1", "begins with 'Dear", "sessions (sid, steps)")),
    "a table of something else": (b"time,prompt\n1,2\n", ("bad:1", "begins with 'time,prompt'", "Azure's CSV")),
    "keys of something else": (b'{"prompt": "hi"}\n', ("bad:1", "keys: prompt", "input_length")),
    "turns alone": (TRACES["turns"], ("bad:1", "turns without their requests", "this file as turns")),
    "UTF-16": (TRACES["native"].decode().encode("utf-16"), ("bad:1", "not text")),
    "UTF-16 without a mark": (TRACES["sessions"].decode().encode("utf-16-be"), ("bad:1", "not text")),
    "a list": (b"[1, 2]\n", ("bad:1", "unknown format", "expected")),
    "a number": (b"7\n", ("bad:1", "begins with '7'")),
    "too many blank lines": (TRACES["azure"] + b"\n" * 200_000, ("100,000 empty lines", "lines that say something")),
    # gzip
    "gzip: magic alone": (b"\x1f\x8b", ("bad:1", "broken gzip", "a complete gzip file")),
    "gzip: cut": (PACKED[:-30], ("broken gzip", "a complete gzip file")),
    "gzip: no check sum": (PACKED[:-8], ("broken gzip", "complete")),
    "gzip: wrong check sum": (PACKED[:-8] + bytes(4) + PACKED[-4:], ("broken gzip", "CRC")),
    "gzip: flipped": (PACKED[:40] + b"\xff\xff" + PACKED[42:], ("broken gzip",)),
    "gzip: nothing inside": (gzip.compress(b""), ("an empty file", "at least one line")),
    "gzip: gzip inside": (gzip.compress(PACKED), ("bad:1", "not text")),
    "gzip: rubbish behind": (PACKED + b"rubbish", ("broken gzip", "Not a gzipped file")),
    # native
    "native: header alone": (native(), ("bad:", "a header without tasks", "one task per line")),
    "native: version": (native(task(CALL), header={"sagasim_trace": 2}), ("bad:1", "version 2", '"sagasim_trace": 1')),
    "native: header's key": (native(task(CALL), header={**HEADER, "naem": "x"}), ("bad:1", "'naem'", "'name' perhaps")),
    "native: header's type": (native(task(CALL), header={**HEADER, "filled": []}), ("bad:1", "filled", "an object")),
    "native: cut line": (native(task(CALL))[:-4], ("bad:2", "ends inside a line", "one JSON object per line")),
    "native: no JSON": (native() + b"oops\n", ("bad:2", "not JSON", "one JSON object per line")),
    "native: NaN": (native(task({**CALL, "delay_s": float("nan")})), ("bad:2", "not JSON")),
    "native: infinite": (native() + b'{"task":"t","arrival_s":1e999,"calls":[]}\n', ("bad:2", "not JSON", "infinity")),
    "native: empty line": (native() + b"\n" + json_lines(task(CALL)), ("bad:2", "an empty line", "one JSON object")),
    "native: nested": (native() + b"[" * 5000 + b"\n", ("bad:2", "not JSON")),
    "native: no object": (native([1]), ("bad:2", "a list instead of an object")),
    "native: no name": (native({"calls": [CALL]}), ("bad:2", "task is null", "printable characters")),
    "native: a name with a bell": (native({"task": "\a", "calls": [CALL]}), ("bad:2", "task is", "printable")),
    "native: no calls": (native({"task": "t"}), ("bad:2", "'t'", "calls is null", "a list")),
    "native: empty calls": (native(task()), ("bad:2", "without calls", "1 to 20000 calls")),
    "native: too many calls": (
        native(task(*({**CALL, "name": str(n)} for n in range(20_001)))),
        ("bad:2", "a task of 20001 calls", "1 to 20000 calls"),
    ),
    "native: unknown key": (native(task({**CALL, "newtokens": 3})), ("bad:2", "'newtokens'", "'new_tokens' perhaps")),
    "native: missing field": (native(task({"name": "a", "new_tokens": 1})), ("call 'a'", "output_tokens is missing")),
    "native: text for a number": (native(task({**CALL, "new_tokens": "9"})), ("new_tokens is '9'", "a whole number")),
    "native: truth for a number": (native(task({**CALL, "new_tokens": True})), ("new_tokens is True", "from 0")),
    "native: a fraction": (native(task({**CALL, "output_tokens": 1.5})), ("output_tokens is 1.5", "a whole number")),
    "native: negative": (native(task({**CALL, "new_tokens": -1})), ("new_tokens is -1", "from 0")),
    "native: absurd": (native(task({**CALL, "new_tokens": 10**12})), ("new_tokens is 1000000000000", "100000000")),
    "native: beyond 64 bits": (native(task({**CALL, "new_tokens": 10**40})), ("bad:2", "new_tokens is 1e+40")),
    "native: late": (native(task(CALL, arrival_s=1e9)), ("'t'", "arrival_s is", "from 0 to 92234")),
    "native: before time": (native(task(CALL, arrival_s=-1)), ("arrival_s is -1", "from 0")),
    "native: the same task": (native(task(CALL), task(CALL)), ("bad:3", "task 't' twice", "unique")),
    "native: the same call": (native(task(CALL, CALL)), ("call 'a'", "name used twice", "unique within a task")),
    "native: unknown parent": (native(task(CALL, {**NEXT, "extends": "z"})), ("'b'", "unknown context 'z'", "earlier")),
    "native: itself as parent": (native(task({**CALL, "extends": "a"})), ("'a'", "unknown context 'a'", "earlier")),
    "native: a cycle": (
        native(task({**CALL, "after": ["b"]}, {**NEXT, "after": ["a"]})),
        ("call 'a'", "unknown call 'b'", "a call earlier in the task"),
    ),
    "native: keeps too much": (native(task(CALL, {**NEXT, "keep_tokens": 16})), ("'b'", "keeps 16", "0 to 15")),
    "native: output unwaited": (native(task(CALL, {**NEXT, "after": []})), ("'b'", "without running after it", "'a'")),
    "native: tool without time": (native(task({**CALL, "tools": [{"name": "x"}]})), ("s of a tool is null", "number")),
    "native: two prefixes": (
        native(*({**task(CALL, prefixes=[{"name": "p", "new_tokens": n}]), "task": str(n)} for n in (5, 6))),
        ("bad:3", "prefix 'p' declared differently", "one declaration"),
    ),
    # sessions
    "sessions: no steps": (b'{"sid": "s", "steps": 3}\n', ("bad:1", "steps is 3", "a list")),
    "sessions: twice": (json_lines(*[{"sid": "s", "steps": [STEP]}] * 2), ("bad:2", "session 's' twice", "unique")),
    "sessions: own ancestor": (json_lines(*LOOP), ("bad:1", "its own ancestor", "parents without a cycle")),
    "sessions: no tokens": (sessions({"out": 1}), ("bad:1", "step 0", "in is missing", "a whole number")),
    "sessions: negative": (sessions({"in": -5, "out": 1}), ("step 0", "in is -5", "from 0")),
    "sessions: a step of text": (sessions("x"), ("step 0", "a step is 'x'", "an object")),
    "sessions: runs": (sessions({**STEP, "hr": [[1, 0]]}), ("step 0", "hr holds", "[[first id, count], ...]")),
    "sessions: block size": (sessions({**STEP, "hr": [[1, 2]]}, block_size=0), ("block_size is 0", "from 1")),
    "sessions: a later source": (
        sessions(STEP, {**STEP, "pfx_tok": 5, "pfx_from": 1}),
        ("step 1", "pfx_from is 1", "from 0 to 0"),
    ),
    "sessions: long waits": (sessions({**STEP, "t": 1e12}), ("step 0", "t is 1000000000000.0", "from 0")),
    "sessions: far apart": (
        json_lines(*({"sid": str(n), "t0_epoch": n * 1e9, "steps": [STEP]} for n in range(2))),
        ("bad:2", "t0_epoch less the first one is 1000000000.0", "from 0"),
    ),
    "sessions: a tool": (sessions({**STEP, "tools": [3]}), ("step 0", "a tool is 3", "an object")),
    # requests with block ids
    "requests: too few ids": (requests(input_length=1200, hash_ids=[1]), ("bad:2", "1 block ids", "block_tokens=1200")),
    "requests: claims much": (requests(input_length=10**8), ("bad:2", "2 block ids for 100000000", "blocks of 512")),
    "requests: ids of text": (requests(hash_ids=[1, "2"]), ("bad:2", "hash_ids holds", "a list of ids")),
    "requests: no length": (b'{"output_length": 1, "input_length": null}\n', ("bad:1", "input_length is null")),
    "requests: unknown": (requests(wait_for=["z"]), ("bad:2", "unknown request 'z'", "request ids of this file")),
    "requests: unknown branch": (requests(branches=["z"]), ("bad:2", "unknown request 'z'")),
    "requests: a cycle": (json_lines(*WAITS), ("bad:", "wait for each other", "no cycle in wait_for")),
    "requests: twice": (json_lines(*[{**WAITS[0], "wait_for": []}] * 2), ("bad:2", "request 'a' twice", "unique")),
    "requests: time": (requests(timestamp="now"), ("bad:2", "timestamp is 'now'", "a number from 0")),
    "requests: negative wait": (requests(delay=-1), ("bad:2", "delay is -1", "a number from 0")),
    # Azure
    "azure: header alone": (AZURE.encode(), ("bad", "no rows", "at least one row")),
    "azure: cells": (azure("2023-11-16 18:17:04,1"), ("bad:3", "2 cells", "3 cells, as in the header")),
    "azure: no time": (azure("yesterday,1,1"), ("bad:3", "TIMESTAMP is 'yesterday'", "2023-11-16 18:17:03")),
    "azure: before the first": (azure("2023-11-16 18:17:02,1,1"), ("bad:3", "TIMESTAMP", "none before it")),
    "azure: a year later": (azure("2024-11-16 18:17:03,1,1"), ("bad:3", "TIMESTAMP", "after the first row")),
    "azure: a fraction": (azure("2023-11-16 18:17:03,1.5,1"), ("bad:3", "ContextTokens is '1.5'", "a whole number")),
    "azure: absurd": (azure("2023-11-16 18:17:03,1," + "9" * 30), ("bad:3", "GeneratedTokens is '999", "from 0")),
    "azure: no prompt": (azure("2023-11-16 18:17:03,0,1"), ("bad:3", "ContextTokens is 0", "from 1")),
    "azure: not text": (azure() + b"\xff\xfe,1,1\n", ("bad:3", "not text", "UTF-8")),
    "azure: a huge row": (azure("2" * 20_000), ("bad:3", "a row that is too long", "10000 characters")),
    # vLLM
    "log: a time that is none": (log("13-41 14:04:13"), ("bad:1", "the time '13-41 14:04:13'", "month-day hour")),
    "log: a broken prompt": (log(prompt=r"'\x'"), ("bad:1", "a prompt that cannot be read", "a quoted text")),
    "log: no tokens asked for": (
        b"INFO 11-21 14:04:13 [logger.py:39] Received request a: prompt: 'x', params: PoolingParams(), lora: None\n",
        ("bad", "no request that generates tokens", "Received request"),
    ),
    "log: a day and more": (log() + log("11-30 14:04:13"), ("bad:2", "arrival out of range", "0 to 92233 s")),
    "log: from year 1": (log("0001-01-01 00:00:00") + log("9999-01-01 00:00:00"), ("bad:2", "out of range")),
    "vllm: no prompt": (b'{"input_toks": 0, "output_toks": 1}\n', ("bad:1", "input_toks is 0", "from 1")),
    "vllm: time": (b'{"input_toks": 1, "output_toks": 1, "arrival_time": -1}\n', ("bad:1", "arrival_time is -1")),
    "vllm: all aborted": (b'{"input_toks": 1, "output_toks": null}\n', ("bad", "no request that succeeded", "one")),
    "vllm: twice": (b'{"request_id":"a","input_toks":1,"output_toks":1}\n' * 2, ("bad:2", "request 'a' twice")),
    "bench: lengths": (b'{"input_lens": [1, 2], "output_lens": [1]}', ("bad", "1 output_lens for 2", "one of each")),
    "bench: a type": (b'{"input_lens": [[]], "output_lens": [1]}', ("request 1", "input_lens is a list", "number")),
    "bench: all failed": (
        b'{"input_lens": [1], "output_lens": [1], "errors": ["timeout"]}',
        ("bad", "no request that succeeded"),
    ),
    # OpenTelemetry
    "otel: no spans": (b'{"resourceSpans": []}\n', ("bad", "no LLM span", "gen_ai.usage.input_tokens")),
    "otel: resources": (b'{"resourceSpans": {}}\n', ("bad:1", "resourceSpans is an object", "a list")),
    "otel: no id": (otel(traceId=None), ("bad:1", "span 1", "traceId is missing", "hexadecimal")),
    "otel: no time": (otel(startTimeUnixNano="soon"), ("bad:1", "startTimeUnixNano is 'soon'", "a whole number")),
    "otel: negative": (otel(**counted(intValue="-5")), ("span 1", "input_tokens is -5", "from 0")),
    "otel: absurd": (otel(**counted(intValue="9" * 18)), ("span 1", "input_tokens is 999", "100000000")),
    "otel: attributes": (otel(attributes={"a": 1}), ("span 1", "attributes is an object", "a list")),
    "otel: nested": (
        otel(attributes=[*counted(intValue=5)["attributes"], {"key": "gen_ai.prompt", "value": {"s": "[" * 3000}}],
             events=[7]),
        ("span 1", "an event is 7", "an object"),
    ),
}  # fmt: skip

# turns that do not belong to their requests
COLUMNS = "row,timestamp_ms,parent_row,blocks,gap_ms\n"
BAD_TURNS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("turns", "no rows", "a header line")),
    "no column": (b"row,timestamp_ms,blocks,gap_ms\n", ("turns:1", "no column 'parent_row'", "expected")),
    "a gap": (f"{COLUMNS}0,0,,2,\n2,1000,,2,\n".encode(), ("turns:3", "row 2", "row 1 after the one before")),
    "a parent to come": (f"{COLUMNS}0,0,1,2,\n".encode(), ("turns:2", "parent_row is 1", "whole number")),
    "of other requests": (f"{COLUMNS}0,5,,2,\n".encode(), ("turns", "1 turns that are not those", "time and blocks")),
    "not text": (COLUMNS.encode() + b"\xff,,,,\n", ("turns:2", "not text", "UTF-8")),
    "broken gzip": (gzip.compress(TRACES["turns"])[:-9], ("turns:", "broken gzip", "complete")),
}
