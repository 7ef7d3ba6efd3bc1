"""A set: which runs a gate makes, and which of their numbers it looks at. Only the cases must be in its file.

seeds = 5                  # so many from 0 on, or a list of seeds
level = 0.001              # how often a change that means nothing may fail the gate
twins = 3                  # further runs of each seed, from which the tolerances are made
min_effect = 0.01          # a change by less than this part of the mean never fails
[metrics."tct_s.p95"]      # the metrics; without any, those of METRICS
min_effect = 0.02
[cases."coding agents"]    # any keys of a configuration but the seed
workload = "swe-bench"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sagasim.config import Config, resolve
from sagasim.errors import ConfigError, SagasimError, nearest

__all__ = [
    "DEFAULT_SET",
    "METRICS",
    "CaseSet",
    "Rule",
    "Settings",
    "checked_cases",
    "read_set",
    "settings",
    "shown",
    "within",
]

DEFAULT_SET = Path(__file__).parent / "default.toml"
_FILE_BYTES = 2**20
_NAME_LETTERS = 100
_MOST = {"seeds": 1000, "twins": 100, "seed": 2**40}  # seeds beyond are those of twins
_SETTINGS = ("seeds", "level", "twins", "min_effect", "metrics")


@dataclass(frozen=True, slots=True)
class Rule:
    """How a metric is judged. better: lower or higher; min_effect: a part of the mean; least: in the metric's unit.

    A change that is smaller than one of the two is never worse, however surely it is there.
    """

    better: str
    min_effect: float = 0.01
    least: float = 0.0


# Metrics of a set that names none: where they stand in the summary of a run
METRICS = {
    "tct_s.mean": Rule("lower"),
    "tct_s.p95": Rule("lower"),
    "tct_s.p99": Rule("lower"),
    "ttft_s.p95": Rule("lower"),
    "tpot_s.mean": Rule("lower"),
    "output_tokens_per_s": Rule("higher"),
    "prefix_hit_rate": Rule("higher", least=0.001),
    "regenerated_share": Rule("lower", least=0.001),
    "preemptions": Rule("lower", least=1.0),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """seeds of every case; level and twins: see above; metrics: how each is judged."""

    seeds: tuple[int, ...]
    level: float
    twins: int
    metrics: Mapping[str, Rule]


@dataclass(frozen=True, slots=True)
class CaseSet:
    """cases: the keys of each configuration, by name."""

    settings: Settings
    cases: Mapping[str, Mapping[str, Any]]

    def config(self, name: str, seed: int) -> Config:
        """The resolved configuration of a run. Raises ConfigError or CalibrationError, naming the case."""
        with_seed = {**self.cases[name], "seed": seed}
        try:
            return resolve(with_seed)
        except SagasimError as error:
            raise within(f"case {name!r}", error) from None


def within(where: str, error: SagasimError) -> SagasimError:
    """The same error, told with the place where the configuration stands."""
    place = f"{where}, {error.where}" if error.where else where
    return type(error)(error.what, where=place, expected=error.expected)


def read_set(path: Path) -> CaseSet:
    """A set from its file; its configurations are not yet checked. Raises ConfigError."""
    where = str(path)
    try:
        with path.open("rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=where, expected="a TOML file") from None
    if len(content) > _FILE_BYTES:
        raise ConfigError("too long", where=where, expected=f"a TOML file of at most {_FILE_BYTES >> 20} MiB")
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not TOML: {str(error)[:200]}", where=where, expected="tables [cases.NAME]") from None
    cases = table.pop("cases", None)
    found = CaseSet(settings(table, where), checked_cases(cases, where))
    drawn = {"resample": True} if len(found.settings.seeds) > 1 else {}  # as `sagasim compare` does
    recorded = {name: drawn if "trace" in keys or "mix" in keys else {} for name, keys in found.cases.items()}
    return replace(found, cases={name: recorded[name] | dict(keys) for name, keys in found.cases.items()})


def checked_cases(cases: object, where: str) -> dict[str, dict[str, Any]]:
    """Cases by name, their keys not yet resolved."""
    if not isinstance(cases, dict) or not cases:
        raise ConfigError("no cases", where=where, expected="a table [cases.NAME] for each")
    for name, keys in cases.items():
        place = f"{where}, case {name[:_NAME_LETTERS]!r}"
        if not name or len(name) > _NAME_LETTERS or not name.isprintable():
            raise ConfigError("no name", where=place, expected=f"1 to {_NAME_LETTERS} letters")
        if not isinstance(keys, dict):
            raise ConfigError(f"{shown(keys)} is no table", where=place, expected="a table of configuration keys")
        if "seed" in keys:
            raise ConfigError("a seed of its own", where=place, expected="seeds, the same for all cases")
    return cases


def settings(table: Mapping[str, Any], where: str) -> Settings:
    """The settings that a table states, or their defaults. Raises ConfigError."""
    for key in table:
        if key not in _SETTINGS:
            raise ConfigError(f"unknown key {key[:60]!r}", where=where, expected=nearest(key, (*_SETTINGS, "cases")))
    effect = _number(table.get("min_effect", 0.01), "min_effect", where)
    level = _number(table.get("level", 0.001), "level", where)
    if not 1e-9 <= level <= 0.5:
        raise ConfigError(f"{level:g} is out of range", where=f"{where}, level", expected="from 1e-9 to 0.5")
    twins = _whole(table.get("twins", 3), "twins", where, 1, _MOST["twins"])
    return Settings(_seeds(table.get("seeds", 5), where), level, twins, _rules(table.get("metrics", {}), effect, where))


def _seeds(given: object, where: str) -> tuple[int, ...]:
    if not isinstance(given, list):
        return tuple(range(_whole(given, "seeds", where, 1, _MOST["seeds"])))
    seeds = tuple(_whole(seed, "seeds", where, 0, _MOST["seed"]) for seed in given)
    if not 1 <= len(seeds) <= _MOST["seeds"] or len(set(seeds)) < len(seeds):
        expected = f"1 to {_MOST['seeds']} different seeds"
        raise ConfigError(f"{len(seeds)} seeds, {len(set(seeds))} of them different", where=where, expected=expected)
    return seeds


def _rules(metrics: object, effect: float, where: str) -> dict[str, Rule]:
    if not isinstance(metrics, dict):
        raise ConfigError("no table", where=f"{where}, metrics", expected='[metrics."tct_s.mean"]')
    rules = {}
    for path, keys in metrics.items() if metrics else ((path, {}) for path in METRICS):
        place = f"{where}, metric {path[:_NAME_LETTERS]!r}"
        if not isinstance(keys, dict):
            raise ConfigError(f"{shown(keys)} is no table", where=place, expected="a table: better, min_effect, least")
        for key in keys:
            if key not in ("better", "min_effect", "least"):
                expected = nearest(key, ("better", "min_effect", "least"))
                raise ConfigError(f"unknown key {key[:60]!r}", where=place, expected=expected)
        known = METRICS.get(path)
        better = keys.get("better", known and known.better)
        if better not in ("lower", "higher"):
            raise ConfigError(f"better = {shown(better)}", where=place, expected="better = 'lower' or 'higher'")
        least = keys.get("least", known.least if known is not None else 0.0)
        smallest = _number(keys.get("min_effect", effect), "min_effect", place)
        rules[path] = Rule(better, smallest, _number(least, "least", place))
    return rules


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e15:
        raise ConfigError(f"{shown(value)} does not fit", where=f"{where}, {key}", expected="a number from 0 on")
    return float(value)


def _whole(value: object, key: str, where: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        expected = f"a whole number from {low} to {high}"
        raise ConfigError(f"{shown(value)} does not fit", where=f"{where}, {key}", expected=expected)
    return value


def shown(value: object) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    return repr(value)[:80] if isinstance(value, (int, float, str)) else f"a {type(value).__name__}"
