"""A catalogue of bad sweeps, through the command line: exit 2, one line, and nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from sagasim.cli import main

BASE = 'workload = "tool-calling"\ntasks = 2\ngpus = 4\n'

BAD_SWEEPS: dict[str, tuple[str, tuple[str, ...]]] = {
    "no TOML": ("tasks = ", ("bad.toml", "not TOML")),
    "unknown key": (BASE + "taks = 3", ("bad.toml", "unknown key 'taks'", "'tasks' perhaps")),
    "nearly grid": (BASE + "[grids]\nload = [1]", ("unknown key 'grids'", "'grid' perhaps")),
    "unknown key in the grid": (BASE + "[grid]\nlod = [0.5]", ("bad.toml, grid", "'lod'", "'load' perhaps")),
    "unknown key of a point": (BASE + "[[points]]\nroutes = 'x'", ("points 1", "'routes'", "'route' perhaps")),
    "a type": (BASE + "[grid]\nmax_num_seqs = [1, 'many']", ("grid, max_num_seqs", "'many' does not fit", "a whole")),
    "a value, not a list": (BASE + "[grid]\nload = 0.5", ("grid, load", "a float does not fit", "a list of values")),
    "a text, not a list": (BASE + "[grid]\nroute = 'fcfs'", ("grid, route", "a str does not fit", "a list of values")),
    "an empty list": (BASE + "[grid]\nload = []", ("grid, load", "an empty list does not fit")),
    "a value twice": (BASE + "[grid]\nload = [0.5, 0.5]", ("grid, load", "0.5 twice", "each value once")),
    "a key twice": (BASE + "rate = 3\nrate_per_min = 4", ("'rate_per_min' is said twice", "each key once")),
    "in the grid and above": (BASE + "[grid]\ngpus = [4, 8]", ("'gpus' is said outside the grid too",)),
    "in the grid and a point": (
        BASE + "[[points]]\nload = 0.5\n[grid]\nload = [0.5]",
        ("'load' is said outside the grid too", "each key once"),
    ),
    "no grid": (BASE + "grid = 3", ("grid", "a int does not fit", "a table of lists")),
    "no points": (BASE + "points = 3", ("points", "a int does not fit", "tables [[points]]")),
    "a label": (BASE + "[[points]]\nlabel = ''", ("points 1", "'' is no label", "a line of text")),
    "a long label": (BASE + f"[[points]]\nlabel = '{'x' * 101}'", ("points 1", "of 101 letters", "at most 100")),
    "seeds: none": (BASE + "seeds = 0", ("seeds", "0 is out of range", "from 1 to 10000")),
    "seeds: a text": (BASE + "seeds = 'all'", ("seeds", "a str does not fit", "or a list of seeds")),
    "seeds: no number": (BASE + "seeds = [1, 2.5]", ("seeds", "2.5 does not fit", "a whole number")),
    "seeds: twice": (BASE + "seeds = [1, 1]", ("seeds", "1 twice")),
    "seeds: two ways": (BASE + "seeds = 2\n[grid]\nseed = [1, 2]", ("seeds are said twice",)),
    "seeds: a seed too": (BASE + "seed = 1\nseeds = [1, 2]", ("seeds are said twice", "seed or seeds")),
    "seeds: below 0": (BASE + "seed = -3\nseeds = 2", ("seed", "-3 is out of range")),
    "no source": ("tasks = 3", ("no source of tasks", "one of --trace")),
    "two sources": (BASE + "[[points]]\ntrace = 'weka'\nmix = 'chat'", ("point 1", "2 sources of tasks")),
    "a trace": ('trace = "wekka"', ("unknown trace 'wekka'", "'weka' perhaps")),
    "one trace of two": ('[grid]\ntrace = ["weka", "wekka"]', ("trace=wekka", "unknown trace 'wekka'", "perhaps")),
    "a preset": (BASE + "[grid]\npreset = ['vllm-0.51']", ("preset", "unknown preset", "'vllm-0.15' perhaps")),
    "a policy": (BASE + "[grid]\norder = ['fcfs', 'fcfss']", ("order=fcfss", "unknown order policy", "perhaps")),
    "a policy file": (BASE + "order = './none.py:mine'", ("none.py", "no such file")),
    "a value that fits nothing": (
        BASE + "[grid]\ntp = [4, 3]\nmax_num_seqs = [8, 16]",
        ("tp=3, max_num_seqs=8", "3 GPUs cannot share", "1, 2, 4 or 8"),
    ),
    "a number too large": (BASE + "seeds = " + "9" * 4000, ("seeds", "out of range")),
    "too many points": (
        BASE + f"[grid]\nmax_num_seqs = {list(range(1, 1001))}\nevict_batch_blocks = {list(range(1, 1001))}",
        ("1,000,000 points", "at most 100,000"),
    ),
}  # fmt: skip

BAD_COMMANDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no file": (("sweep", "none.toml", "--out", "new"), ("none.toml", "cannot be read", "describes a sweep")),
    "a folder as file": (("sweep", ".", "--out", "new"), (".", "cannot be read", "describes a sweep")),
    "no out": (("sweep", "good.toml"), ("--out", "no folder", "--out DIR")),
    "out of something else": (("sweep", "good.toml", "--out", "mine"), ("mine", "holds something else")),
    "out is a file": (("sweep", "good.toml", "--out", "mine/file"), ("mine/file", "holds something else")),
    "out below a file": (("sweep", "good.toml", "--out", "mine/file/x"), ("mine/file/x", "cannot be made")),
    "jobs": (("sweep", "good.toml", "--out", "new", "--jobs", "0"), ("jobs", "0 is out of range", "from 1")),
    "jobs, a word": (("sweep", "good.toml", "--out", "new", "--jobs", "all"), ("--jobs", "'all' does not fit")),
    "engine": (("sweep", "good.toml", "--out", "new", "--engine", "rai"), ("engine", "'rai'", "'ray' perhaps")),
    "an address": (("sweep", "good.toml", "--out", "new", "--address", "x:1"), ("address", "have no address")),
    "merge: nothing": (("merge", "--out", "new"), ("merge", "required: DIR")),
    "merge: no sweep": (("merge", "mine", "--out", "new"), ("mine/sweep.toml", "cannot be read", "sagasim sweep")),
    "merge: another TOML": (("merge", "other", "--out", "new"), ("other/sweep.toml", "no points with their hashes")),
    "merge: no TOML": (("merge", "torn", "--out", "new"), ("torn/sweep.toml", "not TOML", "sagasim sweep")),
    "merge: no out": (("merge", "mine"), ("--out", "no folder")),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, content in {
        "good.toml": BASE,
        "mine/file": "precious",
        "other/sweep.toml": BASE,
        "torn/sweep.toml": "tasks = ",
    }.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text(content)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], argv: Sequence[str], words: Sequence[str]) -> None:
    before = contents()
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("sagasim: ")
    assert len(err) < 1000
    assert [word for word in words if word not in err] == [], err
    assert contents() == before


@pytest.mark.parametrize("case", BAD_SWEEPS)
def test_a_sweep(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    content, words = BAD_SWEEPS[case]
    Path("bad.toml").write_text(content)
    refused(capsys, ["sweep", "bad.toml", "--out", "new"], words)
    assert not Path("new").exists()


@pytest.mark.parametrize("case", BAD_COMMANDS)
def test_a_command(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv, words = BAD_COMMANDS[case]
    refused(capsys, argv, words)
