"""Measuring: the file is resumable whatever happened to it, the dry run goes through all of it, the report is right."""

from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_cases import few, pytestmark, torch  # noqa: F401

from kernels import cases, measure, report
from kernels.cases import skewed
from kernels.grid import SHAPES, full_grid, tiny_grid
from kernels.rows import COLUMNS, INTERPRETER, Provenance, RowFile, RowFileError, params_text, read_rows, summarised

GPU = Provenance("Some GPU", "1.2", "2.13", "3.7", "abc")
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="a dry run needs the interpreter, chosen at import")


def written(path: Path, count: int = 3, provenance: Provenance = GPU) -> RowFile:
    file = RowFile(path, provenance)
    for i in range(count):
        file.add("gemm", "bf16", {"n": 2, "m": i, "k": 'a,"b'}, "s", [1e-5, 3e-5, 2e-5], "2026-01-01T00:00:00+00:00")
    return file


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    written(path)
    rows = read_rows(path)
    assert list(rows[0]) == list(COLUMNS)
    assert [json.loads(row["params"])["m"] for row in rows] == [0, 1, 2]
    assert rows[0]["params"] == '{"k":"a,\\"b","m":0,"n":2}'
    assert (rows[0]["median"], rows[0]["n"], rows[0]["device"], rows[0]["unit"]) == ("2e-05", "3", "Some GPU", "s")
    with path.open(encoding="utf-8", newline="") as stream:
        assert list(csv.DictReader(stream)) == rows  # any CSV reader reads it


def test_a_file_cut_anywhere_is_taken_up_again(tmp_path: Path) -> None:
    """Whatever byte a run was killed at: whole rows stay, a torn one goes, and the next append is sound."""
    whole = tmp_path / "whole.csv"
    written(whole)
    data = whole.read_bytes()
    for end in range(len(data) + 1):
        path = tmp_path / "cut.csv"
        path.write_bytes(data[:end])
        file = RowFile(path, GPU)
        kept = max(0, data[:end].count(b"\n") - 1)
        assert len(file) == kept
        assert file.repaired == (end > 0 and not data[:end].endswith(b"\n"))
        assert ("gemm", "bf16", params_text({"k": 'a,"b', "m": 0, "n": 2})) in file or kept == 0
        file.add("gemm", "bf16", {"m": 9}, "s", [1.0, 1.0], "now")
        assert len(read_rows(path)) == kept + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a,b\n1,2\n", "not a file of measurements"),
        ("kernels", "not a file of measurements"),
        (",".join(COLUMNS) + "\ngemm,bf16,{},s,1,1\n", ":2: not a measurement"),
        (",".join(COLUMNS) + "\ngemm,bf16,{},s,nan,1,1,2,d,d,t,t,c,d\n", ":2: not a measurement"),
        (",".join(COLUMNS) + "\ngemm,bf16,[],s,1,1,1,2,d,d,t,t,c,d\n", ":2: not a measurement"),
        (",".join(COLUMNS) + "\ngemm,bf16,{},hours,1,1,1,2,d,d,t,t,c,d\n", ":2: not a measurement"),
        (",".join(COLUMNS) + "\ngemm,bf16,{},s,1,1,1,2,Other GPU,d,t,t,c,d\n", "has rows of Other GPU"),
    ],
)
def test_a_file_of_something_else_stays_as_it_is(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(RowFileError, match=message):
        RowFile(path, GPU)
    assert path.read_text() == content


@few
@given(st.lists(st.floats(1e-9, 10), min_size=2, max_size=50))
def test_summaries_are_ordered_and_within_the_samples(samples: list[float]) -> None:
    median, p10, p90 = summarised(samples)
    ordered = min(samples), p10, median, p90, max(samples)
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(ordered))  # interpolation rounds


def test_summary_by_hand() -> None:
    assert summarised([float(i) for i in range(11)]) == (5.0, 1.0, 9.0)


