"""Hypothesis strategies: small workloads that reach every corner of the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from sagasim.config import Config
from sagasim.core import Call, Prefix, Task, Tool
from sagasim.cost import constant_calibration

MAX_MODEL_LEN = 512

MINE = str(Path(__file__).parent / "policies" / "mine.py")
ROUTES = [
    "round-robin",
    "saga-affinity",
    "least-loaded",
    "session-affinity",
    "prefix-affinity",
    f"{MINE}:cheapest",
    f"{MINE}:roomiest",
]
PREFIXES = (Prefix("tools", 40), Prefix("system", 25, "tools", 40), Prefix("other", 30, "tools", 17))


@st.composite
def tasks(draw: st.DrawFn, max_tasks: int = 6, max_calls: int = 7) -> list[Task]:
    """Tasks with forks, compaction, retries, parallel calls, joins, shared prefixes and equal times."""
    made = []
    for number in range(draw(st.integers(1, max_tasks))):
        calls: list[Call] = []
        behind: dict[str, set[str]] = {}
        for index in range(draw(st.integers(1, max_calls))):
            call = draw(_call(calls, behind, index))
            calls.append(call)
            behind[call.name] = set(call.after).union(*(behind[name] for name in call.after))
        arrival = draw(st.sampled_from([0, 0, 1000, 5000, 12345]))
        made.append(Task(f"task{number}", tuple(calls), arrival_ps=arrival, prefixes=PREFIXES))
    return sorted(made, key=lambda task: task.arrival_ps or 0)


@st.composite
def crowds(draw: st.DrawFn) -> list[Task]:
    """Many long calls at once: memory runs out under running calls, prompts are chunked beside others that decode."""
    made = []
    for number in range(draw(st.integers(3, 8))):
        calls: list[Call] = []
        for index in range(draw(st.integers(1, 3))):
            before = calls[-1] if calls else None
            keep = 0 if before is None else before.prompt_tokens + before.output_tokens
            keep = draw(st.sampled_from([keep, keep, keep // 2]))
            new, output = draw(st.integers(1, 150)), draw(st.integers(1, 150))
            if keep + new + output > MAX_MODEL_LEN:
                break
            parent = before.name if before is not None else None
            calls.append(Call(f"c{index}", new, output, parent, keep, (parent,) if parent is not None else ()))
        made.append(Task(f"task{number}", tuple(calls), arrival_ps=draw(st.sampled_from([0, 0, 150, 4000]))))
    return sorted(made, key=lambda task: task.arrival_ps or 0)


@st.composite
def crowded(draw: st.DrawFn) -> Config:
    """One replica with just enough memory for the longest context."""
    fixed = {"route": "round-robin", "max_num_seqs": 8, "num_gpu_blocks_override": draw(st.sampled_from([33, 40, 60]))}
    return draw(configs(gpus=1, **fixed))


@st.composite
def sessions(draw: st.DrawFn) -> list[Task]:
    """Agents whose contexts grow from call to call, with tools as long as calls: contexts idle and are evicted."""
    made = []
    for number in range(draw(st.integers(3, 7))):
        calls: list[Call] = []
        for index in range(draw(st.integers(2, 6))):
            before = calls[-1] if calls else None
            keep = 40 if before is None else before.prompt_tokens + before.output_tokens
            keep = draw(st.sampled_from([keep, keep, keep, keep // 2]))
            new, output = draw(st.integers(1, 90)), draw(st.integers(1, 40))
            if keep + new + output > MAX_MODEL_LEN:
                break
            tools = (Tool("t", draw(st.sampled_from([0, 3_000, 20_000, 100_000, 400_000]))),)
            parent = "tools" if before is None else before.name
            after = () if before is None else (before.name,)
            calls.append(Call(f"c{index}", new, output, parent, keep, after, tools=tools))
        if len(calls) > 1 and draw(st.booleans()):
            root = calls[0]
            calls.append(Call("side", 30, 9, root.name, root.prompt_tokens, (root.name,), agent="side"))
        arrival = draw(st.sampled_from([0, 0, 10_000, 50_000]))
        made.append(Task(f"task{number}", tuple(calls), f"tenant{number % 2}", arrival, PREFIXES))
    return sorted(made, key=lambda task: task.arrival_ps or 0)


@st.composite
def tiered(draw: st.DrawFn) -> Config:
    """Replicas that share host memory; whole numbers of microseconds are too long for epochs here."""
    fixed = {
        "num_gpu_blocks_override": draw(st.sampled_from([34, 36, 50])),
        "host_memory_gb": draw(st.sampled_from([0.01, 0.05, 0.5])),  # 5, 25 and 256 blocks
        "gpu": "rtx4090",  # whose node memory sets no limit
        "host_gb_per_s": draw(st.sampled_from([1e5, 1e6])),  # 21 and 2 ns a block
        "prefix_caching": True,
        "balance_epoch_s": 1e-6,
        "preempt_after_s": 1e-6,
        "preempt": draw(st.sampled_from(["none", "urgency", f"{MINE}:youngest"])),
        "prefetch": draw(
            st.sampled_from(["tool-end", *(f"{MINE}:always:after_ps={n}" for n in (2_000, 15_000, 90_000))])
        ),
    }
    return draw(configs(**fixed))


@st.composite
def _call(draw: st.DrawFn, calls: list[Call], behind: dict[str, set[str]], index: int) -> Call:
    names = [call.name for call in calls]
    after = (
        (names[-1],)
        if names and draw(st.booleans())
        else tuple(draw(st.sets(st.sampled_from(names), max_size=2)))
        if names
        else ()
    )
    output = draw(st.integers(1, 40))
    parent = draw(st.sampled_from([None, "tools", "system", "other", *names, *names, *names]))
    sizes = {"tools": 40, "system": 65, "other": 47}
    if parent is None:
        keep = 0
    elif parent in sizes:
        keep = draw(st.sampled_from([sizes[parent], sizes[parent], draw(st.integers(0, sizes[parent]))]))
    else:
        most = _most_kept(calls, behind, parent, after)
        keep = draw(
            st.sampled_from(
                [most, most, min(most, calls[names.index(parent)].prompt_tokens), draw(st.integers(0, most))]
            )
        )
    most_new = MAX_MODEL_LEN - keep - output
    new = draw(st.one_of(st.integers(0, 40), st.sampled_from([0, 0, 16, 16 - keep % 16, 120])))
    new = min(new, most_new)
    if keep + new < 1:
        new = 1
    if keep + new + output > MAX_MODEL_LEN:
        keep, new, parent = 0, 5, None
    tools = tuple(Tool("t", draw(st.sampled_from([0, 0, 100, 1000, 7777]))) for _ in range(draw(st.integers(0, 2))))
    delay = draw(st.sampled_from([0, 0, 0, 500]))
    return Call(f"c{index}", new, output, parent, keep, after, delay, tools)


def config(**changes: Any) -> Config:
    """A tiny resolved configuration: one replica of 8 B on one GPU, little memory."""
    base = Config(
        gpus=1,
        tp=1,
        model="llama-3.1-8b",
        max_model_len=MAX_MODEL_LEN,
        num_gpu_blocks_override=34,
        max_num_batched_tokens=64,
        max_num_seqs=8,
        arrivals="recorded",
    )
    return replace(base, **changes)


@st.composite
def configs(draw: st.DrawFn, **fixed: Any) -> Config:
    replicas = draw(st.integers(1, 3))
    seqs = draw(st.sampled_from([1, 2, 8]))
    changes: dict[str, Any] = {
        "gpus": replicas,
        "route": draw(st.sampled_from(ROUTES)),
        "order": draw(st.sampled_from(["fcfs", "fcfs", "lifo", "afs", f"{MINE}:shortest"])),
        "evict": draw(st.sampled_from(["lru", "lru", f"{MINE}:largest", f"{MINE}:ageing", "wa-lru", "wa-lru"])),
        "predict": draw(st.sampled_from(["aeg:cold_start=1", "aeg:hints=fitted", "aeg:hints=perfect"])),
        "balance": draw(st.sampled_from(["none", "none", "steal", "steal:ratio=1.0"])),
        "balance_carries": draw(st.booleans()),
        "balance_epoch_s": draw(st.sampled_from([1e-6, 2e-6])),
        "preempt": draw(st.sampled_from(["none", "none", "urgency", f"{MINE}:youngest"])),
        "preempt_after_s": draw(st.sampled_from([1e-6, 5e-6])),
        "host_memory_gb": draw(st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.5])),  # 5, 25 and 256 blocks
        "host_gb_per_s": draw(st.sampled_from([1e5, 1e6])),
        "prefetch": draw(st.sampled_from(["none", f"{MINE}:always", "tool-end"])),
        "copy_slowdown": draw(st.sampled_from([1.0, 1.6])),
        "copy_slowdown_both": draw(st.sampled_from([1.6, 3.0])),
        "reserve_full_prompt": draw(st.sampled_from([False, False, True])),
        "evict_batch_blocks": draw(st.sampled_from([1, 3, 16])),
        "prefix_caching": draw(st.sampled_from([True, True, True, False])),
        "async_scheduling": draw(st.booleans()),
        "stop": draw(st.sampled_from(["eos", "length"])),
        "max_num_seqs": seqs,
        "max_num_batched_tokens": draw(st.sampled_from([8, 16, 40, 64, 512])),
        "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 7, 20])),
        "num_gpu_blocks_override": draw(st.sampled_from([33, 34, 36, 40, 60, 500])),
    }
    closed = draw(st.sampled_from([None, None, 1, 3]))
    if closed is not None:
        changes |= {"arrivals": "closed", "concurrency": closed}
    return config(**(changes | fixed))


@st.composite
def failures(draw: st.DrawFn) -> str:
    """Some of three replicas fail or are drained, one after the other, within the first 300 us."""
    items, now = [], 0
    for _ in range(draw(st.integers(1, 3))):
        now += draw(st.integers(1, 60))
        length = draw(st.integers(1, 40))
        items.append(f"{draw(st.integers(0, 2))}@{now / 10**6:.6f}{draw(st.sampled_from('++~'))}{length / 10**6:.6f}")
        now += length
    return ",".join(items)


@st.composite
def calibrations(draw: st.DrawFn) -> dict[str, Any]:
    """Costs that make ties (everything constant), or none, or change slope within a call."""
    made = constant_calibration(
        draw(st.sampled_from([1, 100, 997])),
        decode_ps=draw(st.sampled_from([0, 1, 13])),
        prefill_token_ps=draw(st.sampled_from([0, 3])),
    )
    made["host"] = {
        "base_ps": draw(st.sampled_from([0, 300, 2500])),
        "per_sequence_ps": draw(st.sampled_from([0, 11])),
        "per_token_ps": 0,
    }
    two, four = draw(st.sampled_from([100, 800])), draw(st.sampled_from([900, 9000]))
    made["decode_attention"] = {
        "batch": [1, 2, 4],
        "context": [1, 16, 64, 256],
        "ps": [[0, 50, 700, 2000], [0, 60, two, 3000], [10, 90, 900, four]],
    }
    return made


def _most_kept(calls: list[Call], behind: dict[str, set[str]], parent: str, after: tuple[str, ...]) -> int:
    """How much of a context a call that runs after these may keep: outputs only of calls that have ended."""
    by_name = {call.name: call for call in calls}
    owner = by_name[parent]
    if parent in after or any(parent in behind[name] for name in after):
        return owner.prompt_tokens + owner.output_tokens
    if owner.extends not in by_name:
        return owner.prompt_tokens
    above = _most_kept(calls, behind, owner.extends, after)
    return owner.prompt_tokens if above >= owner.keep_tokens else above


def slowed(part: Any, factor: float, key: str = "") -> Any:
    """A calibration with every time multiplied."""
    if isinstance(part, dict):
        return {k: v if k == "provenance" else slowed(v, factor, k) for k, v in part.items()}
    if isinstance(part, list):
        return [slowed(v, factor, key) for v in part]
    times = key == "ps" or key.endswith("_ps") or key.startswith("per_")
    return round(part * factor) if times and not isinstance(part, (bool, str)) else part
