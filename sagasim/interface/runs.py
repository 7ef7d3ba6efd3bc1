"""simulate(...) -> Simulation: one run, as `sagasim run` makes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from sagasim.comparison import comparison_entry
from sagasim.config import Config, resolve
from sagasim.core import Task
from sagasim.experiment import Run, execute
from sagasim.interface import frames
from sagasim.interface.given import Named, base_layer
from sagasim.interface.headlines import run_headline
from sagasim.metrics import figure_entry, summary
from sagasim.report import config_label, length_note, work_label
from sagasim.results import read_run, staging, write_timed
from sagasim.simulate import Result
from sagasim.simulate import simulate as replay
from sagasim.work import Work, prepare

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame, Series

__all__ = ["Simulation", "simulate"]

Progress = Callable[[int, int], None]
Base = Config | Mapping[str, Any] | str | Path


@overload
def simulate(
    config: Config,
    tasks: Iterable[Task],
    *,
    progress: Progress | None = None,
    calibration: dict[str, Any] | None = None,
) -> Result: ...


@overload
def simulate(config: Base | None = None, *, progress: Progress | None = None, **settings: Any) -> Simulation: ...


def simulate(
    config: Base | None = None,
    tasks: Any = None,
    *,
    progress: Progress | None = None,
    calibration: Any = None,
    **settings: Any,
) -> Result | Simulation:
    """Simulate once, with every key of the configuration and every option of `sagasim run` as a keyword.

        simulate(workload="swe-bench", tasks=100, load=0.8, preset="vllm-0.15", route=mine)

    A policy is a name, a function or a class.
    config: what the keywords override: a mapping, the config.toml of an earlier run, or a Config.
    progress: called now and then with the number of finished calls and the simulated time in ps.

    Raises SagasimError, in one line.

    With a resolved Config and the tasks themselves, in the order of arrival, the log alone comes back, as a Result;
    calibration is then the content of a calibration file.
    """
    if isinstance(config, Config) and tasks is not None and not isinstance(tasks, int):
        return replay(config, tasks, progress=progress, calibration=calibration)
    named = {key: value for key, value in (("tasks", tasks), ("calibration", calibration)) if value is not None}
    layer = Named().layer({**named, **settings})
    started = time.perf_counter()
    work = prepare(resolve(base_layer(config), layer), progress)
    reading_s = time.perf_counter() - started
    run = execute(work, progress)
    run.timing["reading_s"] = reading_s
    return Simulation(run, work)


class Simulation:
    """What one run shows: frames of its log, its metrics, figures.

    result: the log in whole picoseconds. metrics: what summary.json holds. run: both, and how long they took.
    """

    def __init__(self, run: Run, work: Work | None = None) -> None:
        self.result = run.result
        self.metrics = run.summary
        self.run = run
        self._work = work

    @classmethod
    def read(cls, folder: str | Path) -> Simulation:
        """An earlier run, from the folder that it wrote."""
        result = read_run(folder)
        return cls(Run(result, summary(result), {}))

    @property
    def config(self) -> Config:
        """All that determines the run besides the bytes of its trace."""
        return self.result.config

    @property
    def digest(self) -> str:
        """SHA-256 of the log: equal runs have equal ones."""
        return self.result.digest

    @property
    def notes(self) -> dict[str, str]:
        """What was filled, extended or dropped, and where the step times come from."""
        return self.result.notes

    @property
    def work(self) -> Work:
        """The tasks that were served; those of a run from a folder are read again."""
        if self._work is None:
            self._work = prepare(self.config)
        return self._work

    @cached_property
    def calls(self) -> DataFrame:
        """Calls, one a row: times in seconds, tokens, latencies, names of task and tenant."""
        return frames.calls_frame(self.result)

    @cached_property
    def tasks(self) -> DataFrame:
        """Tasks, one a row: arrival and completion in seconds, tokens, names of task and tenant."""
        return frames.tasks_frame(self.result)

    @cached_property
    def occupancy(self) -> DataFrame:
        """Blocks held and cached, calls waiting and running: a row whenever they change on a replica."""
        return frames.columns_frame(self.result.occupancy)

    @cached_property
    def replicas(self) -> DataFrame:
        """Replicas, one a row, with their totals."""
        return frames.columns_frame(self.result.replicas)

    @cached_property
    def transfers(self) -> DataFrame:
        """Copies of KV blocks between replicas and host memory, one a row."""
        return frames.columns_frame(self.result.transfers)

    @cached_property
    def summary(self) -> Series:
        """The metrics by name, those with a spread as `tct_s.mean`, `tct_s.p99`."""
        return frames.series(frames.numbers(self.metrics), config_label(self.config))

    @cached_property
    def tenants(self) -> DataFrame:
        """The metrics of each tenant, one a row; empty for a single one."""
        rows = [{"tenant": name, **frames.numbers(own)} for name, own in self.metrics.get("tenants", {}).items()]
        return frames.frame(rows, "tenant") if rows else frames.frame([])

    def plot(self, *panels: str) -> Figure:
        """The figure of the run, or some panels of it: tasks, first_token, tokens, memory."""
        from sagasim.figures import lay_out
        from sagasim.interface.plots import Plot, panels_of, side_by_side

        title = work_label(self.config, self.metrics["tasks"])
        label, note = config_label(self.config), length_note(self.metrics)
        if panels:
            entry = comparison_entry(label, self.run, {})
            return side_by_side(panels_of([entry]), panels, title, note)
        figure = Plot(dpi=100)
        lay_out(figure, title, [figure_entry(label, self.result, self.metrics)], note)
        return figure

    def save(self, folder: str | Path) -> Path:
        """Write the folder that `sagasim run` writes; it must not exist yet. Returns its path."""
        from sagasim.figures import draw

        label = config_label(self.config)
        with staging(folder) as staged:
            entry = figure_entry(label, self.result, self.metrics)
            title, note = work_label(self.config, self.metrics["tasks"]), length_note(self.metrics)
            draw(staged / "figure.png", title, [entry], note)
            write_timed(staged, self.run)
        return Path(folder)

    def __repr__(self) -> str:
        return run_headline(self.config, self.metrics).text()

    def _repr_html_(self) -> str:
        return run_headline(self.config, self.metrics).html()
