"""Links: shares by hand, and a fluid model in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagasim.clock import Clock
from sagasim.links import Links

NODES = [0, 0, 1, 1]
INTRA, INTER = 1000, 100  # bytes a second
S = 10**12

Sends = list[tuple[int, int, int, int]]  # start in s, source, target, bytes


def ends(sends: Sends) -> list[int]:
    """When each transfer ends, in ps."""
    env = Clock()
    links = Links(env, {"intra out": INTRA, "intra in": INTRA, "inter out": INTER, "inter in": INTER})
    found = [0] * len(sends)

    def start(number: int) -> None:
        _, source, target, size = sends[number]

        def done() -> None:
            found[number] = int(env.now)

        kind = "intra" if NODES[source] == NODES[target] else "inter"
        links.send(((f"{kind} out", source), (f"{kind} in", target)), size, done)

    def process():  # type: ignore[no-untyped-def]
        for number in sorted(range(len(sends)), key=lambda i: sends[i][0]):
            wait = sends[number][0] * S - env.now
            if wait > 0:
                yield env.timeout(wait)
            start(number)

    env.process(process())
    env.run()
    return found


def test_alone() -> None:
    assert ends([(0, 0, 1, 500)]) == [S // 2]  # within a node
    assert ends([(0, 0, 2, 500)]) == [5 * S]  # to another


def test_two_share_a_port_and_others_do_not() -> None:
    assert ends([(0, 0, 2, 500), (0, 0, 3, 500)]) == [10 * S, 10 * S]  # out of 0
    assert ends([(0, 0, 2, 500), (0, 1, 2, 500)]) == [10 * S, 10 * S]  # into 2
    assert ends([(0, 0, 2, 500), (0, 2, 0, 500)]) == [5 * S, 5 * S]  # both directions
    assert ends([(0, 0, 2, 500), (0, 0, 1, 1000)]) == [5 * S, S]  # other links


def test_a_second_one_slows_the_first_from_when_it_starts() -> None:
    # 200 of 500 bytes in 2 s alone; then 50 a second each: the second's 100 take 2 s, and the first has 200 left
    assert ends([(0, 0, 2, 500), (2, 0, 3, 100)]) == [6 * S, 4 * S]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3), st.integers(1, 900)).filter(
            lambda send: send[1] != send[2]
        ),
        min_size=1,
        max_size=6,
    )
)
def test_against_fractions(sends: Sends) -> None:
    """The fluid model without rounding: whole rates are at most a byte a second lower, ends at most as much later."""
    found = ends(sends)
    exact = fluid(sends)
    for end, true, (start, *_, size) in zip(found, exact, sends, strict=True):
        assert end >= true * S - 1
        assert end - start * S <= (true - start) * S * Fraction(107, 100) + len(sends)
        assert size * S <= (end - start * S) * INTRA


def fluid(sends: Sends) -> list[Fraction]:
    left = {i: Fraction(size) for i, (*_, size) in enumerate(sends)}
    out = [Fraction(0)] * len(sends)
    now = Fraction(0)
    while left:
        active = [i for i in left if sends[i][0] <= now]
        coming = [Fraction(sends[i][0]) for i in left if sends[i][0] > now]
        rates = {i: share(i, active, sends) for i in active}
        steps = [left[i] / rates[i] for i in active] + [start - now for start in coming]
        step = min(steps)
        for i in active:
            left[i] -= rates[i] * step
        now += step
        for i in [i for i in active if not left[i]]:
            out[i] = now
            del left[i]
    return out


def share(number: int, active: list[int], sends: Sends) -> Fraction:
    _, source, target, _ = sends[number]
    intra = NODES[source] == NODES[target]
    same = [i for i in active if (NODES[sends[i][1]] == NODES[sends[i][2]]) == intra]
    users = max(sum(sends[i][1] == source for i in same), sum(sends[i][2] == target for i in same))
    return Fraction(INTRA if intra else INTER, users)


def test_a_transfer_of_a_migrated_context_takes_what_arithmetic_says() -> None:
    """15,000 tokens of Llama-3-70B over one 200 Gb/s port: 4.9 GB in 197 ms."""
    env = Clock()
    links = Links(env, {"net out": 25 * 10**9, "net in": 25 * 10**9})
    done: list[int] = []
    links.send((("net out", 0), ("net in", 1)), 15_000 * 327_680, lambda: done.append(int(env.now)))
    env.run()
    assert done[0] / 10**9 == pytest.approx(196.6, abs=0.1)


def test_a_cancelled_transfer_leaves_the_link_to_the_others() -> None:
    """Two halves of a link for 4 s: 200 of 500 bytes each; then one has it all and needs 3 s more."""
    env = Clock()
    links = Links(env, {"out": 100})
    ended: list[tuple[str, int]] = []
    port = (("out", 0),)
    links.send(port, 500, lambda: ended.append(("kept", int(env.now))))
    given_up = links.send(port, 500, lambda: ended.append(("given up", int(env.now))))
    env.timeout(4 * S).callbacks.append(lambda _: links.cancel(given_up))
    env.run()
    assert ended == [("kept", 7 * S)]
