"""KV that moves: with stolen calls between replicas, to host memory and back, ahead of a call that is expected.

Whatever moves takes time on links that it shares (links.py), slows the steps of the replicas at its ends, and leaves a
row in the log. A call whose context is on its way waits for it outside of the replica's queue and is handed over with
it; what arrives is put into the cache at the replica's next boundary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from simpy.events import EventPriority

from sagasim.batching import InFlight
from sagasim.cluster import Cluster
from sagasim.eventlog import KINDS_OF_TRANSFERS, Table
from sagasim.links import Links, Port, Transfer
from sagasim.plan import PlannedTask
from sagasim.seams import IdleContext
from sagasim.units import BLOCK_TOKENS

__all__ = ["PREFETCH", "RELOAD", "STEAL", "WRITE_BACK", "Mover"]

_PRIORITY = EventPriority(3)  # after boundaries, agents and routing of the same time
STEAL, WRITE_BACK, RELOAD, PREFETCH = range(len(KINDS_OF_TRANSFERS))


class _Load:
    """Blocks start..upto-1 of a context on their way from host memory to a replica; waiting: the call that needs them.

    finished: the last call of the context, where nobody asked for them yet.
    """

    __slots__ = ("finished", "start", "target", "transfer", "upto", "waiting")

    def __init__(self, finished: InFlight, target: int, start: int, upto: int) -> None:
        self.finished = finished
        self.target = target
        self.start = start
        self.upto = upto
        self.waiting: InFlight | None = None
        self.transfer: Transfer | None = None


class Mover:
    """All that moves KV between replicas and tiers. hosts: host memory by node; none: evicted context is gone.

    worth: whether an evicted context is to be kept there at all; None: each is. block_bytes: of a block on all GPUs
    of a replica. host_ports: of each replica, out of it and into it.
    """

    __slots__ = (
        "_block_bytes", "_cluster", "_host_ports", "_hosts", "_idle", "_inbound", "_links", "_loads", "_log",
        "_outbound", "_prefetch", "_writing",
    )  # fmt: skip

    def __init__(
        self,
        cluster: Cluster,
        links: Links,
        block_bytes: int,
        log: Table,
        hosts: Sequence[Any],
        host_ports: Sequence[tuple[tuple[Port, ...], tuple[Port, ...]]],
        prefetch: Callable[..., Any] | None,
        worth: Callable[[IdleContext], bool] | None,
    ) -> None:
        self._cluster = cluster
        self._links = links
        self._block_bytes = block_bytes
        self._log = log
        self._hosts = hosts
        self._host_ports = host_ports
        self._prefetch = prefetch
        self._inbound = [0] * len(cluster.replicas)  # transfers under way by replica
        self._outbound = [0] * len(cluster.replicas)
        self._idle: dict[str, dict[str, InFlight]] = {}  # task -> agent -> its last call, while no other follows
        self._loads: dict[str, dict[str, _Load]] = {}  # task -> agent -> what is prefetched for it
        self._writing: dict[Transfer, int] = {}  # write-backs -> their replica
        if hosts:
            for number, replica in enumerate(cluster.replicas):
                replica.cache.on_evict = partial(self._write_back, number)
                replica.cache.worth = worth
                replica.reload = self._reload

    # ---- between replicas

    def carry(self, call: InFlight, source: int, target: int, blocks: int) -> None:
        """Copy the first blocks of a withdrawn call's prompt from where it waited, then hand it over."""
        nodes = self._cluster.views
        kind = "nvlink" if nodes[source].node == nodes[target].node else "net"
        ports = ((f"{kind} out", source), (f"{kind} in", target))
        self._cluster.views[target].loads[target] += 1  # it counts there while it is on the way

        def arrive() -> None:
            call.carried_tokens = blocks * BLOCK_TOKENS
            if self._arrive(call, target, 0, blocks) != target:
                call.carried_tokens = 0

        if blocks:
            self._send(STEAL, call.plan.task.number, source, target, blocks, ports, arrive)
        else:
            arrive()

    def _arrive(self, call: InFlight, target: int, start: int, upto: int) -> int:
        """Hand a call over with what was brought for it; returns its replica, another one if the target has failed."""
        cluster = self._cluster
        now: int = cluster.env.now  # type: ignore[assignment]
        cluster.views[target].loads[target] -= 1
        place = target if cluster.placed is None else cluster.available(call, target)
        if place == target:
            call.carried_from, call.carried = start, upto
        cluster.hand_over(call, place, now)
        cluster.replicas[place].arrived(now)
        return place

    # ---- to host memory and back

    def _write_back(self, replica: int, pieces: list[Any]) -> None:
        """Evicted blocks go to host memory, where they are found once the copy is there; what is there needs none.

        The replica may use their memory at once: the copy reads from a buffer that is not counted.
        """
        host = self._hosts[self._cluster.views[replica].node]
        missing = host.missing(pieces)
        if not missing:
            host.put(pieces)
            return

        def arrive() -> None:
            del self._writing[transfer]
            host.put(pieces)

        transfer = self._send(
            WRITE_BACK, -1, replica, -1 - self._cluster.views[replica].node, missing, self._host_ports[replica][0],
            arrive,
        )  # fmt: skip
        self._writing[transfer] = replica

    def _reload(self, call: InFlight, start: int, limit: int) -> bool:
        """Bring what host memory has of a prompt beyond its first `start` blocks, for a call that is about to start.

        Returns whether the call now waits for that; it comes back to its replica with it. A call asks once.
        """
        if call.asked:
            return False
        call.asked = True
        target = call.place
        upto = self._reloadable(call, target, start, limit)
        if upto <= start:
            return False
        call.reloaded_tokens = (upto - start) * BLOCK_TOKENS
        self._expect(call, target)
        number = call.plan.task.number
        self._from_host(RELOAD, number, target, upto - start, lambda: self._reloaded(call, target, start, upto))
        return True

    def _reloadable(self, call: InFlight, target: int, start: int, limit: int) -> int:
        """Up to which block of a path, at most `limit`, host memory has all from `start` on."""
        replica = self._cluster.replicas[target]
        host = self._hosts[replica.view.node]
        path = replica.path_of(call)
        upto: int = host.match(path, start, limit)
        if upto > start:
            host.touch(path, start, upto)
        return upto

    def _reloaded(self, call: InFlight, target: int, start: int, upto: int) -> None:
        if self._arrive(call, target, start, upto) != target:
            call.reloaded_tokens = 0

    def awaits(self, call: InFlight, target: int) -> bool:
        """Whether a call that is being sent to `target` waits for what is being prefetched for it.

        What comes to another replica, or is of another context, is cancelled.
        """
        request = call.request
        agents = self._idle.get(request.task)
        if agents is not None:
            agents.pop(request.agent, None)
        load = self._loads[request.task].pop(request.agent, None) if request.task in self._loads else None
        if load is None:
            return False
        shared = call.plan.context.shares_with(load.finished.plan.context)
        if load.target != target or shared < load.upto * BLOCK_TOKENS:
            self._cancel(load)
            return False
        load.waiting = call
        call.reloaded_tokens = (load.upto - load.start) * BLOCK_TOKENS
        self._expect(call, target)
        return True

    def _expect(self, call: InFlight, target: int) -> None:
        """The call counts as load of its replica while it is on the way."""
        cluster = self._cluster
        cluster.views[target].loads[target] += 1
        if cluster.placed is not None:
            del cluster.placed[call]

    # ---- ahead of a call

    def finished(self, call: InFlight, now: int) -> None:
        """A call has its last token: a policy may want to see later if its context is still there."""
        if self._prefetch is None or not self._hosts or not self._hosts[self._cluster.views[call.place].node].used:
            return  # nothing of it is there, nor is any likely to be soon
        wait = self._prefetch(call.request, now)
        if wait is None:
            return
        self._idle.setdefault(call.request.task, {})[call.request.agent] = call
        self._cluster.env.call_in(max(1, int(wait)), _PRIORITY, lambda _: self._look(call))

    def _look(self, call: InFlight) -> None:
        """Bring back from host memory what the replica has lost of a context that will be needed."""
        request, cluster = call.request, self._cluster
        now: int = cluster.env.now  # type: ignore[assignment]
        if self._idle.get(request.task, {}).get(request.agent) is not call or not cluster.views[call.place].available:
            return
        tokens = call.plan.prompt_tokens + call.plan.output_tokens - 1
        limit = tokens // BLOCK_TOKENS
        start = cluster.replicas[call.place].cached_blocks(call, now, limit)
        upto = self._reloadable(call, call.place, start, limit)
        if upto <= start:
            return
        load = _Load(call, call.place, start, upto)
        self._loads.setdefault(request.task, {})[request.agent] = load
        number = call.plan.task.number
        load.transfer = self._from_host(PREFETCH, number, load.target, upto - start, lambda: self._prefetched(load))

    def _prefetched(self, load: _Load) -> None:
        if load.waiting is not None:
            self._reloaded(load.waiting, load.target, load.start, load.upto)
            return
        request = load.finished.request
        del self._loads[request.task][request.agent]
        if self._cluster.views[load.target].available:
            now: int = self._cluster.env.now  # type: ignore[assignment]
            self._cluster.replicas[load.target].bring(load.finished, load.start, load.upto, now)

    def left(self, plan: PlannedTask) -> None:
        """A task has ended: nothing needs to be brought for it."""
        task = plan.task.name
        self._idle.pop(task, None)
        for load in self._loads.pop(task, {}).values():
            self._cancel(load)
        for replica in self._cluster.replicas:
            if replica.brought:
                replica.brought = [item for item in replica.brought if item[0].request.task != task]

    def failed(self, replica: int) -> None:
        """What was on its way from a replica's memory, or to it without being waited for, is lost."""
        for transfer in [transfer for transfer, source in self._writing.items() if source == replica]:
            del self._writing[transfer]
            self._stop(transfer)
        for agents in self._loads.values():
            for agent in [agent for agent, load in agents.items() if load.target == replica]:
                self._cancel(agents.pop(agent))

    # ---- transfers

    def _from_host(self, kind: int, task: int, target: int, blocks: int, done: Callable[[], None]) -> Transfer:
        node = self._cluster.views[target].node
        return self._send(kind, task, -1 - node, target, blocks, self._host_ports[target][1], done)

    def _send(
        self, kind: int, task: int, source: int, target: int, blocks: int, ports: tuple[Port, ...],
        done: Callable[[], None],
    ) -> Transfer:  # fmt: skip
        """source, target: a replica, or -1 - node for its host memory."""
        size = blocks * self._block_bytes
        started: int = self._cluster.env.now  # type: ignore[assignment]

        def ended(cancelled: bool = False) -> None:
            now: int = self._cluster.env.now  # type: ignore[assignment]
            self._beside(source, target, -1, now)
            log = self._log
            log.append(log.pack(kind, task, source, target, size, started, now, int(cancelled)))
            if not cancelled:
                done()

        self._beside(source, target, 1, started)
        return self._links.send(ports, size, ended)

    def _beside(self, source: int, target: int, change: int, now: int) -> None:
        """Tell the replicas at both ends how many directions copies run in."""
        for counts, replica in ((self._outbound, source), (self._inbound, target)):
            if replica >= 0:
                counts[replica] += change
                directions = (self._outbound[replica] > 0) + (self._inbound[replica] > 0)
                self._cluster.replicas[replica].copies_run(directions, now)

    def _cancel(self, load: _Load) -> None:
        if load.transfer is not None:
            self._stop(load.transfer)

    def _stop(self, transfer: Transfer) -> None:
        self._links.cancel(transfer)
        ended: Any = transfer.done
        ended(cancelled=True)
