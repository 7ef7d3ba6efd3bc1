"""Paired differences from one system, scenario by scenario, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sagasim.comparison import METRICS
from sagasim.html_report.model import KEY, MAIN, Column, Runs, Setting, column
from sagasim.report import difference_text, number
from sagasim.stats import LEVEL, adjusted, paired

__all__ = ["Difference", "Differences", "differences", "losses", "sentences"]

_SENTENCES = 4
_ALIKE = 1e-9
_MANY_TIMES = 1.95  # from here on a ratio reads better than a percentage


@dataclass(frozen=True, slots=True)
class Difference:
    """How a system differs from the base in one scenario and metric; cell: what stats.paired says, and `p`.

    verdict: "better" or "worse" where it clearly is, "differs" where neither can be said, "" where nothing is clear.
    """

    scenario: str
    system: str
    column: Column
    seeds: int
    cell: Mapping[str, Any]
    verdict: str

    @property
    def text(self) -> str:
        """As in the tables of `compare`, without its mark."""
        return difference_text({"difference": {**self.cell, "significant": None}}, share=self.column.share)


@dataclass(frozen=True, slots=True)
class Differences:
    """All of them, by scenario, system and path.

    columns: the metrics; seeds: most seeds of a pair; family: in words, which tests are corrected for together.
    """

    base: str
    columns: Sequence[Column]
    cells: Mapping[tuple[str, str, str], Difference]
    seeds: int
    family: str

    @property
    def systems(self) -> list[str]:
        return list(dict.fromkeys(system for _, system, _ in self.cells))

    @property
    def scenarios(self) -> list[str]:
        return list(dict.fromkeys(scenario for scenario, _, _ in self.cells))

    def of(self, system: str, path: str) -> list[Difference]:
        """Those of one system and metric, by scenario."""
        return [cell for (_, name, own), cell in self.cells.items() if name == system and own == path]


def differences(runs: Runs, base: str) -> Differences:
    """Every other system against the base, on the seeds that both have.

    Of a single scenario: the metrics that `compare` shows, with p corrected by Holm's method for all of them together,
    as there. Of several: the key metrics, with p corrected for the mean completion times together, which were asked
    for first, and for the others together; else the more scenarios there are, the less could be said of any.
    """
    single = len(runs.scenarios) == 1
    paths = [path for path, _, _ in METRICS] if single else KEY
    columns = runs.columns(paths)
    found: list[tuple[str, str, Column, int, dict[str, Any]]] = []
    for scenario, by_system in runs.scenarios.items():
        for system in runs.systems:
            if system != base and base in by_system and system in by_system:
                own, other = by_system[system], by_system[base]
                seeds = sorted(set(own.by_seed) & set(other.by_seed))
                if seeds:
                    found += [(scenario, system, each, *_paired(own, other, seeds, each.path)) for each in columns]
    main = [cell for *_, each, _, cell in found if each.path == MAIN and not single]
    rest = [cell for *_, each, _, cell in found if each.path != MAIN or single]
    for family in (main, rest):
        for cell, p in zip(family, adjusted([cell["p_paired"] for cell in family]), strict=True):
            cell["p"] = p
    cells = {
        (scenario, system, each.path): Difference(scenario, system, each, count, cell, _verdict(each, cell, cell["p"]))
        for scenario, system, each, count, cell in found
    }
    told = f"the {len(rest):,} tests of this table together"
    if not single:
        told = f"the {len(main):,} tests of mean completion times together, and the {len(rest):,} others together"
    return Differences(base, columns, cells, max((count for *_, count, _ in found), default=0), told)


def _paired(own: Setting, base: Setting, seeds: Sequence[int], path: str) -> tuple[int, dict[str, Any]]:
    """Seeds of the pair, and the statistics; no mean where a run has no value of the metric."""
    pairs = [(own.by_seed[seed].get(path), base.by_seed[seed].get(path)) for seed in seeds]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if len(known) < len(pairs):
        return len(seeds), {"mean": None, "ratio": None, "p_paired": None}
    return len(seeds), paired([a for a, _ in known], [b for _, b in known])


def _verdict(each: Column, cell: Mapping[str, Any], p: float | None) -> str:
    if p is None or p >= LEVEL or not cell["mean"]:
        return ""
    gain = cell["mean"] * each.better
    return "differs" if not gain else "better" if gain > 0 else "worse"


# ---- in words


def sentences(found: Differences, runs: Runs) -> list[str]:
    """What the systems do to the mean completion time: one sentence for each, at most a few."""
    cells = {system: found.of(system, MAIN) for system in found.systems}
    tested = [cell for each in cells.values() for cell in each]
    p_values = adjusted([cell.cell["p_paired"] for cell in tested])
    corrected = {(cell.scenario, cell.system): p for cell, p in zip(tested, p_values, strict=True)}
    told = [text for system, each in cells.items() if (text := _sentence(system, found.base, each, corrected))]
    if not told:
        return _range(runs, MAIN)
    left = len(told) - _SENTENCES
    return told[:_SENTENCES] + ([f"{left:,} further systems are in the tables"] if left > 0 else [])


def _sentence(
    system: str, base: str, cells: Sequence[Difference], corrected: Mapping[tuple[str, str], float | None]
) -> str:
    """p of these tests is corrected for all of them; with a single seed there is none, and every difference counts."""
    known = [cell for cell in cells if cell.cell["ratio"] is not None]
    if not known:
        return ""
    p_values = {cell.scenario: corrected[cell.scenario, cell.system] for cell in known}
    told = [cell for cell in known if (p := p_values[cell.scenario]) is None or p < LEVEL]
    fast = [cell for cell in told if cell.cell["ratio"] < 1 - _ALIKE]
    slow = [cell for cell in told if cell.cell["ratio"] > 1 + _ALIKE]
    parts = []
    if fast:
        parts.append(_faster(min(fast, key=lambda cell: cell.cell["ratio"]), base))
    if slow:
        parts.append(_slower(max(slow, key=lambda cell: cell.cell["ratio"]), "" if parts else base))
    if not parts:
        most = max(known, key=lambda cell: abs(cell.cell["ratio"] - 1))
        if abs(most.cell["ratio"] - 1) < _ALIKE:
            return f"{system} completes tasks exactly as soon as {base}"
        p = p_values[most.scenario]
        what = f"{'at most ' if len(known) > 1 else ''}{most.text.strip()}{_at(most)}"
        text = f"{system} shows no clear difference from {base} in mean completion time: {what}"
        return text + ("" if p is None else f", p = {p:.2g}")
    text = f"{system} " + ", and ".join(parts)
    if len(known) > 1:
        rest = len(known) - len(fast) - len(slow)
        counts = [(len(fast), "sooner"), (len(slow), "later"), (rest, "no clear difference")]
        text += f"; of {len(known)} scenarios: " + ", ".join(f"{count} {word}" for count, word in counts if count)
    return text


def _faster(cell: Difference, base: str) -> str:
    """`completes tasks 12 % [8, 16] sooner than BASE at ...`."""
    mean, low, high = (None if value is None else 100 * (1 - value) for value in _ratios(cell))
    return f"completes tasks {_interval(mean, high, low, ' %')} sooner than {base}{_at(cell)}"


def _slower(cell: Difference, base: str) -> str:
    """The same for later, or how many times as long where that reads better; without a base after another part."""
    mean, low, high = _ratios(cell)
    if cell.cell["ratio"] >= _MANY_TIMES:
        return f"takes {_interval(mean, low, high, ' times')} as long{f' as {base}' if base else ''}{_at(cell)}"
    mean, low, high = (None if value is None else 100 * (value - 1) for value in (mean, low, high))
    tasks, than = ("tasks", f" than {base}") if base else ("them", "")
    return f"completes {tasks} {_interval(mean, low, high, ' %')} later{than}{_at(cell)}"


def _ratios(cell: Difference) -> tuple[float | None, float | None, float | None]:
    return cell.cell["ratio"], cell.cell["ratio_low"], cell.cell["ratio_high"]


def _interval(mean: float | None, low: float | None, high: float | None, unit: str) -> str:
    return f"{number(mean, 3)}{unit}" + ("" if low is None else f" [{number(low, 3)}, {number(high, 3)}]")


def _at(cell: Difference) -> str:
    return f" at {cell.scenario}" if cell.scenario else ""


def _range(runs: Runs, path: str) -> list[str]:
    """Where nothing is compared: from the least to the most."""
    means = [(interval["mean"], one) for one in runs.settings if (interval := one.interval(path)) is not None]
    if not means:
        return []
    least, most = (pick(means, key=lambda pair: pair[0] or 0.0) for pick in (min, max))
    title = column(path).title.partition(",")[0]
    if len(means) == 1:
        return [f"Mean {title} is {number(least[0])} s"]
    names = [one.name(runs.axes) for _, one in (least, most)]
    return [f"Mean {title} goes from {number(least[0])} s ({names[0]}) to {number(most[0])} s ({names[1]})"]


def losses(found: Differences) -> dict[str, list[str]]:
    """For each system, the metrics in which it is clearly worse than the base, and where it is so the most.

    Nothing where there is a single seed, so that no pair can be tested.
    """
    out: dict[str, list[str]] = {}
    for system in found.systems if found.seeds > 1 else ():
        out[system] = []
        for each in found.columns:
            cells = found.of(system, each.path)
            worse = [cell for cell in cells if cell.verdict == "worse"]
            if worse:
                most = max(worse, key=lambda cell: -cell.column.better * cell.cell["mean"])
                text = f"{each.title.partition(' (')[0]} {most.text.strip()}{_at(most)}"
                out[system].append(text + (f" and worse in {len(worse)} of {len(cells)}" if len(cells) > 1 else ""))
    return out
