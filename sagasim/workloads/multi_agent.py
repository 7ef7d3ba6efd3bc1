"""Several agents that take turns over a few shared contexts, as recorded: Magentic-One runs.

An orchestrator plans (the first four calls), then agents send the same few prompts over and over; now and then a
prompt is continued, restarted or begun. Fitted to the embedded trace `lmcache-magagent` (traces/SOURCES.md): 16 runs,
so the tables are coarse. Calls follow one after another, as they were logged.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from sagasim.core import MAX_CALLS, MAX_DURATION_PS, Call, Task, Tool
from sagasim.errors import ConfigError
from sagasim.rng import Stream
from sagasim.units import PS_PER_US, ps_from_s
from sagasim.workloads import workload
from sagasim.workloads.tables import Table, fit_digest, model_of

__all__ = ["task"]

FILLED = {
    "tokens": "quantile tables of 16 recorded runs; what is sent next: a chain of repeat, continue, restart and new",
    "tool_s": "quantile table of the time between two completions less 10 ms per output token",
}
KINDS = ("repeat", "continue", "restart", "new")  # of a prompt: sent before, mostly, in part, not at all
REPEAT = KINDS[0]


class _Model:
    """The fit in the form that is drawn from."""

    def __init__(self, fit: dict[str, Any]) -> None:
        self.steps = Table(fit["steps"])
        self.opening = [
            (step["adds_output"], *(Table(step[key]) for key in ("growth_tokens", "kept_share", "output_tokens")))
            for step in fit["opening"]
        ]
        self.moves: dict[str, list[int]] = fit["moves"]
        self.ranks: list[int] = fit["repeat_rank"]
        self.growth = {kind: Table(values) for kind, values in fit["growth_tokens"].items()}
        self.kept = {kind: Table(values) for kind, values in fit["kept_share"].items()}
        self.output = {kind: Table(values) for kind, values in fit["output_tokens"].items()}
        self.gap = Table(fit["gap_s"])


@lru_cache(maxsize=8)
def _model(name: str) -> _Model:
    return model_of(_Model, name, "multi-agent")


@workload("multi-agent", filled=FILLED, sources=lambda options: fit_digest(options["fit"]))
def task(
    index: int,
    seed: int,
    *,
    fit: str = "multi-agent",
    steps_factor: float = 1.0,
    output_factor: float = 1.0,
    gap_factor: float = 1.0,
) -> Task:
    """Agents that take turns over a few shared contexts, drawn from a fit to Magentic-One runs.

    fit: name of a fit, or a file made by python -m sagasim.workloads.fit from traces of your own
    steps_factor: factor on the number of calls
    output_factor: factor on outputs
    gap_factor: factor on the time between calls
    """
    if steps_factor <= 0:
        raise ConfigError(f"steps_factor is {steps_factor}", expected="a number above 0")
    model, stream = _model(fit), Stream(seed, "multi-agent", index)
    steps = max(1, min(round(model.steps.at(stream.uniform()) * steps_factor), MAX_CALLS))
    calls: list[Call] = []
    recent: list[Call] = []  # prompts since the main one, last used first, each by the call that made it
    main: Call | None = None  # the one that was last continued: new prompts and restarts go by its length
    kind = "continue"
    for step in range(steps):
        before = calls[-1] if calls else None
        if step < len(model.opening):
            adds_output, growth, kept, outputs = model.opening[step]
            base = 0 if before is None else before.prompt_tokens + (before.output_tokens if adds_output else 0)
            prompt = max(1, base + round(growth.at(stream.uniform())))
            source, keep = _source(before, prompt, kept.at(stream.uniform()))
            kind = "new" if not keep else "restart" if keep < prompt / 2 else "continue"
            output = outputs.at(stream.uniform())
        else:
            kind = KINDS[stream.weighted(model.moves[kind])] if sum(model.moves[kind]) else REPEAT
            source, prompt, keep = _later(model, stream, kind, recent, main)
            output = model.output[kind].at(stream.uniform())
        tools = () if step + 1 == steps else (Tool("tool", _gap_ps(model, stream, gap_factor), True),)
        after = () if before is None else (before.name,)
        written = max(1, round(output * output_factor))
        call = Call(str(step), prompt - keep, written, source.name if source and keep else None, keep, after, 0, tools)
        calls.append(call)
        used = source if kind == REPEAT and source is not None else call
        begins = kind == "continue" or step + 1 == len(model.opening)
        main = call if begins else main
        recent = [used] if begins else [used, *(other for other in recent if other is not used)]
    return Task(f"multi-agent/{index}", tuple(calls), agent="multi-agent")


def _source(source: Call | None, prompt: int, share: float) -> tuple[Call | None, int]:
    """(the call whose prompt is repeated, tokens of it)."""
    return (
        (None, 0) if source is None else (source, max(0, min(round(share * prompt), source.prompt_tokens, prompt - 1)))
    )


def _later(model: _Model, stream: Stream, kind: str, recent: list[Call], main: Call | None) -> tuple[Call, int, int]:
    """(the call whose prompt is used, tokens of the new prompt, tokens that repeat) after the opening."""
    if kind == REPEAT:
        rank = min(stream.weighted(model.ranks), len(recent) - 1) if sum(model.ranks) else 0
        source = recent[rank]
        return source, source.prompt_tokens, source.prompt_tokens
    source = recent[0]
    base = source if main is None or kind == "continue" else main
    prompt = max(1, base.prompt_tokens + round(model.growth[kind].at(stream.uniform())))
    keep = _source(source, prompt, model.kept[kind].at(stream.uniform()))[1]
    return source, prompt, keep


def _gap_ps(model: _Model, stream: Stream, factor: float) -> int:
    drawn = ps_from_s(min(model.gap.at(stream.uniform()) * factor, 1e6))
    return min(drawn, MAX_DURATION_PS // PS_PER_US * PS_PER_US)
