"""Recorded tasks as columns: one row for each request of an agent and the one after it, and what kind of step that is.

A step counts as a loss if more than 5 % and more than 1,024 tokens of the prompt before it are not found again at its
beginning: compaction if it is shorter than 3/4 of that prompt, reset otherwise. All else is "added" tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sagasim.core import Call, Prefix, Task
from sagasim.workloads.measure import USER, gap_s, main_calls, starts_next
from sagasim.workloads.tables import COARSE, FINE

__all__ = [
    "FEWEST",
    "NEAR_WINDOW_TOKENS",
    "WINDOW_TOKENS",
    "Flags",
    "Rows",
    "Series",
    "quantiles",
    "share_of",
    "shared_tokens",
]

Series = NDArray[np.float64]
Flags = NDArray[np.bool_]
LOST_SHARE, LOST_TOKENS = 0.05, 1024
SHRUNK = 0.75
FEWEST = 20  # fewer values are no statistics
FINE_FROM = 100  # values for a table on the fine grid
WINDOW_TOKENS = (
    175_000  # sessions with longer prompts have the long context window: an assumption (200 K or 1 M tokens)
)
NEAR_WINDOW_TOKENS = 140_000  # sessions that came this far say which window they have


def quantiles(values: Series | Sequence[float], decimals: int = 0) -> list[float]:
    """The table of a sample."""
    found = np.asarray(values, dtype=np.float64)
    grid = FINE if len(found) >= FINE_FROM else COARSE
    drawn = np.quantile(found, grid)
    return [round(float(v)) if decimals == 0 else round(float(v), decimals) for v in drawn]


def share_of(flags: Flags, otherwise: float, least: int = 1) -> float:
    """Part of the flags that are set, where there are enough of them."""
    return round(float(flags.mean()), 5) if len(flags) >= least else otherwise


class Rows:
    """The columns; where a request is the last of its session, those of the next one hold nan."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        sessions = [main_calls(task) for task in tasks]
        shared = [sum(shared_tokens(task)) for task in tasks]
        rows = [row for place, calls in enumerate(sessions) for row in _rows(place, calls, shared[place])]
        table = np.array(rows, dtype=np.float64).reshape(-1, 10).T
        self.session, self.step = table[0].astype(int), table[1].astype(int)
        self.prompt, self.output, self.longer, self.keep, self.own_user, self.user, self.gap_s, self.shared = table[2:]
        self.steps = np.array([len(calls) for calls in sessions])
        self.first = np.array([calls[0].prompt_tokens for calls in sessions], dtype=np.float64)
        self.own = self.first - np.array(shared)
        self.inner = ~np.isnan(self.longer)  # a request follows
        self.repeats_context = bool(np.median((self.keep - self.prompt)[self.inner]) > 0) if self.inner.any() else False
        self.context = self.prompt + self.output if self.repeats_context else self.prompt
        lost = self.context - self.keep
        self.loss = self.inner & (lost > LOST_SHARE * self.context) & (lost > LOST_TOKENS)
        if self.loss.sum() < FEWEST:
            self.loss[:] = False
        self.compaction = self.loss & (self.longer < SHRUNK * self.prompt)
        self.reset = self.loss & ~self.compaction
        self.clean = self.inner & ~self.loss
        self.peak = np.zeros(len(sessions))
        np.maximum.at(self.peak, self.session, self.prompt)
        self.long = self.peak > WINDOW_TOKENS
        self.plain = self.inner & ~self.compaction  # what starts the next request, and when, is no matter of the length


def _rows(place: int, calls: Sequence[Call], shared: int) -> list[tuple[float, ...]]:
    rows: list[tuple[float, ...]] = []
    user = 1.0
    for step, call in enumerate(calls):
        own, user = user, 1.0
        following: tuple[float, ...] = (np.nan, np.nan)
        gap = np.nan
        if step + 1 < len(calls):
            after = calls[step + 1]
            user = float(starts_next(call) == USER)
            following = (after.prompt_tokens, after.keep_tokens)
            seconds = gap_s(call, after)
            if seconds is not None and not any(tool.filled for tool in call.tools):
                gap = seconds
        rows.append((place, step, call.prompt_tokens, call.output_tokens, *following, own, user, gap, shared))
    return rows


def shared_tokens(task: Task) -> tuple[int, int]:
    """Tokens of tools and of system prompt that the first call shares with other tasks by name."""
    prefixes: dict[str, Prefix] = {prefix.name: prefix for prefix in task.prefixes}
    first = main_calls(task)[0]
    found = prefixes.get(first.extends or "")
    if found is None or first.keep_tokens < found.keep_tokens + found.new_tokens:
        return 0, first.keep_tokens
    return (found.keep_tokens, found.new_tokens) if found.extends else (found.new_tokens, 0)
