"""Memory and time of reading, validating, describing and converting native traces of growing size (run it by hand).

    python tests/bench_traces.py 500000 2000000

Each step runs in a process of its own; the peak of its resident memory must not grow with the number of calls, but for
some 20 bytes a task.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CALLS_PER_TASK = 20
COMMANDS = {
    "validate": ("trace", "validate"),
    "stats": ("trace", "stats"),
    "convert": ("trace", "convert"),
}


def lines(calls: int) -> Iterator[str]:
    """Tasks that grow call by call, with tools, all lengths different in the way of real traces."""
    yield '{"sagasim_trace":1,"name":"long"}\n'
    state = 1
    for task in range(calls // CALLS_PER_TASK):
        items = []
        for call in range(CALLS_PER_TASK):
            state = state * 6364136223846793005 + 1442695040888963407 & 2**64 - 1
            start = '"extends":"system",' if not call else f'"extends":"{call - 1}",'
            items.append(
                f'{{"name":"{call}",{start}"new_tokens":{state >> 50},"output_tokens":{1 + (state >> 20) % 2000},'
                f'"tools":[{{"name":"shell","s":{(state >> 30) % 90_000_000 / 10**6}}}]}}'
            )
        prefix = '[{"name":"system","new_tokens":900}]'
        yield f'{{"task":"task-{task}","arrival_s":{task % 9000},"prefixes":{prefix},"calls":[{",".join(items)}]}}\n'


def measured(*argv: str) -> tuple[float, float]:
    """(seconds, peak resident MiB) of a command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "sagasim", *argv], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, argv
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [200_000, 800_000]
    with tempfile.TemporaryDirectory() as name:
        for size in sizes:
            path = Path(name) / f"{size}.jsonl"
            with path.open("w") as stream:
                stream.writelines(lines(size))
            print(f"{size:,} calls, {size // CALLS_PER_TASK:,} tasks, {path.stat().st_size / 2**20:,.0f} MiB")
            for what, command in COMMANDS.items():
                extra = ("--out", str(path.with_suffix(".copy"))) if what == "convert" else ()
                seconds, peak_mib = measured(*command, str(path), *extra)
                print(f"  {what:9} {seconds:7.1f} s  {peak_mib:7.1f} MiB")
                path.with_suffix(".copy").unlink(missing_ok=True)
            path.unlink()


if __name__ == "__main__":
    main()
