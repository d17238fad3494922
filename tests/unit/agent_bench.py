"""A split controller on a fake clock, and the least engine that obeys it."""

from __future__ import annotations

from collections.abc import Callable

from tests.unit.agent_plant import FakeClock, worker

from semipd_agent import report
from semipd_agent.contract import (
    SLO,
    AgentConfig,
    Bounds,
    Identity,
    Mode,
    PartitionConfig,
    Split,
    StatusReport,
)
from semipd_agent.control import SplitController
from semipd_agent.engine_report import LauncherState
from semipd_agent.partitioner import Grant, Partitioner, select
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.partitioner.mps.ladder import LADDER, quantize
from semipd_engine.contract import Device, EngineSnapshot, EngineState, Observation, Phase, SetPartition
from semipd_engine.contract import Split as EngineSplit


class Rungs(CpuPaced):
    """As the GPU's: each share is a worker's for life."""

    rungs = LADDER
    prepares = True

    def quantize(self, want: EngineSplit) -> EngineSplit:
        return quantize(want)


def split(prefill: int, decode: int) -> Split:
    return Split(prefill_percent=prefill, decode_percent=decode)


def config(
    generation: int = 1,
    prefill: int = 60,
    decode: int = 80,
    mode: Mode = Mode.MANUAL,
    slo: SLO | None = None,
    bounds: Bounds | None = None,
) -> AgentConfig:
    partition = PartitionConfig(mode=mode, split=split(prefill, decode), bounds=bounds or Bounds())
    return AgentConfig(generation=generation, slo=slo, partition=partition)


class Bench:
    """A controller and the least engine that obeys it."""

    def __init__(self, start: AgentConfig, backend: Callable[[Mode], Partitioner] | None = None) -> None:
        self.clock = FakeClock()
        grant = Grant(cpus=(0, 1))
        self.controller = SplitController(backend or (lambda mode: select(Device.CPU, mode, grant)), start, self.clock)
        self.epoch = 0
        self.applied = 0
        self.sent: list[SetPartition] = []
        self.restarts: dict[str, int] = {"prefill": 0}

    def snapshot(self, **changes: object) -> EngineSnapshot:
        fields: dict[str, object] = {
            "monotonic_time": self.clock.now,
            "state": EngineState.READY,
            "split_epoch": self.epoch,
            "workers": tuple(worker(phase, self.applied) for phase in Phase),
            "restarts": self.restarts,
            "observation": Observation(core_id="core", at=self.clock.now),
        }
        return EngineSnapshot.model_validate(fields | changes)

    def tick(self, *, answers: bool = True, obeys: bool = True) -> None:
        self.clock.now += 1
        self.applied = self.epoch if obeys else self.applied
        self.controller.observe(self.snapshot() if answers else None)
        if answers and (message := self.controller.pending()) is not None:
            self.sent.append(message)
            self.epoch = message.split_epoch

    def report(self, launcher: LauncherState | None = None, ready: bool = True) -> StatusReport:
        return report.build(
            self.controller,
            launcher or LauncherState(),
            Identity(pod="p"),
            ready=ready,
            now=self.clock.now,
            wall=self.clock.wall(),
        )
