"""Stands in for ``semipd-engine serve`` in the agent's process tests: a real process that speaks control.sock.

It carries out a partition after a delay, as workers do, and reports what it carried out, not what it was told. Under
rungs each worker is a process of its own with the rung's environment, a cold one is prepared while the others stay, and
one that is killed is started again under the same rung (`Rungs`).
SIGUSR1: the prefill worker falls silent. SIGUSR2: the core forgets its epoch, as a new one would. SIGTERM: drains.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mps_stand_in import sms_seen

from semipd_engine.contract import (
    CONTROL_REQUEST,
    Ack,
    Drain,
    EngineSnapshot,
    EngineState,
    ModelInfo,
    PacingMode,
    PartitionPlan,
    Phase,
    PhaseLimit,
    SetPartition,
    Split,
    WorkerReport,
    WorkerState,
)

MODEL = ModelInfo(
    name="standin",
    architecture="llama",
    dtype="float32",
    device="cpu",
    weight_bytes=1024,
    max_model_len=2048,
    kv_block_size=16,
    kv_bytes=4096,
)


@dataclass
class RungWorker:
    """One worker: a process that does nothing but live under its environment."""

    phase: Phase
    limit: PhaseLimit
    process: subprocess.Popen[bytes]
    ready_at: float
    generation: int


class Rungs:
    """Workers by phase and environment, as core keeps them."""

    PREPARE_SECONDS = 0.8

    def __init__(self) -> None:
        self.workers: list[RungWorker] = []
        self.restarts = {phase.value: 0 for phase in Phase}
        self.pending: SetPartition | None = None
        self.plan: PartitionPlan | None = None

    def _wanted(self, plan: PartitionPlan) -> list[tuple[Phase, PhaseLimit]]:
        limits = [(phase, limit) for phase in Phase for limit in (plan.limit(phase), plan.whole) if limit]
        return [each for n, each in enumerate(limits) if each not in limits[:n]]

    def _worker(self, phase: Phase, limit: PhaseLimit) -> RungWorker | None:
        return next((w for w in self.workers if w.phase is phase and w.limit.environment == limit.environment), None)

    def _start(self, phase: Phase, limit: PhaseLimit) -> None:
        command = [sys.executable, "-S", "-c", "import time; time.sleep(3600)"]
        generation = 1 + sum(w.phase is phase for w in self.workers) + self.restarts[phase.value]
        process = subprocess.Popen(command, env=os.environ | limit.environment)
        self.workers.append(RungWorker(phase, limit, process, time.monotonic() + self.PREPARE_SECONDS, generation))

    def accept(self, message: SetPartition) -> None:
        self.pending = message
        for phase, limit in self._wanted(message.plan):
            if self._worker(phase, limit) is None:
                self._start(phase, limit)

    def tick(self) -> SetPartition | None:
        """Replace the dead; the pending partition, once all its workers are ready. Others then end, but warm ones."""
        for dead in [w for w in self.workers if w.process.poll() is not None]:
            self.workers.remove(dead)
            self.restarts[dead.phase.value] += 1
            self._start(dead.phase, dead.limit)
        if self.pending is None:
            return None
        wanted = [self._worker(phase, limit) for phase, limit in self._wanted(self.pending.plan)]
        if not all(w and w.ready_at <= time.monotonic() for w in wanted):
            return None
        done, self.pending, self.plan = self.pending, None, self.pending.plan
        pipes = {w.limit.environment.get("CUDA_MPS_PIPE_DIRECTORY") for w in wanted if w}
        for stale in [w for w in self.workers if w.limit.environment.get("CUDA_MPS_PIPE_DIRECTORY") not in pipes]:
            self.workers.remove(stale)
            stale.process.kill()
            stale.process.wait()
        return done

    def stop(self) -> None:
        for worker in self.workers:
            worker.process.kill()

    def reports(self, epoch: int) -> tuple[WorkerReport, ...]:
        return tuple(
            WorkerReport(
                phase=w.phase,
                pid=w.process.pid,
                generation=w.generation,
                state=WorkerState.READY if w.ready_at <= time.monotonic() else WorkerState.STARTING,
                applied_epoch=epoch,
                heartbeat_age_seconds=0.1,
                busy=False,
                steps=0,
                cpu_seconds=0.0,
                percent=w.limit.percent,
                routed=bool(self.plan and self.plan.limit(w.phase).environment == w.limit.environment),
                sm_count=sms_seen(w.limit.environment),
                start_seconds={"launch": 0.25, "warm_up": 1.5},
            )
            for w in self.workers
        )


class Engine:
    def __init__(self, loading_until: Path | None, drain: float) -> None:
        self.rungs: Rungs | None = None
        self.loading_until = loading_until
        self.drain = drain
        self.life = 0
        self.epoch = 0
        self.split: Split | None = None
        self.applied = 0
        self.silent_since: float | None = None
        self.draining = False

    def forget(self) -> None:
        self.epoch, self.split, self.applied = 0, None, 0
        self.life += 1

    def set_partition(self, message: SetPartition) -> Ack:
        if message.plan.mode is PacingMode.RUNGS:
            self.rungs = self.rungs or Rungs()
            pending = self.rungs.pending.split_epoch if self.rungs.pending else 0
            if message.split_epoch > max(self.epoch, pending):
                self.rungs.accept(message)
        elif message.split_epoch > self.epoch:
            self.epoch, self.split = message.split_epoch, message.plan.split
            asyncio.get_running_loop().call_later(0.3, self._apply, message.split_epoch)
        return Ack(split_epoch=self.epoch)

    def _apply(self, epoch: int) -> None:
        if self.silent_since is None:
            self.applied = max(self.applied, epoch) if self.epoch else 0

    def snapshot(self) -> EngineSnapshot:
        now = time.monotonic()
        if self.rungs and (done := self.rungs.tick()):
            self.epoch, self.split = done.split_epoch, done.plan.split
        loaded = self.loading_until is None or self.loading_until.exists()
        state = EngineState.DRAINING if self.draining else EngineState.READY if loaded else EngineState.LOADING
        silence = now - self.silent_since if self.silent_since is not None else 0.1
        return EngineSnapshot(
            core_id=f"{os.getpid()}.{self.life}",
            monotonic_time=now,
            state=state,
            load_progress_percent=None if loaded else 50,
            model=MODEL if loaded else None,
            split_epoch=self.epoch,
            split=self.split,
            restarts=self.rungs.restarts if self.rungs else {},
            workers=self.rungs.reports(self.epoch)
            if self.rungs
            else tuple(
                WorkerReport(
                    phase=phase,
                    pid=1000 + index,
                    generation=1,
                    state=WorkerState.READY,
                    applied_epoch=self.applied,
                    heartbeat_age_seconds=silence if phase is Phase.PREFILL else 0.1,
                    busy=False,
                    steps=0,
                    cpu_seconds=0.0,
                )
                for index, phase in enumerate(Phase)
            )
            if loaded
            else (),
        )


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--await-partition", action="store_true")
    parser.add_argument("--drain-seconds", type=float, default=0.5)
    parser.add_argument("--loading-until", type=Path, help="it loads until this file is there")
    options = parser.parse_args()
    if options.model and not options.model.exists():
        sys.exit(f"semipd-engine: --model {options.model}: no such directory")
    engine = Engine(options.loading_until, options.drain_seconds)

    connections: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        while line := await reader.readline():
            request = CONTROL_REQUEST.validate_json(line)
            reply = engine.set_partition(request) if isinstance(request, SetPartition) else engine.snapshot()
            if isinstance(request, Drain):
                reply = Ack(split_epoch=engine.epoch)
            writer.write(reply.model_dump_json().encode() + b"\n")

    def fall_silent() -> None:
        engine.silent_since = time.monotonic()

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, fall_silent)
    loop.add_signal_handler(signal.SIGUSR2, engine.forget)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    path = options.run_dir / "control.sock"
    path.unlink(missing_ok=True)

    async def health(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The api process."""
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    api = await asyncio.start_server(health, "127.0.0.1", 0)
    (options.run_dir / "api.port").write_text(f"{api.sockets[0].getsockname()[1]}\n")
    async with api, await asyncio.start_unix_server(answer, path=path):
        await stop.wait()
        engine.draining = True
        await asyncio.sleep(engine.drain)
        for connection in connections:
            connection.close()
    if engine.rungs:
        engine.rungs.stop()
    print("drained", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
