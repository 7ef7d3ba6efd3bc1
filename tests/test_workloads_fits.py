"""Quantile tables, and fits: what they are made from, that they are made again byte for byte, and unseen sessions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.hardware import data_dir
from sagasim.trace import open_trace
from sagasim.workloads import fit_tune, generate
from sagasim.workloads.fit import fit_file, main, write_fit
from sagasim.workloads.fit_sessions import fit_sessions
from sagasim.workloads.measure import distance, measure
from sagasim.workloads.tables import COARSE, FINE, Table

FITTED = ("coding-real", "tool-calling", "chat", "multi-agent", "browser-real")
WEKA = data_dir() / "traces" / "weka_claude_code.sessions.jsonl.gz"


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200), st.floats(0, 1))
def test_a_table_inverts_its_distribution(values: list[float], probability: float) -> None:
    for grid in (FINE, COARSE):
        table = Table(np.quantile(values, grid).tolist())
        drawn = table.at(probability)
        assert min(values) - 1e-6 <= drawn <= max(values) + 1e-6
        assert table.at(table.probability(drawn)) == pytest.approx(drawn, rel=1e-6, abs=1e-3)
        assert table.probability(min(values) - 1) == 0.0
        assert table.probability(max(values) + 1) == 1.0


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """The last step of a fit with few sessions."""
    monkeypatch.setattr(fit_tune, "FEWEST_SESSIONS", 150)
    monkeypatch.setattr(fit_tune, "MOST_SESSIONS", 150)
    return lambda: None


@pytest.mark.usefixtures("quick")
def test_a_fit_to_what_was_generated_gives_it_back(tmp_path: Path) -> None:
    source = list(generate("tool-calling", 400, 8).tasks())
    path = tmp_path / "fit.json"
    write_fit({"kind": "sessions", **fit_sessions(source)}, path)
    again = measure(generate("tool-calling", 2000, 9, fit=str(path)).tasks())
    for name, values in measure(source).items():
        if not name.startswith(("gap", "peak")):
            assert distance(values, again[name]) <= 0.1, name


@pytest.mark.usefixtures("quick")
def test_the_command_writes_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "traces"
    folder.mkdir()
    for name in ("taubench_airline_gpt4o", "lmcache_magagent"):
        source = data_dir() / "traces" / f"{name}.sessions.jsonl.gz"
        (folder / f"renamed_{name[:4]}.sessions.jsonl.gz").write_bytes(source.read_bytes())
    for out in ("one", "two"):
        assert main(["--traces", str(folder), "--out", str(tmp_path / out)]) == 0
    written = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert written == ["multi-agent.json", "tool-calling.json"]
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
        fit = json.loads((tmp_path / "one" / name).read_text())
        assert len(fit["provenance"]["files"][0]["sha256"]) == 64
    assert "tool-calling: 136 tasks" in capsys.readouterr().err
    assert list(generate("tool-calling", 3, 0, fit=str(tmp_path / "one" / "tool-calling.json")).tasks())


def test_a_folder_without_traces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--traces", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert main(["--traces", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "nothing to fit" in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FITTED)
def test_fits_say_where_they_come_from(name: str) -> None:
    fit = json.loads((data_dir() / "traces" / "fits" / f"{name}.json").read_text())
    assert fit["workload"] == name
    assert fit["provenance"]["n"] > 0
    assert all(set(file) == {"file", "sha256"} for file in fit["provenance"]["files"])
    assert {len(grid) for grid in fit["grids"].values()} == {len(FINE), len(COARSE)}


# ---- slower: the fits themselves


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file"), [("coding-real", WEKA.name), ("tool-calling", "taubench_airline_gpt4o.sessions.jsonl.gz")]
)
def test_embedded_fits_are_those_of_the_embedded_traces(name: str, file: str, tmp_path: Path) -> None:
    write_fit(fit_file(data_dir() / "traces" / file, name), tmp_path / "fit.json")
    assert (tmp_path / "fit.json").read_bytes() == (data_dir() / "traces" / "fits" / f"{name}.json").read_bytes()


@pytest.mark.slow
def test_on_sessions_kept_aside(tmp_path: Path) -> None:
    """A fit to two thirds is about as near to the last third as those two thirds are themselves."""
    recorded = list(open_trace(WEKA).tasks(0))
    families = sorted({task.family or task.name for task in recorded})
    aside = set(families[::3])
    own = [task for task in recorded if (task.family or task.name) not in aside]
    rest = [task for task in recorded if (task.family or task.name) in aside]
    write_fit({"kind": "sessions", **fit_sessions(own)}, tmp_path / "fit.json")
    made = measure(generate("coding-real", 3000, 5, fit=str(tmp_path / "fit.json")).tasks())
    one, other = measure(own), measure(rest)
    for name in one:
        assert distance(made[name], other[name]) <= distance(one[name], other[name]) + 0.06, name
