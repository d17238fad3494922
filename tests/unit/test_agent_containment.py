"""Nothing that goes wrong in the agent may end a stream: policies that raise, tasks that fail, output nobody reads."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.agent_bench import Bench, config
from tests.unit.agent_plant import FakeClock, Pod, Speed, poisson
from tests.unit.mps_bench import OwnReaper

from e2e.lib.waiting import PATIENCE_S
from semipd_agent import agent as agent_module
from semipd_agent import supervisor as supervisor_module
from semipd_agent.agent import Agent
from semipd_agent.api_probe import ApiProbe
from semipd_agent.config import ConfigRefused
from semipd_agent.contract import SLO, DecisionReason, Identity, Mode
from semipd_agent.engine_client import EngineClient
from semipd_agent.memory_limit import MemoryLimit
from semipd_agent.partitioner import Grant, select
from semipd_agent.slo.policy import Move, Verdict
from semipd_agent.supervisor import Supervisor
from semipd_agent.tasks import Faults, keep_going
from semipd_engine.contract import Device, EngineSnapshot, Split

pytestmark = pytest.mark.unit
SLOS = SLO(ttft_milliseconds=500, tpot_milliseconds=50)
FAST = Speed(prompt_token=5e-5, step=0.006, row=0.0003)


class Broken:
    """A policy with a defect: it raises, or moves out of the bounds."""

    def __init__(self, answer: Callable[[], Verdict]) -> None:
        self.answer = answer
        self.asked = 0

    def observe(self, evidence: object, split: object, bounds: object, now: float) -> Verdict:
        self.asked += 1
        return self.answer()


def raises() -> Verdict:
    raise ZeroDivisionError("float division by zero")


def nonsense() -> Verdict:
    return Verdict(Move(Split(prefill=5, decode=100), DecisionReason.TTFT_ABOVE_TARGET))


def not_a_verdict() -> Verdict:
    return None  # type: ignore[return-value]


@pytest.mark.parametrize("answer", [raises, nonsense, not_a_verdict])
def test_a_broken_policy_holds_the_split_and_is_named(answer: Callable[[], Verdict]) -> None:
    bench = Bench(config(mode=Mode.AUTO, slo=SLOS))
    bench.tick()
    bench.tick()
    bench.controller.pilot.policy = policy = Broken(answer)
    for _ in range(60):
        bench.tick()
    report = bench.report()
    assert policy.asked == 60
    assert report.partition.requested == report.partition.applied
    assert report.partition.message.startswith("the policy failed (")
    assert report.slo is not None
    assert (report.slo.feasible, report.slo.feasible_reason) == (None, "PolicyFailed")
    assert [(f.part, f.count) for f in report.faults] == [("policy", 60)]
    policy.answer = Verdict
    bench.tick()
    assert bench.report().partition.message == ""
    bench.clock.now += 301
    assert bench.report().faults == ()


def test_a_policy_that_raises_for_a_minute_touches_no_stream() -> None:
    """Every request goes as it would without a policy: the same tokens at the same times, none lost."""

    def served(policy: Broken | None) -> Pod:
        pod = Pod(config(mode=Mode.AUTO if policy else Mode.MANUAL, slo=SLOS), poisson(4.0, 60, 400, 60, 1), FAST)
        pod.tick(1.0)
        pod.controller.pilot.policy = policy
        for second in range(2, 91):
            pod.tick(float(second))
        return pod

    policy = Broken(raises)
    broken, alone = served(policy), served(None)
    assert policy.asked > 60
    assert broken.engine.drained and all(d.ttft is not None for d in broken.engine.done)
    assert len(broken.engine.done) > 200 and broken.engine.done == alone.engine.done
    assert [f.part for f in broken.controller.faults.report()] == ["policy"]


async def test_a_defect_in_the_loop_ends_neither_agent_nor_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "POLL_SECONDS", 0.01)
    bench = Bench(config())
    reaper = OwnReaper()
    supervisor = Supervisor([sys.executable, "-c", "import time; time.sleep(1000)"], reaper, bench.clock)
    running = Agent(
        controller=bench.controller,
        client=EngineClient(tmp_path),
        supervisor=supervisor,
        reaper=reaper,
        config_file=None,
        tokens=(),
        identity=Identity(),
        clock=bench.clock,
        drain_seconds=0.0,
        api=ApiProbe(tmp_path, "127.0.0.1", bench.clock),
        memory=MemoryLimit(tmp_path),
    )
    ticks = 0

    def defect(snapshot: EngineSnapshot | None) -> None:
        nonlocal ticks
        ticks += 1
        raise RuntimeError("a defect")

    monkeypatch.setattr(bench.controller, "observe", defect)
    task = asyncio.create_task(running.run())
    async with asyncio.timeout(PATIENCE_S):
        while ticks < 3 or supervisor.pid is None:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert not task.done() and supervisor.running
    assert [(f.part, f.message) for f in running.report().faults] == [("control", "RuntimeError: a defect")]
    running.terminate()
    async with asyncio.timeout(PATIENCE_S):
        while not task.done():
            reaper.reap()
            await asyncio.sleep(0.02)
    await task


async def test_a_task_that_raises_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("semipd_agent.tasks.FIRST_DELAY", 0.0)
    faults, runs = Faults(FakeClock()), 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 4:
            raise OSError(28, "No space left on device")

    async with asyncio.timeout(PATIENCE_S):
        await keep_going("partitioner", run, faults)
    assert runs == 4
    (fault,) = faults.report()
    assert (fault.part, fault.count) == ("partitioner", 3)
    assert "No space left" in fault.message


async def nothing() -> None:
    """Before a launcher is killed."""


async def test_the_launcher_is_restarted_when_our_own_stderr_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine prints is passed on; where that fails, its restarts must not end."""
    reaper, clock = OwnReaper(), FakeClock()
    monkeypatch.setattr(supervisor_module, "FIRST_DELAY", 0.0)

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(supervisor_module.os, "write", refuse)
    supervisor = Supervisor(["sh", "-c", "echo words >&2; exit 3"], reaper, clock)
    supervisor.start()
    async with asyncio.timeout(PATIENCE_S):
        while supervisor.restarts < 3:
            reaper.reap()
            await asyncio.sleep(0.02)
    assert supervisor.last_exit == 3 and "words" in "".join(supervisor._tail)
    assert supervisor.crash_loop
    monkeypatch.undo()
    await supervisor.stop(0.1, nothing)


