"""The terms of a step's cost, fitted on tables of kernel times: microseconds for one layer of one tensor-parallel rank.

Every fit is a non-negative least squares on increments, weighted by 1/y: what comes out is non-negative, never falls,
and is piecewise linear, and it minimises the relative error. Every term is then raised to its physical floor:
no kernel moves its bytes faster than the peak bandwidth or computes faster than the peak rate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sagasim.calibrate_tables import Floats, Rows
from sagasim.errors import CalibrationError
from sagasim.hardware import Gpu, Model

__all__ = [
    "BATCHES", "CONTEXTS", "SEQUENCES", "TOKENS", "Gemm", "Prefill", "Rank", "all_reduce_us", "curve_at",
    "decode_us", "elementwise_us", "gather_us", "increasing_fit", "linear_us", "of_heads", "prefill_fit", "sampler_us",
]  # fmt: skip

TOKENS: Floats = np.array(
    [1, 8, 16, 32, 64, 128, 192, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 32768], dtype=np.float64
)
SEQUENCES: Floats = np.array([1, 8, 16, 32, 64, 128, 256, 512, 1024], dtype=np.float64)
BATCHES: Floats = np.logspace(0, 9, 10, base=2.0)  # 1 .. 512 sequences
CONTEXTS: Floats = np.logspace(0, 17, 18, base=2.0)  # 1 .. 131,072 tokens

TILE = 128  # rows of queries that one thread block of FlashAttention-3 works on
TOP_PREFILL_UTILISATION = 0.75  # above every row of the H200 table (0.67 at most): the marginal pair may not go faster
NEIGHBOURS = 4  # GEMM shapes averaged; 1 errs 5.8 % on a left-out shape of the H200 table, 4 err 4.2 %, 8 gain nothing
SMALL_KERNEL_US = 2.5  # norm, rope and activation kernels at one token take 2.4-2.9 us in LLMServingSim's vLLM profile
SMALL_KERNELS = 5  # a layer: two fused add-and-norm, rope, KV cache write, gated activation
REACHED_BANDWIDTH = 0.8  # share of the peak that streaming reaches: mem_bw_empirical_scaling_factor of system.yaml
SAMPLER_US = 25.0  # sampler at one sequence in the same LLMServingSim profile: a dozen small kernels


@dataclass(frozen=True, slots=True)
class Rank:
    """What one GPU of a tensor-parallel group holds of a model."""

    model: Model
    gpu: Gpu
    tp: int

    @property
    def heads(self) -> int:
        return self.model.heads // self.tp

    @property
    def kv_heads(self) -> int:
        """KV heads of one rank; with more ranks than KV heads each rank keeps a copy of one."""
        return max(1, self.model.kv_heads // self.tp)

    @property
    def gemms(self) -> tuple[tuple[int, int], ...]:
        """Weight shapes (n, k) of one layer: qkv, output projection, gate and up, down."""
        m, tp = self.model, self.tp
        qkv = (self.heads + 2 * self.kv_heads) * m.head_dim
        mlp = m.mlp // tp
        return (qkv, m.hidden), (m.hidden, self.heads * m.head_dim), (2 * mlp, m.hidden), (m.hidden, mlp)

    @property
    def lm_head(self) -> tuple[int, int]:
        return -(-self.model.vocab // self.tp), self.model.hidden

    def bytes_us(self, count: Floats | float) -> Floats:
        """Microseconds to move this many bytes at the peak bandwidth."""
        return np.asarray(count, dtype=np.float64) / self.gpu.mem_bandwidth_bytes_per_s * 1e6

    def flops_us(self, count: Floats | float) -> Floats:
        """Microseconds for this many operations at the peak bf16 rate."""
        return np.asarray(count, dtype=np.float64) / self.gpu.bf16_flops * 1e6

    def gemm_floor_us(self, n: int, k: int, m: Floats) -> Floats:
        """Roofline of an (m, k) x (k, n) product: weights, input and output moved once, 2 m n k operations."""
        moved = self.model.dtype_bytes * (n * k + m * (n + k))
        return np.maximum(self.bytes_us(moved), self.flops_us(2.0 * m * n * k))

    def decode_floor_us(self, batch: Floats, context: Floats) -> Floats:
        """Keys and values of every sequence read once; 4 operations per head dimension and pair."""
        pairs = batch * context
        kv_bytes = 2 * self.kv_heads * self.model.head_dim * self.model.dtype_bytes
        flops = 4.0 * self.heads * self.model.head_dim
        return np.maximum(self.bytes_us(pairs * kv_bytes), self.flops_us(pairs * flops))


def non_negative(columns: Floats, y: Floats, least: Floats) -> Floats:
    """Coefficients c >= least that minimise sum(((columns @ c - y) / y)**2); columns: (rows, c), y: (rows,)."""
    from scipy.optimize import nnls  # an optional dependency, needed by fits alone

    above, _ = nnls(columns / y[:, None], 1.0 - (columns @ least) / y)
    return np.asarray(above + least, dtype=np.float64)


def increasing_fit(x: Floats, y: Floats, knots: Floats) -> Floats:
    """Values at the knots of the never falling, piecewise linear curve closest to (x, y) in relative error.

    A column is the constant or one segment's ramp from 0 to 1; the last ramp goes on beyond the last knot.
    """
    ramps = (x[:, None] - knots[:-1]) / np.diff(knots)
    ramps = np.maximum(ramps, 0.0)
    ramps[:, :-1] = np.minimum(ramps[:, :-1], 1.0)
    columns = np.concatenate([np.ones((len(x), 1)), ramps], axis=1)
    increments = non_negative(columns, y, np.zeros(len(knots)))
    return np.asarray(np.cumsum(increments), dtype=np.float64)


def curve_at(x: Floats, knots: Floats, values: Floats) -> Floats:
    """The piecewise linear curve at x: flat before the first knot, the last slope held beyond the last."""
    slope = (values[-1] - values[-2]) / (knots[-1] - knots[-2])
    return np.asarray(np.interp(x, knots, values) + np.maximum(x - knots[-1], 0.0) * slope, dtype=np.float64)


def raised(values: Floats, floor: Floats) -> Floats:
    """values, at least floor at every knot and with at least its slope at the end; knots along the last axis."""
    out = np.maximum(values, floor)
    out[..., -1] = np.maximum(out[..., -1], out[..., -2] + floor[..., -1] - floor[..., -2])
    return np.asarray(out, dtype=np.float64)


def of_heads(rows: Rows, heads: int, kv_heads: int) -> tuple[Rows, bool]:
    """The attention rows of this pair of head counts in bf16, and whether the table has the pair.

    Without it: the nearest pair in log space with its times scaled by KV heads, that is by bytes.
    """
    q, kv = np.asarray(rows["num_heads"], dtype=np.float64), np.asarray(rows["num_key_value_heads"], dtype=np.float64)
    bf16 = (rows["kv_cache_dtype"] == "bfloat16") & (rows["attn_dtype"] == "bfloat16")
    distance = np.where(bf16, np.abs(np.log(q / heads)) + np.abs(np.log(kv / kv_heads)), np.inf)
    if not bf16.any():
        raise CalibrationError("the attention table has no bfloat16 rows")
    best = int(np.argmin(distance))
    keep = bf16 & (q == q[best]) & (kv == kv[best])
    found: Rows = {name: column[keep] for name, column in rows.items()}
    found["us"] = np.asarray(found["us"], dtype=np.float64) * (kv_heads / kv[best])
    return found, bool(distance[best] == 0.0)


def decode_us(rank: Rank, batch: Floats, context: Floats, us: Floats) -> Floats:
    """Decode attention, (BATCHES, CONTEXTS): fitted in context at each batch, then made to never fall with the batch.

    Beyond a batch's longest measured context its last slope is held, or, where that is steeper, the slope of
    a + b * batch + c * batch * context fitted to all rows: the last two points of a row may lie before the bend.
    """
    affine = np.stack([np.ones_like(us), batch, batch * context], axis=1)
    per_token = non_negative(affine, us, np.zeros(3))[2]
    table = np.zeros((len(BATCHES), len(CONTEXTS)))
    for index, size in enumerate(BATCHES):
        x, y = context[batch == size], us[batch == size]
        if len(x) < 2:
            raise CalibrationError(f"{len(x)} decode attention rows at batch {size:.0f}", expected="2 or more")
        knots = np.unique(x)
        values = increasing_fit(x, y, knots)
        slope = max((values[-1] - values[-2]) / (knots[-1] - knots[-2]), per_token * size)
        table[index] = np.interp(CONTEXTS, knots, values) + np.maximum(CONTEXTS - knots[-1], 0.0) * slope
    table = raised(table, rank.decode_floor_us(BATCHES[:, None], CONTEXTS[None, :]))
    return np.asarray(np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1))


@dataclass(frozen=True, slots=True)
class Prefill:
    """Prefill attention of one chunk: base + tile_token * qt + cached * kv + pair * qt * (2 kv + q) microseconds."""

    base: float
    tile_token: float
    cached: float
    pair: float

    def us(self, q: Floats, kv: Floats) -> Floats:
        qt = TILE * np.ceil(q / TILE)
        return np.asarray(self.base + self.tile_token * qt + self.cached * kv + self.pair * qt * (2.0 * kv + q))


def prefill_fit(rank: Rank, q: Floats, us: Floats, cached_us: float) -> Prefill:
    """Fitted on rows of one sequence of q tokens with nothing cached; cached_us is carried over by structure.

    The pairs of a causal chunk are q kv + q^2 / 2, 4 operations per head dimension each. Floors: queries, outputs
    and the chunk's own KV moved once, cached KV read once; the marginal pair at TOP_PREFILL_UTILISATION at most.
    """
    m = rank.model
    moved = 2 * (rank.heads + rank.kv_heads) * m.head_dim * m.dtype_bytes
    pair = float(rank.flops_us(2.0 * rank.heads * m.head_dim))
    least = np.array([0.0, max(float(rank.bytes_us(moved)), pair), pair / TOP_PREFILL_UTILISATION])
    qt = TILE * np.ceil(q / TILE)
    base, token, per_pair = non_negative(np.stack([np.ones_like(q), qt, qt * q], axis=1), us, least)
    cached = max(cached_us, float(rank.decode_floor_us(np.ones(1), np.ones(1))[0]))
    return Prefill(float(base), float(token), cached, float(per_pair))


class Gemm:
    """Times of products whose shape is not in the table, from the utilisation of the shapes nearest to it.

    Utilisation: the share of the roofline a row reaches. That of an absent shape is the mean over the NEIGHBOURS
    nearest shapes in log (n, k), weighted by 1 / distance, each interpolated in log m; a present shape stands alone.
    """

    def __init__(self, rank: Rank, m: Floats, n: Floats, k: Floats, us: Floats) -> None:
        self.rank, self.m = rank, np.unique(m)
        self.shapes: Floats = np.unique(np.stack([n, k], axis=1), axis=0)
        self.curves: list[tuple[Floats, Floats]] = []
        order = np.lexsort((m, k, n))
        n, k, m, us = n[order], k[order], m[order], us[order]
        starts = np.flatnonzero(np.r_[True, (np.diff(n) != 0) | (np.diff(k) != 0)])
        for start, stop in zip(starts, np.r_[starts[1:], len(n)], strict=True):
            rows = slice(int(start), int(stop))
            share = rank.gemm_floor_us(int(n[start]), int(k[start]), m[rows]) / us[rows]
            self.curves.append((np.log(m[rows]), share))

    def near(self, n: int, k: int, *, itself: bool = True) -> list[tuple[int, float]]:
        """Indices of the nearest shapes and their weights, which sum to 1; without the shape itself if asked."""
        distance = np.hypot(np.log(self.shapes[:, 0] / n), np.log(self.shapes[:, 1] / k))
        order = np.argsort(distance, kind="stable")
        if distance[order[0]] == 0.0:
            if itself:
                return [(int(order[0]), 1.0)]
            order = order[1:]
        order = order[:NEIGHBOURS]
        weights = 1.0 / distance[order]
        return list(zip(order.tolist(), (weights / weights.sum()).tolist(), strict=True))

    def us(self, n: int, k: int, m: Floats, *, itself: bool = True) -> Floats:
        """Microseconds at each m."""
        share = np.zeros_like(m)
        for index, weight in self.near(n, k, itself=itself):
            share += weight * np.interp(np.log(m), *self.curves[index])
        return np.asarray(self.rank.gemm_floor_us(n, k, m) / share)


def linear_us(gemm: Gemm, shapes: tuple[tuple[int, int], ...], knots: Floats) -> tuple[Floats, Floats]:
    """The sum over these products at the knots, and before the fit at every m of the table."""
    rank = gemm.rank
    every = sum((gemm.us(n, k, gemm.m) for n, k in shapes), np.zeros_like(gemm.m))
    floor = sum((rank.gemm_floor_us(n, k, knots) for n, k in shapes), np.zeros_like(knots))
    return raised(increasing_fit(gemm.m, every, knots), floor), every


def elementwise_us(rank: Rank, tokens: Floats) -> Floats:
    """Norms, rope, KV cache write and activation: launches plus bytes at the bandwidth such kernels reach.

    Per token: two fused add-and-norm read two and write two hidden vectors each (on every rank); rope reads and
    writes q and k; the cache write reads and writes k and v; the gated activation reads two and writes one MLP vector.
    """
    m = rank.model
    rope = 2 * (rank.heads + rank.kv_heads) * m.head_dim
    values = 2 * 4 * m.hidden + rope + 4 * rank.kv_heads * m.head_dim + 3 * m.mlp // rank.tp
    return SMALL_KERNELS * SMALL_KERNEL_US + rank.bytes_us(tokens * values * m.dtype_bytes) / REACHED_BANDWIDTH


def all_reduce_us(rank: Rank, elements: Floats, us: Floats) -> Callable[[Floats], Floats]:
    """One all-reduce as a function of tokens, each a hidden vector; floor: every byte once over the GPU's link."""
    knots = np.unique(elements)
    values = increasing_fit(elements, us, knots)

    def at(tokens: Floats) -> Floats:
        sent = tokens * rank.model.hidden
        floor = sent * rank.model.dtype_bytes / rank.gpu.intra_node_bytes_per_s * 1e6
        return raised(curve_at(sent, knots, values), floor)

    return at


def gather_us(rank: Rank, elements: Floats, us: Floats, sequences: Floats) -> Floats:
    """The all-gather of the logits; the table counts elements of the gathered result."""
    knots = np.unique(elements)
    return curve_at(sequences * rank.lm_head[0] * rank.tp, knots, increasing_fit(elements, us, knots))


def sampler_us(rank: Rank, sequences: Floats) -> Floats:
    """bf16 logits read, fp32 written and read again for the arg max, over the whole vocabulary."""
    return SAMPLER_US + rank.bytes_us(sequences * rank.model.vocab * (2 + 4 + 4)) / REACHED_BANDWIDTH
