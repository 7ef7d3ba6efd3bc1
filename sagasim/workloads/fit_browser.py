"""Published statistics of browser agents to the parameters of browser_real.py.

A line of STATS.md is `| dev:web/NAME | metric | p5 | p50 | p95 | p99 | mean | n |`. The data behind them is not part
of sagasim. Quantiles become knots; what they leave open is how prompts follow each other: their scores are a trend by
the logarithm of the step, a level of the session, AR(1) noise, and a rise before the last one. The four constants of
that are searched on a grid, such that growth from step to step and final prompts come nearest to their published
quantiles; the prompts themselves keep theirs.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sagasim.errors import TraceError
from sagasim.workloads.tables import FINE

__all__ = ["PUBLISHED", "fit_browser", "knots", "read_published"]

Series = NDArray[np.float64]
PUBLISHED = (0.05, 0.5, 0.95, 0.99)
SESSIONS = 1500
LOWEST = 0.01  # part of the later prompts that are no longer than the first: published quantiles leave next to none
LASTS = (0.0, 0.25, 0.5, 0.75)
TRENDS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3, 1.6, 2.0)
LEVELS, NOISES = (0.0, 0.2, 0.4, 0.6, 0.8), (0.0, 0.2, 0.4, 0.6, 0.75, 0.9)
METRICS = {
    "steps": "steps / session",
    "prompt_tokens": "input tok / step",
    "output_tokens": "output tok / step",
    "first_input_tokens": "first-step input tok",
    "final_tokens": "final-step input tok",
    "growth_tokens": "ctx growth tok / step",
    "cycle_s": "step cycle s (LLM+browser)",
    "task_wall_s": "task wall s",
    "prefix_share": "prefix share vs prev step",
}
_inverse = NormalDist().inv_cdf


def read_published(path: Path) -> dict[str, dict[str, dict[str, float]]]:
    """Agent -> metric -> p5, p50, p95, p99, mean and n, from the table of statistics."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        match = re.fullmatch(r"dev:web/(\w+)", cells[0])
        if match is None or len(cells) != 8:
            continue
        for name, text in METRICS.items():
            if cells[1] == text and cells[2] != "-":
                numbers = [float(cell.replace(",", "")) for cell in cells[2:]]
                found.setdefault(match[1], {})[name] = dict(
                    zip(("p5", "p50", "p95", "p99", "mean", "n"), numbers, strict=True)
                )
    return found


def knots(row: dict[str, float]) -> list[float]:
    """The published quantiles of a metric."""
    return [row["p5"], row["p50"], row["p95"], row["p99"]]


def fit_browser(path: Path) -> dict[str, Any]:
    """All that browser_real.Model needs, from a table of published statistics."""
    published = read_published(path)
    if not published:
        raise TraceError("no statistics of browser agents", where=str(path), expected="lines of dev:web/NAME")
    timed = next((rows for rows in published.values() if "cycle_s" in rows), None)
    agents = {}
    for name, rows in published.items():
        missing = [key for key in METRICS if key not in rows and key != "cycle_s"]
        if missing or timed is None:
            what = f"no {METRICS[missing[0]]!r} of {name}" if missing else "no step cycle of any agent"
            raise TraceError(what, where=str(path), expected="all metrics of every agent, step cycles of one")
        cycle = rows.get("cycle_s")
        if cycle is None:  # the shape of the other agent, with the mean that this one's task times imply
            factor = rows["task_wall_s"]["mean"] / rows["steps"]["mean"] / timed["cycle_s"]["mean"]
            cycle = {key: value * factor for key, value in timed["cycle_s"].items()}
        agents[name] = {
            "sessions": rows["steps"]["n"],
            **{key: knots(rows[key]) for key in ("steps", "output_tokens", "first_input_tokens", "prefix_share")},
            "cycle_s": [round(value, 3) for value in knots(cycle)],
            "cycle_measured": "cycle_s" in rows,
            "start_s": round(max(0.0, rows["task_wall_s"]["mean"] - (rows["steps"]["mean"] - 1) * cycle["mean"]), 3),
            **_prompts(rows),
        }
    return {"agents": agents, "published": published}


