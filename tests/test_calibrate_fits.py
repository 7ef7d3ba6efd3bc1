"""Fits on tables made here: curves of their own kind are found, every source's layout is read, mistakes are told."""

from __future__ import annotations

import gzip
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim.calibrate import SOURCES, fit, write_calibration
from sagasim.calibrate.attention import cached_structure, mixed_fit, mixed_us, prefill_fit, skew_share
from sagasim.calibrate.fitting import (
    Surface,
    fewest_knots,
    increasing_fit,
    increasing_median,
    left_out,
    never_falling,
    non_negative,
    residual,
    scales_near_one,
)
from sagasim.calibrate.linear import link_us, reached_experts
from sagasim.calibrate.measured import read_measured
from sagasim.calibrate.rank import checked_rank
from sagasim.calibrate.tables import columns, find_table, read_table
from sagasim.calibrate.told import Told
from sagasim.cost import SHARE, StepCost, checked_calibration, load_calibration
from sagasim.errors import CalibrationError
from sagasim.hardware import data_dir, load_gpu, load_model

SOURCE = data_dir() / "calibration" / "sources" / "h200_sxm"
MEASURED = "kernel,dtype,params,unit,median,p10,p90,n,device,driver,torch,triton,commit,date"


def one_line(error: pytest.ExceptionInfo[CalibrationError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- curves


@given(st.lists(st.floats(0.1, 1e3), min_size=6, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_fit_is_never_negative_and_never_falls(y: list[float]) -> None:
    values = increasing_fit(np.arange(1.0, len(y) + 1), np.array(y), np.array([1.0, 2.0, 4.0, 8.0]))
    assert values[0] >= 0
    assert (np.diff(values) >= 0).all()


def test_a_fit_finds_a_curve_of_its_own_kind() -> None:
    x, knots = np.arange(1.0, 65.0), np.array([1.0, 8.0, 32.0, 64.0])
    true = np.array([3.0, 3.0, 10.0, 50.0])
    assert increasing_fit(x, np.interp(x, knots, true), knots) == pytest.approx(true)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_no_never_falling_curve_is_closer(y: list[int]) -> None:
    """Against every never falling choice of values that were measured, among which a best one is."""
    measured = np.array(y, dtype=np.float64)
    values = never_falling(np.arange(1.0, len(y) + 1), measured)
    assert (np.diff(values) >= 0).all()
    every = itertools.combinations_with_replacement(sorted(set(y)), len(y))
    best = min(np.abs(np.array(one) / measured - 1).sum() for one in every)
    assert np.abs(values / measured - 1).sum() == pytest.approx(best)


def test_rows_of_one_size_are_pooled() -> None:
    assert never_falling(np.array([2.0, 1.0, 2.0]), np.array([5.0, 1.0, 3.0])).tolist() == [3.0, 1.0, 3.0]


@given(st.lists(st.floats(1, 100), min_size=3, max_size=12))
@settings(max_examples=40, deadline=None)
def test_a_median_fit_with_every_knot_is_the_isotonic_one(y: list[float]) -> None:
    x, measured = np.arange(1.0, len(y) + 1), np.array(y)
    fitted = increasing_median(x, measured, x)
    least = np.abs(never_falling(x, measured) / measured - 1).sum()
    assert np.abs(fitted / measured - 1).sum() == pytest.approx(least, abs=1e-6)


def test_outliers_do_not_draw_a_median_fit() -> None:
    x, y = np.arange(1.0, 10.0), np.array([2.0, 2.0, 9.0, 2.0, 2.0, 2.0, 9.0, 2.0, 2.0])
    assert increasing_median(x, y, np.array([1.0, 9.0])) == pytest.approx([2.0, 2.0])
    assert increasing_fit(x, y, np.array([1.0, 9.0]))[0] > 2.05


@given(st.lists(st.integers(0, 5), min_size=2, max_size=20))
def test_knots_on_a_line_are_left_out_without_a_trace(steps: list[int]) -> None:
    knots, values = np.arange(1.0, len(steps) + 1), np.cumsum(np.array(steps, dtype=np.float64))
    fewer = fewest_knots(knots, values)
    assert np.interp(knots, *fewer) == pytest.approx(values)
    assert len(fewer[0]) == 2 + int((np.diff(values, 2) != 0).sum())


def test_rotating_the_rows_changes_no_solution() -> None:
    rng = np.random.default_rng(1)
    columns_, y = rng.random((50, 3)) + 0.1, rng.random(50) + 0.5  # enough rows to be rotated
    few = non_negative(columns_, y, np.zeros(3))
    best = ((columns_ @ few / y - 1) ** 2).sum()
    for other in rng.random((200, 3)):
        assert best <= ((columns_ @ other / y - 1) ** 2).sum() + 1e-9


def test_a_surface_meets_its_points_and_holds_the_share_beyond() -> None:
    x = np.array([1.0, 2.0, 4.0])
    surface = Surface(x[:, None], 3.0 * 10**x, 10**x)
    assert surface.us(x[:, None], 10**x) == pytest.approx(3.0 * 10**x, rel=1e-6)
    far = np.array([9.0])
    assert surface.us(far[:, None], 10**far) == pytest.approx(3.0 * 10**far, rel=1e-6)


def test_a_thin_plate_finds_a_plane_and_what_spans_none_is_taken_too() -> None:
    grid = np.stack([axis.ravel() for axis in np.meshgrid([0.0, 1.0, 3.0], [0.0, 2.0, 5.0])], axis=1)
    us = np.exp(0.3 * grid[:, 0] - 0.1 * grid[:, 1])
    there = np.array([[2.0, 1.0], [0.5, 4.0]])
    plate = Surface(grid[1:], us[1:], np.ones(8), smooth=True)
    assert plate.us(there, np.ones(2)) == pytest.approx(np.exp(0.3 * there[:, 0] - 0.1 * there[:, 1]), rel=1e-4)
    line = grid[:, 1] == 0.0
    assert Surface(grid[line], us[line], np.ones(3), smooth=True).us(grid[line], np.ones(3)) == pytest.approx(us[line])


def test_scales_of_exact_parts_are_one() -> None:
    parts = np.random.default_rng(2).random((20, 4)) + 0.1
    assert scales_near_one(parts, parts.sum(axis=1), pull=0.1) == pytest.approx(np.ones(4))
    assert scales_near_one(parts, 2 * parts.sum(axis=1), pull=1e-9) == pytest.approx(2 * np.ones(4), rel=1e-3)


def test_left_out_rows_are_a_third_and_the_same_every_time() -> None:
    assert (left_out(3000) == left_out(3000)).all()
    assert 0.3 < left_out(3000).mean() < 0.37
    assert residual(np.array([1.1, 0.9]), np.ones(2)) == {"mape": 0.1, "p90": 0.1, "bias": 0.0, "n": 2}


# --- attention


def test_a_prefill_fit_finds_new_and_cached_costs() -> None:
    q, kv = (grid.ravel() for grid in np.meshgrid([16.0, 64.0, 256.0], [0.0, 100.0, 5000.0], indexing="ij"))
    curves = prefill_fit(q, kv, 5 + 0.1 * q + 0.01 * kv + 1e-4 * q * kv)
    assert curves.new == pytest.approx([6.6, 11.4, 30.6])
    assert curves.cached == pytest.approx([0.0116, 0.0164, 0.0356])


def test_a_mixed_fit_finds_decodes_and_empty_tiles() -> None:
    grids = np.meshgrid([1.0, 2.0, 4.0], [128.0, 1024.0], [64.0, 640.0], indexing="ij")
    batch, context, chunk = (grid.ravel() for grid in grids)
    alone = 3 + 0.05 * chunk
    us = alone + 2 + 0.01 * batch * context + 0.5 * batch * np.floor((chunk - 1) / 64)
    mixed = mixed_fit(batch, context, chunk, alone, us, np.zeros((10, 18)))
    assert mixed.empty_us == pytest.approx(0.5)
    assert alone + mixed_us(mixed, batch, context, chunk) == pytest.approx(us)


@given(st.floats(0, 1))
def test_the_share_of_skew_is_found(share: float) -> None:
    mean, longest = np.array([10.0, 20.0, 30.0]), np.array([20.0, 80.0, 31.0])
    assert skew_share(mean, longest, mean + share * (longest - mean)) == pytest.approx(share, abs=1e-9)


def test_a_cached_token_costs_whole_waves_of_thread_blocks() -> None:
    rank = checked_rank(load_model("llama-3.1-8b"), load_gpu("rtx4090"), 1, "bf16")  # 32 heads, 128 multiprocessors
    chunks = np.array([1.0, 256.0, 257.0, 512.0, 1024.0, 2048.0])
    assert cached_structure(rank, chunks, splits=False) == pytest.approx([256, 256, 512, 512, 1024, 2048])
    hopper = checked_rank(load_model("llama-3.1-70b"), load_gpu("h200"), 4, "bf16")
    split = cached_structure(hopper, chunks, splits=True)
    assert (np.diff(split) >= 0).all()
    assert (split >= chunks).all()  # never less work than its pairs
    assert (split <= cached_structure(hopper, chunks, splits=False)).all()  # idle multiprocessors are put to use


def test_links_and_experts_by_hand() -> None:
    assert link_us(2, np.array([1e6]), 1e9, 5.0)[0] == pytest.approx(2 * (5 + 500))
    assert link_us(4, np.array([4e6]), 1e9, 0.0)[0] == pytest.approx(6 * 1000)
    rank = checked_rank(load_model("qwen3-30b-a3b"), load_gpu("h200"), 1, "bf16")
    reached = reached_experts(rank, np.array([1.0, 16.0, 4096.0]))
    assert reached[0] == pytest.approx(8)
    assert 8 < reached[1] < 128 * (1 - (1 - 8 / 128) ** 16)
    assert reached[2] == pytest.approx(0.94 * 128)


# --- sources


def table(folder: Path, name: str, header: str, rows: list[tuple[object, ...]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"
    (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))


def profile(folder: Path, tp: int, *, attention: str = "kv_prefill") -> Path:
    """A made-up llmservingsim profile: 10 us a launch, 1 us a thousand tokens of context, products of 20 us."""
    split = folder / f"tp{tp}"
    rows: list[tuple[object, ...]] = [(0, 0, n, kv, 10 + n * kv / 1000) for n in (1, 8, 64) for kv in (16, 1024, 16384)]
    rows += [
        (q, kv + (q / 2 if attention == "prefill_key" else 0), 0, 0, 10 + q / 10 + kv / 100)
        for q in (16, 512)
        for kv in (0, 4096)
    ]
    rows += [
        (512, 256 if attention == "prefill_key" else 0, n, kv, 70 + n * kv / 500) for n in (1, 8) for kv in (16, 4096)
    ]
    table(split, "attention", f"prefill_chunk,{attention},n_decode,kv_decode,time_us", rows)
    names = ("layernorm", "qkv_proj", "rotary_emb", "o_proj", "final_layernorm", "embedding")
    table(
        split, "dense", "layer,tokens,time_us", [(name, t, 20 + t / 10) for name in names for t in (1, 16, 256, 2048)]
    )
    table(
        split,
        "per_sequence",
        "layer,sequences,time_us",
        [(n, s, 30 + s) for n in ("lm_head", "sampler") for s in (1, 64)],
    )
    (folder / "meta.yaml").write_text("hardware: RTXPRO6000\nvllm_version: 0.19.0\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("attention", ["kv_prefill", "prefill_key"])
def test_a_profile_of_an_unseen_mixture_of_experts_is_fitted(tmp_path: Path, attention: str) -> None:
    folder = profile(tmp_path, 2, attention=attention)
    rows = [(1, t, e, 50 + e + t / 10) for t in (1, 64, 2048) for e in (8, 64, 128)]
    table(folder / "tp1", "moe", "ep,tokens,activated_experts,time_us", [*rows, (4, 1, 4, 1)])
    cal = checked_calibration(fit("llmservingsim", folder, "rtxpro6000", "qwen3-30b-a3b", 2), "x")
    terms = {term["name"]: term for term in cal["token_terms"]}
    assert terms["all_reduce"]["status"] == "derived"
    assert terms["experts"]["status"] == "derived"  # profiled on one GPU, split over two
    assert terms["qkv_proj"]["status"] == "published"
    assert "down_proj" not in terms
    told = Told(cal, 48)
    assert told.decode(np.array([8.0]), np.array([1025.0]))[0] == pytest.approx(18.2, rel=0.02)
    assert told.prefill(np.array([512.0]), np.array([4096.0]))[0] == pytest.approx(102.2, rel=0.02)
    assert told.kernel("layernorm", np.array([256.0]))[0] == pytest.approx(45.6)  # one of two in a layer
    cost = StepCost(cal, max_tokens=2048, max_seqs=64, asynchronous=True)
    assert cost.step(8, 8000, 1000, [(512, 0)]) > cost.step(8, 8000, 1000, []) > 0


def test_a_rank_s_own_share_of_the_experts_is_taken_where_it_was_profiled(tmp_path: Path) -> None:
    folder = profile(tmp_path, 2)
    rows = [(ep, t, e, 1000 // ep) for ep in (1, 2) for t in (1, 2048) for e in (4, 64)]
    table(folder / "tp1", "moe", "ep,tokens,activated_experts,time_us", rows)
    cal = fit("llmservingsim", folder, "rtxpro6000", "qwen3-30b-a3b", 2)
    experts = next(term for term in cal["token_terms"] if term["name"] == "experts")
    assert experts["status"] == "published"
    assert experts["ps"][0] == 48 * 500 * 10**6


def test_members_of_a_profile_are_optional(tmp_path: Path) -> None:
    full = fit("llmservingsim", profile(tmp_path / "a", 1), "rtxpro6000", "llama-3.1-8b", 1)
    assert {term["status"] for term in full["token_terms"] if term["name"] == "gate_up_proj"} == {"derived"}
    for name in ("attention", "dense", "per_sequence"):
        folder = profile(tmp_path / name, 1)
        (folder / "tp1" / f"{name}.csv.gz").unlink()
        less = checked_calibration(fit("llmservingsim", folder, "rtxpro6000", "llama-3.1-8b", 1), "x")
        every = [*less["token_terms"], *less["sequence_terms"], less["decode_attention"], less["prefill_attention"]]
        assert "derived" in {entry["status"] for entry in every}
        cost = StepCost(less, max_tokens=2048, max_seqs=64, asynchronous=True)
        assert cost.step(8, 8000, 1000, [(512, 300)]) > 0


def test_a_profile_as_others_write_it(tmp_path: Path) -> None:
    """Plain CSV with a byte order mark and Windows line ends, columns more, rows that failed, a GPU named in full."""
    usual = fit("llmservingsim", profile(tmp_path / "a", 1), "rtxpro6000", "llama-3.1-8b", 1)
    folder = profile(tmp_path / "b", 1)
    for path in (folder / "tp1").glob("*.csv.gz"):
        header, *rows = gzip.decompress(path.read_bytes()).decode().splitlines()
        failed = ",".join("0" if part.replace(".", "").isdigit() else part for part in rows[0].split(","))
        lines = [f"comment,{header}", *(f"x y,{row}" for row in rows), f",{failed}"]
        path.with_suffix("").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", encoding="utf-8", newline="")
        path.unlink()
    (folder / "meta.yaml").write_text(
        "gpu: x\nhardware: 'NVIDIA RTX PRO 6000 Server Edition'  # big\n", encoding="utf-8"
    )
    told = fit("llmservingsim", folder, "rtxpro6000", "llama-3.1-8b", 1)
    for key in ("token_terms", "sequence_terms", "decode_attention", "mixed_attention", "prefill_attention"):
        assert told[key] == usual[key], key
    (folder / "meta.yaml").unlink()
    assert fit("llmservingsim", folder, "rtxpro6000", "llama-3.1-8b", 1)["decode_attention"] == told["decode_attention"]


def test_a_skew_table_with_gaps_is_used_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = profile(tmp_path, 1)
    rows = [(0, 10, 20, 15), (0, 10, "", 11), (64, 10, 20, 20)]
    table(folder / "tp1", "skew", "pc,t_mean_us,t_max_us,t_skew_us", rows)
    told = fit("llmservingsim", folder, "rtxpro6000", "llama-3.1-8b", 1)
    assert told["decode_attention"]["skew"] == 1 << (SHARE - 1)
    assert told["provenance"]["residuals"]["skew"]["n"] == 1


def test_mistakes_of_a_profile_are_told(tmp_path: Path) -> None:
    folder = profile(tmp_path, 1)
    with pytest.raises(CalibrationError, match="no folder 'tp2'; expected a profile of this split; there: tp1"):
        fit("llmservingsim", folder, "rtxpro6000", "llama-3.1-8b", 2)
    with pytest.raises(CalibrationError, match="measured on 'rtxpro6000', not on 'rtx4090'"):
        fit("llmservingsim", folder, "rtx4090", "llama-3.1-8b", 1)
    table(folder / "tp1", "attention", "prefill_chunk,n_decode,kv_decode,time_us", [(0, 1, 16, 9)])
    with pytest.raises(CalibrationError, match="no column 'kv_prefill'"):
        fit("llmservingsim", folder, "rtxpro6000", "llama-3.1-8b", 1)


def measured(folder: Path, *more: str) -> Path:
    folder.mkdir(exist_ok=True)
    rows: list[tuple[str, dict[str, object], str, float]] = []
    heads = {"heads": 32, "kv_heads": 8, "head_dim": 128, "page": 16}
    grid = [(batch, context) for batch in (1, 8, 64) for context in (128, 4096, 65536)]
    rows += [("decode_attention", {"batch": b, "context": c, **heads}, "s", 1e-5 + b * c * 2e-9) for b, c in grid]
    chunks = ((128, 0), (2048, 0), (128, 8192), (2048, 8192))
    cost = {(q, kv): 1e-5 + q * (q / 2 + kv) * 1e-10 for q, kv in chunks}
    rows += [("prefill_attention", {"chunk": q, "prefix": kv, **heads}, "s", cost[q, kv]) for q, kv in chunks]
    for m in (1, 64, 1024, 8192):
        for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)):
            rows.append(("gemm", {"m": m, "n": n, "k": k}, "s", 5e-6 + n * k * 6e-13 + m * n * k * 4e-15))
    rows.append(("decode_attention", {"batch": 8, "context": 4096, **heads, "skew": 8}, "s", 1.0))  # not of one length
    rows += [("host_step", {"sequences": n}, "s", 1e-3 + n * 4e-6) for n in (1, 32, 256)]
    rows += [("elementwise", {"tokens": t, "hidden": 4096}, "s", 3e-6 + t * 1e-8) for t in (1, 8192)]
    rows += [
        ("copy_bandwidth", {"bytes": 2**30}, "bytes/s", 4.2e12),
        ("all_reduce", {"gpus": 2, "bytes": 2**20}, "s", 2e-5),
    ]
    rows += [("kv_copy", {"piece_bytes": 65536, "pieces": 64, "direction": "d2h", "method": "auto"}, "s", 9e-5)]
    rows += [
        ("decode_while_copying", {"batch": 8, "context": 4096, "copying": "d2h"}, "s", 1.5 * (1e-5 + 8 * 4096 * 2e-9))
    ]
    lines = [MEASURED]
    for kernel, params, unit, median in rows:
        text = json.dumps(params).replace('"', '""')
        lines.append(
            f'{kernel},bf16,"{text}",{unit},{median!r},{median!r},{median!r},20,H200,570,2.11,3.6,abc,2026-01-01'
        )
    (folder / "h200.csv").write_text("\n".join([*lines, *more]) + "\n", encoding="utf-8")
    return folder


def test_our_own_measurements_are_fitted(tmp_path: Path) -> None:
    cal = checked_calibration(fit("measured", measured(tmp_path), "h200", "llama-3.1-8b", 1), "x")
    assert cal["provenance"]["status"] == "measured"
    assert {term["name"]: term["status"] for term in cal["token_terms"]}["qkv_proj"] == "measured"
    assert (
        cal["decode_attention"]["status"] == cal["prefill_attention"]["status"] == cal["host"]["status"] == "measured"
    )
    assert cal["host"]["base_ps"] == pytest.approx(10**9, rel=1e-3)
    assert cal["host"]["per_sequence_ps"] == pytest.approx(4 * 10**6, rel=1e-2)
    told = Told(cal, 32)
    assert told.decode(np.array([8.0]), np.array([4096.0]))[0] == pytest.approx(10 + 65.5, rel=0.01)
    assert told.prefill(np.array([2048.0]), np.array([8192.0]))[0] == pytest.approx(10 + 1887.4, rel=0.02)
    assert cal["transfers"]["decode_slowdown_percent"] == {"d2h": 50}
    assert cal["transfers"]["d2h auto"] == [[65536, 64, 90_000_000]]
    terms = {term["name"]: term for term in (*cal["token_terms"], *cal["sequence_terms"])}
    assert terms["elementwise"]["ps"][0] == 32 * 3_010_000  # a measurement holds the small kernels of a layer
    assert terms["lm_head"]["status"] == "derived"  # no row has its shape


def test_other_splits_of_measured_kernels_are_derived(tmp_path: Path) -> None:
    cal = checked_calibration(fit("measured", measured(tmp_path), "h200", "llama-3.1-8b", 2), "x")
    assert cal["decode_attention"]["status"] == "derived"
    assert {term["name"]: term["status"] for term in cal["token_terms"]}["all_reduce"] == "derived"  # one size only


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("gemm,bf16,{},s,1e-5,0,0,1,H200,1,1,1,a,b", "a parameter 'm' is missing or no number"),
        ("gemm,bf16,nothing,s,1e-5,0,0,1,H200,1,1,1,a,b", "params is no JSON object"),
        ("gemm,bf16,{},hours,1e-5,0,0,1,H200,1,1,1,a,b", "the unit is unknown"),
        ("gemm,bf16,{},s,0,0,0,1,H200,1,1,1,a,b", "the median is not above 0"),
        ("gemm,bf16,{},s,1,0,0,1,interpreter (not a measurement),1,1,1,a,b", "a time of the interpreter"),
    ],
)
def test_a_wrong_measurement_is_told(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(CalibrationError) as error:
        fit("measured", measured(tmp_path, line), "h200", "llama-3.1-8b", 1)
    assert told in one_line(error)


def test_rates_and_times_of_measurements(tmp_path: Path) -> None:
    found = read_measured(measured(tmp_path))
    assert found["copy_bandwidth"].median[0] == pytest.approx(4.2e12)
    assert found["host_step"].median[0] == pytest.approx(1004.0)
    with pytest.raises(CalibrationError, match="no CSV file"):
        read_measured(tmp_path.parent / "none")


def test_attention_of_the_paper_s_cluster_is_scaled_and_says_so() -> None:
    cal = load_calibration(data_dir() / "calibration" / "a100-llama-3-70b-tp4-bf16.json")
    other = load_calibration(data_dir() / "calibration" / "h100-llama-3.1-70b-tp4-bf16.json")
    slower = load_gpu("h100").mem_bandwidth_bytes_per_s / load_gpu("a100").mem_bandwidth_bytes_per_s
    for mine, theirs in zip(cal["decode_attention"]["ps"][3], other["decode_attention"]["ps"][3], strict=True):
        assert mine == pytest.approx(theirs * slower, abs=1000)
    assert cal["decode_attention"]["status"] == cal["prefill_attention"]["status"] == "derived"
    assert "h100-llama-3.1-70b-tp4-bf16.json" in cal["decode_attention"]["source"]


# --- mistakes of a user


@pytest.mark.parametrize("tp", [0, 3])
def test_a_model_cannot_be_split_unevenly(tp: int) -> None:
    with pytest.raises(CalibrationError) as error:
        fit("aiconfigurator", SOURCE, "h200", "llama-3.1-8b", tp)
    assert f"over {tp} GPUs" in one_line(error)


def test_a_source_and_a_data_type_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="unknown source 'vidor'; expected 'vidur' perhaps"):
        fit("vidor", SOURCE, "h200", "llama-3.1-8b", 1)
    with pytest.raises(CalibrationError, match="unknown data type 'fp16'"):
        fit("aiconfigurator", SOURCE, "h200", "llama-3.1-8b", 1, "fp16")
    with pytest.raises(CalibrationError, match="a100 has no FP8 units"):
        checked_rank(load_model("llama-3.1-8b"), load_gpu("a100"), 1, "fp8")
    with pytest.raises(CalibrationError, match="measured on 'h200', not on 'h100'"):
        fit("aiconfigurator", SOURCE, "h100", "llama-3.1-8b", 1)
    for source in SOURCES:
        with pytest.raises(CalibrationError, match="no such folder"):
            fit(source, tmp_path / "none", "h200", "llama-3.1-8b", 1)
    with pytest.raises(CalibrationError, match="no table 'gemm'"):
        fit("aiconfigurator", tmp_path, "h200", "llama-3.1-8b", 1)
    with pytest.raises(CalibrationError, match="no table of a model with the shapes of llama-3-70b"):
        fit("vidur", tmp_path, "a100", "llama-3-70b", 4)


def test_a_broken_origin_is_told(tmp_path: Path) -> None:
    shutil.copy(SOURCE / "gemm-vllm-0.24.0.csv.gz", tmp_path)
    (tmp_path / "origin.toml").write_text("repository = 3\n", encoding="utf-8")
    with pytest.raises(CalibrationError, match=r"origin.toml: key 'repository' is missing or not a text"):
        fit("aiconfigurator", tmp_path, "h200", "llama-3.1-8b", 1)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"a,b\n2,0.5\n4\n", "rows of unequal length"),
        (b"a,b\n", "no rows"),
        (b"a,c\n2,0.5\n", "no column 'b'"),
        (b"a,b\n1,\xff\n", "cannot be read"),
    ],
)
def test_a_broken_table_is_told_with_its_file(tmp_path: Path, data: bytes, told: str) -> None:
    path = tmp_path / "nccl-1.csv"
    path.write_bytes(data)
    with pytest.raises(CalibrationError) as error:
        read_table(path, ("a", "b"))
    assert told in one_line(error)
    assert str(path) in one_line(error)


def test_tables_are_found_by_name_and_engine(tmp_path: Path) -> None:
    assert find_table(tmp_path, "gemm") is None
    for engine in ("vllm", "sglang"):
        (tmp_path / f"gemm-{engine}-1.csv").write_text("a\n1\n")
    found = find_table(tmp_path, "gemm", engine="vllm")
    assert found is not None
    assert found.name == "gemm-vllm-1.csv"
    with pytest.raises(CalibrationError, match="2 tables 'gemm'"):
        find_table(tmp_path, "gemm")


def test_a_selection_without_rows_or_with_text_is_told() -> None:
    with pytest.raises(CalibrationError, match="no row of a table fits"):
        columns({"n": np.ones(2)}, np.zeros(2, dtype=np.bool_), "n")
    with pytest.raises(CalibrationError, match="something else than numbers"):
        columns({"n": np.array([1.0, math.nan])}, np.ones(2, dtype=np.bool_), "n")


def test_a_calibration_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_calibration(tmp_path / "a.json", {"x": [1, 2]})
    assert (tmp_path / "a.json").read_text() == '{\n "x": [1, 2]\n}\n'
    with pytest.raises(CalibrationError, match="cannot be written"):
        write_calibration(tmp_path / "none" / "a.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
