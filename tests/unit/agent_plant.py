"""A two-phase engine in virtual time, as plant for the controller: queues and shares, no model and no processes.

Prefill serves one prompt at a time, first come first served; decode serves all others in one batch whose step grows
with its size. While both are busy each runs at its part of the device (x / (x + y)); a phase that is alone has all of
it. Work is a fluid in ticks of `TICK` seconds. It speaks the engine's contract, so the controller cannot tell.
"""

from __future__ import annotations

import csv
import gzip
import itertools
import random
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from semipd_agent.contract import SLO, AgentConfig
from semipd_agent.control import SplitController
from semipd_agent.partitioner.base import Grant
from semipd_agent.partitioner.cpu_paced import CpuPaced
from semipd_agent.slo.policy import decode_share, prefill_share
from semipd_engine.contract import (
    Arrival,
    EngineSnapshot,
    EngineState,
    FinishedRequest,
    Phase,
    SetPartition,
    Split,
    WorkerReport,
    WorkerState,
)

TICK = 0.01
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


@dataclass
class _Running:
    job: Job
    first_token: float
    ends: float
    """Decode progress (steps since the start) at which the last token is out."""


@dataclass
class Plant:
    jobs: deque[Job]
    speed: Speed = field(default_factory=Speed)
    now: float = 0.0
    epoch: int = 0
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        self.waiting: deque[Job] = deque()
        self.prefilling: tuple[Job, float] | None = None
        self.decoding: list[_Running] = []
        self.steps = 0.0
        self.finished: list[FinishedRequest] = []
        self.arrivals: deque[Arrival] = deque()

    def advance(self, until: float) -> None:
        while self.now < until - TICK / 2:
            self._tick()

    def _tick(self) -> None:
        self.now += TICK
        while self.jobs and self.jobs[0].at <= self.now:
            job = self.jobs.popleft()
            self.waiting.append(job)
            self.arrivals.append(Arrival(at=job.at, prompt_tokens=job.prompt))
        if self.prefilling is None and self.waiting:
            job = self.waiting.popleft()
            self.prefilling = (job, job.prompt * self.speed.prompt_token)
        both = self.prefilling is not None and bool(self.decoding)
        if self.decoding:
            part = decode_share(self.split) if both else 1.0
            self.steps += TICK * part / (self.speed.step + self.speed.row * len(self.decoding))
            done = [r for r in self.decoding if self.steps >= r.ends]
            if done:
                self.decoding = [r for r in self.decoding if self.steps < r.ends]
                for r in done:
                    self._finish(r.job, r.first_token)
        if self.prefilling is not None:
            job, work = self.prefilling
            work -= TICK * (prefill_share(self.split) if both else 1.0)
            self.prefilling = (job, work)
            if work <= 0:
                self.prefilling = None
                if job.output > 1:
                    self.decoding.append(_Running(job, self.now, self.steps + job.output - 1))
                else:
                    self._finish(job, self.now)

    def _finish(self, job: Job, first_token: float) -> None:
        tpot = (self.now - first_token) / (job.output - 1) if job.output > 1 else None
        self.finished.append(
            FinishedRequest(
                cursor=len(self.finished),
                finished_at=self.now,
                prompt_tokens=job.prompt,
                cached_tokens=0,
                output_tokens=job.output,
                ttft_seconds=first_token - job.at,
                tpot_seconds=tpot,
                finish_reason="length",
            )
        )

    def set_partition(self, message: SetPartition) -> None:
        if message.split_epoch > self.epoch:
            self.epoch, self.split = message.split_epoch, message.plan.split

    def snapshot(self, since: int = 0) -> EngineSnapshot:
        while self.arrivals and self.arrivals[0].at < self.now - 60:
            self.arrivals.popleft()
        return EngineSnapshot(
            monotonic_time=self.now,
            state=EngineState.READY,
            split_epoch=self.epoch,
            split=self.split,
            workers=tuple(worker(phase, self.epoch) for phase in Phase),
            waiting=len(self.waiting),
            prefilling=int(self.prefilling is not None),
            decoding=len(self.decoding),
            waiting_tokens=sum(job.prompt for job in self.waiting),
            oldest_wait_seconds=self.now - self.waiting[0].at if self.waiting else 0.0,
            finished=tuple(self.finished[since:]),
            arrivals=tuple(self.arrivals),
            next_cursor=len(self.finished),
        )


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
    """What the controller did to the plant: the split after each second, and the decisions, oldest first."""

    splits: list[Split]
    controller: SplitController
    plant: Plant
    fullness: list[float | None]
    """The capacity ratio after each second."""

    def moves(self, start: int = 0, end: int | None = None) -> int:
        """Changes of the split in seconds [start, end)."""
        part = self.splits[start:end]
        return sum(a != b for a, b in itertools.pairwise(part))

    def share(self, second: int) -> float:
        return prefill_share(self.splits[second])

    def attainment(self, slo: SLO, start: float = 0.0) -> float:
        """Share of the requests finished after `start` that met both targets."""
        done = [r for r in self.plant.finished if r.finished_at >= start]
        ttft, tpot = (slo.ttft_milliseconds or 10**9) / 1e3, (slo.tpot_milliseconds or 10**9) / 1e3
        good = sum((r.ttft_seconds or 0) <= ttft and (r.tpot_seconds or 0) <= tpot for r in done)
        return good / len(done) if done else 1.0


def simulate(jobs: Iterable[Job], config: AgentConfig, seconds: int, speed: Speed | None = None) -> Run:
    """The whole controller against the plant, one tick a second, in virtual time."""
    clock = FakeClock(0.0)
    controller = SplitController(lambda mode: CpuPaced(Grant(cpus=(0, 1))), config, clock)
    plant = Plant(deque(sorted(jobs, key=lambda j: j.at)), speed or Speed())
    splits: list[Split] = []
    fullness: list[float | None] = []
    for second in range(1, seconds + 1):
        plant.advance(float(second))
        clock.now = plant.now
        controller.observe(plant.snapshot(controller.window.cursor))
        if (message := controller.pending()) is not None:
            plant.set_partition(message)
        splits.append(controller.requested)
        fullness.append(controller.utilization_ratio)
    return Run(splits, controller, plant, fullness)
