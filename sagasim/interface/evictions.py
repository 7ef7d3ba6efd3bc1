"""oracle(...) -> Evictions: every eviction beside the best possible one, as `sagasim oracle` replays them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim.errors import ConfigError
from sagasim.interface import frames
from sagasim.interface.given import Named
from sagasim.interface.headlines import Headline
from sagasim.interface.runs import Simulation, simulate
from sagasim.oracle.command import memory_sizes, write_study
from sagasim.oracle.options import MEMORY
from sagasim.oracle.output import content, heading, lay_out, table, table_rows
from sagasim.oracle.study import Inputs, Study, from_run, offline_policies, study
from sagasim.report import work_label
from sagasim.results import staging

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Evictions", "oracle"]


def oracle(
    run: Simulation | str | Path | None = None,
    policies: Sequence[Any] | None = None,
    *,
    memory: Iterable[float] = MEMORY,
    pins: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
    **settings: Any,
) -> Evictions:
    """Replay the accesses of a run under evictions, and under the exact offline optimum (Belady).

    run: a Simulation or the folder of one; without it, the settings are simulated first, as by `simulate`.
    policies: names, functions or classes (default: all that can be replayed); belady, the pooled optimum, unlimited
    memory and the run itself are always rows.
    memory: parts of the run's blocks.
    pins: running calls hold what they held in the run; else calls are instants.
    progress: called with what is replayed, how many replays are done, and of how many.

    Raises SagasimError, in one line.
    """
    sizes = memory_sizes(",".join(f"{float(size):.9g}" for size in memory))
    named = Named()
    names = None if policies is None else [str(named.name("evict", policy)) for policy in policies]
    ran = _run(run, settings)
    inputs = from_run(ran.result, ran.work.tasks, pins=pins)
    found = study(inputs, names or offline_policies(blind=inputs.timeline is None), sizes, progress)
    return Evictions(found, inputs, work_label(ran.config, len(ran.result.task_names)))


def _run(run: Simulation | str | Path | None, settings: Mapping[str, Any]) -> Simulation:
    if run is None:
        return simulate(None, **settings)
    if settings:
        what = f"the run decides {next(iter(settings))!r}"
        raise ConfigError(what, where="oracle", expected="no settings beside a run")
    return run if isinstance(run, Simulation) else Simulation.read(run)


class Evictions:
    """How many blocks each eviction regenerates at each memory size, beside the optimum.

    study: the rows and what they are about.
    """

    def __init__(self, study: Study, inputs: Inputs, title: str) -> None:
        self.study = study
        self._inputs = inputs
        self._title = title

    @cached_property
    def rows(self) -> DataFrame:
        """A row for each policy and memory size, in blocks of 16 tokens; ratio: regenerated over the optimum's."""
        made = frames.frame(content(self.study)["rows"])
        made["miss_share"] = made["misses"].astype(float) / made["accesses"]
        return made

    def plot(self) -> Figure:
        """Misses and the ratio to the optimum over memory, a line for each policy."""
        from sagasim.interface.plots import Plot

        figure = Plot(dpi=100)
        lay_out(figure, self._title, self.study)
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write the folder that `sagasim oracle` writes; it must not exist yet. Returns its path."""
        with staging(folder) as staged:
            write_study(staged, self._title, self.study, self._inputs, None, figure=True)
        return Path(folder)

    def __repr__(self) -> str:
        return f"{self._title}\n{table(self.study)}"

    def _repr_html_(self) -> str:
        facts = heading(self.study).replace("\n", "; ")
        return Headline(self._title, table_rows(self.study), facts, ".plot()  .rows  .save(folder)").html()
