"""docs/sweeps.md and docs/examples do what they say."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sagasim.sweeping.points import planned
from sagasim.sweeping.spec import expand, read_spec
from sagasim.sweeping.table import read_results

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "sweeps.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path) -> None:
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for language, text in BLOCKS:
        if language == "toml":
            (tmp_path / text.split()[1]).write_text(text)
            continue
        for words in (
            [["-c", text]] if language == "python" else [["-m", *shlex.split(line)] for line in text.splitlines()]
        ):
            command = [sys.executable, *words]
            done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env, timeout=120)
            assert done.returncode == 0, (words, done.stderr)
            if language == "python":
                assert done.stdout.startswith("12 0 []\n")
    labels = read_results(tmp_path / "results" / "systems")["label"].to_pylist()
    assert labels == ["vllm-0.15", "vllm-0.15", "sticky", "sticky"]
    assert read_results(tmp_path / "results" / "both").num_rows == 16


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_an_example_makes_sense(path: Path) -> None:
    points, failures = planned(expand(read_spec(path), path.name))
    assert failures == []
    for said in re.findall(r"^# (\d+) points", path.read_text(encoding="utf-8"), re.MULTILINE):
        assert len(points) == int(said)
