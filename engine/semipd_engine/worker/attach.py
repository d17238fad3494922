"""The model as a worker has it: weights and KV pool mapped, plans executed with torch, on the CPU or a GPU.

A forked worker inherits it from the resident, which loaded it (`resident.loading`); one that was started by exec
attaches to what the resident exports (`TorchModel.attach`). Nothing is copied either way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping

import torch

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.contract import Device, Phase
from semipd_engine.kernels import Kernels, choose
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.memory.region import Region
from semipd_engine.model import device as devices
from semipd_engine.pacing.quantum import Pacer, Unpaced
from semipd_engine.worker import decode_graphs
from semipd_engine.worker.decode_graphs import Capture
from semipd_engine.worker.gemm_gate import gate_products
from semipd_engine.worker.kernel_gate import gate_kernels
from semipd_engine.worker.lanes import LaneCapture, Lanes, open_lanes
from semipd_engine.worker.model_runner import ModelRunner, the_only_rung
from semipd_engine.worker.servable import Runner, UnfitError
from semipd_engine.worker.start_messages import ModelExport
from semipd_engine.worker.start_times import StartTimes
from semipd_engine.worker.warm_up import warm_up

log = logging.getLogger(__name__)

FATAL_WORDS = ("CUDA error", "CUBLAS_STATUS", "CUDNN_STATUS")
"""In errors of libraries on the device, which torch raises as plain RuntimeError."""


class TorchModel:
    def __init__(
        self, config: ModelConfig, arena: WeightArena, kernels: Kernels, block_size: int, max_model_len: int
    ) -> None:
        self._config = config
        self._arena = arena
        self._kernels = kernels
        self._torch_dtype = arena["norm"].dtype
        self._torch_device = arena.region.data.device
        self._kv: KVPool | None = None
        self.architecture = config.architecture
        self.dtype = str(self._torch_dtype).removeprefix("torch.")
        self.device = self._torch_device.type
        self.vocab_size = config.vocab_size
        self.weight_bytes = arena.nbytes
        self.max_model_len = max_model_len
        self.kv_layout = config.kv_layout(block_size, self._torch_dtype.itemsize)
        self.exported = self.device == Device.CUDA
        """Workers attach over exec; else they are forked."""
        self.kernels, self.kernels_shortfall = kernels.name, kernels.shortfall
        self.start = StartTimes()
        self.rungs: Mapping[int, int] = {}
        self.lost: Mapping[int, str] = {}

    @property
    def kv(self) -> KVPool:
        assert self._kv is not None, "create_kv comes first"
        return self._kv

    @classmethod
    def attach(cls, export: ModelExport, fds: list[int]) -> TorchModel:
        """The model that another process exports; nothing is copied. Raises `UnfitError`."""
        start = StartTimes()
        device = devices.CPU
        if export.device == Device.CUDA:
            device = devices.GPU
            try:
                devices.open_gpu()
            except ModelError as error:
                raise UnfitError(error.reason, str(error)) from error
            start.done("context")
        try:
            arena = WeightArena(Region.attach(export.weights, fds, device), export.manifest)
            model = cls(export.config, arena, choose(device.type), export.block_size, export.max_model_len)
            region = Region.attach(export.kv, fds, device)
            model._kv = KVPool(model.kv_layout, export.num_blocks, region, model._torch_dtype)
        except Exception as error:
            raise UnfitError("AttachFailed", f"the resident's memory: {type(error).__name__}: {error}") from error
        model.exported = True
        if model.kernels != export.kernels:
            raise UnfitError("KernelsMismatch", f"kernels {model.kernels}, the weights are packed for {export.kernels}")
        seen = arena.checksum()
        if seen != export.checksum:
            raise UnfitError("WeightsMismatch", f"checksum {seen:#x} of the weights, {export.checksum:#x} expected")
        start.done("attach")
        model.start = start
        return model

    def runner(self, pacer: Pacer, phase: Phase) -> Runner:
        """On a GPU the limit is MPS's business, and work that is queued cannot be paced by pieces."""
        pacer = Unpaced() if self.device == Device.CUDA else pacer
        if not self.exported:
            self.start = StartTimes()  # what was before the fork is the resident's
        if self.device == Device.CUDA:
            devices.set_precision(self._torch_dtype)
            block_size = self.kv_layout.block_size
            gate_kernels(self._kernels, self._config, self._torch_dtype, self._torch_device, block_size)
            self.start.done("kernels")
        if self.device == Device.CUDA and (lanes := open_lanes(phase, os.environ, self._torch_device)) is not None:
            return self._on_lanes(lanes, pacer, phase)
        capture = decode_graphs.CudaCapture() if self._captures(phase) else None
        self._prove(capture)
        return self._made(pacer, capture, the_only_rung)

    def _on_lanes(self, lanes: Lanes, pacer: Pacer, phase: Phase) -> Runner:
        """Each of several rungs proves itself as a worker's only one does."""
        capture = LaneCapture(lanes, decode_graphs.CudaCapture, self._free) if self._captures(phase) else None
        lanes.each(lambda: self._prove(capture and capture.of_chosen))
        runner = self._made(pacer, capture, lanes.choose)
        self.rungs, self.lost = lanes.sm_counts, lanes.lost
        return runner

    def _prove(self, capture: Capture | None) -> None:
        """Raises `UnfitError`."""
        if self.exported:
            warm_up(self._config, self._arena, self._kernels, self.kv_layout, capture)
            self.start.done("warm_up")
        if self.device == Device.CUDA:
            gate_products(self._arena.tensors())
            self.start.done("products")

    def _made(self, pacer: Pacer, capture: Capture | None, choose: Callable[[int], None]) -> ModelRunner:
        limits = (self._kernels, pacer, self.max_model_len, capture, choose)
        runner = ModelRunner(self._config, self._arena, self.kv, *limits)
        self.start.done("runner" if capture is None else "graphs")
        return runner

    def _captures(self, phase: Phase) -> bool:
        """Are decode steps to be programs, and can they be?"""
        if self.device != Device.CUDA or not decode_graphs.asked_for(phase):
            return False
        if why := decode_graphs.cannot_capture(self._kernels):
            log.warning("%s=1, but decode steps run kernel by kernel: %s", decode_graphs.VARIABLE, why)
        return not why

    def _free(self) -> int:
        """Bytes that the device has left."""
        return torch.cuda.mem_get_info(self._torch_device)[0]

    def sm_count(self) -> int | None:
        if self.device != Device.CUDA:
            return None
        return int(torch.cuda.get_device_properties(self._torch_device).multi_processor_count)

    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def is_fatal(self, error: Exception) -> bool:
        """After an error of the device every later call fails as well. Running out of memory is not one."""
        if isinstance(error, torch.OutOfMemoryError):
            return False
        return isinstance(error, torch.AcceleratorError) or any(word in str(error) for word in FATAL_WORDS)
