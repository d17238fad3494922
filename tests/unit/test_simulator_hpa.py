"""The simulated HorizontalPodAutoscaler against what Kubernetes documents, and what must hold whatever it is given.

Documented: https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale ("Algorithm details",
"Configurable scaling behavior", "Default behavior"); told in our words.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semipd_cli.simulator.scaling.hpa import (
    DOWN,
    SYNC_SECONDS,
    UP,
    Autoscaler,
    Form,
    Metric,
    PodSeen,
    Rate,
    Rules,
    State,
    by_pods,
    by_value,
    per_pod,
    sync,
)

pytestmark = pytest.mark.unit

SUM = Metric("sum", Form.PER_POD, 1000)
EAGER = Rules(0.0, (Rate(1000, True, 15.0),))
FREE = Autoscaler(1, 100, (SUM,), EAGER, EAGER)


def pods(count: int, *, pending: int = 0, starting: int = 0) -> list[PodSeen]:
    """`count` in all, of which the last ones are not there yet, or run and do not serve."""
    ready = count - pending - starting
    states = ["ready"] * ready + ["starting"] * starting + ["pending"] * pending
    return [PodSeen(k, state == "pending", state == "ready") for k, state in enumerate(states)]


# ---- one metric ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "replicas", "wanted"),
    [
        (200, 3, 6),  # twice the target: twice as many
        (50, 4, 2),  # half of it: half as many
        (109, 3, 3),  # within the tolerance
        (91, 3, 3),
        (112, 3, 4),  # rounded up
        (60, 3, 2),
    ],
)
def test_the_documented_formula(value: int, replicas: int, wanted: int) -> None:
    assert by_value(value, 100, replicas, replicas) == wanted
    assert per_pod(value * replicas, 100, replicas) == wanted
    assert by_pods(dict.fromkeys(range(replicas), value), 100, replicas, pods(replicas)) == wanted


def test_a_ratio_is_multiplied_by_the_pods_that_are_ready() -> None:
    assert by_value(200, 100, 5, 2) == 4


def test_a_pod_without_a_value_is_full_where_fewer_are_asked_for_and_empty_where_more_are() -> None:
    assert by_pods({0: 20, 1: 20}, 100, 3, pods(3, starting=1)) == 2  # (20 + 20 + 100) / 3 -> 0.46 x 3
    assert by_pods({0: 200, 1: 200}, 100, 3, pods(3, starting=1)) == 4  # (200 + 200 + 0) / 3 -> 1.33 x 3


def test_a_pending_pod_is_empty_where_more_are_asked_for_and_not_there_else() -> None:
    assert by_pods({0: 300}, 100, 2, pods(2, pending=1)) == 3  # 1.5 x 2, and not 3.0 x 1 beside one that comes
    assert by_pods({0: 40, 1: 40}, 100, 3, pods(3, pending=1)) == 1


def test_what_is_assumed_never_turns_the_direction_around() -> None:
    assert by_pods({0: 130}, 100, 3, pods(3, starting=2)) == 3
    assert by_pods({0: 130}, 100, 2, pods(2, pending=1)) == 2


def test_without_any_value_there_is_no_answer() -> None:
    assert by_pods({}, 100, 2, pods(2)) is None
    assert by_pods({1: 500}, 100, 2, pods(2, pending=1)) is None


@given(
    values=st.lists(st.integers(0, 5000), min_size=1, max_size=8),
    pending=st.integers(0, 4),
    starting=st.integers(0, 4),
)
def test_pods_that_do_not_tell_only_dampen(values: list[int], pending: int, starting: int) -> None:
    count = len(values) + pending + starting
    told = dict(enumerate(values))
    wanted = by_pods(told, 1000, count, pods(count, pending=pending, starting=starting))
    alone = sum(values) // len(values) / 1000
    assert wanted is not None
    if alone > 1:
        assert count <= wanted <= max(count, math.ceil(sum(values) / 1000 + 1e-6))
    if alone < 1:
        assert wanted <= count


@given(total=st.integers(0, 100_000), target=st.integers(1, 5000), start=st.integers(1, 100))
def test_a_load_of_constant_size_is_settled_at_the_second_look(total: int, target: int, start: int) -> None:
    first = per_pod(total, target, start)
    assert per_pod(total, target, first) == first
    assert first == start or (first - 1) * target < total <= first * target


# ---- windows and rates -----------------------------------------------------------------------------------------------


def play(scaler: Autoscaler, sums: list[int | None], start: int) -> list[int]:
    """The number of pods after each look, all of them ready at once."""
    state, replicas, path = State(), start, []
    for k, total in enumerate(sums):
        replicas, state = sync(scaler, state, replicas, pods(replicas), [total], SYNC_SECONDS * (k + 1))
        path.append(replicas)
    return path


def test_the_default_behavior() -> None:
    """Up: at once, the larger of four pods and twice as many in 15 s. Down: all, after 300 s."""
    scaler = Autoscaler(1, 100, (SUM,))
    assert (scaler.up, scaler.down) == (UP, DOWN)
    assert play(scaler, [50_000] * 5, 1) == [5, 10, 20, 40, 50]
    down = play(scaler, [2000] * 22, 10)
    assert down == [10] * 20 + [2] * 2, "20 looks of 15 s are 300 s"


def test_the_documented_example_of_two_policies() -> None:
    """10 % a minute or 4 pods, whichever is more: of 80 pods 8 go, then 8 of 72, and below 40 four at a time."""
    down = Rules(0.0, (Rate(4, False, 60.0), Rate(10, True, 60.0)))
    path = play(Autoscaler(1, 100, (SUM,), EAGER, down), [10_000] * 41, 80)
    assert path[::4] == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20]
    least = replace(down, select="Min")
    assert play(Autoscaler(1, 100, (SUM,), EAGER, least), [10_000] * 9, 80)[::4] == [76, 72, 68]
    assert play(Autoscaler(1, 100, (SUM,), EAGER, replace(down, select="Disabled")), [10_000] * 9, 80) == [80] * 9


def test_the_lowest_wish_of_the_window_counts_on_the_way_up() -> None:
    scaler = Autoscaler(1, 100, (SUM,), replace(EAGER, window=60.0), EAGER)
    assert play(scaler, [3000, 9000, 3000, 9000, 9000, 9000, 9000, 9000], 2) == [2, 2, 2, 2, 3, 3, 9, 9]


def test_the_highest_wish_of_the_window_counts_on_the_way_down() -> None:
    scaler = Autoscaler(1, 100, (SUM,), EAGER, replace(EAGER, window=60.0))
    assert play(scaler, [9000, 5000, 2000, 2000, 2000, 2000, 2000], 9) == [9, 9, 9, 9, 5, 2, 2]


def test_what_was_removed_may_come_back_within_the_period() -> None:
    """A rate is of the number at the period's begin."""
    once = Rules(0.0, (Rate(1, False, 60.0),))
    scaler = Autoscaler(1, 100, (SUM,), once, EAGER)
    assert play(scaler, [5000, 2000, 9000, 9000], 5) == [5, 2, 6, 6]


