"""A calibration while it is being put together from the tables of a source."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sagasim.calibrate.attention import BATCHES, CONTEXTS, TILE, Mixed, PrefillCurves
from sagasim.calibrate.fitting import axis_term, ps_list, to_ps
from sagasim.calibrate.rank import Rank
from sagasim.calibrate.tables import Floats, origin_of, source_entry
from sagasim.cost import SHARE, VERSION

__all__ = ["FITTED", "HOST", "Draft", "dumps"]

SHIFT = 20  # bits of the fraction of per_cached_token
FITTED = "sagasim.calibrate: non-negative least squares on increments, weight 1/y"
HOST = {
    "base_ps": 10**9,
    "per_sequence_ps": 5 * 10**6,
    "per_token_ps": 10**4,
    "status": "derived",
    "source": "assumption, to be replaced by a measurement: the order of 1 ms that vLLM v1 spends on scheduling, input "
    "preparation and launches, 5 us more per sequence; asynchronous scheduling hides it below the GPU's time",
}


@dataclass
class Draft:
    """Entries of the file, errors of the fit, and the files that it rests on."""

    rank: Rank
    source_dir: Path
    status: str = "published"
    files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    residuals: dict[str, Any] = field(default_factory=dict)
    token_terms: list[dict[str, Any]] = field(default_factory=list)
    sequence_terms: list[dict[str, Any]] = field(default_factory=list)
    constant_us: float = 0.0
    decode: dict[str, Any] = field(default_factory=dict)
    mixed: dict[str, Any] = field(default_factory=dict)
    prefill: dict[str, Any] = field(default_factory=dict)
    host: dict[str, Any] = field(default_factory=lambda: dict(HOST))
    extra: dict[str, Any] = field(default_factory=dict)  # entries that the cost of a step does not read

    def used(self, path: Path) -> Path:
        if path not in self.files:
            self.files.append(path)
        return path

    def token_term(self, name: str, knots: Floats, us: Floats, status: str, source: str) -> None:
        self.token_terms.append(axis_term(name, "tokens", knots, us, status, source))

    def sequence_term(self, name: str, knots: Floats, us: Floats, status: str, source: str) -> None:
        self.sequence_terms.append(axis_term(name, "sequences", knots, us, status, source))

    def set_decode(
        self, table: Floats, skew: float, status: str, source: str, measured: tuple[Floats, Floats] | None = None
    ) -> None:
        """table: (BATCHES, CONTEXTS) for one layer; skew: share of the way from mean to longest context.

        measured: sequences and contexts of the rows it was fitted on.
        """
        self.decode = {**_grid(table, self.rank.model.layers), "skew": round(skew * (1 << SHARE))}
        self.decode |= {"status": status, "source": source}
        if measured is not None:
            self.decode["measured"] = dict(zip(("batch", "context"), map(_ends, measured), strict=True))

    def set_mixed(self, mixed: Mixed, status: str, source: str) -> None:
        layers = self.rank.model.layers
        empty = {"tile": TILE, "empty_tile_ps": to_ps(mixed.empty_us * layers)}
        self.mixed = {**_grid(mixed.table, layers), **empty, "status": status, "source": source}

    def set_prefill(
        self, curves: PrefillCurves, status: str, source: str, measured: tuple[Floats, Floats] | None = None
    ) -> None:
        """measured: new and cached tokens of the rows that the curves were fitted on."""
        layers = self.rank.model.layers
        self.prefill = {
            "base_ps": to_ps(curves.base * layers),
            "tokens": [int(knot) for knot in curves.knots],
            "ps": ps_list(curves.new, layers),
            "per_cached_token": [to_ps(float(value) * layers, scale=1 << SHIFT) for value in curves.cached],
            "shift": SHIFT,
            "status": status,
            "source": source,
        }
        if measured is not None:
            self.prefill["measured"] = dict(zip(("tokens", "cached"), map(_ends, measured), strict=True))

    def finished(self) -> dict[str, Any]:
        """The calibration file."""
        rank = self.rank
        origin = origin_of(self.source_dir)
        measured = (
            f"measured by others with {origin['software']}; {origin['changed']}" if origin else "origin not stated"
        )
        provenance = {
            "status": self.status,
            "sources": [source_entry(path, origin) for path in self.files],
            "fitted_with": FITTED,
            "notes": [measured, *self.notes],
            "residuals": self.residuals,
        }
        calibration = {
            "sagasim_calibration": VERSION,
            "gpu": rank.gpu.id,
            "model": rank.model.id,
            "tp": rank.tp,
            "dtype": rank.dtype,
            "provenance": provenance,
            "host": self.host,
            "constant_ps": to_ps(self.constant_us),
            "token_terms": self.token_terms,
            "sequence_terms": self.sequence_terms,
            "decode_attention": self.decode,
        }
        if self.mixed:
            calibration["mixed_attention"] = self.mixed
        return {**calibration, "prefill_attention": self.prefill, **self.extra}


def _ends(values: Floats) -> list[int]:
    """The least and the greatest value: beyond them a curve goes on by physics, not by measurement."""
    return [int(values.min()), int(values.max())]


def _grid(table: Floats, layers: int) -> dict[str, Any]:
    axes = {"batch": [int(size) for size in BATCHES], "context": [int(size) for size in CONTEXTS]}
    return {**axes, "ps": [ps_list(np.asarray(row), layers) for row in table]}


def dumps(calibration: dict[str, Any]) -> str:
    """JSON with an indent of 1 and every array of numbers on one line."""
    text = json.dumps(calibration, indent=1, ensure_ascii=False)
    return re.sub(r"\[[\s\d,]+\]", lambda found: "[" + " ".join(found.group()[1:-1].split()) + "]", text) + "\n"
