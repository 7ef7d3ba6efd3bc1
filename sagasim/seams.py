"""The contracts of the policies, the views they are given, and how a policy is named and found. No engine logic.

    route(request, replicas, now_ps, rng, *, ...) -> int        index of the replica that gets the call
    order(request, now_ps, *, ...) -> comparable                waiting calls are admitted by ascending key
    evict(idle, now_ps, *, ...) -> float                        idle contexts lose blocks by ascending rank

A policy is a function, or a class whose instances are called like it, under `@policy(kind, name)`. Its keyword-only
parameters (of the class: those of __init__) are its configuration. Views hold what a real system could know when the
decision is made: no output length, no future tool time, no call that has not been sent.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from sagasim.errors import PolicyError, nearest
from sagasim.plan import Context

__all__ = ["KINDS", "IdleContext", "Policy", "ReplicaView", "Request", "find", "policies", "policy"]

KINDS = ("route", "order", "evict")
F = TypeVar("F", bound=Callable[..., Any])


class Request(NamedTuple):
    """A call as it is sent: who sends it, and its prompt."""

    task: str
    tenant: str
    agent: str  # sub-agent of the task; "" is the main agent
    call: int  # how many calls of the task were listed before it
    context: Context
    prompt_tokens: int
    submitted_ps: int
    arrival_ps: int  # of the task
    expected_tct_ps: int | None  # what tasks like it took so far, as known when it arrived; None: none has ended yet


class IdleContext(NamedTuple):
    """What a finished (or preempted) call left in the cache of a replica: the unit of eviction."""

    number: int  # counts releases on this replica
    task: str
    tenant: str
    context: Context
    since_ps: int
    blocks: int  # of 16 tokens, still there


class ReplicaView:
    """State of a replica at its last step boundary; free_blocks and hit_tokens only for policies that see the cache.

    loads: calls in flight of every replica, one list that all views share; a rule that compares them all reads it once.
    """

    __slots__ = ("free_blocks", "hit_tokens", "loads", "node", "num_blocks", "replica", "running", "waiting")

    def __init__(self, replica: int, node: int, num_blocks: int, loads: list[int]) -> None:
        self.replica = replica
        self.node = node
        self.num_blocks = num_blocks
        self.loads = loads
        self.waiting = 0
        self.running = 0
        self.free_blocks: int | None = None  # idle cached blocks included
        self.hit_tokens: int | None = None  # of the prompt that is being routed

    @property
    def in_flight(self) -> int:
        """Calls sent here and not finished."""
        return self.loads[self.replica]


@dataclass(frozen=True, slots=True)
class Policy:
    """A registered policy and the values of its parameters."""

    kind: str
    name: str
    factory: Callable[..., Any]
    sees_cache: bool = False  # route: wants free_blocks and hit_tokens
    queue_order: bool = False  # evict: the block queue of vLLM itself; the engine needs no rank
    in_order: bool = False  # order: whoever comes later waits behind, always
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        return (inspect.getdoc(self.factory) or "").split("\n", maxsplit=1)[0]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters, by name."""
        signature = inspect.signature(self.factory)
        return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    def build(self) -> Callable[..., Any]:
        """The decision function, with a fresh state."""
        if inspect.isclass(self.factory):
            return cast("Callable[..., Any]", self.factory(**self.values))
        return functools.partial(self.factory, **self.values) if self.values else self.factory


_REGISTRY: dict[tuple[str, str], Policy] = {}


def policy(
    kind: str, name: str, *, sees_cache: bool = False, queue_order: bool = False, in_order: bool = False
) -> Callable[[F], F]:
    """Register a function or class as the policy `name` of a kind (route, order or evict)."""
    if kind not in KINDS:
        raise PolicyError(f"unknown kind {kind!r}", where=f"policy {name!r}", expected=nearest(kind, KINDS))

    def register(factory: F) -> F:
        _REGISTRY[kind, name] = Policy(kind, name, factory, sees_cache, queue_order, in_order)
        return factory

    return register


def policies(kind: str | None = None) -> list[Policy]:
    """All registered policies, those of installed packages (entry points "sagasim.policies") included."""
    _load_builtin()
    _load_published()
    return sorted(
        (p for p in _REGISTRY.values() if kind in (None, p.kind)), key=lambda p: (KINDS.index(p.kind), p.name)
    )


def find(kind: str, spec: str) -> Policy:
    """The policy of a specification: `name`, `name:key=value,key=value` or `./file.py:name[:key=value,...]`."""
    _load_builtin()
    path, _, rest = spec.rpartition(".py:")
    if path:
        _load_file(Path(f"{path}.py"))
    else:
        rest = spec
    name, _, arguments = rest.partition(":")
    if (kind, name) not in _REGISTRY:
        _load_published()
    found = _REGISTRY.get((kind, name))
    if found is None:
        valid = [n for k, n in _REGISTRY if k == kind]
        raise PolicyError(f"unknown {kind} policy {name!r}", where=spec, expected=nearest(name, valid))
    return replace(found, values=_values(found, arguments, spec))


def _values(found: Policy, arguments: str, spec: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    parameters = found.parameters
    for item in filter(None, arguments.split(",")):
        key, equals, text = item.partition("=")
        if not equals or key not in parameters:
            expected = nearest(key, parameters) if parameters else f"no parameters: {found.name} has none"
            raise PolicyError(f"unknown parameter {item!r}", where=spec, expected=expected)
        default = parameters[key].default
        values[key] = _parse(text, type(default) if default is not inspect.Parameter.empty else str, f"{spec}, {key}")
    missing = [p.name for p in parameters.values() if p.default is p.empty and p.name not in values]
    if missing:
        raise PolicyError(
            f"parameter {missing[0]!r} is missing", where=spec, expected=f"{found.name}:{missing[0]}=VALUE"
        )
    return values


def _parse(text: str, kind: type, where: str) -> Any:
    if kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise PolicyError(f"{text!r} is no truth value", where=where, expected="true or false")
    try:
        return kind(text)
    except ValueError:
        raise PolicyError(f"{text!r} is not of type {kind.__name__}", where=where, expected=kind.__name__) from None


@functools.cache
def _load_builtin() -> None:
    import sagasim.policies

    assert sagasim.policies


@functools.cache
def _load_published() -> None:
    """Policies of installed packages; looked for only when needed, since looking costs as much as importing sagasim."""
    import importlib.metadata

    for entry in importlib.metadata.entry_points(group="sagasim.policies"):
        entry.load()


@functools.cache
def _load_file(path: Path) -> None:
    if not path.is_file():
        raise PolicyError("no such file", where=str(path), expected="a Python file with a policy in it")
    name = f"sagasim_policy_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PolicyError("not a Python file", where=str(path), expected="a file that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise PolicyError(f"{error.msg}", where=f"{path}:{error.lineno}", expected="valid Python") from None
    except ImportError as error:
        raise PolicyError(f"{error}", where=str(path), expected="imports that are installed") from None
