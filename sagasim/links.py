"""Links: transfers that run at the same time share the ports they use.

A port is a name and a number (`("net out", replica)`); all ports of one name have one bandwidth. A transfer runs at the
smallest of its ports' shares, a share being the port's bandwidth over the transfers that use it. Rates and completion
times are whole numbers, computed anew whenever a transfer starts, ends or is cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from simpy import Event
from simpy.events import EventPriority

from sagasim.clock import Clock

__all__ = ["Links", "Port", "Transfer"]

_PRIORITY = EventPriority(3)  # after boundaries, agents and routing of the same time
_SCALE: Final = 10**12  # bytes are counted in parts, so that a rate in bytes a second moves whole parts in a picosecond

Port = tuple[str, int]


class Transfer:
    """`size` bytes on their way. rate: bytes a second; left: parts of a byte."""

    __slots__ = ("done", "left", "ports", "rate", "size", "started")

    def __init__(self, size: int, ports: tuple[Port, ...], started: int, done: Callable[[], None]) -> None:
        self.size = size
        self.left = size * _SCALE
        self.ports = ports
        self.started = started  # ps
        self.rate = 0
        self.done = done


class Links:
    """All transfers under way. bandwidth: of each port, by its name, in bytes a second."""

    __slots__ = ("_active", "_alarm", "_bandwidth", "_env", "_since")

    def __init__(self, env: Clock, bandwidth: Mapping[str, int]) -> None:
        self._env = env
        self._bandwidth = dict(bandwidth)
        self._active: list[Transfer] = []
        self._since = 0  # up to when the transfers are accounted for
        self._alarm: Event | None = None  # the one that counts

    def send(self, ports: tuple[Port, ...], size: int, done: Callable[[], None]) -> Transfer:
        """Move `size` bytes through these ports; done() is called when the last one is there."""
        now: int = self._env.now  # type: ignore[assignment]
        self._account(now)
        transfer = Transfer(size, ports, now, done)
        self._active.append(transfer)
        self._share()
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Stop a transfer that is under way; its done() is never called."""
        now: int = self._env.now  # type: ignore[assignment]
        self._account(now)
        self._active.remove(transfer)
        self._share()

    def _account(self, now: int) -> None:
        """Take off what has been sent since the rates were last set."""
        for transfer in self._active:
            transfer.left = max(0, transfer.left - transfer.rate * (now - self._since))
        self._since = now

    def _share(self) -> None:
        """Set the rates, and the alarm for the first transfer to end."""
        users: dict[Port, int] = {}
        for transfer in self._active:
            for port in transfer.ports:
                users[port] = users.get(port, 0) + 1
        bandwidth = self._bandwidth
        for transfer in self._active:
            transfer.rate = max(1, min([bandwidth[port[0]] // users[port] for port in transfer.ports]))
        self._alarm = None
        if self._active:
            first = min([-(-t.left // t.rate) for t in self._active])
            self._alarm = self._env.call_in(first, _PRIORITY, self._ring)

    def _ring(self, alarm: Event) -> None:
        if alarm is not self._alarm:
            return
        now: int = self._env.now  # type: ignore[assignment]
        self._account(now)
        ended = [transfer for transfer in self._active if not transfer.left]
        self._active = [transfer for transfer in self._active if transfer.left]
        self._share()
        for transfer in ended:  # in the order in which they started
            transfer.done()
