"""What a vLLM run leaves as JSON: a line for each request, or the result of `vllm bench serve --save-detailed`.

Both hold lengths and times only, so every request is a task of one call and nothing is shared.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sagasim.core import Call, Task, check_task
from sagasim.errors import TraceError
from sagasim.importers.lines import MAX_ROWS, duration, number, parse, read_document, read_lines, sequence, text, tokens

__all__ = ["read_vllm_bench", "read_vllm_requests"]

MAX_UNIX_S = 1e11


def read_vllm_requests(path: Path) -> Iterator[Task]:
    """One task for each line: request_id, input_toks, output_toks, arrival_time (Unix seconds, optional).

    Arrivals count from the earliest one. Requests without output tokens (null: aborted) are left out; 0 counts as one.
    """
    rows: list[tuple[str, str, int, int, float | None]] = []
    names: set[str] = set()
    for count, line in read_lines(path):
        where = f"{path}:{count}"
        fields = parse(line, where)
        if fields.get("output_toks", 0) is None:
            continue
        name = fields.get("request_id")
        name = f"row {count}" if name is None else text(name, "request_id", where)
        if name in names:
            raise TraceError(f"request {name!r} twice", where=where, expected="request ids unique within the file")
        names.add(name)
        start = fields.get("arrival_time")
        start_s = None if start is None else number(start, "arrival_time", where, 0, MAX_UNIX_S)
        prompt, output = tokens(fields, "input_toks", where, 1), max(tokens(fields, "output_toks", where), 1)
        rows.append((name, where, prompt, output, start_s))
        if len(rows) > MAX_ROWS:
            raise TraceError("too many requests", where=where, expected=f"at most {MAX_ROWS:,} in a file")
    yield from _tasks(rows, path)


def read_vllm_bench(path: Path) -> Iterator[Task]:
    """One task for each request of a benchmark: input_lens, output_lens, and start_times (seconds) where it has them.

    Requests with an error are left out. Older versions write no start_times: the tasks then have no arrival.
    """
    fields = read_document(path)
    prompts, outputs = (sequence(fields.get(key), key, str(path)) for key in ("input_lens", "output_lens"))
    starts, errors = (fields.get(key) for key in ("start_times", "errors"))
    lists = {"output_lens": outputs, "start_times": starts, "errors": errors}
    for key, values in lists.items():
        if values is not None and len(sequence(values, key, str(path))) != len(prompts):
            what = f"{len(values)} {key} for {len(prompts)} input_lens"
            raise TraceError(what, where=str(path), expected="one of each for every request")
    rows = []
    for place, prompt in enumerate(prompts):
        name, where = f"request {place + 1}", f"{path}: request {place + 1}"
        if errors and errors[place]:
            continue
        sizes: dict[str, Any] = {"input_lens": prompt, "output_lens": outputs[place]}
        start_s = number(starts[place], "start_times", where, 0, MAX_UNIX_S) if starts else None
        prompt, output = tokens(sizes, "input_lens", where, 1), max(tokens(sizes, "output_lens", where), 1)
        rows.append((name, where, prompt, output, start_s))
    yield from _tasks(rows, path)


def _tasks(rows: list[tuple[str, str, int, int, float | None]], path: Path) -> Iterator[Task]:
    """The requests as tasks; without arrivals if one of them has none."""
    if not rows:
        raise TraceError("no request that succeeded", where=str(path), expected="at least one")
    starts = [start_s for *_, start_s in rows if start_s is not None]
    first_s = min(starts) if len(starts) == len(rows) else None
    for name, where, prompt, output, start_s in rows:
        arrival = None
        if first_s is not None and start_s is not None:
            arrival = duration(start_s - first_s, "arrival after the first one", where)
        task = Task(name, (Call(name, prompt, output),), arrival_ps=arrival)
        check_task(task, where)
        yield task
