"""Miss counts equal libCacheSim's, on prompts of one block; exported access logs are read there and here."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random

import numpy as np
import pytest

from sagasim.errors import TraceError
from sagasim.oracle.accesses import Log, bare_log, task_accesses
from sagasim.oracle.blocks import replay_blocks
from sagasim.oracle.formats import REQUEST, export, is_foreign, read_foreign, unit_requests
from sagasim.oracle.future import NextUses
from sagasim.oracle.rules import RULES, Setting
from sagasim.oracle.segments import replay_segments
from sagasim.trace import open_trace

lc = pytest.importorskip("libcachesim")

POLICIES = {"lru": "LRU", "fifo": "FIFO", "lfu": "LFU", "s3-fifo": "S3FIFO", "sieve": "Sieve", "belady": "Belady"}
PARTS = (0.01, 0.05, 0.1, 0.25, 0.5)


def write(path: Path, objects: list[int]) -> None:
    """A trace of libCacheSim, by hand."""
    coming: dict[int, int] = {}
    rows = np.zeros(len(objects), dtype=REQUEST)
    for at in range(len(objects) - 1, -1, -1):
        rows[at] = (at, objects[at], 1, coming.get(objects[at], -1))
        coming[objects[at]] = at
    path.write_bytes(rows.tobytes())


def misses_there(path: Path, name: str, size: int) -> int:
    reader = lc.TraceReader(str(path), lc.TraceType.ORACLE_GENERAL_TRACE)
    ratio, _ = getattr(lc, POLICIES[name])(cache_size=size, hashpower=18).process_trace(reader)
    requests = path.stat().st_size // REQUEST.itemsize
    return round(ratio * requests)


def misses_here(log: Log, name: str, size: int) -> int:
    if name in ("lru", "belady"):
        return log.reads - replay_blocks(log, size, name, NextUses(log) if name == "belady" else None)
    return log.reads - replay_segments(log, size, RULES[name](Setting(size)))


def check_counts(path: Path, sizes: Callable[[int], list[int]]) -> None:
    log = bare_log(read_foreign(str(path)), 0, "")
    for size in sizes(log.first):
        for name in POLICIES:
            assert misses_here(log, name, size) == misses_there(path, name, size), (name, size)


@pytest.mark.parametrize("seed", range(4))
def test_miss_counts_on_random_traces(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    objects = [int(random.paretovariate(0.5)) % 2000 if random.random() < 0.9 else i for i in range(5000)]
    path = tmp_path / "random.oracleGeneral"
    write(path, objects)
    check_counts(path, lambda _: [20, 37, 100, 256, 1001])


def recorded(name: str, tasks: int | None) -> Log:
    accesses, sent = task_accesses(islice(open_trace(name).tasks(0), tasks))
    return bare_log(accesses, 0, name, sent)


@pytest.mark.parametrize(("name", "tasks", "blocks"), [("tau-bench", 12, 1), ("mooncake-conversation", 300, 32)])
def test_miss_counts_on_recorded_prompts(name: str, tasks: int, blocks: int, tmp_path: Path) -> None:
    path = tmp_path / "trace.oracleGeneral"
    export(recorded(name, tasks), path, "oracleGeneral", blocks)
    check_counts(path, lambda objects: [int(objects * part) for part in (0.05, 0.3)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "tasks", "blocks"),
    [
        ("mooncake-conversation", None, 32),  # 512 tokens, the blocks that it was recorded in
        ("mooncake-synthetic", None, 32),
        ("tau-bench", None, 1),
        ("weka", 40, 32),
        ("swe-bench-mini", 10, 1),
    ],
)
def test_miss_counts_on_whole_traces(name: str, tasks: int | None, blocks: int, tmp_path: Path) -> None:
    path = tmp_path / "trace.oracleGeneral"
    assert export(recorded(name, tasks), path, "oracleGeneral", blocks) > 50_000
    check_counts(path, lambda objects: [max(20, int(objects * part)) for part in PARTS])


def test_what_is_exported_is_what_each_call_asks_for() -> None:
    """Next requests by their position, objects equal exactly where blocks are, one request for each full block."""
    log = recorded("tau-bench", 3)
    made = np.concatenate(list(unit_requests(log)))
    assert len(made) == sum(access.left for access in log.accesses)
    assert len(set(made["object"].tolist())) == log.first + sum(a.left - a.limit for a in log.accesses) - again(log)
    positions: dict[int, int] = {}
    for at in range(len(made) - 1, -1, -1):
        name = int(made["object"][at])
        assert made["next"][at] == positions.get(name, -1)
        positions[name] = at


def again(log: Log) -> int:
    """Blocks that a call writes beyond what it reads although they were there: ends of prompts on the edge of one."""
    seen: set[int] = set()
    count = 0
    for access, made in zip(log.accesses, unit_requests(log), strict=True):
        names = made["object"].tolist()
        count += len(seen.intersection(names[access.limit :]))
        seen.update(names)
    return count


def test_both_formats_say_the_same(tmp_path: Path) -> None:
    log = recorded("tau-bench", 4)
    binary, text = tmp_path / "a.oracleGeneral", tmp_path / "a.csv"
    assert export(log, binary, "oracleGeneral") == export(log, text, "csv")
    assert is_foreign(str(binary))
    assert is_foreign(str(text))
    counts = []
    for path in (binary, text):
        read = bare_log(read_foreign(str(path)), 0, "")
        counts.append((read.reads, read.first, misses_here(read, "lru", 500), misses_here(read, "belady", 500)))
    assert counts[0] == counts[1]


def test_a_csv_is_read_by_libcachesim(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    export(recorded("tau-bench", 4), path, "csv")
    params = lc.ReaderInitParam(has_header=True, delimiter=",", obj_id_is_num=True)
    params.time_field, params.obj_id_field, params.obj_size_field = 1, 2, 3
    reader = lc.TraceReader(str(path), lc.TraceType.CSV_TRACE, params)
    ratio, _ = lc.LRU(cache_size=500, hashpower=18).process_trace(reader)
    log = bare_log(read_foreign(str(path)), 0, "")
    assert round(ratio * log.reads) == misses_here(log, "lru", 500)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.oracleGeneral", b"12345", "no whole number of requests"),
        ("a.oracleGeneral.zst", b"", "no whole number of requests"),
        ("a.oracleGeneral", b"", "no requests"),
        ("a.csv", b"time,obj_id\n1,2\n", "no column 'obj_size'"),
        ("a.csv", b"time,obj_id,obj_size\n1,2\n", "2 cells"),
        ("a.csv", b"time,obj_id,obj_size\n1,2,1\n1,3,2\n", "several sizes"),
    ],
)
def test_bad_traces(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert is_foreign(str(path))
    with pytest.raises(TraceError, match=says):
        read_foreign(str(path))
