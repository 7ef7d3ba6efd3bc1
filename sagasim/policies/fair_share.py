"""Agent Fair Share between tenants (SAGA, Eqs. 8 and 9): what each is entitled to, and what it has had of late.

AFS_i = weight_i * sum over tenant i's tasks of remaining GPU work / (deadline - now); the share of tenant i is AFS_i
over the sum of all. What a tenant has had is the time of its calls, from first scheduled to finished, in the current
window and the one before.
"""

from __future__ import annotations

from sagasim.errors import PolicyError
from sagasim.seams import Request

__all__ = ["FairShare", "parse_weights"]

_WINDOW_PS = 30 * 10**12


def parse_weights(text: str) -> dict[str, float]:
    """`gold@3+basic@1`; a tenant that is not named has 1. Raises PolicyError."""
    weights: dict[str, float] = {}
    for item in filter(None, text.split("+")):
        name, at, number = item.rpartition("@")
        try:
            weights[name] = float(number)
        except ValueError:
            at = ""
        if not at or not 1e-6 <= weights[name] <= 1e6:
            expected = "TENANT@WEIGHT+..., weights from 1e-6 to 1e6"
            raise PolicyError(f"{item!r} is no weight", where="afs", expected=expected)
    return weights


class FairShare:
    """The tasks at work and the service of each tenant, told as it happens."""

    def __init__(self) -> None:
        self.tasks: dict[str, tuple[str, int, int | None]] = {}  # task -> tenant, arrival, expected completion time, ps
        self.tenants: dict[str, int] = {}  # tasks at work of each tenant that has any
        self.factors: dict[tuple[object, ...], tuple[int, dict[str, float]]] = {}  # of policies, for a while
        self._served: dict[str, list[int]] = {}  # tenant -> ps in this window and the last one
        self._window = 0

    def sent(self, request: Request) -> None:
        """A call is sent: its task is at work."""
        if request.task not in self.tasks:
            self.tasks[request.task] = (request.tenant, request.arrival_ps, request.expected_tct_ps)
            self.tenants[request.tenant] = self.tenants.get(request.tenant, 0) + 1

    def ended(self, tenant: str, service_ps: int, now_ps: int) -> None:
        """A call of the tenant has had so much service."""
        window = now_ps // _WINDOW_PS
        if window != self._window:
            for served in self._served.values():
                served[1] = served[0] if window == self._window + 1 else 0
                served[0] = 0
            self._window = window
        self._served.setdefault(tenant, [0, 0])[0] += service_ps

    def left(self, task: str) -> tuple[str, int, int | None] | None:
        """A task has ended; returns what was known of it."""
        told = self.tasks.pop(task, None)
        if told is not None:
            self.tenants[told[0]] -= 1
            if not self.tenants[told[0]]:
                del self.tenants[told[0]]
        return told

    def had(self) -> dict[str, float]:
        """The part of all service that each tenant had of late."""
        sums = {tenant: sum(served) for tenant, served in self._served.items()}
        total = sum(sums.values())
        return {tenant: part / total for tenant, part in sums.items()} if total else {}

    @staticmethod
    def of(urgencies: dict[str, float], weights: dict[str, float]) -> dict[str, float]:
        """The share of each tenant, from the sums of its tasks' urgencies (Eq. 9)."""
        weighted = {tenant: urgency * weights.get(tenant, 1.0) for tenant, urgency in urgencies.items()}
        total = sum(weighted.values())
        return {tenant: part / total for tenant, part in weighted.items()} if total > 0 else {}
