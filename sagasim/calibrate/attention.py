"""Attention of one layer of one rank: decode, prefill with and without cached tokens, and both in one launch.

All times are microseconds. Every table is raised to its physical floor: no kernel reads its keys and values faster than
the peak bandwidth or computes faster than the peak rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sagasim.calibrate.fitting import Surface, curve_at, increasing_fit, non_negative, raised, ramps
from sagasim.calibrate.rank import Rank
from sagasim.calibrate.tables import Floats, Mask

__all__ = [
    "BATCHES", "CONTEXTS", "HOPPER_TILE", "TILE", "DecodeRows", "Mixed", "PrefillCurves", "alone_us",
    "cached_structure", "decode_at", "decode_us", "dense_knots", "extended", "mixed_fit", "mixed_us", "prefill_fit",
    "prefill_of_table", "skew_share",
]  # fmt: skip

BATCHES: Floats = np.logspace(0, 9, 10, base=2.0)  # 1 .. 512 sequences
CONTEXTS: Floats = np.logspace(0, 17, 18, base=2.0)  # 1 .. 131,072 tokens
LONGEST_CHUNK = 32768
LAUNCH_US = 8.0  # the order of the shortest attention launches in every table: part of the reference of a share
REACHED = 0.6  # share of the peak that long prefills reach, for the same reference
TILE = 64  # query rows of a thread block of FlashAttention-2 at head size 128 on GPUs other than A100 and H100
HOPPER_TILE = 128  # of FlashAttention-3, which packs the query heads of one KV head into its rows


class DecodeRows(NamedTuple):
    """Measured decode kernels: sequences, tokens of each context, heads and KV heads of the rank, microseconds."""

    batch: Floats
    context: Floats
    heads: Floats
    kv_heads: Floats
    us: Floats

    def only(self, keep: Mask) -> DecodeRows:
        return DecodeRows(*(column[keep] for column in self))


def _decode_parts(rows: tuple[Floats, ...]) -> Floats:
    """What a launch, a (sequence, KV head) and a token of each cost, as columns."""
    batch, context, _, kv_heads = rows
    work = batch * kv_heads
    return np.stack([np.ones_like(work), work, work * context], axis=1)


def _tiled_parts(rank: Rank, rows: tuple[Floats, ...]) -> Floats:
    """The same for a kernel that walks the context in tiles, and what is peculiar to FlashAttention-2.

    A second tile brings a second pass over the parts of the context, several sequences a launch more than one, a partly
    filled last tile costs as much as a full one, and so does a partly filled last wave of (sequence, KV head) blocks.
    """
    batch, context, _, kv_heads = rows
    work, size = batch * kv_heads, rank.model.head_dim
    tile = 256.0 if size <= 64 else 128.0 if size <= 128 else 64.0  # tokens of a tile in its split-KV kernel
    waves = np.ceil(work / rank.gpu.sms) * rank.gpu.sms
    passes, several = (context > tile).astype(np.float64), (batch > 1).astype(np.float64)
    more = [passes, several, work * np.ceil(context / tile) * tile, waves, waves * context]
    return np.concatenate([_decode_parts(rows), np.stack(more, axis=1)], axis=1)


def _decode_coordinates(rows: tuple[Floats, ...]) -> Floats:
    """Work is shared out by (sequence, KV head): what matters is their product, less how it comes about."""
    batch, context, heads, kv_heads = rows
    group = heads / kv_heads
    return np.stack([np.log2(batch * kv_heads), np.log2(context), 0.5 * np.log2(batch), 0.3 * np.log2(group)], axis=1)


def decode_us(rank: Rank, rows: DecodeRows, *, tiled: bool = False) -> Floats:
    """Decode attention, (BATCHES, CONTEXTS), of kernels with any numbers of heads; never falling along either axis.

    tiled: of FlashAttention-2 and of the rank's own heads alone. A step of time at the end of a tile then stands at its
    knot: knots are read one token further, where profiles that count the cached tokens have their rows.
    """
    batch, context = (grid.ravel() for grid in np.meshgrid(BATCHES, CONTEXTS, indexing="ij"))
    wanted = (batch, context + tiled, np.full_like(batch, rank.heads), np.full_like(batch, rank.kv_heads))
    parts, there = (_tiled_parts(rank, x) if tiled else _decode_parts(x) for x in (rows[:4], wanted))
    affine = non_negative(parts, rows.us, np.zeros(parts.shape[1]))
    axes, where = ((np.log2(np.stack(x[:2], axis=1)) if tiled else _decode_coordinates(x)) for x in (rows[:4], wanted))
    told = Surface(axes, rows.us, parts @ affine, smooth=tiled).us(where, there @ affine)
    table = told.reshape(len(BATCHES), len(CONTEXTS))
    table = np.stack([increasing_fit(CONTEXTS, row, CONTEXTS) for row in table])
    table = raised(table, rank.decode_floor_us(BATCHES[:, None], CONTEXTS[None, :]))
    return np.asarray(np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1))


def decode_at(table: Floats, batch: Floats, context: Floats) -> Floats:
    """What a table (BATCHES, CONTEXTS) says: linear in context, then in batch, the last slopes held."""
    by_batch = np.stack([curve_at(context, CONTEXTS, row) for row in table])  # (BATCHES, rows)
    return np.array([curve_at(np.array([b]), BATCHES, column)[0] for b, column in zip(batch, by_batch.T, strict=True)])


def skew_share(mean_us: Floats, max_us: Floats, skewed_us: Floats) -> float:
    """Share s, 0 to 1, for which unequal contexts cost as much as equal ones of mean + s * (max - mean)."""
    rise, told = (max_us - mean_us) / skewed_us, (skewed_us - mean_us) / skewed_us
    keep = rise > 0
    square = float((rise[keep] ** 2).sum())
    return min(1.0, max(0.0, float((rise * told)[keep].sum()) / square)) if square > 0 else 0.0


@dataclass(frozen=True, slots=True)
class PrefillCurves:
    """Prefill attention of a chunk of q tokens on kv cached ones: base + new(q) + cached(q) * kv, piecewise in q."""

    knots: Floats
    base: float
    new: Floats
    cached: Floats

    def us(self, q: Floats, kv: Floats) -> Floats:
        return self.base + curve_at(q, self.knots, self.new) + curve_at(q, self.knots, self.cached) * kv

    def above_floor(self, rank: Rank) -> PrefillCurves:
        """The same, at least what physics allows and never falling."""
        new, cached = rank.prefill_floor_us(self.knots)
        never_falling = (
            np.maximum.accumulate(raised(self.new, new)),
            np.maximum.accumulate(raised(self.cached, cached)),
        )
        return PrefillCurves(self.knots, self.base, *never_falling)


def dense_knots(first: float, last: float) -> Floats:
    """Knots four to an octave: between two of them a parabola is at most 1 % below its chord."""
    steps = np.arange(np.ceil(4 * np.log2(first)), 4 * np.log2(last) + 0.5)
    return np.unique(np.concatenate([[1.0], np.round(2.0 ** (steps / 4))]))


def _prefill_reference(rank: Rank, q: Floats, kv: Floats, batch: Floats, heads: Floats, kv_heads: Floats) -> Floats:
    size = rank.model.head_dim
    pairs = batch * heads * size * q * (q + 2.0 * kv + HOPPER_TILE)
    moved = 2.0 * size * batch * (2 * q * heads + rank.kv_size * (q + kv) * kv_heads)
    return LAUNCH_US + rank.flops_us(2.0 * pairs) / REACHED + rank.bytes_us(moved)


def _prefill_coordinates(q: Floats, batch: Floats, heads: Floats, kv_heads: Floats) -> Floats:
    group = heads / kv_heads
    return np.stack([np.log2(batch * heads), np.log2(q), 0.3 * np.log2(batch), 0.3 * np.log2(group)], axis=1)


def prefill_of_table(rank: Rank, q: Floats, batch: Floats, heads: Floats, kv_heads: Floats, us: Floats) -> Surface:
    """The surface over kernels of `batch` sequences of q tokens, nothing cached, with any numbers of heads."""
    reference = _prefill_reference(rank, q, np.zeros_like(q), batch, heads, kv_heads)
    return Surface(_prefill_coordinates(q, batch, heads, kv_heads), us, reference)


def alone_us(rank: Rank, surface: Surface, q: Floats) -> Floats:
    """One sequence of q tokens with the heads of this rank, from such a surface."""
    one, heads, kv_heads = np.ones_like(q), np.full_like(q, rank.heads), np.full_like(q, rank.kv_heads)
    reference = _prefill_reference(rank, q, np.zeros_like(q), one, heads, kv_heads)
    return surface.us(_prefill_coordinates(q, one, heads, kv_heads), reference)


def cached_structure(rank: Rank, q: Floats, *, splits: bool, tile: int = TILE) -> Floats:
    """How much a cached token costs under a chunk of q tokens, in pairs of one query row of all heads and a token.

    A thread block takes a tile of query rows of one head and walks the context. A cost of q pairs would need every
    multiprocessor busy: a partly filled last tile and a partly filled last wave of blocks take as long as full ones.
    FlashAttention-3 packs the heads of a group into its rows and splits the context over idle multiprocessors.
    tile: query rows of a block of FlashAttention-2, which does neither.
    """
    sms = float(rank.gpu.sms)
    if not splits:
        blocks = np.ceil(q / tile) * rank.heads
        return np.asarray(np.ceil(blocks / sms) * sms * tile / rank.heads)
    group = rank.heads / rank.kv_heads
    blocks = np.ceil(q * group / HOPPER_TILE) * rank.kv_heads
    ways = np.arange(1.0, 129.0)[:, None]  # as many splits as the kernel tries
    full = blocks * ways / (np.ceil(blocks * ways / sms) * sms)
    best = np.where(blocks < 0.8 * sms, full.max(axis=0), full[0])
    return np.asarray(np.maximum.accumulate(blocks * HOPPER_TILE / rank.heads / best))


def prefill_fit(q: Floats, kv: Floats, us: Floats) -> PrefillCurves:
    """Curves through kernels of one sequence of q tokens on kv cached ones; knots where q was measured."""
    knots = np.unique(q)
    up = ramps(q, knots) if len(knots) > 1 else np.ones((len(q), 1))
    fitted = non_negative(np.concatenate([up, up * kv[:, None]], axis=1), us, np.zeros(2 * len(knots)))
    new, cached = np.cumsum(fitted[: len(knots)]), np.cumsum(fitted[len(knots) :])
    return PrefillCurves(knots, 0.0, new, cached)


def extended(rank: Rank, curves: PrefillCurves) -> PrefillCurves:
    """Such curves with dense knots from 1 token to LONGEST_CHUNK; the least launch apart, as several chunks share it.

    Between the measured knots and beyond them the share of the reference is interpolated and held.
    """
    knots = dense_knots(curves.knots[0], LONGEST_CHUNK)
    one = np.ones_like(knots)

    def stretched(values: Floats, reference: Floats, there: Floats) -> Floats:
        share = np.log(np.maximum(values, 1e-9) / reference)
        return np.asarray(there * np.exp(np.interp(np.log(knots), np.log(curves.knots), share)))

    def new_reference(q: Floats) -> Floats:
        ones = np.ones_like(q)
        return _prefill_reference(rank, q, 0 * q, ones, rank.heads * ones, rank.kv_heads * ones)

    new = stretched(curves.new, new_reference(curves.knots), new_reference(knots))
    inside = curve_at(np.minimum(knots, curves.knots[-1]), curves.knots, curves.cached)
    cached = inside * np.maximum(one, knots / curves.knots[-1])
    base = float(new[0])
    return PrefillCurves(knots, base, np.maximum.accumulate(new) - base, np.maximum.accumulate(cached))


class Mixed(NamedTuple):
    """Decodes in a launch with a prefill chunk: table (BATCHES, CONTEXTS), and one decode's cost of an empty tile."""

    table: Floats
    empty_us: float


