"""The requests of a vLLM server's log as tasks: sharing by the hashes of their prompts, what is missing drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from sagasim.core import Task
from sagasim.errors import TraceError
from sagasim.importers.agentic_mooncake import Row, tasks_of
from sagasim.importers.vllm_log import BLOCK_TOKENS, CHARACTERS_PER_TOKEN, Request, ServerLog, read_log
from sagasim.rng import Stream

__all__ = ["open_vllm_log"]

# Log-normal (median, sigma) of production chat: the p50 and p95 of Azure's conversation trace of 2023 (115 and 447
# output tokens, 1,016 and 4,085 prompt tokens; traces/SOURCES.md).
OUTPUT_FIT = (115.0, 0.825)
PROMPT_FIT = (1016.0, 0.846)
MOST_TOKENS = 1_000_000  # of one draw


def open_vllm_log(path: Path) -> tuple[dict[str, str], Callable[[int], Iterator[Task]]]:
    """(what is drawn, the tasks for a seed) of a log. Reads it as a whole and keeps no text of it.

    One task of one call for each request, in the order of the log; arrivals to the second, where every request has a
    time. Prompts share whole blocks of BLOCK_TOKENS tokens whose content is equal from the start.
    """
    log = read_log(path)
    if not log.requests:
        raise TraceError("no request that generates tokens", where=str(path), expected="lines of `Received request`")
    requests = list(log.requests.values())
    outputs = _fit(OUTPUT_FIT, [request.output for request in requests], log.output_tokens)
    prompts = _fit(PROMPT_FIT, [request.prompt for request in requests], log.prompt_tokens)
    return _filled(requests, prompts, outputs), partial(_tasks, log, prompts, outputs)


def _fit(fit: tuple[float, float], known: list[int | None], total: float) -> tuple[float, float]:
    """The distribution of what is not known: scaled so that its mean accounts for the rest of the logged throughput."""
    sigma = fit[1]
    unknown = known.count(None)
    rest = total - sum(value for value in known if value is not None)
    if not unknown or rest <= 0:
        return fit
    return max(rest / unknown, 1.0) / math.exp(sigma**2 / 2), sigma


def _filled(requests: list[Request], prompts: tuple[float, float], outputs: tuple[float, float]) -> dict[str, str]:
    filled = {}
    if any(request.output is None for request in requests):
        filled["output_tokens"] = f"{_text(outputs)}; between min_tokens and max_tokens of the request"
    guessed = [f"{CHARACTERS_PER_TOKEN} characters a token where only the text is logged: an assumption"]
    drawn = [f"{_text(prompts)} where nothing of it is logged, and then shared with none"]
    if parts := (guessed if any(request.guessed for request in requests) else []) + (
        drawn if any(request.prompt is None for request in requests) else []
    ):
        filled["prompt_tokens"] = "; ".join(parts)
    return filled


def _text(fit: tuple[float, float]) -> str:
    return (
        f"log-normal, median {fit[0]:.4g}, sigma {fit[1]:.3g} (that of Azure's conversations of 2023, scaled to the "
        "logged throughput where there is one)"
    )


def _tasks(log: ServerLog, prompts: tuple[float, float], outputs: tuple[float, float], seed: int) -> Iterator[Task]:
    timed = all(request.second is not None for request in log.requests.values())
    rows = {}
    for name, request in log.requests.items():
        stream = Stream(seed, "fill", name)
        prompt = _drawn(stream, prompts, 1, None) if request.prompt is None else request.prompt
        output = request.output
        if output is None:
            output = _drawn(stream, outputs, request.least, request.most)
        hashed = min(prompt, len(request.ids) * BLOCK_TOKENS)
        start_us = request.second * 10**6 if timed and request.second is not None else None
        rows[name] = Row(name, name, request.where, prompt, hashed, max(output, 1), request.ids, (), 0, start_us, ())
    return tasks_of(rows, BLOCK_TOKENS)


def _drawn(stream: Stream, fit: tuple[float, float], least: int, most: int | None) -> int:
    drawn = round(min(stream.lognormal(math.log(fit[0]), fit[1]), MOST_TOKENS))
    return max(drawn if most is None else min(drawn, most), least, 1)
