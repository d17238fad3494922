"""ModelPredictive: its decisions, and how still it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.agent_plant import Run, Speed, poisson, simulate

from semipd_agent.contract import SLO, AgentConfig, Bounds, DecisionReason, Mode, PartitionConfig, Split
from semipd_agent.slo.advance import advance
from semipd_agent.slo.candidates import candidates, mixed_choices
from semipd_agent.slo.future import Setting
from semipd_agent.slo.grid import Grid
from semipd_agent.slo.load import Load, Seen
from semipd_agent.slo.predictive import Decision, Hold, ModelPredictive, State, decide
from semipd_agent.slo.share_law import Curve, SharesSeen
from semipd_agent.slo.step_model import ASSUMED, ShareLaw, StepModel
from semipd_cli.simulator.engine import Size, VirtualEngine
from semipd_cli.simulator.oracle import ORACLES
from semipd_cli.simulator.policies import Auto
from semipd_cli.simulator.workloads import Lengths, stream
from semipd_engine import contract as engine
from semipd_engine.contract import Arrival, Observation, RunningRequest

pytestmark = pytest.mark.unit
FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)
SETTING = Setting(SLO(ttft_milliseconds=1000), engine.Split(), Bounds())


def auto(targets: SLO, start: Split | None = None, bounds: Bounds | None = None) -> AgentConfig:
    partition = PartitionConfig(mode=Mode.AUTO, split=start or Split(), bounds=bounds or Bounds())
    return AgentConfig(slo=targets, partition=partition)


def test_decide_is_pure_and_names_why_it_holds() -> None:
    observation = Observation(core_id="c", at=100.0)
    setting = Setting(SLO(ttft_milliseconds=500), engine.Split(), Bounds())
    state = State()
    assert decide(observation, Load(), state, setting) == (Hold("Idle"), state)
    few = replace(Load(), seen={0: Seen(0, 99.0, 10, 1.0)})
    assert decide(observation, few, state, setting)[0] == Hold("InsufficientTraffic")


def test_no_isolation_is_a_choice_where_it_is_allowed_and_nothing_is_limited() -> None:
    o = Observation(core_id="c", at=1.0, prefill_chunk_tokens=100)
    allowed = replace(SETTING, mixes=True)
    assert [s.mixed_tokens for s in mixed_choices(o, allowed)] == [100, 50], "a quarter of it would be too few"
    assert mixed_choices(o, SETTING) == []
    assert mixed_choices(o, replace(allowed, bounds=Bounds(max_decode_percent=90))) == []


@pytest.mark.parametrize("mixing", [1.0, 3.0])
def test_auto_mixes_where_that_is_faster_and_comes_back_where_it_is_not(mixing: float) -> None:
    """Long prompts beside short answers. Mixed steps at their best leave every split behind; where they take three
    times as long, that is seen, and the policy comes back."""
    slo = SLO.model_construct(ttft_milliseconds=1000, tpot_milliseconds=40, percentile=90, window_seconds=60)
    auto = Auto(slo, "cpu", mixes=True)
    arrivals = stream(2.6, 150, Lengths(2000, 60), 3)
    virtual = VirtualEngine(arrivals, replace(ORACLES["other-cpu"], mixing=mixing), Size(), 3, engine.Split())
    split, seen, cursor = engine.Split(), [], 0
    for second in range(1, 150):
        virtual.run_until(float(second))
        o = virtual.observe(cursor)
        cursor = o.next_cursor
        if (to := auto.tick(o, split)) is not None:
            split = to
            virtual.switch(split)
        seen.append(split)
    assert any(s.mixed_tokens for s in seen), "it looked best"
    assert bool(seen[-1].mixed_tokens) == (mixing == 1.0)


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(min_prefill_percent=40, max_decode_percent=60)])
def test_candidates_keep_to_bounds_and_rungs_and_hold_the_unlimited_split(bounds: Bounds) -> None:
    for grid in (Grid(), Grid((10, 20, 40, 60, 80, 100))):
        found = candidates(Setting(SLO(ttft_milliseconds=1), engine.Split(), bounds, grid))
        for split in found:
            assert bounds.min_prefill_percent <= split.prefill <= bounds.max_prefill_percent
            assert bounds.min_decode_percent <= split.decode <= bounds.max_decode_percent
            assert not grid.rungs or {split.prefill, split.decode} <= set(grid.rungs)
        assert any((s.prefill, s.decode) == (bounds.max_prefill_percent, bounds.max_decode_percent) for s in found)
        shares = [(round(200 * s.prefill / max(100, s.prefill + s.decode)), s.prefill + s.decode > 100) for s in found]
        assert len(set(shares)) == len(found), "no choice twice"


def pressed(state: State, *, at: float, laws: int = 0) -> tuple[object, State]:
    """A young regime of nine seconds in which decode has far more than it needs: a plain emergency."""
    arrivals = tuple(Arrival(id=n, at=at - 9.0 + 0.3 * n, prompt_tokens=1500) for n in range(30))
    waiting = tuple(engine.QueuedRequest(id=n, received_at=at - 0.5, uncached_tokens=1500) for n in range(25, 30))
    o = Observation(core_id="c", at=at, arrivals=arrivals, queue=waiting, prefill_chunk_tokens=512, max_num_seqs=64)
    model = StepModel(replace(ASSUMED, prefill=(0.0, 1e-4, 0.0), decode=(0.01, 0.0, 0.0), measured=True))
    model = replace(model, decode_shares=SharesSeen(curve=Curve(0.0, 1.0) if laws else None))
    load = replace(advance(Load(model=model), o), lengths=((1500, 100),) * 30, regime_since=90.0)
    setting = Setting(
        SLO(ttft_milliseconds=2000, tpot_milliseconds=200), engine.Split(prefill=20, decode=100), Bounds()
    )
    return decide(o, load, state, setting)


def test_nobody_is_starved_on_the_word_of_an_assumed_curve() -> None:
    """It says that decode hardly suffers with 100/10; of what it does to a device nothing was seen yet."""
    arrivals = tuple(Arrival(id=n, at=70.0 + 0.25 * n, prompt_tokens=3000) for n in range(120))
    waiting = tuple(
        engine.QueuedRequest(id=n, received_at=70 + 0.25 * n, uncached_tokens=3000) for n in range(110, 120)
    )
    rows = tuple(
        RunningRequest(id=n, received_at=70.0, prompt_tokens=3000, output_tokens=20, first_token_at=99.0)
        for n in range(90, 110)
    )
    o = Observation(core_id="c", at=100.0, arrivals=arrivals, queue=waiting, running=rows, prefill_chunk_tokens=512)
    profile = replace(ASSUMED, prefill=(0.0, 8e-5, 0.0), decode=(0.005, 0.0, 0.0), measured=True)
    chosen = {}
    for law in ShareLaw:
        for seen in (None, profile.decode_curve):
            model = replace(StepModel(replace(profile, law=law)), decode_shares=SharesSeen(curve=seen))
            load = replace(advance(Load(model=model), o), since=0.0, lengths=((3000, 60),) * 30)
            slo = SLO(ttft_milliseconds=2000, tpot_milliseconds=500)
            ready = State(intent="gain prefill", confirmed=1, laws_known=1)
            setting = Setting(slo, engine.Split(), Bounds(), Grid((10, 20, 30, 40, 50, 60, 80, 100)))
            decided, _ = decide(o, load, ready, setting)
            assert isinstance(decided, Decision)
            chosen[law, seen is not None] = str(decided.to)
    assert chosen[ShareLaw.SPATIAL, False] == "100/20"
    assert {chosen[ShareLaw.SPATIAL, True], chosen[ShareLaw.PACED, False]} == {"100/10"}


def test_an_emergency_has_a_second_look() -> None:
    first, state = pressed(State(), at=100.0)
    assert isinstance(first, Hold) and first.reason == "Confirming"
    second, _ = pressed(state, at=102.0)
    assert isinstance(second, Decision) and second.reason == "Emergency", "in a regime too young for anything else"
    assert second.to.prefill / (second.to.prefill + second.to.decode) > 0.4


def test_an_emergency_asks_for_better_evidence_with_each_move() -> None:
    """A gain of three errors is enough at first; after ten moves under one load it is taken for chance."""
    ready = State(regime=90.0, intent="gain prefill", confirmed=1)
    assert isinstance(pressed(ready, at=100.0)[0], Decision)
    after, _ = pressed(replace(ready, moves=10), at=100.0)
    assert isinstance(after, Hold) and after.reason == "TooLittleGain"


def test_what_is_learned_of_the_device_gives_a_free_hand() -> None:
    """Ten moves were made by one who believed; of who has seen what a share does they say nothing. Once for each
    phase: what was known before, or is known again, frees nothing."""
    ready = State(regime=90.0, intent="gain prefill", confirmed=1, moves=10)
    decided, after = pressed(ready, at=100.0, laws=1)
    assert isinstance(decided, Decision) and (after.moves, after.laws_known) == (1, 1)
    for seen in (1, 2):
        held, _ = pressed(replace(ready, laws_known=seen), at=100.0, laws=1)
        assert isinstance(held, Hold) and held.reason == "TooLittleGain"


def test_a_second_look_must_find_the_same_intent() -> None:
    """To give a split back, or to leave it for the other phase, is another thing than what was about to be done."""
    _, state = pressed(State(), at=100.0)
    assert state.intent == "gain prefill"
    for other in ("give back prefill", "gain decode"):
        choice, after = pressed(replace(state, intent=other), at=102.0)
        assert isinstance(choice, Hold) and choice.reason == "Confirming"
        assert (after.intent, after.confirmed) == ("gain prefill", 1)


def prompts(seed: int, start: Split | None = None, seconds: int = 240) -> Run:
    return simulate(
        poisson(3.25, seconds, 2000, 60, seed),
        auto(SLO(ttft_milliseconds=750, tpot_milliseconds=30), start),
        seconds,
        FAST,
    )


def test_it_finds_the_better_split_promises_and_comes_to_rest() -> None:
    """2,000-token prompts at 3.25/s: prefill needs most of the device, wherever the split starts."""
    for start in (Split(), Split(prefill_percent=30)):
        run = prompts(1, start)
        assert run.share(120) >= 0.65
        assert run.moves(120) <= 1
        moved = run.controller.log.newest_first()[-1]
        assert moved.reason is DecisionReason.BETTER_SPLIT_PREDICTED
        assert moved.predicted is not None and moved.predicted.attainment_percent > 50
        assert "expected within both targets" in moved.message
    still = simulate(
        poisson(3.25, 240, 2000, 60, 1), AgentConfig(slo=SLO(ttft_milliseconds=750, tpot_milliseconds=30)), 240, FAST
    )
    assert run.attainment(SLO(ttft_milliseconds=750, tpot_milliseconds=30), 60) > still.attainment(
        SLO(ttft_milliseconds=750, tpot_milliseconds=30), 60
    )


def test_a_pod_that_is_bound_by_places_in_the_batch_is_recognised() -> None:
    """Four places and long answers: TTFT fails, and no split makes room. Prefill is not starved of decode for it."""
    targets = SLO(ttft_milliseconds=1000, tpot_milliseconds=100)
    run = simulate(poisson(2.0, 120, 300, 400, 1), auto(targets), 120, FAST, Size(max_num_seqs=4))
    verdict = run.controller.pilot.verdict
    assert (verdict.feasible, verdict.feasible_reason) == (False, "KVBound")
    assert run.share(119) <= 0.5


def test_a_target_below_the_service_time_is_named() -> None:
    targets = SLO(ttft_milliseconds=20, tpot_milliseconds=100)
    run = simulate(poisson(1.0, 90, 2000, 60, 1), auto(targets), 90, FAST)
    assert (run.controller.pilot.verdict.feasible, run.controller.pilot.verdict.feasible_reason) == (
        False,
        "TargetBelowServiceTime",
    )


def test_a_controller_that_meets_a_running_engine_has_a_future_to_play() -> None:
    """It knows the arrivals of the minute before it, although none came lately and nobody waits."""
    arrivals = tuple(Arrival(id=n, at=40.0 + n, prompt_tokens=100) for n in range(30))
    done = [
        engine.FinishedRequest(
            cursor=n,
            id=n,
            received_at=40.0 + n,
            finished_at=80.0,
            prompt_tokens=100,
            cached_tokens=0,
            output_tokens=20,
            ttft_seconds=0.2,
            tpot_seconds=0.02,
            finish_reason="length",
        )
        for n in range(29)
    ]
    last = engine.RunningRequest(
        id=29,
        received_at=69.0,
        prompt_tokens=100,
        uncomputed_tokens=0,
        output_tokens=5,
        max_tokens=400,
        first_token_at=70.0,
        last_token_at=90.0,
    )
    o = Observation(core_id="c", at=90.0, arrivals=arrivals, finished=tuple(done), running=(last,))
    setting = Setting(SLO(ttft_milliseconds=500, tpot_milliseconds=50), engine.Split(), Bounds())
    choice, _ = decide(o, advance(Load(), o), State(), setting)
    assert isinstance(choice, Hold) and choice.here is not None and choice.here.ttft > 0


def test_equal_observations_give_equal_decisions() -> None:
    """Nothing but its arguments is in a decision: no clock, no chance."""
    first, second = prompts(3, seconds=60), prompts(3, seconds=60)
    assert [d.model_dump() for d in first.controller.log.newest_first()] == [
        d.model_dump() for d in second.controller.log.newest_first()
    ]


def test_without_an_observation_it_says_so() -> None:
    from semipd_agent.slo.window import Evidence

    verdict = ModelPredictive(SLO(ttft_milliseconds=500)).observe(Evidence(), engine.Split(), Bounds(), 1.0)
    assert (verdict.move, verdict.feasible_reason) == (None, "NoObservation")
