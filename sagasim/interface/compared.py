"""compare(...) -> Comparison: several systems on the same work, as `sagasim compare` makes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim import experiment
from sagasim.comparison import Compared
from sagasim.comparison import compare as compare_all
from sagasim.config import Config
from sagasim.errors import ConfigError
from sagasim.experiment import Run, Variant, checked_variant, parse_variant
from sagasim.interface import frames
from sagasim.interface.given import Named, base_layer
from sagasim.interface.headlines import comparison_headline
from sagasim.interface.runs import Simulation
from sagasim.results import staging, write_json, write_timed
from sagasim.stats import mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Comparison", "compare"]

_PRESET = "vllm-0.15"  # of a variant that names none


def compare(
    presets: str | Sequence[str] = (),
    variants: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    seeds: int = 5,
    slo: bool | str = True,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
    **settings: Any,
) -> Comparison:
    """Simulate several systems on the same tasks, over seeds; differences are from the first of them.

    presets: names, or texts `NAME=PRESET key=value ...` as on the command line.
    variants: further systems by name, each with the keys in which it differs from its preset (`preset`, else
    vllm-0.15); policies may be functions or classes.
    seeds: how many, from the setting `seed` on.
    slo: measure the times of the tasks alone, and at half load, for service levels and slowdowns; "idle": alone only.
    config and settings: the work and the cluster, as for `simulate`.
    progress: makes the progress callback of what it names.

    Raises SagasimError, in one line.
    """
    named = Named()
    names = presets.split(",") if isinstance(presets, str) else presets
    systems = [parse_variant(name.strip()) for name in names]
    systems += [_variant(name, changes, named) for name, changes in ({} if variants is None else variants).items()]
    if not systems:
        raise ConfigError("nothing to compare", where="compare", expected="presets, or variants by name")
    if len({system.name for system in systems}) < len(systems):
        raise ConfigError("two systems of one name", where="presets and variants", expected="each name once")
    if type(seeds) is not int or seeds < 1:
        raise ConfigError(f"{seeds!r} does not fit", where="seeds", expected="a whole number from 1")
    if slo not in (True, False, "idle"):
        raise ConfigError(f"{slo!r} does not fit", where="slo", expected="True, False or 'idle'")
    works, configs = experiment.variants([base_layer(config), named.layer(settings)], systems, seeds)
    runs: list[Run] = []

    def finished(name: str, run: Run, reading_s: float) -> None:
        del name
        run.timing["reading_s"] = reading_s
        runs.append(run)

    compared = compare_all(works, configs, slo=slo, progress=progress, finished=finished)
    found = {(name, own.seed): Simulation(run) for (name, own), run in zip(configs, runs, strict=True)}
    return Comparison(compared, found)


def _variant(name: str, changes: Mapping[str, Any], named: Named) -> Variant:
    if not isinstance(changes, Mapping):
        raise ConfigError(f"a {type(changes).__name__}", where=f"variant {name!r}", expected="keys with their values")
    own = named.layer(changes)
    return checked_variant(name, own.pop("preset", _PRESET), own, f"variant {name!r}")


class Comparison:
    """Several systems on the same work: frames of all runs, statistics over seeds, figures.

    runs: the simulations by system and seed. content: what comparison.json holds.
    """

    def __init__(self, compared: Compared, runs: Mapping[tuple[str, int], Simulation]) -> None:
        self.content = compared.content
        self.runs = dict(runs)
        self._compared = compared

    @property
    def systems(self) -> list[str]:
        """Names of the systems; the first is the one that the others are compared with."""
        return list(self.content["presets"])

    @cached_property
    def metrics(self) -> DataFrame:
        """A row for each metric and system: the mean over seeds with its 95 % interval, and how it differs.

        relative: difference from the first system as a part of it (geometric mean of the ratios), with its interval.
        p: of the paired test, corrected for all rows (Holm); NaN where there is nothing to compare.
        """
        rows = []
        for metric in self.content["metrics"]:
            for name, own in metric["by_preset"].items():
                row = {"metric": metric["metric"], "system": name, "title": metric["title"]}
                row |= {key: own.get(key) for key in ("mean", "low", "high")}
                difference = own.get("difference", {})
                row["difference"] = difference.get("mean")
                for key, source in (
                    ("relative", "ratio"),
                    ("relative_low", "ratio_low"),
                    ("relative_high", "ratio_high"),
                ):
                    ratio = difference.get(source)
                    row[key] = None if ratio is None else ratio - 1
                row |= {"p": difference.get("p"), "significant": difference.get("significant")}
                rows.append(row)
        return frames.frame(rows).set_index(["metric", "system"])

    @cached_property
    def by_seed(self) -> DataFrame:
        """A row for each system and seed: all metrics of that run."""
        rows = [
            {**frames.numbers(run.metrics), "system": name, "seed": seed} for (name, seed), run in self.runs.items()
        ]
        return frames.frame(rows).set_index(["system", "seed"])

    @cached_property
    def tasks(self) -> DataFrame:
        """The tasks of all runs; `slowdown`: completion time over the time alone, where that was measured (slo)."""
        bases = self._compared.bases
        return frames.together(
            {key: frames.tasks_frame(run.result, bases[key[1]].get("idle")) for key, run in self.runs.items()}
        )

    @cached_property
    def calls(self) -> DataFrame:
        """The calls of all runs."""
        return frames.together({key: run.calls for key, run in self.runs.items()})

    @cached_property
    def occupancy(self) -> DataFrame:
        """Memory and queues of all runs: a row whenever they change on a replica."""
        return frames.together({key: run.occupancy for key, run in self.runs.items()})

    @cached_property
    def tenants(self) -> DataFrame:
        """A row for each system and tenant: mean completion time and slowdown of its tasks, with 95 % intervals.

        Means of a run are averaged over seeds; intervals by Student's t over seeds. Only tasks that are measured.
        """
        own = self.tasks[self.tasks["measured"]]
        wanted = [column for column in ("tct_s", "slowdown") if column in own]
        by_run = own.groupby(["system", "tenant", "seed"], sort=False)[wanted].mean()
        counts = own.groupby(["system", "tenant"], sort=False).size()
        rows = []
        for (system, tenant), part in by_run.groupby(["system", "tenant"], sort=False):
            row = {"system": system, "tenant": tenant, "tasks": int(counts[system, tenant])}
            for column in wanted:
                known = part[column].dropna().tolist()
                found = mean_interval(known) if known else {"mean": None, "low": None, "high": None}
                row |= {column: found["mean"], f"{column}_low": found["low"], f"{column}_high": found["high"]}
            rows.append(row)
        return frames.frame(rows).set_index(["system", "tenant"])

    def plot(self, *panels: str) -> Figure:
        """The figure of the comparison, or some panels of it.

        tasks, first_token, tokens, memory; differences from the first system; sizes, levels_idle and levels_expected
        where service levels were measured; tenants where there are several.
        """
        from sagasim.figures_compared import lay_out_compared
        from sagasim.interface.plots import Plot, panels_of, side_by_side

        if panels:
            known = panels_of(self._compared.entries, self.content)
            return side_by_side(known, panels, self.content["work"], self._note())
        figure = Plot(dpi=100)
        lay_out_compared(figure, self.content["work"], self._compared.entries, self._note(), self.content)
        return figure

    def _note(self) -> str:
        return ". ".join(filter(None, [self.content["window"].capitalize(), self.content["length"]]))

    def save(self, folder: str | Path) -> Path:
        """Write the folder that `sagasim compare` writes; it must not exist yet. Returns its path."""
        from sagasim.figures_compared import draw_compared

        content = self.content
        with staging(folder) as staged:
            for (name, seed), run in self.runs.items():
                write_timed(staged / f"{name}-seed{seed}", run.run)
            draw_compared(staged / "figure.png", content["work"], self._compared.entries, self._note(), content)
            write_json(staged / "comparison.json", content)
        return Path(folder)

    def __repr__(self) -> str:
        return comparison_headline(self.content).text()

    def _repr_html_(self) -> str:
        return comparison_headline(self.content).html()
