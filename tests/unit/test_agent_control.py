"""The controller's state machine on a fake clock: generations, modes, epochs, restarts, outcomes; and the report."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.unit.agent_plant import FakeClock, worker

from semipd_agent import report
from semipd_agent.contract import (
    SLO,
    AgentConfig,
    Bounds,
    DecisionOutcome,
    DecisionReason,
    EnginePhase,
    Identity,
    Mode,
    PartitionConfig,
    PartitionReason,
    Split,
)
from semipd_agent.control import ConfigRefused, SplitController
from semipd_agent.partitioner import Grant, Partitioner, PartitionerUnavailable, Problem, select
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_agent.readiness import ReadyGate, engine_ready
from semipd_agent.report import LauncherState
from semipd_agent.slo.policy import Verdict
from semipd_engine.contract import (
    Device,
    EngineSnapshot,
    EngineState,
    FinishedRequest,
    ModelInfo,
    PacingMode,
    Phase,
    Refusal,
    SetPartition,
)
from semipd_engine.contract import Split as EngineSplit

pytestmark = pytest.mark.unit


def split(prefill: int, decode: int) -> Split:
    return Split(prefill_percent=prefill, decode_percent=decode)


def config(
    generation: int = 1,
    prefill: int = 60,
    decode: int = 80,
    mode: Mode = Mode.MANUAL,
    slo: SLO | None = None,
    bounds: Bounds | None = None,
) -> AgentConfig:
    partition = PartitionConfig(mode=mode, split=split(prefill, decode), bounds=bounds or Bounds())
    return AgentConfig(generation=generation, slo=slo, partition=partition)


class Bench:
    """A controller and the least engine that obeys it."""

    def __init__(self, start: AgentConfig, backend: Callable[[Mode], Partitioner] | None = None) -> None:
        self.clock = FakeClock()
        grant = Grant(cpus=(0, 1))
        self.controller = SplitController(backend or (lambda mode: select(Device.CPU, mode, grant)), start, self.clock)
        self.epoch = 0
        self.applied = 0
        self.sent: list[SetPartition] = []
        self.restarts: dict[str, int] = {"prefill": 0}

    def snapshot(self, **changes: object) -> EngineSnapshot:
        fields: dict[str, object] = {
            "monotonic_time": self.clock.now,
            "state": EngineState.READY,
            "split_epoch": self.epoch,
            "workers": tuple(worker(phase, self.applied) for phase in Phase),
            "restarts": self.restarts,
        }
        return EngineSnapshot.model_validate(fields | changes)

    def tick(self, *, answers: bool = True, obeys: bool = True) -> None:
        self.clock.now += 1
        self.applied = self.epoch if obeys else self.applied
        self.controller.observe(self.snapshot() if answers else None)
        if answers and (message := self.controller.pending()) is not None:
            self.sent.append(message)
            self.epoch = message.split_epoch

    def report(self, launcher: LauncherState | None = None, ready: bool = True) -> report.StatusReport:
        return report.build(
            self.controller,
            launcher or LauncherState(),
            Identity(pod="p"),
            ready=ready,
            now=self.clock.now,
            wall=self.clock.wall(),
        )


def test_the_configured_split_is_sent_and_read_back() -> None:
    bench = Bench(config())
    bench.tick()
    assert [(m.split_epoch, str(m.plan.split)) for m in bench.sent] == [(1, "prefill=60 decode=80")]
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
    assert bench.report().partition.policy == "Algorithm1"
    bench.controller.configure(config(2, 100, 100, Mode.AUTO, SLO(ttft_milliseconds=200), bounds))
    assert bench.report().partition.requested == split(90, 100)
    assert bench.report().decisions == ()
    narrower = Bounds(max_prefill_percent=70)
    bench.controller.configure(config(3, 100, 100, Mode.AUTO, targets, narrower))
    assert bench.report().partition.requested == split(70, 100)
    assert bench.report().decisions[0].reason is DecisionReason.BOUND_REACHED


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


# ---- the rest of the report -----------------------------------------------------------------------------------------


def done(n: int, ttft: float, tpot: float | None, now: float) -> tuple[FinishedRequest, ...]:
    return tuple(
        FinishedRequest(
            cursor=i,
            finished_at=now,
            prompt_tokens=1,
            cached_tokens=0,
            output_tokens=2,
            ttft_seconds=ttft,
            tpot_seconds=tpot,
            finish_reason="stop",
        )
        for i in range(n)
    )


@pytest.mark.parametrize(
    ("n", "ttft", "tpot", "attained", "reason"),
    [
        (0, 0.1, 0.01, None, "InsufficientTraffic"),
        (4, 0.1, 0.01, None, "InsufficientTraffic"),
        (5, 0.1, 0.01, True, "Attained"),
        (5, 0.6, 0.01, False, "TTFTAboveTarget"),
        (5, 0.1, 0.06, False, "TPOTAboveTarget"),
        (5, 0.1, None, None, "InsufficientTraffic"),
        (5, 0.6, None, False, "TTFTAboveTarget"),
    ],
)
def test_the_slo_over_the_window(n: int, ttft: float, tpot: float | None, attained: bool | None, reason: str) -> None:
    bench = Bench(config(slo=SLO(ttft_milliseconds=500, tpot_milliseconds=50, window_seconds=10)))
    bench.clock.now += 1
    bench.controller.observe(bench.snapshot(finished=done(n, ttft, tpot, bench.clock.now), next_cursor=n))
    slo = bench.report().slo
    assert slo is not None
    assert (slo.attained, slo.reason) == (attained, reason)
    assert slo.ttft is not None and slo.ttft.samples == n
    if n >= 5:
        assert slo.ttft.observed_milliseconds == pytest.approx(ttft * 1000)
        assert slo.ttft.attainment_percent == (100.0 if ttft < 0.5 else 0.0)
    assert (slo.feasible, slo.feasible_reason) == (None, "PolicyInactive")
    bench.clock.now += 3.5
    stale = bench.report().slo
    assert stale is not None and (stale.attained, stale.reason) == (None, "TelemetryStale")
    bench.clock.now += 10
    empty = bench.report().slo
    assert empty is not None and empty.ttft is not None and empty.ttft.samples == 0


def test_feasibility_is_the_policys_word() -> None:
    slo = SLO(ttft_milliseconds=500)
    bad = report.slo_report(slo, [], [], Verdict(feasible=False, feasible_reason="Overloaded"), auto=True, fresh=True)
    assert (bad.feasible, bad.feasible_reason) == (False, "Overloaded")
    unknown = report.slo_report(slo, [], [], Verdict(), auto=True, fresh=True)
    assert (unknown.feasible, unknown.feasible_reason) == (None, "InsufficientTraffic")


MODEL = ModelInfo(
    name="m",
    architecture="llama",
    dtype="float32",
    device="cpu",
    weight_bytes=7,
    max_model_len=1,
    kv_block_size=16,
    kv_bytes=1,
)


@pytest.mark.parametrize(
    ("changes", "state", "reason"),
    [
        ({"state": "loading", "load_progress_percent": 40}, EnginePhase.LOADING, "Loading"),
        ({"state": "failed", "reason": "OutOfMemory", "message": "no"}, EnginePhase.FAILED, "OutOfMemory"),
        ({"state": "failed", "message": "no"}, EnginePhase.FAILED, "LoadFailed"),
        ({"state": "degraded"}, EnginePhase.DEGRADED, ""),
        ({"state": "ready", "model": MODEL}, EnginePhase.READY, ""),
    ],
)
def test_the_engine_speaks_for_itself(changes: dict[str, object], state: EnginePhase, reason: str) -> None:
    bench = Bench(config())
    bench.controller.observe(bench.snapshot(**changes))
    engine = bench.report().engine
    assert (engine.state, engine.reason) == (state, reason)
    assert engine.load_progress_percent == changes.get("load_progress_percent")
    assert engine.message == changes.get("message", "")


def test_a_silent_engine_is_what_its_supervisor_says() -> None:
    bench = Bench(config())
    assert bench.report(ready=False).engine.state is EnginePhase.STARTING
    crashed = bench.report(LauncherState(running=False, crash_loop=True, message="exited with 2: no such directory"))
    assert (crashed.engine.state, crashed.engine.reason) == (EnginePhase.FAILED, "CrashLoop")
    assert "no such directory" in crashed.engine.message
    bench.controller.observe(bench.snapshot(model=MODEL))
    bench.clock.now += 10
    lost = bench.report().engine
    assert (lost.state, lost.reason, lost.model_name) == (EnginePhase.DEGRADED, "NotResponding", "m")


# ---- readiness ------------------------------------------------------------------------------------------------------


def test_ready_needs_a_live_verified_worker_of_each_phase() -> None:
    bench = Bench(config())
    now = bench.clock.now
    assert engine_ready(bench.snapshot(), now)
    assert not engine_ready(None, now)
    assert not engine_ready(bench.snapshot(state=EngineState.LOADING), now)
    assert not engine_ready(bench.snapshot(state=EngineState.DRAINING), now)
    assert not engine_ready(bench.snapshot(workers=(worker(Phase.PREFILL, 1),)), now)
    assert not engine_ready(bench.snapshot(workers=(worker(Phase.PREFILL, 1), worker(Phase.DECODE, 1, age=9))), now)
    assert not engine_ready(bench.snapshot(), now + 5)


def test_a_short_outage_does_not_flip_ready_a_long_one_does() -> None:
    bench, gate = Bench(config()), ReadyGate()
    gate.update(None, 0.0)
    assert not gate.ready(0.0)
    bench.clock.now = 10.0
    gate.update(bench.snapshot(), 10.0)
    for t in (11.0, 12.0):  # out from 10.1 to 12.0
        gate.update(None, t)
        assert gate.ready(t)
    assert gate.ready(12.9)
    gate.update(None, 13.5)
    assert not gate.ready(13.5)
    gate.update(bench.snapshot(monotonic_time=14.0), 14.0)
    assert gate.ready(14.0)
    gate.close()
    assert not gate.ready(14.0)
