"""What the agent reports beside the split: the SLO over the window, and the engine's state."""

from __future__ import annotations

import pytest
from tests.unit.agent_bench import Bench, config
from tests.unit.agent_plant import worker

from semipd_agent import report
from semipd_agent.contract import (
    SLO,
    EnginePhase,
    Mode,
)
from semipd_agent.engine_report import LauncherState
from semipd_agent.partitioner import Grant
from semipd_agent.partitioner.unlimited import Unlimited
from semipd_agent.slo.attainment import Attainment
from semipd_agent.slo.feasibility import Judge
from semipd_agent.slo.policy import Verdict
from semipd_engine.contract import FinishedRequest, ModelInfo, Observation, Phase

pytestmark = pytest.mark.unit


def done(n: int, ttft: float, tpot: float | None, now: float) -> tuple[FinishedRequest, ...]:
    return tuple(
        FinishedRequest(
            cursor=i,
            received_at=now - 1,
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
    seen = Observation(core_id="c", at=bench.clock.now, finished=done(n, ttft, tpot, bench.clock.now), next_cursor=n)
    bench.controller.observe(bench.snapshot(observation=seen))
    slo = bench.report().slo
    assert slo is not None
    assert (slo.attained, slo.reason) == (attained, reason)
    assert slo.ttft is not None and slo.ttft.samples == n
    if n >= 5:
        assert slo.ttft.observed_milliseconds == pytest.approx(ttft * 1000)
        assert slo.ttft.attainment_percent == (100.0 if ttft < 0.5 else 0.0)
    assert (slo.feasible, slo.feasible_reason) == (None, "PolicyInactive")
    assert slo.arrivals == bench.controller.pilot.arrivals
    bench.clock.now += 3.5
    stale = bench.report().slo
    assert stale is not None and stale.arrivals is None, "it may have gone on"
    assert stale is not None and (stale.attained, stale.reason) == (None, "TelemetryStale")
    bench.clock.now += 10
    empty = bench.report().slo
    assert empty is not None and empty.ttft is not None and empty.ttft.samples == 0


def test_feasibility_is_the_policys_word() -> None:
    slo = SLO(ttft_milliseconds=500)
    bad = report.slo_report(
        slo, Attainment(), Verdict(feasible=False, feasible_reason="KVBound"), auto=True, fresh=True
    )
    assert (bad.feasible, bad.feasible_reason) == (False, "KVBound")
    assert "another pod helps" in bad.feasible_message
    unknown = report.slo_report(slo, Attainment(), Verdict(), auto=True, fresh=True)
    assert (unknown.feasible, unknown.feasible_reason) == (None, "InsufficientTraffic")
    assert unknown.feasible_message == "too few requests to judge by"
    trouble = Judge().told("TTFTBound", known=True, now=0.0)
    early = report.slo_report(slo, Attainment(), Verdict(None, trouble.feasible, trouble.said), auto=True, fresh=True)
    assert (early.feasible, early.feasible_reason) == (None, "Doubtful")
    assert early.feasible_message.startswith("no split seems to keep") and "for 10 s" in early.feasible_message
    assert trouble.told("", known=False, now=5.0).said == "", "it went before it was one"
    late = trouble.told("TTFTBound", known=True, now=10.0)
    assert (late.feasible, late.said) == (False, "TTFTBound")
    bench = Bench(config(mode=Mode.AUTO, slo=slo), lambda _: Unlimited(Grant(cpus=(0, 1))))
    idle = bench.report().slo
    assert idle is not None and (idle.feasible, idle.feasible_reason) == (None, "PolicyInactive")
    assert "not Auto, or no share is enforced" in idle.feasible_message


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


def test_what_computes_and_why_nothing_faster_does_is_told() -> None:
    bench = Bench(config())
    slow = MODEL.model_copy(update={"kernels": "reference", "kernels_shortfall": "of another version: build again"})
    bench.controller.observe(bench.snapshot(model=slow))
    engine = bench.report().engine
    assert (engine.kernels, engine.kernels_shortfall) == ("reference", "of another version: build again")


def test_a_silent_engine_is_what_its_supervisor_says() -> None:
    bench = Bench(config())
    assert bench.report(ready=False).engine.state is EnginePhase.STARTING
    crashed = bench.report(LauncherState(running=False, crash_loop=True, message="exited with 2: no such directory"))
    assert (crashed.engine.state, crashed.engine.reason) == (EnginePhase.FAILED, "CrashLoop")
    assert "no such directory" in crashed.engine.message
    words = "exited with 2: tokenizer.json is not whole"
    for snapshot in (None, bench.snapshot(state="loading")):  # the next try loads in vain
        if snapshot is not None:
            bench.controller.observe(snapshot)
        refused = bench.report(LauncherState(refused=True, message=words), ready=False).engine
        assert (refused.state, refused.reason, refused.message) == (EnginePhase.FAILED, "LoadFailed", words)
    assert bench.report(LauncherState(refused=True, message=words), ready=True).engine.state is not EnginePhase.FAILED
    bench.controller.observe(bench.snapshot(state="failed", reason="NotFound", message="/data/m is not there"))
    bench.clock.now += 10
    gone = bench.report(ready=False).engine
    assert (gone.state, gone.reason, gone.message) == (EnginePhase.FAILED, "NotFound", "/data/m is not there")
    bench.controller.observe(bench.snapshot(state="draining", model=None))
    bench.clock.now += 10
    empty = bench.report(ready=False).engine
    assert (empty.state, empty.reason) == (EnginePhase.STARTING, "Starting"), "it never had the weights"
    bench.controller.observe(bench.snapshot(model=MODEL))
    bench.clock.now += 10
    lost = bench.report().engine
    assert (lost.state, lost.reason, lost.model_name) == (EnginePhase.DEGRADED, "NotResponding", "m")


def test_a_worker_is_silent_in_the_same_words_however_long() -> None:
    """Each other word would be a write of the status, which is not what the budget of its figures holds back."""
    bench, said = Bench(config()), set[str]()
    bench.tick()
    bench.tick()
    for age in (3.0, 4.0, 65.0):
        silent = (worker(Phase.PREFILL, bench.epoch, age=age), worker(Phase.DECODE, bench.epoch))
        bench.controller.observe(bench.snapshot(workers=silent))
        assert bench.report().partition.reason == "WorkerNotResponding"
        said.add(bench.report().partition.message)
    assert said == {"prefill worker 100 silent for more than 3 s"}
