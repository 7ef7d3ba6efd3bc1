"""How recorded sessions lose their prefix: compaction and reset, as tables of session_model.Compaction and Reset."""

from __future__ import annotations

from typing import Any

import numpy as np

from sagasim.workloads.fit_rows import FEWEST, NEAR_WINDOW_TOKENS, WINDOW_TOKENS, Flags, Rows, quantiles, share_of
from sagasim.workloads.measure import USER
from sagasim.workloads.tables import COARSE

__all__ = ["PROMPT_FROM", "fit_compaction", "fit_reset"]

FIRST_FROM = (0, 50_000, 100_000, WINDOW_TOKENS)
PROMPT_FROM = (
    0,
    40_000,
    80_000,
    120_000,
    140_000,
    145_000,
    150_000,
    155_000,
    160_000,
    165_000,
    170_000,
    WINDOW_TOKENS,
    300_000,
)
GAP_FROM_S = (0.0, 60.0, 300.0, 900.0, 3600.0)


def fit_compaction(rows: Rows) -> dict[str, Any]:
    """All that Compaction needs."""
    long, peak = rows.long, rows.peak
    bins = np.searchsorted(FIRST_FROM, rows.first, side="right") - 1
    informed = peak > NEAR_WINDOW_TOKENS
    lived = _survival(rows)
    share = [min(1.0, share_of(long[informed & (bins == place)], 0.5) / lived) for place in range(len(FIRST_FROM))]
    place = np.searchsorted(PROMPT_FROM, rows.prompt, side="right") - 1
    hazard: dict[str, Any] = {"prompt_from": list(PROMPT_FROM)}
    for name, kind in (("short", ~long), ("long", long)):
        chances: list[float] = []
        for cell in range(len(PROMPT_FROM)):
            inside = rows.inner & kind[rows.session] & (place == cell)
            chances.append(share_of(rows.compaction[inside], chances[-1] if chances else 0.0, FEWEST))
        hazard[name] = chances
    hazard["short"] = [1.0 if at >= WINDOW_TOKENS else h for at, h in zip(PROMPT_FROM, hazard["short"], strict=True)]
    found = rows.compaction
    gaps = {}
    for following, name in enumerate(("tool", USER)):
        cell = found & ~np.isnan(rows.gap_s) & (rows.user == following)
        gaps[name] = quantiles(rows.gap_s[cell], 3) if cell.any() else [0.0] * len(COARSE)
    return {
        "n": int(found.sum()),
        "window_tokens": WINDOW_TOKENS,
        "long_window": {"first_input_from": list(FIRST_FROM), "share": share},
        "hazard": hazard,
        "user_share": share_of(rows.user[found] > 0, 0.0),
        "prompt_tokens": quantiles(rows.longer[found]) if found.any() else [1] * len(COARSE),
        "kept_over_shared": quantiles((rows.keep - rows.shared)[found]) if found.any() else [0] * len(COARSE),
        "gap_s": gaps,
    }


def _survival(rows: Rows) -> float:
    """Part of the sessions with the long window that last from NEAR_WINDOW_TOKENS to WINDOW_TOKENS.

    At the rate at which sessions end, and at the speed at which prompts grow, just before.
    """
    before = (rows.prompt >= 0.75 * NEAR_WINDOW_TOKENS) & (rows.prompt < NEAR_WINDOW_TOKENS)
    growth = (rows.longer - rows.prompt)[before & rows.clean]
    if not len(growth) or growth.mean() <= 0:
        return 1.0
    return float((1.0 - (~rows.inner)[before].mean()) ** ((WINDOW_TOKENS - NEAR_WINDOW_TOKENS) / growth.mean()))


def fit_reset(rows: Rows) -> dict[str, Any]:
    """All that Reset needs."""
    later = rows.plain & (rows.step > 0)
    place = np.searchsorted(GAP_FROM_S, np.nan_to_num(rows.gap_s), side="right") - 1
    chance = {}
    for following, name in enumerate(("tool", USER)):
        chances: list[float] = []
        for cell in range(len(GAP_FROM_S)):
            inside = later & (rows.user == following) & (place == cell)
            chances.append(share_of(rows.reset[inside], chances[-1] if chances else 0.0, FEWEST))
        chance[name] = chances
    found = rows.reset
    return {
        "n": int(found.sum()),
        "first_step": share_of(found[rows.plain & (rows.step == 0)], 0.0),
        "gap_from_s": list(GAP_FROM_S),
        "chance": chance,
        "first_prompt_ratio": _ratios(rows, found & (rows.step == 0)),
        "prompt_ratio": _ratios(rows, found & (rows.step > 0)),
        "kept_over_shared": quantiles((rows.keep - rows.shared)[found]) if found.any() else [0] * len(COARSE),
    }


def _ratios(rows: Rows, which: Flags) -> list[float]:
    """Table of the length of a prompt over that of the one before it."""
    return quantiles((rows.longer / rows.prompt)[which], 4) if which.any() else [1.0] * len(COARSE)
