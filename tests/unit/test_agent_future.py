"""What ModelPredictive plays under a split, the scores of that, and how sure a gain is."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from semipd_agent.contract import SLO, Bounds
from semipd_agent.slo.advance import advance
from semipd_agent.slo.future import Constants, Future, Played, Setting, score
from semipd_agent.slo.hindsight import Watch
from semipd_agent.slo.load import Load, Seen
from semipd_agent.slo.share_law import Curve, SharesSeen
from semipd_agent.slo.step_model import ASSUMED, StepModel
from semipd_engine import contract as engine
from semipd_engine.contract import Arrival, Observation

pytestmark = pytest.mark.unit
SETTING = Setting(SLO(ttft_milliseconds=1000), engine.Split(), Bounds())


def test_a_queue_that_is_there_is_no_matter_of_chance() -> None:
    """What those gain that wait already is sure, and the error of what may come is none of theirs."""
    future = Future(Observation(core_id="c", at=0.0), Load(), SETTING, (), 2, (), (0, 0, 1, 2), turns=9)
    better = Played((0.9, 0.8, 0.0, 1.0), (), (), 0, (0.5,)), Played((0.5, 0.6, 1.0, 0.0), (), (), 0, (0.5,))
    assert future.of_those_here(*better) == pytest.approx(0.3)
    assert future.error(*better) > 0.3


def test_a_future_that_repeats_itself_is_no_surer_for_it() -> None:
    """Nine seconds of arrivals played seven times say as much as nine seconds do."""
    played = Played((1.0, 0.0, 1.0, 0.0), (), (), 0, (0.5,)), Played((0.0, 0.0, 1.0, 1.0), (), (), 0, (0.5,))
    future = Future(Observation(core_id="c", at=0.0), Load(), SETTING, (), 0, (), (0, 1, 2, 3))
    assert replace(future, turns=4).error(*played) == pytest.approx(2 * future.error(*played))


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("targets", [(1.0, 0.05), (math.inf, 0.05), (1.0, math.inf)])
def test_scores_are_those_of_the_formula_to_the_last_bit(targets: tuple[float, float], known: bool) -> None:
    rng, c = random.Random(3), Constants()
    ttft, tpot = ([rng.lognormvariate(0, 2) * scale for _ in range(400)] for scale in (1.0, 0.05))
    tpot[7], ttft[8] = 0.0, 1.0
    got = score(ttft, tpot, *targets, c, known=known)
    slopes = (c.softness, c.pace_softness if known else c.softness)
    for a, b, one in zip(ttft, tpot, got.scores, strict=True):
        ratios = a / targets[0], b / targets[1]
        soft = [1.0 / (1.0 + ratio**slope) if ratio < 4 else 0.0 for ratio, slope in zip(ratios, slopes, strict=True)]
        lost = c.tail / math.log(c.hopeless) * math.log(min(max(*ratios, 1.0), c.hopeless))
        assert one == min(soft) - lost
    assert got.met == sum(a <= targets[0] and b <= targets[1] for a, b in zip(ttft, tpot, strict=True))


def test_a_pace_that_is_known_is_no_reason_to_give_up_waits() -> None:
    """At 92 % of the TPOT target, or further away with longer waits: a guess keeps its distance, and
    who knows what a share does takes the shorter wait."""
    close, far = ([0.75], [0.92]), ([0.85], [0.80])
    guessed = [score(*latencies, 1.0, 1.0, Constants()).mean for latencies in (close, far)]
    known = [score(*latencies, 1.0, 1.0, Constants(), known=True).mean for latencies in (close, far)]
    assert guessed[0] < guessed[1] and known[0] > known[1]


@pytest.mark.parametrize("phase", engine.Phase)
def test_a_pace_is_known_once_decodes_own_law_is(phase: engine.Phase) -> None:
    """What a share does to prefill says nothing of a TPOT, neither ahead nor afterwards."""
    arrived = tuple(Arrival(id=n, at=70.0 + n, prompt_tokens=100) for n in range(30))
    o = Observation(core_id="c", at=100.0, arrivals=arrived, prefill_chunk_tokens=512)
    came = {n: Seen(n, 70.0 + n, 100, 1.0, output=50, ttft=0.1, tpot=0.018) for n in range(30)}
    setting = Setting(SLO(ttft_milliseconds=1000, tpot_milliseconds=20), engine.Split(), Bounds())

    def judged(model: StepModel) -> tuple[float, float]:
        load = replace(advance(Load(model=model), o), seen=came, since=0.0)
        after = Watch(70.0, engine.Split(), (), ()).judged(o, load, setting)
        assert after is not None
        return Future.of(o, load, setting).play(engine.Split(), 30).mean, after[0]

    unknown = StepModel(replace(ASSUMED, prefill=(0.0, 1e-4, 0.0), decode=(0.016, 0.0, 0.0), measured=True))
    seen = SharesSeen(curve=Curve(0.0, 1.0))  # which a law of turns never asks: the latencies stay as they are
    known = replace(unknown, **{f"{phase}_shares": seen})
    ahead, afterwards = zip(judged(unknown), judged(known), strict=True)
    assert (ahead[0] != ahead[1]) == (afterwards[0] != afterwards[1]) == (phase is engine.Phase.DECODE)


def test_a_turn_that_was_cut_counts_for_its_part() -> None:
    """450 requests of half a minute, played until there are 500."""
    load = replace(Load(), seen={n: Seen(n, 70.0 + n / 15, 100, 1.0, output=10, ttft=0.1) for n in range(450)})
    future = Future.of(Observation(core_id="c", at=100.0), load, SETTING)
    assert len(future.jobs) == 500
    assert future.turns == pytest.approx(500 / 450)


def test_a_gain_under_one_of_the_possible_loads_only_is_not_sure() -> None:
    future = Future(Observation(core_id="c", at=0.0), Load(), SETTING, (), 0, (), (0, 1, 2, 3))
    even = Played((0.5,) * 4, (), (), 0, (0.5, 0.5, 0.5))
    sure, unsure = replace(even, means=(0.6, 0.6, 0.6)), replace(even, means=(0.6, 0.9, 0.3))
    assert future.error(sure, even) == pytest.approx(0.0)
    assert future.error(unsure, even) > 0.2