def _prompts(rows: dict[str, dict[str, float]]) -> dict[str, Any]:
    """How prompts after the first follow each other, and the table that turns their scores into tokens."""
    first = 1.0 / rows["steps"]["mean"]  # part of all prompts that are the first of their session, and the shortest
    later = [(p - first) / (1 - first) for p in PUBLISHED[1:]]
    scores = np.array([_inverse(p) for p in (LOWEST, *later)])
    shortest = knots(rows["first_input_tokens"])[1]
    logs = np.log([shortest, *knots(rows["prompt_tokens"])[1:]])
    tokens = np.exp(_through(np.array([_inverse(min(max(p, 1e-4), 1 - 1e-4)) for p in FINE]), scores, logs))
    tokens = np.maximum(tokens, shortest)
    normals = _normals(SESSIONS * 64).reshape(SESSIONS, 64)
    steps = _steps(normals[:, 0], rows)
    best: tuple[float, Any] = (np.inf, None)
    for trend, level, noise, last in itertools.product(TRENDS, LEVELS, NOISES, LASTS):
        drawn, knot = _simulate(normals, steps, tokens, shortest, (trend, level, noise, last))
        growth = np.concatenate([np.diff(run) for run in drawn])
        final = np.array([run[-1] for run in drawn])
        scale = rows["growth_tokens"]["p99"]
        error = np.abs(np.quantile(growth, PUBLISHED) - knots(rows["growth_tokens"])).sum() / scale
        error += np.abs(np.quantile(final, PUBLISHED) / knots(rows["final_tokens"]) - 1).sum()
        if error < best[0]:
            best = (float(error), (trend, level, noise, last, knot))
    trend, level, noise, last, knot = best[1]
    return {
        "prompt_scores": {
            "trend": trend,
            "level": level,
            "noise": noise,
            "last": last,
            "table": [round(float(k), 4) for k in knot],
        },
        "prompt_tokens": [round(float(value)) for value in tokens],
    }


def _through(z: Series, scores: Series, values: Series) -> Series:
    """Piecewise linear through the knots, going on with the outermost slopes."""
    place = np.clip(np.searchsorted(scores, z) - 1, 0, len(scores) - 2)
    slope = (values[place + 1] - values[place]) / (scores[place + 1] - scores[place])
    return np.asarray(values[place] + slope * (z - scores[place]), dtype=np.float64)


def _normals(count: int) -> Series:
    uniform = np.random.Generator(np.random.PCG64(0)).random(count)
    return np.array([_inverse(max(u, 2.0**-53)) for u in uniform.tolist()])


def _steps(z: Series, rows: dict[str, dict[str, float]]) -> NDArray[np.int64]:
    scores = np.array([_inverse(p) for p in PUBLISHED])
    drawn = np.exp(_through(z, scores, np.log(knots(rows["steps"]))))
    return np.asarray(np.clip(np.round(drawn), 1, rows["steps"]["p99"]), dtype=np.int64)


def _simulate(
    normals: Series,
    steps: NDArray[np.int64],
    tokens: Series,
    first: float,
    constants: tuple[float, float, float, float],
) -> tuple[list[Series], Series]:
    """(prompts of each session, scores at the probabilities of the fine grid)."""
    trend, level, noise, last = constants
    own = np.sqrt(level) * normals[:, 1]
    state = normals[:, 2]
    columns = []
    for step in range(1, int(steps.max())):
        if step > 1:
            state = noise * state + np.sqrt(1 - noise * noise) * normals[:, 2 + step]
        columns.append(trend * np.log(step) + own + np.sqrt(1 - level) * state)
    scores = np.array(columns).T
    ends = np.flatnonzero(steps > 1)
    scores[ends, steps[ends] - 2] += last
    inside = np.arange(1, scores.shape[1] + 1)[None, :] < steps[:, None]
    knot = np.quantile(scores[inside], FINE)
    prompts = np.interp(scores, knot, tokens)
    return [np.concatenate([[first], prompts[i, : n - 1]]) for i, n in enumerate(steps) if n > 1], knot
