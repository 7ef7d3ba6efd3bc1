"""Calibration files: regenerated from their tables, never below physics, as close to the tables as they say."""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim import calibrate, hardware
from sagasim.calibrate_tables import Rows, columns, read_table
from sagasim.calibrate_terms import Rank, increasing_fit, of_heads
from sagasim.errors import CalibrationError
from sagasim.hardware import data_dir, gpu_ids, load_gpu, load_model, model_ids

FOLDER = data_dir() / "calibration"
SOURCE = FOLDER / "sources" / "h200_sxm"
FILES = sorted(FOLDER.glob("h200-*.json"))
LOADED = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in FILES}
EVERY = pytest.mark.parametrize("cal", LOADED.values(), ids=LOADED.keys())
BOUNDS = {
    "decode_attention": 0.01,
    "decode_attention_left_out": 0.06,
    "linear": 0.02,
    "linear_left_out": 0.06,
    "lm_head": 0.05,
    "all_reduce": 0.01,
    "all_reduce_left_out": 0.06,
    "all_reduce_nccl": 0.05,
    "prefill_attention": 0.08,
    "prefill_attention_left_out": 0.10,
}


def rank_of(cal: dict[str, Any]) -> Rank:
    return Rank(load_model(cal["model"]), load_gpu(cal["gpu"]), cal["tp"])


def at(x: float, knots: list[int], values: list[int] | list[float]) -> float:
    """Linear between knots, the last slope held beyond."""
    if x <= knots[-1]:
        return float(np.interp(x, knots, values))
    return float(values[-1] + (values[-1] - values[-2]) / (knots[-1] - knots[-2]) * (x - knots[-1]))


def term(cal: dict[str, Any], name: str) -> dict[str, Any]:
    return next(term for term in cal["token_terms"] + cal["sequence_terms"] if term["name"] == name)


def tokens_ps(cal: dict[str, Any], m: float) -> float:
    return float(cal["constant_ps"] + sum(at(m, term["tokens"], term["ps"]) for term in cal["token_terms"]))


def sequences_ps(cal: dict[str, Any], n: float) -> float:
    return sum(at(n, term["sequences"], term["ps"]) for term in cal["sequence_terms"])


def decode_ps(cal: dict[str, Any], batch: int, context: float) -> float:
    table = cal["decode_attention"]
    return at(batch, table["batch"], [at(context, table["context"], row) for row in table["ps"]])


