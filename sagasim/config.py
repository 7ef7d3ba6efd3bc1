"""One flat configuration: all that determines a run besides the trace's bytes, resolved and written beside its results.

A configuration is built from layers (defaults, preset, file, options); a later layer wins. Within a layer the preset
comes first, so that every other key of the same layer can override it.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from sagasim.core import MAX_DURATION_PS, MAX_TOKENS
from sagasim.errors import ConfigError, nearest
from sagasim.hardware import DTYPES, Gpu, load_gpu, load_model
from sagasim.units import PS_PER_S

__all__ = [
    "ABLATIONS",
    "PRESETS",
    "RATED",
    "Config",
    "check_config",
    "merge",
    "parse_assignment",
    "parse_value",
    "read_config",
    "resolve",
    "to_toml",
]


@dataclass(frozen=True, slots=True)
class Config:
    """None means: take the default of the model, the GPU or the engine; a resolved configuration holds no such None."""

    # work
    trace: str | None = None  # name of an embedded trace or a file
    workload: str | None = None  # name of a generator, with its options: swe-bench:mean_steps=20
    mix: str | None = None  # several of both with their weights: swe-bench@3+weka@1
    turns: str | None = None  # derived turns of a Mooncake trace: a file that says which request follows which
    tasks: int | None = None  # how many tasks; default: the whole trace
    tenants: str | None = None  # tenants with their weights, drawn for each task: heavy@3+light@1
    resample: bool = False  # draw the tasks of a trace with replacement, families together
    arrivals: str = "auto"  # see arrivals.py; auto: recorded if the trace has them, else at-once
    rate_per_min: float | None = None  # tasks a minute, for poisson, bursty and diurnal
    load: float | None = None  # the rate as a fraction of capacity; only a label once rate_per_min is known
    concurrency: int | None = None  # tasks at a time, for closed
    arrival_cv: float = 3.0  # bursty: coefficient of variation of the gaps
    diurnal_period_s: float = 3600.0  # diurnal: the rate swings once in this time
    diurnal_amplitude: float = 0.8  # diurnal: by this part of itself, up and down
    time_scale: float = 1.0  # recorded arrivals times this
    warmup: float | None = None  # part of the tasks, first arrived, that is left out of the metrics
    cooldown: float | None = None  # the same, last arrived; defaults: 0.1 and 0.1 of a steady stream, else 0
    horizon_s: float | None = None  # the run is cut off then; tasks under way count as unfinished
    over_length: str | None = None  # drop | truncate | extend
    block_tokens: int = 512  # of an agentic_mooncake file
    seed: int = 0
    # cluster
    gpus: int = 64
    gpu: str = "h200"
    model: str = "llama-3.1-70b"
    tp: int = 4
    dtype: str = "bf16"  # bf16 | fp8 (weights) | fp8-kvfp8 (weights and KV cache)
    calibration: str | None = None  # file; default: the embedded one for gpu, model, tp and dtype
    # policies
    preset: str | None = None
    route: str = "prefix-affinity"
    order: str = "fcfs"
    evict: str = "lru"
    predict: str = "none"  # what policies that see the workflow are told by
    balance: str = "none"  # moves waiting calls between replicas
    balance_epoch_s: float = 0.1  # how often
    balance_carries: bool = True  # what is cached of a moved call's prompt is copied over the links first
    prefetch: str = "none"  # when to bring back from host memory what a coming call will need
    preempt: str = "none"  # which running calls give way to a waiting one
    preempt_after_s: float = 0.5  # once that has waited so long; looked at every balance_epoch_s
    # engine (names and defaults of vLLM 0.15)
    prefix_caching: bool = True  # full blocks of what was computed are found again
    async_scheduling: bool = True  # a step is decided while the one before it runs
    max_num_batched_tokens: int | None = None  # of a step
    max_num_seqs: int | None = None  # running calls at a time
    max_model_len: int | None = None
    long_prefill_token_threshold: int = 0  # most tokens of a prompt in a step; 0: as many as fit
    gpu_memory_utilization: float = 0.9  # part of the GPU's memory for weights, activations and KV
    num_gpu_blocks_override: int | None = None  # KV blocks of a replica, one of which is never used
    stop: str = "eos"  # eos: the stop is seen only in the output; length: it is foreseen
    reserve_full_prompt: bool = False  # as vLLM 0.19 does: a call starts only if there is room for its whole prompt
    evict_batch_blocks: int = 64  # a scored eviction frees this many blocks at a time
    host_memory_gb: float = 0.0  # GiB of a node's host memory for evicted KV; 0: what is evicted is gone
    host_gb_per_s: float | None = None  # of a GPU and direction; default: as calibrated, else 0.8 of the PCIe rate
    copy_slowdown: float | None = None  # steps take so many times longer beside copies; default: calibrated, else 1.6
    copy_slowdown_both: float | None = None  # the same beside copies in both directions; default: else 2.8
    failures: str | None = None  # replicas that fail or are drained, and when: see failures.py
    reference: bool = False  # every step and every block singly


# vLLM 0.15: prefix caching, asynchronous scheduling, the cache-aware rule of vLLM's router.
_VLLM: dict[str, Any] = {
    "prefix_caching": True,
    "async_scheduling": True,
    "route": "prefix-affinity",
    "order": "fcfs",
    "evict": "lru",
    "predict": "none",
    "balance": "none",
    "prefetch": "none",
    "preempt": "none",
    "host_memory_gb": 0.0,
}
PRESETS: dict[str, dict[str, Any]] = {
    # vLLM 0.6: no prefix cache, synchronous steps, a load balancer that knows nothing of sessions.
    "vllm-0.6": {**_VLLM, "prefix_caching": False, "async_scheduling": False, "route": "least-loaded"},
    "vllm-0.15": _VLLM,
    # As much throughput as batches give: large ones, the calls with the least to compute first, nobody's deadline.
    "throughput": {**_VLLM, "order": "least-new", "max_num_batched_tokens": 16384},
    # SAGA, all of it (docs/saga.md); its host memory is 512 GiB a node.
    "saga": {
        **_VLLM,
        "route": "saga-affinity",
        "order": "afs",
        "evict": "wa-lru",
        "predict": "aeg",
        "balance": "steal",
        "prefetch": "tool-end",
        "preempt": "urgency",
        "host_memory_gb": 512.0,
        "evict_batch_blocks": 256,
    },
}
ABLATIONS: dict[str, dict[str, Any]] = {  # preset saga without one of its mechanisms
    "saga-no-affinity": {"route": "least-loaded"},
    "saga-no-wa-lru": {"evict": "lru"},
    "saga-no-ttl": {"evict": "wa-lru:ttl=false"},
    "saga-no-stealing": {"balance": "none"},
    "saga-no-prefetch": {"prefetch": "none"},
    "saga-no-host": {"host_memory_gb": 0.0, "prefetch": "none"},
    "saga-no-afs": {"order": "fcfs", "preempt": "none"},
    "saga-no-preemption": {"preempt": "none"},
    # its strategies: who is first in a replica's queue
    "saga-bfs": {"order": "fcfs", "preempt": "none"},
    "saga-dfs": {"order": "lifo", "preempt": "none"},
}
PRESETS |= {name: {**PRESETS["saga"], **changes} for name, changes in ABLATIONS.items()}

_WORDS = {
    "arrivals": ("auto", "recorded", "at-once", "poisson", "bursty", "diurnal", "closed"),
    "over_length": ("drop", "truncate", "extend"),
    "stop": ("eos", "length"),
    "dtype": tuple(DTYPES),
}
_AT_LEAST = {  # whole numbers and the smallest of each that makes sense
    "tasks": 1,
    "concurrency": 1,
    "block_tokens": 1,
    "seed": 0,
    "gpus": 1,
    "tp": 1,
    "max_num_batched_tokens": 1,
    "max_num_seqs": 1,
    "max_model_len": 2,
    "long_prefill_token_threshold": 0,
    "num_gpu_blocks_override": 1,
    "evict_batch_blocks": 1,
}
_AT_MOST = 2**53  # of any whole number: what a JSON or TOML reader surely keeps
_LARGEST = {  # with more than this a run would fill any memory before it began
    "tasks": 10**8,
    "concurrency": 10**7,
    "gpus": 10**5,
    "max_num_batched_tokens": 2**20,
    "max_num_seqs": 2**20,
    "max_model_len": MAX_TOKENS,
    "num_gpu_blocks_override": 10**7,
}
_LEAST = 1e-6  # of a number that is above 0
_UP_TO = {  # above 0, at most this
    "rate_per_min": 1e9,
    "load": 2.0,
    "gpu_memory_utilization": 1.0,
    "arrival_cv": 100.0,
    "diurnal_period_s": 1e6,
    "time_scale": 1e6,
    "balance_epoch_s": 1e6,
    "preempt_after_s": 1e6,
    "host_gb_per_s": 1e6,
    "horizon_s": MAX_DURATION_PS / PS_PER_S,
}
_PARTS = {"warmup": 0.9, "cooldown": 0.9, "diurnal_amplitude": 1.0, "host_memory_gb": 1e6}  # from 0, at most this
_FACTORS = ("copy_slowdown", "copy_slowdown_both")  # from 1 to 100
# A layer that says one of these takes back what earlier layers said of the others.
_EXCLUSIVE = (("trace", "workload", "mix"), ("arrivals", "rate_per_min", "load", "concurrency"))
RATED = ("poisson", "bursty", "diurnal")  # arrivals that have a rate
MOST_LEFT_OUT = 0.9
_FILE_BYTES = 2**20  # of a configuration
_DEFAULT_PRESET = "vllm-0.15"
_DEFAULT_TASKS = 100  # of a generator
_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _kinds() -> dict[str, type]:
    """Type of each key, without its None."""
    hints = get_type_hints(Config)
    return {f.name: (get_args(hints[f.name]) or (hints[f.name],))[0] for f in fields(Config)}


KINDS = _kinds()


def _check_key(key: str, where: str) -> None:
    if key not in KINDS:
        raise ConfigError(f"unknown key {key[:60]!r}", where=where, expected=nearest(key, KINDS))


def parse_value(key: str, text: str, where: str) -> Any:
    """The value that `text` means for `key`; raises ConfigError, naming `where`."""
    _check_key(key, where)
    kind = KINDS[key]
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"{_shown(text)} does not fit", where=where, expected=_NAMES[kind]) from None


def parse_assignment(item: str) -> tuple[str, Any]:
    """`key=value` of --set."""
    key, equals, text = item.partition("=")
    key = key.strip().replace("-", "_")
    where = f"--set {item[:200]}"
    if not equals:
        raise ConfigError("no value", where=where, expected="key=value")
    return key, parse_value(key, text.strip(), where)


def read_config(path: str | Path) -> dict[str, Any]:
    """The keys of a TOML file, checked for name and type."""
    try:
        with open(path, "rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), expected="a TOML file") from None
    if len(content) > _FILE_BYTES:
        raise ConfigError("too long", where=str(path), expected=f"a TOML file of at most {_FILE_BYTES >> 20} MiB")
    try:
        layer = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # no text, no TOML, a number of thousands of digits, lists in lists
        raise ConfigError(f"not TOML: {str(error)[:200]}", where=str(path), expected="lines of key = value") from None
    return {key: _typed(key, value, f"{path}, key {key[:60]!r}") for key, value in layer.items()}


def _typed(key: str, value: object, where: str) -> Any:
    """A value as the key's type: whole numbers stand for numbers, nothing else is converted."""
    _check_key(key, where)
    kind = KINDS[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= 1000:
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{_shown(value)} does not fit", where=where, expected=_NAMES[kind])
    return value


def _shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:80] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"


