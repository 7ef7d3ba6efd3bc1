"""The page of errors is what its command writes, and shows misses as misses."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from sagasim.errors_page import main

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "calibration.md").read_text(encoding="utf-8")
TARGETS = re.compile(r"^\| ([^|]+) \| ([\d.]+)% \| (\d+)% \| (\*\*missed\*\*|met) \|", re.MULTILINE)


def test_misses_are_told_and_come_first() -> None:
    rows = [(float(error), float(target), told) for _, error, target, told in TARGETS.findall(PAGE)]
    assert len(rows) >= 25
    for error, target, told in rows:
        assert (told == "**missed**") == (error > target)
    margins = [round(target - error, 1) for error, target, _ in rows]
    assert all(a <= b + 0.11 for a, b in pairwise(margins))  # the worst first, but for rounding
    missed = sum(told == "**missed**" for *_, told in rows)
    assert f"{missed} of {len(rows)} are missed" in PAGE


def test_figures_of_the_page_are_there() -> None:
    for name in re.findall(r"\]\((figures/[^)]+)\)", PAGE):
        assert (DOCS / name).is_file(), name


@pytest.mark.slow
def test_the_command_writes_this_page(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path)]) == 0
    assert (tmp_path / "calibration.md").read_text(encoding="utf-8") == PAGE


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(out: Path, progress: object) -> Path:
        raise OSError(13, "Permission denied", str(out))

    monkeypatch.setattr("sagasim.errors_page.write_page", broken)
    assert main(["--out", str(tmp_path / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err
