"""The compiled engine gives the results of its sources."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUNS = {
    "prefix cache": ["--workload", "swe-bench", "--tasks", "40", "--gpus", "8", "--concurrency", "30"],
    "little memory": [
        "--trace",
        "tau-bench",
        "--gpus",
        "8",
        "--set",
        "num_gpu_blocks_override=8300",
        "--preset",
        "vllm-0.15",
    ],
    "no cache": ["--trace", "agentic-mooncake-sample", "--gpus", "4", "--preset", "vllm-0.6"],
}


def sagasim(cache: Path, *arguments: str, **environment: str) -> str:
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT), **environment}
    variables = {name: value for name, value in variables.items() if value}
    command = [sys.executable, "-m", "sagasim", *arguments]
    return subprocess.run(command, env=variables, check=True, capture_output=True, text=True).stdout


def facts(cache: Path, out: Path, arguments: list[str], pure: str) -> tuple[object, str]:
    sagasim(cache, "run", *arguments, "--no-figures", "--out", str(out), SAGASIM_PURE=pure)
    timing = json.loads((out / "timing.json").read_text())
    return json.loads((out / "summary.json").read_text()), timing["versions"]["engine"]


@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("gcc") is None, reason="no C compiler")
def test_compiled_results_are_those_of_the_sources(tmp_path: Path) -> None:
    assert "compiled" in sagasim(tmp_path, "compile", SAGASIM_PURE="")
    for name, arguments in RUNS.items():
        fast, engine = facts(tmp_path, tmp_path / f"{name} fast", arguments, pure="")
        plain, source = facts(tmp_path, tmp_path / f"{name} plain", arguments, pure="1")
        assert (engine, source) == ("compiled", "source")
        assert fast == plain, name


def test_without_mypyc_one_line_says_what_to_do(tmp_path: Path) -> None:
    script = "import sys; sys.modules['mypyc'] = None; from sagasim.compiled import compile_engine; compile_engine()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert "sagasim[fast]" in done.stderr
