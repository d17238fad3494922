"""An engine in rungs for the check: core, resident and workers as real processes, driven over core's sockets."""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.engine.harness import TORCH_RESIDENT, Engine, Stream

from e2e.lib.waiting import wait_until
from semipd_engine.contract import (
    Device,
    DType,
    EngineOptions,
    EngineSnapshot,
    EngineState,
    PartitionPlan,
    SetPartition,
    WorkerReport,
    WorkerState,
)

if TYPE_CHECKING:
    import torch

READY_SECONDS = 100.0
patience = 1.0
"""Factor of every wait."""
DRY_RESIDENT, STAND_IN_RESIDENT = "tests.engine.exec_resident", "tests.gpu.check.stand_in"
"""On the CPU workers are started by exec too, so that a dry run goes the way of a GPU; with stand-ins for MPS as its
clients."""


@contextmanager
def engine(
    model: Path, folder: Path, device: torch.device, dtype: DType, *, under_mps: bool, **options: Any
) -> Iterator[Engine]:
    """Loaded, and without a worker until the first partition."""
    dry = STAND_IN_RESIDENT if under_mps else DRY_RESIDENT
    folder.mkdir(parents=True, mode=0o700)
    given: dict[str, Any] = {"max_model_len": 4096, "kv_cache_memory": 1 << 30, "prefix_caching": False}
    running = Engine(
        EngineOptions(
            model=model,
            run_dir=folder,
            step_log=folder / "steps.jsonl",
            device=Device(device.type),
            dtype=dtype,
            await_partition=True,
            prepare_seconds=READY_SECONDS * patience,
            **(given | options),
        ),
        TORCH_RESIDENT if device.type == "cuda" else dry,
    )
    try:
        wait_until(lambda: loaded(running), READY_SECONDS * patience, "a loaded model")
        yield running
    finally:
        running.stop()


def loaded(running: Engine) -> bool:
    try:
        snapshot = running.snapshot()
    except OSError:
        return False
    if snapshot.state is EngineState.FAILED:
        raise RuntimeError(f"{snapshot.reason}: {snapshot.message}")
    return snapshot.model is not None


def put(running: Engine, plan: PartitionPlan) -> float:
    """Ask for a partition, and wait until it is in force and all of its workers are ready. Returns the seconds to the
    former. Raises RuntimeError if it is refused."""
    before = running.snapshot()
    epoch = 1 + max(before.split_epoch, before.pending_epoch, before.refused.split_epoch if before.refused else 0)
    began = time.monotonic()
    running.control(SetPartition(split_epoch=epoch, plan=plan))

    def in_force() -> bool:
        snapshot = running.snapshot()
        _not_refused(snapshot, epoch)
        return snapshot.split_epoch == epoch

    wait_until(in_force, READY_SECONDS * patience, f"epoch {epoch} in force")
    took = time.monotonic() - began
    settled(running)
    return took


def _not_refused(snapshot: EngineSnapshot, epoch: int) -> None:
    """A refusal stays in sight until a later epoch is in force: that of an earlier one says nothing about this one."""
    refused = snapshot.refused
    if refused is not None and refused.split_epoch >= epoch:
        raise RuntimeError(f"epoch {refused.split_epoch} is refused: {refused.reason}: {refused.message}")


def settled(running: Engine) -> tuple[WorkerReport, ...]:
    """The workers, once all of them are ready."""

    def ready() -> tuple[WorkerReport, ...]:
        snapshot = running.snapshot()
        _not_refused(snapshot, snapshot.split_epoch)
        return snapshot.workers if all(w.state is WorkerState.READY for w in snapshot.workers) else ()

    found: tuple[WorkerReport, ...] = wait_until(ready, READY_SECONDS * patience, "ready workers")
    return found


class Traffic:
    """`streams` decode without an end, and a prompt of `prompt_tokens` comes every `every` seconds."""

    def __init__(self, running: Engine, streams: int, tokens: int, prompt_tokens: int, every: float) -> None:
        self._client = running.client()
        self._shape = (streams, tokens, prompt_tokens, every)
        self._stop = threading.Event()
        self._seeds = itertools.count()
        self.decoding: list[Stream] = []
        self.prompts: list[Stream] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        streams, tokens, prompt_tokens, every = self._shape
        due = time.monotonic()
        while not self._stop.wait(0.01):
            for _ in range(streams - sum(not stream.done.is_set() for stream in self.decoding)):
                self.decoding.append(self._client.add(self._prompt(16), tokens))
            if time.monotonic() >= due:
                due = time.monotonic() + every
                self.prompts.append(self._client.add(self._prompt(prompt_tokens), 1))

    def _prompt(self, length: int) -> list[int]:
        rng = random.Random(next(self._seeds))
        return [rng.randrange(300, 4000) for _ in range(length)]

    def gaps(self, begin: float, end: float) -> dict[str, float]:
        """Milliseconds between two tokens of a stream, for those that ended within [begin, end]."""
        found = sorted(
            (after - before) * 1000
            for stream in list(self.decoding)
            for before, after in itertools.pairwise(list(stream.times))
            if begin <= after <= end
        )
        if not found:
            return {}
        return {
            "gaps": len(found),
            "median ms": round(found[len(found) // 2], 2),
            "p99 ms": round(found[int(len(found) * 0.99)], 2),
            "longest ms": round(found[-1], 2),
        }

    def stop(self) -> list[str]:
        """What went wrong."""
        self._stop.set()
        self._thread.join()
        for stream in self.decoding:
            if not stream.done.is_set():
                self._client.abort(stream)
        return [f"{s.key}: {s.error}" for s in (*self.decoding, *self.prompts) if s.error]
