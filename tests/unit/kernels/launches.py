"""All that a worker launches when it starts and while it serves, carried out by nobody: for Triton's compiler to see.

The gate's checks run on ``meta``; the runner, and its captured steps, on tensors of ``cuda:0`` that hold no numbers.
Their addresses are what an allocator would give: Triton compiles by how pointers are aligned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from msgspec.structs import replace
from torch._subclasses.fake_tensor import FakeTensor

from bench.gpu import step_trace
from bench.gpu.models import card
from bench.gpu.step_trace import BLOCK, GREEDY, FakeWorker
from semipd_engine.ipc.steps import Row, StepPlan
from semipd_engine.ipc.tokens import Sampling, pack_bias
from semipd_engine.kernels.gpu import TritonKernels
from semipd_engine.worker import kernel_gate

LAYERS = 2
LONGEST = 8192
DRAWS = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.1, max_tokens=99)
ASKS = replace(DRAWS, logit_bias=pack_bias({5: 1.0}), repetition_penalty=1.1, presence_penalty=0.2)


def gate(model: str, num_sms: int) -> None:
    config, kernels = card(model), TritonKernels(num_sms)
    with _no_seeds():
        for check in kernel_gate._checks(config, torch.bfloat16, torch.device("meta"), BLOCK):
            check.run(kernels)


def serve(model: str, num_sms: int) -> None:
    """A worker with captured steps: chunks with and behind a prefix, and decode steps of all kinds of rows."""
    table = list(range(-(-LONGEST // BLOCK)))

    def plan(*counts: int, start: int, sampling: Sampling | None, steps: int = 1, mask: bytes | None = None) -> None:
        rows = [
            Row(
                *(i, [1] * count, start, table),
                outputs="none" if sampling is None else "last",
                sampling=sampling,
                history=[1, 2, 3],
                mask=mask,
            )
            for i, count in enumerate(counts)
        ]
        worker.plan(StepPlan(1, steps, rows))

    with _launching(), _addresses():
        worker = FakeWorker(
            card(model, num_hidden_layers=LAYERS), TritonKernels(num_sms), LONGEST, capture=lambda queue: queue
        )
        plan(12, start=0, sampling=None)
        plan(12, 40, start=12, sampling=GREEDY)
        plan(2048, start=4096, sampling=DRAWS)
        for count in (1, 2, 5, 64, 70):  # the last is larger than a program
            for sampling in (GREEDY, DRAWS, ASKS, replace(GREEDY, logprobs=3)):
                plan(*[1] * count, start=100, sampling=sampling, steps=3)
        plan(1, 1, start=100, sampling=DRAWS, mask=b"\x07" * 99)


@contextmanager
def _launching() -> Iterator[None]:
    """Launches get to Triton."""
    with patch.object(step_trace, "Launches", lambda worker: nullcontext()):
        yield


@contextmanager
def _addresses() -> Iterator[None]:
    def data_ptr(tensor: FakeTensor) -> int:
        return tensor.storage_offset() * tensor.dtype.itemsize

    with patch.object(FakeTensor, "data_ptr", data_ptr):
        yield


class _Seedless:
    def __init__(self, device: object = None) -> None:
        self.device = torch.device("meta")

    def manual_seed(self, seed: int) -> _Seedless:
        return self


@contextmanager
def _no_seeds() -> Iterator[None]:
    """``meta`` has no generator."""

    def unseeded(made: Any) -> Any:
        return lambda *shape, generator=None, **where: made(*shape, **where)

    with (
        patch("torch.Generator", _Seedless),
        patch("torch.randn", unseeded(torch.randn)),
        patch("torch.randperm", unseeded(torch.randperm)),
    ):
        yield