def merge(*layers: Mapping[str, Any]) -> Config:
    """The configuration that the layers make, later ones winning; only names and types are checked."""
    values: dict[str, Any] = {}
    for layer in ({"preset": _DEFAULT_PRESET}, *layers):
        said = {key: _typed(key, value, key) for key, value in layer.items() if value is not None}
        for group in _EXCLUSIVE:
            if any(key in said for key in group):
                values = {key: value for key, value in values.items() if key not in group}
        if "preset" in said:
            if said["preset"] not in PRESETS:
                raise ConfigError(
                    f"unknown preset {said['preset']!r}", where="preset", expected=nearest(said["preset"], PRESETS)
                )
            values.update(PRESETS[said["preset"]])
        values.update(said)
    return Config(**values)


def resolve(*layers: Mapping[str, Any]) -> Config:
    """Merge the layers, check them and fill in the defaults of the model, the GPU and the engine.

    What only the trace can tell (arrivals, number of tasks, an extended length) is filled in by sagasim.experiment.
    Raises ConfigError or CalibrationError.
    """
    config = merge(*layers)
    check_config(config)
    large = _large_gpu(load_gpu(config.gpu))
    arrivals = _arrivals(config) if config.arrivals == "auto" else config.arrivals
    left_out = 0.1 if arrivals in (*RATED, "closed") else 0.0
    defaults: dict[str, Any] = {
        "arrivals": arrivals,
        "warmup": left_out,
        "cooldown": left_out,
        "tasks": _DEFAULT_TASKS if config.trace is None else None,
        "max_model_len": load_model(config.model).max_model_len,
        "max_num_batched_tokens": 8192 if large else 2048,
        "max_num_seqs": 1024 if large else 256,
    }
    missing = {key: value for key, value in defaults.items() if getattr(config, key) in (None, "auto")}
    config = replace(config, **missing)
    check_config(config)
    return config


