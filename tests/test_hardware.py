"""Models and GPUs: every description loads, says what its source says, and a wrong one is told in one line."""

from __future__ import annotations

import ast
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim import hardware
from sagasim.errors import CalibrationError
from sagasim.hardware import DTYPES, data_dir, gpu_ids, load_gpu, load_model, model_ids

FOLDER = data_dir() / "calibration"


def one_line(error: pytest.ExceptionInfo[CalibrationError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_model_and_gpu_loads() -> None:
    assert {"llama-3-70b", "llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "qwen3-30b-a3b"} <= set(model_ids())
    assert {"h200", "h100", "a100", "rtx4090", "rtxpro6000"} <= set(gpu_ids())
    assert all(load_model(name).id == name for name in model_ids())
    assert all(load_gpu(name).id == name for name in gpu_ids())


@pytest.mark.parametrize("name", model_ids())
def test_parameters_are_those_of_the_shapes(name: str) -> None:
    m = load_model(name)
    attention = m.hidden * (m.heads + 2 * m.kv_heads) * m.head_dim + m.heads * m.head_dim * m.hidden
    mlp = max(1, m.experts) * 3 * m.hidden * m.mlp + m.experts * m.hidden
    norms = 2 * m.hidden + m.qk_norm * 2 * m.head_dim
    assert m.params == m.layers * (attention + mlp + norms) + 2 * m.vocab * m.hidden + m.hidden


def test_sizes_of_known_models() -> None:
    assert load_model("llama-3.1-70b").kv_bytes_per_token == 320 * 1024
    assert load_model("llama-3.1-8b").kv_bytes_per_token == 128 * 1024
    assert math.isclose(load_model("llama-3.1-70b").params, 70.55e9, rel_tol=1e-3)
    assert load_model("llama-3-70b").max_model_len == 8_192
    assert load_model("qwen3-30b-a3b").experts == 128


@pytest.mark.parametrize("name", model_ids())
def test_smaller_data_types_take_less(name: str) -> None:
    m = load_model(name)
    ends = 2 * m.vocab * m.hidden
    assert m.weight_bytes_in("bf16") == m.weight_bytes == 2 * m.params
    assert m.weight_bytes_in("fp8") == m.weight_bytes_in("fp8-kvfp8") == m.params + ends
    assert m.kv_bytes_in("fp8") == m.kv_bytes_in("bf16") == m.kv_bytes_per_token == 2 * m.kv_bytes_in("fp8-kvfp8")


def test_gpu_peaks_are_those_of_the_source() -> None:
    for name in ("h200", "h100"):
        system = (FOLDER / "sources" / f"{name}_sxm" / "system.yaml").read_text(encoding="utf-8")
        told = {key: int(value) for key, value in re.findall(r"^  (\w+): (\d+)\b", system, flags=re.MULTILINE)}
        gpu = load_gpu(name)
        assert gpu.mem_bandwidth_bytes_per_s == told["mem_bw"]
        assert (gpu.bf16_flops, gpu.fp8_flops) == (told["bfloat16_tc_flops"], told["fp8_tc_flops"])
        assert gpu.intra_node_bytes_per_s == told["intra_node_bw"]
        assert gpu.memory_bytes < told["mem_capacity"]


def test_an_unknown_id_names_the_nearest_and_the_file_to_add() -> None:
    with pytest.raises(CalibrationError) as error:
        load_model("llama-3.1-7b")
    assert "'llama-3.1-8b' perhaps" in one_line(error) or "'llama-3.1-70b' perhaps" in one_line(error)
    assert "calibration/models/llama-3.1-7b.toml" in one_line(error)
    with pytest.raises(CalibrationError, match=r"unknown GPU 'h20'; expected 'h[12]00' perhaps"):
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
        (("layers = 32", "layers = 32\nexperts = 8"), "experts_per_token = 0 of experts = 8"),
        (("layers = 32", "layers = 32\nexperts = 2\nexperts_per_token = 4"), "experts_per_token = 4 of experts = 2"),
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


@given(st.sampled_from(sorted(DTYPES)))
def test_every_data_type_has_sizes(name: str) -> None:
    weight, cached = DTYPES[name]
    assert weight in (1, 2)
    assert cached in (1, 2)
