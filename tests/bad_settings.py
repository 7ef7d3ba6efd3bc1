"""Wrong configurations, options, calibrations and policies, each with words that the one line about it must hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from sagasim.cost import constant_calibration

__all__ = ["BAD_CALIBRATIONS", "BAD_COMMANDS", "BAD_CONFIGS", "BAD_OPTIONS", "BAD_POLICIES"]

# ---- configuration files; the options beside them are fine

BAD_CONFIGS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "no value": (b"gpus = ", ("bad.toml", "not TOML", "key = value")),
    "not text": (b"\xff\xfe\x00", ("bad.toml", "not TOML", "key = value")),
    "UTF-16": ("gpus = 8".encode("utf-16"), ("bad.toml", "not TOML")),
    "JSON": (b'{"gpus": 8}', ("bad.toml", "not TOML", "line 1")),
    "a key twice": (b"gpus = 8\ngpus = 8", ("bad.toml", "not TOML", "overwrite")),
    "unknown key": (b"max_num_seq = 8", ("bad.toml", "unknown key 'max_num_seq'", "'max_num_seqs' perhaps")),
    "a table": (b"[cluster]\ngpus = 8", ("bad.toml", "unknown key 'cluster'", "one of")),
    "a table for a number": (b"gpus = {a = 1}", ("key 'gpus'", "a dict does not fit", "a whole number")),
    "a list for a text": (b'model = ["llama"]', ("key 'model'", "a list does not fit", "text")),
    "a truth for a number": (b"gpus = true", ("key 'gpus'", "True does not fit", "a whole number")),
    "a text for a truth": (b'prefix_caching = "yes"', ("key 'prefix_caching'", "'yes' does not fit", "true or false")),
    "a date": (b"seed = 2024-01-01", ("key 'seed'", "a date does not fit", "a whole number")),
    "not a number": (b"load = nan", ("load", "nan is out of range", "at most 2")),
    "infinite": (b"horizon_s = inf", ("horizon_s", "inf is out of range", "above 0")),
    "5000 digits": (b"tasks = " + b"9" * 5000, ("bad.toml", "not TOML", "key = value")),
    "4000 digits": (b"tasks = " + b"9" * 4000, ("tasks", "a number of 13288 bits is out of range", "at most")),
    "hexadecimal": (b"load = 0x" + b"f" * 5000, ("key 'load'", "a number of 20000 bits does not fit", "a number")),
    "nested": (b"seed = " + b"[" * 3000, ("bad.toml", "not TOML")),
    "endless": (b"#" * (2**20 + 1), ("bad.toml", "too long", "1 MiB")),
    "a NUL": (b'calibration = "a\\u0000b"', ("calibration", "no text", "UTF-8")),
    "two sources": (b'trace = "weka"\nworkload = "chat"', ("2 sources of tasks", "one of --trace")),
    "two ways": (b"arrivals = 'poisson'\nrate_per_min = 3.0\nconcurrency = 4", ("arrivals", "poisson", "closed")),
    "a rate at once": (b"arrivals = 'at-once'\nload = 0.5", ("arrivals", "load does not go with at-once")),
    "no rate": (b"arrivals = 'bursty'", ("arrivals", "bursty needs a number", "rate_per_min or load")),
    "a word": (b"over_length = 'cut'", ("over_length", "unknown word 'cut'", "drop, extend, truncate")),
    "an empty text": (b"route = ''", ("route", "empty", "text")),
    "nothing to measure": (b"warmup = 0.5\ncooldown = 0.5", ("warmup and cooldown", "nothing is left", "0.9")),
    "turns alone": (b"turns = 'x.csv'\nworkload = 'chat'", ("turns", "turns without a trace", "--trace FILE")),
    "preset": (b"preset = 'vllm-0.51'", ("preset", "'vllm-0.51'", "'vllm-0.15' perhaps")),
}

# ---- options of `run`, over a run that is fine

BAD_OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no number": (("--gpus", "many"), ("--gpus", "'many' does not fit", "a whole number")),
    "a fraction": (("--gpus", "8.5"), ("--gpus", "'8.5' does not fit", "a whole number")),
    "no GPU": (("--gpus", "0"), ("gpus", "0 is out of range", ">= 1")),
    "a planet of GPUs": (("--gpus", "1000000000000"), ("gpus", "1000000000000 is out of range", "at most 100000")),
    "GPUs that do not divide": (("--gpus", "9"), ("gpus", "9 is not divisible by tp = 4", "a multiple of tp")),
    "tp": (("--tp", "16"), ("tp", "16 GPUs cannot share", "1, 2, 4 or 8")),
    "a model that does not fit": (
        ("--gpu", "a100", "--model", "llama-3-70b", "--tp", "1"),
        ("cluster", "does not fit", "expected"),
    ),
    "unknown GPU": (("--gpu", "h210"), ("unknown GPU 'h210'", "'h200' perhaps")),
    "unknown model": (("--model", "llama-3.1-80b"), ("unknown model 'llama-3.1-80b'", "perhaps")),
    "a GPU that is not there": (("--gpu", "mine.toml"), ("mine.toml", "cannot be read")),
    "a calibration that is not there": (("--set", "calibration=mine.json"), ("mine.json", "cannot be read")),
    "a calibration that is a folder": (("--set", "calibration=."), (".", "cannot be read", "a calibration file")),
    "longer than the model": (("--max-model-len", "200000"), ("max_model_len", "200000 is beyond", "131072")),
    "no memory": (("--set", "num_gpu_blocks_override=1"), ("does not fit", "room for")),
    "endless memory": (
        ("--set", "num_gpu_blocks_override=99999999999999"),
        ("num_gpu_blocks_override", "99999999999999 is out of range", "at most 10000000"),
    ),
    "endless batches": (
        ("--set", "max_num_batched_tokens=99999999999"),
        ("max_num_batched_tokens", "99999999999 is out of range", "at most 1048576"),
    ),
    "a batch below its sequences": (
        ("--set", "max_num_batched_tokens=8"),
        ("max_num_batched_tokens", "8 is below max_num_seqs", "one token for each"),
    ),
    "10^9 tasks": (("--tasks", "1000000000"), ("tasks", "1000000000 is out of range", "at most 100000000")),
    "10^9 agents": (("--concurrency", "1000000000"), ("concurrency", "out of range", "at most 10000000")),
    "load": (("--load", "3"), ("load", "3 is out of range", "at most 2")),
    "hardly a load": (("--load", "1e-300"), ("load", "1e-300 is out of range", "from 1e-06 on")),
    "a rate that is none": (("--rate", "-1"), ("rate_per_min", "-1 is out of range", "above 0")),
    "too late": (("--rate", "0.00001"), ("arrivals", "arrives too late", "92233 s")),
    "bursts of nothing": (
        ("--rate", "5", "--set", "arrivals=bursty", "--set", "arrival_cv=1e-300"),
        ("arrival_cv", "1e-300 is out of range", "at most 100"),
    ),
    "a day of nothing": (
        ("--rate", "5", "--set", "arrivals=diurnal", "--set", "diurnal_period_s=1e-307"),
        ("diurnal_period_s", "1e-307 is out of range", "at most 1e+06"),
    ),
    "rate and load": (("--rate", "3", "--load", "0.5"), ("--rate and --load exclude each other", "one of them")),
    "no recorded arrivals": (("--arrivals", "recorded"), ("no recorded arrival", "other arrivals")),
    "arrivals": (("--arrivals", "possion"), ("arrivals", "unknown word 'possion'", "'poisson' perhaps")),
    "seed": (("--seed", "-1"), ("seed", "-1 is out of range", ">= 0")),
    "unknown option": (("--taks", "8"), ("unknown option '--taks'", "'--tasks' perhaps")),
    "a word too many": (("tau-bench",), ("unexpected 'tau-bench'", "--help")),
    "no argument": (("--seed",), ("--seed", "expected one argument", "--help")),
    "unknown key": (("--set", "max_seqs=4"), ("--set max_seqs=4", "unknown key", "'max_num_seqs' perhaps")),
    "no value": (("--set", "seed"), ("--set seed", "no value", "key=value")),
    "a value that is none": (("--set", "reference=perhaps"), ("'perhaps' does not fit", "true or false")),
    "no configuration": (("--config", "none.toml"), ("none.toml", "cannot be read", "a TOML file")),
    "a folder as configuration": (("--config", "."), (".", "cannot be read", "a TOML file")),
    "a name without end": (("--config", "x" * 300), ("cannot be read: File name too long", "a TOML file")),
    "tenants": (("--tenants", "a@0"), ("tenants", "'a@0' does not fit", "above 0")),
    "tenants twice": (("--tenants", "a@1+a@2"), ("tenants", "'a@2' does not fit", "names once each")),
    "a tenant without name": (("--tenants", "@3"), ("tenants", "'@3' does not fit", "NAME@WEIGHT")),
    "a tenant of bytes": (("--tenants", "\udcff@1"), ("tenants", "no text", "UTF-8")),
    "a tenant of two lines": (("--tenants", "a\nb@1"), ("tenants", "does not fit", "NAME@WEIGHT")),
    "an infinite tenant": (("--tenants", "a@1e308+b@1e308"), ("tenants", "'a@1e308' does not fit", "at most 1e+09")),
    "route": (("--route", "prefix-afinity"), ("unknown route policy 'prefix-afinity'", "'prefix-affinity' perhaps")),
    "a parameter": (("--route", "prefix-affinity:treshold=1"), ("'treshold=1'", "'threshold' perhaps")),
    "a parameter's type": (("--route", "prefix-affinity:threshold=x"), ("threshold", "'x' is not of type", "float")),
    "a parameter out of range": (("--balance", "steal:most=-1"), ("steal:most=-1, most: -1 is out of range", "1 to")),
    "parameters that contradict": (
        ("--preset", "saga", "--evict", "wa-lru:ttl_low=0.9,ttl_high=0.9"),
        ("wa-lru", "ttl_low 0.9", "less than ttl_high, 0.9"),
    ),
    "no parameters": (("--evict", "lru:k=3"), ("lru:k=3", "unknown parameter 'k=3'", "lru has none")),
    "no policy file": (("--order", "./none.py:mine"), ("none.py", "no such file", "a policy in it")),
    "a policy file without end": (("--order", "x" * 300 + ".py:mine"), ("File name too long", "a policy in it")),
    "out: empty": (("--out", ""), ("--out", "no folder", "--out DIR")),
    "out: exists": (("--out", "mine"), ("mine", "exists already", "does not exist yet")),
    "out: a file": (("--out", "mine/file"), ("mine/file", "exists already")),
    "out: below a file": (("--out", "mine/file/new"), ("mine/file/new", "cannot be made", "a writable place")),
    "out: below a device": (("--out", "/dev/null/new"), ("/dev/null/new", "cannot be made", "a writable place")),
    "out: without end": (("--out", "x" * 300), ("cannot be made: File name too long", "a writable place")),
}

# ---- whole commands

TASKS = ("--tasks", "2", "--gpus", "8", "--no-figures", "--out", "new")
BAD_COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "nothing": ((), ("COMMAND", "--help")),
    "unknown command": (("simulate",), ("unknown command 'simulate'", "one of")),
    "no source": (("run", *TASKS), ("no source of tasks", "one of --trace")),
    "unknown trace": (("run", "--trace", "wekka", *TASKS), ("unknown trace 'wekka'", "'weka' perhaps")),
    "no such file": (("run", "--trace", "none.jsonl", *TASKS), ("none.jsonl", "no such file", "a trace file")),
    "a folder": (("run", "--trace", ".", *TASKS), (".", "a folder", "a trace file")),
    "a device": (("run", "--trace", "/dev/zero", *TASKS), ("/dev/zero", "not a regular file", "a trace file")),
    "a name without end": (("run", "--trace", "x" * 300, *TASKS), ("unknown trace", "a file")),
    "a path without end": (("run", "--trace", "x" * 300 + ".jsonl", *TASKS), ("File name too long", "a trace file")),
    "unknown workload": (("run", "--workload", "swe-bensh", *TASKS), ("'swe-bensh'", "'swe-bench' perhaps")),
    "a workload's option": (("run", "--workload", "swe-bench:steps=3", *TASKS), ("option 'steps=3'", "perhaps")),
    "an option's type": (("run", "--workload", "swe-bench:mean_steps=x", *TASKS), ("mean_steps is 'x'", "a number")),
    "no workload file": (("run", "--workload", "./none.py:mine", *TASKS), ("none.py", "no such file", "a workload")),
    "mix": (("run", "--mix", "swe-bench@3+wekka@1", *TASKS), ("mix", "unknown source 'wekka'", "'weka' perhaps")),
    "a weight": (("run", "--mix", "swe-bench@-1", *TASKS), ("mix", "'swe-bench@-1' does not fit", "above 0")),
    "no weight": (("run", "--mix", "swe-bench@nan", *TASKS), ("mix", "'swe-bench@nan' does not fit", "at most 1e+09")),
    "twice": (("run", "--mix", "chat+chat", *TASKS), ("mix", "'chat' does not fit", "names once each")),
    "a mix and a trace": (("run", "--mix", "chat", "--trace", "weka", *TASKS), ("--trace and --mix exclude",)),
    "turns of sessions": (("run", "--trace", "weka", "--set", "turns=x", *TASKS), ("unknown option 'turns'", "share")),
    "too long": (
        ("run", "--trace", "weka", "--max-model-len", "1000", *TASKS),
        ("a context of", "where 1,000 fit", "drop, truncate or extend"),
    ),
    "nothing left": (
        ("run", "--trace", "tau-bench", "--max-model-len", "2", "--over-length", "drop", *TASKS),
        ("no task is left", "over_length = extend"),
    ),
    "compare: nothing": (("compare", "--trace", "weka", *TASKS), ("nothing to compare", "--presets A,B")),
    "compare: unknown": (("compare", "--presets", "vllm-0.6,sgl", "--trace", "weka", *TASKS), ("'sgl'", "one of")),
    "compare: twice": (("compare", "--presets", "vllm-0.6,vllm-0.6", "--trace", "weka", *TASKS), ("each name once",)),
    "compare: seeds": (
        ("compare", "--presets", "vllm-0.6", "--seeds", "0", "--trace", "weka", *TASKS),
        ("--seeds", "0 is out of range", "from 1 to"),
    ),
    "variant: unknown preset": (
        ("compare", "--variant", "a=sglang", "--trace", "weka", *TASKS),
        ("variant 'a=sglang'", "unknown preset 'sglang'", "one of"),
    ),
    "variant: a quote": (
        ("compare", "--variant", "a=vllm-0.6 'x", "--trace", "weka", *TASKS),
        ("variant", "No closing quotation", "NAME=PRESET key=value"),
    ),
    "variant: a name": (
        ("compare", "--variant", "../a=vllm-0.6", "--trace", "weka", *TASKS),
        ("'../a' cannot name a folder", "letters, digits"),
    ),
    "variant: a key": (
        ("compare", "--variant", "a=vllm-0.6 max_seqs=3", "--trace", "weka", *TASKS),
        ("max_seqs=3", "unknown key", "'max_num_seqs' perhaps"),
    ),
    "variant: a value": (
        ("compare", "--variant", "a=vllm-0.6 gpus=7", "--trace", "weka", *TASKS),
        ("gpus", "7 is not divisible", "a multiple of tp"),
    ),
    "trace: a command": (("trace", "check", "weka"), ("unknown command 'check'", "validate")),
    "trace: block size": (("trace", "validate", "weka", "--block-tokens", "64"), ("'block_tokens'", "share")),
    "trace: share": (("trace", "stats", "weka", "--share", "none"), ("share is 'none'", "one of: prefix, session")),
    "trace: format": (("trace", "convert", "weka", "--to", "csv", "--out", "x"), ("--to", "'csv'", "native")),
    "trace: exists": (("trace", "convert", "weka", "--out", "mine/file"), ("mine/file", "exists already", "new file")),
    "trace: a folder": (("trace", "convert", "weka", "--out", "no/x"), ("no/x", "cannot be written", "a folder")),
    "trace: a name": (("trace", "convert", "weka", "--out", "x" * 300), ("File name too long", "a folder")),
    "trace: small blocks": (
        ("trace", "convert", "mine/huge", "--to", "agentic_mooncake", "--block-tokens", "1", "--out", "x"),
        ("call 'a'", "99,999,999 blocks of 1 tokens", "larger blocks"),
    ),
    "check: unknown": (("check", "fcfss"), ("fcfss", "no policy 'fcfss'", "'fcfs' perhaps")),
}  # fmt: skip

# ---- calibrations


def calibration(change: Callable[[dict[str, Any]], object]) -> bytes:
    made = constant_calibration(5_000_000, decode_ps=20, prefill_token_ps=30_000)
    change(made)
    return json.dumps(made).encode()


GOOD = calibration(lambda made: None)
TERM = {"name": "linear", "tokens": [1, 64], "ps": [5, 9]}
BAD_CALIBRATIONS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("not a JSON document", "a calibration file")),
    "not JSON": (b"base_ps: 3", ("not a JSON document", "a calibration file")),
    "cut": (GOOD[:-20], ("not a JSON document",)),
    "binary": (bytes(range(256)), ("not a JSON document",)),
    "nested": (b"[" * 100_000, ("not a JSON document",)),
    "5000 digits": (b'{"sagasim_calibration": ' + b"9" * 5000 + b"}", ("not a JSON document",)),
    "a list": (b"[]", ("not a calibration", '"sagasim_calibration"')),
    "something else": (b"{}", ("not a calibration", '"sagasim_calibration"')),
    "version": (calibration(lambda made: made.update(sagasim_calibration=999)), ("999", "fit it again")),
    "no host": (calibration(lambda made: made.pop("host")), ("'host' is missing", "of type dict")),
    "host of a number": (calibration(lambda made: made.update(host=3)), ("'host' is missing or wrong", "dict")),
    "no constant": (calibration(lambda made: made.pop("constant_ps")), ("'constant_ps' is missing", "int")),
    "a fraction": (calibration(lambda made: made.update(constant_ps=1.5)), ("'constant_ps'", "of type int")),
    "a truth": (calibration(lambda made: made.update(constant_ps=True)), ("'constant_ps'", "of type int")),
    "negative": (calibration(lambda made: made["host"].update(base_ps=-1)), ("host.base_ps is -1", "from 0 to")),
    "absurd": (calibration(lambda made: made.update(constant_ps=2**70)), ("constant_ps is", "a whole number")),
    "terms of text": (calibration(lambda made: made.update(token_terms=["x"])), ("token_terms", "an object")),
    "a falling term": (
        calibration(lambda made: made.update(token_terms=[{**TERM, "ps": [9, 5]}])),
        ("token_terms 'linear'", "times decrease", "non-decreasing"),
    ),
    "a term's axis": (
        calibration(lambda made: made.update(token_terms=[{**TERM, "tokens": [64, 1]}])),
        ("token_terms 'linear'", "axis does not increase", "increasing"),
    ),
    "a term's length": (
        calibration(lambda made: made.update(sequence_terms=[{"name": "x", "sequences": [1, 2], "ps": [1]}])),
        ("sequence_terms 'x'", "wrong number of values", "2 values"),
    ),
    "no attention": (calibration(lambda made: made.pop("decode_attention")), ("'decode_attention' is missing",)),
    "attention of one row": (
        calibration(lambda made: made["decode_attention"].update(ps=[[0, 1]])),
        ("decode_attention", "rows and axes differ", "a row per batch"),
    ),
    "attention that falls": (
        calibration(lambda made: made["decode_attention"].update(ps=[[5, 1], [5, 6]])),
        ("decode_attention", "times decrease", "non-decreasing"),
    ),
    "attention of no context": (
        calibration(lambda made: made["decode_attention"].update(context=[])),
        ("decode_attention.context", "axis", "increasing"),
    ),
    "prefill without base": (
        calibration(lambda made: made["prefill_attention"].pop("base_ps")),
        ("prefill_attention", "'base_ps' is missing"),
    ),
    "prefill's shift": (
        calibration(lambda made: made["prefill_attention"].update(shift=90)),
        ("prefill_attention", "shift", "62"),
    ),
}

# ---- policies in files

HEAD = "from sagasim.seams import policy\n"
BAD_POLICIES: dict[str, tuple[str, bytes, tuple[str, ...]]] = {
    "syntax": ("route", b"def broken(:\n", ("syntax.py:1", "invalid syntax", "valid Python")),
    "indent": ("order", b"def f():\nreturn 1\n", ("indent.py:2", "indented block", "valid Python")),
    "binary": ("route", bytes(range(256)), ("binary.py", "valid Python")),
    "zeros": ("evict", bytes(10), ("zeros.py", "null bytes", "valid Python")),
    "brackets": ("route", b"x = " + b"(" * 5000, ("brackets.py", "valid Python")),
    "imports": ("route", b"import sagasim_nothing\n", ("imports.py", "No module named", "imports that are installed")),
    "no_name": ("route", HEAD.encode(), ("no_name.py:mine", "unknown route policy 'mine'", "one of")),
    "kind": (
        "route",
        f"{HEAD}@policy('rout', 'mine')\ndef f(request): ...\n".encode(),
        ("policy 'mine'", "unknown kind 'rout'", "'route' perhaps"),
    ),
    "other_kind": (
        "route",
        f"{HEAD}@policy('order', 'mine')\ndef f(request, now_ps): return 0\n".encode(),
        ("unknown route policy 'mine'", "one of"),
    ),
    "few_arguments": (
        "route",
        f"{HEAD}@policy('route', 'mine')\ndef f(request): return 0\n".encode(),
        ("few_arguments.py", "route policy 'mine' cannot be called", "(request, replicas, now_ps, rng)"),
    ),
    "many_arguments": (
        "order",
        f"{HEAD}@policy('order', 'mine')\ndef f(request, now_ps, weight): return 0\n".encode(),
        ("order policy 'mine' cannot be called", "'weight'", "(request, now_ps)"),
    ),
    "no_call": (
        "evict",
        f"{HEAD}@policy('evict', 'mine')\nclass Mine:\n    pass\n".encode(),
        ("evict policy 'mine' cannot be called", "(idle, now_ps)"),
    ),
    "call": (
        "evict",
        f"{HEAD}@policy('evict', 'mine')\nclass Mine:\n    def __call__(self, idle): return 0\n".encode(),
        ("evict policy 'mine' cannot be called", "(idle, now_ps)"),
    ),
    "missing_parameter": (
        "order",
        f"{HEAD}@policy('order', 'mine')\ndef f(request, now_ps, *, weight): return 0\n".encode(),
        ("parameter 'weight' is missing", "mine:weight=VALUE"),
    ),
}
