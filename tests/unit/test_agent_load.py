"""What `Load` makes of observations: regimes, lengths of answers, how far back it knows."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest
from tests.unit.agent_plant import Run, Speed, poisson, simulate

from semipd_agent.contract import SLO, AgentConfig, Mode, PartitionConfig
from semipd_agent.slo.advance import advance
from semipd_agent.slo.load import BUCKET_SECONDS, MOST_KEPT, Load, Seen
from semipd_agent.slo.regime import burstiness
from semipd_engine import contract as engine
from semipd_engine.contract import Arrival, Observation

pytestmark = pytest.mark.unit
FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)


def arrivals(rate: float, start: float, seconds: float, prompt: int, first: int = 0) -> list[Arrival]:
    rng, at, found = random.Random(first), start, []
    while (at := at + rng.expovariate(rate)) < start + seconds:
        found.append(Arrival(id=first + len(found), at=at, prompt_tokens=1 + int(rng.expovariate(1 / prompt))))
    return found


def fed(stream: list[Arrival], seconds: int, every: int = 1) -> Load:
    load = Load()
    for now in range(1, seconds, every):
        recent = tuple(a for a in stream if now - 60 <= a.at <= now)
        load = advance(load, Observation(core_id="c", at=float(now), arrivals=recent))
    return load


def test_a_change_of_the_load_begins_a_new_regime_and_chance_does_not() -> None:
    for seed in range(5):
        assert fed(arrivals(3.0, 0, 300, 800, first=1000 * seed), 300).regime_since < 0
    before = arrivals(3.0, 0, 150, 300, first=0)
    load = fed([*before, *arrivals(3.0, 150, 60, 3000, first=5000)], 190)
    assert 135 <= load.regime_since <= 180


@pytest.mark.parametrize(
    ("of_late", "after_minutes", "after_an_hour"), [(20, False, False), (26, True, False), (31, True, True)]
)
def test_a_load_that_lasted_takes_more_to_be_another_one(
    of_late: int, after_minutes: bool, after_an_hour: bool
) -> None:
    """Ten requests in ten seconds, and so many in the last ten. What is rare in five minutes is none of it in an hour;
    what is a change is one then, too."""
    times = [*range(900, 1190), *(1190 + 10 * k / of_late for k in range(of_late))]
    seen = {n: Seen(n, float(at), 100, 1.0) for n, at in enumerate(times)}
    counts = Counter(int(at // BUCKET_SECONDS) for at in times)
    for since, another in ((900.0, after_minutes), (-2400.0, after_an_hour)):
        load = replace(Load(), core_id="c", at=1199.0, since=since, seen=seen, counts=dict(counts))
        assert (advance(load, Observation(core_id="c", at=1200.0)).regime_since == 1190.0) == another


def test_bursts_that_come_again_and_again_are_one_load() -> None:
    """Six at once every six seconds in the mean; five times as many bursts are another load."""

    def bursts(apart: float, start: float, seconds: float, first: int, seed: int) -> list[Arrival]:
        rng, at, found = random.Random(seed), start, list[Arrival]()
        while (at := at + rng.expovariate(1 / apart)) < start + seconds:
            found += [Arrival(id=0, at=at + 0.1 * k, prompt_tokens=800) for k in range(6)]
        found.sort(key=lambda arrival: arrival.at)
        return [arrival.model_copy(update={"id": first + n}) for n, arrival in enumerate(found)]

    begun = list[set[float]]()
    for seed in range(4):
        stream, load, seen = bursts(6, 0, 300, 0, seed), Load(), set[float]()
        for now in range(1, 300):
            recent = tuple(a for a in stream if now - 60 <= a.at <= now)
            load = advance(load, Observation(core_id="c", at=float(now), arrivals=recent))
            seen.add(load.regime_since)
        begun.append(seen - {Load().regime_since})
    assert sum(map(len, begun)) <= 8, "by Poisson's measure there are ten in each"
    more = [*bursts(6, 0, 200, 0, 0), *bursts(1.2, 200, 60, 5000, 1)]
    assert 185 <= fed(more, 260).regime_since <= 230


@pytest.mark.parametrize(("counts", "ratio"), [([4] * 7, 1.0), ([3, 5] * 20, 1.0), ([0] * 9, 1.0), ([0, 20] * 20, 3.6)])
def test_only_what_spreads_beyond_chance_is_bursty(counts: list[int], ratio: float) -> None:
    assert burstiness(counts) == pytest.approx(ratio, abs=0.1)
    shifted = [count + 10 for count in counts]
    assert burstiness([*counts, *shifted]) <= max(1.0, ratio), "a load that became another one once is no burst"


def test_more_requests_than_are_kept_are_no_other_load() -> None:
    """15 a second for seven minutes: what was forgotten was there, too."""
    load = fed(arrivals(15.0, 0, 420, 800), 420, every=5)
    assert load.regime_since < 0
    assert len(load.seen) == MOST_KEPT
    assert load.known_since == pytest.approx(416 - MOST_KEPT / 15, abs=15)


def ended(arrival: Arrival, output: int) -> engine.FinishedRequest:
    """0: its client went away before the first token."""
    return engine.FinishedRequest(
        cursor=arrival.id,
        id=arrival.id,
        received_at=arrival.at,
        finished_at=arrival.at + 0.5,
        prompt_tokens=arrival.prompt_tokens,
        cached_tokens=0,
        output_tokens=output,
        ttft_seconds=0.2 if output else None,
        tpot_seconds=0.001 if output > 1 else None,
        finish_reason="length" if output else "abort",
    )


def test_who_went_away_before_the_first_token_is_no_short_answer() -> None:
    """Under an overload clients give up: twice as many as were answered. Those that come are as long as ever."""
    came = [Arrival(id=n, at=0.5 + n, prompt_tokens=300) for n in range(60)]
    load = Load()
    for now in range(1, 62):
        there = tuple(one for one in came if one.at + 0.5 <= now)
        done = tuple(ended(one, 380 + one.id if one.id < 20 else 0) for one in there)
        load = advance(load, Observation(core_id="c", at=float(now), arrivals=there, finished=done))
    assert load.regime_since < 0, "answers did not change"
    assert all(380 <= load.drawn(n, 300) < 400 for n in range(50))
    assert all(380 <= load.job(one, one.at, 512).output < 400 for one in load.window(61.0))


def test_who_went_away_after_the_first_token_is_no_short_answer() -> None:
    """Every third one leaves after five tokens of more than 380. A stop string, after which core is told to stop, too,
    is an end like any other."""
    came = [Arrival(id=n, at=0.5 + n, prompt_tokens=300) for n in range(60)]
    load = Load()
    for now in range(1, 62):
        there = tuple(one for one in came if one.at + 0.5 <= now)
        done = [ended(one, 380 + one.id if one.id % 3 else 5) for one in there]
        done = [one if one.id % 3 else one.model_copy(update={"finish_reason": "abort"}) for one in done]
        done = [one if one.id % 3 < 2 else one.model_copy(update={"finish_reason": "stop"}) for one in done]
        load = advance(load, Observation(core_id="c", at=float(now), arrivals=there, finished=tuple(done)))
    assert len(load.lengths) == 40
    assert all(380 <= load.drawn(n, 300) < 440 for n in range(50))
    assert all(380 <= load.job(one, one.at, 512).output < 440 for one in load.window(61.0))
    assert {load.seen[n].left for n in range(60)} == {5, 0}


def test_refused_requests_take_their_place_in_the_order_of_arrival() -> None:
    """Core lists them apart, and those of now may be older than an arrival that it has told of before."""
    refused = engine.FinishedRequest(
        cursor=0,
        received_at=1.0,
        finished_at=1.0,
        prompt_tokens=800,
        cached_tokens=0,
        output_tokens=0,
        ttft_seconds=None,
        tpot_seconds=None,
        finish_reason="rejected",
    )
    load = advance(Load(), Observation(core_id="c", at=2.0, arrivals=(Arrival(id=1, at=1.5, prompt_tokens=10),)))
    later = tuple(refused.model_copy(update={"cursor": n, "received_at": at}) for n, at in enumerate((2.5, 1.2)))
    load = advance(load, Observation(core_id="c", at=3.0, finished=later))
    assert [(one.at, one.prompt) for one in load.window(3.0)] == [(1.2, 800), (1.5, 10), (2.5, 800)]
    work = [load.job(one, one.at, 512).work for one in load.window(3.0)]
    assert work[0] == work[2] > 10 * work[1]
    assert load.total == 3
    again = advance(load, Observation(core_id="c", at=3.5, finished=later, arrivals=load_of(1)))
    assert again.total == 3, "nobody is counted twice"
    assert advance(again, Observation(core_id="d", at=9.0, arrivals=load_of(0, 1))).total == 5, "of another core, too"


def load_of(*ids: int) -> tuple[Arrival, ...]:
    return tuple(Arrival(id=id, at=1.5, prompt_tokens=10) for id in ids)


def test_the_same_request_gets_the_same_length_in_every_evaluation() -> None:
    load = replace(Load(), lengths=tuple((100, n) for n in range(10, 500, 5)))
    assert [load.drawn(n, 100) for n in range(50)] == [load.drawn(n, 100) for n in range(50)]
    assert all(load.drawn(n, 100, done=300) > 300 for n in range(50))
    assert load.drawn(3, 100, done=900) > 900, "longer than any before it"
    assert load.drawn(3, 100, done=900, most=1000) <= 1000
    assert len({load.drawn(n, 100) for n in range(50)}) > 30


def test_a_length_is_drawn_from_prompts_of_the_same_size() -> None:
    """Documents have short answers and questions long ones: a mix that comes back is known at once."""
    load = replace(
        Load(), lengths=tuple((2000, 10 + n % 5) for n in range(30)) + tuple((50, 400 + n) for n in range(30))
    )
    assert max(load.drawn(n, 1800) for n in range(50)) < 20
    assert min(load.drawn(n, 60) for n in range(50)) >= 400
    assert {load.drawn(n, 300) < 20 for n in range(50)} == {True, False}, "like neither: any"


def turned(first: int, second: int, seconds: int = 240) -> Run:
    """Answers of one length, and from half of the time on of another, to prompts of one size at one rate."""
    half = seconds // 2
    jobs = [*poisson(4.0, half, 300, first, 1), *poisson(4.0, half, 300, second, 2, start=half)]
    slo = SLO(ttft_milliseconds=5000, tpot_milliseconds=500)
    return simulate(jobs, AgentConfig(slo=slo, partition=PartitionConfig(mode=Mode.AUTO)), half + 30, FAST)


@pytest.mark.parametrize(("first", "second"), [(200, 40), (40, 200)])
def test_lengths_follow_a_change_of_the_answers_alone(first: int, second: int) -> None:
    """Half a minute after the turn a request is expected to be as long as those of now are, longer or shorter: nothing
    else of the load has changed."""
    load = turned(first, second).controller.pilot._load
    expected = sum(load.drawn(n, 300) for n in range(400)) / 400
    assert expected == pytest.approx(second, rel=0.35)


def test_a_request_that_runs_is_expected_to_become_longer_than_it_is() -> None:
    load = replace(
        Load(),
        lengths=tuple((100, n) for n in range(1, 101)),
        grown={7: 90, 8: 150},
        seen={7: Seen(7, 1.0, 100, 1.0), 8: Seen(8, 1.0, 100, 1.0)},
    )
    assert 90 < load.output(load.seen[7]) <= 101
    assert load.output(load.seen[8]) > 150
    left = replace(load, grown={}, seen={7: Seen(7, 1.0, 100, 1.0, output=0, left=90)})
    assert 90 < left.output(left.seen[7]) <= 101, "so would one have whose client went away"
