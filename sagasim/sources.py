"""Where the tasks of a configuration come from: a trace, a generator, a mix of both, drawn again, shared among tenants.

open_sources(config) -> Trace    and everything after it (length, arrivals) is the same for all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from sagasim.config import Config
from sagasim.core import Call, Prefix, Task
from sagasim.errors import ConfigError, nearest
from sagasim.rng import Stream
from sagasim.trace import Trace, format_of, open_trace, round_ps, take, trace_names
from sagasim.workloads import generate, workloads

__all__ = ["ENDLESS_TASKS", "families", "open_sources", "prefixes_under", "shares", "with_tenants"]

ENDLESS_TASKS = 10**9  # of a generator in a mix: more than anybody takes
MOST_WEIGHT = 1e9


def open_sources(config: Config) -> Trace:
    """The tasks that a configuration names, before any is too long and before they arrive.

    As many as `tasks` says, or the whole trace. Raises TraceError or ConfigError.
    """
    source = _mixed(config) if config.mix is not None else _single(config)
    if config.resample and config.trace is not None:
        source = _resampled(source, config.tasks)
    if config.tenants is None:
        return source
    weights = shares(config.tenants, "tenants")
    return replace(source, read=lambda seed: with_tenants(source.read(seed), weights, seed))


def _single(config: Config) -> Trace:
    if config.workload is not None:
        return generate(config.workload, config.tasks or 1, config.seed)
    name = config.trace or ""
    options: dict[str, Any] = {} if config.turns is None else {"turns": config.turns}
    if options or format_of(name) == "agentic_mooncake":
        options["block_tokens"] = config.block_tokens
    return open_trace(name, **options)


def shares(text: str, where: str) -> dict[str, float]:
    """Names and weights of `NAME@WEIGHT+NAME@WEIGHT`; a weight left out is 1."""
    found: dict[str, float] = {}
    for item in text.split("+"):
        name, at, weight_text = item.strip().rpartition("@")
        if not at:
            name, weight_text = weight_text, "1"
        try:
            weight = float(weight_text)
        except ValueError:
            weight = -1.0
        if not name or not name.isprintable() or name in found or not 0 < weight <= MOST_WEIGHT:
            expected = f"NAME@WEIGHT+NAME@WEIGHT, names once each, weights above 0, at most {MOST_WEIGHT:g}"
            raise ConfigError(f"{item!r:.80} does not fit", where=where, expected=expected)
        found[name] = weight
    return found


# ---- several sources


@dataclass(frozen=True, slots=True)
class _Part:
    label: str
    trace: Trace
    weight: float


def _mixed(config: Config) -> Trace:
    """Each task from one of the sources, drawn by weight; tenants, tasks and prefixes carry the name of its source."""
    weights = shares(config.mix or "", "mix")
    parts = [_Part(name, _part(name, config), weight) for name, weight in weights.items()]
    sha = hashlib.sha256("".join(f"{p.label}@{p.weight}:{p.trace.sha256};" for p in parts).encode()).hexdigest()
    filled = {f"{part.label}: {what}": text for part in parts for what, text in part.trace.filled.items()}
    formats = "+".join(part.trace.format for part in parts)
    return Trace(config.mix or "", None, sha, filled, formats, partial(_draw, parts))


def _part(name: str, config: Config) -> Trace:
    base = name.partition(":")[0]
    generators = [known.name for known in workloads()]
    if base in generators or ".py:" in name:
        return generate(name, ENDLESS_TASKS, config.seed)
    if base in trace_names() or "." in name or "/" in name:
        return _resampled(open_trace(name), None) if config.resample else open_trace(name)
    raise ConfigError(f"unknown source {name!r}", where="mix", expected=nearest(base, [*generators, *trace_names()]))


def _draw(parts: list[_Part], seed: int) -> Iterator[Task]:
    stream = Stream(seed, "mix")
    streams = [take(part.trace, ENDLESS_TASKS, seed) for part in parts]
    while True:
        chosen = stream.weighted([part.weight for part in parts])
        yield _labelled(next(streams[chosen]), parts[chosen].label)


def _labelled(task: Task, label: str) -> Task:
    """The task under the name of its source, so that nothing of two sources is taken for the same."""
    tenant = label if task.tenant == "default" else f"{label}/{task.tenant}"
    return replace(prefixes_under(task, label), name=f"{label}/{task.name}", tenant=tenant)


def prefixes_under(task: Task, label: str) -> Task:
    """The task with its prefixes renamed to `label/name`: it shares them only with tasks of the same label."""
    names = {prefix.name: f"{label}/{prefix.name}" for prefix in task.prefixes}

    def extends(item: Call | Prefix) -> str | None:
        return None if item.extends is None else names.get(item.extends, item.extends)

    prefixes = tuple(replace(p, name=names[p.name], extends=extends(p)) for p in task.prefixes)
    calls = tuple(replace(c, extends=extends(c)) if c.extends in names else c for c in task.calls)
    return replace(task, prefixes=prefixes, calls=calls)


# ---- drawn again


def families(tasks: list[Task]) -> list[list[Task]]:
    """Tasks that are repeats of one another together, in the order of their first ones."""
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks:
        groups.setdefault((task.family, "") if task.family else ("", task.name), []).append(task)
    return list(groups.values())


def _resampled(source: Trace, count: int | None) -> Trace:
    """Bootstrap of a trace: families drawn with replacement until there are as many tasks as asked for.

    Recorded arrivals stay: the first one gets the first task drawn, and so on; after the last one they begin again.
    """
    return replace(source, format=f"{source.format}, resampled", read=partial(_redraw, source.read, count))


def _redraw(read: Callable[[int], Iterator[Task]], count: int | None, seed: int) -> Iterator[Task]:
    recorded = list(read(seed))
    groups = families(recorded)
    arrivals = sorted(task.arrival_ps for task in recorded if task.arrival_ps is not None)
    timed = len(arrivals) == len(recorded)
    again_ps = round_ps(arrivals[0], arrivals[-1], len(arrivals)) if timed else 0
    stream = Stream(seed, "resample")
    times: dict[str, int] = {}
    wanted = len(recorded) if count is None else count
    place = 0
    while place < wanted:
        for task in groups[stream.integer(0, len(groups) - 1)][: wanted - place]:
            time = times[task.name] = times.get(task.name, 0) + 1
            rounds, slot = divmod(place, len(recorded))
            arrival_ps = arrivals[slot] + rounds * again_ps if timed else None
            yield replace(task, name=task.name if time == 1 else f"{task.name}~{time}", arrival_ps=arrival_ps)
            place += 1


def with_tenants(tasks: Iterator[Task], weights: dict[str, float], seed: int) -> Iterator[Task]:
    """The tasks, each given to a tenant drawn by weight."""
    stream = Stream(seed, "tenants")
    names = list(weights)
    for task in tasks:
        yield replace(task, tenant=names[stream.weighted(list(weights.values()))])
