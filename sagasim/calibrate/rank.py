"""What one GPU of a tensor-parallel group holds of a model, and the least time that physics allows for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sagasim.calibrate.tables import Floats
from sagasim.errors import CalibrationError, nearest
from sagasim.hardware import DTYPES, Gpu, Model

__all__ = ["Rank", "checked_rank"]


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `tp` ranks with products and KV cache in `dtype`; times are microseconds for one layer of it."""

    model: Model
    gpu: Gpu
    tp: int
    dtype: str = "bf16"

    @property
    def heads(self) -> int:
        return self.model.heads // self.tp

    @property
    def kv_heads(self) -> int:
        """KV heads of one rank; with more ranks than KV heads each rank keeps a copy of one."""
        return max(1, self.model.kv_heads // self.tp)

    @property
    def weight_size(self) -> int:
        """Bytes of one weight of the products."""
        return DTYPES[self.dtype][0]

    @property
    def kv_size(self) -> int:
        """Bytes of one cached key or value."""
        return DTYPES[self.dtype][1]

    @property
    def attention_gemms(self) -> dict[str, tuple[int, int]]:
        """Weight shapes (n, k) beside attention, one layer."""
        m = self.model
        qkv = (self.heads + 2 * self.kv_heads) * m.head_dim
        return {"qkv_proj": (qkv, m.hidden), "o_proj": (m.hidden, self.heads * m.head_dim)}

    @property
    def gemms(self) -> dict[str, tuple[int, int]]:
        """Weight shapes (n, k) of the products of one layer, those of experts apart."""
        m = self.model
        if m.experts:
            return {**self.attention_gemms, "router": (m.experts, m.hidden)}
        mlp = m.mlp // self.tp
        return {**self.attention_gemms, "gate_up_proj": (2 * mlp, m.hidden), "down_proj": (m.hidden, mlp)}

    @property
    def lm_head(self) -> tuple[int, int]:
        return -(-self.model.vocab // self.tp), self.model.hidden

    def bytes_us(self, count: Floats | float) -> Floats:
        """Microseconds to move this many bytes at the peak bandwidth."""
        return np.asarray(count, dtype=np.float64) / self.gpu.mem_bandwidth_bytes_per_s * 1e6

    def flops_us(self, count: Floats | float) -> Floats:
        """Microseconds for this many operations at the peak bf16 rate."""
        return np.asarray(count, dtype=np.float64) / self.gpu.bf16_flops * 1e6

    def gemm_floor_us(self, n: int | Floats, k: int | Floats, m: Floats, *, size: int = 0) -> Floats:
        """Roofline of an (m, k) x (k, n) product: weights and input moved once, bf16 output, 2 m n k operations.

        size: bytes of a weight, by default those of the products.
        """
        size = size or self.weight_size
        peak = self.gpu.bf16_flops if size == 2 else self.gpu.fp8_flops
        moved = size * (n * k + m * k) + 2 * m * n
        return np.maximum(self.bytes_us(moved), 2.0 * m * n * k / peak * 1e6)

    def expert_floor_us(self, tokens: Floats, reached: Floats) -> Floats:
        """Roofline of the experts of a layer: weights of those reached moved once, 2 operations a weight and token."""
        m = self.model
        weights = 3.0 * m.hidden * m.mlp / self.tp
        peak = self.gpu.bf16_flops if self.weight_size == 2 else self.gpu.fp8_flops
        flops = 2.0 * weights * tokens * m.experts_per_token
        return np.maximum(self.bytes_us(reached * weights * self.weight_size), flops / peak * 1e6)

    def decode_floor_us(self, batch: Floats, context: Floats) -> Floats:
        """Keys and values of every sequence read once; 4 operations per head dimension and pair."""
        pairs = batch * context
        kv_bytes = 2 * self.kv_heads * self.model.head_dim * self.kv_size
        flops = 4.0 * self.heads * self.model.head_dim
        return np.maximum(self.bytes_us(pairs * kv_bytes), self.flops_us(pairs * flops))

    def prefill_floor_us(self, new: Floats) -> tuple[Floats, Floats]:
        """Least time of a causal chunk of `new` tokens, and what each cached token before it adds."""
        m = self.model
        size = self.kv_size
        moved = self.bytes_us(2.0 * m.head_dim * new * (2 * self.heads + size * self.kv_heads))
        flops = self.flops_us(2.0 * self.heads * m.head_dim * new * (new + 1.0))
        read = self.bytes_us(2.0 * m.head_dim * size * self.kv_heads)
        pairs = self.flops_us(4.0 * self.heads * m.head_dim * new)
        return np.maximum(moved, flops), np.maximum(read, pairs)


def checked_rank(model: Model, gpu: Gpu, tp: int, dtype: str) -> Rank:
    """The rank, if the model can be split so and the GPU knows the data type."""
    if dtype not in DTYPES:
        raise CalibrationError(f"unknown data type '{dtype}'", expected=nearest(dtype, DTYPES))
    if DTYPES[dtype][0] == 1 and not gpu.fp8_flops:
        raise CalibrationError(f"{gpu.id} has no FP8 units", where="dtype", expected="bf16")
    if tp < 1 or model.heads % tp or model.mlp % tp:
        raise CalibrationError(f"{model.id} cannot be split over {tp} GPUs", expected="a divisor of heads and mlp")
    return Rank(model, gpu, tp, dtype)
