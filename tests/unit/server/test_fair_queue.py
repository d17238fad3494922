"""Turns: nobody has all places, and nobody waits for another's many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semipd_engine.server.fair_queue import FairQueue

pytestmark = pytest.mark.unit


def queue_of(places: int, **asked: int) -> FairQueue[str]:
    queue: FairQueue[str] = FairQueue(places)
    for name, count in asked.items():
        for number in range(count):
            queue.put(ord(name), f"{name}{number}")
    return queue


def taken(queue: FairQueue[str]) -> list[str]:
    items = []
    while (item := queue.take()) is not None:
        items.append(item)
    return items


def test_one_leaves_a_place_to_others() -> None:
    queue = queue_of(4, a=9)
    assert taken(queue) == ["a0", "a1", "a2"]
    queue.put(ord("b"), "b0")
    assert taken(queue) == ["b0"], "at once, though six of the other's came before"
    queue.done(ord("b"))
    assert taken(queue) == [], "the place is nobody's until another comes"
    queue.done(ord("a"))
    assert taken(queue) == ["a3"]


def test_who_has_fewest_is_next_and_then_turns_are_taken() -> None:
    queue = queue_of(4, a=5, b=2, c=1)
    assert taken(queue) == ["a0", "b0", "c0"], "the fourth is for one who has none"
    queue.done(ord("c"))
    assert taken(queue) == ["a1"], "equal ones in their turns, and one is left again"
    queue.put(ord("c"), "c1")
    assert taken(queue) == ["c1"]
    queue.done(ord("a"))
    queue.done(ord("a"))
    assert taken(queue) == ["a2"], "who has none before who has one"


def test_what_is_taken_back_has_no_turn() -> None:
    queue = queue_of(4, a=3, b=1)
    assert sorted(queue.remove(lambda item: item in ("a0", "b0"))) == ["a0", "b0"]
    assert taken(queue) == ["a1", "a2"] and not queue


@given(steps=st.lists(st.tuples(st.sampled_from("adt"), st.integers(0, 3)), max_size=60), places=st.integers(2, 5))
def test_whatever_comes_nobody_has_all_places_nor_waits_where_he_may_have_one(
    steps: list[tuple[str, int]], places: int
) -> None:
    queue: FairQueue[int] = FairQueue(places)
    waiting, has = [0] * 4, [0] * 4
    for step, client in steps:
        if step == "a":
            queue.put(client, client)
            waiting[client] += 1
        elif step == "d" and has[client]:
            queue.done(client)
            has[client] -= 1
        elif step == "t":
            before = has.copy()
            while (found := queue.take()) is not None:
                waiting[found] -= 1
                has[found] += 1
            assert sum(has) <= places and min(waiting) >= 0
            assert all(count < places or count == had for count, had in zip(has, before, strict=True))
            if sum(has) < places:
                assert not any(waits and not got for waits, got in zip(waiting, has, strict=True))
    assert bool(queue) is any(waiting)