def mixed_fit(batch: Floats, context: Floats, chunk: Floats, prefill_us: Floats, us: Floats, decode: Floats) -> Mixed:
    """What decodes add to a launch that also serves a chunk of `chunk` tokens, whose own time is prefill_us.

    decode: the table of pure decode launches, which none of this is below.
    """
    sizes, knots = np.unique(batch), np.unique(context)
    up = ramps(context, knots)
    blocks = [np.where((batch == size)[:, None], up, 0.0) for size in sizes]
    tiles = batch * np.floor((chunk - 1) / TILE)
    columns = np.concatenate([*blocks, tiles[:, None]], axis=1)
    fitted = non_negative(columns, us, np.zeros(columns.shape[1]), known=prefill_us)
    curves = np.stack([np.cumsum(part) for part in fitted[:-1].reshape(len(sizes), len(knots))])
    rows = np.stack([curve_at(CONTEXTS, knots, curve) for curve in curves])
    table = np.stack([curve_at(BATCHES, sizes, column) for column in rows.T], axis=1)
    table = np.maximum(table, decode)
    return Mixed(np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1), float(fitted[-1]))


def mixed_us(mixed: Mixed, batch: Floats, context: Floats, chunk: Floats) -> Floats:
    """What decodes add to launches with a chunk of `chunk` tokens."""
    return decode_at(mixed.table, batch, context) + mixed.empty_us * batch * np.floor((chunk - 1) / TILE)
