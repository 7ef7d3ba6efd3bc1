"""Everything beside attention, in microseconds: products, small kernels, sampler, experts, all-reduce."""

from __future__ import annotations

import numpy as np

from sagasim.calibrate.fitting import Surface, increasing_fit, non_negative, raised
from sagasim.calibrate.rank import Rank
from sagasim.calibrate.tables import Floats

__all__ = [
    "DENSE", "REACHED_BANDWIDTH", "SEQUENCES", "SMALL_KERNEL_US", "TOKENS", "Collective", "Gemm",
    "elementwise_us", "experts_us", "gather_us", "link_us", "product_us", "reached_experts", "sampler_us",
]  # fmt: skip

GRAPHED: Floats = np.array([1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 256, 512], dtype=np.float64)
TOKENS: Floats = np.concatenate([GRAPHED, [768, 1024, 1280, 1536, 2048, 2560, 3072, 4096, 6144, 8192, 16384, 32768]])
DENSE: Floats = np.concatenate(  # CUDA-graph sizes, then steps as fine as the waves of a product's tiles
    [[1, 2, 4], np.arange(8, 64, 8), np.arange(64, 256, 16), np.arange(256, 512, 32), np.arange(512, 2048, 64),
     2.0 ** np.arange(11, 16, 0.5)]
).round()  # fmt: skip
SEQUENCES: Floats = np.array([1, 8, 16, 32, 64, 128, 256, 512, 1024], dtype=np.float64)

LAUNCH_US = 5.0  # the order of the shortest products in the tables: part of the reference of a share
SMALL_KERNEL_US = 2.5  # norm, rope and activation kernels at one token take 2.4-2.9 us in LLMServingSim's vLLM profile
SMALL_KERNELS = 5  # a layer: two fused add-and-norm, rope, KV cache write, gated activation
REACHED_BANDWIDTH = 0.8  # share of the peak that streaming reaches: mem_bw_empirical_scaling_factor of system.yaml
SAMPLER_US = 25.0  # sampler at one sequence in the same LLMServingSim profile: a dozen small kernels
REACH: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0, 0.5, 1.0), (1.0, 0.87, 0.94))
# share of the experts that a uniform gate would reach -> part of it that a trained gate reaches; measured by
# LLMServingSim on Qwen3-30B-A3B (its documentation, "MoE expert routing": 0.87 in the middle, 0.94 saturated)


class Gemm:
    """Times of products of any shape, from measured ones: the share of the roofline, interpolated over m, n and k."""

    def __init__(self, rank: Rank, m: Floats, n: Floats, k: Floats, us: Floats, *, size: int = 0) -> None:
        """size: bytes of a weight of these products."""
        self.rank, self.size = rank, size or rank.weight_size
        self.surface = Surface(self._coordinates(m, n, k), us, self._reference(m, n, k))

    def _reference(self, m: Floats, n: Floats, k: Floats) -> Floats:
        return LAUNCH_US + self.rank.gemm_floor_us(n, k, m, size=self.size)

    @staticmethod
    def _coordinates(m: Floats, n: Floats, k: Floats) -> Floats:
        """A row count just above a tile is far from its neighbours: it takes one wave of tiles more."""
        beyond = (m % 64 == 1) & (m > 17)
        return np.stack([np.log2(m), np.log2(n), 0.5 * np.log2(k), 2.0 * beyond], axis=1)

    def us(self, n: Floats | float, k: Floats | float, m: Floats) -> Floats:
        """Microseconds of each (m, k) x (k, n)."""
        n, k = np.broadcast_to(n, m.shape).astype(np.float64), np.broadcast_to(k, m.shape).astype(np.float64)
        return self.surface.us(self._coordinates(m, n, k), self._reference(m, n, k))


def product_us(rank: Rank, shape: tuple[int, int], m: Floats, us: Floats, knots: Floats) -> Floats:
    """A product at the knots, fitted to its times at every m, never below its roofline."""
    return raised(increasing_fit(m, us, knots), rank.gemm_floor_us(*shape, knots))


