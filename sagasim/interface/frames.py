"""The log and the metrics as pandas frames: times in seconds, names beside numbers. pandas is imported only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sagasim.errors import ConfigError
from sagasim.eventlog import UNFINISHED, Columns
from sagasim.metrics import flat, tct_ps, ttft_ps, window
from sagasim.simulate import Result
from sagasim.units import PS_PER_S

if TYPE_CHECKING:
    import pyarrow as pa
    from pandas import DataFrame, Series

__all__ = [
    "calls_frame",
    "columns_frame",
    "frame",
    "from_arrow",
    "known",
    "numbers",
    "series",
    "tasks_frame",
    "together",
]

_UNITS = {"_ps": ("_s", 1e12), "_us": ("_s", 1e6)}  # suffix: what stands for it in a frame, and its divisor


def _pandas() -> Any:
    try:
        import pandas
    except ImportError:
        expected = "pip install 'sagasim[notebook]'"
        raise ConfigError("pandas is not installed", where="frames", expected=expected) from None
    return pandas


def frame(rows: Sequence[Mapping[str, Any]], index: str | None = None) -> DataFrame:
    """Rows as a frame; index: the column that names them."""
    made = _pandas().DataFrame(list(rows))
    return made if index is None else made.set_index(index)


def series(values: Mapping[str, Any], name: str) -> Series:
    """Numbers by name; what there is no value of is NaN."""
    return _pandas().Series(
        {key: np.nan if value is None else float(value) for key, value in values.items()}, name=name
    )


def numbers(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """The numbers of a summary, those of its parts as `tct_s.mean`; texts and tables by tenant are left out."""
    own = {key: value for key, value in summary.items() if key not in ("notes", "tenants")}
    return {name: value for name, value in flat(own) if value is None or isinstance(value, (int, float))}


def columns_frame(columns: Columns) -> DataFrame:
    """Columns of the log: `_ps` and `_us` become seconds; the end of a task that had not ended is NaN."""
    made: dict[str, Any] = {}
    for name, column in columns.items():
        word, divisor = _UNITS.get(name[-3:], ("", 0.0))
        made[name[:-3] + word if word else name] = column / divisor if word else column
        if name == "finished_ps":
            made["finished_s"] = np.where(column == UNFINISHED, np.nan, column / 1e12)
    return _pandas().DataFrame(made)


def calls_frame(result: Result) -> DataFrame:
    """The calls, one a row, with their latencies, the names of task and tenant, and whether they are measured."""
    calls, tasks = result.calls, result.tasks
    made = columns_frame(calls)
    row = np.searchsorted(tasks["task"], calls["task"])
    _name(made, result, calls["task"], tasks["tenant"][row])
    made["queueing_s"] = (calls["admitted_ps"] - calls["submitted_ps"]) / PS_PER_S
    made["ttft_s"] = ttft_ps(calls) / PS_PER_S
    several = np.where(calls["output_tokens"] > 1, calls["output_tokens"] - 1, np.nan)
    made["tpot_s"] = (calls["finished_ps"] - calls["first_token_ps"]) / PS_PER_S / several
    made["call_s"] = (calls["finished_ps"] - calls["submitted_ps"]) / PS_PER_S
    made["measured"] = _measured(result, calls["task"])
    return made


def tasks_frame(result: Result, idle_ps: NDArray[np.int64] | None = None) -> DataFrame:
    """The tasks, one a row, with their completion times, names, and whether they are measured.

    idle_ps: time of each task alone on the idle cluster; then `slowdown` is the completion time over it.
    """
    tasks = result.tasks
    made = columns_frame(tasks)
    _name(made, result, tasks["task"], tasks["tenant"])
    ended = tasks["finished_ps"] != UNFINISHED
    made["tct_s"] = np.where(ended, tct_ps(tasks) / PS_PER_S, np.nan)
    made["measured"] = _measured(result, tasks["task"])
    if idle_ps is not None:
        made["slowdown"] = made["tct_s"] / (idle_ps[tasks["task"]] / PS_PER_S)
    return made


def _measured(result: Result, task: NDArray[np.int64]) -> NDArray[np.bool_]:
    seen = window(result)
    numbers = result.tasks["task"][seen.first : seen.last]
    return np.isin(task, numbers)


def _name(made: DataFrame, result: Result, task: NDArray[np.int64], tenant: NDArray[np.int64]) -> None:
    """Replace numbers of tenants by names, and put the names of tasks beside their numbers."""
    if "tenant" in made:
        del made["tenant"]
    made.insert(1, "task_name", np.array(result.task_names, dtype=object)[task])
    made.insert(2, "tenant", np.array(result.tenants, dtype=object)[tenant])


def known(value: float) -> float | None:
    """A number of a frame, None for NaN."""
    return None if np.isnan(value) else float(value)


def from_arrow(table: pa.Table) -> DataFrame:
    """A table of pyarrow as a frame."""
    _pandas()  # which pyarrow would miss with a message of its own
    return table.to_pandas()


def together(frames: Mapping[tuple[str, int], DataFrame]) -> DataFrame:
    """Frames of runs below each other, with the system and the seed in front."""
    made = _pandas().concat(frames, names=["system", "seed"])
    return made.reset_index(["system", "seed"]).reset_index(drop=True)
