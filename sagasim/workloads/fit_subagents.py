"""Sub-agents of recorded sessions to the tables of session_model.SubAgents."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from sagasim.core import Call, Task
from sagasim.units import PS_PER_S
from sagasim.workloads.fit_rows import quantiles
from sagasim.workloads.measure import gap_s

__all__ = ["fit_subagents"]


def fit_subagents(tasks: Sequence[Task]) -> dict[str, Any]:
    """All that SubAgents needs, from tasks of which at least one has sub-agents."""
    counts, waits, beside = [], [], []
    chains: list[list[Call]] = []
    for task in tasks:
        found: dict[str, list[Call]] = {}
        for call in task.calls:
            if call.agent:
                found.setdefault(call.agent, []).append(call)
        if not found:
            continue
        counts.append(len(found))
        callers = [chain[0].after for chain in found.values()]
        beside += [one == other for one, other in pairwise(callers)]
        ends = {chain[-1].name for chain in found.values()}
        waits += [c.delay_ps / PS_PER_S for c in task.calls if not c.agent and not ends.isdisjoint(c.after)]
        chains += found.values()
    shared = int(np.median([chain[0].keep_tokens for chain in chains]))
    pairs = [(one, other) for chain in chains for one, other in pairwise(chain)]
    return {
        "n": len(chains),
        "session_share": round(len(counts) / len(tasks), 5),
        "beside": round(sum(beside) / max(len(beside), 1), 4),
        "shared_tokens": max(shared, 1),
        "count": quantiles(counts),
        "steps": quantiles([len(chain) for chain in chains]),
        "own_tokens": quantiles([max(1, chain[0].prompt_tokens - shared) for chain in chains]),
        "growth_tokens": quantiles([max(1, b.prompt_tokens - a.prompt_tokens) for a, b in pairs] or [1]),
        "output_tokens": quantiles([call.output_tokens for chain in chains for call in chain]),
        "gap_s": quantiles([gap_s(a, b) or 0.0 for a, b in pairs] or [0.0], 3),
        "wait_s": quantiles([min(wait, 3600.0) for wait in waits] or [0.0], 3),
    }