@pytest.mark.parametrize(("status", "counted"), [(2, False), (3, True)])
async def test_a_refusal_is_told_in_the_same_words_at_each_try(
    monkeypatch: pytest.MonkeyPatch, status: int, counted: bool
) -> None:
    """A folder that can never load is no news again: each new word would be a write of the status."""
    reaper = OwnReaper()
    monkeypatch.setattr(supervisor_module, "FIRST_DELAY", 0.0)
    supervisor = Supervisor(["sh", "-c", f"echo broken >&2; exit {status}"], reaper, FakeClock())
    supervisor.start()
    said = set[str]()
    async with asyncio.timeout(PATIENCE_S):
        while supervisor.restarts < 4:
            reaper.reap()
            said.add(supervisor.message)
            await asyncio.sleep(0)
    await supervisor.stop(0.1, nothing)
    whole = {message for message in said if message.endswith(": broken")}
    assert (len(whole) > 1) == counted and f"exited with {status}" in min(whole)


async def test_a_launcher_that_fails_for_a_night_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its delay is bounded before it is a number that no float can be."""
    monkeypatch.setattr(supervisor_module, "LONGEST_DELAY", 0.0)
    supervisor = Supervisor(["/no/such/launcher"], OwnReaper(), FakeClock())
    supervisor.short_lives = 1022
    supervisor.start()
    async with asyncio.timeout(PATIENCE_S):
        while supervisor.restarts < 4 and not (supervisor._task and supervisor._task.done()):  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert supervisor.short_lives >= 1026
    await supervisor.stop(0.0, nothing)


async def test_a_stop_that_is_cancelled_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for the drain; whoever cancels it does so in earnest."""
    reaper = OwnReaper()
    supervisor = Supervisor(["sh", "-c", "trap '' TERM; echo trapped >&2; sleep 1000"], reaper, FakeClock())
    supervisor.start()
    async with asyncio.timeout(PATIENCE_S):
        while not supervisor._tail:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    stopping = asyncio.create_task(supervisor.stop(1000, nothing))
    await asyncio.sleep(0.02)
    stopping.cancel()
    await asyncio.wait({stopping}, timeout=PATIENCE_S)
    assert stopping.cancelled()
    supervisor.kill()
    again = asyncio.create_task(supervisor.stop(1000, nothing))
    async with asyncio.timeout(PATIENCE_S):
        while not again.done():
            reaper.reap()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("turns", range(6))
