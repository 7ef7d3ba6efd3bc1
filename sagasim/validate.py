"""Replay a recorded vLLM run through the engine, with that run's options, and compare: `sagasim validate RUN_DIR`.

The requests arrive as recorded, whatever the simulated engine does (open loop). Nothing is fitted on the run.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.calibrate.tables import plain_name
from sagasim.config import Config
from sagasim.core import Call, Task
from sagasim.errors import ConfigError
from sagasim.hardware import load_gpu, load_model
from sagasim.recorded import RecordedRun, read_run_folder
from sagasim.simulate import kv_blocks, simulate
from sagasim.units import BLOCK_TOKENS, ps_from_s

__all__ = ["ASYNCHRONOUS_SINCE", "METRICS", "Validation", "link_replaced", "validate_run", "validation_text"]

Floats = NDArray[np.float64]
METRICS = {"ttft_s": "TTFT (s)", "tpot_s": "TPOT (s)", "e2e_s": "end to end (s)"}
_QUANTILES = {"mean": None, "p50": 0.5, "p99": 0.99}
_THEIRS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "Latency"}  # names in the authors' summary
_THEIR_QUANTILES = {"mean": "Mean", "p50": "Median", "p99": "P99"}
ASYNCHRONOUS_SINCE = (0, 14)  # vLLM schedules asynchronously by default from this version on
_CLOSE = 0.15  # how far the time series may be from the number of blocks before it is said to disagree


@dataclass(frozen=True, slots=True)
class Validation:
    """metrics: name -> mean, p50, p99 -> real, simulated, error, theirs; samples: real and simulated, by request."""

    title: str
    metrics: dict[str, dict[str, dict[str, float | None]]]
    samples: dict[str, tuple[Floats, Floats]]
    notes: list[str]
    options: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """For machines."""
        return {"title": self.title, "metrics": self.metrics, "options": self.options, "notes": self.notes}


def validate_run(folder: Path, calibration: dict[str, Any], *, model: str = "", gpu: str = "") -> Validation:
    """Replay the run in `folder`.

    model, gpu: descriptions in place of those that the calibration names. Raises TraceError, ConfigError or
    CalibrationError for a run that cannot be replayed so.
    """
    run = read_run_folder(folder)
    notes: list[str] = []
    config = _config(run, calibration, model or calibration["model"], gpu or calibration["gpu"], notes)
    calibration = link_replaced(run, calibration, config, notes)
    tasks = [
        Task(
            f"request {number}",
            (Call("call", request.input_tokens, request.output_tokens),),
            arrival_ps=ps_from_s(request.arrival_s),
        )
        for number, request in enumerate(run.requests)
    ]
    result = simulate(config, tasks, calibration=calibration)
    if preempted := int(result.replicas["preemptions"].sum()):
        notes.append(f"{preempted} preemptions simulated; how many there were is not recorded")
    samples = _samples(run, result.calls)
    metrics = {name: _compared(*pair, run, name) for name, pair in samples.items()}
    metrics["throughput"] = _throughput(run, result.calls)
    title = f"{config.model} on {config.tp} {config.gpu}, {len(tasks)} requests"
    kept = {key: value for key, value in asdict(config).items() if value is not None}
    return Validation(title, metrics, samples, notes, kept)


def _config(run: RecordedRun, calibration: dict[str, Any], model: str, gpu: str, notes: list[str]) -> Config:
    """The engine options of the run."""
    where = str(run.folder)
    tp = int(run.option("tensor_parallel_size") or run.instance.get("tp_size") or calibration["tp"])
    if tp != calibration["tp"]:
        what = f"the run has tensor parallelism {tp}, the calibration {calibration['tp']}"
        raise ConfigError(what, where=where, expected=f"a calibration fitted with --tp {tp}")
    hardware = run.hardware
    if hardware and plain_name(calibration["gpu"]) not in plain_name(hardware):
        what = f"the run is of '{hardware}', the calibration of '{calibration['gpu']}'"
        raise ConfigError(what, where=where, expected="a calibration of the run's GPU")
    for option in ("data_parallel_size", "pipeline_parallel_size"):
        if int(run.option(option) or 1) > 1:
            raise ConfigError(f"{option} = {run.option(option)}", where=where, expected="1: one replica")
    if run.model and plain_name(calibration["model"]) not in plain_name(run.model):
        notes.append(f"the run is of '{run.model}', the calibration of '{calibration['model']}'")
    shape = load_model(model)
    budget, seqs = (
        int(run.option(name) or default) for name, default in (("max_num_batched_tokens", 2048), ("max_num_seqs", 256))
    )
    longest = max(request.input_tokens + request.output_tokens for request in run.requests)
    if missing := [name for name in ("max_num_batched_tokens", "max_num_seqs") if not run.option(name)]:
        notes.append(f"not recorded: {', '.join(missing)}; vLLM's default of {budget} tokens and {seqs} sequences")
    asynchronous, how = _asynchronous(run)
    notes.append(f"asynchronous scheduling {'on' if asynchronous else 'off'} ({how})")
    reserve = bool(run.option("scheduler_reserve_full_isl"))
    if reserve:
        notes.append("a request started only if its whole prompt fitted (scheduler_reserve_full_isl)")
    if run.option("enable_expert_parallel"):
        notes.append("the run spread experts over its GPUs (expert parallel); the calibration splits each expert")
    config = Config(
        gpus=tp,
        tp=tp,
        gpu=gpu,
        model=model,
        arrivals="recorded",
        stop="length",
        prefix_caching=run.option("enable_prefix_caching") is not False,
        async_scheduling=asynchronous,
        max_num_batched_tokens=budget,
        max_num_seqs=seqs,
        max_model_len=max(longest, min(int(run.option("max_model_len") or shape.max_model_len), shape.max_model_len)),
        long_prefill_token_threshold=int(run.option("long_prefill_token_threshold") or 0),
        reserve_full_prompt=reserve,
        num_gpu_blocks_override=1,
    )
    blocks = _blocks(run, config, calibration["dtype"], notes)
    if blocks * BLOCK_TOKENS < longest:
        what = f"the longest request has {longest} tokens, the KV cache room for {max(0, blocks) * BLOCK_TOKENS}"
        raise ConfigError(what, where=where, expected="KV memory for it")
    known = min(config.max_model_len or longest, (blocks - 1) * BLOCK_TOKENS)
    return Config(**{**asdict(config), "num_gpu_blocks_override": blocks, "max_model_len": max(longest, known)})


def _asynchronous(run: RecordedRun) -> tuple[bool, str]:
    told = run.option("async_scheduling")
    if told is not None:
        return bool(told), "as recorded"
    version = str(run.meta.get("vllm_version", ""))
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        return True, "no version recorded: today's default"
    return tuple(map(int, numbers.groups())) >= ASYNCHRONOUS_SINCE, f"the default of vLLM {version}"


def _blocks(run: RecordedRun, config: Config, dtype: str, notes: list[str]) -> int:
    """KV blocks, the null block included: recorded, or from memory, utilisation and weights."""
    recorded, size = run.option("num_gpu_blocks"), int(run.option("block_size") or BLOCK_TOKENS)
    if recorded:
        blocks = int(recorded) * size // BLOCK_TOKENS
        told = "" if size == BLOCK_TOKENS else f" as {int(recorded):,} of {size} tokens"
        notes.append(f"KV blocks: {blocks:,}, recorded in vllm_meta.json{told}")
    else:
        memory = run.instance.get("npu_mem") or {}
        share = float(run.option("gpu_memory_utilization") or memory.get("mem_util") or 0.9)
        model, gpu = load_model(config.model), load_gpu(config.gpu)
        budget = config.max_num_batched_tokens or 2048
        blocks = kv_blocks(model, gpu, config.tp, share, budget, dtype) + 1
        notes.append(
            f"KV blocks: {blocks:,}, from {share:.0%} of {gpu.memory_bytes / 2**30:.1f} GiB less weights, activations"
        )
    notes.append(_cross_check(run, blocks))
    return blocks


def _cross_check(run: RecordedRun, blocks: int) -> str:
    """What the time series says of the number of blocks: use of the cache beside the tokens then in flight."""
    implied = []
    for row in run.series:
        used, waiting = row.get("kv_cache_pct", 0.0), row.get("waiting", 1.0)
        if 10.0 < used < 95.0 and not waiting and "t" in row:
            held = sum(-(-tokens // BLOCK_TOKENS) for tokens in _in_flight(run, row["t"]))
            implied.append(held / used * 100.0)
    if not implied:
        return "time series: no cache use to compare the number of blocks with"
    told = float(np.median(implied))
    word = "agrees" if abs(told / blocks - 1.0) <= _CLOSE else "disagrees"
    seconds = f"median of {len(implied)} seconds"
    return f"time series {word}: tokens in flight over cache use give {told:,.0f} blocks ({seconds})"


def _in_flight(run: RecordedRun, t: float) -> list[int]:
    """Tokens of each running request at this second of the series, which starts with the first arrival."""
    tokens = []
    for request in run.requests:
        if request.first_token_s <= t < request.last_token_s:
            part = (t - request.first_token_s) / (request.last_token_s - request.first_token_s)
            tokens.append(request.input_tokens + int(part * request.output_tokens))
        elif request.scheduled_s <= t < request.first_token_s:
            part = (t - request.scheduled_s) / (request.first_token_s - request.scheduled_s)
            tokens.append(int(part * request.input_tokens) + 1)
    return tokens


def link_replaced(run: RecordedRun, calibration: dict[str, Any], config: Config, notes: list[str]) -> dict[str, Any]:
    """The calibration, with a derived all-reduce replaced by a ring over the run's own link, where both are known."""
    terms = {term["name"]: term for term in calibration["token_terms"]}
    bandwidth, latency_ns = run.config.get("link_bw"), run.config.get("link_latency")
    if config.tp == 1 or "all_reduce" not in terms or terms["all_reduce"]["status"] != "derived":
        return calibration
    if not bandwidth or latency_ns is None:
        notes.append("all-reduce: not profiled, derived as the calibration says; the run's config has no link figures")
        return calibration
    from sagasim.calibrate.fitting import axis_term
    from sagasim.calibrate.linear import SEQUENCES, TOKENS, gather_us, link_us

    model = load_model(config.model)
    link = float(bandwidth) * 1e9, float(latency_ns) * 1e-3
    source = f"ring over the run's link, {bandwidth} GB/s and {latency_ns} ns a message"
    notes.append(f"all-reduce and gathering of logits: not profiled, derived: {source}")
    reduced = link_us(config.tp, TOKENS * model.hidden * model.dtype_bytes, *link) * 2 * model.layers
    gathered = gather_us(config.tp, SEQUENCES * model.vocab * 2.0, *link)
    reduce = axis_term("all_reduce", "tokens", TOKENS, reduced, "derived", source)
    gather = axis_term("logits_gather", "sequences", SEQUENCES, gathered, "derived", source)
    others = [term for term in calibration["token_terms"] if term["name"] != "all_reduce"]
    rest = [term for term in calibration["sequence_terms"] if term["name"] != "logits_gather"]
    return {**calibration, "token_terms": [*others, reduce], "sequence_terms": [*rest, gather]}


