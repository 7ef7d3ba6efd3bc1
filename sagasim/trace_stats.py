"""What a trace holds, in numbers: counted in one pass over its tasks, in memory that does not grow with them.

Whole numbers are counted by value. Beyond EXACT_VALUES different ones they are put into bins of at most 0.1 % width, in
whatever order they came; means and sums stay exact.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from sagasim.core import Call, Prefix, Task

__all__ = ["LONG_TOKENS", "Counts", "TraceStats", "trace_stats"]

LONG_TOKENS = 131_072  # the context length of the models sagasim knows
EXACT_VALUES = 100_000
_BIN_BITS = 11  # a bin beyond 2^11 keeps so many leading bits: its middle is off by at most 2^-11
_SHARE = 10**6  # shares are counted in millionths
_US_PER_PS = 10**6


class Counts:
    """Whole numbers and how often each came. `exact` until there are more than EXACT_VALUES different ones."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0
        self.exact = True
        self._values: dict[int, int] = {}

    def add(self, value: int) -> None:
        self.count += 1
        self.total += value
        values = self._values
        if not self.exact:
            value = _binned(value)
        values[value] = values.get(value, 0) + 1
        if len(values) > EXACT_VALUES and self.exact:
            self.exact = False
            self._values = {}
            for one, times in values.items():
                place = _binned(one)
                self._values[place] = self._values.get(place, 0) + times

    def items(self) -> list[tuple[int, int]]:
        """(value, how often), ascending."""
        return sorted(self._values.items())

    def quantiles(self, *levels: float) -> list[float]:
        """Quantiles by linear interpolation between the two nearest values, as NumPy's default."""
        items = self.items()
        ends = list(accumulate(times for _, times in items))
        found = []
        for level in levels:
            place = (self.count - 1) * level
            low = int(place)
            below, above = (_at(items, ends, index) for index in (low, min(low + 1, self.count - 1)))
            found.append(below + (above - below) * (place - low))
        return found

    def summary(self, scale: float = 1.0) -> dict[str, float] | None:
        """p5, p50, p95, p99 and mean, divided by `scale`; None of nothing."""
        if not self.count:
            return None
        names = ("p5", "p50", "p95", "p99")
        quantiles = self.quantiles(0.05, 0.5, 0.95, 0.99)
        summary = {name: value / scale for name, value in zip(names, quantiles, strict=True)}
        return summary | {"mean": self.total / self.count / scale}


def _binned(value: int) -> int:
    """The middle of the bin of a value; a bin that would be narrower than 1 is the value itself."""
    shift = value.bit_length() - _BIN_BITS
    if shift <= 0:
        return value
    size = abs(value)
    middle = (size >> shift << shift) + (1 << shift >> 1)
    return middle if value > 0 else -middle


def _at(items: list[tuple[int, int]], ends: list[int], index: int) -> int:
    """The value at a place of the sorted values."""
    return items[bisect_right(ends, index)][0]


