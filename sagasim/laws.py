"""Laws that every run obeys, whatever the policies; a broken one is a bug of the simulator and raises LawError.

1. Conservation: every call of every task is finished exactly once, with the tokens that the trace gives it; of a task
   that the end of the run cut off, some are not.
2. Causality: sent <= admitted < first token <= finished; a call is sent when all it waits for is done, not before.
3. Memory: held and cached blocks never exceed those there are; nothing is held once all is done.
4. Cache: a hit is whole blocks, leaves a token to compute, and was computed on that replica before or copied to it.
5. Time: a replica is busy no longer than its last step's end, and runs no more calls at a time than it may.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sagasim.core import Task
from sagasim.errors import LawError
from sagasim.eventlog import UNFINISHED, Columns
from sagasim.units import BLOCK_TOKENS

__all__ = ["check_log", "check_tasks"]


def check_log(
    calls: Columns,
    tasks: Columns,
    occupancy: Columns,
    replicas: Columns,
    *,
    max_num_seqs: int,
    began_again: bool = False,
) -> None:
    """The laws that need nothing but the log. began_again: replicas failed, and calls left traces elsewhere."""
    finished = np.bincount(calls["task"], minlength=len(tasks["task"]))
    _hold("every call is finished once", (finished == tasks["calls"]) | (tasks["finished_ps"] == UNFINISHED))
    _hold("no call is finished twice", finished <= tasks["calls"])
    _hold("sent <= admitted", calls["submitted_ps"] <= calls["admitted_ps"])
    _hold("admitted < first token", calls["admitted_ps"] < calls["first_token_ps"])
    _hold("first token <= finished", calls["first_token_ps"] <= calls["finished_ps"])
    several = calls["output_tokens"] > 1
    _hold("several tokens take time", (calls["first_token_ps"] < calls["finished_ps"]) | ~several)
    _hold("hits are whole blocks", calls["hit_tokens"] % BLOCK_TOKENS == 0)
    _hold("a hit leaves a token to compute", calls["hit_tokens"] < calls["prompt_tokens"])
    if not began_again and not replicas["in_flight"].any():  # what others computed could be hit, but is not in the log
        _hold("hits were computed before", _computed_before(calls, replicas) >= calls["hit_tokens"])
    total = replicas["num_blocks"][occupancy["replica"]]
    _hold("blocks suffice", occupancy["held_blocks"] + occupancy["cached_blocks"] <= total)
    _hold("counts are not negative", np.minimum(occupancy["held_blocks"], occupancy["cached_blocks"]) >= 0)
    _hold("places suffice", occupancy["running"] <= max_num_seqs)
    _hold("running calls hold blocks", occupancy["running"] <= occupancy["held_blocks"])
    _hold("a reload leaves a token to compute", calls["reloaded_tokens"] < calls["prompt_tokens"])
    _hold("busy no longer than the steps last", replicas["busy_ps"] <= replicas["last_step_end_ps"])


def _computed_before(calls: Columns, replicas: Columns) -> NDArray[np.int64]:
    """Tokens that others may have left on the same replica by the time each call was admitted, at most."""
    bound = np.zeros(len(calls["task"]), dtype=np.int64)
    tokens = calls["prompt_tokens"] + calls["output_tokens"]
    for replica in range(len(replicas["replica"])):
        here = np.flatnonzero(calls["replica"] == replica)
        order = here[np.argsort(calls["admitted_ps"][here], kind="stable")]
        times = calls["admitted_ps"][order]
        before = np.concatenate([[0], np.cumsum(tokens[order])])
        upto = np.searchsorted(times, times, side="right") - 1  # others of the same step count: it is one batch
        copied = calls["carried_tokens"][here].sum() + calls["reloaded_tokens"][here].sum()
        prefetched = replicas["prefetched_blocks"][replica] * BLOCK_TOKENS
        bound[order] = before[upto] + copied + prefetched
    return bound


def check_tasks(calls: Columns, tasks: Columns, replayed: Sequence[Task]) -> None:
    """The laws that compare the log with what was to be replayed."""
    if len(tasks["task"]) != len(replayed):
        raise LawError(f"{len(replayed)} tasks went in, {len(tasks['task'])} came out")
    expected = [(number, index) for number, task in enumerate(replayed) for index in range(len(task.calls))]
    if expected != list(zip(calls["task"].tolist(), calls["call"].tolist(), strict=True)):
        raise LawError("the finished calls are not the calls of the tasks, each once")
    row = 0
    for number, task in enumerate(replayed):
        rows = slice(row, row + len(task.calls))
        row = rows.stop
        sent = calls["submitted_ps"][rows].tolist()
        done = calls["finished_ps"][rows].tolist()
        arrival, end = int(tasks["arrival_ps"][number]), int(tasks["finished_ps"][number])
        index = {call.name: i for i, call in enumerate(task.calls)}
        last = arrival
        for i, call in enumerate(task.calls):
            ready = max((done[index[name]] + task.calls[index[name]].tool_ps for name in call.after), default=arrival)
            if sent[i] != ready + call.delay_ps:
                raise LawError(f"call {call.name!r} of {task.name!r}: sent at {sent[i]}, due {ready + call.delay_ps}")
            last = max(last, done[i] + call.tool_ps)
        if end != last:
            raise LawError(f"task {task.name!r} ended at {end}, its last tool at {last}")
        if [call.prompt_tokens for call in task.calls] != calls["prompt_tokens"][rows].tolist():
            raise LawError(f"prompts of {task.name!r} are not those of the trace")


def _hold(law: str, holds: NDArray[np.bool_]) -> None:
    if not holds.all():
        raise LawError(f"law broken: {law} (first at row {int(np.flatnonzero(~holds)[0])})")
