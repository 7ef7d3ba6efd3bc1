"""Replicas that fail, or are drained, and come back: what a configuration says of them, and the events.

`3@100+50, 5@200~60`: replica 3 fails at 100 s and is back, empty, 50 s later; replica 5 takes no new calls from 200 s
on for 60 s, hands over those that have not started, and keeps its cache. Calls of a failed replica begin again
elsewhere, from their prompts; their tasks go on.
"""

from __future__ import annotations

import re
from functools import partial
from typing import NamedTuple

from simpy import Event
from simpy.events import EventPriority

from sagasim.cluster import Cluster
from sagasim.core import MAX_DURATION_PS
from sagasim.errors import ConfigError
from sagasim.units import PS_PER_S, ps_from_s

__all__ = ["Failure", "parse_failures", "schedule_failures"]

_PRIORITY = EventPriority(4)  # after all else of the same time
_ITEM = re.compile(r"(\d{1,6})@([\d.]{1,20})([+~])([\d.]{1,20})")


class Failure(NamedTuple):
    """A replica that is not available from start_ps on, for length_ps."""

    replica: int
    start_ps: int
    length_ps: int
    drain: bool


def parse_failures(text: str, replicas: int) -> list[Failure]:
    """The failures of a specification, in order of time. Raises ConfigError."""
    found = []
    for item in filter(None, (item.strip() for item in text.split(","))):
        match = _ITEM.fullmatch(item)
        try:
            number, start, kind, length = match.groups() if match else ("", "", "", "")
            failure = Failure(int(number), ps_from_s(float(start)), ps_from_s(float(length)), kind == "~")
        except ValueError:
            expected = "REPLICA@START_S+LENGTH_S, or ~ in place of + to drain it"
            raise ConfigError(f"{item!r} does not fit", where="failures", expected=expected) from None
        if (
            failure.replica >= replicas
            or failure.length_ps < 1
            or failure.start_ps + failure.length_ps > MAX_DURATION_PS
        ):
            expected = f"a replica from 0 to {replicas - 1}, within {MAX_DURATION_PS // PS_PER_S} s"
            raise ConfigError(f"{item!r} is out of range", where="failures", expected=expected)
        found.append(failure)
    found.sort(key=lambda failure: (failure.start_ps, failure.replica))
    _check_overlaps(found, replicas)
    return found


def _check_overlaps(failures: list[Failure], replicas: int) -> None:
    """At any moment a replica is out once at most, and not all of them are."""
    for failure in failures:
        out = [other for other in failures if other.start_ps <= failure.start_ps <= other.start_ps + other.length_ps]
        numbers = [other.replica for other in out]
        if len(set(numbers)) < len(numbers):
            what = f"replica {failure.replica} fails while it is out"
            raise ConfigError(what, where="failures", expected="one failure after the other")
        if len(numbers) >= replicas:
            raise ConfigError("no replica is left", where="failures", expected="at least one that is available")


def schedule_failures(failures: list[Failure], cluster: Cluster) -> list[str]:
    """Let them happen; returns a list that says afterwards what each one did."""
    told: list[str] = []
    cluster.placed = {}
    for failure in failures:
        begins, ends = failure.start_ps, failure.start_ps + failure.length_ps
        cluster.env.call_in(begins, _PRIORITY, partial(_begin, failure, cluster, told))
        cluster.env.call_in(ends, _PRIORITY, partial(_end, failure, cluster))
    return told


def _begin(failure: Failure, cluster: Cluster, told: list[str], _: Event) -> None:
    calls = cluster.fail(failure.replica, failure.start_ps, drain=failure.drain)
    what = "drained" if failure.drain else "failed"
    told.append(f"{failure.replica} {what} at {failure.start_ps / PS_PER_S:g} s ({calls} calls began again)")


def _end(failure: Failure, cluster: Cluster, _: Event) -> None:
    cluster.views[failure.replica].available = True
