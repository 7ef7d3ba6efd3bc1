"""The page on the oracle: python -m sagasim.oracle.page [--out docs]

Writes oracle.md and figures/oracle-*.png: SAGA's table of ratios to Belady beside what is measured here, for every
policy there is, over memory sizes and seeds. The same sources give the same page.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from sagasim.config import resolve
from sagasim.errors import SagasimError
from sagasim.experiment import execute
from sagasim.oracle.output import draw
from sagasim.oracle.study import OPTIMUM, POOLED, RUN, UNLIMITED, Study, from_run, offline_policies, study
from sagasim.report import work_label
from sagasim.stats import LEVEL, mean_interval
from sagasim.units import BLOCK_TOKENS
from sagasim.work import prepare

__all__ = ["SCENARIOS", "Scenario", "main", "markdown", "write_page"]

TEXT = Path(__file__).with_name("page.md")  # what stands before the numbers
SIZES = (1.0, 1.1, 1.25)
SEEDS = 5
_SWE = {"LRU": 2.84, "prefix-LRU": 1.97, "WA-LRU": 1.31}
_WEB = {"LRU": 2.12, "prefix-LRU": 1.74, "WA-LRU": 1.28}
PAPER = {  # by scenario, regenerated tokens over those of Belady: arXiv 2605.00528
    "swe-bench": _SWE,
    "swe-bench-620": _SWE,
    "webarena": _WEB,
    "webarena-600": _WEB,
}
READINGS = {"LRU": ("flat-lru", "lru"), "prefix-LRU": ("prefix-lru", "lru"), "WA-LRU": ("wa-lru",)}
CLOSED_LOOP = (("lru", "none"), ("wa-lru", "aeg"), ("clairvoyant", "truth"))  # eviction, predictor


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is run, once for each seed."""

    name: str
    layer: Mapping[str, Any]


_A100 = {"gpu": "a100", "model": "llama-3-70b", "tp": 4, "over_length": "extend", "gpus": 64}
_H200 = {"gpu": "h200", "model": "llama-3.1-70b", "tp": 4, "over_length": "extend", "gpus": 8, "resample": True}
_CODING = {**_H200, "evict_batch_blocks": 512}  # contexts of thousands of blocks
SCENARIOS = (
    Scenario("swe-bench", {**_A100, "workload": "swe-bench", "tasks": 500}),
    Scenario("swe-bench-620", {**_A100, "workload": "swe-bench", "tasks": 620}),
    Scenario("webarena", {**_A100, "workload": "webarena", "tasks": 812}),
    Scenario("webarena-600", {**_A100, "workload": "webarena", "tasks": 600}),
    Scenario("weka-10", {**_CODING, "trace": "weka", "tasks": 60, "concurrency": 10}),
    Scenario("weka-18", {**_CODING, "trace": "weka", "tasks": 60, "concurrency": 18}),
    Scenario("swe-bench-mini", {**_CODING, "trace": "swe-bench-mini", "tasks": 327, "concurrency": 180}),
)

Say = Callable[[str], None]


@dataclass(slots=True)
class Found:
    """The studies of one scenario, by seed, and what its policies do in the closed loop."""

    title: str
    studies: list[Study]
    closed: dict[str, list[int]]  # eviction -> blocks regenerated on the same replica


def measure(scenario: Scenario, seeds: int, sizes: Sequence[float], say: Say) -> Found:
    found = Found("", [], {evict: [] for evict, _ in CLOSED_LOOP})
    for seed in range(seeds):
        work = prepare(resolve({**scenario.layer, "seed": seed}))
        for evict, predict in CLOSED_LOOP:
            config = resolve({**scenario.layer, "seed": seed, "evict": evict, "predict": predict})
            result = execute(work.under(config)).result
            again = int(result.calls["regenerated_here_tokens"].sum()) // BLOCK_TOKENS
            found.closed[evict].append(again)
            say(f"{scenario.name}, seed {seed}, {evict} in the closed loop: {again:,} blocks")
            if evict == "lru":
                inputs = from_run(result, work.tasks, pins=True)
                found.studies.append(study(inputs, offline_policies(), sizes))
                found.title = work_label(work.config, len(result.task_names))
                say(f"{scenario.name}, seed {seed}: replayed")
    return found


def write_page(
    out: Path,
    scenarios: Sequence[Scenario] = SCENARIOS,
    seeds: int = SEEDS,
    sizes: Sequence[float] = SIZES,
    say: Say = lambda _: None,
) -> None:
    """Measure everything, then write OUT/oracle.md and OUT/figures/oracle-*.png."""
    render(out, {scenario.name: measure(scenario, seeds, sizes, say) for scenario in scenarios})


