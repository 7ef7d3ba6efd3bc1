"""What an agent does between two requests of a session: recorded where the source says so, drawn where it does not."""

from __future__ import annotations

from typing import Any

from sagasim.core import MAX_DURATION_PS, Tool
from sagasim.fill import (
    GAP_TEXT,
    LATENCY_MS,
    LLM_S_PER_OUTPUT_TOKEN,
    LOG_TEXT,
    SHELL_TEXT,
    TOOL_TEXT,
    USER_TEXT,
    gap_ps,
    latency_ps,
    shell_ps,
    user_ps,
)
from sagasim.importers.lines import mapping, optional_seconds, sequence, text
from sagasim.importers.session_lines import Line, Step
from sagasim.rng import Stream
from sagasim.units import PS_PER_US, ps_from_s

__all__ = ["filled_texts", "quantised", "tools_after"]


def filled_texts(first: dict[str, Any]) -> dict[str, str]:
    """What will be drawn for a file whose first line is `first`, and from which distribution."""
    steps = first.get("steps")
    steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    if any("pre_s" in step for step in steps):
        return {"tool_s": f"only where the source has none: {GAP_TEXT}"}
    if any("cyc_s" in step for step in steps):
        return {"tool_s": SHELL_TEXT}
    if any("t" in step for step in steps):
        return {"tool_s": LOG_TEXT}
    return {"tool_s": TOOL_TEXT, "user_s": USER_TEXT}


def quantised(seconds: float) -> int:
    """Seconds to ps; a recorded wait longer than a task may wait (about a day) counts as the longest possible."""
    return min(ps_from_s(seconds), MAX_DURATION_PS // PS_PER_US * PS_PER_US)


def tools_after(line: Line, position: int, stream: Stream) -> tuple[Tool, ...]:
    """What the agent does after a step, until its next one. Draws from `stream` what is not recorded."""
    step = line.steps[position]
    where = f"{line.where}, step {step.index}"
    listed = [mapping(tool, "a tool", where) for tool in sequence(step.fields.get("tools") or [], "tools", where)]
    cycle_s = optional_seconds(step.fields, "cyc_s", where)
    limit = None if cycle_s is None else quantised(cycle_s)
    if position + 1 == len(line.steps):
        return tuple(_listed(tool, limit, stream, where) for tool in listed)
    following = line.steps[position + 1]
    trigger = following.fields.get("trig")
    label = _label(trigger, listed, where)
    gap_s = _recorded_gap(step, following, where)
    if gap_s is not None:
        return (Tool(label, quantised(gap_s)),) if gap_s else ()
    if "pre_s" in following.fields:
        return (Tool(label, min(gap_ps(stream, str(trigger)), _between(step, following)), True),)
    if listed:
        return tuple(_listed(tool, limit, stream, where) for tool in listed)
    if limit is None and step.start_s is not None and following.start_s is not None:
        waited_s = following.start_s - step.start_s - LLM_S_PER_OUTPUT_TOKEN * following.output
        return (Tool(label, quantised(max(0.0, waited_s)), True),)
    return (Tool("user", user_ps(stream), True),) if trigger == "user" else ()


def _label(trigger: object, listed: list[dict[str, Any]], where: str) -> str:
    if trigger == "user":
        return "user"
    return text(listed[0].get("n") or "tool", "name of a tool", where) if len(listed) == 1 else "tool"


def _listed(fields: dict[str, Any], limit_ps: int | None, stream: Stream, where: str) -> Tool:
    """A tool call that the source names, with its recorded or drawn duration."""
    shell = fields.get("c")
    name = text(fields.get("n") or "tool", "name of a tool", where)
    seconds = optional_seconds(fields, "s", where)
    if shell is not None:
        name = f"{name}/{text(shell, 'class of a shell command', where)}"
    if seconds is not None:
        return Tool(name, quantised(seconds))
    if shell is not None:
        return Tool(name, shell_ps(stream, shell, limit_ps), True)
    drawn = latency_ps(stream, LATENCY_MS["database"])
    return Tool(name, drawn if limit_ps is None else min(drawn, limit_ps), True)


def _recorded_gap(step: Step, following: Step, where: str) -> float | None:
    """Seconds between the end of a step and the next one, if the source says."""
    recorded = optional_seconds(following.fields, "pre_s", where, -1e6)
    if recorded is not None:
        return max(recorded, 0.0)
    if "pre_s" in following.fields or step.start_s is None or step.llm_s is None or following.start_s is None:
        return None
    return max(0.0, following.start_s - step.end_s)


def _between(step: Step, following: Step) -> int:
    """Time between the starts of two steps, without end where it is unknown."""
    if step.start_s is None or following.start_s is None:
        return MAX_DURATION_PS
    return quantised(max(0.0, following.start_s - step.start_s))
