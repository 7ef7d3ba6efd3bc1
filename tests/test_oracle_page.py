"""docs/oracle.md: written by one command, with what it says and shows in place; and the speed that it claims."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from sagasim.config import resolve
from sagasim.oracle.accesses import bare_log, task_accesses
from sagasim.oracle.blocks import replay_blocks
from sagasim.oracle.future import NextUses
from sagasim.oracle.page import PAPER, SCENARIOS, TEXT, Scenario, ratio_interval, write_page
from sagasim.oracle.study import offline_policies
from sagasim.policies import clairvoyant
from sagasim.sources import open_sources

DOCS = Path(__file__).parents[1] / "docs"


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    layer = {
        "workload": "swe-bench",
        "tasks": 24,
        "gpus": 8,
        "gpu": "a100",
        "model": "llama-3-70b",
        "over_length": "extend",
    }
    assert clairvoyant.Truth  # the page compares with it
    said: list[str] = []
    write_page(tmp_path, [Scenario("swe-bench", layer)], 2, [1.0, 2.0], said.append)
    page = (tmp_path / "oracle.md").read_text(encoding="utf-8")
    assert page.startswith(TEXT.read_text(encoding="utf-8").rstrip())
    assert "| LRU | `flat-lru` | 2.84 / " in page
    for name in offline_policies():
        assert f"| `{name}`" in page
    assert (tmp_path / "figures" / "oracle-swe-bench.png").stat().st_size > 10_000
    assert len(said) == 8


def test_ratios_are_of_all_seeds_together() -> None:
    assert ratio_interval([(30, 10), (0, 0), (6, 2)]) == (3.0, pytest.approx(3.0), pytest.approx(3.0))
    assert ratio_interval([(5, 0), (7, 0)]) == (None, None, None)
    assert ratio_interval([(5, 2)]) == (2.5, None, None)
    assert ratio_interval([(5, 2), (3, 0)]) == (4.0, None, None)  # without the first there is none
    ratio, low, high = ratio_interval([(20, 10), (40, 10), (30, 10)])
    assert ratio == 3.0
    assert low is not None
    assert high is not None
    assert 1.0 < low < 2.1
    assert low * high == pytest.approx(9.0)


def test_the_page_that_is_there_has_all_of_it() -> None:
    page = (DOCS / "oracle.md").read_text(encoding="utf-8")
    assert page.startswith(TEXT.read_text(encoding="utf-8").rstrip())
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page)
    assert len(pictures) == len(SCENARIOS)
    assert all((DOCS / picture).is_file() for picture in pictures)
    assert set(PAPER) <= {scenario.name for scenario in SCENARIOS}


@pytest.mark.slow
def test_a_million_calls_a_minute() -> None:
    """The optimum on 100,000 calls of the SWE-bench workload, their log included, in processor time."""
    accesses, sent = task_accesses(open_sources(resolve({"workload": "swe-bench", "tasks": 2700})).tasks(0))
    started = time.process_time()
    log = bare_log(accesses, 0, "", sent)
    replay_blocks(log, 100_000, "belady", NextUses(log))
    assert len(accesses) > 90_000
    assert (time.process_time() - started) / len(accesses) < 60e-6
