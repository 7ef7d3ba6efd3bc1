"""The page of SAGA's results: its statistics by hand, the fit of the bound against data made by it, the whole page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sagasim import saga_page
from sagasim.saga_page import change, fit_bound, told
from sagasim.sweeping.runner import run_sweep


def test_changes_are_paired_by_seed() -> None:
    found = change({0: 11.0, 1: 22.0}, {0: 10.0, 1: 20.0, 2: 7.0})
    assert found == {"mean": pytest.approx(10), "low": pytest.approx(10), "high": pytest.approx(10)}
    assert told(found) == "+10.0 [+10.0, +10.0]"
    assert told(change({0: 5.0}, {0: 10.0})) == "-50.0"


def test_the_fit_finds_the_constants_that_made_the_data() -> None:
    rng = np.random.default_rng(1)
    rho, ratio = rng.uniform(1, 4, 50), rng.uniform(0.01, 1, 50)
    assert fit_bound(rho, ratio, 0.3 * rho**0.7 * ratio**0.4) == pytest.approx((0.3, 0.7, 0.4))


@pytest.mark.slow
def test_the_whole_page_from_small_sweeps(tmp_path: Path) -> None:
    """Every sweep of the page with a few tasks on few GPUs."""
    import tomllib

    for name in ("swe", "coding", "strategies", "hints", "fairness"):
        spec = tomllib.loads(Path(f"docs/examples/saga-{name}.toml").read_text(encoding="utf-8"))
        spec |= {"gpus": 8, "seeds": 2}
        for part in (spec, *spec.get("points", ())):
            if "tasks" in part:
                part["tasks"] = 30
        if name == "fairness":
            spec["grid"]["tasks"] = [60, 120]
        run_sweep(spec, tmp_path / f"saga-{name}")
    assert saga_page.main(["--sweeps", str(tmp_path), "--out", str(tmp_path / "docs")]) == 0
    text = (tmp_path / "docs" / "saga-results.md").read_text(encoding="utf-8")
    assert "<!--" not in text
    assert "nan" not in text
    assert (tmp_path / "docs" / "figures" / "saga-compared.png").stat().st_size > 10_000