@few
@given(st.integers(1, 300), st.integers(1, 5000), st.sampled_from((1, 2, 4, 8)))
def test_skew_keeps_the_sum(batch: int, context: int, skew: int) -> None:
    lengths = skewed(batch, context, skew)
    assert len(lengths) == batch
    assert sum(lengths) == batch * context
    assert min(lengths) >= 1
    if 1 < skew < batch:
        assert lengths[0] == max(lengths)
        assert lengths[0] == min(skew * context, batch * context - (batch - 1))


def test_the_grid_has_every_row_once_and_targets_first() -> None:
    specs = full_grid()
    keys = [(spec.kernel, params_text(spec.params)) for spec in specs]
    assert len(set(keys)) == len(keys)
    assert [spec.tier for spec in specs] == sorted(spec.tier for spec in specs)
    quick = full_grid(quick=True)
    assert specs[: len(quick)] == quick
    assert {spec.kernel for spec in quick} == set(cases.MEASURES)
    assert {spec.kernel for spec in tiny_grid()} == set(cases.MEASURES) - {"all_reduce"}


def test_the_grid_has_the_linear_layers_of_the_embedded_models() -> None:
    gemms = {(spec.params["n"], spec.params["k"]) for spec in full_grid() if spec.kernel == "gemm"}
    for name in ("Llama-3.1-8B", "Llama-3.1-70B", "Qwen3-32B"):
        for tp in (1, 2, 4, 8):
            assert set(SHAPES[name].linear(tp)) <= gemms
    assert SHAPES["Llama-3.1-70B"].linear(4) == (
        (2560, 8192),
        (8192, 2048),
        (14_336, 8192),
        (8192, 7168),
        (32_064, 8192),
    )


