"""Recorded runs are read, replayed with their own options, and compared; closed forms where there is one."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sagasim.config import Config
from sagasim.cost import constant_calibration, load_calibration
from sagasim.errors import ConfigError, SagasimError, TraceError
from sagasim.hardware import data_dir
from sagasim.recorded import read_run_folder
from sagasim.report import aligned
from sagasim.validate import link_replaced, validate_run, validation_text

RUNS = data_dir() / "calibration" / "runs"
EMBEDDED = data_dir() / "calibration"
STEP_S = 0.01


def calibration(**changes: Any) -> dict[str, Any]:
    """A step takes 10 ms, whatever is in it."""
    return constant_calibration(int(STEP_S * 1e12)) | {"gpu": "rtxpro6000", "model": "llama-3.1-8b"} | changes


def run_folder(folder: Path, rows: list[dict[str, float]], meta: dict[str, Any] | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "vllm_requests.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    kwargs = {"tensor_parallel_size": 1, "max_num_seqs": 4, "max_num_batched_tokens": 512, "max_model_len": None}
    told = {"vllm_version": "0.19.0", "engine_kwargs": kwargs, "kv_cache": {"num_gpu_blocks": 1000}}
    (folder / "vllm_meta.json").write_text(json.dumps(told | (meta or {})))
    instance = {"model_name": "meta-llama/Llama-3.1-8B", "hardware": "RTXPRO6000", "tp_size": 1}
    nodes = {"nodes": [{"instances": [instance]}]}
    (folder / "config.json").write_text(json.dumps(nodes | config))
    return folder


def request(arrival: float, first: float, last: float, prompt: int = 100, output: int = 11) -> dict[str, float]:
    clock = 1000.0  # of the engine; arrivals are on another
    return {
        "input_toks": prompt, "output_toks": output, "arrival_time": 5e9 + arrival, "queued_ts": clock + arrival,
        "scheduled_ts": clock + arrival, "first_token_ts": clock + first, "last_token_ts": clock + last,
    }  # fmt: skip


def test_a_run_of_known_steps_is_met_exactly(tmp_path: Path) -> None:
    """Two requests that never meet: a step to the first token, ten more to the last."""
    rows = [request(0.0, STEP_S, 11 * STEP_S), request(1.0, 1.0 + STEP_S, 1.0 + 11 * STEP_S)]
    told = validate_run(run_folder(tmp_path, rows), calibration())
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        for row in told.metrics[name].values():
            assert row["error"] == pytest.approx(0.0, abs=1e-6)
    assert told.metrics["throughput"]["output tokens/s"]["simulated"] == pytest.approx(22 / 1.11)
    assert told.options["max_num_seqs"] == 4
    assert told.options["num_gpu_blocks_override"] == 1000
    assert "asynchronous scheduling on (the default of vLLM 0.19.0)" in told.notes
    text = validation_text(told, aligned)
    assert "TTFT (s)" in text
    assert "recorded in vllm_meta.json" in text


def test_the_client_s_clock_is_aligned_and_its_delay_kept(tmp_path: Path) -> None:
    rows = [request(0.0, 1.0, 2.0), request(3.0, 4.0, 5.0)]
    rows[1]["queued_ts"] += 0.25  # seen by the engine a quarter of a second after it was sent
    read = read_run_folder(run_folder(tmp_path, rows))
    assert [r.arrival_s for r in read.requests] == pytest.approx([0.0, 3.0])
    assert [r.queued_s for r in read.requests] == pytest.approx([0.0, 3.25])


@pytest.mark.parametrize(("version", "steps"), [("0.13.1", 11), ("0.19.0", 11)])
def test_the_version_decides_how_steps_are_scheduled(tmp_path: Path, version: str, steps: int) -> None:
    folder = run_folder(tmp_path, [request(0.0, 1.0, 2.0)], {"vllm_version": version})
    slow_host = calibration(host={"base_ps": 4 * 10**9, "per_sequence_ps": 0, "per_token_ps": 0})
    told = validate_run(folder, slow_host)
    a_step = STEP_S if version == "0.19.0" else STEP_S + 0.004  # the host's time is hidden, or is not
    assert told.metrics["e2e_s"]["mean"]["simulated"] == pytest.approx(steps * a_step)


def test_blocks_come_from_memory_where_none_are_recorded(tmp_path: Path) -> None:
    told = validate_run(run_folder(tmp_path, [request(0.0, 1.0, 2.0)], {"kv_cache": None}), calibration(dtype="bf16"))
    assert any("from 90% of 95.0 GiB" in note for note in told.notes)
    assert 30_000 < told.options["num_gpu_blocks_override"] < 40_000


def test_the_time_series_is_a_second_opinion(tmp_path: Path) -> None:
    rows = [request(0.0, 0.0, 20.0, prompt=1600, output=2)]  # about 100 blocks for twenty seconds
    folder = run_folder(tmp_path, rows, {"kv_cache": {"num_gpu_blocks": 400}})
    for used, word in ((25.0, "agrees"), (50.0, "disagrees")):
        lines = ["t,running,waiting,kv_cache_pct", *(f"{t},1,0,{used}" for t in range(1, 20))]
        (folder / "vllm_timeseries.csv").write_text("\n".join(lines) + "\n")
        assert any(f"time series {word}" in note for note in validate_run(folder, calibration()).notes)


def test_a_derived_all_reduce_takes_the_link_of_the_run(tmp_path: Path) -> None:
    meta = {"engine_kwargs": {"tensor_parallel_size": 2, "max_num_seqs": 4, "max_num_batched_tokens": 512}}
    folder = run_folder(tmp_path, [request(0.0, 1.0, 2.0)], meta, link_bw=16, link_latency=20000)
    derived = {"name": "all_reduce", "tokens": [1], "ps": [7], "status": "derived", "source": "x"}
    config = Config(tp=2, model="llama-3.1-8b", gpu="rtxpro6000")
    notes: list[str] = []
    run = read_run_folder(folder)
    changed = link_replaced(run, calibration(tp=2, token_terms=[derived]), config, notes)
    term = changed["token_terms"][0]
    size = 64 * 4096 * 2
    expected = 2 * 32 * 2 * (20 + size / 2 / 16e9 * 1e6) * 1e6
    assert term["ps"][term["tokens"].index(64)] == pytest.approx(expected, rel=1e-6)
    assert "16 GB/s and 20000 ns a message" in notes[0]
    published = calibration(tp=2, token_terms=[derived | {"status": "published"}])
    assert link_replaced(run, published, config, notes) is published
    told = validate_run(folder, calibration(tp=2, token_terms=[derived]))
    assert any("not profiled, derived" in note for note in told.notes)


@pytest.mark.parametrize(
    ("meta", "config", "told"),
    [
        ({"engine_kwargs": {"tensor_parallel_size": 2}}, {}, "the run has tensor parallelism 2, the calibration 1"),
        ({"engine_kwargs": {"data_parallel_size": 2}}, {}, "data_parallel_size = 2"),
        ({"kv_cache": {"num_gpu_blocks": 3}}, {}, "the longest request has 111 tokens"),
        ({}, {"nodes": [{"instances": [{"hardware": "H100"}]}]}, "the run is of 'H100'"),
    ],
)
def test_a_run_that_cannot_be_replayed_is_told(
    tmp_path: Path, meta: dict[str, Any], config: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        validate_run(run_folder(tmp_path, [request(0.0, 1.0, 2.0)], meta, **config), calibration())


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not a finished request"),
        ('{"input_toks": 5}', "not a finished request"),
        (
            '{"input_toks": 0, "output_toks": 1, "queued_ts": 1, "first_token_ts": 1, "last_token_ts": 1}',
            "an empty prompt",
        ),
        ("", "no requests"),
    ],
)
def test_a_broken_run_is_told_with_file_and_line(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "vllm_requests.jsonl").write_text(line + "\n")
    with pytest.raises(TraceError) as error:
        read_run_folder(tmp_path)
    assert told in str(error.value)
    assert "vllm_requests.jsonl" in str(error.value)
    with pytest.raises(SagasimError, match="no recorded requests"):
        read_run_folder(tmp_path / "none")


def test_names_and_options_as_others_write_them(tmp_path: Path) -> None:
    """A GPU named in full, an instruct model, KV blocks of another size, a series with text and gaps."""
    meta = {"kv_cache": {"num_gpu_blocks": 500, "block_size": 32}, "engine_kwargs": {"max_num_seqs": 4}}
    full = {"model_name": "Qwen/Qwen3-32B-FP8", "hardware": "NVIDIA RTX PRO 6000 Blackwell", "tp_size": 1}
    folder = run_folder(tmp_path, [request(0.0, STEP_S, 11 * STEP_S)], meta, nodes=[{"instances": [full]}])
    (folder / "vllm_timeseries.csv").write_text("time,kv_cache_pct,state,waiting\n1,50,busy,0\n2,,idle\n")
    told = validate_run(folder, calibration())
    assert told.options["num_gpu_blocks_override"] == 1000
    assert told.options["max_num_batched_tokens"] == 2048
    assert any("recorded in vllm_meta.json as 500 of 32 tokens" in note for note in told.notes)
    assert any("not recorded: max_num_batched_tokens; vLLM's default of 2048" in note for note in told.notes)
    assert "the run is of 'Qwen/Qwen3-32B-FP8', the calibration of 'llama-3.1-8b'" in told.notes


def test_requests_alone_are_enough(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text(json.dumps(request(0.0, STEP_S, 11 * STEP_S)))
    told = validate_run(tmp_path, calibration(dtype="bf16"))
    assert told.metrics["e2e_s"]["mean"]["error"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("gpu", ["RTX4090", "RTXPRO6000"])
def test_real_runs_are_told_within_the_targets(gpu: str) -> None:
    cal = load_calibration(EMBEDDED / f"{gpu.lower()}-llama-3.1-8b-tp1-bf16.json")
    told = validate_run(RUNS / gpu / "Llama-3.1-8B", cal).metrics
    assert abs(told["tpot_s"]["mean"]["error"] or 1) <= 0.02
    assert abs(told["ttft_s"]["mean"]["error"] or 1) <= 0.05
    assert abs(told["ttft_s"]["p99"]["error"] or 1) <= 0.15
    assert told["ttft_s"]["mean"]["theirs"] == {"RTX4090": 0.006, "RTXPRO6000": -0.04}[gpu]


def test_samples_are_those_of_the_requests() -> None:
    cal = load_calibration(EMBEDDED / "rtxpro6000-llama-3.1-8b-tp1-bf16.json")
    told = validate_run(RUNS / "RTXPRO6000" / "Llama-3.1-8B", cal)
    real, simulated = told.samples["ttft_s"]
    assert len(real) == len(simulated) == 300
    assert told.metrics["ttft_s"]["mean"]["real"] == pytest.approx(float(np.mean(real)))
