"""The contracts of the policies, the views they are given, and how a policy is named and found. No engine logic.

    route(request, replicas, now_ps, rng, *, ...) -> int        index of the replica that gets the call
    order(request, now_ps, *, ...) -> comparable                waiting calls are admitted by ascending key
    evict(idle, now_ps, *, ...) -> float                        idle contexts lose blocks by ascending rank
    evict(idles, now_ps, memory, *, ...) -> ranks               the same for all at once (together=True)
    balance(replicas, now_ps, rng, *, ...) -> [(from, to), ...]  each moves the oldest call that waits and never started
    prefetch(request, now_ps, *, ...) -> int | None             ps after which to bring back what its next call needs
    preempt(waiting, running, now_ps, *, ...) -> [place, ...]   running calls that give way to a waiting one, in order
    predict(*, ...) -> Workflow                                 what is known of agents' workflows, told as they go on

A policy that sees the workflow (sees_workflow=True) is a class; the run's Workflow is the first argument of __init__.

A policy is a function, or a class whose instances are called like it, under `@policy(kind, name)`. Its keyword-only
parameters (of the class: those of __init__) are its configuration. Views hold what a real system could know when the
decision is made: no output length, no future tool time, no call that has not been sent.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from sagasim.errors import PolicyError, nearest
from sagasim.plan import Context
from sagasim.userfile import is_there, run_file

__all__ = [
    "ARGUMENTS",
    "KINDS",
    "IdleContext",
    "Memory",
    "Policy",
    "ReplicaView",
    "Request",
    "Workflow",
    "check_signature",
    "find",
    "option_files",
    "policies",
    "policy",
    "ranker",
]

KINDS = ("route", "order", "evict", "predict", "balance", "prefetch", "preempt")
F = TypeVar("F", bound=Callable[..., Any])


class Request(NamedTuple):
    """A call as it is sent: who sends it, and its prompt."""

    task: str
    tenant: str
    agent_type: str  # of the task; "" where unknown
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
    agent: str  # sub-agent of the task; "" is the main agent
    context: Context
    since_ps: int
    blocks: int  # of 16 tokens, still there


class Memory(NamedTuple):
    """KV blocks of a replica: all of them, and those that running calls hold."""

    num_blocks: int
    held_blocks: int


class Workflow(Protocol):
    """What a predictor is told, in the order in which it happens. A run has one; policies may ask it more than this."""

    def sent(self, request: Request, now_ps: int) -> None:
        """A call is sent: whatever its agent was waiting for has ended."""

    def ended(self, request: Request, tools: tuple[str, ...], output_tokens: int, service_ps: int, now_ps: int) -> None:
        """A call has its last token, and asks for these tools; service_ps: since it was first scheduled."""

    def left(self, task: str, now_ps: int) -> None:
        """A task has ended."""


class ReplicaView:
    """State of a replica at its last step boundary; free_blocks and hit_tokens only for policies that see the cache.

    loads: calls in flight of every replica, one list that all views share; a rule that compares them all reads it once.
    """

    __slots__ = (
        "available",
        "free_blocks",
        "hit_tokens",
        "loads",
        "node",
        "num_blocks",
        "replica",
        "running",
        "waiting",
    )

    def __init__(self, replica: int, node: int, num_blocks: int, loads: list[int]) -> None:
        self.replica = replica
        self.node = node
        self.num_blocks = num_blocks
        self.loads = loads
        self.available = True  # not failed or drained; what a rule sends elsewhere goes to the least loaded available
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
    together: bool = False  # evict: ranks all idle contexts at once
    sees_workflow: bool = False
    clairvoyant: bool = False  # sees the truth: a bound to compare with, not a system to build
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # least and most of a number, by parameter
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def help(self) -> str:
        return (inspect.getdoc(self.factory) or "").split("\n", maxsplit=1)[0]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The keyword-only parameters, by name."""
        signature = inspect.signature(self.factory)
        return {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}

    def build(self, workflow: Workflow | None = None) -> Callable[..., Any]:
        """The decision function, with a fresh state. Raises PolicyError if it needs a workflow and there is none."""
        if self.sees_workflow:
            if workflow is None:
                raise PolicyError("needs a predictor of workflows", where=self.name, expected="--predict aeg")
            return cast("Callable[..., Any]", self.factory(workflow, **self.values))
        if inspect.isclass(self.factory):
            return cast("Callable[..., Any]", self.factory(**self.values))
        return functools.partial(self.factory, **self.values) if self.values else self.factory


