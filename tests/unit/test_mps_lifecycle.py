"""The life of the MPS backend on stand-in programs: start, refusals, faults, replacement, quit. Real processes.

Whoever measures here measures the stand-in: these tests say in which order things happen, not how long they take.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.mps_bench import H100, QUICK, MpsBench, mps_bench, rung, snapshot
from tests.unit.mps_stand_in import SMS

from e2e.lib.process import runs
from semipd_agent.contract import PartitionReason
from semipd_agent.partitioner.mps import daemon
from semipd_agent.partitioner.mps.daemon import StartFailed, claim
from semipd_agent.partitioner.mps.ladder import LADDER, Timing
from semipd_engine.contract import PacingMode, Phase, Split

pytestmark = pytest.mark.unit


@pytest.fixture
async def idle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MpsBench]:
    async with mps_bench(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
async def bench(idle: MpsBench) -> MpsBench:
    return await idle.in_force()


def is_private_pipe(folder: Path) -> bool:
    return folder.stat().st_mode & 0o777 == 0o700 and (folder / "control").is_socket()


async def test_before_the_first_daemon_nothing_is_ready_and_nothing_is_wrong(idle: MpsBench) -> None:
    assert not idle.mps.ready and idle.mps.health() is None and idle.mps.incarnation == 0
    idle.begin()
    await idle.until(lambda: idle.mps.incarnation == 1)
    assert idle.mps.ready


async def test_start_measures_each_rung_and_quit_leaves_nothing(bench: MpsBench) -> None:
    mps = bench.mps
    assert mps.incarnation == 1
    plan = mps.plan(Split(prefill=60, decode=80))
    assert plan.mode is PacingMode.RUNGS and plan.enforcement == "spatial-cap"
    assert plan.whole is not None
    limits = (plan.prefill, plan.decode, plan.whole)
    assert [(limit.percent, limit.sm_count) for limit in limits] == [(60, 78), (80, 104), (100, SMS)]
    pipes = {limit.environment["CUDA_MPS_PIPE_DIRECTORY"] for limit in limits}
    assert len(pipes) == 1
    pipe = pipes.pop()
    assert is_private_pipe(Path(pipe))
    assert [limit.environment["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] for limit in limits] == ["60", "80", "100"]
    assert {mps.plan(Split(prefill=p, decode=p)).prefill.sm_count for p in LADDER} == {
        2 * (SMS * p // 200) for p in LADDER
    }
    daemon = mps._keeper.daemon
    assert daemon is not None and runs(daemon.pid) and runs(daemon.server)
    pids = (daemon.pid, daemon.server)
    await mps.close()
    assert not any(map(runs, pids)) and not mps.ready


async def test_a_limit_that_shows_with_a_context_only_is_measured_with_one(idle: MpsBench) -> None:
    idle.faults("probe: answer late")
    idle.begin()
    await idle.until(lambda: idle.mps.ready)
    assert idle.mps.plan(Split(prefill=60, decode=80)).prefill.sm_count == 78


async def test_equal_rungs_are_one_rung(bench: MpsBench) -> None:
    plan = bench.mps.plan(Split(prefill=100, decode=100))
    assert plan.prefill == plan.decode == plan.whole
    again = bench.mps.plan(Split(prefill=30, decode=100))
    assert again.whole == plan.whole, "a move leaves the other rungs as they are: their workers stay warm"


@pytest.mark.parametrize(
    ("fault", "reason", "says"),
    [
        ("start: refuse", PartitionReason.MPS_START_FAILED, "already running"),
        ("start: die", PartitionReason.MPS_START_FAILED, "exit status 3"),
        ("start_server: refuse", PartitionReason.MPS_START_FAILED, "Failed to execute start_server"),
        ("get_server_status: answer what?", PartitionReason.MPS_START_FAILED, "what?"),
        ("get_default_active_thread_percentage: hang", PartitionReason.MPS_START_FAILED, "did not answer within"),
        ("probe: refuse", PartitionReason.MPS_START_FAILED, "CUresult 807"),
        ("probe: hang", PartitionReason.MPS_START_FAILED, f"serves another user, and ours is {os.getuid()}"),
        ("probe: answer unlimited", PartitionReason.MPS_NOT_ENFORCING, "132 of 132 SMs"),
    ],
)
async def test_what_does_not_start_says_why_and_starts_once_it_can(
    idle: MpsBench, fault: str, reason: PartitionReason, says: str
) -> None:
    idle.faults(fault)
    idle.give_up_after(4)
    idle.begin()
    # Where the machine stood still for as long, that is told first.
    await idle.until(lambda: (p := idle.mps.health()) is not None and p.reason is reason and says in p.message)
    assert not idle.mps.ready and idle.mps.incarnation == 0
    idle.faults()
    await idle.until(lambda: idle.mps.ready)
    assert idle.mps.health() is None


async def test_a_server_fault_ends_server_and_daemon_before_the_next_begins(bench: MpsBench) -> None:
    old = bench.mps._keeper.daemon
    assert old is not None
    before = bench.mps.plan(Split(prefill=60, decode=100))
    bench.faults(f"get_server_status {old.server}: answer FAULT")
    await bench.until(lambda: not bench.mps.ready)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.MPS_SERVER_FAULT and "FAULT" in problem.message
    await bench.until(lambda: bench.mps.incarnation == 2)
    assert not runs(old.pid) and not runs(old.server) and not old.folder.exists()
    after = bench.mps.plan(Split(prefill=60, decode=100))
    assert before.prefill.environment != after.prefill.environment and before.prefill.sm_count == after.prefill.sm_count
    assert before.whole is not None and after.whole is not None
    assert before.whole.environment != after.whole.environment, "every rung is a new one"
    assert bench.mps.losses == 1
    lost = bench.mps.lost
    assert lost is not None and lost.reason is PartitionReason.MPS_SERVER_FAULT


async def test_a_server_that_does_not_come_back_from_a_fault_is_replaced(bench: MpsBench) -> None:
    old = bench.mps._keeper.daemon
    assert old is not None
    bench.faults(f"get_server_status {old.server}: answer INITIALIZING")
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.MPS_SERVER_FAULT
    assert "INITIALIZING" in problem.message
    await bench.until(lambda: bench.mps.incarnation == 2)
    assert not runs(old.server)


async def test_a_dead_daemon_leaves_its_server_to_the_workers_until_they_have_moved(bench: MpsBench) -> None:
    old = bench.mps._keeper.daemon
    assert old is not None
    bench.mps.follow(snapshot(rung(Phase.PREFILL, 60, 78, pid=11), rung(Phase.DECODE, 80, 104, pid=12)))
    os.kill(old.pid, signal.SIGKILL)
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.MPS_DAEMON_DIED
    await bench.until(lambda: bench.mps.incarnation == 2)
    await asyncio.sleep(1)
    assert runs(old.server), "its clients still need it"
    moved = (rung(Phase.PREFILL, 60, 78, pid=21), rung(Phase.DECODE, 80, 104, pid=22))
    bench.mps.follow(snapshot(*moved, leaving=(11,)))
    await asyncio.sleep(1)
    assert runs(old.server), "one of them has not finished its plan"
    bench.mps.follow(snapshot(*moved))
    await bench.until(lambda: not runs(old.server))
    await bench.until(lambda: not old.folder.exists())
    assert bench.mps.ready


async def test_a_daemon_that_hangs_is_replaced_and_hangs_nobody(idle: MpsBench) -> None:
    idle.take_time("command", QUICK.command)
    bench = await idle.in_force()
    bench.faults("get_server_status: hang")
    ticks = 0
    while bench.mps.health() is None:
        ticks += 1
        await asyncio.sleep(0.05)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.MPS_NOT_RESPONDING
    assert ticks > 3, "the loop ran on"
    bench.faults()
    await bench.until(lambda: bench.mps.incarnation == 2)


async def test_a_workers_death_is_followed_by_a_probe(bench: MpsBench) -> None:
    workers = (rung(Phase.PREFILL, 60, 78), rung(Phase.DECODE, 80, 104))
    bench.mps.follow(snapshot(*workers))
    bench.mps.follow(snapshot(*workers, deaths=1))
    await asyncio.sleep(1.5)
    assert bench.mps.ready and bench.mps.incarnation == 1, "the server took the probe: nobody else is restarted"
    bench.faults("probe: refuse")
    bench.mps.follow(snapshot(*workers, deaths=2))
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.MPS_SERVER_FAULT
    assert "the death of a prefill worker" in problem.message
    bench.faults()
    await bench.until(lambda: bench.mps.incarnation == 2)


async def test_losses_in_a_row_speak_of_the_gpu(idle: MpsBench) -> None:
    idle.give_up_after(3)
    idle.begin()
    await idle.until(lambda: idle.mps.ready)
    idle.faults("get_server_status: answer FAULT")
    await idle.until(lambda: (p := idle.mps.health()) is not None and p.reason is PartitionReason.GPU_UNHEALTHY, 300)
    idle.faults()
    await idle.until(lambda: idle.mps.ready)


async def test_however_often_a_start_fails_there_is_another(idle: MpsBench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each after the longest delay: twice the last one, a thousand times over, would be no number any more."""
    keeper, starts = idle.mps._keeper, 0

    async def fails() -> None:
        nonlocal starts
        if (starts := starts + 1) > 1100:
            raise asyncio.CancelledError
        raise StartFailed("no memory")

    monkeypatch.setattr(keeper, "_start", fails)
    monkeypatch.setattr(keeper, "_timing", replace(keeper._timing, longest_delay=0.0))
    with pytest.raises(asyncio.CancelledError):
        await keeper.run()
    assert keeper.problem is not None and keeper.problem.reason is PartitionReason.MPS_START_FAILED


