"""The controller's plant: the simulator's engine (production scheduler and block manager) in virtual time.

Prompts in order of arrival, in chunks; decode serves all others in one batch whose step grows with its size. While both
are busy each runs at its part of the device (x / (x + y)); a phase that is alone has all of it.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from semipd_agent.contract import SLO, AgentConfig
from semipd_agent.control import SplitController
from semipd_agent.partitioner import Grant, Partitioner
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.slo.policy import prefill_share
from semipd_cli.simulator.engine import Arrival, Size, VirtualEngine
from semipd_cli.simulator.oracle import Oracle
from semipd_engine.contract import (
    EngineSnapshot,
    EngineState,
    Phase,
    Refusal,
    Split,
    WorkerReport,
    WorkerState,
)

TRACES = Path(__file__).parents[2] / "bench" / "traces"


class FakeClock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime(2030, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)


@dataclass(frozen=True)
class Job:
    at: float
    prompt: int
    output: int


def poisson(rate: float, seconds: float, prompt: float, output: float, seed: int, start: float = 0.0) -> Iterator[Job]:
    """Poisson arrivals, exponential lengths with the given means (squared coefficient of variation 1)."""
    rng, t = random.Random(seed), start
    while (t := t + rng.expovariate(rate)) < start + seconds:
        yield Job(t, 1 + round(rng.expovariate(1 / prompt)), 2 + round(rng.expovariate(1 / output)))


def trace(name: str, seconds: float, speed: float, start: float = 0.0, skip: float = 0.0) -> Iterator[Job]:
    """`seconds` of an Azure 2023 trace from `skip` on, run `speed` times as fast."""
    with gzip.open(TRACES / f"azure2023_{name}.csv.gz", "rt") as f:
        for row in csv.DictReader(f):
            at = (float(row["t_s"]) - skip) / speed
            if 0 <= at < seconds:
                yield Job(start + at, int(row["input_tokens"]), max(1, int(row["output_tokens"])))


@dataclass(frozen=True)
class Speed:
    """Seconds at the whole device."""

    prompt_token: float = 1e-3
    step: float = 0.02
    row: float = 0.004
    """What each request of the batch adds to a decode step."""

    def ttft(self, prompt: float) -> float:
        return prompt * self.prompt_token

    def tpot(self) -> float:
        return self.step + self.row


def worker(phase: Phase, epoch: int, age: float = 0.1, state: WorkerState = WorkerState.READY) -> WorkerReport:
    return WorkerReport(
        phase=phase,
        pid=100,
        generation=1,
        state=state,
        applied_epoch=epoch,
        heartbeat_age_seconds=age,
        busy=False,
        steps=0,
        cpu_seconds=0.0,
    )


@dataclass(frozen=True)
class Run:
    """What the controller did to the engine: the split after each second, and the decisions, oldest first."""

    splits: list[Split]
    controller: SplitController
    engine: VirtualEngine
    fullness: list[float | None]
    """The utilization ratio after each second."""

    def moves(self, start: int = 0, end: int | None = None) -> int:
        """Changes of the split in seconds [start, end)."""
        part = self.splits[start:end]
        return sum(a != b for a, b in itertools.pairwise(part))

    def share(self, second: int) -> float:
        return prefill_share(self.splits[second])

    def attainment(self, slo: SLO, start: float = 0.0) -> float:
        """Share of the requests received after `start` that met both targets."""
        done = [r for r in self.engine.done if r.at >= start]
        ttft, tpot = (slo.ttft_milliseconds or 10**9) / 1e3, (slo.tpot_milliseconds or 10**9) / 1e3
        good = sum(r.ttft is not None and r.ttft <= ttft and (r.tpot or 0) <= tpot for r in done)
        return good / len(done) if done else 1.0


class Pod:
    """A controller and the engine that obeys it, one tick a second."""

    def __init__(
        self,
        config: AgentConfig,
        jobs: Iterable[Job] = (),
        speed: Speed | None = None,
        size: Size | None = None,
        now: float = 0.0,
        backend: Partitioner | None = None,
    ) -> None:
        self.clock = FakeClock(now)
        chosen = backend or CpuPaced(Grant(cpus=(0, 1)))
        self.controller = SplitController(lambda mode: chosen, config, self.clock)
        speed = speed or Speed()
        oracle = Oracle(prefill=(0.0, speed.prompt_token, 0.0), decode=(speed.step, speed.row, 0.0))
        size = size or Size(max_num_seqs=256, kv_tokens=10**6)
        arrivals = [Arrival(j.at, j.prompt, max(1, j.output)) for j in sorted(jobs, key=lambda j: j.at)]
        self.engine = VirtualEngine(arrivals, oracle, size, 0, Split())
        self.engine.now = now
        self._epoch = 0
        self._refused: Refusal | None = None
        self.refusals: list[Split] = []

    def lacks(self, split: Split) -> bool:
        """Can it not be prepared?"""
        return False

    def tick(self, now: float) -> None:
        engine = self.engine
        engine.run_until(now)
        self.clock.now = engine.now
        snapshot = EngineSnapshot(
            monotonic_time=engine.now,
            state=EngineState.READY,
            split_epoch=self._epoch,
            split=engine.split,
            workers=self.workers(self._epoch),
            observation=engine.observe(self.controller.pilot.window.cursor),
            refused=self._refused,
        )
        engine.follow(self.controller.pilot.gate)  # the question carries what the last answer said
        self.controller.observe(snapshot)
        if (message := self.controller.pending()) is None:
            return
        if self.lacks(message.plan.split):
            self._refused = Refusal(split_epoch=message.split_epoch, reason="WarmUpFailed", message="no memory")
            self.refusals.append(message.plan.split)
        else:
            self._epoch, self._refused = message.split_epoch, None
            engine.switch(message.plan.split, 0.0)

    def workers(self, epoch: int) -> tuple[WorkerReport, ...]:
        return tuple(worker(phase, epoch) for phase in Phase)


def simulate(
    jobs: Iterable[Job], config: AgentConfig, seconds: int, speed: Speed | None = None, size: Size | None = None
) -> Run:
    """The whole controller against the production scheduler in virtual time."""
    pod = Pod(config, jobs, speed, size)
    splits: list[Split] = []
    fullness: list[float | None] = []
    for second in range(1, seconds + 1):
        pod.tick(float(second))
        splits.append(pod.controller.requested)
        fullness.append(pod.controller.pilot.utilization_ratio)
    return Run(splits, pod.controller, pod.engine, fullness)
