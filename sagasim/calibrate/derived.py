"""Terms that a source does not have, from physics and the order of what other GPUs show; each is marked `derived`."""

from __future__ import annotations

from sagasim.calibrate.attention import BATCHES, CONTEXTS, PrefillCurves, dense_knots
from sagasim.calibrate.draft import Draft
from sagasim.calibrate.linear import (
    REACHED_BANDWIDTH,
    SEQUENCES,
    SMALL_KERNEL_US,
    TOKENS,
    elementwise_us,
    experts_us,
    gather_us,
    link_us,
    sampler_us,
)

__all__ = [
    "LINK_LATENCY_US", "derived_all_reduce", "derived_attention", "derived_elementwise", "derived_experts",
    "derived_gather", "derived_head", "derived_product", "derived_sampler",
]  # fmt: skip

LINK_LATENCY_US = (
    10.0  # of one message, where nothing is known of the link: p2p_latency of aiconfigurator's system.yaml
)
ATTENTION_US = 8.0  # the order of the shortest attention launches in every table
REACHED_FLOPS = 0.6  # share of the peak that long prefills reach in every table


def derived_product(draft: Draft, name: str) -> None:
    """A product of a layer at REACHED_BANDWIDTH of its roofline."""
    rank = draft.rank
    told = SMALL_KERNEL_US + rank.gemm_floor_us(*rank.gemms[name], TOKENS) / REACHED_BANDWIDTH
    source = "not in the tables: roofline at 80 % of the peaks"
    draft.token_term(name, TOKENS, told * rank.model.layers, "derived", source)


def derived_elementwise(draft: Draft) -> None:
    ends = TOKENS[[0, -1]]
    source = "bytes at 80 % of the peak bandwidth, 2.5 us a kernel"
    draft.token_term("elementwise", ends, elementwise_us(draft.rank, ends) * draft.rank.model.layers, "derived", source)


def derived_experts(draft: Draft) -> None:
    source = "not in the tables: roofline at 80 % of the peaks, at the experts that a trained gate reaches"
    draft.token_term("experts", TOKENS, experts_us(draft.rank, TOKENS) * draft.rank.model.layers, "derived", source)


def derived_head(draft: Draft) -> None:
    rank = draft.rank
    told = SMALL_KERNEL_US + rank.gemm_floor_us(*rank.lm_head, SEQUENCES, size=2) / REACHED_BANDWIDTH
    draft.sequence_term("lm_head", SEQUENCES, told, "derived", "not in the tables: roofline at 80 % of the peaks")


def derived_sampler(draft: Draft) -> None:
    ends = SEQUENCES[[0, -1]]
    source = "logits read, cast and searched at 80 % of the peak bandwidth, and 25 us of small kernels"
    draft.sequence_term("sampler", ends, sampler_us(draft.rank, ends), "derived", source)


def derived_all_reduce(draft: Draft) -> None:
    """Two a layer as rings over the GPU's links."""
    rank = draft.rank
    size = TOKENS * rank.model.hidden * rank.model.dtype_bytes
    told = link_us(rank.tp, size, rank.gpu.intra_node_bytes_per_s, LINK_LATENCY_US)
    source = (
        "not in the tables: ring over the GPU's links, 10 us a message, an assumption; a run's own link replaces it"
    )
    draft.token_term("all_reduce", TOKENS, told * 2 * rank.model.layers, "derived", source)


def derived_gather(draft: Draft) -> None:
    """The all-gather of the logits over the GPU's links."""
    rank = draft.rank
    size = SEQUENCES * rank.lm_head[0] * rank.tp * 2.0
    told = gather_us(rank.tp, size, rank.gpu.intra_node_bytes_per_s, LINK_LATENCY_US)
    draft.sequence_term("logits_gather", SEQUENCES, told, "derived", "not in the tables: ring over the GPU's links")


def derived_attention(draft: Draft) -> None:
    """Keys and values at 80 % of the bandwidth, long prefills at 60 % of the peak rate."""
    rank = draft.rank
    table = ATTENTION_US + rank.decode_floor_us(BATCHES[:, None], CONTEXTS[None, :]) / REACHED_BANDWIDTH
    draft.set_decode(table, 0.0, "derived", "not in the tables: 8 us and the roofline at 80 %")
    knots = dense_knots(16, 32768)
    new, cached = rank.prefill_floor_us(knots)
    curves = PrefillCurves(knots, ATTENTION_US, new / REACHED_FLOPS, cached / REACHED_FLOPS).above_floor(rank)
    draft.set_prefill(curves, "derived", "not in the tables: 8 us and the roofline at 60 %")
