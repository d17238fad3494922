"""The controller's state machine on a fake clock: generations, epochs, restarts, outcomes, modes."""

from __future__ import annotations

import pytest
from tests.unit.agent_bench import Bench, config, split
from tests.unit.agent_plant import Speed, poisson, simulate

from semipd_agent.config import ConfigRefused
from semipd_agent.contract import (
    SLO,
    AgentConfig,
    Bounds,
    Decision,
    DecisionOutcome,
    DecisionReason,
    Enforcement,
    Mode,
    Prediction,
)
from semipd_agent.decisions import DecisionLog
from semipd_agent.partitioner import Grant
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_agent.slo.policy import Verdict
from semipd_agent.slo.step_model import ShareLaw
from semipd_agent.slo.window import Evidence
from semipd_engine.contract import Observation, Promised, QueuedRequest, RunningRequest

pytestmark = pytest.mark.unit


def test_the_configured_split_is_sent_and_read_back() -> None:
    bench = Bench(config())
    bench.tick()
    assert [(m.split_epoch, str(m.plan.split)) for m in bench.sent] == [(1, "60/80")]
    assert bench.report().partition.applied is None
    bench.tick()
    partition = bench.report().partition
    assert partition.applied == partition.requested == partition.quantized == split(60, 80)
    assert (partition.state, partition.backend, partition.enforcement, partition.policy) == (
        "Applied",
        "cpu-paced",
        "paced",
        None,
    )
    assert bench.report().decisions == ()
    bench.tick()
    assert len(bench.sent) == 1


class Capped(CpuPaced):
    enforcement = Enforcement.SPATIAL_CAP


def test_the_core_is_told_what_the_service_promises() -> None:
    """So that a request's own wish cannot ask for more."""
    bench = Bench(config(slo=SLO(ttft_milliseconds=500)))
    assert bench.controller.promised == Promised(ttft_seconds=0.5)
    bench.controller.configure(config(2))
    assert bench.controller.promised == Promised()


def test_a_mode_that_enforces_otherwise_is_predicted_by_its_own_law() -> None:
    grant = Grant(cpus=(0, 1))
    bench = Bench(config(mode=Mode.DISABLED), lambda mode: Unlimited(grant) if mode is Mode.DISABLED else Capped(grant))
    assert bench.controller.pilot._load.model.profile.law is ShareLaw.PACED
    bench.controller.configure(config(2, mode=Mode.AUTO, slo=SLO(ttft_milliseconds=500)))
    assert bench.controller.pilot._load.model.profile.law is ShareLaw.SPATIAL


def test_a_manual_change_is_a_decision_with_an_outcome() -> None:
    bench = Bench(config())
    bench.tick()
    bench.tick()
    bench.controller.configure(config(2, 30, 70))
    assert bench.report().partition.applied == split(60, 80)
    assert bench.report().decisions[0].outcome is DecisionOutcome.PENDING
    bench.tick()
    bench.tick()
    decision = bench.report().decisions[0]
    assert (decision.from_split, decision.to) == (split(60, 80), split(30, 70))
    assert (decision.reason, decision.outcome) == (DecisionReason.MANUAL_CHANGE, DecisionOutcome.APPLIED)
    assert bench.report().partition.changes == 1
    assert bench.report().partition.last_change_time == decision.time


def test_generations_are_idempotent_and_never_go_back() -> None:
    bench = Bench(config(3))
    bench.controller.configure(config(3))
    bench.controller.configure(config(4, 50, 50))
    with pytest.raises(ConfigRefused) as e:
        bench.controller.configure(config(3, 10, 10))
    assert e.value.code == "StaleGeneration"
    assert bench.report().partition.requested == split(50, 50)
    assert bench.report().config_generation == 4
    assert len(bench.report().decisions) == 1


def test_the_generations_of_a_service_that_was_made_anew_count_anew() -> None:
    def of(uid: str, generation: int, prefill: int) -> AgentConfig:
        return config(generation, prefill).model_copy(update={"uid": uid})

    bench = Bench(of("", 7, 60))
    assert bench.report().config_uid == "" and '"uid"' not in of("", 7, 60).model_dump_json()
    bench.controller.configure(of("first", 7, 60))  # an upgrade of the operator: the same generation says whose it is
    bench.controller.configure(of("", 7, 60))  # and its roll-back does not
    with pytest.raises(ConfigRefused, match="another partition"):
        bench.controller.configure(of("", 7, 50))
    with pytest.raises(ConfigRefused, match="older than 7"):
        bench.controller.configure(of("first", 6, 50))
    bench.controller.configure(of("second", 1, 30))
    assert (bench.report().config_generation, bench.report().config_uid) == (1, "second")
    assert bench.report().partition.requested.prefill_percent == 30
    with pytest.raises(ConfigRefused, match="another partition"):
        bench.controller.configure(of("second", 1, 40))


