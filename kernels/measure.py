"""Measure every kernel on this GPU into a CSV file: python -m kernels.measure --out FILE.csv [--quick] [--minutes M]

Rows that FILE has already are not measured again, each new one is on disk at once, and the most valuable come first, so
that a run may be cut short and taken up again. --dry-run goes through all of it in Triton's interpreter, on a tiny
grid: its rows say so in their device column and measure nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kernels.bench import Bench
    from kernels.grid import Spec
    from kernels.rows import RowFile

__all__ = ["main"]


class Progress:
    """A line on stderr for each row: what, how fast, how much is left of the rows and of the time."""

    def __init__(self, rows: int, seconds: float) -> None:
        self._rows, self._start, self._seconds, self._done = rows, time.monotonic(), seconds, 0

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start

    @property
    def expired(self) -> bool:
        return self.elapsed_s >= self._seconds

    def line(self, text: str) -> None:
        self._done += 1
        left = self.elapsed_s / self._done * (self._rows - self._done)
        left = min(left, max(0.0, self._seconds - self.elapsed_s))
        print(f"[{self._done}/{self._rows}, {left / 60:.1f} min left] {text}", file=sys.stderr, flush=True)


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m kernels.measure", description=__doc__)
    parser.add_argument("--out", type=Path, help="the CSV file; rows in it are kept and not measured again")
    parser.add_argument("--quick", action="store_true", help="ceilings, targets and a coarse grid")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop before a row that would start later")
    parser.add_argument("--only", default="", help="kernels whose name contains this")
    parser.add_argument("--dry-run", action="store_true", help="tiny grid in the interpreter, on the CPU")
    parser.add_argument("--tune", action="store_true", help="time the alternatives to each tile instead; no file")
    options = parser.parse_args(arguments)
    if options.out is None and not options.tune:
        parser.error("--out FILE.csv is missing")
    if options.minutes != options.minutes or options.minutes <= 0:
        parser.error(f"--minutes is {options.minutes}; expected a number above 0")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out: {options.out.parent} is no folder; expected one that exists")
    return options


def _prepare(dry: bool) -> None:
    """Choose between GPU and interpreter, before triton is imported. Exits where there is no GPU to measure."""
    import torch

    if dry:
        os.environ["TRITON_INTERPRET"] = "1"
    elif os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
        sys.exit("kernels.measure: no GPU here; expected one, or --dry-run to try the interpreter")


def _seconds(value: float) -> str:
    return f"{value * 1e6:.1f} us" if value < 1e-3 else f"{value * 1e3:.3f} ms"


def _run(bench: Bench, specs: list[Spec], file: RowFile, progress: Progress) -> int:
    """Measure what is left; the number of rows that came out wrong."""
    from kernels.bench import TooLarge
    from kernels.cases import WrongResult, measured
    from kernels.rows import params_text, summarised

    wrong = 0
    for spec in specs:
        if progress.expired:
            print("kernels.measure: time is up; the same command goes on from here", file=sys.stderr)
            break
        what = f"{spec.kernel} {params_text(spec.params)}"
        try:
            samples, unit = measured(bench, spec)
        except TooLarge as reason:
            progress.line(f"{what}: left out, {reason}")
            continue
        except WrongResult as reason:
            wrong += 1
            progress.line(f"{what}: WRONG, {reason}")
            continue
        file.add(spec.kernel, spec.dtype, spec.params, unit, samples, datetime.now(UTC).isoformat(timespec="seconds"))
        median = summarised(samples)[0]
        progress.line(f"{what}: {_seconds(median) if unit == 's' else f'{median / 1e9:.1f} GB/s'}")
    return wrong


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 if a kernel computed something wrong (such rows are not written); 2 for mistakes of the user."""
    options = _arguments(arguments)
    _prepare(options.dry_run)
    from kernels.bench import Bench, provenance
    from kernels.grid import full_grid, tiny_grid
    from kernels.rows import RowFile, RowFileError, params_text

    bench = Bench()
    if options.tune:
        from kernels.tune import tune

        tune(bench)
        return 0
    try:
        file = RowFile(options.out, provenance())
    except (RowFileError, OSError) as error:
        print(f"kernels.measure: {error}", file=sys.stderr)
        return 2
    if file.repaired:
        print(f"kernels.measure: {options.out}: took off a last line that was cut short", file=sys.stderr)
    specs = tiny_grid() if bench.dry else full_grid(options.quick)
    specs = [spec for spec in specs if options.only in spec.kernel]
    left = [spec for spec in specs if (spec.kernel, spec.dtype, params_text(spec.params)) not in file]
    print(f"kernels.measure: {len(left)} rows to measure, {len(specs) - len(left)} known", file=sys.stderr)
    wrong = _run(bench, left, file, Progress(len(left), options.minutes * 60))
    if wrong:
        print(f"kernels.measure: {wrong} rows were wrong and were not written", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
