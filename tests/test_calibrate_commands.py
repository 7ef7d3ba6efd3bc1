"""The commands: calibrate fit, check, show and validate, as a user calls them; mistakes are one line and exit 2."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path

import pytest

from sagasim.cli import main
from sagasim.cost import load_calibration
from sagasim.hardware import data_dir

FOLDER = data_dir() / "calibration"
PROFILE = FOLDER / "sources" / "llmservingsim" / "RTX4090" / "Llama-3.1-8B"
RUN = FOLDER / "runs" / "RTX4090" / "Llama-3.1-8B"


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What the command prints: to stdout, or, where it fails, to stderr."""
    with pytest.raises(SystemExit) as exit_:
        main(words)
    told = capsys.readouterr()
    assert exit_.value.code == code, told.err
    if code:
        assert told.out == ""
        assert len(told.err.splitlines()) == 1
    return told.err if code else told.out


def test_fit_check_validate_without_change_of_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--gpu", "rtx4090", "--model", "llama-3.1-8b", "--tp", "1", "-o", "mine.json"]
    told = call(capsys, "calibrate", "fit", "--source", "llmservingsim", str(PROFILE), *words)
    assert "decode_attention_left_out" in told
    assert load_calibration(Path("mine.json"))["gpu"] == "rtx4090"
    told = call(capsys, "calibrate", "check", "mine.json", "--against", str(PROFILE))
    assert "whole decode step" in told
    assert Path("check-mine.png").stat().st_size > 10_000
    told = call(capsys, "validate", str(RUN), "--calibration", "mine.json", "--json", "v.json")
    assert "KV blocks: 2,588, recorded in vllm_meta.json" in told
    assert Path("validation-mine.png").stat().st_size > 10_000
    document = json.loads(Path("v.json").read_text())
    assert set(document["metrics"]) == {"ttft_s", "tpot_s", "e2e_s", "throughput"}
    assert document["metrics"]["tpot_s"]["mean"]["theirs"] == 0.002


def test_descriptions_of_a_user_s_own(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A GPU and a model that sagasim does not know: a file of each is enough."""
    for kind, name, change in (("gpus", "rtx4090", '"mine-4090"'), ("models", "llama-3.1-8b", '"mine-8b"')):
        text = (FOLDER / kind / f"{name}.toml").read_text().replace(f'id = "{name}"', f"id = {change}")
        (tmp_path / f"{kind}.toml").write_text(text)
    profile = tmp_path / "profile"
    shutil.copytree(PROFILE, profile)
    (profile / "meta.yaml").write_text("hardware: mine-4090\n")
    own = ["--gpu", "gpus.toml", "--model", "models.toml"]
    told = call(
        capsys, "calibrate", "fit", "--source", "llmservingsim", str(profile), *own, "--tp", "1", "-o", "x.json"
    )
    assert "calibration in x.json" in told
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    (run / "config.json").write_text((run / "config.json").read_text().replace("RTX4090", "mine-4090"))
    told = call(capsys, "validate", str(run), "--calibration", "x.json", *own, "--no-figures")
    assert "300 requests" in told
    err = call(capsys, "validate", str(run), "--calibration", "x.json", "--no-figures", code=2)
    assert "unknown model 'mine-8b'" in err
    assert "calibration/models/mine-8b.toml" in err


def test_show_and_check_of_embedded_ones(capsys: pytest.CaptureFixture[str]) -> None:
    told = call(capsys, "calibrate", "show", "h200-llama-3.1-70b-tp4-bf16")
    assert "checksum right" in told
    assert "beyond the table in cached" in told
    told = call(capsys, "calibrate", "check", "h100-llama-3.1-70b-tp8-fp8", "--no-figures")
    assert "all_reduce_left_out" in told
    assert not list(Path().glob("*.png"))


def test_rows_that_a_fit_never_saw(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two of the tables, every third row of them: the same command, whatever is there."""
    folder = tmp_path / "unseen"
    folder.mkdir()
    for name in ("generation_attention-vllm-0.24.0", "gemm-vllm-0.24.0"):
        lines = gzip.decompress((FOLDER / "sources" / "h200_sxm" / f"{name}.csv.gz").read_bytes()).decode().splitlines()
        text = "\n".join([lines[0], *lines[1::3]]) + "\n"
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))
    words = ["calibrate", "check", "h200-llama-3.1-70b-tp4-bf16", "--against", str(folder), "--no-figures"]
    told = call(capsys, *words)
    assert "decode_attention" in told
    assert "shapes near the model's" in told
    assert "prefill_attention  " not in told.split("carried")[0]