@pytest.mark.parametrize(("version", "taken"), [(0, True), (1, True), (2, False)])
def test_versions(version: int, taken: bool) -> None:
    bench = Bench(config())
    wanted = config(2, 20, 20).model_copy(update={"version": version})
    if taken:
        bench.controller.configure(wanted)
        assert bench.report().partition.requested == split(20, 20)
    else:
        with pytest.raises(ConfigRefused, match="version 2"):
            bench.controller.configure(wanted)


def test_a_second_change_supersedes_a_pending_one() -> None:
    bench = Bench(config())
    bench.tick()
    bench.controller.configure(config(2, 30, 70))
    bench.controller.configure(config(3, 40, 60))
    bench.tick()
    bench.tick()
    assert [d.outcome for d in bench.report().decisions] == [DecisionOutcome.APPLIED, DecisionOutcome.SUPERSEDED]


def test_the_split_survives_a_new_core_under_a_higher_epoch() -> None:
    bench = Bench(config())
    bench.tick()
    bench.controller.configure(config(2, 30, 70))
    bench.tick()
    bench.tick()
    bench.restarts = {"prefill": 2}
    bench.tick()
    bench.epoch, bench.restarts = 0, {"prefill": 1}
    for _ in range(3):
        bench.tick()
    assert [m.split_epoch for m in bench.sent] == [1, 2, 3]
    assert bench.sent[-1].plan.split == bench.sent[-2].plan.split
    assert bench.report().partition.state == "Applied"
    assert bench.report().engine.restarts == {"launcher": 0, "core": 1, "prefill": 3}
    assert len(bench.report().decisions) == 1


def test_an_epoch_of_someone_else_is_outbid() -> None:
    bench = Bench(config())
    bench.epoch = 41
    bench.tick()
    assert bench.sent[-1].split_epoch == 42


def test_a_lost_message_is_sent_again() -> None:
    bench = Bench(config())
    bench.tick()
    bench.epoch = 0
    bench.controller.observe(bench.snapshot())
    assert bench.controller.pending() is not None


def test_twenty_decisions_are_kept_newest_first() -> None:
    bench = Bench(config())
    for generation in range(2, 40):
        bench.controller.configure(config(generation, 20 + generation, 50))
    decisions = bench.report().decisions
    assert len(decisions) == 20
    assert decisions[0].to == split(59, 50)
    assert bench.controller.log.counts[DecisionReason.MANUAL_CHANGE] == 38


# ---- modes ----------------------------------------------------------------------------------------------------------


def test_disabled_limits_nothing_and_says_so() -> None:
    bench = Bench(config(mode=Mode.DISABLED))
    bench.tick()
    bench.tick()
    partition = bench.report().partition
    assert (partition.state, partition.reason, partition.enforcement) == ("Applied", "Disabled", "none")
    assert partition.requested == split(60, 80)
    assert partition.quantized == partition.applied == split(100, 100)
    assert bench.sent[-1].plan.mode == "unlimited"


def test_a_change_of_mode_is_a_decision_even_with_the_same_split() -> None:
    bench = Bench(config(1, 100, 100))
    bench.tick()
    bench.controller.configure(config(2, 100, 100, mode=Mode.DISABLED))
    bench.tick()
    bench.tick()
    assert bench.report().decisions[0].message == "generation 2: mode Manual to Disabled"
    assert bench.report().partition.changes == 0
    assert bench.sent[-1].plan.enforcement == "none"


