"""The GPU of this pod: its telemetry, its MPS, and the wire between them: an Xid harms a server, a lost GPU all.

On a CPU: nothing.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from semipd_agent.children import Children
from semipd_agent.clock import Clock
from semipd_agent.gpu.sampler import Sampler
from semipd_agent.gpu.telemetry import TelemetryLost, open_telemetry, visible_gpus
from semipd_agent.partitioner.mps.backend import Mps
from semipd_agent.partitioner.mps.programs import Programs
from semipd_agent.reaper import Reaper
from semipd_engine.contract import Device


class Gpu:
    def __init__(
        self, device: Device, programs: Programs, mps_base: Path, reaper: Reaper, clock: Clock, green: bool = False
    ) -> None:
        """`mps_base` holds the daemons' directories. `green`: rungs are streams, if they can be."""
        telemetry = open_telemetry() if device is Device.CUDA else None
        self.mps = (
            Mps(programs, Children(reaper), mps_base, clock, telemetry, green=green) if device is Device.CUDA else None
        )
        self.sampler = Sampler(telemetry, clock, self._xid, self._lost)
        self._loop: asyncio.AbstractEventLoop | None = None
        if telemetry is not None and visible_gpus() > 1:
            # CUDA orders GPUs by speed, NVML by bus: name ours, so that daemon, engine and telemetry mean the same one.
            with suppress(TelemetryLost):
                os.environ["CUDA_VISIBLE_DEVICES"] = telemetry.facts().uuid

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.sampler.start()

    def _xid(self, number: int) -> None:
        if self._loop is not None and self.mps is not None:
            self._loop.call_soon_threadsafe(self.mps.xid, number)

    def _lost(self, said: str) -> None:
        if self._loop is not None and self.mps is not None:
            self._loop.call_soon_threadsafe(self.mps.condemn, f"the driver has lost the GPU ({said})")
