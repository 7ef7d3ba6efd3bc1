"""sweep(...) -> Sweep: many runs at once over a grid or a list, as `sagasim sweep` makes them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sagasim import seams
from sagasim.comparison import METRICS
from sagasim.config import KINDS, Config
from sagasim.errors import ConfigError, PolicyError, ResultsError, nearest
from sagasim.interface import frames
from sagasim.interface.given import Named, base_layer, plain
from sagasim.interface.headlines import Headline
from sagasim.report import number, percent
from sagasim.stats import mean_interval
from sagasim.sweeping.points import Failure
from sagasim.sweeping.runner import Progress, run_sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

__all__ = ["Sweep", "sweep"]

_SHOWN = (  # metric, title, whether it is a share
    ("tct_s.mean", "TCT mean (s)", False),
    ("tct_s.p99", "TCT p99 (s)", False),
    ("ttft_s.p99", "TTFT p99 (s)", False),
    ("tasks_per_min", "tasks/min", False),
    ("prefix_hit_rate", "hit rate", True),
    ("gpu_busy_share", "GPUs busy", True),
)
_TITLES = {
    "gpus": "GPUs",
    "load": "load (fraction of capacity)",
    "rate_per_min": "tasks that arrive in a minute",
    "concurrency": "tasks at a time",
    **{path: title for path, title, _ in METRICS},
}
_ROWS = 30  # of combinations in a notebook


def sweep(
    grid: Mapping[str, Sequence[Any]] | None = None,
    points: Sequence[Mapping[str, Any]] | None = None,
    *,
    seeds: int | Sequence[int] = 1,
    out: str | Path | None = None,
    jobs: int | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Sweep:
    """Simulate every combination of a grid, or every point of a list, or each of the list with all of the grid.

        sweep({"gpus": [8, 16, 32], "preset": ["vllm-0.6", "vllm-0.15"]}, workload="swe-bench", rate=20, seeds=5)

    grid: lists of values by key. points: mappings of keys, each with a `label` if wanted.
    seeds: how many, from the setting `seed` on, or a list of them.
    out: folder to keep the results in, point by point; the same call goes on from there. None: they are not kept.
    jobs: runs at a time, in processes of their own (default: one for each CPU).
    config and settings: what is the same for all points, as for `simulate`.
    progress: is told now and then how far it is.

    Policies are names or `./file.py:name`, as the processes know nothing of a notebook. Raises SagasimError, in one
    line, before anything is simulated; a point that fails later is listed in `failed`.
    """
    layer = base_layer(config) | Named().layer(settings, objects=False)
    spec: dict[str, Any] = {**layer, "seeds": seeds if isinstance(seeds, int) else [plain(seed) for seed in seeds]}
    if grid is not None:
        spec["grid"] = {key: _values(key, values) for key, values in grid.items()}
    if points is not None:
        spec["points"] = [{key: _value(key, value) for key, value in point.items()} for point in points]
    for key, value in layer.items():
        _reachable(key, value)
    of_points = dict.fromkeys(key for point in points or () for key in point)
    keys = [*spec.get("grid", {}), *(["label"] if "label" in of_points else of_points)]
    with tempfile.TemporaryDirectory() if out is None else nullcontext(str(out)) as folder:
        swept = run_sweep(spec, Path(folder) / "sweep" if out is None else folder, jobs=jobs, progress=progress)
        table = frames.from_arrow(swept.table())
    if swept.failed and table.empty:
        first = swept.failed[0]
        what = f"no point has a result; {first.label} seed {first.seed}: {first.reason}"
        raise ResultsError(what, where="sweep", expected="points that can be simulated")
    return Sweep(table, keys, swept.failed, swept.digest)


def _values(key: str, values: Sequence[Any]) -> list[Any]:
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise ConfigError(f"a {type(values).__name__}", where=f"grid, {key}", expected="a list of values")
    return [_value(key, value) for value in values]


def _value(key: str, value: object) -> Any:
    _reachable(key, value)
    return plain(value)


def _reachable(kind: str, value: object) -> None:
    """Raise PolicyError for a policy that the processes of a sweep cannot find."""
    name = value.partition(":")[0] if isinstance(value, str) and ".py:" not in value else ""
    own = {found.name for found in seams.policies(kind) if found.factory.__module__ == "__main__"}
    if name in own or (kind in seams.KINDS and callable(value)):
        what = f"{name or getattr(value, '__name__', 'it')!r} is defined in this program"
        raise PolicyError(what, where=f"sweep, {kind}", expected="./file.py:name, which other processes can read")


class Sweep:
    """The results of many runs: a row for each, and means over seeds.

    table: a row for each combination and seed, with the keys that vary and all metrics. keys: those of the sweep.
    failed: what has no result, and why. digest: equal for equal results.
    """

    def __init__(self, table: DataFrame, keys: Sequence[str], failed: Sequence[Failure], digest: str) -> None:
        self.table = table
        self.keys = [key for key in keys if key in table and key != "seed"]
        self.failed = list(failed)
        self.digest = digest

    @cached_property
    def means(self) -> DataFrame:
        """A row for each combination: the mean of every metric over seeds; index: the keys of the sweep."""
        metrics = [name for name in self.table.select_dtypes("number").columns if name not in KINDS]
        if not self.keys:
            return self.table[metrics].mean().to_frame().T
        return self.table.groupby(self.keys, sort=False, dropna=False)[metrics].mean()

    def plot(
        self, x: str | None = None, y: str = "tct_s.mean", by: str | None = None, limit: float | None = None
    ) -> Figure:
        """One metric over one key, a line for each value of another, with 95 % intervals over seeds.

        x: a key (default: the first one). by: another key. limit: a level of the metric to draw a line at.
        Where further keys vary, all their runs are taken together.
        """
        from sagasim.interface.plots import lines

        names = [key for key in (x or (self.keys or ["label"])[0], by) if key is not None]
        for name in (*names, y):
            if name not in self.table:
                raise ConfigError(f"no column {name!r}", where="plot", expected=nearest(name, self.table.columns))
        found: dict[str, list[tuple[Any, Mapping[str, float | None]]]] = {}
        for values, part in self.table.groupby(names, sort=False):
            known = part[y].dropna().tolist()
            if known:
                label = f"{by} = {values[1]}" if by is not None else ""
                found.setdefault(label, []).append((plain(values[0]), mean_interval(known)))
        return lines(found, _TITLES.get(names[0], names[0]), _TITLES.get(y, y), limit)

    def _headline(self) -> Headline:
        shown = [column for column in _SHOWN if column[0] in self.means]
        titles = self.keys or ["all"]
        rows = [[" · ".join(titles), *(title for _, title, _ in shown)]]
        for key, row in self.means.head(_ROWS).iterrows():
            name = " · ".join(map(str, key)) if isinstance(key, tuple) else str(key)
            cells = [(percent if share else number)(frames.known(row[column])) for column, _, share in shown]
            rows.append([name, *cells])
        left = len(self.means) - _ROWS
        facts = f"{len(self.table):,} runs, {self.table['seed'].nunique()} seeds; means over seeds"
        facts += f"; {left:,} further combinations in .means" if left > 0 else ""
        if self.failed:
            facts += f"; {len(self.failed):,} failed, the first: {self.failed[0].reason}"
        return Headline("Sweep over " + ", ".join(titles), rows, facts, ".plot(x, y, by)  .means  .table  .failed")

    def __repr__(self) -> str:
        return self._headline().text()

    def _repr_html_(self) -> str:
        return self._headline().html()
