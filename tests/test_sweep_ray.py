"""The same sweep on a Ray cluster of two nodes, one of which is lost in the middle."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sagasim.cli import main
from sagasim.errors import ConfigError
from sagasim.sweeping.runner import run_sweep
from sagasim.sweeping.table import read_results

ROOT = Path(__file__).parents[1]
SPEC = """
workload = "swe-bench"
tasks = 60
gpus = 8
rate = 30
seeds = 20
"""


def test_without_ray_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    spec = {"workload": "tool-calling", "tasks": 2, "gpus": 4}
    with pytest.raises(ConfigError, match=r"Ray is not installed; expected pip install 'sagasim\[ray\]'"):
        run_sweep(spec, tmp_path / "out", engine="ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:99999"])
def test_no_cluster_at_an_address_is_one_line(
    address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)  # whether there is a Ray or not
    (tmp_path / "sweep.toml").write_text(SPEC)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "sweep",
                str(tmp_path / "sweep.toml"),
                "--out",
                str(tmp_path / "out"),
                "--engine",
                "ray",
                "--address",
                address,
            ]
        )
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith("sagasim: --address: no cluster: ")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes of one CPU each."""
    pytest.importorskip("ray", reason="pip install 'sagasim[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.lost = made.add_node(num_cpus=1)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()
    del made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray leaves its logs open
        gc.collect()


def wait_until(true: Any) -> None:
    limit = time.monotonic() + 120
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Ray itself
def test_a_lost_node_costs_nothing(cluster: Any, tmp_path: Path) -> None:
    import ray

    (tmp_path / "sweep.toml").write_text(SPEC)
    command = [sys.executable, "-m", "sagasim", "sweep", str(tmp_path / "sweep.toml"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--engine", "ray", "--address", cluster.address],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ),
    )
    stored = tmp_path / "out" / "points"
    wait_until(lambda: len(list(stored.glob("*.json"))) >= 4 or process.poll() is not None)
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 0)  # both nodes are at work
    cluster.remove_node(cluster.lost, allow_graceful=False)
    assert process.poll() is None
    assert len(list(stored.glob("*.json"))) < 18
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "20 of 20 points, 20 of them new" in out
    wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)
    local = run_sweep(tmp_path / "sweep.toml", tmp_path / "local")
    assert read_results(tmp_path / "out").equals(local.table())
    assert local.failed == []
