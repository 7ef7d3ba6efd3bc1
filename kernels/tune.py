"""The tiles of tiles.py against their alternatives, on the GPU at hand: python -m kernels.measure --tune"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from kernels.bench import Bench, TooLarge
from kernels.cases import WrongResult, decode_calls, prefill_calls
from kernels.tiles import ALTERNATIVES, Tile, capability, decode_tile, prefill_tile
from kernels.timing import time_graph

import triton  # isort: skip  # after kernels.device

__all__ = ["tune"]

CASES: dict[str, list[dict[str, Any]]] = {
    "decode_attention": [{"batch": b, "context": c} for b, c in ((1, 16_384), (16, 4096), (128, 4096))],
    "prefill_attention": [{"chunk": c, "prefix": p} for c, p in ((512, 16_384), (4096, 0), (16_384, 0))],
}
DRY_CASES: dict[str, list[dict[str, Any]]] = {
    "decode_attention": [{"batch": 2, "context": 40}],
    "prefill_attention": [{"chunk": 5, "prefix": 20}],
}
CALLS: dict[str, Callable[..., Any]] = {"decode_attention": decode_calls, "prefill_attention": prefill_calls}
CHOSEN = {"decode_attention": decode_tile, "prefill_attention": prefill_tile}


def tune(bench: Bench) -> None:
    """Print, for each kernel, head size and page size, the time of every tile over the chosen one's, the best first.

    The mean of the ratios over the cases decides. Tiles that need more shared memory than there is are left out.
    """
    for kernel, cases in (DRY_CASES if bench.dry else CASES).items():
        for head_dim in (64, 128):
            for page in (16,) if bench.dry else (16, 64, 128):
                _tune_one(bench, kernel, cases, head_dim, page)


def _tune_one(bench: Bench, kernel: str, cases: list[dict[str, Any]], head_dim: int, page: int) -> None:
    chosen = CHOSEN[kernel](head_dim, torch.bfloat16, capability(bench.device))
    heads = {"heads": 4, "kv_heads": 2} if bench.dry else {"heads": 32, "kv_heads": 8}
    tiles = ALTERNATIVES[kernel][:1] if bench.dry else ALTERNATIVES[kernel]
    times: dict[Tile, list[float]] = {}
    for tile in dict.fromkeys([chosen, *tiles]):
        try:
            times[tile] = [
                _time(bench, kernel, {**case, **heads, "head_dim": head_dim, "page": page}, tile) for case in cases
            ]
        except (triton.runtime.errors.OutOfResources, TooLarge, WrongResult) as reason:
            print(f"{kernel} head_dim {head_dim} page {page}: {tile} left out: {str(reason)[:80]}")
    base = times.get(chosen)
    if base is None:
        return
    ratios = {tile: [a / b for a, b in zip(taken, base, strict=True)] for tile, taken in times.items()}
    for tile, ratio in sorted(ratios.items(), key=lambda item: sum(item[1])):
        mark = "chosen" if tile == chosen else ""
        print(f"{kernel} head_dim {head_dim} page {page}: {[round(r, 3) for r in ratio]} {tile} {mark}", flush=True)


def _time(bench: Bench, kernel: str, params: dict[str, Any], tile: Tile) -> float:
    calls, check = CALLS[kernel](bench, params, tile)
    samples = time_graph(calls, bench.device)
    check()
    return median(samples)
