"""What a sweep asks for: a TOML file or a mapping, read, checked for names and types, and spread out.

seeds = 5          top-level keys are those of every point; seeds: how many, from `seed` on, or a list of them
[grid]             lists of values: every combination is taken
[[points]]         one table for each point; a `label` names it; with a grid, each is combined with all of it
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sagasim.config import Config, merge
from sagasim.errors import ConfigError, nearest

__all__ = ["Asked", "expand", "read_spec"]

Layer = dict[str, Any]

_FILE_BYTES = 2**26  # the resolved sweep.toml of very many points too
_MOST_POINTS = 100_000
_MOST_SEEDS = 10_000
_OPTIONS = {"rate": "rate_per_min", "seeds": "seed"}  # options of `run` whose key has another name; seeds in a grid
_INSTEAD = (("trace", "workload", "mix"), ("rate_per_min", "load", "concurrency"))  # one of each says the same thing
_LONGEST_LABEL = 100
_PARTS = ("grid", "points", "seeds")
_KEYS = tuple(field.name for field in fields(Config))


@dataclass(frozen=True, slots=True)
class Asked:
    """One combination with its seeds. base: keys of every point that hold for this one; own: what it says itself.

    choices: the place of each of its values on each axis of the sweep; where: for messages.
    """

    base: Layer
    own: Layer
    seeds: tuple[int, ...]
    label: str | None
    choices: tuple[tuple[str, int], ...]
    where: str


def read_spec(path: str | Path) -> dict[str, Any]:
    """The content of a sweep file. Raises ConfigError."""
    expected = "a TOML file that describes a sweep"
    try:
        with open(path, "rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path), expected=expected) from None
    if len(content) > _FILE_BYTES:
        raise ConfigError("too long", where=str(path), expected=f"at most {_FILE_BYTES >> 20} MiB")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"not TOML: {str(error)[:200]}", where=str(path), expected=expected) from None


def expand(content: Mapping[str, Any], where: str) -> list[Asked]:
    """All combinations that a sweep asks for, each with its seeds, in the order of the file.

    Raises ConfigError for unknown keys, values of the wrong type, and whatever is said twice; whether the values make
    sense together is not looked at here.
    """
    top = {word: value for word, value in content.items() if word not in _PARTS}
    for word in top:
        if _key(str(word)) not in _KEYS:
            raise ConfigError(f"unknown key {word!r:.60}", where=where, expected=nearest(str(word), _KEYS + _PARTS))
    base = _layer(top, where)
    grid = _grid(content.get("grid", {}), f"{where}, grid")
    listed = _listed(content.get("points", []), f"{where}, points")
    for key in grid:
        if key in base or any(key in layer for layer, _ in listed):
            raise ConfigError(f"{key!r} is said outside the grid too", where=f"{where}, grid", expected="each key once")
    count = math.prod(map(len, grid.values())) * max(1, len(listed))
    if count > _MOST_POINTS:
        raise ConfigError(f"{count:,} points", where=where, expected=f"at most {_MOST_POINTS:,}")
    given = _seeds(content, base, where)
    if given and any("seed" in layer for layer in (grid, *(layer for layer, _ in listed))):
        raise ConfigError("seeds are said twice", where=where, expected="seeds, or seed of grid or points")
    seeds = given or (base.get("seed", 0),)
    if count * len(seeds) > _MOST_POINTS:
        raise ConfigError(f"{count * len(seeds):,} points", where=where, expected=f"at most {_MOST_POINTS:,}")
    base.pop("seed", None)
    return [
        _asked(base, seeds, item, chosen, where)
        for item in (enumerate(listed) if listed else [(None, ({}, None))])
        for chosen in itertools.product(*([(key, n, v) for n, v in enumerate(values)] for key, values in grid.items()))
    ]


def _asked(
    base: Layer,
    seeds: tuple[int, ...],
    item: tuple[int | None, tuple[Layer, str | None]],
    chosen: Sequence[tuple[str, int, Any]],
    where: str,
) -> Asked:
    number, (listed, label) = item
    own = listed | {key: value for key, _, value in chosen}
    held = dict(base)
    for group in _INSTEAD:
        if any(key in own for key in group):
            held = {key: value for key, value in held.items() if key not in group}
    choices = tuple((key, place) for key, place, _ in chosen if key != "seed")
    said = [f"{key}={value}" for key, _, value in chosen]
    if number is not None:
        choices = (("points", number), *choices)
        said.insert(0, f"point {number + 1}")
    one = own.pop("seed", None)
    where = ", ".join([where, *said])
    return Asked(held, own, seeds if one is None else (one,), label, choices, where)


def _key(word: str) -> str:
    key = word.replace("-", "_")
    return _OPTIONS.get(key, key)


def _value(key: str, value: object, where: str) -> Any:
    """The value as the key's type, for a key that there is."""
    try:
        return getattr(merge({key: value}), key)
    except ConfigError as error:
        raise ConfigError(error.what, where=f"{where}, {key}"[:200], expected=error.expected) from None


