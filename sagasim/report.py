"""Tables for the terminal: aligned text made of summaries, nothing printed here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sagasim.config import PRESETS, Config
from sagasim.seams import Policy

if TYPE_CHECKING:
    from sagasim.workloads import Workload

__all__ = [
    "aligned",
    "comparison_report",
    "config_label",
    "difference_text",
    "length_note",
    "number",
    "percent",
    "policy_list",
    "run_report",
    "stats_report",
    "work_label",
    "workload_list",
]

_SPREADS = (
    ("tct_s", "task completion (s)"),
    ("ttft_s", "time to first token (s)"),
    ("tpot_s", "time per output token (s)"),
    ("queueing_s", "queueing of a call (s)"),
    ("tool_s", "tools of a task (s)"),
)
_SHARES = (
    ("prefix_hit_rate", "prompt tokens found in the prefix cache"),
    ("regenerated_share", "prompt tokens prefilled again"),
    ("gpu_busy_share", "time that replicas compute"),
    ("kv_held_share", "KV blocks held by running calls"),
    ("kv_cached_share", "KV blocks cached and idle"),
    ("kv_useful_share", "KV blocks held, or idle and hit again"),
)


def number(value: float | None, digits: int = 4) -> str:
    """A number for reading: thousands apart, a few significant digits; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(value: float | None) -> str:
    """A share for reading; a dash for none."""
    return "-" if value is None else f"{100 * value:.1f} %"


def aligned(rows: Sequence[Sequence[str]], *, header: bool = True, left: int = 1) -> str:
    """Rows as columns: the first `left` ones to the left, the others to the right, a rule under the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if header:
        lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def config_label(config: Config) -> str:
    """The preset and whatever differs from it."""
    preset = PRESETS.get(config.preset or "", {})
    values = asdict(config)
    changed = [f"{key}={values[key]}" for key, value in preset.items() if values[key] != value]
    return " ".join([config.preset or "no preset", *changed])


def work_label(config: Config, tasks: int) -> str:
    """What is served, how it arrives, and by what cluster."""
    arriving = {
        "recorded": "arriving as recorded",
        "at-once": "all at once",
        "closed": f"{config.concurrency} at a time",
        "poisson": f"{config.rate_per_min or 0:.4g} a minute",
        "bursty": f"{config.rate_per_min or 0:.4g} a minute in bursts",
        "diurnal": f"{config.rate_per_min or 0:.4g} a minute, swinging",
    }.get(config.arrivals, config.arrivals)
    if config.load is not None:
        arriving += f" (load {config.load:g})"
    source = (config.trace or config.workload or config.mix or "").replace("\\", "/").rsplit("/", 1)[-1]
    cluster = f"{config.gpus} x {config.gpu}, {config.model}, tp {config.tp}"
    return f"{source}: {tasks:,} tasks, {arriving}, on {cluster}"


def length_note(summary: Mapping[str, Any]) -> str:
    """What became of tasks beyond the model's length, for a figure; empty if there are none."""
    notes = summary["notes"]
    return ". ".join(
        f"{kind.capitalize()}: {notes[kind]}" for kind in ("extended", "truncated", "dropped") if kind in notes
    )