class TraceStats:
    """Counts of all tasks added so far.

    prompts, outputs, growths: tokens a call; lengths: calls a task; tools, users, delays, gaps: microseconds; shares,
    reused: millionths of a prompt; reusable: tokens; by_place: bit length of a call's place in its task -> prompts.
    """

    def __init__(self) -> None:
        self.prompts, self.outputs, self.growths, self.lengths = Counts(), Counts(), Counts(), Counts()
        self.tools, self.users, self.delays, self.gaps = Counts(), Counts(), Counts(), Counts()
        self.shares, self.reused = Counts(), Counts()
        self.by_place: dict[int, Counts] = {}
        self._kept = self._repeated = self.reusable = self._filled = self._longest = self._over = 0
        self._covered: dict[str, int] = {}  # prefix -> tokens of it that prompts have had
        self._last_ps: int | None = None
        self._ordered = True

    def add(self, task: Task) -> None:
        self.lengths.add(len(task.calls))
        longest = task.max_tokens
        self._longest = max(self._longest, longest)
        self._over += longest > LONG_TOKENS
        self._arrive(task)
        prefixes = {prefix.name: prefix for prefix in task.prefixes}
        before: dict[str, int] = {}
        for place, call in enumerate(task.calls):
            prompt = call.prompt_tokens
            self.prompts.add(prompt)
            self.outputs.add(call.output_tokens)
            if place:
                self._kept += call.keep_tokens
                self._repeated += prompt
                self.shares.add(call.keep_tokens * _SHARE // prompt)
            if call.agent in before:
                self.growths.add(prompt - before[call.agent])
            before[call.agent] = prompt
            reused = self._reuse(call, prefixes)
            self.reusable += reused
            self.reused.add(reused * _SHARE // prompt)
            self.by_place.setdefault((place + 1).bit_length(), Counts()).add(prompt)
            if call.delay_ps:
                self.delays.add(call.delay_ps // _US_PER_PS)
            for tool in call.tools:
                (self.users if tool.name == "user" else self.tools).add(tool.duration_ps // _US_PER_PS)
                self._filled += tool.filled

    def _arrive(self, task: Task) -> None:
        if task.arrival_ps is None:
            self._ordered = False
            return
        if self._last_ps is not None:
            gap_ps = task.arrival_ps - self._last_ps
            self._ordered = self._ordered and gap_ps >= 0
            self.gaps.add(gap_ps // _US_PER_PS)
        self._last_ps = task.arrival_ps

    def _reuse(self, call: Call, prefixes: dict[str, Prefix]) -> int:
        """Tokens of a prompt that an infinite cache would hold: earlier prompts and outputs have had them."""
        if call.extends is None or call.extends not in prefixes:
            return call.keep_tokens
        found, limit = 0, call.keep_tokens
        name: str | None = call.extends
        while name is not None and limit:
            covered = self._covered.get(name, 0)
            found = max(found, min(limit, covered))
            self._covered[name] = max(covered, limit)
            limit = min(limit, prefixes[name].keep_tokens)
            name = prefixes[name].extends
        return found

    def summary(self) -> dict[str, Any]:
        """Counts, and p5, p50, p95, p99 and mean of what varies; None where there is nothing of a kind.

        prefix_share: tokens kept per prompt token over all calls but the first of each task; reusable_share: tokens of
        all prompts that an infinite cache would hold, tasks served in order; tool_filled_share: part of the tools and
        users whose duration is drawn; interarrival_s: None unless tasks come in the order of their arrivals.
        """
        waits = self.tools.count + self.users.count
        counted = (self.prompts, self.outputs, self.growths, self.tools, self.users, self.delays, self.gaps)
        return {
            "tasks": self.lengths.count,
            "calls": self.prompts.count,
            "calls_per_task": self.lengths.summary(),
            "interarrival_s": self.gaps.summary(_US_PER_PS) if self._ordered else None,
            "prompt_tokens": self.prompts.summary(),
            "output_tokens": self.outputs.summary(),
            "growth_tokens": self.growths.summary(),
            "prefix_share": self._kept / self._repeated if self._repeated else None,
            "prefix_share_of_a_call": self.shares.summary(_SHARE),
            "reusable_share": self.reusable / self.prompts.total if self.prompts.count else None,
            "reusable_share_of_a_call": self.reused.summary(_SHARE),
            "tools": waits,
            "tool_s": self.tools.summary(_US_PER_PS),
            "user_s": self.users.summary(_US_PER_PS),
            "delay_s": self.delays.summary(_US_PER_PS),
            "tool_filled_share": self._filled / waits if waits else None,
            "longest_context_tokens": self._longest,
            f"tasks_over_{LONG_TOKENS}_tokens": self._over,
            "quantiles": "exact" if all(one.exact for one in counted) else "to 0.05 %",
        }


def trace_stats(tasks: Iterable[Task]) -> dict[str, Any]:
    """What a trace holds (TraceStats.summary), in one pass and in memory that does not grow with the trace."""
    stats = TraceStats()
    for task in tasks:
        stats.add(task)
    return stats.summary()
