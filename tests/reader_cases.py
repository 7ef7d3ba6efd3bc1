"""One small valid file of every format that sagasim reads, and ways to damage files: by bytes, by lines, by values."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sagasim.cost import constant_calibration

Draw = Callable[[st.SearchStrategy[Any]], Any]
START_NS = 1_788_364_167 * 10**9


def json_lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# ---- traces


def native() -> bytes:
    calls = [
        {"name": "read", "extends": "system", "new_tokens": 300, "output_tokens": 80},
        {"name": "left", "extends": "read", "keep_tokens": 400, "new_tokens": 10, "output_tokens": 5, "agent": "sub"},
        {"name": "join", "extends": "read", "keep_tokens": 1500, "new_tokens": 7, "output_tokens": 5, "delay_s": 1.25,
         "after": ["read", "left"], "tools": [{"name": "code", "s": 2.5, "filled": True}]},
    ]  # fmt: skip
    header = {"sagasim_trace": 1, "name": "example", "source": "s", "licence": "l", "filled": {"tool_s": "drawn"}}
    first = {
        "task": "a", "tenant": "blue", "arrival_s": 0.5, "agent": "reviewer", "family": "f",
        "prefixes": [{"name": "system", "new_tokens": 1200}], "calls": calls,
    }  # fmt: skip
    return json_lines(header, first, {**first, "task": "b", "arrival_s": 1.5})


def sessions() -> bytes:
    """Claude Code sessions with block ids, a sub-agent and recorded gaps."""
    step = {"in": 200, "out": 20, "t": 0.0, "llm_s": 2.0, "hr": [[0, 3], [7, 1]], "tools": [{"n": "Bash", "s": 0.5}]}
    later = {"in": 400, "out": 30, "t": 9.0, "llm_s": 2.0, "hr": [[0, 4], [9, 3]], "pre_s": 7.0, "trig": "tool"}
    parent = {"sid": "p", "src": "cc", "t0_epoch": 1.7e9, "tool_tokens": 64, "system_tokens": 32, "block_size": 64,
              "steps": [step, later, {**later, "t": 30.0, "hr": [[0, 3]]}], "family": "x"}  # fmt: skip
    child = {"sid": "c", "parent": "p", "spawn_t": 8.5, "agent_wall_s": 5.0, "spawn_after_step": 0, "agent": "explore",
             "steps": [{**step, "hr": [[20, 4]]}]}  # fmt: skip
    return json_lines(parent, child, {**parent, "sid": "q", "t0_epoch": 1.7e9 + 60})


def appended() -> bytes:
    """Sessions without block ids: shell commands, log times, earlier requests that are repeated."""
    shell = [{"in": 100 * n, "out": 9, "reason": 2, "cyc_s": 3.5, "tools": [{"n": "sh", "c": "test"}]} for n in (1, 2)]
    log = [{"in": 100 * n, "out": 9, "t": 10.0 * n, "pfx_tok": 50 * n, "pfx_from": 0} for n in (1, 2, 3)]
    log[0] |= {"pfx_tok": None, "pfx_from": None}  # type: ignore[dict-item]
    chat = [{"in": 10 * n, "out": 9, "trig": "user"} for n in (1, 2)]
    return json_lines(*({"sid": str(place), "steps": steps} for place, steps in enumerate((shell, log, chat))))


def agentic() -> bytes:
    return json_lines(
        {"request_id": "a", "session_id": "s", "timestamp": 5.0, "input_length": 1300, "output_length": 9,
         "hash_ids": [1, 2, 3], "branches": ["c"]},
        {"request_id": "b", "session_id": "s", "input_length": 1600, "output_length": 9, "hash_ids": [1, 2, 4, 5],
         "wait_for": ["a"], "tool_wait_ms": 12.5, "delay": 3},
        {"request_id": "c", "session_id": "sub", "input_length": 700, "output_length": 9, "hash_ids": [1, 9]},
        {"request_id": "d", "session_id": "t", "timestamp": 900, "input_length": 600, "output_length": 0,
         "hash_ids": [1, 2]},
    )  # fmt: skip


def requests() -> bytes:
    """Mooncake's requests, to which `turns` belongs."""
    return json_lines(
        *({"timestamp": 1000 * n, "input_length": 600, "output_length": 1, "hash_ids": [1, n + 2]} for n in range(4))
    )


def turns() -> bytes:
    return b"row,timestamp_ms,parent_row,blocks,gap_ms\n0,0,,2,\n1,1000,0,2,1000\n2,2000,1,2,1000\n3,3000,0,2,3000\n"


def azure() -> bytes:
    rows = "".join(f"2023-11-16 18:17:0{n}.9799600,{100 + n},{n}\n" for n in range(4))
    return f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}".encode()