def run_report(config: Config, summary: Mapping[str, Any]) -> str:
    """All that a reader wants to know first about one run."""
    spreads = [["", "mean", "p50", "p95", "p99"]]
    for key, title in _SPREADS:
        spreads.append([title, *(number(summary[key][column]) for column in ("mean", "p50", "p95", "p99"))])
    facts = [[title, percent(summary[key])] for key, title in _SHARES]
    facts += [
        ["tokens prefilled again, evicted here", number(summary["regenerated_here_tokens"])],
        ["tokens prefilled again, cached elsewhere", number(summary["regenerated_elsewhere_tokens"])],
        ["tokens prefilled again, never cached", number(summary["regenerated_uncached_tokens"])],
        ["preemptions", number(summary["preemptions"])],
        ["tasks a minute", number(summary["tasks_per_min"])],
        ["tasks a minute, between 20 % and 80 % done", number(summary["steady_tasks_per_min"])],
        ["output tokens a second", number(summary["output_tokens_per_s"])],
        ["simulated time (s)", number(summary["makespan_s"])],
    ]
    parts = [
        work_label(config, summary["tasks"]),
        f"{config_label(config)}, seed {config.seed}, {summary['calls']:,} calls, "
        f"{summary['measured_tasks']:,} tasks measured, {summary['unfinished_tasks']:,} of them unfinished",
        "",
        aligned(spreads),
        "",
        aligned(facts, header=False),
    ]
    if "tenants" in summary:
        parts += ["", _tenant_table(summary["tenants"])]
    return "\n".join([*parts, *_notes(summary["notes"]), f"digest {summary['digest']}"])


def _tenant_table(tenants: Mapping[str, Any]) -> str:
    rows = [["tenant", "tasks", "calls", "TCT mean (s)", "TCT p99", "TTFT mean (s)", "TTFT p99"]]
    for name, row in tenants.items():
        times = [row["tct_s"]["mean"], row["tct_s"]["p99"], row["ttft_s"]["mean"], row["ttft_s"]["p99"]]
        rows.append([name, number(row["tasks"]), number(row["calls"]), *map(number, times)])
    return aligned(rows)


def _notes(notes: Mapping[str, str]) -> list[str]:
    """What was filled, extended or dropped, and where the step times come from."""
    return ["", *(f"{key}: {text}" for key, text in sorted(notes.items()))] if notes else [""]


def comparison_report(comparison: Mapping[str, Any]) -> str:
    """One column for each system, one row for each metric; below, how the others differ from the first."""
    systems, seeds = comparison["presets"], comparison["seeds"]
    rows = [["mean over seeds" if len(seeds) > 1 else "", *systems]]
    for metric in comparison["metrics"]:
        show = percent if metric["share"] else number
        rows.append([metric["title"], *(show(metric["by_preset"][name]["mean"]) for name in systems)])
    drawn = ", the trace drawn again for each" if comparison["resampled"] else ""
    head = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}{drawn}; {comparison['window']}"
    parts = [comparison["work"], head, "", aligned(rows)]
    if len(systems) > 1:
        parts += ["", _difference_table(comparison)]
    parts += _level_tables(comparison)
    if comparison.get("tenants"):
        parts += ["", _compared_tenants(comparison)]
    return "\n".join([*parts, *_notes(comparison["notes"])])


def _difference_table(comparison: Mapping[str, Any]) -> str:
    baseline, *others = comparison["presets"]
    several = len(comparison["seeds"]) > 1
    rows = [[f"difference from {baseline}" + (" (95 % interval)" if several else ""), *others]]
    for metric in comparison["metrics"]:
        cells = [difference_text(metric["by_preset"][name], share=metric["share"]) for name in others]
        rows.append([metric["title"], *cells])
    note = "* differs with p < 0.05: paired t-test over seeds, Holm's correction for all the rows and columns together"
    return aligned(rows) + (f"\n{note}" if several else "")


def difference_text(cell: Mapping[str, Any], *, share: bool) -> str:
    """`-34.1 % [-36.0, -32.2] *`: ratio of geometric means, or difference of shares in points, with its interval."""
    difference = cell["difference"]
    if difference["mean"] is None:
        return "-"
    mark = {True: " *", False: "  ", None: ""}[difference["significant"]]
    if not share and difference["ratio"] is not None:
        parts = [difference[key] for key in ("ratio", "ratio_low", "ratio_high")]
        values = [None if value is None else 100 * (value - 1) for value in parts]
        unit = " %"
    else:
        scale = 100 if share else 1
        values = [None if difference[k] is None else scale * difference[k] for k in ("mean", "low", "high")]
        unit = " points" if share else ""
    text = f"{_signed(values[0])}{unit}"
    if values[1] is not None:
        text += f" [{_signed(values[1])}, {_signed(values[2])}]"
    return text + mark


