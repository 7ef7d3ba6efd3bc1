"""Recorded sessions to the tables of session_model.py. Whatever format they came in: it sees tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from sagasim.core import Task
from sagasim.workloads.fit_ends import fit_ends
from sagasim.workloads.fit_losses import PROMPT_FROM, fit_compaction, fit_reset
from sagasim.workloads.fit_rows import (
    FEWEST,
    NEAR_WINDOW_TOKENS,
    WINDOW_TOKENS,
    Flags,
    Rows,
    Series,
    quantiles,
    share_of,
    shared_tokens,
)
from sagasim.workloads.fit_scores import fit_scores, normal_scores
from sagasim.workloads.fit_subagents import fit_subagents
from sagasim.workloads.fit_tune import tune
from sagasim.workloads.measure import USER

__all__ = ["fit_sessions"]

CELL = 400  # values for a cell of the conditional tables
STEP_FROM = (0, 1, 3, 6)  # prompts grow faster in the first steps: before each of these, and from the last one on
BEGUN_TOKENS = 50_000  # a longer first prompt is the middle of a conversation: an assumption
SHORT_TOKENS = 40_000  # prompts below this grow faster later too, after compaction: an assumption
EARLY_CELL = 30  # values for a table of the first steps
SHARED_CELL, SHARED_CELLS = 70, 6  # sessions for a table of first prompts by what they share, and how many at most


def fit_sessions(tasks: Sequence[Task]) -> dict[str, Any]:
    """All that Model needs, from the tasks of one source in the order of the source."""
    rows = Rows(tasks)
    pairs = Counter(shared_tokens(task) for task in tasks)
    prefixes = sorted(([tool, system, n] for (tool, system), n in pairs.items()), key=lambda row: (-row[2], row[:2]))
    shares, long_enough = _user_shares(rows)
    own, own_scores = _own(rows)
    scores = {name: np.full(len(rows.prompt), np.nan) for name in ("output", "added", "gap")}
    step: dict[str, Any] = {
        "repeats": "context" if rows.repeats_context else "prompt",
        "output_tokens": _outputs(rows, scores["output"]),
        "added_tokens": _added(rows, scores["added"]),
        "lost_tokens": quantiles((rows.context - rows.keep)[rows.clean].clip(0)),  # 0: an older prompt is kept
        "tools": _tools(tasks),
    }
    timed = rows.plain & ~np.isnan(rows.gap_s)
    if timed.sum() >= FEWEST:
        step["gap_s"] = _gaps(rows, timed, scores["gap"])
    session, noise = fit_scores(rows, scores, own_scores, shares, long_enough)
    step["added_tokens"]["early_level"] = _early_level(rows, scores["added"], noise["session_share"][1])
    fit: dict[str, Any] = {
        "session": {
            "ends": fit_ends(rows, PROMPT_FROM, NEAR_WINDOW_TOKENS, WINDOW_TOKENS),
            "own_tokens": own,
            "user_share": quantiles(shares[long_enough], 4),
            "user_after_first": _user_after_first(rows),
            "user_persistence": _persistence(rows, long_enough),
            "prefixes": prefixes,
        }
        | session,
        "step": step | noise,
    }
    if rows.compaction.sum() >= FEWEST:
        fit["compaction"] = fit_compaction(rows)
    if rows.reset.sum() >= FEWEST:
        fit["reset"] = fit_reset(rows)
    if any(call.agent for task in tasks for call in task.calls):
        fit["subagents"] = fit_subagents(tasks)
    tune(fit, rows)
    return fit


def _own(rows: Rows) -> tuple[dict[str, Any], Series]:
    """(tables of the first prompt without tools and system prompt, by the size of these; its normal scores)."""
    cells = int(np.clip(len(rows.own) // SHARED_CELL, 1, SHARED_CELLS))
    shared = rows.first - rows.own
    edges = np.unique(np.round(np.quantile(shared, np.arange(1, cells) / cells))) if cells > 1 else np.array([])
    place = np.searchsorted(edges, shared, side="right")
    tables, scores = [], np.zeros(len(shared))
    for cell in range(len(edges) + 1):
        inside = place == cell
        tables.append(quantiles(rows.own[inside] if inside.any() else rows.own))
        scores[inside] = normal_scores(rows.own[inside])
    return {"shared_from": [0, *(int(edge) for edge in edges)], "tables": tables}, scores


def _user_shares(rows: Rows) -> tuple[Series, Flags]:
    """(part of the requests of each session that a user starts, whether the session is long enough to tell)."""
    count = len(rows.steps)
    users = np.bincount(rows.session[rows.plain], rows.user[rows.plain], count)
    all_ = np.bincount(rows.session[rows.plain], minlength=count)
    long_enough = all_ >= min(20, max(1, np.median(all_)))
    return users / np.maximum(all_, 1), long_enough


def _user_after_first(rows: Rows) -> list[float]:
    """Chance that a user answers the first request, of sessions from their beginning and from their middle."""
    first = rows.plain & (rows.step == 0)
    begun = rows.first[rows.session] >= BEGUN_TOKENS
    everywhere = share_of(rows.user[first] > 0, 0.0)
    return [share_of(rows.user[first & (begun == kind)] > 0, everywhere, FEWEST) for kind in (False, True)]


def _persistence(rows: Rows, long_enough: Flags) -> float:
    """Correlation of what starts a request with what starts the next one, within sessions."""
    product = square = 0.0
    for place in np.flatnonzero(long_enough):
        flags = rows.user[rows.plain & (rows.session == place)]
        centred = flags - flags.mean()
        product += float((centred[1:] * centred[:-1]).sum())
        square += float((centred * centred).sum())
    return round(min(max(product / square, 0.0), 0.95), 4) if square else 0.0


def _outputs(rows: Rows, scores: Series) -> dict[str, list[float]]:
    tables = {}
    for own, own_name in enumerate(("tool", USER)):
        for following, name in enumerate(("tool", USER)):
            cell = (rows.own_user == own) & (rows.user == following)
            if cell.sum() < FEWEST:
                cell = rows.user == following
            if cell.sum() < FEWEST:
                cell = np.ones(len(rows.user), dtype=bool)
            tables[f"{own_name}>{name}"] = quantiles(rows.output[cell])
            exact = (rows.own_user == own) & (rows.user == following)
            scores[exact] = normal_scores(rows.output[exact])
    return tables


def _added(rows: Rows, scores: Series) -> dict[str, Any]:
    """Tables of added tokens: for the first steps by step and kind of session, later by output."""
    tables: dict[str, Any] = {}
    added = rows.longer - rows.prompt - rows.output
    begun = rows.first[rows.session] >= BEGUN_TOKENS
    late_stage = len(STEP_FROM)
    stage = np.searchsorted(STEP_FROM, rows.step, side="right") - 1
    stage[(stage == late_stage - 1) & (rows.prompt >= SHORT_TOKENS)] = late_stage
    for following, name in enumerate(("tool", USER)):
        rows_of = rows.clean & (rows.user == following)
        late = rows_of & (stage == late_stage)
        if late.sum() < FEWEST:
            late = rows_of if rows_of.any() else rows.clean
        cells = int(np.clip(late.sum() // CELL, 1, 8))
        edges = np.quantile(rows.output[late], np.arange(1, cells) / cells) if cells > 1 else np.array([])
        edges = np.unique(np.round(edges))
        place = np.searchsorted(edges, rows.output, side="right")
        early: list[list[list[float]]] = []
        for kind in (False, True):
            early.append([])
            for first in range(late_stage):
                inside = rows_of & (stage == first) & (begun == kind)
                early[-1].append(quantiles(added[inside if inside.sum() >= EARLY_CELL else late]))
                scores[inside] = normal_scores(added[inside])
        found = []
        for cell in range(len(edges) + 1):
            inside = late & (place == cell)
            found.append(quantiles(added[inside]))
            exact = inside & rows_of & (stage == late_stage)
            scores[exact] = normal_scores(added[exact])
        tables[name] = {"output_from": [0, *(int(edge) for edge in edges)], "tables": found, "early": early}
    return tables | {
        "step_from": list(STEP_FROM),
        "begun_from_tokens": BEGUN_TOKENS,
        "short_below_tokens": SHORT_TOKENS,
    }


def _early_level(rows: Rows, scores: Series, share: float) -> float:
    """How much of a session's level of added tokens shows where the tables of the first steps and short prompts apply.

    The covariance of scores there with scores elsewhere in the session, over that elsewhere.
    """
    known = ~np.isnan(scores)
    early = known & ((rows.step < STEP_FROM[-1]) | (rows.prompt < SHORT_TOKENS))
    late, count = known & ~early, len(rows.steps)
    sums = [np.bincount(rows.session[part], scores[part], count) for part in (early, late)]
    sizes = [np.bincount(rows.session[part], minlength=count) for part in (early, late)]
    pairs = float((sizes[0] * sizes[1]).sum())
    if share <= 0 or pairs == 0:
        return 1.0
    return round(min(max(float((sums[0] * sums[1]).sum()) / pairs / share, 0.0), 1.0), 4)


def _gaps(rows: Rows, timed: Flags, scores: Series) -> dict[str, list[float]]:
    tables = {}
    for following, name in enumerate(("tool", USER)):
        cell = timed & (rows.user == following)
        tables[name] = quantiles(rows.gap_s[cell if cell.any() else timed], 3)
        scores[cell] = normal_scores(rows.gap_s[cell])
    return tables


def _tools(tasks: Sequence[Task]) -> list[list[Any]]:
    """Names of tools and how often each was first, most frequent first."""
    names = Counter(call.tools[0].name for task in tasks for call in task.calls if call.tools)
    del names[USER]
    return [[name, count] for name, count in sorted(names.items(), key=lambda item: (-item[1], item[0]))] or [
        ["tool", 1]
    ]