def test_curves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    header = "model_path,system,backend,precision,isl,osl,batch_size,tp_size,silicon_ttft_ms,silicon_tpot_ms"
    (tmp_path / "c.csv").write_text(f"{header}\nmeta-llama/Llama-3.1-70B,h200_sxm,vllm,fp8,1024,64,2,8,73,8\n")
    told = call(capsys, "validate", "--curve", "c.csv")
    assert "llama-3.1-70b on h200" in told
    assert Path("validation-curves.png").stat().st_size > 10_000


def test_the_embedded_calibration_is_found_by_other_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    config = (run / "config.json").read_text()
    config = config.replace("RTX4090", "NVIDIA GeForce RTX 4090").replace("Llama-3.1-8B", "Llama-3.1-8B-Instruct")
    (run / "config.json").write_text(config)
    assert "calibration: rtx4090-llama-3.1-8b-tp1-bf16.json" in call(capsys, "validate", str(run), "--no-figures")
    (run / "config.json").unlink()  # the run's own metadata name both, too
    assert "calibration: rtx4090-llama-3.1-8b-tp1-bf16.json" in call(capsys, "validate", str(run), "--no-figures")
    (run / "vllm_meta.json").unlink()
    err = call(capsys, "validate", str(run), "--no-figures", code=2)
    assert "no embedded calibration of 'an unnamed model' on 1 'an unnamed GPU'" in err


def test_files_that_make_way_are_named_and_none_is_half_written(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["validate", str(RUN), "--json", "v.json", "--figure", "v.png"]
    assert "older file" not in call(capsys, *words)
    told = call(capsys, *words)
    assert "numbers in v.json, in place of an older file" in told
    assert "figure in v.png, in place of an older file" in told
    before = {path.name: path.read_bytes() for path in Path().iterdir()}

    def interrupted(path: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(words)
    assert {path.name: path.read_bytes() for path in Path().iterdir()} == before
    assert set(before) == {"v.json", "v.png"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["calibrate", "show", "h200-llama-3.1-70b-tp4-bf61"], "'h200-llama-3.1-70b-tp4-bf16' perhaps"),
        (["calibrate", "show", "none.json"], "none.json: cannot be read"),
        (
            ["calibrate", "fit", "--source", "vidur", ".", "--gpu", "a100", "--model", "x", "-o", "f"],
            "unknown model 'x'",
        ),
        (
            ["calibrate", "fit", "--source", "vidur", ".", "--gpu", "a100", "--model", "x", "--tp", "y", "-o", "f"],
            "--tp",
        ),
        (["validate"], "one of RUN_DIR and --curve CSV"),
        (["validate", "nowhere"], "no recorded requests"),
        (["validate", str(RUN), "--calibration", "rtxpro6000-llama-3.1-8b-tp1-bf16"], "the run is of 'RTX4090'"),
        (["validate", str(RUN), "--no-figures", "--json", "none/v.json"], "cannot be written"),
        (["validate", str(RUN), "--figure", "none/v.png"], "no figure"),
        (["validate", "--curve", "none.csv"], "none.csv: cannot be read"),
    ],
)
def test_mistakes_are_told_in_one_line(capsys: pytest.CaptureFixture[str], words: list[str], told: str) -> None:
    assert told in call(capsys, *words, code=2)
    assert not list(Path().rglob("*.json"))
