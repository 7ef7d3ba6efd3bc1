"""A fit of recorded sessions in the form that is fast to draw from (sessions.py draws, fit_sessions.py makes it)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import lru_cache
from itertools import accumulate
from typing import Any

from sagasim.workloads.tables import Table, model_of

__all__ = ["TOOL", "TRIGGERS", "USER", "Compaction", "Model", "Reset", "SubAgents", "load_model"]

TRIGGERS = ("tool", "user")
TOOL, USER = 0, 1


class Compaction:
    """When a prompt shrinks: a hazard by its length, for a short and a long context window, and what comes after."""

    def __init__(self, fit: Mapping[str, Any]) -> None:
        self._first_from: list[int] = fit["long_window"]["first_input_from"][1:]
        self._share: list[float] = fit["long_window"]["share"]
        self._prompt_from: list[int] = fit["hazard"]["prompt_from"][1:]
        self._hazard: list[list[float]] = [fit["hazard"]["short"], fit["hazard"]["long"]]
        self.window_tokens: int = fit["window_tokens"]  # the short one
        self.user_share: float = fit["user_share"]
        self.prompt = Table(fit["prompt_tokens"])
        self.kept = Table(fit["kept_over_shared"])
        self.gap = [Table(fit["gap_s"][trigger]) for trigger in TRIGGERS]

    def long_share(self, first: int) -> float:
        """Chance that a session with this first input has the long window."""
        return self._share[bisect_right(self._first_from, first)]

    def hazard(self, prompt: int, long: bool) -> float:
        return self._hazard[long][bisect_right(self._prompt_from, prompt)]


class Ends:
    """The chance that a session ends after a step."""

    def __init__(self, fit: Mapping[str, Any]) -> None:
        self._step_from: list[int] = fit["step_from"][1:]
        self._by_step: list[float] = fit["by_step"]
        self._own_from: list[int] = fit["own_from"][1:]
        self._by_own: list[float] = fit["by_own"]
        self._prompt_from: list[int] = fit["prompt_from"][1:]
        self._by_prompt: list[list[float]] = fit["by_prompt"]
        self._scale: float = fit["scale"]
        self._by_user_score: float = fit["by_user_score"]
        self.when_full: float = fit["when_full"]  # rather than being compacted
        self.most_steps: int = fit["most_steps"]

    def of_session(self, own: int, user_score: float) -> float:
        """Factor of a session with this first prompt and score of its share of users."""
        by_user = math.exp(self._by_user_score * min(max(user_score, -3.0), 3.0))
        return self._scale * by_user * self._by_own[bisect_right(self._own_from, own)]

    def chance(self, step: float, prompt: int, long: bool) -> float:
        by_prompt = self._by_prompt[long][bisect_right(self._prompt_from, prompt)]
        return self._by_step[bisect_right(self._step_from, step)] * by_prompt


class Reset:
    """When only the beginning of a prompt is found again though it goes on: a chance by trigger and gap."""

    def __init__(self, fit: Mapping[str, Any]) -> None:
        self.first_step: float = fit["first_step"]
        self._gap_from: list[float] = fit["gap_from_s"][1:]
        self._chance: list[list[float]] = [fit["chance"][trigger] for trigger in TRIGGERS]
        self._ratios = [Table(fit["first_prompt_ratio"]), Table(fit["prompt_ratio"])]
        self.kept = Table(fit["kept_over_shared"])

    def ratio(self, step: int) -> Table:
        """Of the length of the next prompt over this one."""
        return self._ratios[step > 0]

    def chance(self, trigger: int, gap_s: float) -> float:
        return self._chance[trigger][bisect_right(self._gap_from, gap_s)]


class SubAgents:
    """Which sessions call sub-agents, how many, where, and what these do."""

    def __init__(self, fit: Mapping[str, Any]) -> None:
        self.session_share: float = fit["session_share"]
        self.beside: float = fit["beside"]  # chance that one starts with the one before it
        self.shared_tokens: int = fit["shared_tokens"]
        names = ("count", "steps", "own_tokens", "growth_tokens", "output_tokens", "gap_s", "wait_s")
        self.count, self.steps, self.own, self.growth, self.output, self.gap, self.wait = (
            Table(fit[name]) for name in names
        )


class Model:
    """All tables of a fit. Raises KeyError or ValueError for one that is not complete: load_model says so."""

    def __init__(self, fit: Mapping[str, Any]) -> None:
        session, step = fit["session"], fit["step"]
        self._shared_from: list[int] = session["own_tokens"]["shared_from"][1:]
        self._own = [Table(values) for values in session["own_tokens"]["tables"]]
        self.user_share = Table(session["user_share"])
        self.ends = Ends(session["ends"])
        self.cholesky: list[list[float]] = session["cholesky"]
        self.shift: list[float] = session["shift"]
        self.user_after_first: list[float] = session["user_after_first"]
        self.persistence: float = session["user_persistence"]
        self.prefixes: list[tuple[int, int, int]] = [tuple(row) for row in session["prefixes"]]
        self.prefix_sums = list(accumulate(count for _, _, count in self.prefixes))
        self.tool_sessions: dict[int, int] = {}
        for tool, _, count in self.prefixes:
            self.tool_sessions[tool] = self.tool_sessions.get(tool, 0) + count
        self.output = [[Table(step["output_tokens"][f"{a}>{b}"]) for b in TRIGGERS] for a in TRIGGERS]
        added = [step["added_tokens"][trigger] for trigger in TRIGGERS]
        self.step_from: list[int] = step["added_tokens"]["step_from"][1:]
        self.short_below: int = step["added_tokens"]["short_below_tokens"]
        self.early_level: float = step["added_tokens"]["early_level"]
        self.begun_from: int = step["added_tokens"]["begun_from_tokens"]
        self.output_from: list[list[int]] = [cells["output_from"][1:] for cells in added]
        self.added = [[Table(values) for values in cells["tables"]] for cells in added]
        self.added_early = [[[Table(t) for t in kind] for kind in cells["early"]] for cells in added]
        self.gap = [Table(step["gap_s"][trigger]) for trigger in TRIGGERS] if "gap_s" in step else None
        self.lost = Table(step["lost_tokens"])
        noise = [step["noise"][key] for key in ("output", "added", "gap")]
        self.noise: list[tuple[float, float]] = [(pair["phi"], pair["theta"]) for pair in noise]
        self.sigma = [math.sqrt((1 - f * f) / (1 - 2 * t * f + t * t)) for f, t in self.noise]
        self.older = [math.sqrt(max(1 - sigma * sigma, 0.0)) for sigma in self.sigma]
        self.after_added: float = step["output_after_added"]  # correlation of an output with what was added before it
        self.apart = math.sqrt(1.0 - self.after_added**2)
        self.innovations: list[list[float]] = step["innovations"]
        share = step["session_share"][1] * self.early_level**2
        self.early_scale = math.sqrt(1.0 - share)
        self.scale = [math.sqrt(1.0 - share) for share in step["session_share"]]
        self.repeats_context: bool = step["repeats"] == "context"
        self.tool_names: list[str] = [name for name, _ in step["tools"]]
        self.tool_weights: list[float] = [count for _, count in step["tools"]]
        self.compaction = Compaction(fit["compaction"]) if "compaction" in fit else None
        self.reset = Reset(fit["reset"]) if "reset" in fit else None
        self.subagents = SubAgents(fit["subagents"]) if "subagents" in fit else None

    def own(self, shared: int) -> Table:
        """Of the first prompt beyond the tools and system prompt, given the size of these."""
        return self._own[bisect_right(self._shared_from, shared)]

    def early(self, step: int, prompt: int) -> bool:
        """Whether prompts grow as in the first steps."""
        return step < self.step_from[-1] or prompt < self.short_below

    def added_table(self, step: int, prompt: int, following: int, output: int, begun: bool) -> Table:
        """Of what is added to a prompt after a step: in the first steps, to a short prompt, else by output."""
        if self.early(step, prompt):
            return self.added_early[following][begun][bisect_right(self.step_from, step)]
        return self.added[following][bisect_right(self.output_from[following], output)]


@lru_cache(maxsize=8)
def load_model(name: str) -> Model:
    """The model of a fit by name or file. Raises TraceError."""
    return model_of(Model, name, "sessions")
