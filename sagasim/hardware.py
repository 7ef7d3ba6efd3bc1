"""Models and GPUs: small TOML descriptions in calibration/models and calibration/gpus, checked as they are read."""

from __future__ import annotations

import tomllib
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from sagasim.errors import CalibrationError, nearest

__all__ = ["DTYPES", "Gpu", "Model", "data_dir", "gpu_ids", "load_gpu", "load_model", "model_ids"]

DTYPES = {  # name of a data type in a configuration -> bytes of a weight, bytes of a cached key or value
    "bf16": (2, 2),
    "fp8": (1, 2),  # weights and their products in FP8, embedding, head and KV cache in BF16: vLLM's default
    "fp8-kvfp8": (1, 1),
}
MAY_BE_ZERO = {"fp8_flops", "experts", "experts_per_token", "qk_norm"}  # A100 has no FP8 units


@dataclass(frozen=True, slots=True)
class Model:
    """A decoder-only transformer with grouped-query attention and a gated MLP, dense or of experts.

    layers, hidden, heads, kv_heads, head_dim, mlp (of one expert where there are any), vocab: shapes; dtype_bytes: of
    weights and KV cache as published; max_model_len: longest context in tokens; params: every weight, embedding and
    lm_head included; experts, experts_per_token: 0 in a dense model; qk_norm: 1 if queries and keys are normalised.
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
    experts: int = 0
    experts_per_token: int = 0
    qk_norm: int = 0

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values one token holds in the cache, over all layers and all tensor-parallel ranks."""
        return self.kv_bytes_in("bf16")

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, over all tensor-parallel ranks."""
        return self.weight_bytes_in("bf16")

    def kv_bytes_in(self, dtype: str) -> int:
        """kv_bytes_per_token with keys and values of this data type."""
        size = self.dtype_bytes if dtype == "bf16" else DTYPES[dtype][1]
        return 2 * self.layers * self.kv_heads * self.head_dim * size

    def weight_bytes_in(self, dtype: str) -> int:
        """weight_bytes with products of this data type; embedding and lm_head stay as published."""
        ends = 2 * self.vocab * self.hidden
        size = self.dtype_bytes if dtype == "bf16" else DTYPES[dtype][0]
        return ends * self.dtype_bytes + (self.params - ends) * size


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and its links. Link bandwidths are per GPU and direction; flops are dense peaks per second.

    pcie_uplink_gpus: GPUs that share one link to the host; host_memory_bytes_per_s: of a node, in both directions
    together, 0 where it is unknown and does not limit.
    sms: streaming multiprocessors, each of which works on one thread block of an attention kernel at a time.
    """

    id: str
    name: str
    memory_bytes: int
    mem_bandwidth_bytes_per_s: int
    bf16_flops: int
    fp8_flops: int
    sms: int
    node_size: int
    intra_node_bytes_per_s: int
    inter_node_bytes_per_s: int
    pcie_bytes_per_s: int
    source: str
    pcie_uplink_gpus: int = 1
    host_memory_bytes_per_s: int = 0


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
    if model.experts_per_token > model.experts or (model.experts > 0) != (model.experts_per_token > 0):
        what = f"experts_per_token = {model.experts_per_token} of experts = {model.experts}"
        raise CalibrationError(what, where=str(path), expected="some of the experts, or 0 of 0 in a dense model")
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
        expected = f"{nearest(str(id_or_path), ids)}, a path to a .toml file, or calibration/{kind}/{id_or_path}.toml"
        raise CalibrationError(f"unknown {noun} '{id_or_path}'", expected=expected)
    return data_dir() / "calibration" / kind / f"{id_or_path}.toml"


def _read(path: Path, into: type[Model] | type[Gpu]) -> dict[str, Any]:
    """The file's keys and values, proved to be exactly the fields of `into`, with their types."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"cannot be read ({error.strerror})", where=str(path)) from error
    except (ValueError, RecursionError) as error:  # no TOML, no text, numbers of thousands of digits, lists in lists
        raise CalibrationError(f"not valid TOML ({str(error)[:80]})", where=str(path)) from error
    expected = {field.name: field.type for field in fields(into)}
    optional = {field.name for field in fields(into) if field.default is not MISSING}
    for key in table:
        if key not in expected:
            raise CalibrationError(f"unknown key {key[:60]!r}", where=str(path), expected=nearest(key[:60], expected))
    for key, kind in expected.items():
        if key not in table:
            if key in optional:
                continue
            raise CalibrationError(f"key '{key}' is missing", where=str(path))
        _check(path, key, table[key], str(kind))
    return table


def _check(path: Path, key: str, value: object, kind: str) -> None:
    """A text field holds text; every other field holds a positive whole number."""
    giant = isinstance(value, int) and abs(value) >= 1 << 62  # too long to be shown, perhaps too long for Python to
    shown = "out of range" if giant else repr(value)[:40] if isinstance(value, (str, int, float)) else "neither"
    if kind == "str":
        if not isinstance(value, str) or not value:
            raise CalibrationError(f"key '{key}' is {shown}", where=str(path), expected="a text")
    elif isinstance(value, bool) or not isinstance(value, int) or giant or value < (0 if key in MAY_BE_ZERO else 1):
        raise CalibrationError(f"key '{key}' is {shown}", where=str(path), expected="a positive whole number")
