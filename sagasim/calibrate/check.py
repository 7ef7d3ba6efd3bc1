"""How well a calibration file tells tables of measurements, term by term and for whole steps.

The tables are those of the source that the file was fitted on, or any others of the same source's layout: rows that the
fit never saw, for one. A whole step is the file's step with the attention of the table in place of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sagasim.calibrate import aiconfigurator, llmservingsim, vidur
from sagasim.calibrate.fitting import residual
from sagasim.calibrate.linear import Collective, Gemm
from sagasim.calibrate.measured import read_measured
from sagasim.calibrate.rank import Rank, checked_rank
from sagasim.calibrate.tables import Floats, find_table
from sagasim.calibrate.told import Told
from sagasim.errors import CalibrationError
from sagasim.hardware import data_dir, load_gpu, load_model

__all__ = ["Compared", "Report", "check", "folder_of"]

LARGEST_BATCH = 512  # beyond it the last slope is held


class Compared(NamedTuple):
    """One term: what the file says and what was measured, microseconds; note: what the rows are."""

    term: str
    told: Floats
    measured: Floats
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All comparisons of a file, and the errors that it carries of its own fit."""

    title: str
    against: str
    compared: list[Compared]
    carried: dict[str, dict[str, float]]

    def rows(self) -> list[dict[str, Any]]:
        """MAPE, 90th percentile, signed bias and number of rows of each term, the worst first."""
        told = [{"term": c.term, **residual(c.told, c.measured), "note": c.note} for c in self.compared if len(c.told)]
        return sorted(told, key=lambda row: -float(row["mape"]))


def folder_of(calibration: dict[str, Any]) -> Path | None:
    """The embedded folder with the very tables that a calibration was fitted on, if there is one."""
    embedded = data_dir() / "calibration" / "sources"
    for source in calibration["provenance"].get("sources", []):
        name = Path(source["file"]).name
        for path in sorted(embedded.rglob(name)):
            if hashlib.sha256(path.read_bytes()).hexdigest() == source["sha256"]:
                return _top(path, embedded, str(calibration["provenance"].get("source")))
    return None


def _top(path: Path, embedded: Path, source: str) -> Path:
    """The folder that a source's `fit` takes, from one of its files."""
    if source == "vidur":
        return embedded / "vidur"
    if source == "llmservingsim" and path.name != "meta.yaml":  # GPU/MODEL/tpN/table
        return path.parent.parent
    return path.parent


def check(calibration: dict[str, Any], against: Path | None, title: str) -> Report:
    """Compare a calibration with the tables in `against`, or with its own where they are embedded."""
    provenance = calibration["provenance"]
    source = provenance.get("source", "")
    carried = provenance.get("residuals", {})
    folder = against if against is not None else folder_of(calibration)
    if folder is None:
        return Report(title, "the errors that the file carries", [], carried)
    if source not in _COMPARE:
        raise CalibrationError(f"fitted on unknown source {source!r}", where=title, expected=", ".join(_COMPARE))
    if not folder.exists():
        raise CalibrationError("no such folder", where=str(folder), expected=f"tables of source {source}")
    model = load_model(calibration["model"])
    rank = checked_rank(model, load_gpu(calibration["gpu"]), calibration["tp"], calibration["dtype"])
    compared = _COMPARE[source](rank, Told(calibration, model.layers), folder, folder_of(calibration))
    if not any(len(one.told) for one in compared):
        raise CalibrationError("no row fits the calibration", where=str(folder), expected=f"tables of source {source}")
    return Report(title, str(folder), compared, carried)


Kernels = dict[str, Callable[[Floats], Floats]]  # term by tokens -> one measured kernel of it


def _steps(rank: Rank, told: Told, attention: tuple[Floats, ...], kernels: Kernels, *, prefill: bool) -> Compared:
    """Whole steps: the file's, and the same with the tables' attention and kernels in place of its own.

    attention: for decode sequences, tokens of each context, microseconds; for prefill new, cached, microseconds.
    """
    first, second, us = attention
    tokens, sequences = first, np.ones_like(first) if prefill else first
    layers = rank.model.layers
    beside = told.beside_attention(tokens, sequences)
    guess = beside + (told.prefill(first, second) if prefill else told.decode(first, second)) * layers
    measured = beside + us * layers
    for name, kernel in kernels.items():
        if name in told.tokens:
            measured = measured + (kernel(tokens) - told.kernel(name, tokens)) * told.per_step(name)
    note = f"attention and {sum(name in told.tokens for name in kernels)} kernels of the tables, the rest of the file"
    return Compared("whole prefill step" if prefill else "whole decode step", guess, measured, note)


