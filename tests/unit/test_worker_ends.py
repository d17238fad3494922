"""How core ends workers: never by waiting, and a client of MPS only after somebody had time to end it cleanly."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from tests.engine import rungs

from semipd_engine.contract import EngineOptions, Phase, SetPartition, WorkerState
from semipd_engine.core.engine_core import WATCHDOG_SECONDS, EngineCore
from semipd_engine.core.event_loop import EventLoop
from semipd_engine.core.fault_isolation import Ending
from semipd_engine.core.holder import Holder
from semipd_engine.core.partitions import Partitions
from semipd_engine.core.worker_pool import WorkerPool
from semipd_engine.ipc.workers import Spawned, SpawnWorker
from semipd_engine.pacing.page import PacingPage

pytestmark = pytest.mark.unit


class Bench:
    """Workers whose processes are pipes: such a process dies when its pipe is closed, and when it is told to, not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, terminate_seconds: float) -> None:
        self.signals: list[int] = []
        self.lost: list[Holder] = []
        self.asked: list[SpawnWorker] = []
        self.lives: dict[int, int] = {}
        monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: self.signals.append(pidfd))
        plan = rungs.plan(100, 100)
        limit = plan.prefill.model_copy(update={"terminate_seconds": terminate_seconds})
        plan = plan.model_copy(update={"prefill": limit, "decode": limit, "whole": limit})
        phases = tuple(Phase)
        self.partitions = Partitions(phases, SetPartition.model_construct(split_epoch=0, plan=plan), 60.0, False)
        self.loop = EventLoop()
        self.workers = WorkerPool(self.loop, phases, self.partitions, lambda *_: None, self._on_lost)
        self.attach()

    def _on_lost(self, holder: Holder, ending: Ending) -> None:
        self.lost.append(holder)

    def attach(self) -> None:
        self.workers.attach(self.asked.append, rungs.DEVICE_SMS)

    def spawn(self) -> list[Holder]:
        """Let core ask for its workers, and be the resident that starts them."""
        self.workers.tick(time.monotonic())
        for number, order in enumerate(self.asked, start=1):
            ours, _ = socket.socketpair()
            pidfd, life = os.pipe()
            self.lives[pidfd] = life
            self.workers.spawned(
                Spawned(phase=order.phase, generation=order.generation, pid=number), ours.detach(), pidfd
            )
        self.asked.clear()
        return list(self.workers.everyone())

    def die(self, holder: Holder) -> None:
        os.close(self.lives.pop(holder.pidfd))


def test_a_lost_resident_stops_nobody_although_its_workers_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process that holds a GPU may take seconds to be gone: core's loop goes on meanwhile."""
    bench = Bench(monkeypatch, terminate_seconds=600)
    workers = bench.spawn()
    assert len(workers) == 2
    began = time.monotonic()
    bench.workers.detach()
    bench.loop.run_once(0)
    assert time.monotonic() - began < 300 and not bench.workers.gone and bench.lost == []
    assert set(bench.signals) == {holder.pidfd for holder in workers}, "their owner is gone: nothing is left to spare"
    bench.die(workers[0])
    bench.loop.run_once(1)
    assert bench.lost == [workers[0]] and not bench.workers.gone
    bench.die(workers[1])
    bench.loop.run_once(1)
    assert bench.lost == workers and bench.workers.gone, "nobody waits for a word of a parent that is gone"
    bench.attach()
    assert [holder.generation for holder in bench.spawn()] == [2, 2]


def test_a_worker_that_died_just_before_its_resident_is_buried_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The word that it waits for will never come."""
    bench = Bench(monkeypatch, terminate_seconds=0)
    first, second = bench.spawn()
    bench.die(first)
    bench.loop.run_once(1)
    assert bench.lost == [], "how it ended is not said yet"
    bench.workers.detach()
    assert bench.lost == [first] and bench.signals == [second.pidfd]
    bench.die(second)
    bench.loop.run_once(1)
    assert bench.lost == [first, second] and bench.workers.gone
    bench.attach()
    assert [holder.generation for holder in bench.spawn()] == [2, 2]


@pytest.mark.parametrize(("status", "level", "deaths"), [(0, logging.INFO, 0), (-signal.SIGSEGV, logging.WARNING, 1)])
def test_a_worker_that_goes_when_it_is_told_to_is_no_death(
    status: int, level: int, deaths: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench = Bench(monkeypatch, terminate_seconds=0)
    holder, _ = bench.spawn()
    bench.workers.shut_down(timeout=0)
    bench.die(holder)
    bench.loop.run_once(1)
    bench.workers.ended(holder.pid, status)
    [record] = [one for one in caplog.records if f"worker {holder.pid} " in one.getMessage()]
    assert (record.levelno, bench.workers.deaths.total()) == (level, deaths)
    assert bench.lost == [holder]


def test_a_worker_that_ends_untold_is_a_death_whatever_it_says(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(monkeypatch, terminate_seconds=0)
    holder, _ = bench.spawn()
    bench.die(holder)
    bench.loop.run_once(1)
    bench.workers.ended(holder.pid, 0)
    assert f"worker {holder.pid} died (generation 1): exit status 0" in caplog.text
    assert bench.workers.deaths.total() == 1


def test_the_resident_knows_how_long_mps_may_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the day on which core is gone, and cannot tell."""
    bench = Bench(monkeypatch, terminate_seconds=30)
    bench.workers.tick(time.monotonic())
    assert [order.terminate_seconds for order in bench.asked] == [30, 30]