def render(out: Path, found: Mapping[str, Found]) -> None:
    """Write the page and its figures of what was measured, by scenario."""
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    lines = [TEXT.read_text(encoding="utf-8").rstrip(), "", *_beside_the_paper(found)]
    for name, one in found.items():
        draw(figures / f"oracle-{name}.png", one.title, one.studies[0])
        lines += ["", *_section(name, one)]
    (out / "oracle.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _beside_the_paper(found: Mapping[str, Found]) -> list[str]:
    names = [name for name in PAPER if name in found]
    if not names:
        return []
    rows = [["paper's name", "replayed here as", *(f"{name}: paper / here" for name in names)]]
    for theirs, ours in READINGS.items():
        for policy in ours:
            cells = [f"{PAPER[name][theirs]} / {_interval(found[name].studies, policy, 1.0)}" for name in names]
            rows.append([theirs, f"`{policy}`", *cells])
    return ["## Beside the paper", "", BESIDE, "", *markdown(rows)]


BESIDE = """\
Regenerated tokens over those of the optimum, on the accesses of the LRU run, at the memory of the run: all seeds
together, with a 95 % interval over seeds. The paper says neither which memory pressure its numbers belong to nor what
its LRU is: `flat-lru` knows no prefixes, `lru` is the queue of vLLM. Its cluster is 16 replicas of 4 A100; 500 and 812
are its numbers of tasks, here all at once; 620 and 600 stand for more and for less pressure."""


def _section(name: str, one: Found) -> list[str]:
    sizes = list(dict.fromkeys(row.memory for row in one.studies[0].rows if row.memory is not None))
    policies = list(dict.fromkeys(row.policy for row in one.studies[0].rows))
    heads = ["policy", *(f"memory {size:g}" for size in sizes)]
    rows = [heads]
    for policy in policies:
        if policy == OPTIMUM:
            rows.append(["`belady`, blocks", *(_blocks(one.studies, policy, size) for size in sizes)])
        elif policy == POOLED:
            rows.append(["`belady-pooled`, blocks", *(_blocks(one.studies, policy, size) for size in sizes)])
        elif policy != UNLIMITED and not policy.startswith(RUN):
            rows.append([f"`{policy}`", *(_interval(one.studies, policy, size) for size in sizes)])
    own = next((p for p in policies if p.startswith(RUN)), None)
    if own is not None:
        rows.append(
            [
                f"the run itself ({own[len(RUN) + 2 :]})",
                *(_interval(one.studies, own, s) if s == 1.0 else "" for s in sizes),
            ]
        )
    first = [100 * s.first / s.reads for s in one.studies]
    about = (
        f"{one.title}; seeds 0 to {len(one.studies) - 1}. Of the blocks read, {_spread(first, '.3g')} % are first\n"
        "touches. Ratios: regenerated blocks of all seeds over those of the optimum of the same memory, with a 95 %\n"
        "interval over seeds; of the optimum, thousands of regenerated blocks, mean and interval."
    )
    closed = [["eviction in its own closed loop", "thousand blocks regenerated"]]
    closed += [
        [f"`{evict}`", _spread([again / 1000 for again in values], ",.4g")] for evict, values in one.closed.items()
    ]
    picture = f"![{name}](figures/oracle-{name}.png)"
    return [f"## {name}", "", about, "", picture, "", *markdown(rows), "", *markdown(closed)]


def _rows(studies: Sequence[Study], policy: str, size: float) -> Iterator[Any]:
    for one in studies:
        yield from (row for row in one.rows if row.policy == policy and row.memory == size)


def _interval(studies: Sequence[Study], policy: str, size: float) -> str:
    """Regenerated blocks of all seeds over those of the optimum, and the interval; or why there is none."""
    found = [row for row in _rows(studies, policy, size) if row.hits is not None and row.optimum is not None]
    missing = len(studies) - len(found)
    left_out = f"; infeasible in {missing} of {len(studies)}" if missing else ""
    if not found:
        return "infeasible"
    mean, low, high = ratio_interval([(row.regenerated, row.optimum) for row in found])
    if mean is None:
        return "optimum 0" + left_out
    return f"{mean:.3g}" + (f" ({low:.3g} to {high:.3g})" if low is not None else "") + left_out


def ratio_interval(pairs: Sequence[tuple[int, int]]) -> tuple[float | None, float | None, float | None]:
    """Sum over sum, and a 95 % interval: Student's t on the logarithm, its error by leaving out one seed at a time.

    None where there is nothing to divide by; no interval where a single seed decides whether there is a ratio.
    """
    own, best = sum(pair[0] for pair in pairs), sum(pair[1] for pair in pairs)
    if not best:
        return None, None, None
    rest = [(own - pair[0], best - pair[1]) for pair in pairs]
    if len(pairs) < 2 or not own or not all(a and b for a, b in rest):
        return own / best, None, None
    logs = [math.log(a / b) for a, b in rest]
    center, count = math.fsum(logs) / len(logs), len(logs)
    error = math.sqrt((count - 1) / count * math.fsum((value - center) ** 2 for value in logs))
    reach = float(stats.t.ppf(1 - LEVEL / 2, count - 1)) * error
    return own / best, own / best * math.exp(-reach), own / best * math.exp(reach)


def _blocks(studies: Sequence[Study], policy: str, size: float) -> str:
    found = [row.regenerated for row in _rows(studies, policy, size)]
    values = [again / 1000 for again in found if again is not None]
    missing = len(found) - len(values)
    parts = [_spread(values, ",.3g")] if values else []
    return "; ".join([*parts, f"infeasible in {missing} of {len(found)}"] if missing else parts)


def _spread(values: Sequence[float], form: str) -> str:
    """Mean and 95 % interval."""
    interval = mean_interval(values)
    mean, low, high = interval["mean"], interval["low"], interval["high"]
    if low is None or high is None or low == high:
        return f"{mean:{form}}"
    return f"{mean:{form}} ({max(low, 0.0):{form}} to {high:{form}})"


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, of its titles and rows."""
    head, *rest = rows
    rule = "|---|" + "--:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rest)]


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m sagasim.oracle.page", description="Compare policies with Belady.")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the page (default: docs)")
    options = parser.parse_args(arguments)
    try:
        write_page(options.out, say=_say)
    except SagasimError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
