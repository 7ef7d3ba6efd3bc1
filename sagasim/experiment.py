"""From work to results: simulate and measure; the variants that a comparison runs."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sagasim import seams
from sagasim.config import PRESETS, Config, parse_assignment, resolve
from sagasim.errors import ConfigError, nearest
from sagasim.metrics import summary
from sagasim.simulate import Result, calibration_of, simulate
from sagasim.work import Progress, Work

_NAME = re.compile(r"[\w][\w.+ -]{0,99}")  # of a variant: it names folders
OF_THE_WORK = {  # keys that are the same for all systems of a comparison
    "trace",
    "workload",
    "mix",
    "turns",
    "tasks",
    "tenants",
    "resample",
    "arrivals",
    "rate_per_min",
    "load",
    "concurrency",
    "arrival_cv",
    "diurnal_period_s",
    "diurnal_amplitude",
    "time_scale",
    "warmup",
    "cooldown",
    "over_length",
    "block_tokens",
    "seed",
    "max_model_len",
    "horizon_s",
    "preset",
}

__all__ = ["OF_THE_WORK", "Run", "Variant", "checked_variant", "execute", "parse_variant", "variants"]


@dataclass(frozen=True, slots=True)
class Run:
    """One execution: its log, its metrics, and how long everything took."""

    result: Result
    summary: dict[str, Any]
    timing: dict[str, Any]


def execute(work: Work, progress: Progress | None = None) -> Run:
    """Simulate and measure prepared work. timing: wall-clock facts, different each time."""
    started = time.perf_counter()
    result = simulate(work.config, work.tasks, progress=progress)
    if not len(result.tasks["task"]):
        raise ConfigError("no task arrives before the end of the run", where="horizon_s", expected="a later one")
    simulated = time.perf_counter()
    own = {"step times": _step_times(work.config), **_own_policies(work.config)}
    result = replace(result, notes={**own, **work.notes, **result.notes})
    measured = summary(result)
    if not measured["measured_tasks"]:
        expected = "a window that tasks arrive in"
        raise ConfigError("no task is measured", where="warmup, cooldown and horizon_s", expected=expected)
    ended = time.perf_counter()
    simulating = simulated - started
    timing = {
        "simulating_s": simulating,
        "measuring_s": ended - simulated,
        "calls": measured["calls"],
        "calls_per_s": measured["calls"] / simulating if simulating > 0 else None,
        "steps": measured["steps"],
        "events": result.executed,
    }
    return Run(result, measured, timing)


def _step_times(config: Config) -> str:
    """Which parts of the time of a step are published, derived or measured: `published: linear, ...; derived: host`."""
    calibration = calibration_of(config)
    named = {name: part for name, part in calibration.items() if isinstance(part, dict) and name != "provenance"}
    terms = {term["name"]: term for key in ("token_terms", "sequence_terms") for term in calibration[key]}
    by_status: dict[str, list[str]] = {}
    for name, part in {**named, **terms}.items():
        by_status.setdefault(part.get("status", "of unknown origin"), []).append(name.replace("_", " "))
    return "; ".join(f"{status}: {', '.join(sorted(names))}" for status, names in sorted(by_status.items()))


def _own_policies(config: Config) -> dict[str, str]:
    """Policies that no name or file in config.toml leads to: they were defined by the program that runs them."""
    notes = {}
    for kind in seams.KINDS:
        spec = getattr(config, kind)
        if spec != "none" and ".py:" not in spec:
            module = seams.find(kind, spec).factory.__module__
            if not module.startswith("sagasim."):
                notes[f"{kind} {spec}"] = f"defined in module {module}, which config.toml does not name"
    return notes


@dataclass(frozen=True, slots=True)
class Variant:
    """One system of a comparison: a preset, and what differs from it."""

    name: str
    layer: Mapping[str, Any]


def parse_variant(text: str) -> Variant:
    """`NAME=PRESET key=value ...`, or a preset alone, which then names itself. Raises ConfigError."""
    where = f"variant {text!r}"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(str(error), where=where, expected="NAME=PRESET key=value ...") from None
    if not words:
        raise ConfigError("nothing", where=where, expected="NAME=PRESET key=value ..., or PRESET")
    first, *assignments = words
    name, equals, preset = first.partition("=")
    return checked_variant(name, preset if equals else name, dict(map(parse_assignment, assignments)), where)


def checked_variant(name: str, preset: str, changed: Mapping[str, Any], where: str) -> Variant:
    """A preset with some keys changed, under a name that can be that of a folder. Raises ConfigError."""
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}", where=where, expected=nearest(preset, PRESETS))
    if not _NAME.fullmatch(name) or name in ("comparison.json", "figure.png"):
        raise ConfigError(f"{name!r} cannot name a folder", where=where, expected="letters, digits, dots and hyphens")
    for key in changed:
        if key in OF_THE_WORK:
            expected = "keys of the system; the work is the same for all"
            raise ConfigError(f"{key!r} is a matter of the work", where=where, expected=expected)
    return Variant(name, {"preset": preset, **changed})


def variants(
    layers: Sequence[Mapping[str, Any]], systems: Sequence[Variant], seeds: int
) -> tuple[dict[int, Config], list[tuple[str, Config]]]:
    """The configuration of the work by seed, and a configuration for each seed and variant with the variant's name.

    The layers override what the presets say, and a variant overrides the layers; but from a layer that names a preset
    itself (the config.toml of a run), nothing that presets decide is taken. The work, its load and its base times are
    those of the default preset, whatever is compared. With several seeds a recorded trace is drawn again for each of
    them, unless a layer says otherwise.
    """
    first = resolve(*layers).seed
    decided = {"preset"}.union(*PRESETS.values())
    others = [
        {key: value for key, value in layer.items() if "preset" not in layer or key not in decided} for layer in layers
    ]
    drawn = {"resample": seeds > 1}
    works, found = {}, []
    for seed in range(first, first + seeds):
        works[seed] = resolve({}, drawn, *others, {"seed": seed})
        for system in systems:
            own = {key: value for key, value in system.layer.items() if key != "preset"}
            preset = {"preset": system.layer["preset"]}
            found.append((system.name, resolve(preset, drawn, *others, own, {"seed": seed})))
    return works, found