def _samples(run: RecordedRun, calls: Any) -> dict[str, tuple[Floats, Floats]]:
    """Real and simulated times of each request, in seconds; TPOT of requests of two tokens or more."""
    arrival, first, last, output = (
        np.array([getattr(request, name) for request in run.requests], dtype=np.float64)
        for name in ("arrival_s", "first_token_s", "last_token_s", "output_tokens")
    )
    submitted, told_first, told_last = (
        np.asarray(calls[name], dtype=np.float64) * 1e-12 for name in ("submitted_ps", "first_token_ps", "finished_ps")
    )
    several = output > 1
    real_tpot = (last - first)[several] / (output[several] - 1)
    told_tpot = (told_last - told_first)[several] / (output[several] - 1)
    return {
        "ttft_s": (first - arrival, told_first - submitted),
        "tpot_s": (real_tpot, told_tpot),
        "e2e_s": (last - arrival, told_last - submitted),
    }


def _of(values: Floats, quantile: float | None) -> float:
    return float(values.mean() if quantile is None else np.quantile(values, quantile))


def _compared(real: Floats, told: Floats, run: RecordedRun, name: str) -> dict[str, dict[str, float | None]]:
    compared: dict[str, dict[str, float | None]] = {}
    if not len(real):
        return compared
    for word, quantile in _QUANTILES.items():
        pair = _of(real, quantile), _of(told, quantile)
        theirs = run.theirs.get(f"{_THEIRS[name]} {_THEIR_QUANTILES[word]}")
        compared[word] = _row(*pair, theirs)
    return compared


