"""Small random access logs, and what is exact about them: block by block, every choice of eviction tried."""

from __future__ import annotations

from functools import cache
from itertools import combinations
from random import Random

from sagasim.core import Call, Prefix, Task, check_task
from sagasim.oracle.accesses import Access, Log, access_of, bare_log, reads_of
from sagasim.plan import Prefixes, plan_task
from sagasim.reference_cache import BlockNames, Name

SHARED = (Prefix("tools", 20), Prefix("system", 28, "tools", 17))


def random_tasks(random: Random, tasks: int = 2, calls: int = 4, tokens: int = 40) -> list[Task]:
    """Tasks with chains, forks, compaction and retries of the very same prompt; lengths often fill blocks exactly."""
    made = []
    for number in range(random.randint(1, tasks)):
        own: list[Call] = []
        for index in range(random.randint(1, calls)):
            parent = random.choice(own[-2:]) if own and random.random() < 0.85 else None
            if parent is None:
                extends, most = random.choice([(None, 0), ("tools", 20), ("system", 45)])
            else:
                extends, most = parent.name, parent.prompt_tokens + parent.output_tokens
            keep = most
            if parent is not None and random.random() < 0.5:
                keep = random.choice([parent.prompt_tokens, parent.prompt_tokens // 16 * 16, random.randint(0, most)])
            if extends is not None and parent is None:
                keep = random.choice([most, random.randint(0, most)])
            new = random.choice([0, 0, 16, random.randint(1, tokens), -keep % 16])
            new = new if keep + new else 7
            after = (own[-1].name,) if own else ()
            own.append(Call(f"c{index}", new, random.choice([1, 1, 16, random.randint(1, 24)]), extends, keep, after))
        task = Task(f"task{number}", tuple(own), prefixes=SHARED)
        check_task(task)
        made.append(task)
    return made


def random_log(random: Random, tasks: list[Task]) -> tuple[Log, list[list[Name]]]:
    """The calls of the tasks in a random order that keeps that of each task, some side by side; names of their blocks.

    What running calls hold is any number at any time: an optimum must not depend on how it comes about.
    """
    names, prefixes, accesses, blocks = BlockNames(), Prefixes(), list[Access](), list[list[Name]]()
    left: list[list[int]] = []
    for number, task in enumerate(tasks):
        plan = plan_task(task, number, 0, prefixes)
        left.append([])
        for call in plan.calls:
            left[-1].append(len(accesses))
            accesses.append(access_of(call))
            blocks.append(names.of(plan, call.index))
    if random.random() < 0.3:
        order = [own.pop(0) for own in _drawn(random, left)]
        log = bare_log([accesses[i] for i in order], 0, "bare")
        return log, [blocks[i] for i in order]
    order, running = list[int](), list[int]()
    while any(left) or running:
        if running and (random.random() < 0.5 or not any(left)):
            order.append(~running.pop(random.randrange(len(running))))
        else:
            number = random.choice([n for n, own in enumerate(left) if own])
            new = set(blocks[left[number][0]])
            if any(new.intersection(blocks[i][accesses[i].written :]) for i in running):
                order.append(~running.pop())  # what another call still has to write must be awaited
                continue
            running.append(left[number].pop(0))
            order.append(running[-1])
    stops = sorted({*(i for i in range(1, len(order)) if random.random() < 0.8), len(order)})
    held = [random.choice([0, 0, 1, 2, 3]) for _ in stops]
    return Log("random", 0, accesses, order, stops, held, stops, *reads_of(accesses, order)), blocks


def _drawn(random: Random, left: list[list[int]]) -> list[list[int]]:
    turns = [own for own in left for _ in own]
    random.shuffle(turns)
    return turns


def most_hits(log: Log, blocks: list[list[Name]], num_blocks: int) -> int:
    """The most blocks that reads can find, over all choices of what is evicted; a hit only within an unbroken chain."""
    events, at = [], 0
    for stop in log.stops:
        events.append(log.order[at:stop])
        at = stop

    @cache
    def best(boundary: int, idle: frozenset[Name], running: tuple[int, ...]) -> int:
        if boundary == len(events):
            return 0
        hits = 0
        open_now = list(running)
        for event in events[boundary]:
            held = {name for i in open_now for name in blocks[i][: log.accesses[i].written]}
            if event >= 0:
                access = log.accesses[event]
                for name in blocks[event][: access.limit]:
                    if name not in idle and name not in held:
                        break
                    hits += 1
                open_now.append(event)
                idle = idle - frozenset(blocks[event][: access.written])
            else:
                open_now.remove(~event)
                held = {name for i in open_now for name in blocks[i][: log.accesses[i].written]}
                idle = idle | (frozenset(blocks[~event][: log.accesses[~event].left]) - held)
        room = min(len(idle), num_blocks - log.held[boundary])
        kept = combinations(sorted(idle, key=str), room)
        return hits + max(best(boundary + 1, frozenset(some), tuple(open_now)) for some in kept)

    return best(0, frozenset(), ())
