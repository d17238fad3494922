"""The trend of a service's requests: no bias in noise, ahead of a ramp by what is said, deaf to steps and scaling."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import accumulate
from statistics import mean

import pytest

from semipd_operator.status.arrivals import Arrivals, trend

pytestmark = pytest.mark.unit

POLL, AHEAD = 2, 120.0
Rate = Callable[[float], float]


def counted(rate: Rate, seconds: int, seed: int | None = None) -> list[float]:
    """Requests until each second; of Poisson's law with a seed, else exactly what the rate says."""
    rng = random.Random(seed)
    came = [rate(t + 0.5) if seed is None else float(poisson(rng, rate(t + 0.5))) for t in range(seconds)]
    return [0.0, *accumulate(came)]


def poisson(rng: random.Random, expected: float) -> int:
    count, at = 0, rng.expovariate(1.0)
    while at < expected:
        count, at = count + 1, at + rng.expovariate(1.0)
    return count


def rated(totals: Sequence[float], now: int) -> float:
    """Thousandths of requests a second that ratios speak of: of the last two minutes."""
    since = max(0, now - 120)
    return 1000 * (totals[now] - totals[since]) / max(1, now - since)


def grown(totals: Sequence[float], ahead: float = AHEAD) -> dict[int, float]:
    """The growth at each look, of one pod that counts all."""
    arrivals, found = Arrivals(), {}
    for now in range(0, len(totals), POLL):
        arrivals = arrivals.advanced(float(now), {"p": (float(now), round(1000 * totals[now]))})
        found[now] = arrivals.growth(float(now), ahead, rated(totals, now))
    return found


def fine(totals: Sequence[float]) -> list[float]:
    """As `grown` counts thousandths of requests, so that an exact rate has no noise of its own."""
    return [total / 1000 for total in totals]


