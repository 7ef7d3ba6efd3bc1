"""A customer-service agent with tools, as recorded: tau-bench, airline domain, the customer played by an LLM.

Fitted to the embedded trace `tau-bench` (traces/SOURCES.md); docs/workloads.md compares. The source has no times:
tools and users take what sagasim assumes for such sources (fill.py).
"""

from __future__ import annotations

from sagasim.core import Task
from sagasim.fill import TOOL_TEXT, USER_TEXT
from sagasim.workloads import workload
from sagasim.workloads.sessions import FILLED, Changes, make_session
from sagasim.workloads.tables import fit_digest

__all__ = ["task"]


@workload(
    "tool-calling",
    filled={"tokens": FILLED["tokens"], "tool_s": TOOL_TEXT, "user_s": USER_TEXT},
    sources=lambda options: fit_digest(options["fit"]),
)
def task(
    index: int,
    seed: int,
    *,
    fit: str = "tool-calling",
    steps_factor: float = 1.0,
    added_factor: float = 1.0,
    output_factor: float = 1.0,
    gap_factor: float = 1.0,
    share_prefixes: bool = True,
) -> Task:
    """Customer-service sessions with short tools, drawn from a fit to tau-bench (airline).

    fit: name of a fit, or a file made by python -m sagasim.workloads.fit from traces of your own
    steps_factor: factor on the number of calls
    added_factor: factor on what tools and users add to the prompt
    output_factor: factor on outputs
    gap_factor: factor on the time that tools and users take
    share_prefixes: whether sessions share tools and system prompts
    """
    changes = Changes(
        steps_factor=steps_factor,
        added_factor=added_factor,
        output_factor=output_factor,
        gap_factor=gap_factor,
        share_prefixes=share_prefixes,
    )
    return make_session("tool-calling", index, seed, fit, changes)
