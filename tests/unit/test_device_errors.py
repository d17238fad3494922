"""An error of the device ends its worker, for every later call fails as well; any other ends one plan."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from semipd_engine.ipc.frames import BlockingChannel
from semipd_engine.ipc.steps import CoreToWorker, StepFailed, StepPlan, WorkerToCore
from semipd_engine.worker import loop
from semipd_engine.worker.attach import TorchModel

pytestmark = pytest.mark.unit

PLAN = StepPlan(7, 1, [])
ERRORS: list[tuple[Exception, bool]] = [
    (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), True),
    (RuntimeError("CUDA error: the launch timed out and was terminated"), True),
    (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), True),
    (torch.OutOfMemoryError("CUDA out of memory"), False),
    (RuntimeError("shape mismatch"), False),
    (ValueError("no such token"), False),
]


class Raising:
    def __init__(self, error: Exception) -> None:
        self._error = error

    def execute(self, *_: object) -> Iterator[Any]:
        raise self._error


@pytest.mark.parametrize(("error", "fatal"), ERRORS, ids=lambda one: str(one)[:40])
def test_after_an_error_of_the_device_the_worker_ends(error: Exception, fatal: bool) -> None:
    core, end = socket.socketpair()
    channel: BlockingChannel[CoreToWorker] = BlockingChannel(end, CoreToWorker)
    said: BlockingChannel[WorkerToCore] = BlockingChannel(core, WorkerToCore)
    model, pacer = TorchModel.__new__(TorchModel), cast(Any, SimpleNamespace(count_step=lambda: None))
    assert model.is_fatal(error) is fatal

    def execute() -> None:
        loop._execute(PLAN, model, cast(Any, Raising(error)), lambda _: False, pacer, channel)

    if fatal:
        with pytest.raises(type(error)):
            execute()
        assert said.recv(timeout=0) is None, "core takes its word from its end: the plan runs again elsewhere"
    else:
        execute()
        assert said.recv(timeout=1) == StepFailed(7, f"{type(error).__name__}: {error}", request=None)
