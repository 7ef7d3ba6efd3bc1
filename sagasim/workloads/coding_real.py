"""Coding agents as they were recorded: Claude Code sessions, with their clusters of shared prompts and their losses.

Fitted to the embedded trace `weka` (traces/SOURCES.md); docs/workloads.md compares. As in that source, only prompts are
found again, not outputs: block ids are known of prompts alone.
"""

from __future__ import annotations

from sagasim.core import Task
from sagasim.workloads import workload
from sagasim.workloads.sessions import FILLED, Changes, make_session
from sagasim.workloads.tables import fit_digest

__all__ = ["task"]


@workload("coding-real", filled=FILLED, sources=lambda options: fit_digest(options["fit"]))
def task(
    index: int,
    seed: int,
    *,
    fit: str = "coding-real",
    steps_factor: float = 1.0,
    first_factor: float = 1.0,
    added_factor: float = 1.0,
    output_factor: float = 1.0,
    gap_factor: float = 1.0,
    compaction_factor: float = 1.0,
    reset_factor: float = 1.0,
    subagent_factor: float = 1.0,
    share_prefixes: bool = True,
    reuse_output: bool = False,
) -> Task:
    """Coding sessions drawn from a fit to recorded Claude Code sessions: growth, gaps, compaction, shared prompts.

    fit: name of a fit, or a file made by python -m sagasim.workloads.fit from traces of your own
    steps_factor: factor on the number of calls
    first_factor: factor on the first prompt without tools and system prompt
    added_factor: factor on what tools and users add to the prompt
    output_factor: factor on outputs
    gap_factor: factor on the time that tools and users take
    compaction_factor: factor on the hazard of compaction
    reset_factor: factor on the chance that a prompt goes on but is not found again
    subagent_factor: factor on the share of sessions that call sub-agents
    share_prefixes: whether sessions share tools and system prompts
    reuse_output: whether outputs are found again in the next prompt
    """
    changes = Changes(
        steps_factor=steps_factor,
        first_factor=first_factor,
        added_factor=added_factor,
        output_factor=output_factor,
        gap_factor=gap_factor,
        compaction_factor=compaction_factor,
        reset_factor=reset_factor,
        subagent_factor=subagent_factor,
        share_prefixes=share_prefixes,
        reuse_output=reuse_output,
    )
    return make_session("coding-real", index, seed, fit, changes)
