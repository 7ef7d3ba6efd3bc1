"""Links between replicas: transfers that run at the same time share the ports they use.

Each replica has a port out and a port in to the other replicas of its node (NVLink), and one of each to other nodes
(network); all GPUs of a replica send at once. A transfer runs at the smaller of its two ports' shares, a share being
the port's bandwidth over the transfers that use it. Rates and completion times are whole numbers, computed anew
whenever a transfer starts or ends.
"""

from __future__ import annotations

from collections.abc import Callable

from simpy import Event
from simpy.events import EventPriority

from sagasim.clock import Clock

__all__ = ["Links"]

_PRIORITY = EventPriority(3)  # after boundaries, agents and routing of the same time
_SCALE = 10**12  # bytes are counted in parts, so that a rate in bytes a second moves whole parts in a picosecond

Port = tuple[str, int]


class _Transfer:
    __slots__ = ("done", "left", "number", "ports", "rate")

    def __init__(self, number: int, size: int, ports: tuple[Port, Port], done: Callable[[], None]) -> None:
        self.number = number
        self.left = size * _SCALE
        self.ports = ports
        self.rate = 0  # bytes a second
        self.done = done


class Links:
    """All transfers under way. nodes: node of each replica; bandwidths are those of a replica, in bytes a second."""

    __slots__ = ("_active", "_alarm", "_bandwidth", "_env", "_nodes", "_since", "moved_bytes", "spent_ps", "transfers")

    def __init__(self, env: Clock, nodes: list[int], intra_node: int, inter_node: int) -> None:
        self._env = env
        self._nodes = nodes
        self._bandwidth = {"intra": intra_node, "inter": inter_node}
        self._active: list[_Transfer] = []
        self._since = 0  # up to when the transfers are accounted for
        self._alarm: Event | None = None  # the one that counts
        self.transfers = self.moved_bytes = self.spent_ps = 0

    def send(self, source: int, target: int, size: int, done: Callable[[], None]) -> None:
        """Move `size` bytes from one replica to another; done() is called when the last one is there."""
        env = self._env
        now: int = env.now  # type: ignore[assignment]
        self._account(now)
        kind = "intra" if self._nodes[source] == self._nodes[target] else "inter"
        self.transfers += 1
        self.moved_bytes += size
        ports = ((f"{kind} out", source), (f"{kind} in", target))
        started = now

        def ended() -> None:
            self.spent_ps += int(env.now) - started
            done()

        self._active.append(_Transfer(self.transfers, size, ports, ended))
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
        for transfer in self._active:
            transfer.rate = min([max(1, self._bandwidth[port[0].split()[0]] // users[port]) for port in transfer.ports])
        self._alarm = None
        if self._active:
            alarm = Event(self._env)
            alarm._ok = True
            alarm._value = None
            alarm.callbacks = [self._ring]
            self._alarm = alarm
            self._env.schedule(alarm, _PRIORITY, min([-(-t.left // t.rate) for t in self._active]))

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
