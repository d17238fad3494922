"""What the partitioner refuses, loses or cannot prepare: the reason shown, and what is tried next."""

from __future__ import annotations

import pytest
from tests.unit.agent_bench import Bench, Rungs, config, split
from tests.unit.agent_plant import worker

from semipd_agent.contract import SLO, Bounds, DecisionOutcome, DecisionReason, EnginePhase, Mode, PartitionReason
from semipd_agent.engine_report import LauncherState
from semipd_agent.partitioner import Grant, PartitionerUnavailable, Problem
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_engine.contract import PacingMode, Phase, Refusal, WorkerReport
from semipd_engine.contract import Split as EngineSplit

pytestmark = pytest.mark.unit


class Moody(CpuPaced):
    """A backend that refuses until it is told not to, and whose mechanism may be replaced."""

    refuses = True
    incarnation = 0

    def preflight(self) -> None:
        if self.refuses:
            raise PartitionerUnavailable(PartitionReason.COMPUTE_MODE_UNSUPPORTED, "compute mode Prohibited")


def moody_bench(mode: Mode = Mode.MANUAL) -> tuple[Bench, Moody]:
    moody, grant = Moody(Grant(cpus=(0, 1))), Grant(cpus=(0, 1))
    return Bench(config(mode=mode), lambda m: Unlimited(grant) if m is Mode.DISABLED else moody), moody


def test_a_refusal_is_a_failure_with_its_own_reason() -> None:
    bench, _ = moody_bench()
    bench.tick(answers=False)
    assert not bench.controller.may_start
    refused = bench.report(LauncherState(started=False, running=False))
    assert (refused.partition.state, refused.partition.reason) == ("Failed", "ComputeModeUnsupported")
    assert refused.partition.enforcement == "none"
    bench.clock.now += 60
    engine = bench.report(LauncherState(started=False)).engine
    assert (engine.state, engine.reason, engine.message) == (
        EnginePhase.FAILED,
        "ComputeModeUnsupported",
        "compute mode Prohibited",
    )
    bench.controller.configure(config(2, mode=Mode.DISABLED))
    assert bench.controller.unavailable is None and bench.controller.may_start


def test_what_was_refused_is_taken_once_its_cause_is_gone() -> None:
    bench, moody = moody_bench()
    bench.controller.retry()
    assert not bench.controller.may_start
    moody.refuses = False
    bench.controller.retry()
    assert bench.controller.may_start
    bench.tick()
    bench.tick()
    assert bench.report().partition.applied == split(60, 80)
    bench.controller.retry()
    bench.tick()
    assert len(bench.sent) == 1, "nothing was refused, so nothing is tried again"


def test_a_running_engine_keeps_its_limits_when_another_backend_refuses() -> None:
    bench, _ = moody_bench(Mode.DISABLED)
    bench.tick()
    bench.tick()
    bench.controller.configure(config(2))
    bench.tick()
    bench.tick()
    assert bench.sent[-1].plan.mode is PacingMode.UNLIMITED
    assert bench.report().partition.reason == "ComputeModeUnsupported"


def test_a_new_incarnation_is_the_same_split_under_a_new_epoch() -> None:
    bench, moody = moody_bench()
    moody.refuses = False
    bench.controller.retry()
    bench.tick()
    bench.tick()
    bench.controller.configure(config(2, 30, 70))
    moody.incarnation = 1
    bench.tick()
    bench.tick()
    assert [(m.split_epoch, m.plan.split.prefill) for m in bench.sent][-1] == (bench.epoch, 30)
    assert bench.epoch == bench.controller.intent.epoch
    moody.incarnation, moody.lost = 2, Problem(PartitionReason.MPS_DAEMON_DIED, "it ended")
    before = bench.epoch
    bench.tick()
    assert bench.report().partition.message.startswith("after MPSDaemonDied; epoch")
    bench.tick()
    assert (bench.epoch, bench.sent[-1].plan.split.prefill) == (before + 1, 30)
    decision = bench.report().decisions[0]
    assert decision.outcome is DecisionOutcome.APPLIED, "the decision is carried over to the new epoch"
    assert bench.report().partition.changes == 1


