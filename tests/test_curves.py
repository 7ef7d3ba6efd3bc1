"""Concurrency curves are read, simulated and fitted; closed forms where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sagasim.cost import constant_calibration
from sagasim.curve_points import CurvePoint, read_curves
from sagasim.curves import (
    TERMS,
    CurveReport,
    _scaled,
    _with_kv_dtype,
    curves_text,
    fitted_left_out,
    simulated,
    validate_curves,
)
from sagasim.errors import TraceError
from sagasim.hardware import data_dir
from sagasim.report import aligned

SAMPLE = data_dir() / "calibration" / "runs" / "silicon_sample.csv.gz"
HEADER = "model_path,system,backend,backend_version,precision,mode,isl,osl,batch_size,tp_size"
HEADER += ",silicon_ttft_ms,silicon_tpot_ms"
POINT = CurvePoint("llama-3.1-70b", "h200", "fp8", 1, 1000, 100, 4, 100.0, 20.0)


def csv(folder: Path, *rows: str) -> Path:
    path = folder / "curves.csv"
    path.write_text("\n".join([HEADER, *rows]) + "\n")
    return path


def test_rows_are_read_or_left_out_for_a_reason(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "meta-llama/Llama-3.1-70B,h200_sxm,vllm,,fp8,agg,1024,512,8,4,100.5,10.25",
        "Qwen/Qwen3-32B,h100_sxm,vllm,0.12.0,,agg,1024,512,8,2,100,10",
        "meta-llama/Llama-3.1-70B,h200_sxm,trtllm,1.0,fp8,agg,1024,512,8,4,100,10",
        "nvidia/Llama-3.1-8B-Instruct-FP8,h200_sxm,vllm,0.12.0,fp8,agg,1024,512,8,1,100,10",
        "openai/gpt-oss-120b,h200_sxm,vllm,0.18.0,fp4,agg,1024,512,8,4,100,10",
        "meta-llama/Llama-3.1-70B,b300_sxm,vllm,,fp8,agg,1024,512,8,4,100,10",
        "meta-llama/Llama-3.1-70B,h200_sxm,vllm,,fp8,agg,1024,512,8,4,,10",
    )
    points, skipped = read_curves(path)
    assert points == [
        CurvePoint("llama-3.1-70b", "h200", "fp8", 4, 1024, 512, 8, 100.5, 10.25, asynchronous=True),
        CurvePoint("qwen3-32b", "h100", "bf16", 2, 1024, 512, 8, 100.0, 10.0, asynchronous=False),
    ]
    assert sum(skipped.values()) == 5
    assert skipped["batch_size is not the steady concurrency"] == 1
    with pytest.raises(TraceError, match="no row can be simulated"):
        read_curves(csv(tmp_path, "a/b,h200_sxm,vllm,,fp8,agg,1,2,1,1,1,1"))  # the same path, other rows


def test_a_point_of_constant_steps_is_known() -> None:
    """Four clients, steps of 10 ms whatever is in them: TPOT is a step; a call is seen in the step after next."""
    ttft, tpot = simulated(POINT, constant_calibration(10**10))
    assert tpot == pytest.approx(10.0, rel=1e-9)
    assert 10.0 <= ttft <= 30.0


def test_parts_add_up_to_the_whole() -> None:
    """TPOT is homogeneous in all times, so slowing every term slows it as much."""
    from sagasim.cost import load_calibration

    cal = load_calibration(data_dir() / "calibration" / "h200-llama-3.1-70b-tp4-fp8.json")
    point = POINT._replace(tp=4)
    everything = tuple(name for names in TERMS.values() for name in names)
    whole = simulated(point, cal)[1]
    assert simulated(point, _scaled(cal, everything, 1.1))[1] == pytest.approx(1.1 * whole, rel=1e-3)
    assert simulated(point, _scaled(cal, ("decode_attention",), 1.1))[1] < 1.1 * whole


def test_the_kv_cache_is_fp8_only_where_it_must_have_been() -> None:
    notes: list[str] = []
    easy = [POINT, POINT._replace(concurrency=16)]
    assert _with_kv_dtype(easy, [], notes) == (easy, [])
    crowded = POINT._replace(isl=8192, osl=1024, concurrency=64, ttft_ms=3000.0, tpot_ms=75.0)
    for mine, embedded in (([*easy, crowded], []), (easy, [crowded])):  # either is evidence of the server
        told = _with_kv_dtype(mine, embedded, notes)
        assert {point.dtype for group in told for point in group} == {"fp8-kvfp8"}
    waiting = crowded._replace(ttft_ms=400_000.0)  # most requests were in the queue
    assert _with_kv_dtype([*easy, waiting], [], notes) == ([*easy, waiting], [])
    assert "BF16 KV cache" in notes[0]


def test_curves_are_predicted_from_the_others() -> None:
    points = [
        POINT._replace(concurrency=clients, isl=isl, tpot_ms=tpot)
        for isl, clients, tpot in ((1000, 1, 3.0), (1000, 2, 4.0), (2000, 1, 5.0), (2000, 4, 9.0))
    ]
    parts = np.array([[point.tpot_ms / 2, 0.0, 0.0, point.tpot_ms / 2, 0.0, 0.0] for point in points])
    told = fitted_left_out(points, parts)["llama-3.1-70b on h200"]
    assert told["n"] == 4
    assert told["mape"] == pytest.approx(0.0, abs=1e-9)
    one = fitted_left_out(points[:1], 2 * parts[:1], points[1:], 2 * parts[1:])["llama-3.1-70b on h200"]
    assert one["n"] == 1  # predicted from curves that are not predicted themselves
    assert one["mape"] < 0.1
    assert fitted_left_out(points[:1], parts[:1]) == {}


def test_an_unseen_curve_is_simulated_and_reported(tmp_path: Path) -> None:
    path = csv(tmp_path, *(f"meta-llama/Llama-3.1-70B,h200_sxm,vllm,,fp8,agg,2048,256,{c},8,150,10" for c in (4, 8)))
    report = validate_curves(path)
    assert [point.concurrency for point in report.points] == [4, 8]
    assert report.told[0][1] < report.told[1][1]
    assert report.document()["errors"]["llama-3.1-70b on h200"]["tpot"]["n"] == 2
    assert "llama-3.1-70b on h200" in curves_text(report, aligned)


def test_errors_by_hand() -> None:
    report = CurveReport([POINT, POINT], [(110.0, 22.0), (100.0, 19.0)], {}, [])
    told = report.errors()
    assert told["tpot"]["mape"] == pytest.approx((0.1 + 0.05) / 2)
    assert told["tpot"]["bias"] == pytest.approx((0.1 - 0.05) / 2)
    assert told["ttft"]["mape"] == pytest.approx(0.05)


@pytest.mark.slow
def test_measured_curves_are_within_the_targets() -> None:
    report = validate_curves(SAMPLE, fit=True)
    fitted = report.fitted or {}
    for gpu, without, with_fit in (("h200", 0.10, 0.05), ("h100", 0.15, 0.08)):
        own = report.errors(lambda p, gpu=gpu: (p.model, p.gpu) == ("llama-3.1-70b", gpu))  # type: ignore[misc]
        assert own["tpot"]["mape"] <= without
        assert fitted[f"llama-3.1-70b on {gpu}"]["mape"] <= with_fit