_REGISTRY: dict[tuple[str, str], Policy] = {}
ARGUMENTS = {
    "route": "request, replicas, now_ps, rng",
    "order": "request, now_ps",
    "evict": "idle, now_ps",
    "balance": "replicas, now_ps, rng",
    "prefetch": "request, now_ps",
    "preempt": "waiting, running, now_ps",
}
_TOGETHER = "idles, now_ps, memory"  # of an eviction that ranks all at once


def policy(kind: str, name: str, **traits: Any) -> Callable[[F], F]:
    """Register a function or class as the policy `name` of a kind; traits: the truth values and limits of Policy."""
    if kind not in KINDS:
        raise PolicyError(f"unknown kind {kind!r}", where=f"policy {name!r}", expected=nearest(kind, KINDS))

    def register(factory: F) -> F:
        _REGISTRY[kind, name] = Policy(kind, name, factory, **traits)
        return factory

    return register


Ranker = Callable[[Sequence[IdleContext], int, Memory], Sequence[Any]]


def ranker(evict: Policy, workflow: Workflow | None, *, queue: bool = True) -> Ranker | None:
    """How idle contexts are ranked all at once, however the policy is written; None for the block queue itself.

    queue: False where that will not do (what is evicted is to be known at once): then whole contexts in its order.
    """
    if evict.queue_order:
        return None if queue else lambda idles, *_: [idle.since_ps for idle in idles]
    rank = evict.build(workflow)
    return rank if evict.together else lambda idles, now_ps, _: [rank(idle, now_ps) for idle in idles]


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
    known = _REGISTRY
    if path:
        known = _load_file(Path(f"{path}.py"))  # its own, whoever else has a policy of that name
    else:
        rest = spec
    name, _, arguments = rest.partition(":")
    if (kind, name) not in known and not path:
        _load_published()
    found = known.get((kind, name))
    if found is None:
        valid = [n for k, n in known if k == kind]
        raise PolicyError(f"unknown {kind} policy {name!r}", where=spec, expected=nearest(name, valid))
    return replace(found, values=_values(found, arguments, spec))


def option_files(spec: str) -> list[str]:
    """The values in `name:key=value,...` that name files."""
    path, _, rest = spec.rpartition(".py:")
    arguments = (rest if path else spec).partition(":")[2]
    values = [item.partition("=")[2] for item in arguments.split(",")]
    return [value for value in values if value and is_there(Path(value)) and Path(value).is_file()]


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
        if key in found.limits:
            least, most = found.limits[key]
            if not least <= values[key] <= most:
                raise PolicyError(f"{text} is out of range", where=f"{spec}, {key}", expected=f"{least:g} to {most:g}")
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
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, TypeError):
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
def _load_file(path: Path) -> dict[tuple[str, str], Policy]:
    """Run a file, so that its policies are registered, and see that they can be called. Returns them."""
    before = dict(_REGISTRY)
    try:
        run_file(path, "a policy", PolicyError)
        own = {key: found for key, found in _REGISTRY.items() if before.get(key) is not found}
        for found in own.values():
            if found.kind in ARGUMENTS:
                check_signature(found, path)
    except BaseException:  # nothing of a file that is refused stays on the list
        _REGISTRY.clear()
        _REGISTRY.update(before)
        raise
    return own


def check_signature(found: Policy, path: Path) -> None:
    """Raise PolicyError unless a decision can be called as the engine calls it."""
    arguments = _TOGETHER if found.together else ARGUMENTS[found.kind]
    decide, given = found.factory, arguments.split(", ")
    keywords: dict[str, None] = dict.fromkeys(found.parameters)
    if inspect.isclass(decide):
        own = [vars(base)["__call__"] for base in decide.__mro__ if "__call__" in vars(base)]
        decide, given, keywords = own[0] if own else (lambda: None), ["self", *given], {}
    try:
        inspect.signature(decide).bind(*given, **keywords)
    except TypeError as error:
        what = f"{found.kind} policy {found.name!r} cannot be called ({error})"
        raise PolicyError(what, where=str(path), expected=f"a decision from ({arguments})") from None
