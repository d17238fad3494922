"""Looks at the GPU once a second in a thread of its own, so that a sick driver stops the telemetry and nothing else."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from semipd_agent.clock import Clock
from semipd_agent.gpu.telemetry import GpuLost, GpuSample, Telemetry, TelemetryLost

log = logging.getLogger(__name__)

PERIOD_SECONDS = 1.0
STALE_SECONDS = 10.0
"""A sample that is older says nothing any more."""


@dataclass(frozen=True)
class _Seen:
    at: float
    sample: GpuSample


class Sampler:
    def __init__(
        self,
        telemetry: Telemetry | None,
        clock: Clock,
        on_xid: Callable[[int], None],
        on_lost: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`telemetry` None: there is nothing to see. `on_xid`, and `on_lost` when the driver says that the GPU is gone,
        are called in the thread."""
        self._telemetry = telemetry
        self._clock = clock
        self._on_xid, self._on_lost = on_xid, on_lost
        self._seen: _Seen | None = None
        self._lost: type[TelemetryLost] | None = None
        self.xids: Counter[int] = Counter()

    def start(self) -> None:
        if self._telemetry is not None:
            threading.Thread(target=self._run, name="gpu-telemetry", daemon=True).start()

    def latest(self) -> GpuSample | None:
        """None: no GPU, or no word of it for a while."""
        seen = self._seen
        return seen.sample if seen and self._clock.monotonic() - seen.at <= STALE_SECONDS else None

    def look(self) -> None:
        """One round."""
        assert self._telemetry is not None
        try:
            self._seen = _Seen(self._clock.monotonic(), self._telemetry.sample())
            for xid in self._telemetry.xids():
                log.error("the GPU reported Xid %d", xid)
                self.xids[xid] += 1
                self._on_xid(xid)
            self._lost = None
        except TelemetryLost as e:
            if type(e) is not self._lost:
                self._lost = type(e)
                log.warning("no telemetry of the GPU: %s", e)
                if isinstance(e, GpuLost):
                    self._on_lost(str(e))

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self.look()
            pause.wait(PERIOD_SECONDS)
