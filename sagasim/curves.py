"""Concurrency curves of real servers against the simulator: `sagasim validate --curve CSV`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.config import Config
from sagasim.core import Call, Task
from sagasim.cost import load_calibration
from sagasim.curve_points import CurvePoint, read_curves
from sagasim.errors import CalibrationError
from sagasim.hardware import data_dir, load_gpu, load_model
from sagasim.rng import Stream
from sagasim.simulate import kv_blocks, simulate
from sagasim.units import BLOCK_TOKENS

__all__ = ["CurveReport", "curves_text", "fitted_left_out", "simulated", "validate_curves"]

Floats = NDArray[np.float64]
REQUESTS = 10  # of each client, as the benchmark behind most of these rows (InferenceMAX) sends them
SPREAD = 0.2  # lengths vary by this share around the row's: a population of equal requests would march in step
MEMORY = 0.9  # vLLM's default share of the GPU
BUDGET = 8192  # max_num_batched_tokens of vLLM's server on these GPUs
MORE_THAN_BF16 = 1.5  # tokens in flight over a BF16 KV cache's room from which the cache must have been FP8: what a
# server with 95 % of its memory and requests a fifth shorter than the row says would still not hold
PULL = 0.05  # how strongly fitted scales are drawn to 1
TERMS = {  # what a fit may scale: name -> terms of a calibration
    "products": ("qkv_proj", "o_proj", "gate_up_proj", "down_proj", "lm_head"),
    "small kernels": ("elementwise", "sampler"),
    "links": ("all_reduce", "logits_gather"),
    "decode attention": ("decode_attention",),
    "prefill attention": ("prefill_attention",),
    "constant": ("constant_ps", "host"),
}


@dataclass(frozen=True, slots=True)
class CurveReport:
    """told: simulated (TTFT, TPOT) of each point, ms; skipped: reason -> rows; notes: what was decided and why."""

    points: list[CurvePoint]
    told: list[tuple[float, float]]
    skipped: dict[str, int]
    notes: list[str]
    fitted: dict[str, Any] | None = None

    def errors(self, keep: Callable[[CurvePoint], bool] = lambda _: True) -> dict[str, dict[str, float]]:
        """MAPE, median, p90 and bias of TTFT and TPOT over some points."""
        some = [(point, told) for point, told in zip(self.points, self.told, strict=True) if keep(point)]
        found = {}
        for index, name in enumerate(("ttft", "tpot")):
            error = np.array([told[index] / (point.ttft_ms, point.tpot_ms)[index] - 1.0 for point, told in some])
            size = np.abs(error)
            parts = {
                "mape": size.mean(),
                "median": np.median(size),
                "p90": np.quantile(size, 0.9),
                "bias": error.mean(),
            }
            found[name] = {**{key: float(value) for key, value in parts.items()}, "n": len(error)}
        return found

    def document(self) -> dict[str, Any]:
        """For machines."""
        rows = [
            {**point._asdict(), "simulated_ttft_ms": told[0], "simulated_tpot_ms": told[1]}
            for point, told in zip(self.points, self.told, strict=True)
        ]
        groups = {f"{m} on {g}": self.errors(lambda p, m=m, g=g: (p.model, p.gpu) == (m, g)) for m, g in self.groups()}  # type: ignore[misc]
        return {"errors": groups, "fitted": self.fitted, "skipped": self.skipped, "notes": self.notes, "points": rows}

    def groups(self) -> list[tuple[str, str]]:
        """Pairs of model and GPU."""
        return sorted({(point.model, point.gpu) for point in self.points})


def validate_curves(
    path: Path,
    *,
    calibrations: Iterable[Path] = (),
    fit: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> CurveReport:
    """Simulate every point of the file with the embedded calibrations, or those given.

    fit: scale the terms of the calibrations to all other curves, the embedded ones among them, and predict each curve
    with that, too.
    """
    points, skipped = read_curves(path)
    notes: list[str] = []
    embedded = _by_server(read_curves(data_dir() / "calibration" / "runs" / "silicon_sample.csv.gz")[0])
    mine = _by_server(points)
    servers = {key: _with_kv_dtype(group, embedded.get(key, []), notes) for key, group in mine.items()}
    given = {(c["model"], c["gpu"], c["tp"], c["dtype"]): c for c in (load_calibration(file) for file in calibrations)}
    points = [point for group, _ in servers.values() for point in group]
    kept = [(point, _calibration(point, given)) for point in points]
    if missing := sum(calibration is None for _, calibration in kept):
        skipped["without a calibration"] = missing
    work = [(point, calibration) for point, calibration in kept if calibration is not None]
    if not work:
        raise CalibrationError("no calibration fits a row", where=str(path), expected="--calibration FILE")
    told = []
    for number, (point, calibration) in enumerate(work, 1):
        told.append(simulated(point, calibration))
        if progress is not None:
            progress(number, len(work))
    fitted = None
    if fit:
        curves = {point.curve for point in points}
        others = [point for _, rest in servers.values() for point in rest if point.curve not in curves]
        fitted = fitted_left_out([point for point, _ in work], _parts(work, told), *_of_others(others, given))
    return CurveReport([point for point, _ in work], told, skipped, notes, fitted)


def _of_others(
    points: list[CurvePoint], given: dict[tuple[str, str, int, str], dict[str, Any]]
) -> tuple[list[CurvePoint], Floats]:
    """Embedded points to fit to, and their parts."""
    found = [(point, _calibration(point, given)) for point in points]
    work = [(point, calibration) for point, calibration in found if calibration is not None]
    return [point for point, _ in work], _parts(work, [simulated(*one) for one in work])


def _parts(work: list[tuple[CurvePoint, dict[str, Any]]], told: list[tuple[float, float]]) -> Floats:
    """What each group of terms adds to the TPOT of each point, (points, groups)."""
    rows = [[_share(*one, names, tpot) for names in TERMS.values()] for one, (_, tpot) in zip(work, told, strict=True)]
    return np.array(rows).reshape(len(rows), len(TERMS))


def _by_server(points: list[CurvePoint]) -> dict[tuple[str, str, str], list[CurvePoint]]:
    groups: dict[tuple[str, str, str], list[CurvePoint]] = {}
    for point in points:
        groups.setdefault((point.model, point.gpu, point.dtype), []).append(point)
    return groups


def _with_kv_dtype(
    points: list[CurvePoint], embedded: list[CurvePoint], notes: list[str]
) -> tuple[list[CurvePoint], list[CurvePoint]]:
    """FP8 KV cache where measured rows could not have been served with another: by Little's law.

    Requests in flight are concurrency times the share of its life that a request is not waiting for its first token.
    embedded: what sagasim carries of the same server, evidence as well; returned with the same KV cache.
    """
    first = points[0]
    if first.dtype != "fp8":
        return points, embedded
    model, gpu = load_model(first.model), load_gpu(first.gpu)
    most = 0.0
    for point in (*points, *embedded):
        life = point.ttft_ms + point.tpot_ms * (point.osl - 1)
        tokens = point.concurrency * (1.0 - point.ttft_ms / life) * (point.isl + point.osl / 2)
        room = kv_blocks(model, gpu, point.tp, MEMORY, BUDGET, "fp8") * BLOCK_TOKENS
        most = max(most, tokens / room if room > 0 else 0.0)
    where = f"{first.model} on {first.gpu}"
    if most <= MORE_THAN_BF16:
        notes.append(f"{where}: FP8 weights, BF16 KV cache (at most {most:.0%} of its room was in flight)")
        return points, embedded
    notes.append(f"{where}: FP8 weights and KV cache ({most:.0%} of a BF16 cache's room was in flight)")
    changed = [[point._replace(dtype="fp8-kvfp8") for point in group] for group in (points, embedded)]
    return changed[0], changed[1]


def _calibration(point: CurvePoint, given: dict[tuple[str, str, int, str], dict[str, Any]]) -> dict[str, Any] | None:
    """The calibration of a point: given or embedded; that of a BF16 cache stands in for an FP8 one."""
    for dtype in (point.dtype, point.dtype.removesuffix("-kvfp8")):
        key = (point.model, point.gpu, point.tp, dtype)
        if key in given:
            return given[key]
        path = data_dir() / "calibration" / f"{point.gpu}-{point.model}-tp{point.tp}-{dtype}.json"
        if path.is_file():
            return load_calibration(path)
    return None


def simulated(point: CurvePoint, calibration: dict[str, Any]) -> tuple[float, float]:
    """Mean TTFT and TPOT of a point, ms: `concurrency` clients, each sending REQUESTS requests one after another."""
    stream = Stream(0, "lengths", *map(str, point[:7]))

    def length(mean: int) -> int:
        spread = int(mean * SPREAD)
        return max(2, stream.integer(mean - spread, mean + spread))

    tasks = [
        Task(f"request {number}", (Call("call", length(point.isl), length(point.osl)),))
        for number in range(REQUESTS * point.concurrency)
    ]
    model, gpu = load_model(point.model), load_gpu(point.gpu)
    config = Config(
        gpus=point.tp,
        tp=point.tp,
        gpu=point.gpu,
        model=point.model,
        dtype=point.dtype,
        async_scheduling=point.asynchronous,
        arrivals="closed",
        concurrency=point.concurrency,
        stop="length",
        prefix_caching=False,
        max_num_batched_tokens=BUDGET,
        max_num_seqs=1024,
        max_model_len=max(task.max_tokens for task in tasks),
        num_gpu_blocks_override=kv_blocks(model, gpu, point.tp, MEMORY, BUDGET, point.dtype) + 1,
    )
    calls = simulate(config, tasks, calibration=calibration).calls
    sent, first, last = (np.asarray(calls[name]) * 1e-9 for name in ("submitted_ps", "first_token_ps", "finished_ps"))
    output = np.asarray(calls["output_tokens"])
    return float((first - sent).mean()), float(((last - first) / (output - 1)).mean())


def _share(point: CurvePoint, calibration: dict[str, Any], names: tuple[str, ...], tpot_ms: float) -> float:
    """TPOT that some terms account for, ms: TPOT is homogeneous in all times, so such parts add up to it."""
    step = 0.1
    slower = simulated(point, _scaled(calibration, names, 1.0 + step))[1]
    return max(0.0, (slower - tpot_ms) / step)


def _scaled(calibration: dict[str, Any], names: tuple[str, ...], by: float) -> dict[str, Any]:
    """The calibration with some of its terms slower."""

    def times(value: Any) -> Any:
        return [times(item) for item in value] if isinstance(value, list) else round(value * by)

    keys = ("ps", "base_ps", "per_cached_token", "per_sequence_ps", "per_token_ps", "empty_tile_ps")

    def slower(table: dict[str, Any]) -> dict[str, Any]:
        return {**table, **{key: times(table[key]) for key in keys if key in table}}

    changed = dict(calibration)
    for name in names:
        if isinstance(changed.get(name), dict):
            changed[name] = slower(changed[name])
        elif name in changed:
            changed[name] = times(changed[name])
    for group in ("token_terms", "sequence_terms"):
        changed[group] = [slower(term) if term["name"] in names else term for term in changed[group]]
    return changed


def fitted_left_out(
    points: list[CurvePoint], parts: Floats, others: Sequence[CurvePoint] = (), other_parts: Floats | None = None
) -> dict[str, Any]:
    """Each curve predicted with terms scaled, not below 0, to the other curves of the same model and GPU.

    parts: (points, terms) as _parts gives them; others: points to fit to that are not predicted.
    """
    from sagasim.calibrate.fitting import scales_near_one

    every = [*points, *others]
    rows = parts if other_parts is None or not len(other_parts) else np.concatenate([parts, other_parts])
    real = np.array([point.tpot_ms for point in every])
    found: dict[str, Any] = {}
    for server in sorted({(point.model, point.gpu) for point in points}):
        own = np.array([(point.model, point.gpu) == server for point in every])
        error: list[float] = []
        for curve in sorted({point.curve for point in points if (point.model, point.gpu) == server}):
            here = np.array([point.curve == curve for point in every])
            if (rest := own & ~here).any():
                scales = scales_near_one(rows[rest], real[rest], pull=PULL)
                error += (rows[here] @ scales / real[here] - 1.0)[: sum(here[: len(points)])].tolist()
        if error:
            size = np.abs(error)
            told = {"mape": size.mean(), "p90": np.quantile(size, 0.9), "bias": np.mean(error)}
            found[" on ".join(server)] = {**{key: float(value) for key, value in told.items()}, "n": len(error)}
    return found


def curves_text(report: CurveReport, aligned: Any) -> str:
    """Tables for the terminal; aligned: of sagasim.report."""
    rows = [
        [
            "model",
            "GPU",
            "TP",
            "in/out",
            "clients",
            "TPOT real",
            "told (ms)",
            "error",
            "TTFT real",
            "told (ms)",
            "error",
        ]
    ]
    for point, (ttft, tpot) in zip(report.points, report.told, strict=True):
        pairs = ((point.tpot_ms, tpot), (point.ttft_ms, ttft))
        cells = [text for real, told in pairs for text in (f"{real:.2f}", f"{told:.2f}", f"{told / real - 1.0:+.1%}")]
        rows.append([point.model, point.gpu, str(point.tp), f"{point.isl}/{point.osl}", str(point.concurrency), *cells])
    lines = [aligned(rows, left=2), ""]
    rows = [["", "", "MAPE", "median", "p90", "bias", "n"]]
    for model, gpu in report.groups():
        for name, told in report.errors(lambda p, m=model, g=gpu: (p.model, p.gpu) == (m, g)).items():  # type: ignore[misc]
            cells = [f"{told[key]:.1%}" for key in ("mape", "median", "p90")]
            rows.append([f"{model} on {gpu}", name.upper(), *cells, f"{told['bias']:+.1%}", f"{told['n']:.0f}"])
        fitted = (report.fitted or {}).get(f"{model} on {gpu}")
        if fitted:
            cells = [
                f"{fitted['mape']:.1%}",
                "-",
                f"{fitted['p90']:.1%}",
                f"{fitted['bias']:+.1%}",
                f"{fitted['n']:.0f}",
            ]
            rows.append([f"{model} on {gpu}", "TPOT, terms scaled to the other curves", *cells])
    lines += [aligned(rows, left=2), "", *report.notes]
    lines += [f"left out: {count} rows, {reason}" for reason, count in report.skipped.items()]
    return "\n".join(lines)