def prefill_ps(cal: dict[str, Any], q: int, kv: int) -> int:
    p = cal["prefill_attention"]
    qt = -(-q // p["tile"]) * p["tile"]
    scaled = p["per_tile_token"] * qt + p["per_cached_token"] * kv + p["per_pair"] * qt * (2 * kv + q)
    return int(p["base_ps"] + (scaled >> p["shift"]))


# --- regenerated


def test_one_file_regenerates_byte_for_byte() -> None:
    again = calibrate.fit(SOURCE, load_model("llama-3.1-70b"), load_gpu("h200"), 4)
    assert calibrate.dumps(again).encode() == (FOLDER / "h200-llama-3.1-70b-tp4-bf16.json").read_bytes()


@pytest.mark.slow
def test_all_files_regenerate_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert calibrate.main(["--source", str(SOURCE), "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [path.name for path in FILES]
    for path in FILES:
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == len(FILES)


def test_there_is_a_file_for_every_model_and_size() -> None:
    expected = {f"h200-{m}-tp{tp}-bf16" for m in calibrate.MODELS for tp in calibrate.TENSOR_PARALLEL}
    assert expected == set(LOADED)


def test_arrays_of_numbers_stand_on_one_line() -> None:
    assert calibrate.dumps({"a": [1, 2], "b": [[1], [2, 3]]}) == '{\n "a": [1, 2],\n "b": [\n  [1],\n  [2, 3]\n ]\n}\n'


# --- form


@EVERY
def test_file_name_says_what_is_inside(cal: dict[str, Any]) -> None:
    assert f"{cal['gpu']}-{cal['model']}-tp{cal['tp']}-{cal['dtype']}" in LOADED
    assert cal["sagasim_calibration"] == 1
    names = [term["name"] for term in cal["token_terms"]]
    assert names == ["linear", "elementwise"] + ["all_reduce"] * (cal["tp"] > 1)
    assert [term["name"] for term in cal["sequence_terms"]] == ["lm_head", "sampler"]


@EVERY
def test_every_number_is_a_whole_picosecond_and_none_falls(cal: dict[str, Any]) -> None:
    series = [(term["tokens"], term["ps"]) for term in cal["token_terms"]]
    series += [(term["sequences"], term["ps"]) for term in cal["sequence_terms"]]
    table = cal["decode_attention"]
    series += [(table["context"], row) for row in table["ps"]]
    series += [(table["batch"], list(column)) for column in zip(*table["ps"], strict=True)]
    for knots, values in series:
        assert knots[0] == 1
        assert all(a < b for a, b in pairwise(knots))
        assert len(values) == len(knots)
        assert all(type(value) is int and 0 < value < 2**62 for value in values)
        assert all(a <= b for a, b in pairwise(values))
    whole = [cal["constant_ps"], *(cal["host"][key] for key in ("base_ps", "per_sequence_ps", "per_token_ps"))]
    keys = ("base_ps", "per_tile_token", "per_cached_token", "per_pair", "shift", "tile")
    assert all(type(value) is int and value >= 0 for value in [*whole, *(cal["prefill_attention"][k] for k in keys)])


@EVERY
def test_every_term_says_where_it_comes_from(cal: dict[str, Any]) -> None:
    terms = [
        *cal["token_terms"],
        *cal["sequence_terms"],
        cal["decode_attention"],
        cal["prefill_attention"],
        cal["host"],
    ]
    for entry in terms:
        assert entry["status"] in {"published", "derived", "measured"}
        assert entry["source"]


# --- never below physics


@EVERY
@settings(max_examples=60, deadline=None)
@given(batch=st.integers(1, 512), context=st.integers(1, 300_000))
def test_decode_attention_is_not_faster_than_the_gpu(cal: dict[str, Any], batch: int, context: int) -> None:
    rank = rank_of(cal)
    floor = rank.decode_floor_us(np.array(float(batch)), np.array(float(context))) * rank.model.layers * 1e6
    assert decode_ps(cal, batch, context) >= floor * (1 - 1e-12)


@EVERY
@settings(max_examples=60, deadline=None)
@given(m=st.integers(1, 100_000))
def test_linear_layers_and_head_are_not_faster_than_the_gpu(cal: dict[str, Any], m: int) -> None:
    rank = rank_of(cal)
    x = np.array([float(m)])
    layer = sum(float(rank.gemm_floor_us(n, k, x)[0]) for n, k in rank.gemms)
    assert at(m, term(cal, "linear")["tokens"], term(cal, "linear")["ps"]) >= layer * rank.model.layers * 1e6
    head = float(rank.gemm_floor_us(*rank.lm_head, x)[0])
    assert at(m, term(cal, "lm_head")["sequences"], term(cal, "lm_head")["ps"]) >= head * 1e6
    if cal["tp"] > 1:
        sent = 2 * rank.model.layers * m * rank.model.hidden * rank.model.dtype_bytes
        floor = sent / rank.gpu.intra_node_bytes_per_s * 1e12
        assert at(m, term(cal, "all_reduce")["tokens"], term(cal, "all_reduce")["ps"]) >= floor


@EVERY
@settings(max_examples=60, deadline=None)
@given(q=st.integers(1, 131_072), kv=st.integers(0, 131_072))
def test_prefill_attention_is_not_faster_than_the_gpu(cal: dict[str, Any], q: int, kv: int) -> None:
    rank = rank_of(cal)
    model, layers = rank.model, rank.model.layers
    flops = 4 * rank.heads * model.head_dim * (q * kv + q * (q + 1) // 2) * layers
    moved = 2 * model.head_dim * model.dtype_bytes * (rank.heads * q + rank.kv_heads * (q + kv)) * layers
    told = prefill_ps(cal, q, kv)
    assert told >= flops / rank.gpu.bf16_flops * 1e12
    assert told >= moved / rank.gpu.mem_bandwidth_bytes_per_s * 1e12


@EVERY
@settings(max_examples=60, deadline=None)
@given(q=st.integers(1, 20_000), kv=st.integers(0, 131_000), more=st.integers(1, 2_000))
def test_prefill_attention_never_falls(cal: dict[str, Any], q: int, kv: int, more: int) -> None:
    assert prefill_ps(cal, q, kv) <= prefill_ps(cal, q + more, kv)
    assert prefill_ps(cal, q, kv) <= prefill_ps(cal, q, kv + more)


@EVERY
def test_a_step_reads_all_weights(cal: dict[str, Any]) -> None:
    rank = rank_of(cal)
    floor = rank.model.weight_bytes / cal["tp"] / rank.gpu.mem_bandwidth_bytes_per_s * 1e12
    for batch in (1, 8, 64):
        assert tokens_ps(cal, batch) + sequences_ps(cal, batch) + decode_ps(cal, batch, 1) >= floor


# --- as close to the tables as it says


@EVERY
def test_relative_errors_are_within_bounds(cal: dict[str, Any]) -> None:
    told = cal["provenance"]["residuals"]
    for name, bound in BOUNDS.items():
        if cal["tp"] > 1 or not name.startswith("all_reduce"):
            assert told[name]["mape"] <= bound, name
            assert told[name]["n"] >= 3


def test_decode_attention_meets_the_table_row_by_row() -> None:
    cal = LOADED["h200-llama-3.1-70b-tp4-bf16"]
    rows, exact = of_heads(read_table(SOURCE, "generation_attention"), 16, 2)
    assert exact
    errors = []
    for batch, step, us in zip(rows["batch_size"], rows["step"], rows["us"], strict=True):
        if batch <= 512:
            errors.append(abs(decode_ps(cal, int(batch), float(step) + 1) / (80 * float(us) * 1e6) - 1))
    told = cal["provenance"]["residuals"]["decode_attention"]
    assert round(float(np.mean(errors)), 4) == told["mape"]
    assert len(errors) == told["n"]


def test_more_gpus_make_a_step_faster() -> None:
    for model in calibrate.MODELS:
        steps = [
            tokens_ps(cal, 8) + sequences_ps(cal, 8) + decode_ps(cal, 8, 15_000)
            for cal in (LOADED[f"h200-{model}-tp{tp}-bf16"] for tp in calibrate.TENSOR_PARALLEL)
        ]
        assert all(a > b for a, b in pairwise(steps))


# --- the fit itself


@given(st.lists(st.floats(0.1, 1e3), min_size=6, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_fit_is_never_negative_and_never_falls(y: list[float]) -> None:
    values = increasing_fit(np.arange(1.0, len(y) + 1), np.array(y), np.array([1.0, 2.0, 4.0, 8.0]))
    assert values[0] >= 0
    assert (np.diff(values) >= 0).all()


def test_a_fit_finds_a_curve_of_its_own_kind() -> None:
    x, knots = np.arange(1.0, 65.0), np.array([1.0, 8.0, 32.0, 64.0])
    true = np.array([3.0, 3.0, 10.0, 50.0])
    assert increasing_fit(x, np.interp(x, knots, true), knots) == pytest.approx(true)


def test_an_absent_pair_of_heads_is_scaled_by_bytes() -> None:
    rows: Rows = {
        "num_heads": np.array([8.0, 32.0]),
        "num_key_value_heads": np.array([1.0, 4.0]),
        "kv_cache_dtype": np.array(["bfloat16", "bfloat16"]),
        "attn_dtype": np.array(["bfloat16", "bfloat16"]),
        "us": np.array([10.0, 20.0]),
    }
    found, exact = of_heads(rows, 40, 5)
    assert not exact
    assert list(found["us"]) == [25.0]


# --- provenance


def test_checksums_in_sources_match_the_files() -> None:
    text = (FOLDER / "SOURCES.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| (sources/\S+) \| \d+ \| ([0-9a-f]{64}) \|", text, flags=re.MULTILINE))
    present = {path.relative_to(FOLDER).as_posix() for path in SOURCE.iterdir()} - {"sources/h200_sxm/origin.toml"}
    assert set(listed) == present
    for name, digest in listed.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == digest
    licence = hashlib.sha256((FOLDER / "licences" / "aiconfigurator-Apache-2.0.txt").read_bytes()).hexdigest()
    assert licence in text


@EVERY
def test_provenance_names_the_very_files(cal: dict[str, Any]) -> None:
    for source in cal["provenance"]["sources"]:
        assert hashlib.sha256((FOLDER / source["file"]).read_bytes()).hexdigest() == source["sha256"]
        assert source["licence"] == "Apache-2.0"
        assert source["commit"] in (FOLDER / "SOURCES.md").read_text(encoding="utf-8")


# --- mistakes of a user


def one_line(error: pytest.ExceptionInfo[CalibrationError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_calibration_needs_the_gpu_its_tables_are_from() -> None:
    with pytest.raises(CalibrationError) as error:
        calibrate.fit(SOURCE, load_model("llama-3.1-8b"), load_gpu("a100"), 1)
    assert "'h200', not on 'a100'" in one_line(error)


@pytest.mark.parametrize("tp", [0, 3])
def test_a_model_cannot_be_split_unevenly(tp: int) -> None:
    with pytest.raises(CalibrationError) as error:
        calibrate.fit(SOURCE, load_model("llama-3.1-8b"), load_gpu("h200"), tp)
    assert f"over {tp} GPUs" in one_line(error)


def test_a_broken_source_folder_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--source", str(tmp_path), "--out", str(tmp_path / "out")]
    assert calibrate.main(arguments) == 2
    assert "origin.toml: cannot be read" in capsys.readouterr().err
    shutil.copy(SOURCE / "origin.toml", tmp_path)
    assert calibrate.main(arguments) == 2
    assert "0 files generation_attention-*.csv.gz; expected exactly one" in capsys.readouterr().err
    (tmp_path / "generation_attention-x.csv.gz").write_bytes(b"no gzip")
    assert calibrate.main(arguments) == 2
    err = capsys.readouterr().err
    assert "cannot be read" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("num_gpus,latency_ms\n2,0.5\n4\n", "rows of unequal length"),
        ("num_gpus,latency_ms\n", "no rows"),
        ("num_gpus,latency_ms\n2,0.5\n", "no column 'op_name'"),
        ("op_name,nccl_dtype,num_gpus,message_size,latency_ms\nall_reduce,half,2,256,slow\n", "not a number"),
    ],
)
def test_a_broken_table_is_told_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "nccl-1.csv.gz").write_bytes(gzip.compress(text.encode()))
    with pytest.raises(CalibrationError) as error:
        read_table(tmp_path, "nccl")
    assert told in one_line(error)
    assert "nccl-1.csv.gz" in one_line(error)


def test_a_selection_without_rows_is_told() -> None:
    with pytest.raises(CalibrationError, match="no row of a table fits"):
        columns({"n": np.ones(2)}, np.zeros(2, dtype=np.bool_), "n")


# --- models and GPUs


def test_every_model_and_gpu_loads() -> None:
    assert model_ids() == ["llama-3-70b", "llama-3.1-70b", "llama-3.1-8b"]
    assert gpu_ids() == ["a100", "h100", "h200"]
    assert all(load_model(name).id == name for name in model_ids())
    assert all(load_gpu(name).id == name for name in gpu_ids())


@pytest.mark.parametrize("name", model_ids())
def test_params_follow_from_the_shapes(name: str) -> None:
    m = load_model(name)
    attention = m.hidden * m.head_dim * (2 * m.heads + 2 * m.kv_heads)
    layer = attention + 3 * m.hidden * m.mlp + 2 * m.hidden
    assert m.params == 2 * m.vocab * m.hidden + m.layers * layer + m.hidden
    assert m.weight_bytes == 2 * m.params


def test_sizes_of_llama() -> None:
    assert load_model("llama-3.1-70b").kv_bytes_per_token == 320 * 1024
    assert load_model("llama-3.1-8b").kv_bytes_per_token == 128 * 1024
    assert math.isclose(load_model("llama-3.1-70b").params, 70.55e9, rel_tol=1e-3)
    assert load_model("llama-3-70b").max_model_len == 8_192
    assert load_model("llama-3.1-70b").weight_bytes > 0.9 * load_gpu("h200").memory_bytes


def test_gpu_peaks_are_those_of_the_source() -> None:
    system = (SOURCE / "system.yaml").read_text(encoding="utf-8")
    told = {key: int(value) for key, value in re.findall(r"^  (\w+): (\d+)\b", system, flags=re.MULTILINE)}
    gpu = load_gpu("h200")
    assert gpu.mem_bandwidth_bytes_per_s == told["mem_bw"]
    assert (gpu.bf16_flops, gpu.fp8_flops) == (told["bfloat16_tc_flops"], told["fp8_tc_flops"])
    assert gpu.intra_node_bytes_per_s == told["intra_node_bw"]
    assert gpu.memory_bytes < told["mem_capacity"]


def test_an_unknown_id_names_the_nearest() -> None:
    with pytest.raises(CalibrationError) as error:
        load_model("llama-3.1-7b")
    assert "'llama-3.1-7" in one_line(error)
    assert "'llama-3.1-8b' perhaps" in one_line(error) or "'llama-3.1-70b' perhaps" in one_line(error)
    with pytest.raises(CalibrationError, match=r"unknown GPU 'h20'; expected .*'h200' perhaps"):
        load_gpu("h20")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("layers = 32", ""), "key 'layers' is missing"),
        (("layers = 32", "layers = 32\nlayer = 1"), "unknown key 'layer'; expected 'layers' perhaps"),
        (("layers = 32", 'layers = "32"'), "key 'layers' is '32'; expected a positive whole number"),
        (("layers = 32", "layers = true"), "key 'layers' is True"),
        (("layers = 32", "layers = 0"), "key 'layers' is 0"),
        (("layers = 32", "layers = 3.5"), "key 'layers' is 3.5"),
        (("layers = 32", "layers ="), "not valid TOML"),
        (('name = "Llama 3.1 8B"', "name = 8"), "key 'name' is 8; expected a text"),
        (("kv_heads = 8", "kv_heads = 5"), "heads = 32 is not a multiple of kv_heads = 5"),
    ],
)
def test_a_wrong_description_names_file_and_key(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    path = tmp_path / "mine.toml"
    text = (FOLDER / "models" / "llama-3.1-8b.toml").read_text(encoding="utf-8")
    assert change[0] in text
    path.write_text(text.replace(*change), encoding="utf-8")
    with pytest.raises(CalibrationError) as error:
        load_model(path)
    assert told in one_line(error)
    assert str(path) in one_line(error)


def test_a_missing_description_is_told(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_gpu(tmp_path / "none.toml")


def test_hardware_needs_only_the_standard_library() -> None:
    tree = ast.parse(Path(hardware.__file__).read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported <= {"__future__", "tomllib", "dataclasses", "pathlib", "typing", "sagasim.errors"}
