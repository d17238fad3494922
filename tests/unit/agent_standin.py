"""Stands in for ``semipd-engine serve`` in the agent's process tests: a real process that speaks control.sock.

It carries out a partition after a delay, as workers do, and reports what it carried out, not what it was told.
SIGUSR1: the prefill worker falls silent. SIGUSR2: the core forgets its epoch, as a new one would. SIGTERM: drains.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path

from semipd_engine.contract import (
    CONTROL_REQUEST,
    Ack,
    Drain,
    EngineSnapshot,
    EngineState,
    ModelInfo,
    Phase,
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


class Engine:
    def __init__(self, loading: float, drain: float) -> None:
        self.started = time.monotonic()
        self.loading = loading
        self.drain = drain
        self.epoch = 0
        self.split: Split | None = None
        self.applied = 0
        self.silent_since: float | None = None
        self.draining = False

    def forget(self) -> None:
        self.epoch, self.split, self.applied = 0, None, 0

    def set_partition(self, message: SetPartition) -> Ack:
        if message.split_epoch > self.epoch:
            self.epoch, self.split = message.split_epoch, message.plan.split
            asyncio.get_running_loop().call_later(0.3, self._apply, message.split_epoch)
        return Ack(split_epoch=self.epoch)

    def _apply(self, epoch: int) -> None:
        if self.silent_since is None:
            self.applied = max(self.applied, epoch) if self.epoch else 0

    def snapshot(self) -> EngineSnapshot:
        now = time.monotonic()
        progress = (now - self.started) / self.loading if self.loading else 1.0
        state = EngineState.DRAINING if self.draining else EngineState.READY if progress >= 1 else EngineState.LOADING
        silence = now - self.silent_since if self.silent_since is not None else 0.1
        return EngineSnapshot(
            monotonic_time=now,
            state=state,
            load_progress_percent=min(99, int(100 * progress)) if progress < 1 else None,
            model=MODEL if progress >= 1 else None,
            split_epoch=self.epoch,
            split=self.split,
            workers=tuple(
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
            if progress >= 1
            else (),
        )


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--drain-seconds", type=float, default=0.5)
    parser.add_argument("--loading-seconds", type=float, default=0.0)
    options = parser.parse_args()
    if options.model and not options.model.exists():
        sys.exit(f"semipd-engine: --model {options.model}: no such directory")
    engine = Engine(options.loading_seconds, options.drain_seconds)

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
    async with await asyncio.start_unix_server(answer, path=path):
        await stop.wait()
        engine.draining = True
        await asyncio.sleep(engine.drain)
        for connection in connections:
            connection.close()
    print("drained", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
