"""Loads the model into memory that all workers share, and exports it to those that cannot inherit it.

Knows the options of the command line and the device; knows nothing of core, of plans and of other processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.registry import read_card
from semipd_engine.contract import Device, DType, EngineOptions, LoadFormat
from semipd_engine.kernels import Kernels, KernelsError, choose
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.memory.kv_size import (
    GPU_RESERVED,
    GPU_SHARE,
    MemoryGrant,
    available_memory,
    check_pool,
    check_weights,
    claimable_memory,
)
from semipd_engine.model import device as devices
from semipd_engine.model.checkpoint import settle
from semipd_engine.model.loader import dummy_weights, load_weights
from semipd_engine.resident.loaded_model import Attachment
from semipd_engine.worker.attach import TorchModel
from semipd_engine.worker.start_messages import ModelExport

log = logging.getLogger(__name__)


class LoadedTorchModel(TorchModel):
    """The real `LoadedModel`."""

    _checksum = 0

    def kv_grant(self) -> MemoryGrant:
        if self.device == Device.CUDA:
            return MemoryGrant(torch.cuda.mem_get_info(self._torch_device)[0], GPU_SHARE, GPU_RESERVED)
        return MemoryGrant(available_memory())

    def create_kv(self, num_blocks: int) -> int:
        nbytes = self.kv_layout.pool_bytes(num_blocks)
        with _out_of_memory(f"the KV pool of {nbytes / 2**20:.0f} MiB", self._torch_device):
            self._kv = KVPool.create(self.kv_layout, num_blocks, self._torch_dtype, self._torch_device)
        if self.exported:  # now: later the resident leaves the GPU alone
            self._checksum = self._arena.checksum()
        return self._kv.region.fd

    def attachment(self) -> Attachment | None:
        if not self.exported:
            return None
        export = ModelExport(
            config=self._config,
            device=self.device,
            block_size=self.kv_layout.block_size,
            max_model_len=self.max_model_len,
            manifest=list(self._arena.manifest),
            checksum=self._checksum,
            weights=self._arena.region.export(),
            kv=self.kv.region.export(),
            num_blocks=self.kv.num_blocks,
            kernels=self.kernels,
        )
        return Attachment(export, self._arena.region.fds + self.kv.region.fds)


def load(options: EngineOptions, progress: Callable[[int], None], exported: bool = False) -> LoadedTorchModel:
    """Load the model that the options name; `exported`: also on the CPU for workers that attach to it. Raises
    `ModelError`."""
    torch.set_num_threads(1)  # before any operator: a process with a thread pool cannot be forked
    device = devices.resolve(options.device)
    config = read_card(options.model)
    max_model_len = _max_model_len(config, options)
    dtype = _dtype(config, options.dtype, device)
    if options.kv_cache_memory:
        check_pool(config.kv_layout(options.block_size, dtype.itemsize), max_model_len, options.kv_cache_memory)
    if device.type == "cuda":
        devices.open_gpu()  # first: it has a word for a GPU that cannot be used
    kernels = _kernels(device)

    def admit(nbytes: int) -> None:
        if device.type == "cpu":  # a GPU says itself what does not fit
            check_weights(nbytes, options.kv_cache_memory, claimable_memory())

    with _out_of_memory(f"the weights of {_name(options.model)}", device):
        if options.load_format is LoadFormat.DUMMY:
            arena = dummy_weights(config, dtype, kernels, device, inherited=not exported)
        else:
            config = settle(config, options.model)
            arena = load_weights(
                config, options.model, dtype, kernels, progress, device, inherited=not exported, admit=admit
            )
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    model = LoadedTorchModel(config, arena, kernels, options.block_size, max_model_len)
    model.exported |= exported
    return model


def _kernels(device: torch.device) -> Kernels:
    try:
        kernels = choose(device.type)
    except KernelsError as error:
        raise ModelError("InvalidConfig", str(error)) from error
    if kernels.shortfall:
        log.warning("kernels: %s", kernels.shortfall)
    else:
        log.info(kernels.why)
    return kernels


def _name(model: Path) -> str:
    return model.name or str(model)


def _max_model_len(config: ModelConfig, options: EngineOptions) -> int:
    longest = config.max_position_embeddings
    if options.max_model_len > longest:
        raise ModelError("InvalidConfig", f"--max-model-len {options.max_model_len}: the model's limit is {longest}")
    return options.max_model_len or longest


def _dtype(config: ModelConfig, wanted: DType, device: torch.device) -> torch.dtype:
    """auto: the checkpoint's, but where a CPU has no instructions for it float32 (float16 never pays on a CPU)."""
    name = config.dtype if wanted is DType.AUTO else wanted.value
    slow = name == "float16" or (name == "bfloat16" and not _has_bfloat16())
    if wanted is DType.AUTO and device.type == "cpu" and slow:
        name = "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def _out_of_memory(what: str, device: torch.device) -> Iterator[None]:
    """Say what did not fit a GPU, and how much of it is free."""
    try:
        yield
    except Exception as error:
        from semipd_engine.memory.driver import OUT_OF_MEMORY, CudaError

        full = isinstance(error, CudaError) and error.code == OUT_OF_MEMORY
        if device.type != "cuda" or not (full or isinstance(error, torch.OutOfMemoryError)):
            raise
        free, total = (size / 2**20 for size in torch.cuda.mem_get_info(device))
        raise ModelError(
            "OutOfMemory",
            f"{what} did not fit: {free:.0f} MiB of the GPU's {total:.0f} MiB are free; lower --kv-cache-memory "
            "(engine.kvCacheMemory), or give the model a larger GPU",
            may_pass=True,
        ) from error
