"""The real `LoadedModel`: weights in a shared arena, plans executed by `ModelRunner` with torch."""

from __future__ import annotations

from collections.abc import Callable

import torch

from semipd_engine.contract import Device, DType, EngineOptions
from semipd_engine.memory.arena import WeightArena, load_arena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.memory.loaded import Runner
from semipd_engine.model.config import ModelConfig
from semipd_engine.model.errors import ModelError
from semipd_engine.pacing.quantum import Pacer
from semipd_engine.worker.model_runner import ModelRunner


class TorchModel:
    def __init__(self, config: ModelConfig, arena: WeightArena, dtype: torch.dtype, options: EngineOptions) -> None:
        self.architecture = config.architecture
        self.dtype = str(dtype).removeprefix("torch.")
        self.device = Device.CPU.value
        self.vocab_size = config.vocab_size
        self.weight_bytes = arena.nbytes
        self.max_model_len = _max_model_len(config, options)
        self.kv_layout = config.kv_layout(options.block_size, dtype.itemsize)
        self._config = config
        self._arena = arena
        self._torch_dtype = dtype

    def create_kv(self, num_blocks: int) -> int:
        return KVPool.create(self.kv_layout, num_blocks, self._torch_dtype).fd

    def runner(self, kv_fd: int, num_blocks: int, pacer: Pacer) -> Runner:
        kv = KVPool(self.kv_layout, num_blocks, kv_fd, self._torch_dtype)
        return ModelRunner(self._config, self._arena.tensors(), kv, pacer, self.max_model_len)

    def set_threads(self, count: int) -> None:
        torch.set_num_threads(count)


def load(options: EngineOptions, progress: Callable[[int], None]) -> TorchModel:
    """Load the model that the options name. Raises `ModelError`."""
    torch.set_num_threads(1)  # before any operator: a process with a thread pool cannot be forked
    if options.device is Device.CUDA:
        raise ModelError("UnsupportedDevice", "--device cuda is not implemented yet: use --device cpu")
    config = ModelConfig.from_dir(options.model)
    _max_model_len(config, options)
    dtype = _dtype(config, options.dtype)
    return TorchModel(config, load_arena(config, options.model, dtype, progress), dtype, options)


def _max_model_len(config: ModelConfig, options: EngineOptions) -> int:
    longest = config.max_position_embeddings
    if options.max_model_len > longest:
        raise ModelError("InvalidConfig", f"--max-model-len {options.max_model_len}: the model's limit is {longest}")
    return options.max_model_len or longest


def _dtype(config: ModelConfig, wanted: DType) -> torch.dtype:
    """auto: the checkpoint's, or float32 where the CPU has no bfloat16 instructions (float16 never pays on a CPU)."""
    name = config.dtype if wanted is DType.AUTO else wanted.value
    if wanted is DType.AUTO and (name == "float16" or (name == "bfloat16" and not _has_bfloat16())):
        name = "float32"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _has_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
