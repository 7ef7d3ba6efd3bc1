"""The oracle on runs: laws that hold whatever the run, and the command."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sagasim import seams
from sagasim.cli import main
from sagasim.config import Config
from sagasim.contract import contract_tasks
from sagasim.core import Task
from sagasim.cost import constant_calibration
from sagasim.errors import ResultsError
from sagasim.oracle.accesses import access_of, run_logs, run_plans
from sagasim.oracle.study import OPTIMUM, POOLED, UNLIMITED, Row, Study, from_run, offline_policies, study
from sagasim.seams import IdleContext, Memory, Policy, Request
from sagasim.simulate import Result, simulate
from sagasim.units import BLOCK_TOKENS, PS_PER_MS
from tests.strategies import MINE, calibrations, configs, tasks

COSTS = constant_calibration(5 * PS_PER_MS, decode_ps=20_000, prefill_token_ps=30_000_000)


def contract_run(**changes: Any) -> tuple[Result, list[Task]]:
    """Forty tasks on three replicas with little memory."""
    own = {"num_gpu_blocks_override": 90, "max_num_batched_tokens": 256, "max_num_seqs": 6, "evict_batch_blocks": 4}
    base = Config(gpus=3, tp=1, model="llama-3.1-8b", arrivals="recorded", max_model_len=640, **own)  # type: ignore[arg-type]
    work = contract_tasks()
    return simulate(replace(base, **changes), work, calibration=COSTS), work


def rows_of(found: Study, policy: str) -> dict[float | None, Row]:
    return {row.memory: row for row in found.rows if row.policy == policy}


@settings(max_examples=60)
@given(tasks(), configs(), calibrations())
def test_nothing_beats_the_optimum_on_any_run(work: list[Task], config: Config, costs: dict[str, Any]) -> None:
    """study() raises if a policy does; the run itself is no exception, and the pooled optimum is below them all."""
    result = simulate(config, work, calibration=costs)
    found = study(from_run(result, work, pins=True), offline_policies(), [1.0, 1.5])
    best = rows_of(found, OPTIMUM)[1.0]
    assert best.regenerated is not None  # what the run held fits the memory that it had
    if config.prefix_caching:
        elsewhere = int(result.calls["regenerated_elsewhere_tokens"].sum()) // BLOCK_TOKENS
        own = next(row for row in found.rows if row.policy.startswith("as-run"))
        assert own.regenerated is not None
        assert best.regenerated <= own.regenerated
        pooled = rows_of(found, POOLED)
        if pooled:
            assert (pooled[1.0].regenerated or 0) <= own.regenerated + elsewhere
    for row in found.rows:
        assert row.hits is None or 0 <= row.hits <= row.accesses
        assert row.regenerated is None or row.regenerated >= 0


def test_first_touches_are_those_of_the_engine() -> None:
    """Without preemption, what a run neither found nor prefilled again was new to its replica."""
    result, work = contract_run(num_gpu_blocks_override=400)
    assert not result.calls["preemptions"].any()
    accesses = [access_of(plan) for plan in run_plans(result, work)]
    for log in run_logs(result, accesses):
        rows = result.calls["replica"] == int(log.name.split()[1])
        again = int(result.calls["regenerated_here_tokens"][rows].sum() + result.calls["hit_tokens"][rows].sum())
        assert log.reads - log.first == again // BLOCK_TOKENS


def test_lru_is_the_eviction_of_the_run() -> None:
    """Replayed on its own accesses it finds what the run found, but for blocks that nobody could use then."""
    result, work = contract_run(num_gpu_blocks_override=140)
    found = study(from_run(result, work, pins=True), ["lru"], [1.0])
    own = int(result.calls["hit_tokens"].sum()) // BLOCK_TOKENS
    replayed = rows_of(found, "lru")[1.0]
    assert replayed.hits is not None
    assert replayed.regenerated
    assert abs(replayed.hits - own) <= 0.05 * own


def test_the_policies_of_a_run_can_be_replayed() -> None:
    """A policy of one's own sees the same contexts as in the run; one of the engine asks its predictor."""
    result, work = contract_run()
    found = study(
        from_run(result, work, pins=True), [f"{MINE}:largest", f"{MINE}:ageing:weight=0.9", "wa-lru"], [1.0, 2.0]
    )
    policies = {row.policy for row in found.rows}
    assert policies == {
        OPTIMUM,
        f"{MINE}:largest",
        f"{MINE}:ageing:weight=0.9",
        "wa-lru",
        POOLED,
        UNLIMITED,
        "as-run: lru",
    }
    assert all(row.ratio is None or row.ratio >= 1 for row in found.rows if row.policy not in (POOLED, "as-run: lru"))


