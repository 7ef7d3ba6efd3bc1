"""What tasks look like as series of numbers, whether recorded or generated, and how far two series are apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.core import Call, Task
from sagasim.units import PS_PER_S

__all__ = ["METRICS", "USER", "distance", "gap_s", "main_calls", "measure", "starts_next"]

USER = "user"  # the name that importers and generators give to a tool that is a person
METRICS = {
    "steps": "calls of a task",
    "first_input_tokens": "prompt of the first call",
    "prompt_tokens": "prompt of each call",
    "output_tokens": "output of each call",
    "growth_tokens": "growth of the prompt from a call to the next",
    "growth_after_tool_tokens": "growth of the prompt after a tool",
    "growth_after_user_tokens": "growth of the prompt after a user",
    "gap_after_tool_s": "seconds from a call to the next, after a tool",
    "gap_after_user_s": "seconds from a call to the next, after a user",
    "prefix_share": "share of the prompt that repeats an earlier one",
    "peak_tokens": "longest prompt of a task",
}
Series = NDArray[np.float64]


def main_calls(task: Task) -> list[Call]:
    """The calls of the task's own agent, without its sub-agents."""
    return [call for call in task.calls if not call.agent]


def starts_next(call: Call) -> str:
    """What a call waits for afterwards: "user" or "tool"."""
    return USER if any(tool.name == USER for tool in call.tools) else "tool"


def gap_s(call: Call, following: Call) -> float | None:
    """Seconds between two calls of one agent; None where nothing was to be waited for."""
    gap_ps = call.tool_ps + following.delay_ps
    return gap_ps / PS_PER_S if gap_ps else None


def measure(tasks: Iterable[Task]) -> dict[str, Series]:
    """The series of METRICS over the calls of the tasks' own agents; a series without values is empty."""
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for task in tasks:
        calls = main_calls(task)
        if not calls:
            continue
        found["steps"].append(len(calls))
        found["first_input_tokens"].append(calls[0].prompt_tokens)
        found["peak_tokens"].append(max(call.prompt_tokens for call in calls))
        for call in calls:
            found["prompt_tokens"].append(call.prompt_tokens)
            found["output_tokens"].append(call.output_tokens)
        for call, following in pairwise(calls):
            growth, trigger = following.prompt_tokens - call.prompt_tokens, starts_next(call)
            found["growth_tokens"].append(growth)
            found[f"growth_after_{trigger}_tokens"].append(growth)
            if (gap := gap_s(call, following)) is not None:
                found[f"gap_after_{trigger}_s"].append(gap)
            found["prefix_share"].append(following.keep_tokens / following.prompt_tokens)
    return {name: np.array(values, dtype=np.float64) for name, values in found.items()}


def distance(one: Sequence[float] | Series, other: Sequence[float] | Series) -> float:
    """The Kolmogorov-Smirnov distance of two samples: largest gap between their distribution functions."""
    first, second = np.sort(np.asarray(one, dtype=np.float64)), np.sort(np.asarray(other, dtype=np.float64))
    points = np.concatenate([first, second])
    below: Any = np.searchsorted(first, points, side="right") / len(first)
    beside: Any = np.searchsorted(second, points, side="right") / len(second)
    return float(np.abs(below - beside).max())