def test_auto_starts_within_its_bounds_and_keeps_its_split_when_only_targets_change() -> None:
    bounds = Bounds(max_prefill_percent=90)
    targets = SLO(ttft_milliseconds=500)
    bench = Bench(config(1, 100, 100, Mode.AUTO, targets, bounds))
    assert bench.report().partition.requested == split(90, 100)
    assert bench.report().partition.policy == "ModelPredictive"
    bench.controller.configure(config(2, 100, 100, Mode.AUTO, SLO(ttft_milliseconds=200), bounds))
    assert bench.report().partition.requested == split(90, 100)
    assert bench.report().decisions == ()
    narrower = Bounds(max_prefill_percent=70)
    bench.controller.configure(config(3, 100, 100, Mode.AUTO, targets, narrower))
    assert bench.report().partition.requested == split(70, 100)
    assert bench.report().decisions[0].reason is DecisionReason.BOUND_REACHED


def test_the_policy_learns_whether_prompts_wait_for_room_or_for_prefill() -> None:
    class Spy:
        seen: list[bool]

        def observe(self, evidence: Evidence, split: object, bounds: object, now: float) -> Verdict:
            self.seen.append(evidence.held_back)
            return Verdict()

    bench = Bench(config(mode=Mode.AUTO, slo=SLO(ttft_milliseconds=500)))
    bench.tick()
    bench.tick()
    spy = Spy()
    spy.seen = []
    bench.controller.pilot.policy = spy
    for waiting, prefilling in ((0, 0), (3, 1), (3, 0)):
        queue = tuple(QueuedRequest(id=i, received_at=bench.clock.now, uncached_tokens=9) for i in range(waiting))
        running = tuple(
            RunningRequest(id=9 + i, received_at=0.0, prompt_tokens=9, uncomputed_tokens=5) for i in range(prefilling)
        )
        seen = Observation(core_id="c", at=bench.clock.now, queue=queue, running=running)
        bench.controller.observe(bench.snapshot(observation=seen))
    assert spy.seen == [False, False, True]


def test_what_came_of_a_prediction_stands_beside_it() -> None:
    """A minute after the move is in force: of the requests that came since, how many met both targets."""
    slo = SLO(ttft_milliseconds=750, tpot_milliseconds=30)
    speed = Speed(prompt_token=5e-5, step=0.006, row=0.0003)
    run = simulate(
        poisson(3.25, 110, 2000, 60, 1), config(prefill=100, decode=100, mode=Mode.AUTO, slo=slo), 110, speed
    )
    first = run.controller.log.newest_first()[-1]
    assert first.predicted is not None and first.realised_attainment_percent is not None
    moved = next(second for second, split in enumerate(run.splits, 1) if split != run.splits[0])
    came = [r for r in run.engine.done if moved + 1 <= r.at <= moved + 61]
    met = sum(r.ttft is not None and r.ttft <= 0.75 and (r.tpot or 0) <= 0.03 for r in came) / len(came)
    assert first.realised_attainment_percent == pytest.approx(100 * met, abs=8), (
        "those at the edges count here or there"
    )
    assert f"; {first.realised_attainment_percent} % of " in first.message and "in its first 60 s" in first.message


def foretold(bench: Bench) -> DecisionLog:
    """A move that was applied at second 100."""
    log, promise = DecisionLog(), Prediction(attainment_percent=90.0, ttft_milliseconds=1.0, tpot_milliseconds=1.0)
    reason = DecisionReason.BETTER_SPLIT_PREDICTED
    move = Decision(
        time=bench.clock.wall(), from_split=split(100, 100), to=split(100, 40), reason=reason, predicted=promise
    )
    log.record(1, move)
    log.settle(1, DecisionOutcome.APPLIED, 100.0)
    return log


def test_what_came_late_is_held_against_no_prediction() -> None:
    """Too few within two minutes: of those that come an hour later nobody said anything."""
    log = foretold(Bench(config()))
    assert [log.due(now) for now in (159.0, 160.0, 220.0, 220.5, 3700.0)] == [None, 100.0, 100.0, None, None]
    log.realise(80.0, 12, 60.0)
    assert log.due(161.0) is None, "once"


def test_what_was_predicted_under_other_targets_is_held_against_nothing() -> None:
    bench = Bench(config(mode=Mode.AUTO, slo=SLO(ttft_milliseconds=500)))
    bench.controller.log = bench.controller.pilot.log = log = foretold(bench)
    bench.controller.configure(config(2, mode=Mode.AUTO, slo=SLO(ttft_milliseconds=500)))
    assert log.due(160.0) == 100.0
    bench.controller.configure(config(3, mode=Mode.AUTO, slo=SLO(ttft_milliseconds=900)))
    assert log.due(160.0) is None
