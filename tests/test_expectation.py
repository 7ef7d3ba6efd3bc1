"""Learned completion times: means of what ended strictly before, by type of agent, else of all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sagasim.expectation import Expectation

EVENTS = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["", "a", "b"]), st.integers(0, 100)), max_size=20)


@given(EVENTS, st.integers(0, 7), st.sampled_from(["", "a", "c"]))
def test_against_a_plain_mean(events: list[tuple[int, str, int]], now: int, agent: str) -> None:
    learned = Expectation()
    events = sorted(events, key=lambda event: event[0])
    for time, kind, taken in (event for event in events if event[0] <= now):
        learned.at(time, "a")  # looking changes nothing
        learned.learn(time, kind, taken)
    before = [event for event in events if event[0] < now]
    own = [taken for _, kind, taken in before if kind == agent] or [taken for _, _, taken in before]
    assert learned.at(now, agent) == (sum(own) // len(own) if own else None)
