"""Sessions of an agent drawn from a fit to recorded ones: contexts that grow, gaps, losses of the prefix, sub-agents.

The model (fit_sessions.py says how its tables are made):

1. A session has six normal scores, correlated: first input, share of requests that a user starts, and its own level of
   outputs, of added tokens, of gaps after tools and after users. It ends after a step with a hazard by the number of
   steps, the first input and the length of the prompt (fit_ends.py).
2. Each step has three more (output, added, gap), correlated with each other and, as ARMA(1, 1) noise, with those of
   the steps before; an output also with what was added just before it. The level of the session and this noise
   together are standard normal over all steps.
3. A score becomes a value by the quantile table that fits the situation: outputs by what started the request and what
   will start the next one; added tokens (next prompt less this prompt and output) by what starts the next request and
   by the size of the output; gaps by what starts the next request.
4. The prefix is lost in two ways. Compaction: the prompt shrinks, with a hazard by its length, for sessions with a
   short or a long context window. Reset: only the beginning is found again, with a chance by trigger and length of the
   gap.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from sagasim.core import MAX_CALLS, MAX_DURATION_PS, Call, Prefix, Task, Tool
from sagasim.errors import ConfigError
from sagasim.fill import LATENCY_MS, latency_ps, user_ps
from sagasim.rng import Stream
from sagasim.units import PS_PER_S, PS_PER_US, ps_from_s
from sagasim.workloads.session_model import TOOL, USER, Model, load_model
from sagasim.workloads.subagents import subagent_prefix, with_subagents
from sagasim.workloads.tables import phi

__all__ = ["FILLED", "Changes", "Drawn", "make_session"]

FILLED = {
    "tokens": "quantile tables of recorded sessions, with the correlations between and within them",
    "tool_s": "quantile tables of recorded gaps after tools and after users; whole microseconds, at most a day",
}
LONGEST_TOKENS = 2_000_000  # no prompt grows beyond: more than any recorded one
_LONGEST_PS = MAX_DURATION_PS // PS_PER_US * PS_PER_US


@dataclass(frozen=True, slots=True)
class Changes:
    """Factors on what was recorded, and what is found again in a cache."""

    steps_factor: float = 1.0
    first_factor: float = 1.0
    added_factor: float = 1.0
    output_factor: float = 1.0
    gap_factor: float = 1.0
    compaction_factor: float = 1.0
    reset_factor: float = 1.0
    subagent_factor: float = 1.0
    share_prefixes: bool = True
    reuse_output: bool = False


def make_session(workload: str, index: int, seed: int, fit: str, changes: Changes) -> Task:
    """Task number `index` of a workload that is drawn from a fit of recorded sessions."""
    if changes.steps_factor <= 0:
        raise ConfigError(f"steps_factor is {changes.steps_factor}", expected="a number above 0")
    return Drawn(load_model(fit), changes, seed, workload, index).task()


class Drawn:
    """One session as it is drawn; levels: its own of output, added tokens, gap after a tool, gap after a user."""

    def __init__(self, model: Model, changes: Changes, seed: int, workload: str, index: int) -> None:
        self.model = model
        self.changes = changes
        self.stream = stream = Stream(seed, workload, index)
        self.workload = workload
        self.index = index
        self.prefixes, self.extends, self.shared = self._prefix()
        # scores of the first prompt, of the share of users, of the levels of output, added tokens and the two gaps
        normals = [stream.normal() for _ in model.cholesky]
        scores = [sum(c * e for c, e in zip(row, normals, strict=False)) for row in model.cholesky]
        own = model.own(self.shared).at(phi(scores[0]))
        self.end_factor = model.ends.of_session(round(own), scores[1]) / changes.steps_factor
        self.own = max(1, min(round(own * changes.first_factor), LONGEST_TOKENS))
        self.begun = self.shared + self.own >= model.begun_from
        self.user_share = model.user_share.at(phi(scores[1]))
        self.levels = [score - shift for score, shift in zip(scores[2:], model.shift, strict=True)]
        # noise in its steady state: unit variance, of which the latest shock is the part that is new
        self.shocks = [sigma * stream.normal() for sigma in model.sigma]
        self.noise = [e + rest * stream.normal() for e, rest in zip(self.shocks, model.older, strict=True)]
        self.added_before = stream.normal()
        self.long = False
        if model.compaction is not None:
            self.long = stream.uniform() < model.compaction.long_share(self.shared + self.own)

    def task(self) -> Task:
        calls: list[Call] = []
        prompt, trigger, extends = self.shared + self.own, USER, self.extends
        kept = self.shared if self.prefixes else 0
        after: tuple[str, ...] = ()
        most = max(1, min(MAX_CALLS // 2, round(2 * self.model.ends.most_steps * self.changes.steps_factor)))
        for step in range(most):
            self._stir()
            name, fresh = str(step), prompt - kept
            following, gap_s, shrinks = self._pause(step, prompt, trigger)
            output = self._output(trigger, following)
            longer = None
            if step + 1 < most and not self._ends(step, prompt):
                longer, keep = self._prompt(step, prompt, output, following, gap_s, shrinks)
            if longer is None:
                calls.append(Call(name, fresh, self._output(trigger, USER), extends, kept, after))
                break
            tools = self._tools(following, gap_s)
            calls.append(Call(name, fresh, output, extends, kept, after, 0, tools))
            prompt, kept, trigger, after = longer, keep, following, (name,)
            extends = name if kept else None
        prefixes = self.prefixes
        subagents = self.model.subagents
        if subagents is not None:
            calls = with_subagents(calls, subagents, self.stream, self.workload, self.changes.subagent_factor)
            if any(call.agent for call in calls):
                prefixes = (*prefixes, Prefix(subagent_prefix(self.workload), subagents.shared_tokens))
        return Task(f"{self.workload}/{self.index}", tuple(calls), prefixes=prefixes, agent=self.workload)

    def _ends(self, step: int, prompt: int) -> bool:
        chance = self.model.ends.chance(step / self.changes.steps_factor, prompt, self.long)
        return self.stream.uniform() < chance * self.end_factor

    # ---- what tasks share

    def _prefix(self) -> tuple[tuple[Prefix, ...], str | None, int]:
        """(prefixes, what the first prompt extends, tokens of tools and system prompt).

        A prefix that several recorded sessions had is shared by name. The others, recorded once, stand for all that a
        further session would bring along, so they are the task's own.
        """
        model = self.model
        drawn = self.stream.uniform() * model.prefix_sums[-1]
        tool, system, count = model.prefixes[min(bisect_right(model.prefix_sums, drawn), len(model.prefixes) - 1)]
        if not self.changes.share_prefixes or not tool + system:
            return (), None, tool + system
        own = f"/{self.index}"
        found: list[Prefix] = []
        name, below = None, None
        if tool:
            below = name = f"{self.workload}/tools/{tool}" + ("" if model.tool_sessions[tool] > 1 else own)
            found.append(Prefix(name, tool))
        if system:
            name = f"{self.workload}/system/{tool}/{system}" + ("" if count > 1 else own)
            found.append(Prefix(name, system, below, tool))
        return tuple(found), name, tool + system

    # ---- scores

    def _stir(self) -> None:
        """Next values of the noise of output, added tokens and gap."""
        model, normal = self.model, self.stream.normal
        raw = (normal(), normal(), normal())
        self.added_before = self.noise[1]
        for kind, (row, (ar, ma)) in enumerate(zip(model.innovations, model.noise, strict=True)):
            shock = model.sigma[kind] * sum(c * e for c, e in zip(row, raw, strict=False))
            self.noise[kind] = ar * self.noise[kind] + shock - ma * self.shocks[kind]
            self.shocks[kind] = shock

    def _quantile(self, kind: int, level: int) -> float:
        return phi(self.levels[level] + self.model.scale[level] * self.noise[kind])

    def _output(self, trigger: int, following: int) -> int:
        model = self.model
        noise = model.apart * self.noise[0] + model.after_added * self.added_before
        probability = phi(self.levels[0] + model.scale[0] * noise)
        drawn = model.output[trigger][following].at(probability) * self.changes.output_factor
        return max(1, min(round(drawn), LONGEST_TOKENS))

    # ---- from one request to the next

    def _pause(self, step: int, prompt: int, trigger: int) -> tuple[int, float, bool]:
        """(what starts the next request, seconds until then, whether the prompt shrinks meanwhile)."""
        model, uniform = self.model, self.stream.uniform
        compaction = model.compaction
        if compaction is not None:
            hazard = compaction.hazard(prompt, self.long) * self.changes.compaction_factor
            if uniform() < hazard or prompt >= LONGEST_TOKENS:
                following = USER if uniform() < compaction.user_share else TOOL
                return following, compaction.gap[following].at(uniform()) * self.changes.gap_factor, True
        share, persistence = self.user_share, model.persistence
        if step == 0:
            chance = model.user_after_first[self.begun]
        else:
            chance = share + persistence * (1.0 - share) if trigger == USER else share * (1.0 - persistence)
        following = USER if uniform() < chance else TOOL
        if model.gap is None:
            return following, 0.0, False
        gap_s = model.gap[following].at(self._quantile(2, 2 + following)) * self.changes.gap_factor
        return following, gap_s, False

    def _tools(self, following: int, gap_s: float) -> tuple[Tool, ...]:
        """What happens until the next request; drawn as for any source without times where the fit has none."""
        model, stream = self.model, self.stream
        if following == USER:
            return (
                Tool("user", _ps(gap_s) if model.gap is not None else _scaled(user_ps(stream), self.changes), True),
            )
        name = model.tool_names[stream.weighted(model.tool_weights)] if len(model.tool_names) > 1 else "tool"
        if model.gap is not None:
            return (Tool(name, _ps(gap_s), True),)
        return (Tool(name, _scaled(latency_ps(stream, LATENCY_MS["database"]), self.changes), True),)

    def _prompt(
        self, step: int, prompt: int, output: int, following: int, gap_s: float, shrinks: bool
    ) -> tuple[int | None, int]:
        """(tokens of the next prompt, tokens of it that repeat this prompt, or this prompt and its output).

        None: a short context window is full, and the session ends, as many do then.
        """
        model, uniform = self.model, self.stream.uniform
        if shrinks:
            return self._shrunk(prompt)
        reset = model.reset
        if reset is not None:
            chance = (
                reset.first_step if step == 0 else reset.chance(following, gap_s / (self.changes.gap_factor or 1.0))
            )
            if uniform() < chance * self.changes.reset_factor:
                longer = max(1, min(round(prompt * reset.ratio(step).at(uniform())), LONGEST_TOKENS))
                if self._overflows(longer):
                    return self._full(prompt)
                return longer, self._kept(reset.kept.at(uniform()), prompt, longer)
        table = model.added_table(step, prompt, following, output, self.begun)
        if model.early(step, prompt):
            probability = phi(self.levels[1] * model.early_level + model.early_scale * self.noise[1])
        else:
            probability = self._quantile(1, 1)
        added = round(table.at(probability) * self.changes.added_factor)
        longer = max(1, min(prompt + output + added, LONGEST_TOKENS))
        if self._overflows(longer):
            return self._full(prompt)
        lost = round(model.lost.at(uniform()))
        context = prompt + output if model.repeats_context or self.changes.reuse_output else prompt
        return longer, max(0, min(context - lost, longer - 1))

    def _overflows(self, longer: int) -> bool:
        """Whether a prompt does not fit into the short window of this session."""
        compaction = self.model.compaction
        short = compaction is not None and not self.long and self.changes.compaction_factor > 0
        return short and compaction is not None and longer > compaction.window_tokens

    def _full(self, prompt: int) -> tuple[int | None, int]:
        return (None, 0) if self.stream.uniform() < self.model.ends.when_full else self._shrunk(prompt)

    def _shrunk(self, prompt: int) -> tuple[int, int]:
        """As `_prompt`, after a compaction."""
        compaction, uniform = self.model.compaction, self.stream.uniform
        if compaction is None:
            return prompt, prompt - 1
        longer = max(1, min(round(compaction.prompt.at(uniform())), round(0.75 * prompt)))
        return longer, self._kept(compaction.kept.at(uniform()), prompt, longer)

    def _kept(self, over_shared: float, prompt: int, longer: int) -> int:
        return max(0, min(round(self.shared + over_shared), prompt, longer - 1))


def _ps(seconds: float) -> int:
    return min(ps_from_s(seconds), _LONGEST_PS) if seconds < 1e9 else _LONGEST_PS


def _scaled(duration_ps: int, changes: Changes) -> int:
    return _ps(duration_ps / PS_PER_S * changes.gap_factor)