@NO_GPU
def test_dry_run_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every kernel, every method; rows that nobody can take for measurements; nothing measured twice."""
    path = tmp_path / "dry.csv"
    assert measure.main(["--dry-run", "--out", str(path)]) == 0
    rows = read_rows(path)
    assert Counter(row["kernel"] for row in rows) == Counter(spec.kernel for spec in tiny_grid())
    assert {row["device"] for row in rows} == {INTERPRETER}
    assert {row["unit"] for row in rows if row["kernel"] in ("copy_bandwidth", "pinned_memcpy")} == {"bytes/s"}
    assert all(row["unit"] == "s" for row in rows if row["kernel"] not in ("copy_bandwidth", "pinned_memcpy"))
    assert "min left]" in capsys.readouterr().err
    before = path.read_bytes()
    assert measure.main(["--dry-run", "--out", str(path)]) == 0
    assert path.read_bytes() == before
    assert report.main([str(path)]) == 2  # and nobody reports them
    lines = before.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])
    assert measure.main(["--dry-run", "--out", str(path), "--only", "copy"]) == 0
    assert "cut short" in capsys.readouterr().err


@NO_GPU
def test_time_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "dry.csv"
    assert measure.main(["--dry-run", "--out", str(path), "--minutes", "1e-9"]) == 0
    assert read_rows(path) == []
    assert "time is up" in capsys.readouterr().err


@NO_GPU
def test_a_wrong_kernel_is_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = cases.decode_attention
    monkeypatch.setattr(cases, "decode_attention", lambda *a, out, **k: out.copy_(right(*a, out=out, **k) * 1.1))
    path = tmp_path / "dry.csv"
    assert measure.main(["--dry-run", "--out", str(path), "--only", "decode_attention"]) == 1
    assert read_rows(path) == []


@NO_GPU
def test_tuning_prints_the_chosen_tile(capsys: pytest.CaptureFixture[str]) -> None:
    assert measure.main(["--dry-run", "--tune"]) == 0
    assert capsys.readouterr().out.count("chosen") == 4


def test_mistakes_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "--out FILE.csv is missing"),
        (["--out", str(tmp_path / "no" / "file.csv")], "is no folder"),
        (["--out", str(tmp_path / "file.csv"), "--minutes", "-1"], "--minutes is -1.0"),
    ):
        with pytest.raises(SystemExit) as stopped:
            measure.main(arguments)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(SystemExit, match="no GPU here; expected one, or --dry-run"):
            measure.main(["--out", str(tmp_path / "file.csv")])
        assert not (tmp_path / "file.csv").exists()


@NO_GPU
def test_a_foreign_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    written(path)
    before = path.read_bytes()
    assert measure.main(["--dry-run", "--out", str(path)]) == 2
    assert "has rows of Some GPU; expected rows of interpreter" in capsys.readouterr().err
    assert path.read_bytes() == before


def at_the_bounds(path: Path, factor: float) -> None:
    """Rows that reach every target by this factor: 4 TB/s, 800 TFLOP/s, 50 GB/s."""
    file = RowFile(path, GPU)
    copy, rate, link = 4e12, 8e14, 5e10
    main = {"heads": 32, "kv_heads": 8, "head_dim": 128, "page": 16}

    def add(kernel: str, params: dict[str, Any], value: float, unit: str = "s") -> None:
        file.add(kernel, "bf16", params, unit, [value] * 20, "2026-01-01T00:00:00+00:00")

    add("copy_bandwidth", {"bytes": 2**30}, copy, "bytes/s")
    add("gemm", {"m": 8192, "n": 8192, "k": 8192}, 2 * 8192**3 / rate)
    for (batch, context), share in report.DECODE_SHARES.items():
        seconds = 4096 * batch * context / (copy * share * factor)
        add("decode_attention", {"batch": batch, "context": context, **main}, seconds)
    add("decode_attention", {"batch": 1, "context": 16, **main}, 15e-6 / factor)
    for chunk, tflops in report.PREFILL_TFLOPS.items():
        seconds = 8192 * chunk * (chunk + 1) / (rate * tflops / 790 * factor)
        add("prefill_attention", {"chunk": chunk, "prefix": 0, **main}, seconds)
    for piece, share in report.ON_GPU_SHARES.items():
        for method in ("gather", "scatter"):
            params = {"piece_bytes": piece, "pieces": 2**28 // piece, "direction": "d2d", "method": method}
            add("kv_copy", params, 2 * 2**28 / (copy * share * factor))
    for direction in ("d2h", "h2d"):
        add("pinned_memcpy", {"bytes": 2**28, "direction": direction}, link, "bytes/s")
        for piece, share in report.LINK_SHARES.items():
            pieces = 2**28 // piece
            params = {"piece_bytes": piece, "pieces": pieces, "direction": direction, "method": "auto"}
            add("kv_copy", params, piece * pieces / (link * share * factor))


@pytest.mark.parametrize(("factor", "reached"), [(1.001, True), (0.999, False)])
def test_targets_are_shares_of_ceilings_of_the_same_run(
    tmp_path: Path, factor: float, reached: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    at_the_bounds(path, factor)
    found = list(report.targets(read_rows(path)))
    assert [target.reached for target in found] == [reached] * 23
    assert report.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert f"{23 if reached else 0} of 23 reached" in out
    assert "decode, 1024 MiB of KV: 0.88 of copy bandwidth; at least 0.88" in out


def test_what_was_not_measured_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.csv"
    written(path)
    assert report.main([str(path)]) == 0
    assert capsys.readouterr().out.count("not measured") == 23
    assert report.main([str(tmp_path / "none.csv")]) == 2


def test_the_targets_rows_are_in_the_quick_grid(tmp_path: Path) -> None:
    """Every row that the report asks for is measured, and by --quick already."""
    path = tmp_path / "rows.csv"
    at_the_bounds(path, 1.0)
    keys = {(spec.kernel, params_text(spec.params)) for spec in full_grid(quick=True)}
    assert {(row["kernel"], row["params"]) for row in read_rows(path)} <= keys
