"""Models and GPUs: small TOML descriptions in calibration/models and calibration/gpus, checked as they are read."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sagasim.errors import CalibrationError, nearest

__all__ = ["Gpu", "Model", "data_dir", "gpu_ids", "load_gpu", "load_model", "model_ids"]

MAY_BE_ZERO = {"fp8_flops"}  # A100 has no FP8 units


@dataclass(frozen=True, slots=True)
class Model:
    """A dense decoder-only transformer with grouped-query attention and a gated MLP.

    layers, hidden, heads, kv_heads, head_dim, mlp, vocab: shapes; dtype_bytes: of weights and KV cache;
    max_model_len: longest context in tokens; params: every weight, embedding and lm_head included.
    """

    id: str
    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    dtype_bytes: int
    max_model_len: int
    params: int
    source: str

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values one token holds in the cache, over all layers and all tensor-parallel ranks."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype_bytes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, over all tensor-parallel ranks."""
        return self.params * self.dtype_bytes


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and its links. Link bandwidths are per GPU and direction; flops are dense peaks per second."""

    id: str
    name: str
    memory_bytes: int
    mem_bandwidth_bytes_per_s: int
    bf16_flops: int
    fp8_flops: int
    node_size: int
    intra_node_bytes_per_s: int
    inter_node_bytes_per_s: int
    pcie_bytes_per_s: int
    source: str


def data_dir() -> Path:
    """The folder that holds calibration/ and traces/: packaged data if there is any, else the checkout."""
    package = Path(__file__).parent
    packaged = package / "data"
    return packaged if packaged.is_dir() else package.parent


def model_ids() -> list[str]:
    """Ids that load_model knows, sorted."""
    return _ids("models")


def gpu_ids() -> list[str]:
    """Ids that load_gpu knows, sorted."""
    return _ids("gpus")


def load_model(id_or_path: str | Path) -> Model:
    """The model with this id, or the one described in this .toml file."""
    path = _find("models", "model", id_or_path)
    model = Model(**_read(path, Model))
    if model.heads % model.kv_heads:
        what = f"heads = {model.heads} is not a multiple of kv_heads = {model.kv_heads}"
        raise CalibrationError(what, where=str(path), expected="whole groups of query heads")
    return model


def load_gpu(id_or_path: str | Path) -> Gpu:
    """The GPU with this id, or the one described in this .toml file."""
    path = _find("gpus", "GPU", id_or_path)
    return Gpu(**_read(path, Gpu))


def _ids(kind: str) -> list[str]:
    return sorted(path.stem for path in (data_dir() / "calibration" / kind).glob("*.toml"))


def _find(kind: str, noun: str, id_or_path: str | Path) -> Path:
    """The file of an id, or the path itself where one was given (it ends in .toml)."""
    if str(id_or_path).endswith(".toml"):
        return Path(id_or_path)
    ids = _ids(kind)
    if str(id_or_path) not in ids:
        expected = f"a path to a .toml file, or {nearest(str(id_or_path), ids)}"
        raise CalibrationError(f"unknown {noun} '{id_or_path}'", expected=expected)
    return data_dir() / "calibration" / kind / f"{id_or_path}.toml"


def _read(path: Path, into: type[Model] | type[Gpu]) -> dict[str, Any]:
    """The file's keys and values, proved to be exactly the fields of `into`, with their types."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"not valid TOML ({error})", where=str(path)) from error
    expected = {field.name: field.type for field in fields(into)}
    for key in table:
        if key not in expected:
            raise CalibrationError(f"unknown key '{key}'", where=str(path), expected=nearest(key, expected))
    for key, kind in expected.items():
        if key not in table:
            raise CalibrationError(f"key '{key}' is missing", where=str(path))
        _check(path, key, table[key], str(kind))
    return table


def _check(path: Path, key: str, value: object, kind: str) -> None:
    """A text field holds text; every other field holds a positive whole number."""
    if kind == "str":
        if not isinstance(value, str) or not value:
            raise CalibrationError(f"key '{key}' is {value!r}", where=str(path), expected="a text")
    elif isinstance(value, bool) or not isinstance(value, int) or value < (0 if key in MAY_BE_ZERO else 1):
        raise CalibrationError(f"key '{key}' is {value!r}", where=str(path), expected="a positive whole number")
