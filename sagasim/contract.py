"""The contract test of a policy: what `sagasim check SPEC` and the test suite run over every policy.

A policy must decide within range, decide the same on the same input, keep the laws, and give the same log from the fast
and from the reference engine, on a small workload with forks, shared prefixes, parallel calls and little memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sagasim.config import Config
from sagasim.core import Call, Prefix, Task, Tool, check_task
from sagasim.cost import constant_calibration
from sagasim.errors import LawError, PolicyError, nearest
from sagasim.laws import check_tasks
from sagasim.rng import Stream
from sagasim.seams import KINDS, Policy, find, policies
from sagasim.simulate import simulate
from sagasim.units import PS_PER_MS

__all__ = ["check_policy", "contract_tasks"]

_LENGTH = 640


def check_policy(spec: str) -> str:
    """Run the contract test over the policy of a specification; returns one line of what was shown.

    Raises PolicyError with what was broken. A policy's own exception is its author's to read and passes through.
    """
    found = _find(spec)
    named: dict[str, Any] = {found.kind: spec}
    if found.kind == "predict":  # somebody has to ask it
        named |= {"evict": "wa-lru", "order": "afs"}
    elif found.sees_workflow:
        named["predict"] = "truth" if found.clairvoyant else "aeg:cold_start=3"
    if found.kind == "prefetch":  # there has to be something to bring back, and somebody who blocks others
        named["host_memory_gb"] = 0.5
    if found.kind == "preempt":
        named |= {"order": "lifo", "preempt_after_s": 0.02}
    config = replace(_config(), **named)
    tasks = contract_tasks()
    costs = constant_calibration(5 * PS_PER_MS, decode_ps=20_000, prefill_token_ps=30_000_000)
    try:
        fast = simulate(config, tasks, calibration=costs)
        again = simulate(config, tasks, calibration=costs)
        slow = simulate(replace(config, reference=True), tasks, calibration=costs)
        check_tasks(fast.calls, fast.tasks, tasks)
    except LawError as error:
        raise PolicyError(f"{error}", where=spec, expected="a policy that keeps them") from error
    if fast.digest != again.digest:
        raise PolicyError(
            "two runs differ", where=spec, expected="decisions from the arguments and the given rng alone"
        )
    if fast.digest != slow.digest:
        raise PolicyError(
            "the fast and the reference engine differ",
            where=spec,
            expected="decisions from the views and the time alone",
        )
    calls = len(fast.calls["task"])
    return f"{found.kind} policy '{found.name}' keeps the contract: {calls} calls, digest {fast.digest[:12]}"


def _find(spec: str) -> Policy:
    errors = []
    for kind in KINDS:
        try:
            return find(kind, spec)
        except PolicyError as error:
            if not error.what.startswith("unknown") or "parameter" in error.what:
                raise
            errors.append(error)
    name = spec.rpartition(".py:")[2].partition(":")[0]
    names = [f"{policy.name}" for policy in policies()]
    raise PolicyError(f"no policy {name!r}", where=spec, expected=nearest(name, names)) from errors[0]


def _config() -> Config:
    return Config(
        gpus=3,
        tp=1,
        model="llama-3.1-8b",
        arrivals="recorded",
        max_model_len=_LENGTH,
        num_gpu_blocks_override=90,
        max_num_batched_tokens=256,
        max_num_seqs=6,
        evict_batch_blocks=4,
        balance_epoch_s=0.01,
    )


def contract_tasks() -> list[Task]:
    """Forty small tasks of two tenants: shared prefixes, chains with a fork, parallel calls and a join."""
    tasks = []
    for number in range(40):
        rng = Stream(7, "contract", number)
        prefixes = (Prefix("tools", 48), Prefix("system", 33, "tools", 48))
        calls: list[Call] = []
        for index in range(rng.integer(2, 7)):
            before = calls[-1] if calls else None
            kept = 81 if before is None else before.prompt_tokens + before.output_tokens
            if before is not None and rng.uniform() < 0.25:
                kept = rng.integer(1, kept)  # the conversation is cut back
            new, output = rng.integer(1, 60), rng.integer(1, 40)
            if kept + new + output > _LENGTH:
                break
            extends = "system" if before is None else before.name
            after = () if before is None else (before.name,)
            tool = Tool(("shell", "search")[index % 2], rng.integer(0, 900) * PS_PER_MS)
            calls.append(Call(f"c{index}", new, output, extends, kept, after, tools=(tool,)))
        root = calls[0]
        calls.append(Call("side", 20, 15, root.name, root.prompt_tokens, (root.name,), agent="side"))
        calls.append(Call("join", 9, 5, root.name, root.prompt_tokens, (calls[-2].name, "side")))
        task = Task(f"task{number}", tuple(calls), f"tenant{number % 2}", rng.integer(0, 3000) * PS_PER_MS, prefixes)
        check_task(task)
        tasks.append(task)
    return sorted(tasks, key=lambda task: task.arrival_ps or 0)
