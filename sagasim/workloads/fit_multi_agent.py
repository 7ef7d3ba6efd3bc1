"""Runs of several agents over shared contexts to the tables of multi_agent.py.

Such an agent keeps a few prompts and sends them again and again. A call repeats a prompt if all of its prompt was sent
before, is new if nothing of it was, restarts if less than half was, and continues one otherwise. The first calls of a
run follow a plan, each of its own kind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sagasim.core import Call, Task
from sagasim.workloads.fit_rows import quantiles
from sagasim.workloads.measure import gap_s, main_calls

__all__ = ["KINDS", "OPENING", "fit_multi_agent"]

KINDS = ("repeat", "continue", "restart", "new")
OPENING = 4  # calls that follow the plan of every run
RESTART_SHARE = 0.5
MOST_RANKS = 4
FEWEST = 10  # values for a table of its own


def fit_multi_agent(tasks: Sequence[Task]) -> dict[str, Any]:
    """All that multi_agent.Model needs, from the tasks of one source."""
    whole = [main_calls(task) for task in tasks]
    runs = [_without_drafts(calls) for calls in whole]
    kinds = [[_kind(call) for call in calls] for calls in runs]
    moves: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    ranks: Counter[int] = Counter()
    for calls, of in zip(runs, kinds, strict=True):
        recent: list[str] = []  # prompts since the main one, last used first
        context: dict[str, str] = {}
        for place, (call, kind) in enumerate(zip(calls, of, strict=True)):
            if place > OPENING:
                moves[of[place - 1]][kind] += 1
            own = context.get(call.extends or "", call.name) if kind == "repeat" else call.name
            if kind == "repeat" and own in recent and len(recent) > 1:
                ranks[min(recent.index(own) + 1, MOST_RANKS)] += 1
            context[call.name] = own
            recent = [own] if kind == "continue" else [own, *(name for name in recent if name != own)]
    later = [row for calls, of in zip(runs, kinds, strict=True) for row in _later(calls, of)]
    pairs = [(a, b) for calls in whole for a, b in pairwise(calls)]
    return {
        "steps": quantiles([len(calls) for calls in whole]),
        "opening": [_opening(runs, place) for place in range(OPENING)],
        "moves": {kind: [moves[kind][other] for other in KINDS] for kind in KINDS},
        "repeat_rank": [ranks[rank] for rank in range(1, MOST_RANKS + 1)],
        "growth_tokens": {kind: _growth(later, kind) for kind in KINDS[1:]},
        "kept_share": {kind: _kept([call for _, call, of in later if of == kind]) for kind in KINDS[1:]},
        "output_tokens": {kind: _outputs(later, kind) for kind in KINDS},
        "gap_s": quantiles([gap_s(a, b) or 0.0 for a, b in pairs] or [0.0], 3),
    }


def _without_drafts(calls: Sequence[Call]) -> list[Call]:
    """A run without the calls between a restart and the prompt that is then sent again and again.

    Few runs have such calls; left in, their lengths would be taken for those of the prompts around them.
    """
    kept = list(calls[: OPENING - 1])
    block: list[Call] = []
    for place in range(OPENING - 1, len(calls)):
        call = calls[place]
        if _kind(call) in ("continue", "restart"):
            block.append(call)
            continue
        kept += block[-1:] if len(kept) < OPENING else _ends(block)
        block = []
        kept.append(call)
    return kept + _ends(block)


def _ends(block: Sequence[Call]) -> list[Call]:
    return [*block[:1], *block[1:][-1:]]


def _later(calls: Sequence[Call], of: Sequence[str]) -> list[tuple[Call, Call, str]]:
    """(the call that the length of a prompt goes by, the call, its kind) after the opening.

    New prompts and restarts go by the main prompt of the run, the one that was last continued; continued ones by the
    prompt before them.
    """
    rows = []
    main = calls[min(OPENING, len(calls)) - 1]
    for place in range(OPENING, len(calls)):
        call, kind = calls[place], of[place]
        rows.append((main if kind in ("new", "restart") else calls[place - 1], call, kind))
        if kind == "continue":
            main = call
    return rows


def _kind(call: Call) -> str:
    if not call.new_tokens:
        return "repeat"
    if not call.keep_tokens:
        return "new"
    return "restart" if call.keep_tokens < RESTART_SHARE * call.prompt_tokens else "continue"


def _opening(runs: Sequence[Sequence[Call]], place: int) -> dict[str, Any]:
    """The call at this place: how long, beyond the prompt and output before it (the prompt alone for the last one)."""
    calls = [(run[place - 1] if place else None, run[place]) for run in runs if len(run) > place]
    with_output = place < OPENING - 1
    lengths = [
        call.prompt_tokens
        - (0 if before is None else before.prompt_tokens + (before.output_tokens if with_output else 0))
        for before, call in calls
    ]
    return {
        "adds_output": with_output,
        "growth_tokens": quantiles(lengths),
        "kept_share": _kept([call for _, call in calls]),
        "output_tokens": quantiles([call.output_tokens for _, call in calls]),
    }


def _kept(calls: Sequence[Call]) -> list[float]:
    return quantiles([call.keep_tokens / call.prompt_tokens for call in calls] or [0.0], 4)


def _growth(later: Sequence[tuple[Call, Call, str]], kind: str) -> list[float]:
    return quantiles([b.prompt_tokens - a.prompt_tokens for a, b, of in later if of == kind] or [0.0])


def _outputs(later: Sequence[tuple[Call, Call, str]], kind: str) -> list[float]:
    own = [call.output_tokens for _, call, of in later if of == kind]
    return quantiles(np.array(own if len(own) >= FEWEST else [call.output_tokens for _, call, _ in later]))
