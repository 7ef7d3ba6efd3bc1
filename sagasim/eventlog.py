"""The log of a run: typed columns of whole numbers, appended while simulating and measured afterwards.

Times are picoseconds of simulated time. Rows come out in a canonical order (CALLS by task and call, TASKS by task,
OCCUPANCY by time and replica), so that two runs are equal exactly when their columns are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CALLS",
    "KINDS_OF_TRANSFERS",
    "OCCUPANCY",
    "REPLICAS",
    "TASKS",
    "TRANSFERS",
    "UNFINISHED",
    "Columns",
    "Table",
    "digest",
]

Columns = Mapping[str, NDArray[np.int64]]

CALLS = (
    "task",  # number of the task in the stream of tasks
    "call",  # index of the call in its task
    "replica",
    "submitted_ps",  # sent by the agent
    "admitted_ps",  # first scheduled
    "first_token_ps",
    "finished_ps",
    "prompt_tokens",
    "output_tokens",
    "kept_tokens",  # of the prompt, what it shares with the context that it extends
    "hit_tokens",  # found in the prefix cache at first admission
    "regenerated_here_tokens",  # prefilled although once cached on this replica, also after a preemption
    "regenerated_elsewhere_tokens",  # of the rest, once cached on another replica
    "preemptions",
    "reused_block_us",  # blocks hit while idle, times how long each had been idle (block microseconds)
    "tool_ps",  # tools after the call
    "carried_tokens",  # of the prompt, copied here from the replica where the call waited before
    "reloaded_tokens",  # of the prompt, copied here from host memory for this call
)
TASKS = ("task", "tenant", "arrival_ps", "finished_ps", "calls", "prompt_tokens", "output_tokens", "tool_ps")
# busy_ps, steps: of all steps decided so far; evicted_blocks: of all so far
OCCUPANCY = (
    "time_ps", "replica", "held_blocks", "cached_blocks", "waiting", "running", "busy_ps", "steps", "evicted_blocks",
)  # fmt: skip
UNFINISHED: Final = -1  # finished_ps of a task that had begun and not ended when the run was cut off
REPLICAS = (
    "replica",
    "num_blocks",
    "calls",
    "steps",
    "busy_ps",
    "last_step_end_ps",
    "evicted_blocks",
    "preemptions",
    "in_flight",  # calls sent here and not finished when the run ended
    "prefetched_blocks",  # put into the cache here before a call asked for them
)
KINDS_OF_TRANSFERS = ("steal", "write_back", "reload", "prefetch")
TRANSFERS = (
    "kind",  # place in KINDS_OF_TRANSFERS: with a stolen call, to host memory, for a call, ahead of one
    "task",  # -1: evicted blocks, of any task
    "source",  # a replica, or -1 - node for its host memory
    "target",
    "bytes",
    "started_ps",
    "ended_ps",
    "cancelled",  # 1: given up at ended_ps
)


class Table:
    """An append-only table of int64 rows: 8 bytes a cell, whatever the number of rows."""

    __slots__ = ("_cells", "append", "names", "pack")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._cells = bytearray()
        # append(pack(cell, ...)): one row, in the order of the names; a third of the time of an array filled by cells
        self.pack = Struct(f"={len(self.names)}q").pack
        self.append = self._cells.extend

    def columns(self, *sort_by: str) -> dict[str, NDArray[np.int64]]:
        """All rows as columns, sorted by the named columns (ties keep the order of arrival)."""
        rows = np.frombuffer(self._cells, dtype=np.int64).reshape(-1, len(self.names))
        if sort_by:
            rows = rows[np.lexsort([rows[:, self.names.index(name)] for name in reversed(sort_by)])]
        return {name: np.ascontiguousarray(rows[:, i]) for i, name in enumerate(self.names)}


def digest(tables: Mapping[str, Columns]) -> str:
    """SHA-256 over the decoded columns: names, lengths and little-endian int64 cells; no file format is involved."""
    sha = hashlib.sha256()
    for table in sorted(tables):
        for name, column in tables[table].items():
            sha.update(f"{table}.{name}:{len(column)};".encode())
            sha.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
    return sha.hexdigest()
