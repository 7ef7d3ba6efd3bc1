"""What is given in Python as what the engine reads: keywords as a layer of the configuration, policies by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sagasim import seams
from sagasim.config import Config, read_config
from sagasim.errors import ConfigError, PolicyError
from sagasim.options import KEYS, check_exclusive
from sagasim.seams import ARGUMENTS, check_signature

__all__ = ["Named", "base_layer", "plain", "policy"]

F = TypeVar("F", bound=Callable[..., Any])


def policy(kind: str, name: str, **traits: Any) -> Callable[[F], F]:
    """Register the function or class below as the policy `name` of a kind; used at once, by its name or itself.

    kind: route, order, evict, predict or balance; see sagasim.seams for what each is given and returns.
    traits: sees_cache, together, sees_workflow and the other truth values of seams.Policy.

    Defined again under the same name, it takes the place of the earlier one. Raises PolicyError for a signature that
    does not fit, and for the name of a policy of sagasim itself.
    """
    register = seams.policy(kind, name, **traits)
    taken = {found.name: found for found in seams.policies(kind)}  # which also loads those of sagasim

    def checked(factory: F) -> F:
        if name in taken and _module(taken[name].factory).startswith("sagasim."):
            raise PolicyError(f"{name!r} is a policy of sagasim", where=f"policy {name!r}", expected="another name")
        if set(name) & set(":,= ") or not name:
            raise PolicyError(f"{name!r} is no name of a policy", expected="letters, digits and hyphens")
        if kind in ARGUMENTS:
            check_signature(seams.Policy(kind, name, factory, **traits), Path("policy"))
        return register(factory)

    return checked


def _module(factory: Callable[..., Any]) -> str:
    return str(getattr(factory, "__module__", ""))


class Named:
    """Policies given as objects, by the names under which they are registered. One for each call of the interface.

    Objects that were never decorated get the name of the function or class; if two of one call would have the same,
    the later ones get a number.
    """

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], object] = {}

    def layer(self, settings: Mapping[str, Any], *, objects: bool = True) -> dict[str, Any]:
        """Keywords as keys of the configuration: option names of the command line too, policies as objects too.

        objects: False to leave policies as they are given.
        """
        check_exclusive(settings)
        layer: dict[str, Any] = {}
        for word, value in settings.items():
            key = KEYS.get(word, word)
            if key in layer:
                raise ConfigError("given twice", where=word, expected=f"{word} or {key}")
            layer[key] = self.name(key, value) if objects and key in seams.KINDS else plain(value)
        return layer

    def name(self, kind: str, given: object) -> object:
        """The name of a policy that is given as a function or a class; anything else as it is."""
        if given is None or isinstance(given, str):
            self._remember(kind, (given or "").partition(":")[0])
            return given
        if not (inspect.isfunction(given) or inspect.isclass(given)):
            what = f"a {type(given).__name__} is no policy"
            raise PolicyError(what, where=kind, expected="a name, a function, or a class (made anew for each run)")
        for found in seams.policies(kind):
            if found.factory is given:
                self._given[kind, found.name] = given
                return found.name
        word = given.__name__.strip("<>").replace("_", "-")
        name, number = word, 1
        while self._given.setdefault((kind, name), given) is not given:
            number += 1
            name = f"{word}-{number}"
        policy(kind, name)(given)
        return name

    def _remember(self, kind: str, name: str) -> None:
        """What is asked for by name is not to be replaced by an object of that name."""
        for found in seams.policies(kind):
            if found.name == name:
                self._given[kind, name] = found.factory


def plain(value: object) -> object:
    """Numbers of NumPy and paths as the configuration has them."""
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value


def base_layer(config: Config | Mapping[str, Any] | str | Path | None) -> dict[str, Any]:
    """What a configuration, or the config.toml of an earlier run, says."""
    if config is None:
        return {}
    if isinstance(config, Config):
        return {key: value for key, value in asdict(config).items() if value is not None}
    if isinstance(config, (str, Path)):
        return read_config(config)
    if isinstance(config, Mapping):
        return dict(config)
    raise ConfigError(f"a {type(config).__name__}", where="config", expected="a Config, a mapping or a TOML file")
