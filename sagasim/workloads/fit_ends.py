"""When recorded sessions end: a hazard that is a product of three factors, by step, by first prompt, and by prompt.

Sessions with a short context window often end where others are compacted, so how long a session is cannot be drawn
before its prompts are known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.workloads.fit_rows import Rows, Series

__all__ = ["fit_ends"]

STEP_CELLS, OWN_CELL, OWN_CELLS = 25, 60, 7
PRIOR = 3.0  # sessions that ended as expected, added to every cell of the second and third factor
ROUNDS = 50  # of fitting each factor in turn


def fit_ends(rows: Rows, prompt_from: tuple[int, ...], near_tokens: int, window_tokens: int) -> dict[str, Any]:
    """Tables of the hazard. Between near_tokens and window_tokens it depends on the window, elsewhere it does not.

    A session with the long window is known by a prompt above the short one, so all of them survived what lies below.
    Near the short window they are therefore treated as just before it.
    """
    ended = ~rows.inner
    step_from = _edges(rows.steps - 1, STEP_CELLS)
    own_from = _edges(rows.own, int(np.clip(len(rows.own) // OWN_CELL, 1, OWN_CELLS)))
    step = np.searchsorted(step_from, rows.step, side="right") - 1
    own = (np.searchsorted(own_from, rows.own, side="right") - 1)[rows.session]
    window = rows.long[rows.session]
    prompt = np.searchsorted(prompt_from, rows.prompt, side="right") - 1
    below = prompt_from.index(near_tokens) - 1
    prompt[window & (rows.prompt >= near_tokens) & (rows.prompt < window_tokens)] = below
    factors = [np.ones(len(step_from)), np.ones(len(own_from)), np.ones(len(prompt_from))]
    cells = [step, own, prompt]
    for _ in range(ROUNDS):
        for place, (factor, cell) in enumerate(zip(factors, cells, strict=True)):
            expected = np.bincount(cell, _product(factors, cells) / factor[cell], len(factor))
            events = np.bincount(cell, ended, len(factor))
            prior = PRIOR if place else 0.0
            scale = float((events + prior).sum() / max((expected * factor + prior).sum(), 1e-12)) if place else 1.0
            factors[place] = (events + prior) / np.maximum(expected + prior / scale, 1e-9)
    near = (rows.prompt >= near_tokens) & ~window
    full = ended[near].sum() + rows.compaction[near].sum()
    short = [round(float(value), 4) for value in factors[2]]
    long = [short[below] if near_tokens <= at < window_tokens else f for at, f in zip(prompt_from, short, strict=True)]
    return {
        "step_from": [int(edge) for edge in step_from],
        "by_step": [round(float(value), 6) for value in factors[0]],
        "own_from": [int(edge) for edge in own_from],
        "by_own": [round(float(value), 4) for value in factors[1]],
        "prompt_from": list(prompt_from),
        "by_prompt": [short, long],
        "when_full": round(float(ended[near].sum() / full), 4) if full else 0.0,
        "most_steps": int(rows.steps.max()),
    }


def _product(factors: list[Series], cells: list[NDArray[Any]]) -> Series:
    found: Series = factors[0][cells[0]] * factors[1][cells[1]] * factors[2][cells[2]]
    return found


def _edges(values: NDArray[Any], cells: int) -> Series:
    """Lower edges of cells with about as many values each; the first is 0."""
    inner = np.unique(np.floor(np.quantile(values, np.arange(1, cells) / cells))) if cells > 1 else np.array([])
    return np.concatenate([[0.0], inner[inner > 0]])
