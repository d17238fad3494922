"""Granted CPUs, backends and the read-back: which split is in force, and why it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.agent_plant import worker
from tests.unit.mps_bench import good_host

from semipd_agent.children import Children
from semipd_agent.clock import SystemClock
from semipd_agent.contract import Enforcement, Mode, PartitionReason, PartitionState
from semipd_agent.partitioner import Grant, Mps, PartitionerUnavailable, Problem, select
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.mps import Programs
from semipd_agent.readback import Intent, Readback, read_back
from semipd_agent.reaper import Reaper
from semipd_engine.contract import (
    Device,
    EngineSnapshot,
    EngineState,
    PacingMode,
    Phase,
    Refusal,
    Split,
    WorkerReport,
    WorkerState,
)
from semipd_engine.cpu_plan import cpu_plan

pytestmark = pytest.mark.unit

# ---- backends -------------------------------------------------------------------------------------------------------

TWO = Grant(cpus=(0, 1))


def test_a_gpu_without_mps_is_refused_unless_disabled(tmp_path: Path) -> None:
    host = replace(good_host(tmp_path), missing_programs=("nvidia-cuda-mps-control",))
    mps = Mps(Programs("", ""), Children(Reaper()), tmp_path, SystemClock(), look=lambda: host)
    for mode in (Mode.MANUAL, Mode.AUTO):
        backend = select(Device.CUDA, mode, TWO, mps=mps)
        assert (backend.name, backend.enforcement) == ("mps", Enforcement.SPATIAL_CAP)
        with pytest.raises(PartitionerUnavailable) as e:
            backend.preflight()
        assert e.value.reason == "MPSUnavailable"
        assert "mode: Disabled" in str(e.value)
    disabled = select(Device.CUDA, Mode.DISABLED, TWO, mps=mps)
    disabled.preflight()
    assert (disabled.name, disabled.enforcement, disabled.ready) == ("none", Enforcement.NONE, True)


def test_a_gpu_without_a_split_is_one_rung_outside_of_anybodys_mps() -> None:
    plan = select(Device.CUDA, Mode.DISABLED, TWO).plan(Split())
    assert plan.mode is PacingMode.RUNGS and plan.prefill == plan.decode == plan.whole
    assert not Path(plan.prefill.environment["CUDA_MPS_PIPE_DIRECTORY"]).exists()
    assert plan.prefill.sm_count is None
    unified = select(Device.CUDA, Mode.MANUAL, TWO, unified=True).plan(Split())
    assert unified.mode is PacingMode.UNLIMITED and not unified.prefill.environment


def test_backends_of_the_cpu() -> None:
    paced = select(Device.CPU, Mode.AUTO, TWO)
    assert (paced.name, paced.enforcement) == ("cpu-paced", Enforcement.PACED)
    assert select(Device.CPU, Mode.DISABLED, TWO).name == "none"
    assert select(Device.CPU, Mode.MANUAL, TWO, unified=True).name == "none"
    for mode in (Mode.MANUAL, Mode.DISABLED):
        assert [select(Device.CPU, mode, TWO, threads=n).plan(Split()).threads for n in (0, 1)] == [2, 1]
    with pytest.raises(ValueError, match="auto"):
        select(Device.AUTO, Mode.MANUAL, TWO)
    with pytest.raises(ValueError, match="Mps"):
        select(Device.CUDA, Mode.MANUAL, TWO)


def test_disabled_limits_nothing() -> None:
    backend = select(Device.CPU, Mode.DISABLED, TWO)
    assert backend.quantize(Split(prefill=20, decode=30)) == Split()
    plan = backend.plan(Split())
    assert (plan.mode, plan.enforcement, plan.threads) == (PacingMode.UNLIMITED, "none", 2)


@pytest.mark.parametrize(
    ("split", "cpus", "mode", "prefill", "decode"),
    [
        ((50, 50), 2, PacingMode.CORES, (0,), (1,)),
        ((100, 100), 2, PacingMode.CORES, (0,), (1,)),
        ((80, 20), 2, PacingMode.TURNS, (0,), (1,)),
        ((20, 80), 2, PacingMode.TURNS, (0,), (1,)),
        ((10, 90), 4, PacingMode.TURNS, (0,), (1, 2, 3)),
        ((75, 25), 4, PacingMode.CORES, (0, 1, 2), (3,)),
        ((25, 25), 4, PacingMode.CORES, (0,), (3,)),
        ((50, 50), 1, PacingMode.QUANTA, (), ()),
        ((90, 10), 4, PacingMode.TURNS, (0, 1, 2), (3,)),
        ((40, 10), 2, PacingMode.QUANTA, (), ()),
    ],
)
def test_whole_cores_where_they_fit_the_shares(
    split: tuple[int, int], cpus: int, mode: PacingMode, prefill: tuple[int, ...], decode: tuple[int, ...]
) -> None:
    plan = cpu_plan(Split(prefill=split[0], decode=split[1]), range(cpus))
    assert (plan.mode, plan.prefill.cpus, plan.decode.cpus) == (mode, prefill, decode)
    assert plan.threads == cpus
    if mode is PacingMode.QUANTA:
        assert (plan.prefill.weight, plan.decode.weight) == split


def test_every_split_of_every_size_is_a_valid_plan() -> None:
    for cpus in (1, 2, 3, 5, 8):
        for prefill in range(5, 101, 5):
            for decode in range(5, 101, 5):
                plan = cpu_plan(Split(prefill=prefill, decode=decode), range(cpus))
                assert not set(plan.prefill.cpus) & set(plan.decode.cpus)
                if plan.mode is PacingMode.CORES:
                    whole = max(100, prefill + decode)
                    for limit, share in ((plan.prefill, prefill), (plan.decode, decode)):
                        assert len(limit.cpus) == limit.threads
                        assert limit.threads == pytest.approx(share / whole * cpus, rel=0.2501)
                assert plan.idle_weight == (max(0, 100 - prefill - decode) if plan.mode is PacingMode.QUANTA else 0)


# ---- read-back ------------------------------------------------------------------------------------------------------

OLD, NEW = Split(prefill=60, decode=80), Split(prefill=30, decode=70)
SPLITS = {1: OLD, 2: NEW}


def judge(
    *workers: WorkerReport, core: int = 2, since: float = 99.0, at: float = 100.0, partitioner: CpuPaced | None = None
) -> Readback:
    snapshot = EngineSnapshot(monotonic_time=at, state=EngineState.READY, split_epoch=core, workers=workers)
    return read_back(Intent(2, NEW, since), SPLITS, snapshot, partitioner or CpuPaced(TWO), 100.0)


P, D = Phase.PREFILL, Phase.DECODE


@pytest.mark.parametrize(
    ("workers", "state", "reason", "applied"),
    [
        ([worker(P, 2), worker(D, 2)], "Applied", "Applied", NEW),
        ([worker(P, 1), worker(D, 1)], "Adjusting", "Adjusting", OLD),
        ([worker(P, 2), worker(D, 1)], "Adjusting", "Adjusting", None),
        ([worker(P, 2, age=3.0), worker(D, 2)], "Unknown", "WorkerNotResponding", None),
        ([worker(P, 2), worker(D, 2, age=60)], "Unknown", "WorkerNotResponding", None),
        ([worker(P, 2)], "Unknown", "EngineNotReady", None),
        ([worker(P, 2), worker(D, 2, state=WorkerState.STARTING)], "Unknown", "EngineNotReady", None),
        ([worker(P, 2), worker(D, 2, state=WorkerState.DEAD)], "Unknown", "EngineNotReady", None),
        ([worker(P, 7), worker(D, 7)], "Adjusting", "Adjusting", None),
        ([], "Unknown", "EngineNotReady", None),
    ],
)
def test_applied_is_what_the_workers_report(
    workers: list[WorkerReport], state: str, reason: str, applied: Split | None
) -> None:
    result = judge(*workers)
    assert (result.state, result.reason, result.applied) == (state, reason, applied)


def test_no_answer_and_a_stale_answer_are_unknown() -> None:
    nothing = read_back(Intent(2, NEW, 99.0), SPLITS, None, CpuPaced(TWO), 100.0)
    stale = judge(worker(P, 2), worker(D, 2), at=96.9)
    assert {nothing.reason, stale.reason} == {PartitionReason.ENGINE_NOT_READY}
    assert nothing.applied is stale.applied is None


def test_live_workers_that_never_follow_are_a_failure() -> None:
    late = judge(worker(P, 1), worker(D, 2), since=80.0)
    assert (late.state, late.reason) == (PartitionState.FAILED, PartitionReason.READBACK_MISMATCH)
    assert "prefill at epoch 1" in late.message
    assert judge(worker(P, 1), worker(D, 1), core=1, since=80.0).state is PartitionState.FAILED


def test_a_backend_may_contradict_a_worker() -> None:
    class Strict(CpuPaced):
        def verify(self, worker: WorkerReport, split: Split) -> Problem | None:
            said = "sees 132 SMs, not 40"
            return Problem(PartitionReason.WORKER_OUTSIDE_MPS, said) if worker.phase is P else None

    result = judge(worker(P, 2), worker(D, 2), partitioner=Strict(TWO))
    assert (result.state, result.reason, result.applied) == (PartitionState.FAILED, "WorkerOutsideMPS", None)
    assert "132" in result.message


def test_a_broken_mechanism_is_told_whatever_the_workers_say() -> None:
    class Broken(CpuPaced):
        def health(self) -> Problem | None:
            return Problem(PartitionReason.MPS_DAEMON_DIED, "it is gone")

    result = judge(worker(P, 2), worker(D, 2), partitioner=Broken(TWO))
    assert (result.state, result.reason, result.message) == ("Failed", "MPSDaemonDied", "it is gone")


def test_a_mechanism_on_its_way_is_unknown() -> None:
    class Starting(CpuPaced):
        ready = False

    assert judge(worker(P, 2), worker(D, 2), partitioner=Starting(TWO)).reason == "EngineNotReady"


def test_of_several_rungs_the_routed_one_counts() -> None:
    warm = worker(P, 1).model_copy(update={"routed": False})
    assert judge(worker(P, 2), warm, worker(D, 2)).settled
    assert judge(warm, worker(D, 2)).reason == "EngineNotReady"


def test_a_refused_preparation_is_told_with_the_split_that_stays() -> None:
    refused = Refusal(split_epoch=2, reason="SMCountMismatch", message="sees 132 SMs, not 40")
    snapshot = EngineSnapshot(
        monotonic_time=100.0,
        state=EngineState.READY,
        split_epoch=1,
        refused=refused,
        workers=tuple(worker(p, 1).model_copy(update={"percent": OLD.of(p)}) for p in Phase),
    )
    result = read_back(Intent(2, NEW, 99.0), SPLITS, snapshot, CpuPaced(TWO), 100.0)
    assert (result.state, result.reason, result.applied) == ("Failed", "PreparationFailed", OLD)
    assert "30/70" in result.message and "SMCountMismatch" in result.message