def vllm_log() -> bytes:
    said, ids = "prompt: 'You are \\'it\\'\\n', ", list(range(40))
    params = "params: SamplingParams(n=1, ignore_eos=False, max_tokens=64, min_tokens=2)"
    lines = [
        "INFO:     Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)",
        f"INFO 11-21 14:04:13 [logger.py:39] Received request a: {said}{params}, prompt_token_ids: {ids}, lora: None.",
        f"DEBUG 11-21 14:04:13 [logger.py:36] Request b details: {said}prompt_token_ids: None, prompt_embeds: None.",
        f"INFO 2025-11-21 14:04:15 [logger.py:40] Received request b: {params}, lora_request: None.",
        "INFO 11-21 14:04:16 [logger.py:70] Generated response a: output: 'x', output_token_ids: [1, 2], "
        "finish_reason: stop",
        "INFO 11-21 14:04:17 [logger.py:70] Generated response b (streaming complete): output: "
        "'<streaming_complete: 17 tokens>', output_token_ids: None, finish_reason: streaming_complete",
        "INFO 11-21 14:04:20 [loggers.py:127] Engine 000: Avg prompt throughput: 1.5 tokens/s, "
        "Avg generation throughput: 6.1 tokens/s, Running: 0 reqs",
        f"\x1b[36m(APIServer pid=7)\x1b[0;0m INFO 11-21 14:04:21 [logger.py:40] Received request a: {params}",
    ]
    return ("\n".join(lines) + "\n").encode()


def vllm_requests() -> bytes:
    row = {"request_id": "a", "input_toks": 7, "output_toks": 3, "arrival_time": 1.7e9}
    return json_lines(row, {**row, "request_id": "b", "arrival_time": 1.7e9 + 2}, {"input_toks": 5, "output_toks": 1})


def vllm_bench() -> bytes:
    fields = {"input_lens": [10, 20], "output_lens": [1, 2], "start_times": [1.0, 2.5], "errors": ["", ""]}
    return json.dumps(fields, indent=1).encode()


def span(name: str, parent: str, start_s: float, end_s: float, **attributes: Any) -> dict[str, Any]:
    listed = [{"key": f"gen_ai.{key.replace('__', '.')}", "value": value} for key, value in attributes.items()]
    times = {"startTimeUnixNano": str(START_NS + int(start_s * 1e9)), "endTimeUnixNano": START_NS + int(end_s * 1e9)}
    return {"traceId": "t1", "spanId": name, "parentSpanId": parent, **times, "attributes": listed}


def otel() -> bytes:
    def chat(name: str, start_s: float, tokens: int, count: int, parent: str = "root") -> dict[str, Any]:
        said = [{"role": ("system", "user", "assistant")[n % 3], "parts": [{"content": f"{n}"}]} for n in range(count)]
        return span(
            name, parent, start_s, start_s + 1, operation__name={"stringValue": "chat"},
            usage__input_tokens={"intValue": str(tokens)}, usage__output_tokens={"intValue": 10},
            input__messages={"stringValue": json.dumps(said)}, conversation__id={"stringValue": "conv"},
        )  # fmt: skip

    agent = span("root", "", 0, 9, operation__name={"stringValue": "invoke_agent"}, agent__name={"stringValue": "boss"})
    below = span("sub", "root", 3, 6, operation__name={"stringValue": "invoke_agent"}, agent__name={"stringValue": "w"})
    tool = span("t", "root", 1.5, 2, operation__name={"stringValue": "execute_tool"}, tool__name={"stringValue": "sh"})
    spans = [agent, chat("a", 0, 100, 2), tool, chat("b", 2, 150, 4), below, chat("c", 3.5, 80, 1, "sub")]
    plain = {"resourceSpans": [{"scopeSpans": [{"spans": spans}]}]}
    return json_lines(plain, {"trace": {"batches": [{"scopeSpans": [{"spans": [{**spans[1], "traceId": "t2"}]}]}]}})


TRACES: dict[str, bytes] = {
    "native": native(),
    "sessions": sessions(),
    "appended": appended(),
    "agentic": agentic(),
    "requests": requests(),
    "turns": turns(),
    "azure": azure(),
    "vllm_log": vllm_log(),
    "vllm_requests": vllm_requests(),
    "vllm_bench": vllm_bench(),
    "otel": otel(),
}

# ---- what else is read