def test_a_client_of_mps_is_shown_before_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, terminate_seconds=30)
    holder, other = bench.spawn()
    asked = time.monotonic()
    bench.workers.kill(holder)
    due = holder.kill_at
    assert due is not None and due >= asked + 30 and other.kill_at is None
    bench.workers.kill(holder)
    assert holder.kill_at == due, "asking again gives it no more time"
    bench.workers.tick(due - 1)
    assert bench.signals == []
    bench.workers.tick(due)
    assert bench.signals == [holder.pidfd]
    bench.die(holder)
    bench.loop.run_once(1)
    bench.workers.ended(holder.pid, -9)
    assert bench.lost == [holder] and holder.state is WorkerState.DEAD
    holder.spawn_at = 0.0
    bench.workers.tick(time.monotonic())
    assert holder.kill_at is None, "the next one is innocent"


def test_a_worker_that_does_not_move_is_ended_and_one_that_beats_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step that hangs in a kernel, or a stopped process: core's watchdog is the one to see it."""
    core = EngineCore(EngineOptions(model=tmp_path, run_dir=tmp_path), tmp_path, rungs.plan(60, 40))
    bench = Bench(monkeypatch, terminate_seconds=30)
    core._workers = bench.workers
    stuck, beating = bench.spawn()
    for holder in (stuck, beating):
        holder.state = WorkerState.READY
    core._status.page = page = PacingPage.create()

    def watch(begin: float, seconds: float) -> None:
        for moment in range(int(seconds)):
            page.seats[beating.phase][beating.seat].heartbeat_ns = int((begin + moment) * 1e9)
            core._watch_heartbeats(begin + moment)

    watch(stuck.started_at, 30)
    woken = stuck.started_at + 300
    core._watch_heartbeats(woken)
    assert stuck.kill_at is None and beating.kill_at is None, "all of the engine was stopped: nobody is to blame"
    watch(woken, WATCHDOG_SECONDS)
    assert stuck.kill_at is None
    watch(woken + WATCHDOG_SECONDS, 2)
    assert stuck.kill_at is not None and beating.kill_at is None
    assert bench.signals == [], "MPS has its time first"


def test_others_are_killed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, terminate_seconds=0)
    holder, _ = bench.spawn()
    bench.workers.kill(holder)
    assert bench.signals == [holder.pidfd]


def test_a_worker_that_finishes_its_plan_before_it_goes_is_told_of_until_it_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is a client of the daemon that it was started under, which therefore has to stay."""
    bench = Bench(monkeypatch, terminate_seconds=30)
    old = bench.spawn()
    assert bench.workers.leaving == ()
    bench.partitions.propose(SetPartition(split_epoch=1, plan=rungs.plan(60, 40, daemon=2)), time.monotonic())
    bench.partitions.tick(time.monotonic(), lambda *_: True)
    bench.workers.tick(time.monotonic())
    assert sorted(bench.workers.leaving) == sorted(holder.pid for holder in old)
    bench.die(old[0])
    bench.loop.run_once(1)
    bench.workers.ended(old[0].pid, 0)
    assert bench.workers.leaving == (old[1].pid,)
    bench.workers.kill(old[1])
    assert bench.workers.leaving == (), "it is among those that are ending"


@pytest.mark.parametrize("mps_answers", [True, False])
def test_at_the_end_too_mps_ends_a_client_before_any_signal(mps_answers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told, in order, to workers that do not go: the agent reads `ending` while core waits for them."""
    bench = Bench(monkeypatch, terminate_seconds=600 if mps_answers else 0.2)
    workers = bench.spawn()
    events: list[str] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda pidfd, number: events.append(signal.Signals(number).name))
    run_once = bench.loop.run_once

    def run_once_beside_an_agent(timeout: float) -> None:
        shown = [holder for holder in workers if holder.kill_at is not None and holder.pidfd in bench.lives]
        if shown and (mps_answers or not events):
            events.extend("terminate_client" for _ in shown)
        for holder in shown if mps_answers else ():
            bench.die(holder)
        run_once(0)
        for holder in shown if mps_answers else ():
            bench.workers.ended(holder.pid, 1)

    monkeypatch.setattr(bench.loop, "run_once", run_once_beside_an_agent)
    bench.workers.shut_down(timeout=0)
    assert events == ["terminate_client"] * 2 + ([] if mps_answers else ["SIGKILL"] * 2)
    assert bench.workers.gone is mps_answers
