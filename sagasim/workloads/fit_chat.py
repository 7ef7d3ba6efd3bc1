"""Requests with block ids, and the parents inferred from them, as conversations (traces/SCHEMA.md: mooncake, azure)."""

from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from sagasim.core import Call, Prefix, Task, Tool
from sagasim.errors import TraceError
from sagasim.fill import LLM_S_PER_OUTPUT_TOKEN
from sagasim.importers.lines import mapping, parse, read_lines, sequence, tokens
from sagasim.units import PS_PER_MS, ps_from_s
from sagasim.workloads.fit_rows import quantiles
from sagasim.workloads.fit_scores import normal_scores

__all__ = ["conversations", "fit_single"]

BLOCK_TOKENS = 512
SYSTEM_REQUESTS = 60  # blocks in more requests than these are system prompts, as in the inference of parents


def conversations(requests: Path, turns: Path) -> list[Task]:
    """One task per conversation: a request without a parent and, of its children, always the first."""
    rows = [mapping(parse(line, where), "a request", where) for where, line in _lines(requests)]
    parents = _parents(turns, len(rows))
    children: dict[int, int] = {}
    for row, (parent, _, _) in enumerate(parents):
        if parent is not None:
            children.setdefault(parent, row)
    ids = [sequence(row.get("hash_ids") or [], "hash_ids", str(requests)) for row in rows]
    seen = Counter(block for blocks in ids for block in blocks)
    sizes = [
        (tokens(row, "input_length", str(requests), 1), max(1, tokens(row, "output_length", str(requests))))
        for row in rows
    ]
    found = []
    for root, (parent, _, _) in enumerate(parents):
        if parent is not None:
            continue
        shared = 0
        while shared < len(ids[root]) and seen[ids[root][shared]] > SYSTEM_REQUESTS:
            shared += 1
        found.append(_conversation(root, min(shared * BLOCK_TOKENS, sizes[root][0] - 1), sizes, parents, children))
    return found


def _lines(path: Path) -> list[tuple[str, bytes]]:
    return [(f"{path}:{count}", line) for count, line in read_lines(path)]


def _conversation(
    root: int,
    shared: int,
    sizes: list[tuple[int, int]],
    parents: list[tuple[int | None, int, int]],
    children: dict[int, int],
) -> Task:
    prefixes = (Prefix(f"system/{shared}", shared),) if shared else ()
    prompt, output = sizes[root]
    calls = [Call("0", prompt - shared, output, prefixes[0].name if prefixes else None, shared)]
    row = root
    while (child := children.get(row)) is not None:
        _, blocks, gap_ms = parents[child]
        before, (prompt, output) = calls[-1], sizes[child]
        model_ps = ps_from_s(before.output_tokens * LLM_S_PER_OUTPUT_TOKEN)
        wait = Tool("user", max(gap_ms * PS_PER_MS - model_ps, 10**9))
        calls[-1] = Call(
            before.name,
            before.new_tokens,
            before.output_tokens,
            before.extends,
            before.keep_tokens,
            before.after,
            0,
            (wait,),
        )
        keep = min(blocks * BLOCK_TOKENS, before.prompt_tokens, prompt)
        calls.append(Call(str(len(calls)), prompt - keep, output, before.name, keep, (before.name,)))
        row = child
    return Task(f"row {root}", tuple(calls), prefixes=prefixes)


def _parents(path: Path, count: int) -> list[tuple[int | None, int, int]]:
    """(parent row, blocks shared with it, milliseconds since it) of each request."""
    found: list[tuple[int | None, int, int]] = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        for number, row in enumerate(csv.DictReader(stream)):
            try:
                parent = int(row["parent_row"]) if row["parent_row"] else None
                found.append((parent, int(row["shared_blocks"]), int(row["gap_ms"] or 0)))
            except (KeyError, ValueError, TypeError):
                where = f"{path}:{number + 2}"
                raise TraceError(
                    "no row of parents", where=where, expected="parent_row, shared_blocks, gap_ms"
                ) from None
    if len(found) != count:
        raise TraceError(f"{len(found)} rows", where=str(path), expected=f"one for each of the {count} requests")
    return found


def fit_single(path: Path) -> dict[str, Any]:
    """Prompts and outputs of single requests (columns ContextTokens and GeneratedTokens) and how they correlate."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as stream:
        try:
            sizes = [(int(row["ContextTokens"]), int(row["GeneratedTokens"])) for row in csv.DictReader(stream)]
        except (KeyError, ValueError, TypeError):
            expected = "columns ContextTokens and GeneratedTokens"
            raise TraceError("not the lengths of requests", where=str(path), expected=expected) from None
    prompts, outputs = np.array(sizes, dtype=np.float64).T
    correlation = float(np.corrcoef(normal_scores(prompts), normal_scores(outputs))[0, 1])
    return {
        "n": len(sizes),
        "prompt_tokens": quantiles(prompts),
        "output_tokens": quantiles(outputs),
        "correlation": round(correlation, 4),
    }