async def test_a_life_that_is_cancelled_while_it_ends_by_itself_stays_cancelled(
    monkeypatch: pytest.MonkeyPatch, turns: int
) -> None:
    """The loop's turn in which the launcher's last words have come is no other: a lost cancellation would be followed
    by the next launcher."""
    reaper, spoken = OwnReaper(), asyncio.Event()

    async def last_words(process: object) -> None:
        await spoken.wait()

    supervisor = Supervisor(["true"], reaper, FakeClock())
    monkeypatch.setattr(supervisor, "_forward", last_words)
    life = asyncio.create_task(supervisor._run_once())
    async with asyncio.timeout(PATIENCE_S):
        while supervisor.last_exit is None:
            reaper.reap()
            await asyncio.sleep(0.001)
    spoken.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    cancelled = life.cancel()
    await asyncio.wait({life})
    assert life.cancelled() == cancelled


async def test_the_word_to_end_an_api_does_not_kill_a_launcher_that_is_still_starting(tmp_path: Path) -> None:
    """It listens once its program is loaded: on a busy machine that takes as long as an api may be silent."""
    reaper = OwnReaper()
    starting = f"echo begins >&2; until [ -e '{tmp_path}/ready' ]; do sleep 0.02; done; exit 7"
    supervisor = Supervisor(["sh", "-c", starting], reaper, FakeClock())
    life = asyncio.create_task(supervisor._run_once())
    async with asyncio.timeout(PATIENCE_S):
        while not supervisor._tail:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert supervisor.end_api()
    (tmp_path / "ready").touch()
    async with asyncio.timeout(PATIENCE_S):
        while not life.done():
            reaper.reap()
            await asyncio.sleep(0.02)
    assert supervisor.last_exit == 7


async def test_a_crash_loop_is_over_once_a_launcher_has_lived(monkeypatch: pytest.MonkeyPatch) -> None:
    reaper, clock = OwnReaper(), FakeClock()
    supervisor = Supervisor(["sleep", "1000"], reaper, clock)
    supervisor.short_lives = 5
    supervisor.start()
    async with asyncio.timeout(PATIENCE_S):
        while not supervisor.running:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert supervisor.crash_loop
    clock.now += supervisor_module.HEALTHY_AFTER
    assert not supervisor.crash_loop
    pid = supervisor.pid
    assert pid is not None
    stopping = asyncio.create_task(supervisor.stop(0.1, nothing))
    async with asyncio.timeout(PATIENCE_S):
        while not stopping.done():
            reaper.reap()
            await asyncio.sleep(0.02)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def test_a_generation_has_one_content() -> None:
    bench = Bench(config(3, 60, 80))
    bench.controller.configure(config(3, 60, 80))
    with pytest.raises(ConfigRefused, match="generation 3 is in force with another partition") as e:
        bench.controller.configure(config(3, 30, 80))
    assert e.value.code == "GenerationConflict"
    bench = Bench(config(0, 60, 80))
    bench.controller.configure(config(0, 30, 80))
    assert bench.report().partition.requested.prefill_percent == 30


def test_one_process_for_both_phases_is_left_alone() -> None:
    """`--unified`: nothing stands behind a split, so nothing is decided and nothing is shown as a move."""
    bench = Bench(
        config(mode=Mode.AUTO, slo=SLOS),
        lambda mode: select(Device.CPU, mode, Grant(cpus=(0, 1)), unified=True),
    )
    for _ in range(5):
        bench.tick()
    report = bench.report()
    assert (report.partition.policy, report.partition.enforcement) == (None, "none")
    assert report.slo is not None and report.slo.feasible_reason == "PolicyInactive"
    assert report.decisions == ()
