"""The wheel holds the package and its data alone, and works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*command, str(ROOT)], check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, text=True)
    return target


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    version = wheel.name.split("-")[1]
    assert {name.split("/")[0] for name in names} == {"sagasim", f"sagasim-{version}.dist-info"}
    assert any(name.startswith("sagasim/data/traces/") for name in names)
    assert any(name.startswith("sagasim/data/calibration/models/") for name in names)
    assert {f"sagasim-{version}.dist-info/licenses/{name}" for name in ("LICENSE", "NOTICE")} <= set(names)
    assert not [name for name in names if "__pycache__" in name or "/tests/" in name]


def sagasim(installed: Path, folder: Path, *words: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "sagasim", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_the_installed_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import sagasim; print(sagasim.__file__)"
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(installed))


def test_embedded_traces_are_read(installed: Path, tmp_path: Path) -> None:
    assert "tasks" in sagasim(installed, tmp_path, "trace", "validate", "weka")


def test_a_small_run(installed: Path, tmp_path: Path) -> None:
    options = ["--trace", "tau-bench", "--tasks", "3", "--gpus", "8", "--out", "results"]
    assert "digest" in sagasim(installed, tmp_path, "run", *options)
    assert (tmp_path / "results/figure.png").stat().st_size > 10_000


@pytest.mark.slow
def test_an_editable_install_reads_the_checkout(tmp_path: Path) -> None:
    """A new environment, this checkout, base dependencies from the running interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "-e", str(ROOT)]
    if subprocess.run([str(python), "-c", "import hatchling"], capture_output=True, check=False).returncode:
        pytest.skip("the interpreter's own site-packages hold no hatchling")
    subprocess.run(command, check=True, capture_output=True, text=True)
    code = "from sagasim.hardware import data_dir; print(data_dir())"
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == ROOT
