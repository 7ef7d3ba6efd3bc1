"""Telling formats apart by content, small files that claim to be huge, and the commands that read them."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.cli import main
from sagasim.core import check_task
from sagasim.errors import SagasimError, TraceError
from sagasim.importers import agentic_mooncake, lines, vllm_log
from sagasim.trace import format_of, open_trace, trace_names

OTLP = {"resourceSpans": []}
LOG = "INFO 11-21 14:04:13 [logger.py:39] Received request a: prompt: None, params: SamplingParams(max_tokens=5), x"
TEXTS = {
    "native": '{"sagasim_trace":1}',
    "sessions": '{"sid":"a","steps":[]}',
    "agentic_mooncake": '{"input_length":1,"output_length":1}',
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens",
    "otel": json.dumps(OTLP, indent=1),
    "vllm_log": "\n\nsome banner\n" + LOG,
    "vllm_requests": '{"input_toks":1,"output_toks":1}',
    "vllm_bench": '{\n"input_lens":[],\n"output_lens":[]}',
}


@pytest.mark.parametrize("name", ["x.csv", "x.jsonl.gz", "native"])
@pytest.mark.parametrize("form", TEXTS)
def test_content_tells_the_format(tmp_path: Path, form: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(TEXTS[form] + "\n")
    assert format_of(path) == form
    path.write_bytes(gzip.compress(TEXTS[form].encode()))
    assert format_of(path) == form


UNKNOWN = [
    ("hello world\n", "begins with 'hello world'"),
    ("time,prompt\n1,2\n", "begins with 'time,prompt'"),
    ("[project]\nname = 'x'\n", "begins with '[project]'"),
    ('{"a": 1, "b": 2}\n', "keys: a, b"),
    ("{}\n", "keys: none"),
    ('{"a":\n1}\n', "keys: a"),
    ("{\n", "the file ends inside"),
    ('{"sagasim_trace":\n1}\n{"task"\n', "not JSON"),
    ("\0\0\0\n", "not text"),
]


@pytest.mark.parametrize(("text", "says"), UNKNOWN, ids=range(len(UNKNOWN)))
def test_unknown_formats_are_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "x"
    path.write_text(text)
    if says == "the file ends inside":
        says = "not JSON"
    with pytest.raises(TraceError) as caught:
        open_trace(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


# ---- small files that claim to be huge


def refused(path: Path, seconds: float = 10, peak_mib: int = 700) -> str:
    """What is said of a file that must be refused, quickly and in little memory."""
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(SagasimError) as caught:
        list(open_trace(path).tasks())
    took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < seconds
    assert peak < peak_mib * 2**20
    return str(caught.value)


def bomb(path: Path, head: bytes, body: bytes, times: int) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(head)
        for _ in range(times):
            stream.write(body)
    return path


def test_gzip_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 2**22)
    monkeypatch.setattr(lines, "LINE_OBJECT_BYTES", 2**24)
    monkeypatch.setattr(vllm_log, "IDLE_LINES", 10_000)
    big = b" " * 2**20
    heads = {"json": b'{"input_length":1', "csv": b"TIMESTAMP,ContextTokens,GeneratedTokens\n", "text": b"x"}
    for name, head in heads.items():
        assert "too long" in refused(bomb(tmp_path / name, head, big, 32), peak_mib=64), name
    objects = bomb(tmp_path / "objects", b'{"sid":"a","steps":[{}', b",{}" * 10_000, 50)
    assert "too many values" in refused(objects, peak_mib=64)
    document = bomb(tmp_path / "document", b'{"resourceSpans":[\n', b"{},\n" * 10_000, 200)
    assert "not JSON" in refused(document, peak_mib=64)
    assert "without a request" in refused(bomb(tmp_path / "log", f"{LOG}\n".encode(), b"\n" * 1000, 50), peak_mib=64)


def test_rows_and_ids_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agentic_mooncake, "MAX_ROWS", 1000)
    path = bomb(tmp_path / "rows", b"", b'{"input_length":1,"output_length":1}\n', 2000)
    assert "too many requests" in refused(path, peak_mib=64)
    monkeypatch.setattr(agentic_mooncake, "MAX_IDS", 1000)
    ids = json.dumps({"input_length": 512 * 300, "output_length": 1, "hash_ids": list(range(300))})
    assert "too many block ids" in refused(bomb(tmp_path / "ids", b"", ids.encode() + b"\n", 50), peak_mib=64)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"input_length": 10**8, "output_length": 1, "hash_ids": [1]}, "1 block ids for 100000000 tokens"),
        ({"input_length": 10**9, "output_length": 1}, "input_length is 1000000000"),
        ({"input_length": 10**30, "output_length": 1}, "input_length is 1e+30"),
        ({"input_length": 5, "output_length": 1, "hash_ids": [10**40]}, "hash_ids holds"),
        ({"input_toks": 10**15, "output_toks": 1}, "input_toks is 1000000000000000"),
        ({"input_lens": [10**12], "output_lens": [1]}, "input_lens is 1000000000000"),
    ],
)
def test_giant_numbers(tmp_path: Path, row: dict[str, Any], says: str) -> None:
    (tmp_path / "x").write_text(json.dumps(row) + "\n")
    assert says in refused(tmp_path / "x", 1, 10)


def test_sharing_that_grows_along_a_session_is_held_once(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as stream:
        for number in range(800):
            ids = list(range(number * 5 + 5))
            row = {"session_id": "s", "input_length": 512 * len(ids), "output_length": 1, "hash_ids": ids}
            stream.write(json.dumps(row) + "\n")
    tracemalloc.start()
    [task] = open_trace(tmp_path / "x").tasks()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [call.keep_tokens for call in task.calls] == [512 * 5 * number for number in range(800)]
    assert peak < 8 * 2**20  # all lists together would be 1.6 million ids


def read_or_refused(path: Path) -> None:
    """Tasks that can be replayed, or one line that names the file; any other error fails the test."""
    said = str(path)
    try:
        for task in open_trace(path).tasks():
            check_task(task)
    except TraceError as error:
        said = str(error)
    assert str(path) in said
    assert "\n" not in said


WORDS = st.sampled_from([
    '{"', '":', "}", "[", "]", ",", "null", "-1", "1e999", "0", "7", '"x"', "\n", "sagasim_trace", "sid", "steps", "in",
    "out", "input_length", "output_length", "hash_ids", "resourceSpans", "scopeSpans", "spans", "attributes",
    "input_toks", "input_lens", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "2023-11-16 18:17:03,", LOG, "prompt: '",
    "\\", "'", "\x1b[",
])  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(start=st.sampled_from(["", *TEXTS.values()]), words=st.lists(WORDS | st.text(max_size=4), max_size=25))
def test_anything_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, start: str, words: list[str]
) -> None:
    path = tmp_path_factory.mktemp("f") / "x"
    path.write_bytes((start + "".join(words)).encode(errors="surrogatepass"))
    read_or_refused(path)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(set(trace_names()) - {"weka"})), data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, name: str, data: Any) -> None:
    raw = (open_trace(name).path or Path()).read_bytes()
    plain = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw)[:20_000]
    place = data.draw(st.integers(0, len(plain)))
    path = tmp_path_factory.mktemp("d") / "x"
    path.write_bytes(plain[:place] + data.draw(st.binary(max_size=3)) + plain[place + data.draw(st.integers(0, 9)) :])
    read_or_refused(path)


# ---- the commands


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out if not code else err


def test_commands_for_every_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    span = {"traceId": "t", "spanId": "s", "startTimeUnixNano": 10**18, "endTimeUnixNano": 10**18 + 1, "attributes": [
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": 5}}]}  # fmt: skip
    files = {
        "native": '{"sagasim_trace":1}\n{"task":"t","calls":[{"name":"a","new_tokens":5,"output_tokens":1}]}',
        "sessions": '{"sid":"a","steps":[{"in":5,"out":1}]}',
        "agentic_mooncake": '{"input_length":5,"output_length":1,"hash_ids":[1,2]}',
        "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,5,1",
        "otel": json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}),
        "vllm_log": LOG.replace("prompt: None", "prompt: 'a b c d e f g h'"),
        "vllm_requests": '{"input_toks":5,"output_toks":1}',
        "vllm_bench": '{"input_lens":[5],"output_lens":[1]}',
    }
    for form, text in files.items():
        Path(form).write_text(text + "\n")
        options = ["--block-tokens", "4"] if form == "agentic_mooncake" else []
        assert f"{form}: {form}, 1 tasks, 1 calls" in run(capsys, "trace", "validate", form, *options)
        stats = json.loads(run(capsys, "trace", "stats", form, *options, "--json"))
        assert (stats["tasks"], stats["prompt_tokens"]["p50"] in (4, 5)) == (1, True)
        for to in ("native", "agentic_mooncake"):
            out = run(capsys, "trace", "convert", form, *options, "--to", to, "--out", f"{form}.{to}", "--seed", "3")
            assert out.startswith(f"{form} written to {form}.{to}, {to}; nothing is lost")
            again = [] if to == "native" or not options else options
            assert "1 tasks, 1 calls" in run(capsys, "trace", "validate", f"{form}.{to}", *again)
    assert "not in the source: output_tokens" in run(capsys, "trace", "stats", "vllm_log")


def test_options_of_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    out = run(capsys, "trace", "stats", "tau-bench", "--figure", "x.png")
    assert "figure in x.png" in out
    assert Path("x.png").exists()
    assert "exists already" in run(capsys, "trace", "stats", "tau-bench", "--figure", "x.png", code=2)
    turns = str(
        (open_trace("mooncake-conversation").path or Path()).with_name("mooncake_conversation.derived_turns.csv.gz")
    )
    assert "5,281 tasks" in run(capsys, "trace", "validate", "mooncake-conversation", "--turns", turns)
    out = run(capsys, "trace", "convert", "tau-bench", "--to", "agentic_mooncake", "--block-tokens", "64", "--out", "y")
    assert "lost:\n  sharing rounded down to whole blocks: " in out
    assert "blocks of 64 tokens" in out
    for argv in (
        ["validate", "tau-bench", "--block-tokens", "5"],
        ["validate", "agentic-mooncake-sample", "--block-tokens", "x"],
        ["validate", "weka", "--share", "all"],
        ["stats", "weka", "--seed", "-1"],
        ["stats", "weka", "--figure", "x.svg"],
        ["convert", "tau-bench", "--to", "csv", "--out", "z"],
        ["convert", "tau-bench", "--to", "agentic_mooncake", "--block-tokens", "0", "--out", "z"],
    ):
        line = run(capsys, "trace", *argv, code=2)
        assert line.count("\n") == 1, line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "y"]