def _row(real: float, told: float, theirs: float | None = None) -> dict[str, float | None]:
    return {"real": real, "simulated": told, "error": told / real - 1.0 if real else None, "theirs": theirs}


def _throughput(run: RecordedRun, calls: Any) -> dict[str, dict[str, float | None]]:
    """Output tokens and requests a second, from the first arrival to the last token."""
    tokens = sum(request.output_tokens for request in run.requests)
    real = max(request.last_token_s for request in run.requests)
    told = float(np.asarray(calls["finished_ps"]).max()) * 1e-12
    return {
        "output tokens/s": _row(tokens / real, tokens / told),
        "requests/s": _row(len(run.requests) / real, len(run.requests) / told),
    }


def validation_text(validation: Validation, aligned: Any) -> str:
    """A table for the terminal; aligned: of sagasim.report."""
    rows = [["", "", "real", "simulated", "error", "authors' error"]]
    for name, compared in validation.metrics.items():
        for word, row in compared.items():
            values = [f"{row[key]:.4g}" for key in ("real", "simulated")]
            errors = ["-" if row[key] is None else f"{row[key]:+.1%}" for key in ("error", "theirs")]
            rows.append([METRICS.get(name, name), word, *values, *errors])
    return "\n".join([validation.title, "", aligned(rows, left=2), "", *validation.notes])
