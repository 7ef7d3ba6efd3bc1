"""Last step of a fit of sessions: means that only hold when the parts of the model act together.

Tables and hazards are estimated one by one. Drawn together, sessions whose prompts grow fast end or are compacted
earlier, so averages over steps shift. This draws sessions from the fit and moves four kinds of constants until the
averages are those of the source: the scale of the ends (calls per session), how far sessions with many users end
earlier (share of requests that a user starts), and the mean levels of outputs, added tokens and gaps.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sagasim.workloads.fit_rows import Rows
from sagasim.workloads.measure import USER, main_calls, starts_next
from sagasim.workloads.session_model import Model
from sagasim.workloads.sessions import Changes, Drawn

__all__ = ["tune"]

FEWEST_SESSIONS, MOST_SESSIONS, CALLS = (
    6000,
    30_000,
    300_000,
)  # drawn in a round: as many sessions as make so many calls
ROUNDS = 6
STEP = 0.8  # part of the distance that is made up in one round
SEED = 0


def tune(fit: dict[str, Any], rows: Rows) -> None:
    """Change the constants of the fit in place."""
    target_steps = float(rows.steps.mean())
    target_users = float(rows.user[rows.plain].mean()) if rows.plain.any() else 0.0
    ends, session = fit["session"]["ends"], fit["session"]
    levels = np.array(session["shift"])
    scale, by_user = 1.0, 0.0
    mixed = 0.0 < target_users < 1.0
    sessions = int(min(max(CALLS / target_steps, FEWEST_SESSIONS), MOST_SESSIONS))
    for _ in range(ROUNDS):
        ends["scale"], ends["by_user_score"] = round(scale, 4), round(by_user, 4)
        session["shift"] = [round(float(level), 4) for level in levels]
        steps, users, off = _simulate(Model(fit), sessions)
        scale *= (steps / target_steps) ** STEP
        if mixed and users > 0:
            by_user = min(max(by_user + STEP * math.log(users / target_users), 0.0), 2.0)
        levels += STEP * off


def _simulate(model: Model, sessions: int) -> tuple[float, float, np.ndarray[Any, Any]]:
    """(mean calls, share of requests that users start, mean level of each kind over the steps that it applies to)."""
    steps = users = 0
    weights, sums = np.zeros(4), np.zeros(4)
    for index in range(sessions):
        drawn = Drawn(model, Changes(), SEED, "fit", index)
        calls = main_calls(drawn.task())
        own = sum(starts_next(call) == USER for call in calls[:-1])
        steps += len(calls)
        users += own
        weight = np.array([len(calls), len(calls) - 1, len(calls) - 1 - own, own])
        weights += weight
        sums += weight * drawn.levels
    return steps / sessions, users / max(steps - sessions, 1), sums / np.maximum(weights, 1)