def _large_gpu(gpu: Gpu) -> bool:
    """Whether vLLM takes its larger batch defaults: at least 70 GiB and not an A100."""
    return gpu.memory_bytes >= 70 * 2**30 and "a100" not in gpu.id.lower()


def _arrivals(config: Config) -> str:
    if config.rate_per_min is not None or config.load is not None:
        return "poisson"
    return "closed" if config.concurrency is not None else "auto"


def check_config(config: Config) -> None:
    """Raise ConfigError or CalibrationError unless the configuration makes sense, resolved or not."""
    for key, value in asdict(config).items():
        if value is not None:
            _check_value(key, value)
    _check_work(config)
    _check_cluster(config)
    if (config.max_num_seqs or 0) > (config.max_num_batched_tokens or _AT_MOST):
        raise ConfigError(
            f"{config.max_num_batched_tokens} is below max_num_seqs = {config.max_num_seqs}",
            where="max_num_batched_tokens",
            expected="at least one token for each sequence",
        )


def _check_value(key: str, value: Any) -> None:
    value = _typed(key, value, key)
    if key in _WORDS and value not in _WORDS[key]:
        raise ConfigError(f"unknown word {_shown(value)}", where=key, expected=nearest(value, _WORDS[key]))
    if key in _AT_LEAST and not _AT_LEAST[key] <= value <= _LARGEST.get(key, _AT_MOST):
        expected = f"a whole number >= {_AT_LEAST[key]}, at most {_LARGEST.get(key, _AT_MOST)}"
        raise ConfigError(f"{_shown(value)} is out of range", where=key, expected=expected)
    if key in _UP_TO and not (_LEAST <= value <= _UP_TO[key] and math.isfinite(value)):
        expected = f"above 0 (from {_LEAST:g} on), at most {_UP_TO[key]:g}"
        raise ConfigError(f"{value:g} is out of range", where=key, expected=expected)
    if key in _FACTORS and not 1 <= value <= 100:
        raise ConfigError(f"{value:g} is out of range", where=key, expected="from 1 to 100")
    if key in _PARTS and not 0 <= value <= _PARTS[key]:
        raise ConfigError(f"{value:g} is out of range", where=key, expected=f"from 0 to {_PARTS[key]:g}")
    if value == "":
        raise ConfigError("empty", where=key, expected="text")
    if isinstance(value, str) and any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value):
        raise ConfigError(f"{_shown(value)} is no text", where=key, expected="letters of UTF-8")