def _aiconfigurator(rank: Rank, told: Told, folder: Path, own: Path | None) -> list[Compared]:
    """Whatever tables of this layout are there."""
    there = {name for name in aiconfigurator.NEEDED if find_table(folder, name, engine="vllm") is not None}
    compared: list[Compared] = []
    kernels: Kernels = {}
    before = own if own != folder else None
    if "gemm" in there:
        rows = aiconfigurator.gemm_rows(rank, folder)
        gemm = Gemm(rank, *rows)
        kernels = {name: partial(gemm.us, *shape) for name, shape in rank.gemms.items()}
        compared += _products(rank, told, rows, before)
    reduced = aiconfigurator.reduce_rows(folder) if rank.tp > 1 else None
    if reduced is not None and (reduced[1] == rank.tp).any():
        surface, hidden_bytes = Collective(rank, *reduced), rank.model.hidden * rank.model.dtype_bytes
        kernels["all_reduce"] = lambda tokens: surface.us(tokens * hidden_bytes)
        compared += _reduced(rank, told, reduced, before)
    if "generation_attention" in there:
        decode = aiconfigurator.decode_rows(rank, folder)
        keep = (decode.heads == rank.heads) & (decode.kv_heads == rank.kv_heads) & (decode.batch <= LARGEST_BATCH)
        batch, context, us = decode.batch[keep], decode.context[keep], decode.us[keep]
        compared.append(Compared("decode_attention", told.decode(batch, context), us))
        compared.append(_steps(rank, told, (batch, context, us), kernels, prefill=False))
    if "context_attention" in there:
        q, sequences, heads, kv_heads, us = aiconfigurator.prefill_rows(rank, folder)
        keep = (heads == rank.heads) & (kv_heads == rank.kv_heads) & (sequences == 1)
        none, guess = np.zeros(int(keep.sum())), told.prefill(q[keep], np.zeros(int(keep.sum())))
        compared.append(Compared("prefill_attention", guess, us[keep], "no cached prefix in these tables"))
        compared.append(_steps(rank, told, (q[keep], none, us[keep]), kernels, prefill=True))
    return compared


def _products(rank: Rank, told: Told, rows: list[Floats], own: Path | None) -> list[Compared]:
    """Products of the model's own shapes by the file; those of shapes near them by the tables it was fitted on."""
    m, n, k, us = rows
    compared = []
    for name, shape in rank.gemms.items():
        exact = (n == shape[0]) & (k == shape[1]) & ((m > 512) | (m <= 16) | (m % 16 == 0))
        compared.append(Compared(name, told.kernel(name, m[exact]), us[exact], "CUDA-graph sizes, and all above 512"))
    if own is not None:
        near = aiconfigurator.near_shapes(rank, n, k)
        gemm = Gemm(rank, *aiconfigurator.gemm_rows(rank, own))
        note = "shapes near the model's, by the surface that the file's products are read from"
        compared.append(Compared("gemm", gemm.us(n[near], k[near], m[near]), us[near], note))
    return compared


def _reduced(rank: Rank, told: Told, rows: tuple[Floats, Floats, Floats], own: Path | None) -> list[Compared]:
    size, ranks, us = rows
    hidden_bytes = rank.model.hidden * rank.model.dtype_bytes
    keep = (ranks == rank.tp) & (size >= hidden_bytes) & (size <= 32768 * hidden_bytes)
    compared = [Compared("all_reduce", told.kernel("all_reduce", size[keep] / hidden_bytes), us[keep])]
    known = aiconfigurator.reduce_rows(own) if own is not None else None
    if known is not None:
        mine = ranks == rank.tp
        surface = Collective(rank, *known)
        note = "all sizes, by the surface that the file's all-reduce is read from"
        compared.append(Compared("all_reduce, all sizes", surface.us(size[mine], ranks[mine]), us[mine], note))
    return compared


