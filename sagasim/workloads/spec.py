"""Options of workloads: from text, checked against their defaults, and their help."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sagasim.errors import ConfigError, nearest

__all__ = ["Option", "check_like", "option_help", "parse_options"]


class Option(NamedTuple):
    """An option of a workload: its default, whose type says what is accepted, and one line of help."""

    default: Any
    help: str


def option_help(docstring: str, name: str) -> str:
    """The text behind `name:` in a docstring, up to the next such line or a blank one, on one line."""
    found = re.search(rf"^{re.escape(name)}: (.*?)(?=\n\w+: |\n\s*\n|\Z)", docstring, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def parse_options(arguments: str, options: Mapping[str, Option], where: str) -> dict[str, Any]:
    """The values of `key=value,key=value`; items of a tuple are separated by `|`. Raises ConfigError."""
    values: dict[str, Any] = {}
    for item in filter(None, arguments.split(",")):
        key, equals, text = item.partition("=")
        if key not in options or not equals:
            expected = nearest(key, options) if options else "no options"
            raise ConfigError(f"unknown option {item!r}" if equals else f"{item!r}", where=where, expected=expected)
        default = options[key].default
        if isinstance(default, tuple):
            values[key] = tuple(_parse(part, like, key) for part, like in _pairs(text.split("|"), default))
        else:
            values[key] = _parse(text, default, key)
        check_like(key, values[key], default)
    return values


def _pairs(parts: list[str], default: tuple[Any, ...]) -> list[tuple[str, Any]]:
    """Each part with the item of the default it stands for; a surplus part stands for the last one."""
    return [(part, default[min(place, len(default) - 1)]) for place, part in enumerate(parts)]


def _parse(text: str, default: Any, key: str) -> Any:
    if isinstance(default, bool):
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise ConfigError(f"{key} is {text!r:.60}", expected="true or false")
    if isinstance(default, str):
        return text
    for kind in (int, float) if isinstance(default, float) else (int,):
        try:
            return kind(text)
        except ValueError:
            continue
    raise ConfigError(f"{key} is {text!r:.60}", expected=_expected(default))


def _expected(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    if isinstance(default, str):
        return f"a text, such as {default!r}"
    return f"a {'' if isinstance(default, float) else 'whole '}number from 0, such as {default}"


def check_like(key: str, value: object, default: object) -> None:
    """Raise ConfigError unless `value` is made of finite numbers from 0, truth values or texts like `default`."""
    if isinstance(default, tuple):
        if not isinstance(value, (tuple, list)) or len(value) != len(default):
            raise ConfigError(f"{key} is {value!r:.60}", expected=f"{len(default)} values such as {default}")
        for item, like in zip(value, default, strict=True):
            check_like(key, item, like)
        return
    if isinstance(default, (bool, str)):
        fits = type(value) is type(default)
    else:
        whole, number = type(value) is int, isinstance(default, float) and type(value) is float
        fits = (whole or (number and math.isfinite(value))) and value >= 0  # type: ignore[arg-type,operator]
    if not fits:
        raise ConfigError(f"{key} is {value!r:.60}", expected=_expected(default))
