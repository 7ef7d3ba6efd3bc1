"""What the objects show of themselves: a few lines of text on a terminal, a small table in a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from sagasim.config import Config
from sagasim.report import aligned, config_label, difference_text, number, percent, work_label

__all__ = ["Headline", "comparison_headline", "run_headline"]

_SPREADS = (
    ("tct_s", "task completion (s)"),
    ("ttft_s", "time to first token (s)"),
    ("tpot_s", "time per output token (s)"),
    ("queueing_s", "queueing of a call (s)"),
)
_COMPARED = ("tct_s.mean", "tct_s.p99", "ttft_s.p99", "tasks_per_min", "prefix_hit_rate", "regenerated_share")


class Headline(NamedTuple):
    """A title, a table with a row of titles on top, and a line of facts below."""

    title: str
    rows: Sequence[Sequence[str]]
    facts: str
    hint: str  # how to go on

    def text(self) -> str:
        return "\n".join([self.title, "", aligned(self.rows), "", self.facts])

    def html(self) -> str:
        """A table that takes the look of the notebook around it."""
        head, *rows = self.rows
        lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
        for name, *cells in rows:
            numbers = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
            lines.append(f"<th style='text-align:left'>{escape(name)}</th>{numbers}")
        table = "".join(f"<tr>{line}</tr>" for line in lines)
        small = "style='font-size:90%; opacity:0.75'"
        return (
            f"<div><b>{escape(self.title)}</b><table>{table}</table>"
            f"<div {small}>{escape(self.facts)}</div><div {small}>{escape(self.hint)}</div></div>"
        )


def run_headline(config: Config, metrics: Mapping[str, Any]) -> Headline:
    """metrics: what summary.json holds."""
    columns = ("mean", "p50", "p95", "p99")
    rows = [["", *columns]]
    rows += [[title, *(number(metrics[key][column]) for column in columns)] for key, title in _SPREADS]
    unfinished = metrics["unfinished_tasks"]
    facts = [
        f"{config_label(config)}, seed {config.seed}",
        f"{metrics['calls']:,} calls",
        f"{metrics['measured_tasks']:,} tasks measured" + (f", {unfinished:,} unfinished" if unfinished else ""),
        f"{number(metrics['tasks_per_min'])} tasks a minute",
        f"{percent(metrics['prefix_hit_rate'])} of prompt tokens from the cache",
        f"{percent(metrics['regenerated_share'])} prefilled again",
        f"replicas compute {percent(metrics['gpu_busy_share'])} of the time",
    ]
    hint = ".plot()  .tasks  .calls  .occupancy  .summary  .config  .save(folder)"
    return Headline(work_label(config, metrics["tasks"]), rows, " · ".join(facts), hint)


def comparison_headline(content: Mapping[str, Any]) -> Headline:
    """content: what comparison.json holds."""
    baseline, *others = content["presets"]
    rows = [["mean over seeds" if len(content["seeds"]) > 1 else "", baseline, *others]]
    for metric in content["metrics"]:
        if metric["metric"] in _COMPARED:
            show = percent if metric["share"] else number
            cells = [show(metric["by_preset"][baseline]["mean"])]
            for name in others:
                own = metric["by_preset"][name]
                difference = difference_text(own, share=metric["share"]).strip()
                cells.append(f"{show(own['mean'])}  ({difference})" if difference != "-" else show(own["mean"]))
            rows.append([metric["title"], *cells])
    seeds = len(content["seeds"])
    facts = f"{seeds} seed{'s' * (seeds > 1)}; {content['window']}"
    if others:
        facts += f"; in brackets: difference from {baseline}"
    if others and seeds > 1:
        facts += " with its 95 % interval, * where p < 0.05 (paired, Holm's correction)"
    hint = ".plot()  .plot('tasks', 'tokens', ...)  .metrics  .tasks  .calls  .tenants  .runs  .save(folder)"
    return Headline(content["work"], rows, facts, hint)
