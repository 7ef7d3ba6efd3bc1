"""The targets, as shares measured in the same run: python -m kernels.report FILE.csv

Shares are of the copy bandwidth, GEMM rate and pinned copies in FILE, so that they hold on any GPU; where they come
from: FlashAttention-3 on an H200 (ai-dynamo/aiconfigurator) reaches 513, 586 and 652 TFLOP/s at 4K, 8K and 16K beside a
bf16 GEMM of 790; the target is about 60 % of each.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernels.rows import INTERPRETER, RowFileError, read_rows

__all__ = ["Target", "main", "targets"]

H200_GEMM_TFLOPS = 790
PREFILL_TFLOPS = {4096: 300, 8192: 350, 16_384: 390}
DECODE_SHARES = {(16, 4096): 0.75, (64, 4096): 0.88, (128, 4096): 0.92}  # 256 MiB, 1 GiB, 2 GiB of KV
FLOOR_S = 15e-6
ON_GPU_SHARES = {4096: 0.70, 32_768: 0.85, 65_536: 0.85}
LINK_SHARES = {8192: 0.80, 16_384: 0.80, 24_576: 0.80, 65_536: 0.90, 262_144: 0.90}


@dataclass(frozen=True, slots=True)
class Target:
    """value and least: shares of `of`, or seconds with `most`; value is None where a row is missing."""

    name: str
    value: float | None
    bound: float
    of: str
    at_most: bool = False

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def line(self) -> str:
        word = {None: "not measured", True: "reached", False: "missed"}[self.reached]
        if self.at_most:
            number = "" if self.value is None else f"{self.value * 1e6:.1f} us; "
            return f"{word:13s}{self.name}: {number}at most {self.bound * 1e6:.0f} us"
        number = "" if self.value is None else f"{self.value:.2f} of {self.of}; "
        return f"{word:13s}{self.name}: {number}at least {self.bound:.2f}"


class _Rows:
    """Medians by kernel and parameters."""

    def __init__(self, rows: list[dict[str, str]]) -> None:
        self._rows = [(row["kernel"], json.loads(row["params"]), float(row["median"])) for row in rows]

    def find(self, kernel: str, **params: Any) -> float | None:
        """The median of the first row of a kernel that has these parameters, and no skew."""
        for name, found, median in self._rows:
            if name == kernel and params.items() <= found.items() and "skew" not in found:
                return median
        return None

    def best(self, kernel: str, **params: Any) -> float | None:
        """The greatest median."""
        return max((m for n, p, m in self._rows if n == kernel and params.items() <= p.items()), default=None)


def _share(amount: float, seconds: float | None, rate: float | None) -> float | None:
    return None if seconds is None or rate is None else amount / seconds / rate


def targets(rows: list[dict[str, str]]) -> Iterator[Target]:
    """Every target with what these rows say about it."""
    found = _Rows(rows)
    main: Mapping[str, int] = {"heads": 32, "kv_heads": 8, "head_dim": 128, "page": 16}
    copy = found.best("copy_bandwidth")
    for (batch, context), bound in DECODE_SHARES.items():
        kv_bytes = 4 * 8 * 128 * batch * context
        seconds = found.find("decode_attention", batch=batch, context=context, **main)
        yield Target(f"decode, {kv_bytes >> 20} MiB of KV", _share(kv_bytes, seconds, copy), bound, "copy bandwidth")
    floor = found.find("decode_attention", batch=1, context=16, **main)
    yield Target("decode, floor", floor, FLOOR_S, "", at_most=True)
    gemm = found.find("gemm", m=8192, n=8192, k=8192)
    rate = None if gemm is None else 2 * 8192**3 / gemm
    for chunk, tflops in PREFILL_TFLOPS.items():
        flops = 4 * 32 * 128 * chunk * (chunk + 1) / 2  # causal
        seconds = found.find("prefill_attention", chunk=chunk, prefix=0, **main)
        share = _share(flops, seconds, rate)
        speed = "" if seconds is None else f", {flops / seconds / 1e12:.0f} TFLOP/s"
        yield Target(f"prefill, chunk of {chunk}{speed}", share, tflops / H200_GEMM_TFLOPS, "the GEMM rate")
    for piece, bound in ON_GPU_SHARES.items():
        for method in ("gather", "scatter"):
            pieces = 2**28 // piece
            seconds = found.find("kv_copy", piece_bytes=piece, pieces=pieces, direction="d2d", method=method)
            name = f"{method}, pieces of {piece >> 10} KiB"
            yield Target(name, _share(2 * piece * pieces, seconds, copy), bound, "copy bandwidth")
    for piece, bound in LINK_SHARES.items():
        for direction in ("d2h", "h2d"):
            pieces = 2**28 // piece
            seconds = found.find("kv_copy", piece_bytes=piece, pieces=pieces, direction=direction, method="auto")
            link = found.best("pinned_memcpy", direction=direction)
            name = f"swap {direction}, pieces of {piece >> 10} KiB"
            yield Target(name, _share(piece * pieces, seconds, link), bound, "pinned copy")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 whether targets are reached or not; 2 for a file that says nothing about a GPU."""
    parser = argparse.ArgumentParser(prog="python -m kernels.report", description=__doc__)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    try:
        rows = read_rows(options.file)
    except (RowFileError, OSError) as error:
        print(f"kernels.report: {error}", file=sys.stderr)
        return 2
    devices = sorted({row["device"] for row in rows})
    if len(devices) != 1 or devices == [INTERPRETER]:
        named = ", ".join(devices) or "none"
        print(f"kernels.report: {options.file}: rows of {named}; expected rows of one GPU", file=sys.stderr)
        return 2
    last = max(rows, key=lambda row: row["date"])
    versions = f"driver {last['driver']}, torch {last['torch']}, triton {last['triton']}, commit {last['commit']}"
    print(f"{devices[0]}, {versions}, {last['date']}, {len(rows)} rows")
    found = list(targets(rows))
    for target in found:
        print(target.line())
    print(f"{sum(target.reached is True for target in found)} of {len(found)} reached")
    return 0


if __name__ == "__main__":
    sys.exit(main())
