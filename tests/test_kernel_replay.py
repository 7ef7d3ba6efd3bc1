"""Replaying a trace: who waits for whom, what is shared, and the folder that comes out."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from kernel_cases import pytestmark, torch  # noqa: F401

from kernels import replay
from kernels.calls import ClosedLoop
from kernels.run_files import request_fields, write_run
from kernels.scheduler import Request
from kernels.trace import TraceFileError, read_trace
from sagasim.importers.native import read_native

HEADER = {"sagasim_trace": 1, "name": "made up"}
SYSTEM = {"name": "system", "new_tokens": 40}
REVIEW = {
    "task": "review", "arrival_s": 0.1, "prefixes": [SYSTEM], "calls": [
        {"name": "read", "extends": "system", "new_tokens": 10, "output_tokens": 4,
         "tools": [{"name": "file", "s": 0.05}]},
        {"name": "left", "extends": "read", "new_tokens": 20, "output_tokens": 4},
        {"name": "right", "extends": "read", "new_tokens": 20, "output_tokens": 3, "after": ["read"],
         "tools": [{"name": "code", "s": 0.25}, {"name": "other", "s": 0.1}]},
        {"name": "merge", "extends": "read", "keep_tokens": 50, "new_tokens": 7, "output_tokens": 5,
         "after": ["left", "right"], "delay_s": 0.125},
    ],
}  # fmt: skip
QUESTION = {
    "task": "question", "arrival_s": 0.2, "prefixes": [SYSTEM],
    "calls": [{"name": "answer", "extends": "system", "new_tokens": 6, "output_tokens": 3}],
}  # fmt: skip
# Keys of the recorded vLLM runs of LLMServingSim (MIT, CASYS Lab at KAIST), which the same reader takes.
REQUEST_KEYS = [
    "request_id", "input_toks", "output_toks", "arrival_time",
    "queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts",
]  # fmt: skip
META_KEYS = {
    "schema_version", "model", "vllm_version", "engine_kwargs", "dataset_path", "dataset_hash", "num_requests",
    "started_at", "finished_at", "tick_seconds", "kv_cache", "hardware", "resolved_config",
}  # fmt: skip


def trace(path: Path, *tasks: dict[str, Any], zipped: bool = False) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in (HEADER, *tasks))
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    return path


def ended(request: Request) -> Request:
    """The request with outputs that tell whose they are."""
    request.tokens += [-1 - len(request.name)] * request.output_tokens
    return request


@pytest.mark.parametrize("zipped", [False, True])
def test_a_trace_says_here_what_it_says_to_the_simulator(tmp_path: Path, zipped: bool) -> None:
    path = trace(tmp_path / "trace", REVIEW, QUESTION, zipped=zipped)
    for mine, theirs in zip(read_trace(path), read_native(path), strict=True):
        assert mine.name == theirs.name
        assert mine.arrival_s == theirs.arrival_ps / 1e12  # type: ignore[operator]
        assert mine.longest_tokens == theirs.max_tokens
        for a, b in zip(mine.calls.values(), theirs.calls, strict=True):
            assert (a.name, a.extends, a.keep_tokens, a.new_tokens, a.output_tokens, a.after) == (
                b.name, b.extends, b.keep_tokens, b.new_tokens, b.output_tokens, b.after,
            )  # fmt: skip
            assert a.wait_s == b.delay_ps / 1e12
            assert a.tools_s == b.tool_ps / 1e12


def test_a_closed_loop_waits_for_calls_tools_and_delays(tmp_path: Path) -> None:
    loop = ClosedLoop(read_trace(trace(tmp_path / "trace", REVIEW, QUESTION)), 97, 1000, None)
    assert loop.next_s == 0.1
    assert list(loop.send(0.05)) == []
    (read,) = loop.send(0.15)
    assert (read.name, read.queued_s, read.prompt_tokens, read.output_tokens) == ("review/read", 0.1, 50, 4)
    (answer,) = loop.send(0.2)
    assert answer.tokens[:40] == read.tokens[:40]  # the shared prefix
    assert answer.tokens[40:] != read.tokens[40:46]
    loop.ended(ended(read), 1.0)
    assert loop.next_s == 1.05
    left, right = loop.send(1.05)
    assert (left.name, right.name) == ("review/left", "review/right")
    assert left.tokens[:54] == right.tokens[:54] == read.tokens
    assert left.tokens[54:] != right.tokens[54:]
    loop.ended(ended(left), 2.0)
    assert loop.next_s is None
    loop.ended(ended(right), 2.5)
    assert loop.next_s == 2.5 + 0.25 + 0.125  # the longest tool, then the delay
    (merge,) = loop.send(9.0)
    assert merge.tokens[:50] == read.tokens[:50]
    assert merge.queued_s == 2.875
    loop.ended(ended(merge), 3.0)
    loop.ended(ended(answer), 3.0)
    assert loop.next_s is None
    assert (loop.started, loop.dropped) == (2, 0)


def test_concurrency_starts_a_task_when_one_ends(tmp_path: Path) -> None:
    tasks = [{**QUESTION, "task": f"q{i}"} for i in range(3)]
    loop = ClosedLoop(read_trace(trace(tmp_path / "trace", *tasks)), 97, 1000, 2)
    first, second = loop.send(0.0)
    assert [first.name, second.name] == ["q0/answer", "q1/answer"]
    loop.ended(ended(second), 4.0)
    (third,) = loop.send(4.0)
    assert (third.name, third.queued_s) == ("q2/answer", 4.0)
    assert loop.started == 3


def test_tokens_are_those_of_the_seed(tmp_path: Path) -> None:
    path = trace(tmp_path / "trace", QUESTION)
    one, same, other = (next(ClosedLoop(read_trace(path), 97, 999, 1, seed).send(0.0)).tokens for seed in (3, 3, 4))
    assert one == same != other
    assert all(0 <= token < 97 for token in one)


def test_tasks_that_are_too_long_are_left_out(tmp_path: Path) -> None:
    loop = ClosedLoop(read_trace(trace(tmp_path / "trace", REVIEW, QUESTION)), 97, 60, None)
    assert [request.name for request in loop.send(9.0)] == ["question/answer"]
    assert (loop.started, loop.dropped) == (1, 1)


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"calls": [{"name": "a", "new_tokens": 1, "output_tokens": 1}]}, "a task without 'task'"),
        ({"task": "t", "calls": []}, "task 't' has no calls"),
        ({"task": "t", "calls": [{"name": "a", "new_tokens": 1}]}, "a task without 'output_tokens'"),
        ({"task": "t", "calls": [{"name": "a", "new_tokens": 0, "output_tokens": 1}]}, "'a' has no prompt or output"),
        ({"task": "t", "calls": [{"name": "a", "extends": "b", "new_tokens": 1, "output_tokens": 1}]}, "follows 'b'"),
        ({**QUESTION, "calls": [{**QUESTION["calls"][0], "keep_tokens": 41}]}, "keeps 41 of 40 tokens"),  # type: ignore[dict-item]
        ({**QUESTION, "arrival_s": None}, "has no arrival time; expected one, or --concurrency"),
    ],
)
def test_traces_that_cannot_be_replayed(tmp_path: Path, task: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceFileError, match=message):
        ClosedLoop(read_trace(trace(tmp_path / "trace", task)), 97, 1000, None)


def test_files_that_are_no_traces(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    for content, message in ((b"", "not a native trace"), (b"{}\n", "not a native trace"), (b"[1]\n", "not an object"),
                             (b"\xff\xfe\n", "not JSON lines"), (b"\x1f\x8bxx", "cannot be read")):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(TraceFileError, match=message):
            list(read_trace(path))
    with pytest.raises(TraceFileError, match="cannot be read"):
        list(read_trace(tmp_path / "none"))


def test_output_kept_from_a_call_that_may_still_run(tmp_path: Path) -> None:
    calls = [
        {"name": "a", "new_tokens": 5, "output_tokens": 5},
        {"name": "b", "extends": "a", "keep_tokens": 7, "new_tokens": 1, "output_tokens": 1, "after": []},
    ]
    loop = ClosedLoop(read_trace(trace(tmp_path / "trace", {"task": "t", "calls": calls})), 97, 1000, 1)
    with pytest.raises(TraceFileError, match="keeps output of 'a'; expected it to run after"):
        list(loop.send(0.0))


def test_a_run_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_run(tmp_path / "run", {"bad": object()}, {}, [], [])
    assert list(tmp_path.iterdir()) == []


def test_times_of_a_request() -> None:
    request = Request("t/c", [1, 2, 3, 4, 5], 3, 2, 1.0, 1.5, 2.0, 3.0, 16)
    fields = request_fields(7, request, 1000.0, 50.0)
    assert list(fields)[: len(REQUEST_KEYS)] == REQUEST_KEYS
    assert [fields[key] for key in REQUEST_KEYS] == ["replay-7", 3, 2, 1001.0, 51.0, 51.5, 52.0, 53.0]
    assert (fields["cached_toks"], fields["call"]) == (16, "t/c")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a dry run needs the interpreter, chosen at import")
def test_dry_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A tiny model serves the trace in real time, and the folder has the files and fields of a recorded vLLM run."""
    path, out = trace(tmp_path / "trace.jsonl", REVIEW, QUESTION), tmp_path / "run"
    command = ["--dry-run", "--trace", str(path), "--minutes", "1", "--out", str(out), "--max-num-seqs", "4"]
    assert replay.main(command) == 0
    lines = (out / "vllm_requests.jsonl").read_text().splitlines()
    requests = {fields["call"]: fields for fields in map(json.loads, lines)}
    assert sorted(requests) == ["question/answer", "review/left", "review/merge", "review/read", "review/right"]
    for fields in requests.values():
        assert list(fields)[: len(REQUEST_KEYS)] == REQUEST_KEYS
        times = [fields[key] for key in ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")]
        assert times == sorted(times)
        assert fields["input_toks"] > 40
    assert [requests[f"review/{name}"]["cached_toks"] for name in ("read", "left", "right", "merge")] == [0, 48, 48, 48]
    assert requests["review/left"]["queued_ts"] >= requests["review/read"]["last_token_ts"] + 0.05
    assert requests["review/merge"]["queued_ts"] >= requests["review/right"]["last_token_ts"] + 0.375
    meta = json.loads((out / "vllm_meta.json").read_text())
    assert set(meta) >= META_KEYS
    assert meta["num_requests"] == 5
    assert meta["hardware"]["device_name"] == "interpreter (not a measurement)"
    assert meta["kv_cache"]["block_size"] == 16
    with (out / "vllm_timeseries.csv").open() as stream:
        ticks = list(csv.DictReader(stream))
    assert list(ticks[0]) == ["t", "prompt_throughput", "gen_throughput", "running", "waiting", "kv_cache_pct"]
    assert sum(float(tick["gen_throughput"]) for tick in ticks) <= 19
    config = json.loads((out / "config.json").read_text())
    assert config["nodes"][0]["instances"][0]["model_name"] == meta["model"] == "tiny"
    assert sorted(entry.name for entry in out.iterdir()) == [
        "config.json", "vllm_meta.json", "vllm_requests.jsonl", "vllm_timeseries.csv",
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        replay.main(command)
    assert "exists already" in capsys.readouterr().err


def test_mistakes_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["--dry-run", "--trace", str(tmp_path / "none"), "--out", str(tmp_path / "run"), "--minutes"]
    for more, message in ((["0"], "--minutes is 0.0"), (["1", "--tasks", "-1"], "--tasks is -1"),
                          (["1", "--max-num-batched-tokens", "8"], "less than --max-num-seqs")):  # fmt: skip
        with pytest.raises(SystemExit):
            replay.main(base + more)
        assert message in capsys.readouterr().err
    if not torch.cuda.is_available():
        assert replay.main([*base, "1"]) == 2
        assert "cannot be read" in capsys.readouterr().err
        with pytest.raises(SystemExit, match="no GPU here"):
            replay.main([*base[1:], "1"])
    assert not (tmp_path / "run").exists()
