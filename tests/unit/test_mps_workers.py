"""The MPS backend and the workers, on stand-in programs: what proves a rung, how a worker ends, what a death says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.mps_bench import PATIENT, QUICK, MpsBench, mps_bench, rung, snapshot
from tests.unit.mps_stand_in import SMS

from e2e.lib.waiting import PATIENCE_S
from semipd_agent.contract import PartitionReason
from semipd_engine.contract import Phase, Split, WorkerReport, WorkerState

pytestmark = pytest.mark.unit


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MpsBench]:
    async with mps_bench(tmp_path, monkeypatch) as made:
        yield await made.in_force()


async def test_what_a_worker_sees_proves_its_rung(bench: MpsBench) -> None:
    split = Split(prefill=60, decode=100)

    def reason(report: WorkerReport) -> PartitionReason | None:
        problem = bench.mps.verify(report, split)
        return problem.reason if problem else None

    assert reason(rung(Phase.PREFILL, 60, 78)) is None
    assert reason(rung(Phase.DECODE, 100, SMS)) is None
    assert reason(rung(Phase.PREFILL, 60, SMS)) is PartitionReason.WORKER_OUTSIDE_MPS
    assert reason(rung(Phase.PREFILL, 60, 66)) is PartitionReason.READBACK_MISMATCH
    assert reason(rung(Phase.PREFILL, 60, None)) is PartitionReason.READBACK_MISMATCH
    assert reason(rung(Phase.PREFILL, 80, 104)) is PartitionReason.READBACK_MISMATCH


async def test_on_the_whole_rung_the_list_of_clients_is_the_proof(bench: MpsBench) -> None:
    workers = (rung(Phase.PREFILL, 100, SMS, pid=4001), rung(Phase.DECODE, 100, SMS, pid=4002))
    bench.faults("get_client_list: answer 4001\\n4002")
    bench.mps.follow(snapshot(*workers))

    async def verdicts() -> list[PartitionReason | None]:
        """After a list that is younger than the workers."""
        asked = bench.clock.monotonic()
        await bench.until(lambda: (c := bench.mps._keeper.clients) is not None and c.asked > asked)
        problems = [bench.mps.verify(each, Split()) for each in workers]
        return [problem.reason if problem else None for problem in problems]

    assert await verdicts() == [None, None]
    bench.faults("get_client_list: answer 4001")
    assert await verdicts() == [None, PartitionReason.WORKER_OUTSIDE_MPS]
    bench.faults("get_client_list: answer ")
    assert await verdicts() == [PartitionReason.WORKER_OUTSIDE_MPS] * 2
    bench.faults("get_client_list: answer 77")  # numbers of another namespace say nothing
    assert await verdicts() == [None, None]


@pytest.fixture
async def victim() -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec("sleep", "600")
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


async def test_a_worker_that_must_be_killed_is_ended_by_mps_first(
    bench: MpsBench, victim: asyncio.subprocess.Process
) -> None:
    plan = bench.mps.plan(Split(prefill=60, decode=80))
    assert plan.prefill.terminate_seconds > PATIENT.terminate, "core waits at least as long as MPS may take"
    hanging = rung(Phase.DECODE, 20, None, pid=victim.pid, ending=True, state=WorkerState.STARTING)
    bench.mps.follow(snapshot(rung(Phase.PREFILL, 60, 78), hanging))
    await asyncio.wait_for(victim.wait(), PATIENCE_S)
    bench.mps.follow(snapshot(rung(Phase.PREFILL, 60, 78), hanging))  # core has not noticed yet: it is asked once
    await asyncio.sleep(1)
    assert bench.mps.ready and bench.mps.incarnation == 1


async def test_a_client_that_mps_cannot_end_costs_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with mps_bench(tmp_path, monkeypatch) as bench:
        bench.take_time("terminate", QUICK.terminate)
        await bench.in_force()
        bench.faults("terminate_client: hang")
        bench.mps.follow(snapshot(rung(Phase.DECODE, 80, 104, pid=4711, ending=True)))
        await bench.until(lambda: bench.mps.health() is not None)
        problem = bench.mps.health()
        assert problem is not None and problem.reason is PartitionReason.MPS_SERVER_FAULT
        assert "cannot be ended" in problem.message
        await bench.until(lambda: bench.mps.incarnation == 2)


async def test_a_refused_end_makes_the_server_suspect(bench: MpsBench) -> None:
    """The worker may be gone already; what it left behind, a probe tells."""
    bench.faults("terminate_client: answer CUDA_ERROR_UNKNOWN", "probe: refuse")
    bench.mps.follow(snapshot(rung(Phase.DECODE, 80, 104, pid=4711, ending=True)))
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and "the kill of worker 4711" in problem.message
    bench.faults()


async def test_before_the_engine_is_killed_its_clients_are_ended(
    bench: MpsBench, victim: asyncio.subprocess.Process
) -> None:
    bench.mps.follow(snapshot(rung(Phase.DECODE, 80, 104, pid=victim.pid)))
    await bench.mps.evict()
    await asyncio.wait_for(victim.wait(), PATIENCE_S)


async def test_a_core_that_starts_anew_makes_the_server_suspect(
    bench: MpsBench, caplog: pytest.LogCaptureFixture
) -> None:
    """Its resident killed the workers that did not leave the GPU in time, and nobody counts those deaths."""
    caplog.set_level(logging.INFO)
    for _ in range(2):
        bench.mps.follow(snapshot(rung(Phase.DECODE, 80, 104)))
        await asyncio.sleep(0.5)
    assert bench.mps.ready and "serves on after" not in caplog.text
    bench.faults("probe: refuse")
    bench.mps.follow(snapshot(core="another"))
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and "with their core" in problem.message
    bench.faults()


@pytest.mark.parametrize("seen", ["its socket is dead", "another core answers"])
async def test_workers_whose_core_is_gone_are_ended_by_mps(
    bench: MpsBench, victim: asyncio.subprocess.Process, seen: str
) -> None:
    """Before their resident, which gives them that time, kills those that have not left."""
    bench.mps.follow(snapshot(rung(Phase.PREFILL, 60, 78), rung(Phase.DECODE, 80, 104, pid=victim.pid)))
    if seen == "another core answers":
        bench.mps.follow(snapshot(core="another"))
    else:
        bench.mps.core_gone()
        bench.mps.core_gone()  # it is told with every tick
    await asyncio.wait_for(victim.wait(), PATIENCE_S)
    await asyncio.sleep(1)
    assert bench.mps.ready and bench.mps.incarnation == 1, "nobody else is harmed"


async def test_workers_that_hang_are_ended_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, victim: asyncio.subprocess.Process
) -> None:
    """Core waits for each as long as MPS may take for one."""
    async with mps_bench(tmp_path, monkeypatch) as bench:
        bench.take_time("terminate", 600)
        await bench.in_force()
        daemon = bench.mps._keeper.daemon
        assert daemon is not None
        bench.faults(f"terminate_client {daemon.server} 4711: hang")
        first = rung(Phase.PREFILL, 60, 78, pid=4711, ending=True)
        bench.mps.follow(snapshot(first))
        bench.mps.follow(snapshot(first, rung(Phase.DECODE, 80, 104, pid=victim.pid, ending=True)))
        await asyncio.wait_for(victim.wait(), PATIENCE_S)
        assert bench.mps.ready, "the first one's answer is waited for still"


async def test_a_peer_that_stands_still_after_a_death_convicts_the_server(bench: MpsBench) -> None:
    """Although the server takes the probe."""
    peer = rung(Phase.DECODE, 80, 104, heartbeat_age_seconds=QUICK.stall + 1)
    bench.mps.follow(snapshot(peer))
    await asyncio.sleep(0.5)
    assert bench.mps.ready, "without a death core's own watchdog is the judge"
    bench.mps.follow(snapshot(peer, deaths=1))
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and "stands still since another one died" in problem.message
    await bench.until(lambda: bench.mps.incarnation == 2)
    assert bench.mps.losses == 1