def _layer(words: Mapping[str, Any], where: str) -> Layer:
    layer: Layer = {}
    for word, value in words.items():
        key = _key(str(word))
        if key in layer:
            raise ConfigError(f"{key!r} is said twice", where=where, expected="each key once")
        if value is not None:
            layer[key] = _value(key, value, where)
    return layer


def _grid(grid: object, where: str) -> dict[str, list[Any]]:
    if not isinstance(grid, Mapping):
        raise ConfigError(f"a {type(grid).__name__} does not fit", where=where, expected="a table of lists")
    found: dict[str, list[Any]] = {}
    for word, values in grid.items():
        key = _key(str(word))
        if isinstance(values, (str, bytes)) or not isinstance(values, Sequence) or not values:
            what = "an empty list" if values == [] else f"a {type(values).__name__}"
            raise ConfigError(f"{what} does not fit", where=f"{where}, {key}", expected="a list of values")
        if key in found:
            raise ConfigError(f"{key!r} is said twice", where=where, expected="each key once")
        found[key] = [_value(key, value, where) for value in values]
        twice = [value for n, value in enumerate(found[key]) if value in found[key][:n]]
        if twice:
            raise ConfigError(f"{twice[0]!r:.80} twice", where=f"{where}, {key}", expected="each value once")
    return found


def _listed(points: object, where: str) -> list[tuple[Layer, str | None]]:
    """The points of a list with their labels; `point`, which sweep.toml adds, is no key of theirs."""
    if not isinstance(points, Sequence) or not all(isinstance(point, Mapping) for point in points):
        raise ConfigError(f"a {type(points).__name__} does not fit", where=where, expected="tables [[points]]")
    found = []
    for number, point in enumerate(points, 1):
        label = point.get("label")
        if label is not None and not (isinstance(label, str) and label.isprintable() and label):
            raise ConfigError(f"{label!r:.80} is no label", where=f"{where} {number}", expected="a line of text")
        if label is not None and len(label) > _LONGEST_LABEL:
            expected = f"at most {_LONGEST_LABEL} letters"
            raise ConfigError(f"a label of {len(label)} letters", where=f"{where} {number}", expected=expected)
        words = {word: value for word, value in point.items() if word not in ("label", "point")}
        found.append((_layer(words, f"{where} {number}"), label))
    return found


def _seeds(content: Mapping[str, Any], base: Layer, where: str) -> tuple[int, ...]:
    """The seeds that the top level names; none where it says nothing of several."""
    given = content.get("seeds")
    if given is None:
        return ()
    where = f"{where}, seeds"
    if isinstance(given, int) and not isinstance(given, bool):
        if not 1 <= given <= _MOST_SEEDS:
            expected = f"a whole number from 1 to {_MOST_SEEDS}, or a list of seeds"
            shown = f"{given}" if given.bit_length() < 100 else f"a number of {given.bit_length()} bits"
            raise ConfigError(f"{shown} is out of range", where=where, expected=expected)
        first = base.get("seed", 0)
        return tuple(range(first, first + given))
    if isinstance(given, str) or not isinstance(given, Sequence):
        expected = "a whole number, or a list of seeds"
        raise ConfigError(f"a {type(given).__name__} does not fit", where=where, expected=expected)
    if "seed" in base:
        raise ConfigError("seeds are said twice", where=where, expected="seed or seeds")
    return tuple(_grid({"seed": given}, where)["seed"])