def elementwise_us(rank: Rank, tokens: Floats) -> Floats:
    """Norms, rope, KV cache write and activation of a layer: launches plus bytes at the bandwidth such kernels reach.

    Per token: two fused add-and-norm read two and write two hidden vectors each (on every rank); rope reads and
    writes q and k; the cache write reads and writes k and v; the gated activation reads two and writes one MLP vector.
    FP8 products want their inputs quantised: one kernel more, the others are fused with the kernel before.
    """
    m, size = rank.model, rank.model.dtype_bytes
    rope = 2 * (rank.heads + rank.kv_heads) * m.head_dim
    mlp = m.mlp * max(1, m.experts_per_token) // rank.tp
    values = 2 * 4 * m.hidden + rope * (1 + m.qk_norm) + 4 * rank.kv_heads * m.head_dim + 3 * mlp
    kernels = SMALL_KERNELS + m.qk_norm + (rank.weight_size == 1)
    return kernels * SMALL_KERNEL_US + rank.bytes_us(tokens * values * size) / REACHED_BANDWIDTH


def sampler_us(rank: Rank, sequences: Floats) -> Floats:
    """bf16 logits read, fp32 written and read again for the arg max, over the whole vocabulary."""
    return SAMPLER_US + rank.bytes_us(sequences * rank.model.vocab * (2 + 4 + 4)) / REACHED_BANDWIDTH


def reached_experts(rank: Rank, tokens: Floats) -> Floats:
    """Distinct experts that a batch of tokens reaches in a layer: uniform draws, less a trained gate's preferences."""
    m = rank.model
    uniform = m.experts * (1.0 - (1.0 - m.experts_per_token / m.experts) ** tokens)
    least = m.experts_per_token / m.experts
    share = np.maximum(0.0, (uniform / m.experts - least) / (1.0 - least))
    return np.maximum(m.experts_per_token, uniform * np.interp(share, *REACH))


def experts_us(rank: Rank, tokens: Floats) -> Floats:
    """The experts of one layer without a measurement: their roofline at the share that streaming reaches."""
    floor = rank.expert_floor_us(tokens, reached_experts(rank, tokens))
    return np.maximum.accumulate(4 * SMALL_KERNEL_US + floor / REACHED_BANDWIDTH)


class Collective:
    """All-reduce or all-gather between ranks by bytes, from measured sizes and numbers of ranks."""

    def __init__(self, rank: Rank, size: Floats, ranks: Floats, us: Floats) -> None:
        self.rank = rank
        self.affine = non_negative(self._parts(size, ranks), us, np.zeros(2))
        self.surface = Surface(self._coordinates(size, ranks), us, self._parts(size, ranks) @ self.affine)

    @staticmethod
    def _parts(size: Floats, ranks: Floats) -> Floats:
        """A message, and the bytes that each rank has to send at least in units of the whole."""
        return np.stack([np.ones_like(size), size * (ranks - 1.0) / ranks], axis=1)

    @staticmethod
    def _coordinates(size: Floats, ranks: Floats) -> Floats:
        return np.stack([np.log2(size), 3.0 * np.log2(ranks)], axis=1)

    def us(self, size: Floats, ranks: Floats | None = None) -> Floats:
        """Microseconds for so many bytes between the ranks of this model, or so many others."""
        ranks = np.full_like(size, self.rank.tp) if ranks is None else ranks
        return self.surface.us(self._coordinates(size, ranks), self._parts(size, ranks) @ self.affine)

    def reduce_us(self, tokens: Floats) -> Floats:
        """One all-reduce of a hidden vector a token; floor: every byte once over the GPU's link."""
        size = tokens * self.rank.model.hidden * self.rank.model.dtype_bytes
        floor = size / self.rank.gpu.intra_node_bytes_per_s * 1e6
        return raised(increasing_fit(tokens, self.us(size), tokens), floor)

    def gather_us(self, sequences: Floats) -> Floats:
        """The all-gather of the logits, by bytes of the gathered result."""
        size = sequences * self.rank.lm_head[0] * self.rank.tp * self.rank.model.dtype_bytes
        return increasing_fit(sequences, self.us(size), sequences)


def link_us(ranks: int, size: Floats, bytes_per_s: float, latency_us: float) -> Floats:
    """A ring all-reduce that was not measured: 2 (ranks - 1) messages of a rank's share, each after a latency."""
    return 2.0 * gather_us(ranks, size, bytes_per_s, latency_us)


def gather_us(ranks: int, size: Floats, bytes_per_s: float, latency_us: float) -> Floats:
    """A ring all-gather that was not measured; size: of the gathered result."""
    return (ranks - 1) * (latency_us + size / ranks / bytes_per_s * 1e6)
