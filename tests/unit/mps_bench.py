"""The real MPS backend on stand-in programs (`mps_stand_in`): real child processes, directories and time-outs."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.agent_plant import worker
from tests.unit.mps_stand_in import script_faults

from e2e.lib.waiting import wait_until_async
from semipd_agent.children import Children
from semipd_agent.clock import SystemClock
from semipd_agent.gpu.telemetry import ComputeMode, GpuFacts
from semipd_agent.partitioner.mps import Mps, Programs
from semipd_agent.partitioner.mps.ladder import Timing
from semipd_agent.partitioner.mps.preflight import Host
from semipd_agent.reaper import Reaper
from semipd_engine.contract import EngineSnapshot, EngineState, Phase, WorkerReport

STAND_IN = Path(__file__).with_name("mps_stand_in.py")
QUICK = Timing(
    command=3,
    answer=20,
    server=9,
    first_probe=9,
    probe=9,
    green=9,
    check=0.2,
    initializing=1,
    terminate=3,
    end=3,
    longest_delay=0.1,
    healthy=1000,
)
"""What hangs on purpose is given up soon."""
PATIENT = replace(QUICK, command=100, answer=100, server=100, first_probe=100, probe=100, terminate=100, end=60)
"""A machine that stands still at times, too, starts a program within these."""
H100 = GpuFacts("GPU-1", "NVIDIA H100", "580.1", ComputeMode.DEFAULT, mig=False)


class OwnReaper(Reaper):
    """Collects the children that were adopted and no others: this process has other tests' children, too."""

    def reap(self) -> None:
        for pid, collect in list(self._owners.items()):
            try:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                ended = None
            if ended is not None:
                del self._owners[pid]
                collect()


def stand_ins(folder: Path) -> Programs:
    """Executables with the names of the real ones."""
    for name, part in (("nvidia-cuda-mps-control", "control"), ("nvidia-cuda-mps-server", "server")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {STAND_IN} {part} "$@"\n')
        program.chmod(0o755)
    return Programs(
        control=str(folder / "nvidia-cuda-mps-control"),
        server=str(folder / "nvidia-cuda-mps-server"),
        probe=(sys.executable, "-S", "-E", str(STAND_IN), "probe"),
        green=(sys.executable, "-S", "-E", str(STAND_IN), "green"),
    )


def good_host(base: Path) -> Host:
    return Host(
        gpu=H100,
        device_files=True,
        missing_programs=(),
        uids=(10001, 10001, 10001),
        base=base,
        base_problem="",
        file_system="tmpfs",
        inherited_pipe="",
    )


class MpsBench:
    def __init__(self, base: Path, folder: Path) -> None:
        self.base = base
        self.script = folder / "script"
        self.script.write_text("")
        self.reaper = OwnReaper()
        self.children = Children(self.reaper)
        self.programs = stand_ins(folder)
        self.clock = SystemClock()
        self.host = good_host(base)
        self.mps = self._backend(PATIENT)
        self._keeping: asyncio.Task[None] | None = None

    def _backend(self, timing: Timing) -> Mps:
        return Mps(self.programs, self.children, self.base, self.clock, look=lambda: self.host, timing=timing)

    def want_green(self) -> None:
        """Before `begin`."""
        make = (self.programs, self.children, self.base, self.clock)
        self.mps = Mps(*make, look=lambda: self.host, timing=PATIENT, green=True)

    def give_up_after(self, seconds: float) -> None:
        """On a start that has no hope. Before `begin`."""
        self.mps = self._backend(replace(QUICK, answer=seconds, server=seconds, first_probe=seconds))

    def take_time(self, what: str, seconds: float) -> None:
        """Of that one limit. Before `begin`."""
        self.mps = self._backend(replace(PATIENT, **{what: seconds}))

    async def in_force(self) -> MpsBench:
        """Once its first daemon is."""
        self.begin()
        await self.until(lambda: self.mps.ready)
        return self

    def begin(self) -> None:
        """Keep the backend alive from now on."""
        self._keeping = asyncio.create_task(self.mps.run())

    async def end(self) -> None:
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        await self.mps.close()

    def change(self, **facts: object) -> None:
        self.host = replace(self.host, **facts)  # type: ignore[arg-type]

    def faults(self, *lines: str) -> None:
        """What the stand-ins do wrong from now on."""
        script_faults(self.script, *lines)

    async def reap(self) -> None:
        """As the agent does on SIGCHLD."""
        while True:
            self.reaper.reap()
            await asyncio.sleep(0.02)

    async def until(self, condition: Callable[[], object], seconds: float = 150.0) -> None:
        await wait_until_async(condition, seconds)


@asynccontextmanager
async def mps_bench(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MpsBench]:
    """A backend that `begin` brings to life; nothing of it is left afterwards."""
    monkeypatch.setenv("STAND_IN_SCRIPT", str(folder / "script"))
    with tempfile.TemporaryDirectory(prefix="spd") as base:  # pytest's own folder may be too long for a socket
        made = MpsBench(Path(base), folder)
        reaping = asyncio.create_task(made.reap())
        yield made
        await made.end()
        reaping.cancel()
        assert os.listdir(base) == []  # noqa: PTH208


def rung(phase: Phase, percent: int, sm_count: int | None, **changes: object) -> WorkerReport:
    return worker(phase, 1).model_copy(update={"percent": percent, "sm_count": sm_count, **changes})


def snapshot(*workers: WorkerReport, deaths: int = 0, core: str = "c", leaving: tuple[int, ...] = ()) -> EngineSnapshot:
    return EngineSnapshot(
        core_id=core,
        monotonic_time=0,
        state=EngineState.READY,
        workers=workers,
        leaving=leaving,
        restarts={"prefill": deaths, "decode": 0},
    )
