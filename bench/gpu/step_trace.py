"""One step of a worker on a GPU, traced on a machine without one: what it starts there, what crosses, what it holds.

The real runner carries out a plan on tensors of ``cuda:0`` that hold no numbers (torch's FakeTensorMode), and three
`witnesses` look on. Each stage of the model tells what it costs (`model.stage.Work`), as it does a pacer. Knows no card
and no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from bench.gpu.models import Shape
from bench.gpu.witnesses import Launch, Launches, Operators, Reads, Trace, counted, numbers
from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.weights import weight_specs
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.loader import arena_entries
from semipd_engine.model.stage import Stage, Step, Work
from semipd_engine.pacing.quantum import Unpaced
from semipd_engine.worker.decode_graphs import Capture
from semipd_engine.worker.model_runner import ModelRunner
from semipd_engine.worker.servable import Following, nothing_follows

GPU = torch.device("cuda", 0)
BLOCK = 16
GREEDY = Sampling(temperature=0, max_tokens=10_000)


class FakeWorker:
    """A worker's runner over weights and a KV pool that take no memory."""

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        positions: int,
        dtype: torch.dtype = torch.bfloat16,
        capture: Capture | None = None,
    ) -> None:
        """`positions`: of the longest sequence."""
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._config = config
        self._blocks = -(-(positions + 1) // BLOCK)
        with self._surroundings():
            arena = WeightArena.create(arena_entries(weight_specs(config), dtype, kernels), GPU)
            kv = KVPool.create(config.kv_layout(BLOCK, dtype.itemsize), self._blocks, dtype, GPU)
            for region in (arena.region, kv.region):
                counted(region.data)
        self.weight_bytes = arena.nbytes
        self._record = Trace()
        with self._surroundings() if capture is None else self._witnesses():  # a capture is a step, too
            self._runner = ModelRunner(config, arena, kv, kernels, Unpaced(), positions + 1, capture)
        decoder = self._runner.decoder
        for loop in (decoder.body, decoder.head):
            loop.stages = [Witness(stage, self._run_stage) for stage in loop.stages]

    @property
    def record(self) -> Trace:
        return self._record

    def _run_stage(self, stage: Stage, step: Step, begin: int, end: int) -> None:
        """Its launches are noted as its own, and what it costs."""
        record = self._record
        before, at = len(record.launches), len(record.stages)
        record.stages.append((type(stage).__name__, stage.work(step)))
        stage.run(step, begin, end)
        record.launches[before:] = [Launch(at, one.name, one.flops, one.nbytes) for one in record.launches[before:]]

    def step(self, shape: Shape, sampling: Sampling = GREEDY, last: bool = True) -> Trace:
        """The trace of a step of this shape; `last`: each sequence samples a token. All share their blocks."""
        rows = [
            Row(
                i,
                [1] * shape.new,
                shape.context - shape.new,
                list(range(self._blocks)),
                outputs="last" if last else "none",
                sampling=sampling if last else None,
            )
            for i in range(shape.sequences)
        ]
        return self.plan(StepPlan(1, 1, rows))

    def plan(self, plan: StepPlan, following: Following = nothing_follows) -> Trace:
        self._record = trace = Trace(live=self._record.live)
        trace.peak = trace.live
        with self._witnesses():
            for _ in self._runner.execute(plan, lambda seq: False, following):
                pass
        return trace

    @contextmanager
    def _witnesses(self) -> Iterator[None]:
        def tolist(tensor: FakeTensor) -> Any:
            self._record.waits.append("tolist")
            return numbers(tensor, "tolist")

        there = patch.object(FakeTensor, "tolist", tolist)
        with self._surroundings(), there, Launches(self), Operators(self), Reads(self):
            yield

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        """What a driver would be asked for."""

        def host(count: int, pinned: bool) -> tuple[npt.NDArray[np.int32], Tensor]:
            return np.zeros(count, np.int32), torch.zeros(count, dtype=torch.int32)

        def allocated(nbytes: int, device: torch.device) -> tuple[Tensor, bytes]:
            return torch.empty(nbytes, dtype=torch.uint8, device=device), b""

        stream = SimpleNamespace(synchronize=lambda: self._record.waits.append("synchronize"))
        event = SimpleNamespace(
            record=lambda: self._record.events.append(len(self._record.fetched)),
            synchronize=lambda: self._record.waits.append("event"),
        )
        with ExitStack() as stack:
            for user in ("input_batch", "decode_graphs"):
                stack.enter_context(patch(f"semipd_engine.worker.{user}.host_memory", host))
            stack.enter_context(patch("semipd_engine.memory.cuda.allocate", allocated))
            stack.enter_context(patch("torch.cuda.current_stream", lambda device=None: stream))
            stack.enter_context(patch("torch.cuda.Event", lambda: event))
            stack.enter_context(self._fake)
            yield


class Witness:
    """Stands in a stage's place, and is told of each run."""

    recordable = False

    def __init__(self, stage: Stage, told: Callable[[Stage, Step, int, int], None]) -> None:
        """`told(stage, step, begin, end)` has to run it."""
        self._stage, self._told = stage, told

    def units(self, step: Step) -> int:
        return self._stage.units(step)

    def work(self, step: Step) -> Work:
        return self._stage.work(step)

    def run(self, step: Step, begin: int, end: int) -> None:
        self._told(self._stage, step, begin, end)
