"""``python -m tests.engine.fake_resident``: the real resident and real workers around the fake model.

Environment: SEMIPD_FAKE_TOKEN_MS and SEMIPD_FAKE_STEP_MS slow prefill (for each token) and decode (each step) down.
A prompt that begins with `RAISE` makes the runner raise, one that begins with `STALE` makes it refuse the plan once as
stale, and one that begins with a key of `POISON` ends the worker in one phase.

A worker reads these from its own environment, so that they can come with its rung: SEMIPD_FAKE_SMS is the SM count that
it sees; SEMIPD_FAKE_RUNGS, JSON, are the rungs that it holds, by number: SMs, or why it has lost one;
SEMIPD_FAKE_START is what happens before it is ready: seconds to wait, a file to wait for, or ``die``, or
``unfit``.
SEMIPD_FAKE_DEVICE_SMS is the SM count of the whole device, as the resident sees it. While the file that
SEMIPD_FAKE_NO_FORK names exists, the machine has no process left to give.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from tests.engine.fake_model import VOCABULARY, FakeRunner, layout

from semipd_engine.cards.errors import ModelError
from semipd_engine.contract import EngineOptions, Phase
from semipd_engine.ipc.steps import StepPlan, StepResult
from semipd_engine.memory.kv_size import MemoryGrant, available_memory
from semipd_engine.pacing.quantum import Pacer
from semipd_engine.resident import resident
from semipd_engine.worker.servable import Following, StaleSlot, UnfitError, nothing_follows
from semipd_engine.worker.start_times import StartTimes

RAISE = 4998
STALE = 4993
real_fork = os.fork
POISON: dict[int, tuple[Phase, Callable[[], None]]] = {
    4997: (Phase.PREFILL, lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    4996: (Phase.PREFILL, lambda: os._exit(3)),
    4995: (Phase.DECODE, lambda: os.kill(os.getpid(), signal.SIGABRT)),
    4994: (Phase.PREFILL, lambda: os.kill(os.getpid(), signal.SIGKILL)),  # as the OOM killer would
}


class TouchyRunner(FakeRunner):
    known: ClassVar[set[int]] = set()
    """Assignments of slots that it has refused once."""

    def execute(
        self, plan: StepPlan, recalled: Callable[[int], bool], following: Following = nothing_follows
    ) -> Iterator[StepResult]:
        for row in plan.rows:
            if row.start == 0 and row.tokens[0] == RAISE:
                raise RuntimeError("as the prompt wished")
            if row.tokens[0] == STALE and row.assignment not in self.known:
                self.known.add(row.assignment)
                raise StaleSlot
            if row.start == 0:
                self.taste(Phase.PREFILL, row.tokens[0])
            elif row.output_index > 0 and len(row.tokens) == 1:
                self.taste(Phase.DECODE, self.read(row.block_table, 1)[0])
        return super().execute(plan, recalled, following)

    def taste(self, phase: Phase, first_token: int) -> None:
        where, end = POISON.get(first_token, (None, None))
        if where is phase and end is not None:
            end()


class FakeModel:
    architecture = "fake"
    kernels = "fake"
    kernels_shortfall = ""
    dtype = "int32"
    device = "cpu"
    vocab_size = VOCABULARY
    weight_bytes = 1

    def __init__(self, options: EngineOptions) -> None:
        self.kv_layout = layout(options.block_size)
        self.max_model_len = options.max_model_len
        token_ms = float(os.environ.get("SEMIPD_FAKE_TOKEN_MS", "0"))
        step_ms = float(os.environ.get("SEMIPD_FAKE_STEP_MS", "0"))
        self._prefill_seconds = lambda tokens: tokens * token_ms / 1000
        self._decode_seconds = lambda rows: step_ms / 1000
        self.start = StartTimes()
        self.rungs: Mapping[int, int] = {}
        self.lost: Mapping[int, str] = {}

    def kv_grant(self) -> MemoryGrant:
        return MemoryGrant(available_memory())

    def create_kv(self, num_blocks: int) -> int:
        self._kv_bytes = self.kv_layout.pool_bytes(num_blocks)
        self._kv_fd = os.memfd_create("fake-kv")
        os.ftruncate(self._kv_fd, self._kv_bytes)
        return self._kv_fd

    def attachment(self) -> None:
        return None

    def runner(self, pacer: Pacer, phase: Phase) -> FakeRunner:
        self.start = StartTimes()
        match os.environ.get("SEMIPD_FAKE_START", "0"):
            case "die":
                os._exit(3)
            case "unfit":
                raise UnfitError("WarmUpFailed", "as the rung wished")
            case file if file.startswith("/"):
                while not Path(file).exists():
                    time.sleep(0.02)
            case seconds:
                time.sleep(float(seconds))
        self.start.done("warm_up")
        held = json.loads(os.environ.get("SEMIPD_FAKE_RUNGS", "{}"))
        self.rungs = {int(number): sms for number, sms in held.items() if isinstance(sms, int)}
        self.lost = {int(number): why for number, why in held.items() if isinstance(why, str)}
        memory = memoryview(mmap.mmap(self._kv_fd, self._kv_bytes)).cast("i")
        return TouchyRunner(memory, self.kv_layout.block_size, pacer, self._prefill_seconds, self._decode_seconds)

    def sm_count(self) -> int | None:
        """In the resident: of the device."""
        seen = os.environ.get("SEMIPD_FAKE_SMS") or os.environ.get("SEMIPD_FAKE_DEVICE_SMS")
        return int(seen) if seen else None

    def set_threads(self, count: int) -> None:
        pass

    def is_fatal(self, error: Exception) -> bool:
        return False


def fork() -> int:
    refusal = os.environ.get("SEMIPD_FAKE_NO_FORK")
    if refusal and Path(refusal).exists():
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return real_fork()


def load(options: EngineOptions, progress: Callable[[int], None]) -> FakeModel:
    if not options.model.exists():
        raise ModelError("NotFound", f"{options.model} does not exist")
    if (options.model / "broken").exists():
        raise ModelError("InvalidConfig", "config.json: broken on purpose")
    progress(50)
    return FakeModel(options)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # it crashes on purpose
    os.fork, real_fork = fork, os.fork
    sys.exit(resident.run(EngineOptions.parse(None, "fake_resident", ""), load))