def test_a_split_that_cannot_be_prepared_is_rolled_back_in_auto_and_tried_anew_in_manual() -> None:
    for mode in (Mode.AUTO, Mode.MANUAL):
        bench = Bench(config(mode=mode, slo=SLO(ttft_milliseconds=500) if mode is Mode.AUTO else None))
        bench.tick()
        bench.tick()
        in_force = EngineSplit(prefill=60, decode=80)
        bench.controller.configure(config(2, 30, 70, mode, SLO(ttft_milliseconds=500) if mode is Mode.AUTO else None))
        epoch = bench.controller.intent.epoch
        refused = Refusal(split_epoch=epoch, reason="SMCountMismatch", message="sees 132")
        stay = tuple(worker(p, 1).model_copy(update={"percent": in_force.of(p)}) for p in Phase)
        bench.controller.observe(bench.snapshot(workers=stay, refused=refused))
        assert bench.report().decisions[0].reason is (
            DecisionReason.ROLLBACK if mode is Mode.AUTO else DecisionReason.MANUAL_CHANGE
        )
        if mode is Mode.AUTO:
            assert bench.controller.requested == in_force and bench.controller.intent.epoch == epoch + 1
        else:
            assert bench.report().partition.reason == "PreparationFailed"
            assert bench.report().partition.applied == split(60, 80)
            bench.clock.now += 61
            bench.controller.observe(bench.snapshot(workers=stay, refused=refused))
            assert (bench.controller.intent.epoch, bench.controller.requested.prefill) == (epoch + 1, 30)


def bounded_bench(prefill: int, decode: int) -> tuple[Bench, tuple[WorkerReport, ...]]:
    """Auto, 80/100 in force and its workers, and a configuration since then whose bounds exclude it."""
    targets, bounds = SLO(ttft_milliseconds=500), Bounds(max_prefill_percent=50)
    bench = Bench(config(1, 80, 100, Mode.AUTO, targets), lambda mode: Rungs(Grant(cpus=(0, 1))))
    bench.tick()
    bench.tick()
    bench.controller.configure(config(2, prefill, decode, Mode.AUTO, targets, bounds))
    return bench, tuple(worker(p, 1).model_copy(update={"percent": (80, 100)[p is Phase.DECODE]}) for p in Phase)


def test_what_bounds_leave_no_other_for_is_tried_anew_each_minute_while_the_old_split_serves() -> None:
    """Auto cannot go back: the split in force is out of the bounds, and what is nearest to it is what was refused."""
    bench, stay = bounded_bench(80, 100)
    tried = set[int]()
    for _ in range(150):
        bench.clock.now += 1
        tried.add(epoch := bench.controller.intent.epoch)
        refused = Refusal(split_epoch=epoch, reason="WarmUpFailed", message="no memory")
        bench.controller.observe(bench.snapshot(workers=stay, refused=refused))
    assert len(tried) == 3
    told = bench.report()
    assert [d.reason for d in told.decisions] == [DecisionReason.BOUND_REACHED]
    assert (told.partition.reason, told.partition.applied) == ("PreparationFailed", split(80, 100))
    bench.tick()
    bench.tick()
    assert bench.controller.requested == EngineSplit(prefill=50, decode=100)
    assert bench.report().partition.applied == split(50, 100)


def test_auto_goes_back_as_far_as_the_bounds_have_it() -> None:
    """Then `requested` is what is in force, and no split that the bounds exclude."""
    bench, stay = bounded_bench(40, 60)
    refused = Refusal(split_epoch=bench.controller.intent.epoch, reason="WarmUpFailed", message="no memory")
    bench.controller.observe(bench.snapshot(workers=stay, refused=refused))
    assert bench.report().decisions[0].reason is DecisionReason.ROLLBACK
    assert bench.controller.requested == bench.controller.intent.split == EngineSplit(prefill=50, decode=100)
