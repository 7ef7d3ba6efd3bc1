"""The optimum against every choice there is, the rules against one another, and laws on random access logs."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest
from oracle_cases import most_hits, random_log, random_tasks

from sagasim.core import Call, Task
from sagasim.oracle.accesses import Log, bare_log, task_accesses
from sagasim.oracle.blocks import BLOCK_ORDERS, replay_blocks
from sagasim.oracle.formats import unit_accesses
from sagasim.oracle.future import NEVER, NextUses
from sagasim.oracle.rules import RULES, PrefixLru, Setting
from sagasim.oracle.scored import bare_timeline, replay_scored
from sagasim.oracle.segments import replay_segments
from sagasim.reference_cache import Name
from sagasim.seams import IdleContext, Policy

Case = tuple[Log, list[list[Name]], int]


def cases(first: int, count: int, most: int = 12) -> Iterator[Case]:
    """Random logs at every memory size from what calls hold to what is enough."""
    for seed in range(first, first + count):
        random = Random(seed)
        log, blocks = random_log(random, random_tasks(random, 2, 5, 60))
        if max(access.left for access in log.accesses) > most:
            continue
        for num_blocks in range(log.most_held, log.most_held + 10):
            yield log, blocks, num_blocks


def hits(log: Log, num_blocks: int, name: str, uses: NextUses | None = None) -> int:
    if name in BLOCK_ORDERS:
        return replay_blocks(log, num_blocks, name, uses)
    return replay_segments(log, num_blocks, RULES[name](Setting(num_blocks, 500.0)))


def check_optimum(first: int, count: int) -> int:
    checked = 0
    for log, blocks, num_blocks in cases(first, count):
        found = replay_blocks(log, num_blocks, "belady", NextUses(log))
        assert found == most_hits(log, blocks, num_blocks), (first, log, num_blocks)
        checked += 1
    return checked


def test_the_optimum_is_what_trying_every_choice_finds() -> None:
    assert check_optimum(0, 500) > 1200


@pytest.mark.slow
def test_the_optimum_is_what_trying_every_choice_finds_in_many_cases() -> None:
    assert check_optimum(10_000, 4000) > 10_000


def test_nothing_beats_the_optimum_and_unlimited_memory_misses_first_touches_alone() -> None:
    for log, _, num_blocks in cases(50_000, 500, most=60):
        best = replay_blocks(log, num_blocks, "belady", NextUses(log))
        for name in ("lru", "flat-lru", *RULES):
            assert hits(log, num_blocks, name) <= best, name
            assert hits(log, 10**6, name) == log.reads - log.first, name
        assert replay_blocks(log, 10**6, "belady", NextUses(log)) == log.reads - log.first


def test_more_memory_never_hurts_the_optimum_nor_lru() -> None:
    for seed in range(60_000, 60_150):
        random = Random(seed)
        log, _ = random_log(random, random_tasks(random, 4, 8, 80))
        uses = NextUses(log)
        for name in ("belady", "lru"):
            found = [
                replay_blocks(log, log.most_held + more, name, uses if name == "belady" else None) for more in range(30)
            ]
            assert found == sorted(found), name


def naive_lru(log: Log, blocks: list[list[Name]], num_blocks: int, *, root_first: bool) -> int:
    """Block by block: a hit within an unbroken chain; the least recently released block goes, by depth among equals."""
    idle: dict[Name, tuple[int, int]] = {}
    holders: dict[Name, int] = {}
    at = found = released = 0
    for stop, held in zip(log.stops, log.held, strict=True):
        for event in log.order[at:stop]:
            access = log.accesses[max(event, ~event)]
            names = blocks[max(event, ~event)]
            if event >= 0:
                chain = next(
                    (i for i, name in enumerate(names) if name not in idle and not holders.get(name)), len(names)
                )
                found += min(chain, access.limit)
                for name in names[: access.written]:
                    holders[name] = holders.get(name, 0) + 1
                    idle.pop(name, None)
                continue
            released += 1
            for depth, name in enumerate(names[: access.left]):
                holders[name] = holders.get(name, 0) - (depth < access.written)
                if not holders[name]:
                    idle[name] = (released, depth if root_first else -depth)
        at = stop
        for name in sorted(idle, key=lambda name: idle[name])[: max(0, len(idle) - (num_blocks - held))]:
            del idle[name]
    return found


def test_lru_on_runs_of_blocks_is_that_on_single_blocks() -> None:
    for log, blocks, num_blocks in cases(40_000, 300, most=60):
        for name in ("lru", "flat-lru"):
            assert hits(log, num_blocks, name) == naive_lru(log, blocks, num_blocks, root_first=name == "flat-lru")


class LeafLru(PrefixLru):
    """Leaf-first LRU block by block: on a tree of segments what `lru` is on a queue of blocks."""

    whole = False


def test_lru_on_blocks_is_leaf_first_lru_on_the_tree() -> None:
    for seed in range(70_000, 70_300):
        random = Random(seed)
        log, _ = random_log(random, random_tasks(random, 4, 8, 80))
        for num_blocks in (log.most_held, log.most_held + 5, log.most_held + 20):
            assert hits(log, num_blocks, "lru") == replay_segments(log, num_blocks, LeafLru(Setting(num_blocks)))


def oldest(idle: IdleContext, now_ps: int) -> int:
    return idle.since_ps


def test_lru_on_blocks_is_an_eviction_of_the_engine_that_ranks_by_release() -> None:
    for seed in range(80_000, 80_150):
        random = Random(seed)
        accesses, sent = task_accesses(random_tasks(random, 5, 8, 80))
        log = bare_log(accesses, 0, "bare", sent)
        for num_blocks in (log.most_held, log.most_held + 7):
            ranked = replay_scored(
                [log], [num_blocks], Policy("evict", "oldest", oldest), None, bare_timeline(accesses, sent), [], 1
            )
            assert ranked == hits(log, num_blocks, "lru")


def test_the_staircase_says_when_each_block_is_read_next() -> None:
    for seed in range(90_000, 90_300):
        random = Random(seed)
        log, blocks = random_log(random, random_tasks(random, 3, 6, 60))
        uses = NextUses(log)
        coming: dict[Name, int] = {}
        for when in range(len(log.order) - 1, -1, -1):
            event = log.order[when]
            if event >= 0:
                access = log.accesses[event]
                coming |= dict.fromkeys(blocks[event][: access.written], NEVER)
                coming |= dict.fromkeys(blocks[event][: access.limit], when)
            else:
                left = log.accesses[~event].left
                naive = [coming.get(name, NEVER) for name in blocks[~event][:left]]
                found, at = [], 0
                for end, next_read in uses.of(~event):
                    found += [next_read] * (end - at)
                    at = end
                assert found == naive


# ---- closed forms, on prompts of one block


def cycle(objects: int, rounds: int) -> Log:
    return bare_log(unit_accesses(list(range(objects)) * rounds), 0, "cycle")


def test_a_cycle_one_longer_than_the_memory() -> None:
    """LRU loses what is needed next, always; the optimum of m blocks misses once in every m requests."""
    log = cycle(11, 100)
    assert hits(log, 10, "lru") == 0
    assert hits(log, 10, "fifo") == 0
    assert log.reads - replay_blocks(log, 10, "belady", NextUses(log)) == 11 + (1100 - 11) // 10


def test_lfu_keeps_what_is_used_often() -> None:
    log = bare_log(unit_accesses([*"aaabbb", *range(50), "a", "b"]), 0, "")
    assert hits(log, 3, "lfu") == 6
    assert hits(log, 3, "lru") == 4


def test_lfu_takes_the_one_used_longest_ago_among_equals() -> None:
    """Once the leaf of x has gone, its root, used twice as y was, is the older one though it became a leaf later."""
    x = Task("x", (Call("a", 65, 1), Call("b", 63, 1, "a", 65, ("a",), 1)))
    y = Task("y", (Call("a", 65, 1), Call("b", 0, 1, "a", 65, ("a",), 10), Call("c", 0, 1, "a", 65, ("b",), 90)))
    accesses, sent = task_accesses([x, y])
    log = bare_log(accesses, 0, "", sent)
    log.held[8 - 1] = 6  # after y's second call: of 12 idle blocks 6 stay
    assert hits(log, 12, "lfu") == 4 + 4 + 4


def test_gdsf_ages_what_was_used_often_long_ago() -> None:
    log = bare_log(unit_accesses([*"aaa", *"bcdefgh" * 3, "a"]), 0, "")
    assert hits(log, 3, "lfu") > 2  # `a` is still there
    assert hits(log, 3, "gdsf") == 2  # and here it has gone


def test_gdsf_prefers_what_is_dearer_to_compute() -> None:
    """A deep context and many shallow ones, each used once: its leaf costs more for each block."""
    deep = Task("deep", (Call("a", 1600, 1), Call("b", 16, 1, "a", 1600, ("a",), 10**12)))
    small = [Task(f"small{i}", (Call("a", 160, 1),), arrival_ps=i + 1) for i in range(40)]
    accesses, sent = task_accesses([deep, *small])
    log = bare_log(accesses, 0, "", sent)
    found = {even: replay_segments(log, 150, RULES["gdsf"](Setting(150, even))) for even in (1e9, 100.0)}
    assert found[100.0] == 100 > found[1e9]


def test_random_is_drawn_by_the_seed() -> None:
    log = cycle(40, 20)
    found = [replay_segments(log, 20, RULES["random"](Setting(20, 1.0, seed))) for seed in (*range(5), *range(5))]
    assert found[:5] == found[5:]
    assert len(set(found)) > 1
    assert min(found) > 0
    assert max(found) < log.reads


def test_a_prompt_that_ends_with_a_block_computes_it_again() -> None:
    """32 tokens asked for twice: the second call finds one block, never the one that holds its last token."""
    task = Task("t", (Call("a", 32, 1), Call("b", 0, 1, "a", 32, ("a",))))
    accesses, _ = task_accesses([task])
    log = bare_log(accesses, 0, "")
    assert (log.reads, log.first) == (2, 1)
    assert replay_blocks(log, 10, "belady", NextUses(log)) == 1


@pytest.mark.parametrize("held", range(5))
def test_what_calls_hold_is_not_for_idle_contexts(held: int) -> None:
    """Two contexts of two blocks are read again; of four blocks others hold some in between."""
    tasks = [Task(name, (Call("a", 33, 1), Call("b", 0, 1, "a", 33, ("a",), 1))) for name in ("x", "y")]
    accesses, _ = task_accesses(tasks)
    order, stops = [0, ~0, 1, ~1, 2, ~2, 3, ~3], [4, 4, 8]
    log = Log("", 4, accesses, order, stops, [0, held, 0], stops, 8, 4)
    for name in ("belady", "lru", "fifo"):
        assert hits(log, 4, name, NextUses(log)) == 4 - held
