"""The simulated engine as the sweep sees the real one, and profiles that were measured of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semipd_cli.simulator.engine import Arrival, Size, VirtualEngine
from semipd_cli.simulator.oracle import Oracle
from semipd_engine.contract import ModelInfo, ProfileKey, Split, StepProfileFile, StepTimes
from semipd_engine.profiler.sweep import SPLITS, Limits, points, sweep

LIMITS = Limits(max_model_len=4096, max_num_seqs=64, chunk=512, kv_tokens=200_000)
MODEL = ModelInfo(
    name="m",
    architecture="llama",
    dtype="bfloat16",
    device="cpu",
    weight_bytes=1000,
    max_model_len=4096,
    kv_block_size=16,
    kv_bytes=1,
    kernels="amx",
)
KEY = ProfileKey.of(MODEL, 2)


class Virtual:
    """The simulated engine as the sweep sees the real one."""

    def __init__(self, oracle: Oracle) -> None:
        self._engine = VirtualEngine((), oracle, Size(switch_seconds=0.0), 1, Split())
        self._asked = 0

    def partition(self, split: Split) -> None:
        self._engine.switch(split)
        self.sleep(0.01)

    def add(self, prompt: int, answer: int) -> None:
        self._asked += 1
        self._engine.submit(Arrival(self._engine.now, prompt, answer))

    def decoding(self) -> int:
        return sum(r.first_token_at is not None for r in self._engine.observe(0).running)

    def unfinished(self) -> int:
        return self._asked - len(self._engine.done)

    def steps(self) -> Sequence[StepTimes]:
        return self._engine.observe(0).steps

    def now(self) -> float:
        return self._engine.now

    def sleep(self, seconds: float) -> None:
        self._engine.run_until(self._engine.now + seconds)


def measured(oracle: Oracle, **changes: Any) -> StepProfileFile:
    splits = [Split(prefill=x, decode=y) for x, y in SPLITS]
    steps = sweep(Virtual(oracle), points(LIMITS, splits), lambda _: None)
    given: dict[str, Any] = {"key": KEY, "model": "m", "machine": "x", "measured_at": "2030-01-01", "seconds": 1.0}
    return StepProfileFile(**(given | {"steps": steps} | changes))
