"""What a calibration file says of single kernels, in microseconds for one layer of one rank."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagasim.calibrate.fitting import curve_at
from sagasim.calibrate.tables import Floats

__all__ = ["ONCE", "Told"]

ONCE = ("embedding", "final_layernorm")  # terms by tokens that are once a step; all others are of every layer
TWICE = ("layernorm", "all_reduce")  # terms that hold two kernels a layer


class Told:
    """A calibration as functions. layers: of the model, to divide by."""

    def __init__(self, calibration: dict[str, Any], layers: int) -> None:
        self.calibration, self.layers = calibration, layers
        self.tokens = {term["name"]: term for term in calibration["token_terms"]}
        self.sequences = {term["name"]: term for term in calibration["sequence_terms"]}

    def per_step(self, name: str) -> int:
        """How many kernels of a step a term by tokens holds."""
        return 1 if name in ONCE else self.layers * (2 if name in TWICE else 1)

    def kernel(self, name: str, m: Floats) -> Floats:
        """One kernel of a term by tokens."""
        return np.asarray(self._term(self.tokens[name], "tokens", m) / self.per_step(name))

    def per_sequence(self, name: str, n: Floats) -> Floats:
        """One kernel of a term by sequences."""
        return self._term(self.sequences[name], "sequences", n)

    def decode(self, batch: Floats, context: Floats) -> Floats:
        """Decode attention of `batch` sequences of `context` tokens."""
        return np.asarray(self._grid(self.calibration["decode_attention"], batch, context) / self.layers)

    def mixed(self, batch: Floats, context: Floats, chunk: Floats) -> Floats:
        """What such decodes add to a launch with a chunk of `chunk` tokens."""
        table = self.calibration.get("mixed_attention")
        if table is None:
            return self.decode(batch, context)
        empty = batch * np.floor((chunk - 1) / table["tile"]) * table["empty_tile_ps"] * 1e-6
        return np.asarray((self._grid(table, batch, context) + empty) / self.layers)

    def prefill(self, new: Floats, cached: Floats) -> Floats:
        """Attention of one chunk, its launch included."""
        table = self.calibration["prefill_attention"]
        knots = np.array(table["tokens"], dtype=np.float64)
        told = table["base_ps"] + curve_at(new, knots, np.array(table["ps"], dtype=np.float64))
        rate = curve_at(new, knots, np.array(table["per_cached_token"], dtype=np.float64)) / 2.0 ** table["shift"]
        return np.asarray((told + rate * cached) * 1e-6 / self.layers)

    def beside_attention(self, m: Floats, n: Floats) -> Floats:
        """A step without its attention: every term by tokens and by sequences, and the constant."""
        total = np.full(len(m), self.calibration["constant_ps"] * 1e-6)
        for term in self.tokens.values():
            total = total + self._term(term, "tokens", m)
        for term in self.sequences.values():
            total = total + self._term(term, "sequences", n)
        return total

    @staticmethod
    def _term(term: dict[str, Any], axis: str, x: Floats) -> Floats:
        knots, values = (np.array(term[key], dtype=np.float64) for key in (axis, "ps"))
        return curve_at(np.asarray(x, dtype=np.float64), knots, values) * 1e-6

    @staticmethod
    def _grid(table: dict[str, Any], batch: Floats, context: Floats) -> Floats:
        batches, contexts = (np.array(table[key], dtype=np.float64) for key in ("batch", "context"))
        by_batch = np.stack([curve_at(context, contexts, np.array(row, dtype=np.float64)) for row in table["ps"]])
        rows = zip(batch, by_batch.T, strict=True)
        return np.array([curve_at(np.array([b]), batches, column)[0] for b, column in rows]) * 1e-6
