"""Browser agents as measured: Browser-Use and Convergence on WebVoyager, from published quantiles.

Their data is not part of sagasim.

Each prompt is built anew from a fixed beginning, what happened so far and the page, so it does not simply grow, and
only its beginning is found again: 60 % on average. What is generated has the published quantiles of steps, prompts,
outputs, step times and prefix shares; how prompts follow each other is fitted to the published growth
(fit_browser.py). A step takes its time together with the model's part of it, assumed to be 10 ms per output token; the
browser takes the rest.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any

from sagasim.core import MAX_DURATION_PS, Call, Prefix, Task, Tool
from sagasim.errors import ConfigError
from sagasim.fill import LLM_S_PER_OUTPUT_TOKEN
from sagasim.rng import Stream
from sagasim.units import PS_PER_US, ps_from_s
from sagasim.workloads import workload
from sagasim.workloads.tables import Table, fit_digest, model_of

__all__ = ["AGENTS", "task"]

FILLED = {
    "tokens": "through the published P5, P50, P95 and P99, linear in the normal quantile (in logarithms where above 0)",
    "start_s": "exponential, with the mean that task times are longer than their steps",
    "tool_s": "step time through its published quantiles less 10 ms per output token, at least 1 ms",
}
AGENTS = ("BrowserUse", "Convergence")
_SCORES = [NormalDist().inv_cdf(p) for p in (0.05, 0.5, 0.95, 0.99)]
_LONGEST_PS = MAX_DURATION_PS // PS_PER_US * PS_PER_US


class _Knots:
    """A quantity by its P5, P50, P95 and P99: piecewise linear in the normal score."""

    def __init__(self, values: Sequence[float]) -> None:
        self._log = min(values) > 1
        self._values = [math.log(value) for value in values] if self._log else list(values)

    def at(self, z: float) -> float:
        place = min(max(bisect_right(_SCORES, z) - 1, 0), len(_SCORES) - 2)
        low, high = self._values[place], self._values[place + 1]
        value = low + (high - low) * (z - _SCORES[place]) / (_SCORES[place + 1] - _SCORES[place])
        return math.exp(value) if self._log else value


class _Agent:
    """One agent of the fit."""

    def __init__(self, fit: dict[str, Any]) -> None:
        self.steps, self.output, self.first, self.share, self.cycle = (
            _Knots(fit[key]) for key in ("steps", "output_tokens", "first_input_tokens", "prefix_share", "cycle_s")
        )
        self.most_steps = round(max(fit["steps"]))
        scores = fit["prompt_scores"]
        self.trend, self.noise, self.last = scores["trend"], scores["noise"], scores["last"]
        self.start_s: float = fit["start_s"]
        self.level, self.rest = math.sqrt(scores["level"]), math.sqrt(1 - scores["level"])
        self.fresh = math.sqrt(1 - self.noise**2)
        self.scores, self.tokens = Table(scores["table"]), Table(fit["prompt_tokens"])


@lru_cache(maxsize=8)
def _agent(fit: str, name: str) -> _Agent:
    return model_of(lambda found: _Agent(found["agents"][name]), fit, "browser")


@workload("browser-real", filled=FILLED, sources=lambda options: fit_digest(options["fit"]))
def task(
    index: int,
    seed: int,
    *,
    fit: str = "browser-real",
    agent_mix: tuple[float, float] = (1.0, 1.0),
    max_steps: int = 0,
    prompt_factor: float = 1.0,
    output_factor: float = 1.0,
    gap_factor: float = 1.0,
    shared_prefix_tokens: int = 0,
) -> Task:
    """Browser agents whose prompts are rebuilt at every step, from published statistics of WebVoyager runs.

    fit: name of a fit, or a file made by python -m sagasim.workloads.fit
    agent_mix: weights of Browser-Use and Convergence
    max_steps: calls of a task at most; 0: as in the runs, 20
    prompt_factor: factor on prompts
    output_factor: factor on outputs
    gap_factor: factor on the time that the browser takes
    shared_prefix_tokens: part of the first prompt that all tasks of an agent share; how much it was is not published
    """
    if sum(agent_mix) <= 0 or prompt_factor <= 0:
        raise ConfigError("agent_mix without weight or prompt_factor 0", expected="numbers above 0")
    stream = Stream(seed, "browser-real", index)
    name = AGENTS[stream.weighted(agent_mix)]
    agent = _agent(fit, name)
    normal = stream.normal
    steps = max(1, min(round(agent.steps.at(normal())), max_steps or agent.most_steps))
    prompt = max(2, round(agent.first.at(normal()) * prompt_factor))
    kept = min(shared_prefix_tokens, prompt - 1)
    prefix = Prefix(f"browser-real/{name}/{shared_prefix_tokens}", shared_prefix_tokens)
    extends = prefix.name if kept else None
    level, state = agent.level * normal(), normal()
    calls: list[Call] = []
    delay_ps = _ps(stream.exponential(agent.start_s) * gap_factor)
    for step in range(steps):
        if step:
            state = state if step == 1 else agent.noise * state + agent.fresh * normal()
            score = agent.trend * math.log(step) + level + agent.rest * state
            score += agent.last if step + 1 == steps else 0.0
            before = prompt
            prompt = max(2, round(agent.tokens.at(agent.scores.probability(score)) * prompt_factor))
            kept = max(0, min(round(agent.share.at(normal()) * prompt), before, prompt - 1))
            extends = calls[-1].name if kept else None
        output = max(1, round(agent.output.at(normal()) * output_factor))
        tools: tuple[Tool, ...] = ()
        if step + 1 < steps:
            browser_s = max(1e-3, agent.cycle.at(normal()) - LLM_S_PER_OUTPUT_TOKEN * output) * gap_factor
            tools = (Tool("browser", _ps(browser_s), True),)
        after = (calls[-1].name,) if calls else ()
        calls.append(Call(str(step), prompt - kept, output, extends, kept, after, 0 if step else delay_ps, tools))
    used = (prefix,) if calls[0].extends else ()
    return Task(f"browser-real/{index}", tuple(calls), prefixes=used, agent=f"browser-real/{name}")


def _ps(seconds: float) -> int:
    return min(ps_from_s(min(seconds, 1e6)), _LONGEST_PS)