def _signed(value: Any) -> str:
    return f"{value:+,.3g}" if abs(value) < 1000 else f"{value:+,.0f}"


def _compared_tenants(comparison: Mapping[str, Any]) -> str:
    """Completion times of each tenant under each system, mean and p99."""
    systems = comparison["presets"]
    rows = [["task completion by tenant (s)", *(f"{name}, {key}" for name in systems for key in ("mean", "p99"))]]
    for tenant, by_system in comparison["tenants"].items():
        cells = [by_system.get(name, {}).get(key) for name in systems for key in ("mean", "p99")]
        rows.append([tenant, *map(number, cells)])
    return aligned(rows)


def _level_tables(comparison: Mapping[str, Any]) -> list[str]:
    """Attainment of service levels, and what no policy can attain."""
    parts: list[str] = []
    titles = {"idle": "their time alone on an idle cluster", "expected": "their expected time at half load"}
    for which, level in comparison["slo"].items():
        rows = [[f"tasks within m times {titles[which]}", *(f"{m:g}" for m in level["multipliers"])]]
        rows += [
            [name, *(percent(point["mean"]) for point in level["by_preset"][name])] for name in comparison["presets"]
        ]
        parts += ["", aligned(rows)]
    crowding = comparison.get("crowding")
    if crowding is not None:
        parts.append(
            f"{crowding['calls']:,} calls of {crowding['context_tokens']:,} tokens fill half of a replica's memory; a "
            f"decode step then takes {crowding['slower']:.2f} times as long as alone, and no policy can keep decoding "
            "nearer to the idle time from there on"
        )
    return parts


def stats_report(stats: Mapping[str, Any], filled: Mapping[str, str] | None = None) -> str:
    """The numbers that describe a trace: quantiles as a table, the rest one to a line, then what was drawn."""
    columns = ("p5", "p50", "p95", "p99", "mean")
    rows = [["", *columns]]
    rows += [[key, *(number(value[column]) for column in columns)] for key, value in stats.items() if _is_row(value)]
    facts = [
        [key, value if isinstance(value, str) else number(value)]
        for key, value in stats.items()
        if not _is_row(value) and value is not None
    ]
    notes = [f"not in the source: {key}: {text}" for key, text in (filled or {}).items()]
    return "\n".join([aligned(rows), "", aligned(facts, header=False), *([""] if notes else []), *notes])


def _is_row(value: object) -> bool:
    return isinstance(value, Mapping)


def policy_list(policies: Sequence[Policy]) -> str:
    """Each policy with what it does, and its parameters with their defaults."""
    width = max(len(policy.name) for policy in policies)
    lines: list[str] = []
    for kind in dict.fromkeys(policy.kind for policy in policies):
        lines.append(f"--{kind}")
        for policy in (one for one in policies if one.kind == kind):
            lines.append(f"  {policy.name:{width}}  {policy.help}")
            parameters = [_parameter(name, value.default) for name, value in policy.parameters.items()]
            lines.extend([f"  {'':{width}}  parameters: {', '.join(parameters)}"] if parameters else [])
    return "\n".join(lines)


def workload_list(workloads: Sequence[Workload]) -> str:
    """Each workload with what it stands for, and its options with their defaults and help."""
    lines: list[str] = []
    for workload in workloads:
        lines.append(f"{workload.name}  {workload.help}")
        rows = [[f"  {name}={_option(option.default)}", option.help] for name, option in workload.options.items()]
        lines += [aligned(rows, header=False, left=2)] if rows else []
    return "\n".join(lines)


def _option(default: object) -> str:
    """A default as it is written in a specification."""
    return "|".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _parameter(name: str, default: object) -> str:
    return name if default is inspect.Parameter.empty else f"{name}={default}"
