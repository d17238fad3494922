"""How the resident ends workers whose core is gone: who holds a GPU leaves by itself, MPS ends it, or nobody has."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from semipd_engine.contract import EngineOptions, Phase
from semipd_engine.ipc.frames import BlockingChannel
from semipd_engine.ipc.workers import CoreToResident, ResidentHello, SpawnWorker
from semipd_engine.resident import resident
from semipd_engine.resident.resident import Resident

pytestmark = pytest.mark.unit

HELLO = ResidentHello(
    pid=1,
    num_blocks=1,
    block_size=16,
    kv_bytes=1,
    weight_bytes=1,
    architecture="a",
    dtype="d",
    device="cuda",
    max_model_len=1,
    vocab_size=1,
    kv_descriptor=False,
)


class Bench:
    """A resident with one worker, which is a process that hangs, and what was told to it in order."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.worker = subprocess.Popen(["sleep", "3600"])
        self.events: list[str] = []
        self._resident = Resident(EngineOptions(model=folder, run_dir=folder), folder)
        monkeypatch.setattr(resident, "LEAVE_GPU_SECONDS", 0.0)
        monkeypatch.setattr(resident, "start_worker", self._start)
        monkeypatch.setattr(signal, "pidfd_send_signal", self._signal)

    def serve(self, order: SpawnWorker, hello: ResidentHello = HELLO) -> None:
        self._resident._hello, self._resident._model, self._resident._page = hello, None, None  # type: ignore[assignment]
        ours, cores = socket.socketpair()
        core: BlockingChannel[CoreToResident] = BlockingChannel(ours, CoreToResident)
        self._resident._core = core
        self._resident._spawn(core, order)
        cores.close()

    def end(self) -> None:
        self._resident.close()
        self.worker.returncode = 0  # the resident has reaped it

    def _start(self, *_: object) -> tuple[int, socket.socket]:
        return self.worker.pid, socket.socketpair()[0]

    def _signal(self, pidfd: int, number: int) -> None:
        self.events.append(signal.Signals(number).name)
        os.kill(self.worker.pid, number)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(tmp_path, monkeypatch)
    yield made
    made.worker.kill()
    made.worker.wait()


def beside(monkeypatch: pytest.MonkeyPatch, agent: Callable[[], None]) -> None:
    """The agent acts while the resident waits for the first time."""
    poll, todo = select.poll, [agent]

    def waiting() -> select.poll:
        if todo:
            todo.pop()()
        return poll()

    monkeypatch.setattr(resident.select, "poll", waiting)


def test_a_worker_whose_core_is_gone_is_left_to_mps_before_it_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminate_client() -> None:
        bench.events.append("terminate_client")
        bench.worker.terminate()  # its next call on the GPU fails

    bench.serve(SpawnWorker(Phase.DECODE, 1, terminate_seconds=600.0))
    beside(monkeypatch, terminate_client)
    bench.end()
    assert bench.events == ["terminate_client"]


def test_a_worker_that_nobody_ends_in_that_time_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.serve(SpawnWorker(Phase.DECODE, 1, terminate_seconds=0.1))
    beside(monkeypatch, lambda: bench.events.append("waited"))
    bench.end()
    assert bench.events == ["waited", "SIGKILL"]


def test_a_worker_that_holds_no_gpu_is_killed_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.serve(SpawnWorker(Phase.DECODE, 1), msgspec.structs.replace(HELLO, kv_descriptor=True))
    beside(monkeypatch, lambda: bench.events.append("waited"))
    bench.end()
    assert bench.events == ["SIGKILL"]
