"""sagasim from Python: what the objects hold is what the commands write; policies of a cell are used at once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import sagasim
from sagasim import seams
from sagasim.cli import main
from sagasim.config import Config, resolve
from sagasim.errors import ConfigError, PolicyError, ResultsError, SagasimError
from sagasim.eventlog import UNFINISHED
from sagasim.experiment import Run
from sagasim.interface import Simulation
from sagasim.interface.frames import calls_frame, columns_frame, tasks_frame
from sagasim.interface.headlines import Headline
from sagasim.metrics import summary
from sagasim.simulate import Result
from sagasim.simulate import simulate as replay
from sagasim.slo import bases, slowdowns
from sagasim.stats import mean_interval, paired
from sagasim.work import prepare

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"trace": "tau-bench", "tasks": 4, "gpus": 8}
BUSY: dict[str, Any] = {"workload": "multi-tenant", "tasks": 20, "gpus": 4, "max_num_seqs": 3, "arrivals": "at-once"}
S = 10**12


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Own policies of one test are none of another's; files go to an empty folder."""
    seams.policies()
    monkeypatch.setattr(seams, "_REGISTRY", dict(seams._REGISTRY))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def small() -> Simulation:
    return sagasim.simulate(**SMALL)


def command(*argv: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0


def files_of(folder: str) -> dict[str, bytes]:
    """Every file but those that tell the time."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file() and path.name != "timing.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


# ---- the same as the commands


def test_a_run_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    run = sagasim.simulate(**SMALL, rate=np.float64(30), seed=np.int64(3), preset="vllm-0.6")
    assert run.save("python") == Path("python")
    options = ["--trace", "tau-bench", "--tasks", "4", "--gpus", "8", "--rate", "30", "--seed", "3"]
    command("run", *options, "--preset", "vllm-0.6", "--out", "shell")
    capsys.readouterr()
    assert files_of("python") == files_of("shell")
    assert {"figure.png", "summary.json", "calls.parquet"} <= set(files_of("python"))
    assert Path("python/timing.json").is_file()
    again = Simulation.read("python")
    assert (again.digest, again.metrics) == (run.digest, run.metrics)
    assert sagasim.simulate("python/config.toml").digest == run.digest


def test_a_comparison_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    work = {"workload": "tool-calling", "tasks": 12, "gpus": 4, "rate": 20}
    sagasim.compare("vllm-0.15", {"lifo": {"order": "lifo"}}, seeds=2, **work).save("python")
    options = ["--workload", "tool-calling", "--tasks", "12", "--gpus", "4", "--rate", "20", "--seeds", "2"]
    command("compare", "--presets", "vllm-0.15", "--variant", "lifo=vllm-0.15 order=lifo", *options, "--out", "shell")
    capsys.readouterr()
    assert files_of("python") == files_of("shell")
    assert {"comparison.json", "figure.png", "lifo-seed1/calls.parquet"} <= set(files_of("python"))


def test_an_oracle_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    found = sagasim.oracle(policies=["lfu", "wa-lru"], memory=[0.5, 1], **SMALL)
    found.save("python")
    options = ["--trace", "tau-bench", "--tasks", "4", "--gpus", "8", "--policies", "lfu,wa-lru", "--memory", "0.5,1"]
    command("oracle", *options, "--out", "shell")
    title, _, table = repr(found).partition("\n")
    assert title.startswith("tau-bench: 4 tasks")
    assert table in capsys.readouterr().out
    assert files_of("python") == files_of("shell")
    assert set(found.rows["policy"]) >= {"belady", "lfu", "wa-lru", "unlimited"}


def test_a_sweep_is_its_runs_one_by_one() -> None:
    found = sagasim.sweep({"gpus": [8, 4], "order": ["fcfs", "lifo"]}, seeds=2, **BUSY | {"gpus": None})
    assert len(found.table) == 8
    assert found.keys == ["gpus", "order"]
    for gpus, order in ((4, "lifo"), (8, "fcfs")):
        own = found.table[(found.table["gpus"] == gpus) & (found.table["order"] == order)]
        alone = [sagasim.simulate(**BUSY | {"gpus": gpus, "order": order, "seed": seed}) for seed in (0, 1)]
        assert list(own["digest"]) == [run.digest for run in alone]
        assert found.means.loc[(gpus, order), "tct_s.mean"] == pytest.approx(
            sum(run.metrics["tct_s"]["mean"] for run in alone) / 2, rel=1e-12
        )
    assert "8 runs, 2 seeds" in repr(found)
    assert "tasks" not in found.means  # a key, no metric
    (axes,) = found.plot("gpus", by="order").axes
    (line, _) = axes.lines
    assert line.get_label() == "order = fcfs"
    assert list(line.get_xdata()) == [4, 8]
    fcfs = found.means.xs("fcfs", level="order")["tct_s.mean"]
    assert list(line.get_ydata()) == pytest.approx([fcfs[4], fcfs[8]], rel=1e-8)


def test_points_of_a_sweep_by_their_labels() -> None:
    points = [{"label": "few", "max_num_seqs": 2}, {"label": "many", "max_num_seqs": 8}]
    found = sagasim.sweep(points=points, jobs=1, out="kept", **BUSY | {"max_num_seqs": None})
    assert sorted(found.means.index) == ["few", "many"]
    assert found.means.loc["few", "tct_s.mean"] > found.means.loc["many", "tct_s.mean"]
    assert Path("kept/results.parquet").is_file()
    assert found.failed == []


def test_seeds_alone_are_a_sweep_too() -> None:
    found = sagasim.sweep(seeds=[3, 5], jobs=1, **SMALL | {"trace": None, "workload": "tool-calling"})
    assert list(found.table["seed"]) == [3, 5]
    assert found.means["tct_s.mean"].item() == pytest.approx(found.table["tct_s.mean"].mean(), rel=1e-12)
    assert found.table["tct_s.mean"].nunique() == 2
    assert "all" in repr(found)


def test_a_sweep_without_any_result_says_why() -> None:
    Path("t.jsonl").write_text(
        '{"sagasim_trace":1}\n{"task":"t","calls":[{"name":"a","new_tokens":50,"output_tokens":9}]}\n'
    )
    with pytest.raises(ResultsError, match=r"no point has a result; max_model_len=20 seed 0: .*59 tokens where 20 fit"):
        sagasim.sweep({"max_model_len": [20, 30]}, trace="t.jsonl", gpus=4, jobs=1)


# ---- frames


def test_calls_in_seconds(two_tasks: Result) -> None:
    calls = calls_frame(two_tasks)
    assert not [name for name in calls.columns if name.endswith(("_ps", "_us"))]
    assert list(calls["submitted_s"]) == [0, 2, 4]
    assert list(calls["queueing_s"]) == [0, 1, 2]
    assert list(calls["ttft_s"]) == [1, 2, 4]
    assert list(calls["call_s"]) == [3, 2, 6]
    assert list(calls["tpot_s"].round(9))[::2] == [1, 0.5]
    assert np.isnan(calls["tpot_s"][1])  # a single token
    assert list(calls["reused_block_s"]) == [0, 0, 4]
    assert list(calls["tenant"]) == ["acme", "zeta", "zeta"]
    assert list(calls["task_name"]) == ["task-0", "task-1", "task-1"]
    assert calls["measured"].all()


def test_tasks_in_seconds(two_tasks: Result) -> None:
    tasks = tasks_frame(two_tasks, np.array([2 * S, 2 * S]))
    assert list(tasks["tct_s"]) == [4, 8]
    assert list(tasks["slowdown"]) == [2, 4]
    assert "slowdown" not in tasks_frame(two_tasks)
    cut = {**two_tasks.tasks, "finished_ps": np.array([4 * S, UNFINISHED])}
    unfinished = tasks_frame(replace(two_tasks, tasks=cut, config=replace(two_tasks.config, horizon_s=9.0)))
    assert unfinished["tct_s"].iloc[0] == 4
    assert unfinished[["tct_s", "finished_s"]].iloc[1].isna().all()


def test_the_window_is_marked(make_result: Callable[..., Result], two_task_rows: Mapping[str, Any]) -> None:
    result = make_result(**two_task_rows, tenants=("acme", "zeta"), warmup=0.5, cooldown=0.0)
    assert list(tasks_frame(result)["measured"]) == [False, True]
    assert list(calls_frame(result)["measured"]) == [False, True, True]


def test_metrics_follow_from_the_frames() -> None:
    run = sagasim.simulate(**BUSY)
    tasks, calls = run.tasks[run.tasks["measured"]], run.calls[run.calls["measured"]]
    assert run.summary["tct_s.mean"] == pytest.approx(tasks["tct_s"].mean(), rel=1e-8)
    assert run.summary["tct_s.p95"] == pytest.approx(tasks["tct_s"].quantile(0.95), rel=1e-8)
    assert run.summary["ttft_s.p99"] == pytest.approx(calls["ttft_s"].quantile(0.99), rel=1e-8)
    assert run.summary["tpot_s.mean"] == pytest.approx(calls["tpot_s"].mean(), rel=1e-8)
    assert run.summary["prefix_hit_rate"] == pytest.approx(calls["hit_tokens"].sum() / calls["prompt_tokens"].sum())
    by_tenant = tasks.groupby("tenant")["tct_s"].mean()
    assert dict(run.tenants["tct_s.mean"].dropna()) == pytest.approx(dict(by_tenant), rel=1e-8)
    assert run.occupancy["held_blocks"].max() <= run.replicas["num_blocks"].max()
    assert run.occupancy["time_s"].max() <= run.summary["makespan_s"] + 1e-6


def test_frames_of_a_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*given: object) -> float:
        raise AssertionError("the idle times need no capacity")

    monkeypatch.setattr("sagasim.slo.capacity", never)
    work: dict[str, Any] = {**BUSY, "warmup": 0.3}
    found = sagasim.compare(variants={"fcfs": {}, "lifo": {"order": "lifo"}}, seeds=2, slo="idle", **work)
    assert list(found.runs) == [("fcfs", 0), ("lifo", 0), ("fcfs", 1), ("lifo", 1)]
    means = {key: run.metrics["tct_s"]["mean"] for key, run in found.runs.items()}
    told = paired([means["lifo", 0], means["lifo", 1]], [means["fcfs", 0], means["fcfs", 1]])
    row = found.metrics.loc["tct_s.mean", "lifo"]
    assert row["mean"] == pytest.approx((means["lifo", 0] + means["lifo", 1]) / 2)
    assert row["relative"] == pytest.approx(told["ratio"] - 1)
    assert row["difference"] == told["mean"]
    assert np.isnan(found.metrics.loc["tct_s.mean", "fcfs"]["relative"])
    assert dict(found.by_seed["tct_s.mean"]) == means
    own = found.tasks[(found.tasks["system"] == "lifo") & (found.tasks["seed"] == 1) & found.tasks["measured"]]
    alone = bases(prepare(resolve({**work, "seed": 1})), expected=False)
    assert list(alone) == ["idle"]
    assert len(own) == 14
    assert list(own["slowdown"]) == pytest.approx(list(slowdowns(found.runs["lifo", 1].result, alone["idle"])))
    assert len(found.calls) == sum(len(run.calls) for run in found.runs.values())
    assert set(found.occupancy["system"]) == {"fcfs", "lifo"}
    by_seed = found.tasks[found.tasks["measured"]].groupby(["system", "tenant", "seed"])["slowdown"].mean()
    for tenant, row in found.tenants.loc["lifo"].iterrows():
        told = mean_interval(list(by_seed["lifo", tenant]))
        assert row["slowdown"] == told["mean"]
        assert told["low"] is None or (row["slowdown_low"], row["slowdown_high"]) == (told["low"], told["high"])
    assert found.tenants.loc["lifo"]["tasks"].sum() == 28


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    run = sagasim.simulate(**SMALL)
    assert run.metrics["tasks"] == 4
    assert "task completion (s)" in repr(run)
    assert run.plot().axes
    with pytest.raises(ConfigError, match=r"^frames: pandas is not installed; expected pip install 'sagasim\[notebook"):
        _ = run.calls


# ---- policies


def digest(**settings: Any) -> str:
    return sagasim.simulate(**BUSY | settings).digest


def test_a_function_is_used_at_once() -> None:
    def long_first(request: Any, now_ps: int) -> float:
        return -request.prompt_tokens

    Path("own.py").write_text(
        "from sagasim.seams import policy\n"
        "@policy('order', 'of-a-file')\n"
        "def of_a_file(request, now_ps):\n    return -request.prompt_tokens\n"
    )
    told = digest(order="./own.py:of-a-file")
    assert digest(order=long_first) == told != digest()
    assert digest(order="long-first") == told  # by its name from now on

    def long_first(request: Any, now_ps: int) -> float:  # type: ignore[no-redef]
        return request.prompt_tokens

    assert digest(order=long_first) == digest(order=lambda request, now_ps: request.prompt_tokens) != told


def test_a_class_is_made_anew_for_every_run() -> None:
    @sagasim.policy("order", "turns")
    class Turns:
        def __init__(self, *, step: int = 1) -> None:
            self.count, self.step = 0, step

        def __call__(self, request: Any, now_ps: int) -> int:
            self.count += self.step
            return self.count % 3

    first = digest(order=Turns)
    assert digest(order=Turns) == first == digest(order="turns") != digest(order="turns:step=3")


def test_policies_of_one_name_stay_apart() -> None:
    def made(sign: int) -> Callable[..., Any]:
        def rule(request: Any, now_ps: int) -> float:
            return sign * request.prompt_tokens

        return rule

    found = sagasim.compare(variants={"a": {"order": made(1)}, "b": {"order": made(-1)}}, seeds=1, slo=False, **BUSY)
    a, b = (found.runs[name, 0].digest for name in "ab")
    assert a == digest(order=made(1)) != b == digest(order=made(-1))
    old = made(1)
    digest(order=old)
    again = sagasim.compare(variants={"b": {"order": old}, "a": {"order": made(-1)}}, seeds=1, slo=False, **BUSY)
    assert [again.runs[name, 0].digest for name in "ba"] == [a, b]
    named = sagasim.compare(variants={"a": {"order": "rule"}, "b": {"order": made(1)}}, seeds=1, slo=False, **BUSY)
    assert [run.config.order for run in named.runs.values()] == ["rule", "rule-2"]


def test_a_run_says_that_its_policy_is_in_no_file() -> None:
    def mine(request: Any, now_ps: int) -> int:
        return 0

    note = {key: text for key, text in sagasim.simulate(**BUSY, order=mine).notes.items() if "order" in key}
    assert note == {"order mine": f"defined in module {__name__}, which config.toml does not name"}
    assert "order fcfs" not in sagasim.simulate(**BUSY).notes


def test_an_own_eviction_beside_the_optimum() -> None:
    def oldest(idle: Any, now_ps: int) -> int:
        return idle.since_ps

    run = sagasim.simulate(workload="swe-bench", tasks=30, gpus=4, arrivals="at-once", num_gpu_blocks_override=9000)
    rows = sagasim.oracle(run, [oldest, "lru"], memory=[1]).rows
    again = rows[rows["memory"] == 1].set_index("policy")["regenerated"]
    assert 0 < again["belady"] < again["oldest"]
    assert again["oldest"] == pytest.approx(again["lru"], rel=0.2)  # the same rule, by context and by block


def wrong(request: Any) -> int:
    return 0


class Instance:
    def __call__(self, request: Any, now_ps: int) -> int:
        return 0


def fcfs(request: Any, now_ps: int) -> int:
    return 0


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"order": wrong}, PolicyError, "cannot be called .*; expected a decision from"),
        ({"order": Instance()}, PolicyError, "order: a Instance is no policy; expected a name, a function, or a class"),
        ({"order": 3}, PolicyError, "order: a int is no policy"),
        ({"order": fcfs}, PolicyError, "'fcfs' is a policy of sagasim; expected another name"),
        ({"order": "fcsf"}, PolicyError, "fcsf: unknown order policy 'fcsf'; expected 'fcfs' perhaps"),
        ({"preset": "vllm-0.14"}, ConfigError, "preset: unknown preset 'vllm-0.14'; expected 'vllm-0.15' perhaps"),
        ({"rat": 3}, ConfigError, "rat: unknown key 'rat'"),
        ({"rate": 3, "load": 0.5}, ConfigError, "options: rate and load exclude each other; expected one of them"),
        ({"workload": "chat"}, ConfigError, "trace and workload exclude each other"),
        ({"rate": 3, "rate_per_min": 4}, ConfigError, "rate_per_min: given twice"),
        ({"gpus": "8"}, ConfigError, "gpus: '8' does not fit; expected a whole number"),
        ({"tasks": True}, ConfigError, "tasks: True does not fit"),
        ({"config": 3}, ConfigError, "config: a int; expected a Config, a mapping or a TOML file"),
    ],
)
def test_mistakes_are_one_line(settings: dict[str, Any], error: type[SagasimError], text: str) -> None:
    with pytest.raises(error, match=text) as found:
        sagasim.simulate(**SMALL | settings)
    assert "\n" not in str(found.value)
    assert found.value._render_traceback_() == [f"{error.__name__}: {found.value}"]  # all that a notebook shows


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (partial(sagasim.compare, **SMALL), "nothing to compare"),
        (partial(sagasim.compare, ["vllm-0.6", "vllm-0.6"], **SMALL), "two systems of one name"),
        (partial(sagasim.compare, ["vllm-0.6"], {"a/b": {}}, **SMALL), "'a/b' cannot name a folder"),
        (partial(sagasim.compare, variants={"a": {"rate": 3}}, **SMALL), "'rate_per_min' is a matter of the work"),
        (partial(sagasim.compare, variants={"a": "lifo"}, **SMALL), "variant 'a': a str; expected keys"),
        (partial(sagasim.compare, "vllm-0.6", seeds=0, **SMALL), "seeds: 0 does not fit"),
        (partial(sagasim.compare, "vllm-0.6", slo="ideal", **SMALL), "slo: 'ideal' does not fit"),
        (partial(sagasim.oracle, memory=[0], **SMALL), "'0' does not fit"),
        (partial(sagasim.oracle, "missing"), "no such folder"),
        (partial(sagasim.oracle, policies=["lri"], **SMALL), "unknown policy 'lri'"),
        (partial(sagasim.sweep, {"order": [fcfs]}, **SMALL), "'fcfs' is defined in this program"),
        (partial(sagasim.sweep, order=fcfs, **SMALL), "'fcfs' is defined in this program"),
        (partial(sagasim.sweep, {"gpus": 8}, trace="tau-bench"), "grid, gpus: a int; expected a list"),
        (partial(sagasim.policy, "ordre", "mine"), "unknown kind 'ordre'; expected 'order' perhaps"),
    ],
)
def test_other_mistakes_are_one_line(call: Callable[[], object], text: str) -> None:
    with pytest.raises(SagasimError, match=text) as found:
        call()
    assert "\n" not in str(found.value)


def test_what_a_program_defines_cannot_be_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcfs, "__module__", "__main__")
    sagasim.policy("order", "of-a-cell")(fcfs)
    with pytest.raises(PolicyError, match="'of-a-cell' is defined in this program; expected"):
        sagasim.sweep({"order": ["fcfs", "of-a-cell"]}, **SMALL)


def test_an_oracle_takes_a_run_or_settings(small: Simulation) -> None:
    with pytest.raises(ConfigError, match="the run decides 'gpus'"):
        sagasim.oracle(small, gpus=4)
    small.save("kept")
    of_folder, of_run = (sagasim.oracle(run, ["lru"], memory=[1]).rows for run in ("kept", small))
    pd.testing.assert_frame_equal(of_folder, of_run)


# ---- what they show


def test_a_configuration_and_its_tasks_give_the_log_alone() -> None:
    config = Config(trace="tau-bench", gpus=8, max_num_seqs=8, max_num_batched_tokens=512, max_model_len=131_072)
    tasks = list(prepare(resolve(SMALL)).tasks)
    result = sagasim.simulate(config, tasks)
    assert isinstance(result, Result)
    assert result.digest == replay(config, tasks).digest


def test_a_configuration_is_run_again(small: Simulation) -> None:
    assert sagasim.simulate(small.config).digest == small.digest
    other = sagasim.simulate(small.config, preset="vllm-0.6", rate=5)
    assert (other.config.preset, other.config.route, other.config.arrivals) == ("vllm-0.6", "least-loaded", "poisson")
    assert sagasim.simulate({"trace": "tau-bench", "gpus": 8}, tasks=4).digest == small.digest


def test_objects_show_their_headlines(small: Simulation) -> None:
    for text in (repr(small), small._repr_html_()):
        assert "tau-bench: 4 tasks" in text
        assert f"{small.metrics['tct_s']['mean']:.4g}" in text
        assert f"{100 * small.metrics['prefix_hit_rate']:.1f} %" in text
    assert len(small._repr_html_()) < 4000
    found = sagasim.compare(["vllm-0.6", "vllm-0.15"], seeds=2, slo=False, **SMALL)
    assert f"{found.metrics.loc[('tct_s.mean', 'vllm-0.15'), 'mean']:.4g}" in repr(found)
    assert "2 seeds" in repr(found)
    assert len(found._repr_html_()) < 6000
    html = Headline("<b>", [["", "a & b"], ["<i>", "1"]], "<script>", ".plot()").html()
    assert "<script>" not in html
    assert "<i>" not in html
    assert "a &amp; b" in html
    for whole in (html, small._repr_html_(), found._repr_html_()):
        assert ElementTree.fromstring(whole).find("table") is not None


def test_panels(small: Simulation) -> None:
    assert small.plot()._repr_png_().startswith(b"\x89PNG")
    titles = [axes.get_title("left") for axes in small.plot("tasks", "memory").axes]
    assert titles == ["Tasks completed (left is better)", "KV memory over time (all replicas, first seed)"]
    with pytest.raises(ConfigError, match="plot: no panel 'task'; expected 'tasks' perhaps"):
        small.plot("task")
    found = sagasim.compare(variants={"fcfs": {}, "lifo": {"order": "lifo"}}, seeds=3, slo="idle", **BUSY)
    names = ("tasks", "first_token", "tokens", "memory", "sizes", "levels_idle", "tenants", "differences")
    assert len(found.plot(*names).axes) == len(names)
    (axes,) = found.plot("differences").axes
    ratios = [np.array(bar.lines[0].get_xdata(), dtype=float) for bar in axes.containers]
    told = [1 + value for value in found.metrics["relative"].dropna()]
    assert set(np.round(ratios[0], 9)) <= set(np.round(told, 9))
    assert len(ratios[0]) >= 9
    assert found.plot().get_size_inches()[0] == 16  # that of the command


def test_summary_of_a_run_by_hand(two_tasks: Result) -> None:
    run = Simulation(Run(two_tasks, summary(two_tasks), {}))
    assert run.summary["tct_s.mean"] == 6
    assert run.summary["tasks"] == 2
    assert list(run.tenants.index) == ["acme", "zeta"]
    assert list(columns_frame(two_tasks.occupancy)["time_s"]) == [0, 3, 10]


def test_functions_stay_functions_whatever_is_imported() -> None:
    code = (
        "import sagasim.oracle.study, sagasim.simulate, sagasim.interface, sagasim\n"
        "from sagasim import compare, oracle, policy, simulate, sweep\n"
        "from sagasim.oracle.study import study\n"
        "import sagasim.oracle.formats\n"
        "for one in (compare, oracle, policy, simulate, sweep):\n"
        "    assert type(one).__name__ == 'function', one\n"
        "    assert getattr(sagasim, one.__name__) is one, one\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=ROOT)
