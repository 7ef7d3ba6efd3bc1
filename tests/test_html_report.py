"""`sagasim report`: what the page says is what the statistics say, and nothing of the data is taken for markup."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import Page, make_study, make_sweep, summary_of

from sagasim.cli import main
from sagasim.comparison import METRICS, comparison
from sagasim.html_report.differences import differences, losses, sentences
from sagasim.html_report.figures import Point, front
from sagasim.html_report.model import Setting
from sagasim.html_report.reading import read_comparison, read_sweep
from sagasim.html_report.sections import misses_figure
from sagasim.html_report.svg import drawing
from sagasim.stats import LEVEL, adjusted, mean_interval, paired

NOISE = (1.0, 1.3, 0.8, 1.1, 0.95)  # by seed, the same for all systems
SMALL = (0.004, -0.003, 0.002, -0.001, 0.003)  # by seed, of one system
HOSTILE = "<script>alert(1)</script> & \"x\" 'y' $z_1$ </style>"
PRESETS = ("vllm-0.6", "vllm-0.15", "saga")


def tct_s(keys: Mapping[str, Any], seed: int) -> float:
    """saga is 20 % faster at 16 tasks at a time and 5 % slower at 4; vllm-0.6 takes 3 times as long."""
    base = 10.0 * keys.get("concurrency", 4) * NOISE[seed]
    if keys.get("preset") == "vllm-0.6":
        return 3 * base * (1 + SMALL[seed])
    if keys.get("preset") == "saga":
        return base * (0.8 if keys.get("concurrency") == 16 else 1.05) * (1 - SMALL[seed])
    return base


def grid(**axes: tuple[Any, ...]) -> list[tuple[dict[str, Any], None]]:
    points: list[dict[str, Any]] = [{}]
    for key, values in axes.items():
        points = [{**point, key: value} for point in points for value in values]
    return [(point, None) for point in points]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return make_sweep(tmp_path / "sweep", grid(preset=PRESETS, concurrency=(4, 16)), range(5), tct_s)


def report(folder: Path, *options: str) -> Page:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(folder), *options])
    assert ended.value.code == 0
    return Page((folder / "report.html").read_bytes())


# ---- statistics


def test_one_scenario_is_compared_as_compare_does(tmp_path: Path) -> None:
    folder = make_sweep(tmp_path / "sweep", grid(preset=PRESETS), range(5), tct_s)
    found = differences(read_sweep(folder), "vllm-0.15")
    order = ("vllm-0.15", "vllm-0.6", "saga")
    expected = comparison({p: [summary_of(tct_s({"preset": p}, seed)) for seed in range(5)] for p in order})
    told = 0
    for row in expected:
        for name in order[1:]:
            cell = found.cells["", name, row["metric"]]
            wanted = row["by_preset"][name]["difference"]
            assert {key: cell.cell[key] for key in cell.cell} == {key: wanted[key] for key in cell.cell}
            assert bool(cell.verdict) == (wanted["significant"] and wanted["mean"] != 0)
            told += bool(cell.verdict)
    assert told
    assert len(found.cells) == 2 * len(METRICS)


def test_a_real_comparison_says_what_comparison_json_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "compared"
    work = ["--workload", "tool-calling", "--tasks", "6", "--gpus", "8", "--rate", "60", "--seeds", "3", "--no-figures"]
    with pytest.raises(SystemExit):
        main(["compare", "--presets", "vllm-0.15,vllm-0.6", *work, "--out", str(out)])
    content = json.loads((out / "comparison.json").read_text())
    runs = read_comparison(out)
    assert runs.settings[0].known("ttft_s.p95")  # from the runs: it is not in comparison.json
    found = differences(runs, "vllm-0.15")
    rows = {row["metric"]: row["by_preset"]["vllm-0.6"]["difference"] for row in content["metrics"]}
    for (_, _, path), cell in found.cells.items():
        assert {key: rows[path][key] for key in cell.cell} == dict(cell.cell)
    page = report(out)
    assert {"Differences from vllm-0.15", "Service levels", "Tasks, calls and tokens"} <= set(page.titles)
    for run in out.glob("*-seed*"):  # without the runs the page says less, and the same differences
        for file in run.iterdir():
            file.unlink()
        run.rmdir()
    assert differences(read_comparison(out), "vllm-0.15").cells == found.cells
    assert "Tasks, calls and tokens" not in report(out).titles


def test_several_scenarios_are_paired_each_on_its_own(sweep: Path) -> None:
    found = differences(read_sweep(sweep), "vllm-0.15")
    assert found.scenarios == ["concurrency=4", "concurrency=16"]
    for path in ("tct_s.mean", "prefix_hit_rate"):
        for count in (4, 16):
            own, base = (
                [summary_of(tct_s({"preset": p, "concurrency": count}, seed)) for seed in range(5)]
                for p in ("saga", "vllm-0.15")
            )
            first, _, second = path.partition(".")
            values = [[one[first][second] if second else one[first] for one in each] for each in (own, base)]
            cell = found.cells[f"concurrency={count}", "saga", path].cell
            assert {key: cell[key] for key in cell if key != "p"} == paired(*values)


def test_the_mean_completion_times_are_corrected_for_each_other(sweep: Path) -> None:
    found = differences(read_sweep(sweep), "vllm-0.15")
    for wanted in (True, False):
        family = [cell for (_, _, path), cell in found.cells.items() if (path == "tct_s.mean") is wanted]
        assert [cell.cell["p"] for cell in family] == adjusted([cell.cell["p_paired"] for cell in family])
        assert all(bool(cell.verdict) == (cell.cell["p"] < LEVEL and cell.cell["mean"] != 0) for cell in family)


def test_means_and_intervals_are_those_of_the_seeds(sweep: Path) -> None:
    page = report(sweep)
    interval = mean_interval([tct_s({"preset": "saga", "concurrency": 16}, seed) for seed in range(5)])
    (row,) = [r for r in page.texts["tr"] if r.startswith("16saga5")]
    assert f"{interval['mean']:.4g}[{interval['low']:.3g}, {interval['high']:.3g}]" in row
    hits = mean_interval([1 - tct_s({"preset": "saga", "concurrency": 16}, seed) / 1000 for seed in range(5)])["mean"]
    assert hits is not None
    assert f"{100 * hits:.4g}[" in row  # shares in percent


def test_a_seed_without_its_pair_is_left_out(tmp_path: Path) -> None:
    runs = read_sweep(make_sweep(tmp_path / "sweep", grid(preset=PRESETS[1:]), range(5), tct_s))
    for setting in runs.settings:
        del setting.by_seed[3 if setting.values["preset"] == "saga" else 1]  # type: ignore[attr-defined]
    cell = differences(runs, "vllm-0.15").cells["", "saga", "tct_s.mean"]
    values = [[tct_s({"preset": preset}, seed) for seed in (0, 2, 4)] for preset in ("saga", "vllm-0.15")]
    assert cell.seeds == 3
    assert {key: cell.cell[key] for key in cell.cell if key != "p"} == paired(*values)


def test_the_first_sentence_says_where_it_wins_and_where_it_loses(sweep: Path) -> None:
    runs = read_sweep(sweep)
    slow, saga = sentences(differences(runs, "vllm-0.15"), runs)
    assert re.fullmatch(
        r"saga completes tasks 20\.\d % \[[\d., ]+\] sooner than vllm-0\.15 at concurrency=16, and "
        r"completes them 4\.\d+ % \[[\d., ]+\] later at concurrency=4; of 2 scenarios: 1 sooner, 1 later",
        saga,
    )
    assert re.match(r"vllm-0\.6 takes 3 times \[[\d., ]+\] as long as vllm-0\.15 at", slow)


def test_losses_are_told_where_they_are_worst(sweep: Path) -> None:
    told = losses(differences(read_sweep(sweep), "vllm-0.15"))
    assert any(
        re.match(r"task completion, mean \+4\.\d+ % \[.*\] at concurrency=4 and worse in 1 of 2", t)
        for t in told["saga"]
    )
    assert "Where saga loses to vllm-0.15: " in " ".join(report(sweep).texts["p"])


def test_what_is_not_clear_is_not_called_a_difference(tmp_path: Path) -> None:
    def noisy(keys: Mapping[str, Any], seed: int) -> float:
        return 10.0 * NOISE[seed] * (1 + (SMALL[seed] if keys["preset"] == "saga" else 0))

    runs = read_sweep(make_sweep(tmp_path / "sweep", grid(preset=PRESETS[1:]), range(5), noisy))
    found = differences(runs, "vllm-0.15")
    (text,) = sentences(found, runs)
    assert text.startswith("saga shows no clear difference from vllm-0.15 in mean completion time: +0.0")
    assert not {cell.verdict for cell in found.cells.values()} - {""}
    assert losses(found) == {"saga": []}


def test_many_tests_make_a_small_p_less_than_clear(tmp_path: Path) -> None:
    def hardly(keys: Mapping[str, Any], seed: int) -> float:
        return 10.0 * NOISE[seed] * (1 + (0.003 + SMALL[seed] if keys["preset"] == "saga" else 0))

    runs = read_sweep(make_sweep(tmp_path / "sweep", grid(preset=PRESETS[1:]), range(5), hardly))
    found = differences(runs, "vllm-0.15")
    cell = found.cells["", "saga", "tct_s.mean"]
    assert cell.cell["p_paired"] < LEVEL < cell.cell["p"]
    assert cell.verdict == ""
    (text,) = sentences(found, runs)  # which tests mean completion times alone
    assert re.match(r"saga completes tasks 0\.4\d* % \[.*\] later than vllm-0\.15", text)


def test_equal_systems_and_single_seeds(tmp_path: Path) -> None:
    same = read_sweep(make_sweep(tmp_path / "same", grid(preset=PRESETS[1:]), range(3), lambda _, seed: 5.0 + seed))
    assert sentences(differences(same, "vllm-0.15"), same) == ["saga completes tasks exactly as soon as vllm-0.15"]
    single = make_sweep(tmp_path / "single", grid(preset=PRESETS[1:]), [0], tct_s)
    runs = read_sweep(single)
    assert sentences(differences(runs, "vllm-0.15"), runs) == ["saga completes tasks 4.58 % later than vllm-0.15"]
    assert "A single seed: no intervals, no tests." in report(single).texts["p"]


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(values: list[tuple[int, int]]) -> None:
    setting = Setting(None, {}, (), 0, {})
    found = [Point(setting, (x, x, x), (y, y, y)) for x, y in values]
    best = front(found)
    expected = {(x, y) for x, y in values if not any(a >= x and b <= y and (a, b) != (x, y) for a, b in values)}
    assert {(p.throughput[0], p.tct[0]) for p in best} == expected
    assert [p.throughput[0] for p in best] == sorted({x for x, _ in expected})


# ---- what is compared with what


def test_presets_are_compared_at_equal_other_keys(tmp_path: Path) -> None:
    points = grid(preset=PRESETS[1:], max_num_seqs=(64, 128), gpus=(8, 16))
    runs = read_sweep(make_sweep(tmp_path / "sweep", points, [0, 1], tct_s))
    assert runs.systems == ["vllm-0.15", "saga"]
    assert len(runs.scenarios) == 4
    assert all(len(each) == 2 for each in runs.scenarios.values())


def test_labels_name_systems_and_what_they_do_not_say_is_added(tmp_path: Path) -> None:
    points = [({"preset": "vllm-0.15"}, None), ({"preset": "vllm-0.15", "route": "session-affinity"}, "sticky")]
    both = [({**keys, "concurrency": n}, label) for keys, label in points for n in (4, 8)]
    runs = read_sweep(make_sweep(tmp_path / "sweep", both, [0, 1], tct_s))
    assert runs.systems == ["vllm-0.15", "sticky"]
    assert list(runs.scenarios) == ["concurrency=4", "concurrency=8"]


def test_clusters_are_compared_where_nothing_else_is(tmp_path: Path) -> None:
    runs = read_sweep(make_sweep(tmp_path / "sweep", grid(gpus=(8, 16)), [0, 1], lambda k, s: 9.0 / k["gpus"] + s))
    assert runs.systems == ["gpus=8", "gpus=16"]
    assert set(differences(runs, "gpus=8").systems) == {"gpus=16"}


def test_other_work_is_never_compared(tmp_path: Path) -> None:
    points = grid(workload=("tool-calling", "chat"), concurrency=(4, 8))
    runs = read_sweep(make_sweep(tmp_path / "sweep", points, [0, 1], tct_s))
    assert differences(runs, runs.base(None)).cells == {}


def test_settings_of_one_name_are_told_apart(tmp_path: Path) -> None:
    points = [({"order": f"./{folder}/mine.py:mine"}, None) for folder in ("a", "b")]
    runs = read_sweep(make_sweep(tmp_path / "sweep", points, [0, 1], tct_s))
    assert runs.systems == ["order=mine.py:mine", "order=mine.py:mine (2)"]


# ---- the page


def test_the_page_is_whole_and_needs_nothing_else(sweep: Path, tmp_path: Path) -> None:
    for folder in (sweep, make_study(tmp_path / "study")):
        page = report(folder)
        text = (folder / "report.html").read_text()
        assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text.partition("<script>")[0])
        assert not [a for _, a in page.tags if "src" in a or not (a.get("href") or "#").startswith("#")]
        assert [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "image")] == []
        ids = [a["id"] for _, a in page.tags if "id" in a]
        assert len(set(ids)) == len(ids)
        used = set(re.findall(r"url\(#([\w-]+)\)", text)) | set(re.findall(r'href="#([\w-]+)"', text))
        assert used == set(ids)
        drawings = list(page.attributes("svg"))
        assert drawings
        assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
        assert all(a["scope"] == "col" for a in page.attributes("th") if a.get("scope") != "row")
        assert "text" in page.texts  # of figures, which can be read and searched


def test_rows_are_as_long_as_their_heads(sweep: Path) -> None:
    report(sweep)
    text = (sweep / "report.html").read_text()
    tables = re.findall(r"<table.*?</table>", text, re.DOTALL)
    assert len(tables) == 2
    for table in tables:
        head, *rows = re.findall(r"<tr>.*?</tr>", table, re.DOTALL)
        count = head.count("<th ")
        assert rows
        assert all(len(re.findall(r"<t[hd][ >]", row)) == count for row in rows)


def test_texts_of_the_data_are_texts(tmp_path: Path) -> None:
    points = [({"preset": "vllm-0.15"}, None), ({"preset": "saga"}, HOSTILE), ({"preset": "vllm-0.6"}, "_ä日本\u2028")]
    note = {"notes": {"step times <b>": f"{HOSTILE}\x00\x1b[31m"}}
    page = report(make_sweep(tmp_path / "<i>&amp;", points, [0, 1, 2], tct_s, **note), "--base", HOSTILE)
    assert [len(page.texts[tag]) for tag in ("script", "style")] == [1, 1]
    assert "alert" not in page.texts["script"][0]
    assert not {"b", "i"} & {tag for tag, attributes in page.tags if "<b>" in str(attributes)}
    assert any(HOSTILE in text for text in page.texts["th"])
    assert f"Differences from {HOSTILE}" in page.titles
    assert any(HOSTILE[:45] in text for text in page.texts["text"])  # in figures too, where $z_1$ is no formula
    assert any(text.strip() == "_ä日本?" for text in page.texts["text"])  # a legend leaves no label out
    assert any(text.startswith(HOSTILE) for text in page.texts["dd"])
    assert "step times <b>" in page.texts["dt"]
    assert "\x1b" not in (tmp_path / "<i>&amp;" / "report.html").read_text()


def test_policies_of_a_study_are_texts(tmp_path: Path) -> None:
    page = report(make_study(tmp_path / "study", ("lru", "<script>x</script>")))
    assert len(page.texts["script"]) == 1
    assert "<script>x</script>" in page.texts["th"]


def test_the_same_folder_gives_the_same_bytes(sweep: Path) -> None:
    report(sweep)
    before = (sweep / "report.html").read_bytes()
    again = sweep / "again.html"
    command = [sys.executable, "-m", "sagasim", "report", str(sweep), "--out", str(again)]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "1"})  # of sets
    assert again.read_bytes() == before


def test_sections_follow_what_was_swept(tmp_path: Path) -> None:
    def titles(name: str, **axes: tuple[Any, ...]) -> set[str]:
        return set(report(make_sweep(tmp_path / name, grid(**axes), [0, 1], tct_s)).titles)

    differ, fronts = "Differences from vllm-0.15", "Pareto front: throughput against completion time"
    rest = "What the numbers rest on"
    assert titles("one") == {"The setting", rest}
    assert titles("presets", preset=PRESETS) == {"Every setting", differ, fronts, rest}
    over = "Over tasks at a time (concurrency)"
    assert titles("line", preset=PRESETS, concurrency=(4, 8)) == {"Every setting", differ, fronts, over, rest}
    heat = "Task completion, mean (s), by concurrency and max_num_seqs"
    assert heat in titles("heat", preset=PRESETS, concurrency=(4, 8), max_num_seqs=(8, 16))
    memory = titles("memory", preset=PRESETS, num_gpu_blocks_override=(1000, 2000))
    assert "Miss-ratio curves over num_gpu_blocks_override" in memory
    heads = Page((tmp_path / "memory" / "report.html").read_bytes()).texts["th"]
    assert {"num_gpu_blocks_override", "task completion, mean (s)"} <= set(heads)


def test_misses_are_what_was_not_hit(tmp_path: Path) -> None:
    points = grid(preset=PRESETS[1:], num_gpu_blocks_override=(1000, 2000))
    runs = read_sweep(make_sweep(tmp_path / "sweep", points, [0, 1], tct_s))
    with drawing():
        drawn, _ = misses_figure(runs, "num_gpu_blocks_override")
    lines = [line.get_ydata() for line in drawn.axes[0].lines]
    expected = [sum(tct_s({"preset": p}, seed) / 10 for seed in (0, 1)) / 2 for p in PRESETS[1:]]
    assert [list(line) for line in lines] == [pytest.approx([mean, mean]) for mean in expected]


def test_heat_maps_print_every_value_of_the_metric_asked_for(tmp_path: Path) -> None:
    points = grid(preset=PRESETS[1:], concurrency=(4, 16), max_num_seqs=(8, 16))
    page = report(make_sweep(tmp_path / "sweep", points, [0, 1], tct_s), "--metric", "ttft_s.p99")
    assert "Time to first token, p99 (s), by concurrency and max_num_seqs" in page.titles
    for keys, _ in points:
        mean = sum(tct_s(keys, seed) * 0.025 for seed in (0, 1)) / 2
        assert page.texts["text"].count(f"{mean:.4g}") >= 1


def test_a_large_sweep_keeps_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    points = grid(preset=PRESETS[1:], concurrency=(4, 16), max_num_seqs=tuple(range(1, 61)))
    page = report(make_sweep(tmp_path / "sweep", points, [0], tct_s))
    text = (tmp_path / "sweep" / "report.html").read_text()
    assert (
        len(re.findall(r'<th scope="row"|<th class="[^"]*" [^>]*scope="row"', text)) == len(points) + len(points) // 2
    )
    assert "... and 200 more, on the page" in capsys.readouterr().out
    assert len(text) < 1_000_000
    assert page.titles[:2] == ["Every setting", "Differences from vllm-0.15"]


def test_a_study_names_the_nearest_to_the_optimum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(make_study(tmp_path / "study"))
    lead = "At memory 1, lru regenerates 2 times as many blocks as the optimum, the least of 2 policies; "
    lead += "wa-lru 3 times, the most."
    assert lead in page.texts["p"]
    assert lead in capsys.readouterr().out
    assert page.titles == ["Miss-ratio curves", "Every policy beside the optimum"]


def test_a_run_has_a_page_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit):
        main(["run", "--trace", "tau-bench", "--tasks", "4", "--gpus", "8", "--no-figures", "--out", str(out)])
    summary = json.loads((out / "summary.json").read_text())
    page = report(out)
    assert f"Mean task completion is {summary['tct_s']['mean']:.4g} s." in page.texts["p"]
    assert summary["digest"] in page.texts["dd"]


def test_the_terminal_shows_what_the_page_leads_with(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = report(sweep)
    shown = capsys.readouterr().out
    for sentence in sentences(differences(read_sweep(sweep), "vllm-0.15"), read_sweep(sweep)):
        assert f"{sentence}." in shown
        assert f"{sentence}." in page.texts["p"]
    assert "Pareto front" in shown
    assert shown.endswith(f"report in {sweep / 'report.html'}\n")


def test_the_commands_of_its_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "report.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    spec = 'workload = "tool-calling"\ntasks = 3\ngpus = 8\n[grid]\npreset = ["vllm-0.6", "vllm-0.15"]\n'
    Path("pressure.toml").write_text(spec)
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        with pytest.raises(SystemExit) as ended:
            main(line.split()[1:])
        assert ended.value.code == 0
    assert "Differences from vllm-0.6" in Page(Path("first-token.html").read_bytes()).titles
