"""What tasks of a kind took so far: the expectation that a real system could have, learned online, never the truth."""

from __future__ import annotations

__all__ = ["Expectation"]


class Expectation:
    """Mean task completion time by type of agent, of the tasks that ended before; of all tasks for an unknown type.

    What is learned at a moment counts after it, so that equal times do not depend on the order of events.
    """

    __slots__ = ("_fresh", "_known")

    def __init__(self) -> None:
        self._known: dict[str | None, tuple[int, int]] = {}  # type (None: any) -> tasks, sum of their times in ps
        self._fresh: list[tuple[int, str, int]] = []

    def learn(self, now: int, agent: str, tct_ps: int) -> None:
        """A task of this type of agent has ended after tct_ps."""
        self._fresh.append((now, agent, tct_ps))

    def at(self, now: int, agent: str) -> int | None:
        """Mean in ps, rounded down; None while no task has ended."""
        fresh = self._fresh
        if fresh and fresh[0][0] < now:
            self._fresh = []
            for learned in fresh:
                if learned[0] < now:
                    for key in (learned[1], None):
                        tasks, total = self._known.get(key, (0, 0))
                        self._known[key] = (tasks + 1, total + learned[2])
                else:
                    self._fresh.append(learned)
        tasks, total = self._known.get(agent) or self._known.get(None) or (0, 0)
        return total // tasks if tasks else None