Told = tuple[str, str, int, int]  # what, task, call, when
RECORDERS: list[Recorder] = []


class Recorder:
    """Notes what it is told, and how much of it was told whenever somebody asks."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.asked: list[tuple[int, int]] = []
        RECORDERS.append(self)

    def sent(self, request: Request, now_ps: int) -> None:
        self.told.append(("sent", request.task, request.call, now_ps))

    def ended(self, request: Request, tools: tuple[str, ...], output_tokens: int, service_ps: int, now_ps: int) -> None:
        self.told.append(("ended", request.task, request.call, now_ps))

    def left(self, task: str, now_ps: int) -> None:
        self.told.append(("left", task, -1, now_ps))


class Asker:
    """The least recently released first, which its predictor is none the wiser for."""

    def __init__(self, workflow: Recorder) -> None:
        self._workflow = workflow

    def __call__(self, idles: Sequence[IdleContext], now_ps: int, memory: Memory) -> list[int]:
        self._workflow.asked.append((now_ps, len(self._workflow.told)))
        return [idle.since_ps for idle in idles]


def test_a_predictor_is_told_what_it_is_told_in_a_run_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Policy("evict", "asker", Asker, together=True, sees_workflow=True)
    monkeypatch.setitem(seams._REGISTRY, ("evict", "asker"), asker)
    monkeypatch.setitem(seams._REGISTRY, ("predict", "recorder"), Policy("predict", "recorder", Recorder))
    result, work = contract_run(evict="asker", predict="recorder")
    in_run = set(RECORDERS[-1].told)
    study(from_run(result, work, pins=True), ["asker"], [1.0])
    replayed = RECORDERS[-1]
    assert len(replayed.asked) > 50
    for now, count in replayed.asked:
        known = {one for one in in_run if one[3] < now or (one[3] == now and one[0] == "ended")}
        assert set(replayed.told[:count]) == known


def test_memory_that_calls_alone_exceed_is_infeasible() -> None:
    result, work = contract_run()
    held = [result.occupancy["held_blocks"][result.occupancy["replica"] == r].max() for r in range(3)]
    blocks = result.replicas["num_blocks"]
    enough = max(float(h) / float(b) for h, b in zip(held, blocks, strict=True))
    found = study(from_run(result, work, pins=True), ["fifo"], [enough - 0.02, enough + 0.02])
    for policy in (OPTIMUM, "fifo"):
        below, above = rows_of(found, policy).values()
        assert below.hits is None
        assert below.ratio is None
        assert above.hits is not None


def test_other_tasks_than_those_of_the_run_are_refused() -> None:
    result, work = contract_run()
    with pytest.raises(ResultsError, match="task 1 is 'task"):
        from_run(result, [work[0], *work[2:]], pins=True)
    longer = replace(work[0], calls=(replace(work[0].calls[0], output_tokens=99), *work[0].calls[1:]))
    with pytest.raises(ResultsError, match="has other tokens"):
        from_run(result, [longer, *work[1:]], pins=True)


# ---- the command

SMALL = ["--trace", "tau-bench", "--tasks", "12", "--gpus", "4"]
FEW = ["--policies", "lru,fifo,wa-lru", "--memory", "0.02,0.1,1"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sagasim(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out, err = capsys.readouterr()
    assert stop.value.code == code, err
    return out if code == 0 else err


def read_csv(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_trace_without_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    out = sagasim(capsys, "oracle", *SMALL, *FEW, "--pins", "none", "--out", "found")
    assert "calls are instants" in out
    assert {path.name for path in Path("found").iterdir()} == {"misses.csv", "oracle.json", "figure.png"}
    rows = read_csv("found/misses.csv")
    assert list(rows[0]) == ["policy", "memory_blocks", "accesses", "hits", "misses", "ratio"]
    assert [row["policy"] for row in rows] == [p for p in (OPTIMUM, "lru", "fifo", "wa-lru") for _ in range(3)] + [
        UNLIMITED
    ]
    first = int(rows[-1]["misses"])
    by_key = {(row["policy"], row["memory_blocks"]): row for row in rows}
    for (policy, blocks), row in by_key.items():
        if row["hits"]:
            assert int(row["hits"]) + int(row["misses"]) == int(row["accesses"])
        if policy != UNLIMITED and row["ratio"] not in ("infeasible", "optimum 0"):
            best = int(by_key[OPTIMUM, blocks]["misses"]) - first
            assert float(row["ratio"]) == pytest.approx((int(row["misses"]) - first) / best, rel=1e-3)


def test_an_earlier_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Simulated before or at once, the same bytes."""
    sagasim(capsys, "run", *SMALL, "--no-figures", "--out", "run")
    before = sagasim(capsys, "oracle", "--run", "run", *FEW, "--no-figures", "--out", "a")
    at_once = sagasim(capsys, "oracle", *SMALL, *FEW, "--no-figures", "--out", "b")
    assert before.splitlines()[:-1] == at_once.splitlines()[:-1]
    for name in ("misses.csv", "oracle.json"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()
    instants = sagasim(capsys, "oracle", "--run", "run", "--policies", "lru", "--pins", "none")
    assert "calls are instants" in instants
    assert "as-run" not in instants


def test_accesses_are_exported_and_read_again(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pins", "none", "--policies", "lru", "--no-figures"]
    out = sagasim(capsys, "oracle", *SMALL[:2], "--tasks", "2", *options, "--export", "oracleGeneral", "--out", "found")
    requests = json.loads(Path("found/oracle.json").read_text())["calls"]
    assert "requests written as oracleGeneral" in out
    again = sagasim(capsys, "oracle", "--trace", "found/accesses.oracleGeneral", "--memory", "0.1,0.5")
    assert f"{Path('found/accesses.oracleGeneral').stat().st_size // 24:,} calls" in again
    assert requests < Path("found/accesses.oracleGeneral").stat().st_size // 24
    for policy in ("belady", "s3-fifo", "sieve", "random"):
        assert f"\n{policy} " in again
    assert "wa-lru" not in again


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--trace", "tau-bench", "--policies", "lur"], "unknown policy 'lur'"),
        (["--trace", "tau-bench", "--memory", "0.5,many"], "--memory: 'many' does not fit"),
        (["--trace", "tau-bench", "--memory", "0"], "--memory: '0' does not fit"),
        (["--trace", "tau-bench", "--pins", "some"], "--pins: 'some' does not fit"),
        (["--trace", "tau-bench", "--export", "parquet", "--out", "x"], "--export: 'parquet' does not fit"),
        (["--trace", "tau-bench", "--export", "csv"], "no folder for the accesses"),
        (["--run", "nowhere"], "nowhere: no such folder"),
        (["--run", "nowhere", "--trace", "tau-bench"], "--run: the run decides 'trace'"),
        (["--run", "nowhere", "--seed", "3"], "--run: the run decides 'seed'"),
        ([], "no source of tasks"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    err = sagasim(capsys, "oracle", *argv, code=2)
    assert says in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=8)
@given(st.integers(1, 4), st.sampled_from([0.3, 0.5, 1.0, 3.0]))
def test_memory_is_a_part_of_the_blocks_of_each_replica(gpus: int, size: float) -> None:
    result, work = contract_run(gpus=gpus)
    found = study(from_run(result, work, pins=True), [], [size])
    assert rows_of(found, OPTIMUM)[size].memory_blocks == gpus * round(89 * size)