def test_the_most_that_a_metric_asks_for_counts_and_one_without_an_answer_keeps_pods() -> None:
    """It holds where those that have one ask for fewer, and follows where they ask for more."""
    scaler = replace(FREE, metrics=(SUM, SUM))
    assert sync(scaler, State(), 4, pods(4), [7000, 2000], 15.0)[0] == 7
    assert sync(scaler, State(), 4, pods(4), [None, 2000], 15.0)[0] == 4
    assert sync(scaler, State(), 4, pods(4), [None, 6000], 15.0)[0] == 6
    assert sync(scaler, State(), 4, pods(4), [None, None], 15.0)[0] == 4


def test_a_pool_outside_the_bounds_is_brought_back_and_one_that_was_switched_off_stays_so() -> None:
    scaler = replace(FREE, least=2, most=6)
    assert sync(scaler, State(), 9, pods(9), [None], 15.0)[0] == 6
    assert sync(scaler, State(), 1, pods(1), [None], 15.0)[0] == 2
    assert sync(scaler, State(), 0, [], [9000], 15.0)[0] == 0


rules = st.builds(
    Rules,
    st.sampled_from([0.0, 30.0, 120.0]),
    st.lists(
        st.builds(Rate, st.integers(1, 200), st.booleans(), st.sampled_from([15.0, 60.0])), min_size=1, max_size=3
    ).map(tuple),
    st.sampled_from(["Max", "Min", "Disabled"]),
)


@settings(deadline=None)
@given(rules, rules, st.lists(st.none() | st.integers(0, 60_000), min_size=1, max_size=30), st.integers(1, 20))
def test_whatever_comes_bounds_and_rates_hold_and_the_direction_is_a_wish(
    up: Rules, down: Rules, sums: list[int | None], start: int
) -> None:
    scaler = Autoscaler(1, 20, (SUM,), up, down)
    path = [start, *play(scaler, sums, start)]
    wishes = [
        None if total is None else min(max(per_pod(total, 1000, n), 1), 20)
        for total, n in zip(sums, path[:-1], strict=True)
    ]
    for k, wish in enumerate(wishes):
        before, after = path[k], path[k + 1]
        assert 1 <= after <= 20
        if wish is None:
            assert after == before
        if after > before:
            assert up.select != "Disabled" and wish is not None and after <= wish
        if after < before:
            assert down.select != "Disabled" and wish is not None and after >= wish


@settings(deadline=None)
@given(st.integers(1, 5), st.sampled_from([15.0, 45.0, 60.0]), st.lists(st.integers(1000, 60_000), max_size=30))
def test_no_period_adds_more_than_its_rate(value: int, period: float, sums: list[int]) -> None:
    stay = Rules(0.0, (Rate(1, False, 15.0),), "Disabled")
    path = [1, *play(Autoscaler(1, 100, (SUM,), Rules(0.0, (Rate(value, False, period),)), stay), sums, 1)]
    looks = round(period / SYNC_SECONDS)
    assert all(path[min(k + looks, len(path) - 1)] - path[k] <= value for k in range(len(path)))