@pytest.mark.parametrize(("rate", "bias", "most"), [(0.5, 1.02, 1.8), (2.0, 1.01, 1.4), (10.0, 1.005, 1.15)])
def test_under_a_constant_load_it_raises_hardly_anything(rate: float, bias: float, most: float) -> None:
    found = [
        growth
        for seed in range(20)
        for growth in list(grown(fine(counted(lambda t: rate, 1200, seed))).values())[300 // POLL :: 5]
    ]
    assert mean(found) <= bias and min(found) == 1.0 and max(found) <= most


def test_on_a_ramp_it_tells_the_load_that_a_pod_ordered_now_will_meet() -> None:
    def rate(t: float) -> float:
        return 2 + t / 150

    totals = counted(rate, 1500)
    for now, growth in grown(totals).items():
        if now >= 330:
            assert growth * rated(totals, now) / 1000 == pytest.approx(rate(now + AHEAD), rel=0.02)
    noisy = []
    for seed in range(10):
        totals = fine(counted(rate, 1500, seed))
        noisy += [
            growth * rated(totals, now) / rate(now + AHEAD) for now, growth in grown(totals).items() if now >= 330
        ]
    assert 0.9 < mean(noisy) < 1.0, "a standard error of doubt"


def test_a_load_that_falls_or_ends_is_not_told_to_be_less_than_it_is() -> None:
    for fallen in (lambda t: max(0.5, 8 - t / 100), lambda t: 8.0 if t < 600 else 0.0):
        found = grown(counted(fallen, 1200))
        assert {growth for now, growth in found.items() if now > 620} == {1.0}
        assert max(found.values()) == 1.0


@pytest.mark.parametrize("level", [4.5, 6.0, 9.0])
def test_of_a_step_the_new_level_is_told_before_the_ratio_has_it_and_no_more(level: float) -> None:
    totals = counted(lambda t: 3.0 if t < 600 else level, 1500)
    told = {now: growth * rated(totals, now) / 1000 / level for now, growth in grown(totals).items()}
    assert max(told[now] for now in range(600, 1500, POLL)) <= 1.05
    assert min(told[now] for now in range(662, 1500, POLL)) >= 0.97, "a minute after it, not two"
    after = list[float]()
    for seed in range(20):
        noisy = fine(counted(lambda t: 3.0 if t < 600 else level, 960, seed))
        after += [growth for now, growth in grown(noisy).items() if now > 740]
    assert mean(after) <= 1.06, "a step that is over is no trend"


def test_a_window_that_the_agent_cut_to_the_new_load_is_not_raised_once_more() -> None:
    totals = counted(lambda t: 3.0 if t < 600 else 9.0, 900)
    arrivals = Arrivals()
    for now in range(0, 900, POLL):
        arrivals = arrivals.advanced(float(now), {"p": (float(now), round(1000 * totals[now]))})
        if now >= 620:
            assert arrivals.growth(float(now), AHEAD, 9000.0) <= 1.05


def test_what_pods_tell_twice_while_one_is_added_is_not_raised() -> None:
    """A new pod tells its part at once, the others what they had before for two minutes more."""
    totals = counted(lambda t: 2 + t / 300, 900)
    arrivals = Arrivals()
    for now in range(0, 900, POLL):
        arrivals = arrivals.advanced(float(now), {"p": (float(now), round(1000 * totals[now]))})
        alone = arrivals.growth(float(now), AHEAD, rated(totals, now))
        assert arrivals.growth(float(now), AHEAD, 1.5 * rated(totals, now)) == pytest.approx(max(1.0, alone / 1.5))


def test_a_pod_that_is_added_or_taken_away_is_no_trend() -> None:
    totals = counted(lambda t: 3.0 + t / 300, 1800)
    whole, arrivals, counters = grown(totals), Arrivals(), [0, 0, 0]
    before = 0
    for now in range(0, 1800, POLL):
        there = [0] if now <= 600 else [0, 1, 2] if now <= 1200 else [0, 2]
        came, before = round(1000 * totals[now]) - before, round(1000 * totals[now])
        for k in there:
            counters[k] += came // len(there) + (came % len(there) if k == there[0] else 0)
        known = there if now > 602 else [0, 1, 2][: 1 + 2 * (now > 300)]  # they start, and are asked, before they serve
        arrivals = arrivals.advanced(float(now), {str(k): (float(now), counters[k]) for k in known})
        assert arrivals.growth(float(now), AHEAD, rated(totals, now)) == pytest.approx(whole[now], rel=0.005)


def test_a_missed_poll_changes_nothing_that_lasts() -> None:
    totals = counted(lambda t: 2 + t / 150, 1200)
    whole, arrivals = grown(totals), Arrivals()
    for now in range(0, 1200, POLL):
        silent = 500 < now < 530 or 800 < now < 860
        told = {} if silent else {"p": (float(now), round(1000 * totals[now]))}
        arrivals = arrivals.advanced(float(now), told)
        assert 1.0 <= arrivals.growth(float(now), AHEAD, rated(totals, now)) <= 1.02 * whole[now]
        if not silent:
            assert arrivals.growth(float(now), AHEAD, rated(totals, now)) == pytest.approx(whole[now], rel=0.02)


def test_a_pod_that_has_served_for_long_when_it_is_first_seen_is_no_burst() -> None:
    totals = counted(lambda t: 3.0, 900)
    arrivals = Arrivals()
    for now in range(0, 900, POLL):
        told = {"p": (float(now), round(1000 * totals[now]))}
        if now >= 450:
            told["old"] = (float(now), 10**9)
        arrivals = arrivals.advanced(float(now), told)
        assert arrivals.growth(float(now), AHEAD, rated(totals, now)) == 1.0


def test_a_counter_that_begins_again_goes_on_counting() -> None:
    totals = counted(lambda t: 2 + t / 150, 1200)
    whole, arrivals = grown(totals), Arrivals()
    for now in range(0, 1200, POLL):
        begun = 0.0 if now < 700 else totals[700 - POLL]
        arrivals = arrivals.advanced(float(now), {"p": (float(now), round(1000 * (totals[now] - begun)))})
        assert arrivals.growth(float(now), AHEAD, rated(totals, now)) == pytest.approx(whole[now], rel=0.001)


def test_without_counters_or_enough_of_the_past_nothing_is_expected() -> None:
    totals = counted(lambda t: 2 + t / 50, 600)
    found = grown(totals)
    assert {growth for now, growth in found.items() if now < 150} == {1.0}
    assert max(found.values()) > 1.3
    few = grown(fine([total / 100 for total in totals]))
    assert max(few.values()) == 1.0, "a few requests are no trend"
    arrivals = Arrivals()
    for now in range(0, 600, POLL):
        arrivals = arrivals.advanced(float(now), {"p": (float(now), 9 * now * now), "older": (float(now), None)})
        assert arrivals.growth(float(now), AHEAD, rated(totals, now)) == 1.0


@pytest.mark.parametrize(("back", "anew"), [(3600, 170), (2, 0)])
def test_a_clock_that_is_set_back_begins_anew_and_by_a_little_goes_on(back: int, anew: int) -> None:
    """By `back` seconds, ten minutes on; the growth is known again `anew` seconds later."""
    totals, arrivals = counted(lambda t: 2 + t / 150, 1200), Arrivals()
    whole = grown(totals)
    for now in range(0, 1200, POLL):
        said = float(now - (back if now >= 600 else 0))
        arrivals = arrivals.advanced(said, {"p": (said, round(1000 * totals[now]))})
        growth = arrivals.growth(said, AHEAD, rated(totals, now))
        assert 1.0 <= growth <= 1.1 * whole[now]
        if not 600 <= now < 600 + anew:
            assert growth >= 0.9 * whole[now]


def test_it_looks_no_further_ahead_than_back() -> None:
    totals = counted(lambda t: 2 + t / 150, 900)
    assert grown(totals, 300.0) == grown(totals, 3000.0)
    assert max(grown(counted(lambda t: 1.01**t, 900)).values()) == 2.0
    arrivals = Arrivals()
    for now in range(0, 900, POLL):
        arrivals = arrivals.advanced(float(now), {"p": (float(now), round(1000 * totals[now]))})
        assert arrivals.growth(float(now), AHEAD, 0.0) == 1.0, "nothing is known of what the ratio speaks of"


def test_the_slope_and_its_doubt_are_those_of_least_squares() -> None:
    slope, doubt = trend([0, 10, 20, 30])
    assert slope == pytest.approx(10) and doubt == pytest.approx((15 / 5) ** 0.5), "Poisson's, where nothing is left"
    slope, doubt = trend([0, 100, 0, 100])
    assert slope == pytest.approx(20) and doubt == pytest.approx((8000 / 2 / 5) ** 0.5)