def _llmservingsim(rank: Rank, told: Told, folder: Path, own: Path | None) -> list[Compared]:
    del own
    split = llmservingsim.split_folder(folder, rank.tp)
    compared = []
    rows = llmservingsim.attention_rows(split)
    if rows is not None:
        decode, prefill = rows.only(rows.new == 0), rows.only(rows.decodes == 0)
        mixed = rows.only((rows.new > 0) & (rows.decodes > 0))
        batch, context = decode.decodes, decode.context
        kernels: Kernels = {
            name: partial(_between, tokens, us)
            for name, (tokens, us) in llmservingsim.layer_rows(split, "dense", "tokens").items()
        }
        compared.append(Compared("decode_attention", told.decode(batch, context), decode.us))
        compared.append(_steps(rank, told, (batch, context, decode.us), kernels, prefill=False))
        guess, cached = told.prefill(prefill.new, prefill.cached), prefill.cached
        none, long = cached == 0, cached >= 4 * prefill.new
        for name, some in (("", none | ~none), (", no prefix", none), (", prefix >= 4 x chunk", long)):
            compared.append(Compared(f"prefill_attention{name}", guess[some], prefill.us[some]))
        compared.append(_steps(rank, told, (prefill.new, cached, prefill.us), kernels, prefill=True))
        both = told.prefill(mixed.new, mixed.cached) + told.mixed(mixed.decodes, mixed.context, mixed.new)
        compared.append(Compared("mixed_attention", both, mixed.us, "decodes and a chunk in one launch"))
    for name, (tokens, us) in llmservingsim.layer_rows(split, "dense", "tokens").items():
        if name in told.tokens:
            compared.append(Compared(name, told.kernel(name, tokens), us))
    for name, (sequences, us) in llmservingsim.layer_rows(split, "per_sequence", "sequences").items():
        if name in told.sequences:
            compared.append(Compared(name, told.per_sequence(name, sequences), us))
    products = [one for one in compared if one.term in rank.gemms]
    if products:
        both_columns = (
            np.concatenate([one.told for one in products]),
            np.concatenate([one.measured for one in products]),
        )
        compared.append(Compared("gemm", *both_columns, "all products"))
    return compared


def _between(tokens: Floats, us: Floats, m: Floats) -> Floats:
    return np.asarray(np.interp(m, tokens, us))


def _vidur(rank: Rank, told: Told, folder: Path, own: Path | None) -> list[Compared]:
    del own
    rows = vidur.linear_rows(rank, folder)
    compared = [Compared(name, told.kernel(name, tokens), us) for name, (tokens, us) in rows.items()]
    products = [one for one in compared if one.term in rank.gemms]
    both = (np.concatenate([one.told for one in products]), np.concatenate([one.measured for one in products]))
    compared.append(Compared("gemm", *both, "all products"))
    reduced = vidur.reduce_rows(rank, folder) if rank.tp > 1 else None
    if reduced is not None:
        compared += _reduced(rank, told, reduced, None)
    return compared


def _measured(rank: Rank, told: Told, folder: Path, own: Path | None) -> list[Compared]:
    del own
    found, compared = read_measured(folder), []
    decode, prefill, gemm = (found.get(name) for name in ("decode_attention", "prefill_attention", "gemm"))
    if decode is not None:
        mine = (decode.column("heads") == rank.heads) & (decode.column("kv_heads") == rank.kv_heads)
        some = decode.only(mine)
        batch, context = some.column("batch"), some.column("context")
        compared.append(Compared("decode_attention", told.decode(batch, context), some.median))
        compared.append(_steps(rank, told, (batch, context, some.median), {}, prefill=False))
    if prefill is not None:
        mine = (prefill.column("heads") == rank.heads) & (prefill.column("kv_heads") == rank.kv_heads)
        some = prefill.only(mine)
        new, cached = some.column("chunk"), some.column("prefix", 0.0)
        compared.append(Compared("prefill_attention", told.prefill(new, cached), some.median))
        compared.append(_steps(rank, told, (new, cached, some.median), {}, prefill=True))
    if gemm is not None:
        columns = [gemm.column(name) for name in ("m", "n", "k")]
        compared += _products(rank, told, [*columns, gemm.median], None)
    return compared


_Compare = Callable[[Rank, Told, Path, Path | None], list[Compared]]
_COMPARE: dict[str, _Compare] = {
    "aiconfigurator": _aiconfigurator,
    "llmservingsim": _llmservingsim,
    "vidur": _vidur,
    "measured": _measured,
}