CONFIG = b"""trace = "tau-bench"
tasks = 3
gpus = 8
load = 0.5
tenants = "heavy@3+light"
over_length = "drop"
preset = "vllm-0.15"
route = "prefix-affinity:threshold=0.5"
prefix_caching = true
arrival_cv = 3.0
seed = 0x10
"""
CALIBRATION = json.dumps(constant_calibration(5_000_000, decode_ps=20, prefill_token_ps=30_000)).encode()
_DATA = Path(__file__).parent.parent / "calibration"
HARDWARE = {
    "model": (_DATA / "models" / "llama-3.1-8b.toml").read_bytes(),
    "gpu": (_DATA / "gpus" / "h200.toml").read_bytes(),
}

# ---- damage

EXTREMES: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, -0.5, 1e-300, 1e300, float("nan"), float("inf"), 10**8, 10**9, 2**63, 2**64 - 1,
    -(2**63), 10**40, "", "x", "\0", "é\n", "9" * 30, "a" * 500, [], {}, [[]], [1], ["a"], ["a", "a"], [[0, 10**9]],
    [[-5, 2]], [{}], {"a": {}},
]  # fmt: skip
TOKENS = [
    b"nan", b"1e999", b"-1", b"0", b"", b"9" * 25, b"\xff\xfe", b'"', b"'", b"[", b"{", b"\\", b"null", b"\x00", b"\r",
    b"0001-01-01 00:00:00", b"9999-12-31 23:59:59", b"0x" + b"f" * 5000, b"[" * 3000,
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places within a JSON value."""
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [deeper for key, inner in items for deeper in places(inner, (*path, key))]


def changed(value: Any, path: tuple[Any, ...], draw: Draw) -> None:
    """Put something else at a place, take it away, or put it in twice."""
    *above, last = path
    for key in above:
        value = value[key]
    what = draw(st.sampled_from(["put", "put", "put", "put", "drop", "double"]))
    if what == "put":
        value[last] = deepcopy(draw(st.sampled_from(EXTREMES)))
    elif what == "drop":
        del value[last]
    elif isinstance(value, list):
        value.insert(last, deepcopy(value[last]))
    else:
        value[f"{last}x"] = deepcopy(value[last])


def other_values(draw: Draw, data: bytes) -> bytes:
    """Files of JSON with values of other types or sizes; any other file with other words between its commas."""
    try:
        rows = [json.loads(data)]
    except ValueError:
        try:
            rows = [json.loads(line) for line in data.splitlines()]
        except ValueError:
            return other_words(draw, data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(rows) - 1))
        if found := places(rows[at]):
            changed(rows[at], draw(st.sampled_from(found)), draw)
    return json_lines(*rows)


def other_words(draw: Draw, data: bytes) -> bytes:
    """Another word between two commas, or behind an equals sign."""
    words = re.split(rb"([,=\n])", data)
    for _ in range(draw(st.integers(1, 3))):
        words[draw(st.integers(0, len(words) // 2)) * 2] = draw(st.sampled_from(TOKENS))
    return b"".join(words)


def other_bytes(draw: Draw, data: bytes) -> bytes:
    """A piece cut out, put in, or doubled."""
    for _ in range(draw(st.integers(1, 3))):
        first, last = sorted(draw(st.tuples(st.integers(0, len(data)), st.integers(0, len(data)))))
        last = draw(st.sampled_from([last, first + 1, first]))
        piece = draw(st.sampled_from([b"", data[first:last], *TOKENS]) | st.binary(max_size=3))
        data = data[:first] + piece + data[last:]
    return data


def other_lines(draw: Draw, data: bytes) -> bytes:
    """Lines left out, doubled, in another order, or ended in another way."""
    lines = data.splitlines()
    order = draw(st.lists(st.integers(0, len(lines) - 1), min_size=1, max_size=2 * len(lines)))
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n", b"\r"]))
    start = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\n"]))
    return start + end.join(lines[place] for place in order) + draw(st.sampled_from([b"", end]))


def packed(draw: Draw, data: bytes) -> bytes:
    """As gzip, in two members, whole or damaged."""
    cut = draw(st.integers(0, len(data)))
    whole = b"".join(gzip.compress(part, mtime=0) for part in (data[:cut], data[cut:]))
    return other_bytes(draw, whole) if draw(st.booleans()) else whole


def other_text(draw: Draw, data: bytes) -> bytes:
    """In another encoding, cut, or empty."""
    others = [data.decode().encode("utf-16"), data.decode().encode("utf-16-be"), b"\xef\xbb\xbf" + data, b""]
    return draw(st.sampled_from([*others, data[: len(data) // 2], data * 2, data.rstrip()]))


def damaged(draw: Draw, data: bytes) -> bytes:
    """A file that was valid before something happened to it."""
    ways = [other_values, other_values, other_values, other_bytes, other_lines, packed, other_text]
    return draw(st.sampled_from(ways))(draw, data)