def _check_work(config: Config) -> None:
    sources = [key for key in ("trace", "workload", "mix") if getattr(config, key) is not None]
    if len(sources) != 1:
        raise ConfigError(
            f"{len(sources) or 'no'} source{'s' if sources else ''} of tasks",
            where="trace, workload and mix",
            expected="one of --trace FILE|NAME, --workload NAME and --mix NAME@WEIGHT+...",
        )
    if config.turns is not None and config.trace is None:
        raise ConfigError("turns without a trace", where="turns", expected="--trace FILE, the requests they belong to")
    rated = config.arrivals in RATED
    needs = {"closed": ("concurrency",)} | ({config.arrivals: ("rate_per_min", "load")} if rated else {})
    for word, keys in needs.items():
        given = [key for key in keys if getattr(config, key) is not None]
        if config.arrivals == word and not given:
            raise ConfigError(f"{word} needs a number", where="arrivals", expected=" or ".join(keys))
        if given and config.arrivals not in (word, "auto"):
            raise ConfigError(f"{given[0]} does not go with {config.arrivals}", where="arrivals", expected=word)
    by_rate = [key for key in ("rate_per_min", "load") if getattr(config, key) is not None]
    if by_rate and not rated and config.arrivals != "auto":
        what = f"{by_rate[0]} does not go with {config.arrivals}"
        raise ConfigError(what, where="arrivals", expected=", ".join(RATED))
    if config.concurrency is not None and by_rate:
        raise ConfigError("two ways of arriving", where="concurrency", expected="one of rate, load and concurrency")
    if (config.warmup or 0) + (config.cooldown or 0) > MOST_LEFT_OUT:
        raise ConfigError(
            "nothing is left to measure", where="warmup and cooldown", expected=f"at most {MOST_LEFT_OUT} together"
        )


def _check_cluster(config: Config) -> None:
    model, gpu = load_model(config.model), load_gpu(config.gpu)
    if config.tp not in (1, 2, 4, 8):
        raise ConfigError(f"{config.tp} GPUs cannot share the model", where="tp", expected="1, 2, 4 or 8")
    if config.tp > gpu.node_size:
        raise ConfigError(
            f"{config.tp} does not fit one node", where="tp", expected=f"at most {gpu.node_size} for {config.gpu}"
        )
    if config.gpus % config.tp:
        what = f"{config.gpus} is not divisible by tp = {config.tp}"
        raise ConfigError(what, where="gpus", expected="a multiple of tp")
    longest = model.max_model_len
    if config.max_model_len is not None and config.max_model_len > longest and config.over_length != "extend":
        raise ConfigError(
            f"{config.max_model_len} is beyond {config.model}",
            where="max_model_len",
            expected=f"at most {longest}, or --over-length extend",
        )


def to_toml(config: Config) -> str:
    """The configuration as a TOML file, in the order of the fields; what is None is left out."""
    import tomli_w  # only where a run is written

    return tomli_w.dumps({key: value for key, value in asdict(config).items() if value is not None})