async def test_xids_of_an_application_are_suspicion_and_others_condemn(bench: MpsBench) -> None:
    bench.mps.xid(31)
    await asyncio.sleep(1)
    assert bench.mps.ready
    bench.mps.xid(79)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.GPU_UNHEALTHY and "79" in problem.message
    assert not bench.mps.ready


async def test_our_own_clients_are_nobody_elses(bench: MpsBench) -> None:
    bench.change(gpu=replace(H100, mps_clients=(4711,)))
    bench.mps.preflight()  # as after a change of the mode


async def test_a_server_that_ends_is_replaced(bench: MpsBench) -> None:
    """Its daemon lives, and would start another one for the next client: our workers have none."""
    old = bench.mps._keeper.daemon
    assert old is not None
    os.kill(old.server, signal.SIGKILL)
    await bench.until(lambda: bench.mps.health() is not None)
    problem = bench.mps.health()
    assert problem is not None and problem.reason is PartitionReason.MPS_SERVER_FAULT and "gone" in problem.message
    await bench.until(lambda: bench.mps.incarnation == 2)
    assert not runs(old.pid)


async def test_what_a_killed_agent_left_behind_is_removed(idle: MpsBench) -> None:
    """A volume may outlive its agent. Directories of an agent that lives, and of others, stay."""
    left, strangers = idle.base / "mps-abandoned", idle.base / "other"
    (left / "1" / "p").mkdir(parents=True)
    strangers.mkdir()
    neighbour = claim(idle.base)
    assert not left.exists()
    idle.begin()
    await idle.until(lambda: idle.mps.ready)
    assert neighbour.exists() and strangers.exists()
    neighbour.rmdir()
    strangers.rmdir()


