"""A catalogue of folders and options that no page can be made of: exit 2, one line, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet
from report_cases import make_study, make_sweep

from sagasim.cli import main
from sagasim.html_report.page import element

Spoil = Callable[[Path], tuple[str, ...]]  # spoils a folder, and returns options beside it
JUNK = (None, True, "x", -1, 1e400, [], {}, [{}], {"a": 1})


def seconds(keys: Mapping[str, Any], seed: int) -> float:
    return keys["concurrency"] * (1.0 + 0.1 * seed)


def ends_with_2(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["report", *arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.startswith("sagasim: ")
    assert error.count("\n") == 1
    return error


def options(*words: str) -> Spoil:
    return lambda _: words


def emptied(name: str, content: bytes = b"") -> Spoil:
    def spoil(folder: Path) -> tuple[str, ...]:
        (folder / name).write_bytes(content)
        return ()

    return spoil


def torn(folder: Path) -> tuple[str, ...]:
    whole = (folder / "results.parquet").read_bytes()
    (folder / "results.parquet").write_bytes(whole[: len(whole) // 2])
    return ()


def gone(name: str) -> Spoil:
    def spoil(folder: Path) -> tuple[str, ...]:
        (folder / name).unlink()
        return ()

    return spoil


def changed(change: Callable[[pa.Table], pa.Table]) -> Spoil:
    def spoil(folder: Path) -> tuple[str, ...]:
        path = folder / "results.parquet"
        parquet.write_table(change(parquet.read_table(path)), path)
        return ()

    return spoil


def replaced(name: str, column: pa.Array) -> Spoil:
    return changed(lambda table: table.set_column(table.column_names.index(name), name, column))


def not_ours(folder: Path) -> tuple[str, ...]:
    (folder / "report.html").write_text("<!DOCTYPE html><title>sagasim report</title>")
    return ()


def a_folder(folder: Path) -> tuple[str, ...]:
    (folder / "report.html").mkdir()
    return ()


SPOILED: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "a torn table": (torn, ("results.parquet", "cannot be read")),
    "an empty table": (emptied("results.parquet"), ("results.parquet", "cannot be read")),
    "no table": (gone("results.parquet"), ("results.parquet", "cannot be read", "a sweep that has ended")),
    "no sweep.toml": (gone("sweep.toml"), ("sweep.toml", "cannot be read")),
    "a torn sweep.toml": (emptied("sweep.toml", b"points = ["), ("sweep.toml", "not TOML")),
    "no rows": (changed(lambda table: table.slice(0, 0)), ("no results", "at least one point that ended")),
    "rows of another sweep": (replaced("point", pa.array(["x"] * 8)), ("no results",)),
    "no column of seeds": (changed(lambda table: table.drop_columns(["seed"])), ("lacks column 'seed'",)),
    "no metric": (changed(lambda table: table.drop_columns(["tct_s.mean"])), ("lacks column 'tct_s.mean'",)),
    "seeds that are texts": (replaced("seed", pa.array(["0"] * 8)), ("column 'seed' of string",)),
    "gaps": (replaced("seed", pa.array([None] * 8, pa.int64())), ("column 'seed' of int64 with 8 gaps",)),
    "an axis of texts": (replaced("concurrency", pa.array(["x"] * 8)), ("column 'concurrency' of string",)),
    "a column twice": (
        changed(lambda table: table.append_column("calls", table["seed"]).append_column("calls", table["seed"])),
        ("results.parquet", "cannot be read"),
    ),
    "a system": (options("--base", "vllm-0.51"), ("--base", "no system 'vllm-0.51'", "'vllm-0.15' perhaps")),
    "a metric": (options("--metric", "tct_s.mena"), ("--metric", "no metric 'tct_s.mena'", "'tct_s.mean' perhaps")),
    "an option": (options("--basis", "x"), ("unknown option '--basis'", "'--base' perhaps")),
    "a page of others": (not_ours, ("report.html", "exists already and is no report", "`sagasim report` wrote")),
    "a folder for a page": (a_folder, ("report.html", "a folder", "the name of a file")),
    "no folder for the page": (options("--out", "none/page.html"), ("none", "no such folder")),
    "a name with a NUL": (options("--out", "a\0b"), ("a?b",)),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILED)
def test_spoiled_sweeps(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = [({"preset": preset, "concurrency": n}, None) for preset in ("vllm-0.15", "saga") for n in (4, 8)]
    folder = make_sweep(tmp_path / "sweep", points, [0, 1], seconds)
    spoil, words = SPOILED[case]
    arguments = spoil(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    error = ends_with_2(capsys, str(folder), *arguments)
    assert all(word in error for word in words), error
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in ends_with_2(capsys, str(tmp_path / "none"))
    (tmp_path / "file").write_text("")
    assert "no such folder" in ends_with_2(capsys, str(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    assert "no results; expected results.parquet, comparison.json" in ends_with_2(capsys, str(tmp_path / "empty"))
    for name in ("comparison.json", "oracle.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for content in ("", "{}", "[]", "3", '{"rows": 3}', '{"presets": [], "seeds": []}', "[" * 100_000):
            (folder / name).write_text(content)
            assert name in ends_with_2(capsys, str(folder))
            assert sorted(folder.iterdir()) == [folder / name]


def test_a_study_has_no_systems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--base: a study of the oracle has none" in ends_with_2(
        capsys, str(make_study(tmp_path / "a")), "--base", "x"
    )


def test_a_page_is_written_over_only_by_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, page = make_study(tmp_path / "study"), tmp_path / "page.html"
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            main(["report", str(folder), "--out", str(page)])
        assert ended.value.code == 0
    assert sorted(tmp_path.iterdir()) == [page, folder]
    before = page.read_bytes()
    (folder / "oracle.json").write_text("{")
    ends_with_2(capsys, str(folder), "--out", str(page))
    assert page.read_bytes() == before


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*above, key)
        yield from places(inner, (*above, key))


def with_junk(text: str, place: tuple[Any, ...], junk: Any) -> str:
    document = json.loads(text)
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = junk
    return json.dumps(document)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("oracle", 7),
        ("comparison", 97),
        pytest.param("oracle", 1, marks=pytest.mark.slow),
        pytest.param("comparison", 5, marks=pytest.mark.slow),
    ],
)
def test_junk_anywhere_is_one_line_or_a_page(
    kind: str, step: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading lets no junk through that a page could stumble over; every step-th place of all, with all sorts of it."""
    folder = tmp_path / kind
    if kind == "oracle":
        path = make_study(folder) / "oracle.json"
    else:
        work = ["--workload", "tool-calling", "--tasks", "2", "--gpus", "8", "--seeds", "2", "--no-figures"]
        with pytest.raises(SystemExit):
            main(["compare", "--presets", "vllm-0.15,saga", *work, "--tenants", "a@1+b@1", "--out", str(folder)])
        path = folder / "comparison.json"
        (folder / "saga-seed0").rename(tmp_path / "elsewhere")  # so that the numbers are those of the file
    text = path.read_text()
    capsys.readouterr()
    all_places = sorted(places(json.loads(text)), key=repr)
    monkeypatch.setattr("sagasim.html_report.command.whole", lambda *_: b'content="sagasim report"')
    for module in ("sections", "study"):  # what is drawn was laid out; writing it takes the time
        monkeypatch.setattr(f"sagasim.html_report.{module}.to_svg", lambda *_: element("svg"))
    ended_with = set()
    for number, place in enumerate(all_places):
        if number % step:
            continue
        path.write_text(with_junk(text, place, JUNK[number // step % len(JUNK)]))
        with pytest.raises(SystemExit) as ended:
            main(["report", str(folder)])
        assert ended.value.code in (0, 2), (place, JUNK[number // step % len(JUNK)])
        assert capsys.readouterr().err.count("\n") == (ended.value.code == 2)
        ended_with.add(ended.value.code)
    assert ended_with == {0, 2}
