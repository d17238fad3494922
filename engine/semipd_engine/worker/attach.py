"""The model as a worker has it: weights and KV pool mapped, plans executed with torch, on the CPU or a GPU.

A forked worker inherits it from the resident, which loaded it (`resident.loading`); one that was started by exec
attaches to what the resident exports (`TorchModel.attach`). Nothing is copied either way.
"""

from __future__ import annotations

import logging

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
from semipd_engine.worker.model_runner import ModelRunner
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
        capture = self._capture(phase)
        if self.exported:
            warm_up(self._config, self._arena, self._kernels, self.kv_layout, capture)
            self.start.done("warm_up")
        if self.device == Device.CUDA:
            gate_products(self._arena.tensors())
            self.start.done("products")
        runner = ModelRunner(self._config, self._arena, self.kv, self._kernels, pacer, self.max_model_len, capture)
        self.start.done("runner" if capture is None else "graphs")
        return runner

    def _capture(self, phase: Phase) -> Capture | None:
        """Of decode steps, where they are asked for and can be."""
        if self.device != Device.CUDA or not decode_graphs.asked_for(phase):
            return None
        if why := decode_graphs.cannot_capture(self._kernels):
            log.warning("%s=1, but decode steps run kernel by kernel: %s", decode_graphs.VARIABLE, why)
            return None
        return decode_graphs.CudaCapture()

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