@pytest.mark.parametrize("removed", ["before it is locked", "while it is locked"])
def test_a_directory_that_another_agent_takes_for_abandoned_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: str
) -> None:
    """Two agents that begin at once: one looks between the other's making of its directory and its lock."""
    make = tempfile.mkdtemp
    lost: list[Path] = []

    def crowded(prefix: str, dir: Path) -> str:
        made = make(prefix=prefix, dir=dir)
        monkeypatch.setattr(tempfile, "mkdtemp", make)
        lost.append(Path(made))
        if removed == "while it is locked":
            assert daemon._lock(Path(made)) is not None
        else:
            claim(tmp_path)
            assert not Path(made).exists()
        return made

    monkeypatch.setattr(tempfile, "mkdtemp", crowded)
    mine = claim(tmp_path)
    assert mine.is_dir() and mine not in lost
    claim(tmp_path)
    assert mine.is_dir(), "it is locked"


def test_a_server_may_take_longer_to_start_than_a_command_to_answer() -> None:
    """Without a persistence daemon the driver is initialised first."""
    assert Timing().server > 5 * Timing().command


async def test_a_server_that_takes_its_time_is_waited_for(idle: MpsBench) -> None:
    """`start_server` answers when the server is there: longer than any other command may take."""
    idle.take_time("command", QUICK.command)
    idle.faults(f"start_server: sleep {QUICK.command + 0.5}")
    idle.begin()
    await idle.until(lambda: idle.mps.ready)
    assert idle.mps.incarnation == 1 and idle.mps.health() is None
