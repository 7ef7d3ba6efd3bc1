"""The same digest from other versions of NumPy and pyarrow, each in an environment of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN = ["run", "--workload", "swe-bench", "--tasks", "12", "--gpus", "8", "--rate", "30", "--seed", "3", "--no-figures"]


def run_in(python: Path, out: Path) -> dict[str, object]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [str(python), "-m", "sagasim", *RUN, "--out", str(out)]
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd=out.parent)
    return {name: json.loads((out / f"{name}.json").read_text()) for name in ("summary", "timing")}


@pytest.mark.slow
@pytest.mark.parametrize(("numpy", "pyarrow"), [("1.26.4", "16.1.0"), ("2.2.6", "20.0.0")])
def test_other_versions_give_the_same_digest(numpy: str, pyarrow: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    wanted = [f"numpy=={numpy}", f"pyarrow=={pyarrow}", *needed]
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
    here, there = run_in(Path(sys.executable), tmp_path / "here"), run_in(python, tmp_path / "there")
    assert there["timing"]["versions"]["numpy"] == numpy  # type: ignore[index]
    assert there["timing"]["versions"]["pyarrow"] == pyarrow  # type: ignore[index]
    assert here["summary"] == there["summary"]
