"""What is measured, the most valuable first: tier 0 ceilings and targets, 1 a coarse grid, 2 and 3 the rest of it.

The knots are those of the cost model's fit: batches and contexts by powers of 2, tokens as graph sizes and beyond.
Shapes are those of one GPU of a tensor-parallel group: heads, KV heads and linear layers divided by its size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

__all__ = ["SHAPES", "Shape", "Spec", "full_grid", "tiny_grid"]

KIB, MIB, GIB = 2**10, 2**20, 2**30


@dataclass(frozen=True, slots=True)
class Shape:
    """A dense decoder; from the config.json of the model that is named."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int

    def linear(self, tp: int) -> tuple[tuple[int, int], ...]:
        """(n, k) of one rank: qkv, output projection, gate and up, down, lm_head."""
        kv_heads = max(1, self.kv_heads // tp)
        qkv = (self.heads // tp + 2 * kv_heads) * self.head_dim
        return (
            (qkv, self.hidden),
            (self.hidden, self.heads // tp * self.head_dim),
            (2 * self.mlp // tp, self.hidden),
            (self.hidden, self.mlp // tp),
            (-(-self.vocab // tp), self.hidden),
        )


LLAMA_8B = Shape("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14_336, 128_256)
LLAMA_70B = Shape("Llama-3.1-70B", 80, 8192, 64, 8, 128, 28_672, 128_256)
QWEN3_32B = Shape("Qwen3-32B", 64, 5120, 64, 8, 128, 25_600, 151_936)
TINY = Shape("tiny", 2, 128, 2, 1, 64, 192, 256)
SHAPES = {shape.name: shape for shape in (LLAMA_8B, LLAMA_70B, QWEN3_32B, TINY)}

TOKENS = (1, 8, 16, 32, 64, 128, 192, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192, 16_384)
COARSE_TOKENS = (1, 16, 64, 128, 256, 512, 1024, 2048, 8192)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS = tuple(2**i for i in range(4, 18))  # 16 .. 131,072; shorter ones cost what 16 cost
CHUNKS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
PREFIXES = (0, 1024, 4096, 16_384, 32_768, 65_536, 131_072 - 16_384)
MAIN = (32, 8)  # heads, KV heads
RANKS = ((64, 8), (32, 4), (16, 2), (8, 1), (16, 4), (8, 2), (4, 1))
TIERS = 4


@dataclass(frozen=True, slots=True)
class Spec:
    """A row to be measured."""

    tier: int
    kernel: str
    params: dict[str, Any]
    dtype: str = "bf16"


def _heads(heads: tuple[int, int], page: int = 16, head_dim: int = 128) -> dict[str, int]:
    return {"heads": heads[0], "kv_heads": heads[1], "head_dim": head_dim, "page": page}


def _decode(tier: int, batch: int, context: int, heads: tuple[int, int] = MAIN, **more: int) -> Spec:
    return Spec(tier, "decode_attention", {"batch": batch, "context": context, **_heads(heads), **more})


def _prefill(tier: int, chunk: int, prefix: int, heads: tuple[int, int] = MAIN) -> Spec:
    return Spec(tier, "prefill_attention", {"chunk": chunk, "prefix": prefix, **_heads(heads)})


def _copy(tier: int, piece_bytes: int, pieces: int, direction: str, method: str) -> Spec:
    params = {"piece_bytes": piece_bytes, "pieces": pieces, "direction": direction, "method": method}
    return Spec(tier, "kv_copy", params)


def _ceilings_and_targets() -> Iterator[Spec]:
    """Section of targets: each beside the ceiling it is a share of."""
    for size in (64 * MIB, 256 * MIB, GIB, 2 * GIB):
        yield Spec(0, "copy_bandwidth", {"bytes": size})
    for direction in ("d2h", "h2d"):
        yield Spec(0, "pinned_memcpy", {"bytes": 256 * MIB, "direction": direction})
    yield Spec(0, "gemm", {"m": 8192, "n": 8192, "k": 8192})
    for batch, context in ((1, 16), (16, 1024), (16, 4096), (64, 4096), (128, 4096)):
        yield _decode(0, batch, context)
    for chunk in (4096, 8192, 16_384):
        yield _prefill(0, chunk, 0)
    for piece in (4 * KIB, 32 * KIB, 64 * KIB):
        for method in ("gather", "scatter"):
            yield _copy(0, piece, 256 * MIB // piece, "d2d", method)
    for piece in (8 * KIB, 16 * KIB, 24 * KIB, 64 * KIB, 256 * KIB):
        for direction in ("d2h", "h2d"):
            yield _copy(0, piece, 256 * MIB // piece, direction, "auto")


def _coarse() -> Iterator[Spec]:
    for batch in (1, 4, 16, 64, 256):
        for context in (256, 1024, 4096, 16_384, 65_536):
            yield _decode(1, batch, context)
    for chunk in (128, 512, 2048, 8192):
        for prefix in (0, 4096, 16_384, 65_536):
            yield _prefill(1, chunk, prefix)
    for m in COARSE_TOKENS:
        for n, k in LLAMA_8B.linear(1):
            yield Spec(1, "gemm", {"m": m, "n": n, "k": k})
        yield Spec(1, "elementwise", {"tokens": m, "hidden": LLAMA_8B.hidden})
    for sequences in (1, 8, 32, 128, 256):
        yield Spec(1, "host_step", {"sequences": sequences})
    for copying in ("none", "d2h", "h2d", "both"):
        yield Spec(1, "decode_while_copying", {"batch": 64, "context": 4096, "copying": copying})
    for gpus in (2, 4, 8):
        for size in (64 * KIB, MIB, 16 * MIB):
            yield Spec(1, "all_reduce", {"gpus": gpus, "bytes": size})


def _main_attention() -> Iterator[Spec]:
    for batch in BATCHES:
        for context in CONTEXTS:
            yield _decode(2, batch, context)
    for batch in (8, 64, 256):
        for skew in (2, 4, 8):
            yield _decode(2, batch, 4096, skew=skew)
    for chunk in CHUNKS:
        for prefix in PREFIXES:
            yield _prefill(2, chunk, prefix)


def _linear(tier: int, tokens: tuple[int, ...], ranks: tuple[int, ...] = (4, 1, 2, 8)) -> Iterator[Spec]:
    for shape in (LLAMA_70B, QWEN3_32B, LLAMA_8B):
        for tp in ranks:
            for m in tokens:
                for n, k in shape.linear(tp):
                    yield Spec(tier, "gemm", {"m": m, "n": n, "k": k})


def _rest() -> Iterator[Spec]:
    for hidden in (LLAMA_70B.hidden, QWEN3_32B.hidden):
        for m in COARSE_TOKENS:
            yield Spec(2, "elementwise", {"tokens": m, "hidden": hidden})
    for piece in (4 * KIB, 8 * KIB, 16 * KIB, 24 * KIB, 32 * KIB, 64 * KIB, 256 * KIB, 2 * MIB):
        for pieces in (1, 16, 256, 4096):
            if piece * pieces <= GIB:
                for method in ("gather", "migrate"):
                    yield _copy(2, piece, pieces, "d2d", method)
                for way in (f"{d} {m}" for d in ("d2h", "h2d") for m in ("auto", "copy_engine", "staged", "kernel")):
                    yield _copy(2, piece, pieces, *way.split())
    for gpus in (2, 4, 8):
        for power in range(12, 29, 2):
            yield Spec(2, "all_reduce", {"gpus": gpus, "bytes": 2**power})


def _ranks() -> Iterator[Spec]:
    for heads in RANKS:
        for batch in (1, 4, 16, 64, 256):
            for context in (16, 256, 1024, 4096, 16_384, 65_536):
                yield _decode(3, batch, context, heads)
        for chunk in (128, 512, 2048, 8192):
            for prefix in (0, 4096, 16_384, 65_536):
                yield _prefill(3, chunk, prefix, heads)
    for shape in (LLAMA_8B, LLAMA_70B, QWEN3_32B):
        for m in TOKENS:
            yield Spec(3, "elementwise", {"tokens": m, "hidden": shape.hidden})


def full_grid(quick: bool = False) -> list[Spec]:
    """Every row once, by tier. quick: tiers 0 and 1."""
    found: dict[str, Spec] = {}
    rest = (_main_attention(), _linear(2, COARSE_TOKENS), _rest(), _ranks(), _linear(3, TOKENS))
    for spec in chain(_ceilings_and_targets(), _coarse(), *(() if quick else rest)):
        found.setdefault(f"{spec.kernel} {sorted(spec.params.items())}", spec)
    return list(found.values())


def tiny_grid() -> list[Spec]:
    """A few of each, so small that the interpreter runs them in seconds: a dry run of every path."""
    heads = _heads((4, 2), 16, 64)
    specs = [
        Spec(0, "copy_bandwidth", {"bytes": 4096}),
        Spec(0, "pinned_memcpy", {"bytes": 4096, "direction": "d2h"}),
        Spec(0, "pinned_memcpy", {"bytes": 4096, "direction": "h2d"}),
        Spec(0, "gemm", {"m": 4, "n": 32, "k": 64}),
        Spec(0, "decode_attention", {"batch": 1, "context": 16, **heads}),
        Spec(0, "decode_attention", {"batch": 4, "context": 40, "skew": 2, **heads}),
        Spec(0, "prefill_attention", {"chunk": 20, "prefix": 0, **heads}),
        Spec(0, "prefill_attention", {"chunk": 5, "prefix": 33, **heads}),
        Spec(1, "elementwise", {"tokens": 3, "hidden": TINY.hidden}),
        Spec(1, "host_step", {"sequences": 2}),
    ]
    specs += [_copy(0, 256, 4, "d2d", method) for method in ("gather", "scatter")]
    for direction in ("d2h", "h2d"):
        specs += [_copy(0, 256, 4, direction, method) for method in ("auto", "copy_engine", "staged", "kernel")]
    for copying in ("none", "d2h", "h2d", "both"):
        specs.append(Spec(1, "decode_while_copying", {"batch": 2, "context": 20, "copying": copying}))
    return specs
