"""docs/gate.md says what is so: its examples run, its numbers are the defaults, the workflow can be read."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import sagasim
from sagasim.gate.cases import METRICS, read_set
from sagasim.options import make_parser

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
WORKFLOW = ROOT / "docs" / "examples" / "gate-workflow.yml"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def parsed(words: list[str]) -> Any:
    class Anything(dict[str, Any]):
        def __missing__(self, name: str) -> str:
            return name

    return make_parser(Anything()).parse_args(words)


def test_the_examples_run(tmp_path: Path) -> None:
    commands = []
    for language, text in BLOCKS:
        if language == "sh":
            commands += [shlex.split(line) for line in text.splitlines()]
        else:
            (tmp_path / text.split()[1]).write_text(text)
    assert len(commands) == 3
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in commands:
        assert words[:2] == ["sagasim", "gate"]
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "unchanged" in done.stdout
    assert (tmp_path / "gate.xml").is_file()


def test_the_numbers_are_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "set.toml").write_text('[cases.a]\ntrace = "weka"\n')
    found = read_set(tmp_path / "set.toml").settings
    for text in (f"*twins* ({found.twins})", f"`level` ({found.level:g})"):
        assert text in PAGE
    assert {rule.min_effect for rule in METRICS.values()} == {0.01}
    assert "`min_effect`, a part of the mean (0.01)" in PAGE
    listed = PAGE[PAGE.index("one without has") : PAGE.index("Any\nother number of the summary")]
    assert set(re.findall(r"`([a-z]\w*(?:\.\w+)?)`", listed)) == set(METRICS)


def test_the_metrics_shown_can_be_had(tmp_path: Path) -> None:
    block = re.search(r"^    (\[metrics.*?)\n\n[A-Z]", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None
    text = re.sub(r"^    ", "", block[1], flags=re.MULTILINE)
    (tmp_path / "set.toml").write_text(f'{text}\n[cases.a]\ntrace = "weka"\n')
    rules = read_set(tmp_path / "set.toml").settings.metrics
    assert (rules["tct_s.mean"].min_effect, rules["tenants.heavy.tct_s.p99"].better) == (0.02, "lower")


def test_the_workflow() -> None:
    text = WORKFLOW.read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    assert set(content[True]) == {"pull_request", "push"}  # YAML 1.1 reads the key `on` as true
    (job,) = content["jobs"].values()
    assert all(("run" in step) != ("uses" in step) for step in job["steps"])
    runs = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    (words,) = (words for words in runs if words[0] == "sagasim")
    args = parsed(words[1:])
    assert (args.baseline, args.junit) == ("gate/baseline.json", "gate.xml")
    assert ["pip", "install", f"sagasim=={sagasim.__version__}"] in runs
    update = re.search(r"`sagasim (gate [^`]*--update[^`]*)`", text)
    assert update is not None
    assert parsed(shlex.split(update[1])).baseline == args.baseline
    (upload,) = (step for step in job["steps"] if step.get("with", {}).get("path"))
    assert (upload["if"], upload["with"]["path"]) == ("always()", args.junit)


@pytest.mark.parametrize("target", ["gate", "gate-update"])
def test_our_own_targets(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(rf"^{target}:.*\n\t\$\(BIN\)/sagasim (.*)$", makefile, re.MULTILINE)
    assert recipe is not None
    args = parsed(shlex.split(recipe[1]))
    assert (ROOT / args.baseline).is_file()
    assert args.set_file is None or (ROOT / args.set_file).is_file()
    assert "make --no-print-directory gate\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
