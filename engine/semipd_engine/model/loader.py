"""Fills a `WeightArena` from a checkpoint: each tensor cast, stacked and packed into its one place.

Runs no torch operator in more than the caller's number of threads, so a process that forks its workers later stays
single-threaded with ``torch.set_num_threads(1)``. Beside the arena it holds one slice of one tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.weights import WeightSpec, weight_specs
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import CPU, WeightArena
from semipd_engine.memory.manifest import ArenaEntry
from semipd_engine.model.checkpoint import Checkpoint

SLICE_BYTES = 64 << 20
"""Of a tensor that is cast at once."""


def load_weights(
    config: ModelConfig,
    model_dir: Path | str,
    dtype: torch.dtype,
    kernels: Kernels,
    progress: Callable[[int], None] = lambda percent: None,
    device: torch.device = CPU,
    inherited: bool = False,
) -> WeightArena:
    """The model's weights as `dtype` on `device`, in the formats that `kernels` read.

    `inherited`: see `WeightArena.create`; the arena is sealed then. `progress` is told the percentage whenever it
    grows. Raises `ModelError` (`model.checkpoint`; NotFinite for a weight that is no number).
    """
    specs = weight_specs(config)
    expected = {source.name: source.shape for spec in specs for source in spec.sources}
    checkpoint = Checkpoint(Path(model_dir), expected, config)
    arena = WeightArena.create([_entry(spec, dtype, kernels) for spec in specs], device, inherited)
    total, done, percent = sum(torch.Size(shape).numel() for shape in expected.values()), 0, 0
    for spec in specs:
        row = 0
        for source in spec.sources:
            tensor = checkpoint.tensor(source.name)
            for part in _slices(tensor):
                part = part.to(device, dtype)
                if not torch.isfinite(part.sum(dtype=torch.float32)):
                    raise ModelError(
                        "NotFinite",
                        f"{checkpoint.path(source.name)}: {source.name} holds NaN or infinity as {dtype}; fetch the"
                        " file again, or choose a dtype that holds its numbers",
                    )
                _store(arena, spec, row, part, kernels)
                row += part.shape[0]
                done += part.numel()
                if done * 100 // total > percent:
                    percent = done * 100 // total
                    progress(percent)
    checkpoint.close()
    arena.region.seal()
    return arena


def dummy_weights(
    config: ModelConfig,
    dtype: torch.dtype,
    kernels: Kernels,
    device: torch.device = CPU,
    inherited: bool = False,
) -> WeightArena:
    """Weights of the right shapes and random values, made on the device: no file is read. Every matrix keeps the size
    of its input; norms are 1, biases 0. The same on every start of one device."""
    specs = weight_specs(config)
    arena = WeightArena.create([_entry(spec, dtype, kernels) for spec in specs], device, inherited)
    generator = torch.Generator(device).manual_seed(0)
    for spec in specs:
        if spec.matrix:
            rows, width = spec.shape
            step = max(1, SLICE_BYTES // (width * dtype.itemsize))
            for row in range(0, rows, step):
                part = torch.empty(min(step, rows - row), width, dtype=dtype, device=device)
                part.normal_(0.0, width**-0.5, generator=generator)
                kernels.pack_rows(arena.packed(spec.name), row, part)
        elif not spec.name.endswith("bias"):
            arena[spec.name].fill_(1.0)
    arena.region.seal()
    return arena


def _entry(spec: WeightSpec, dtype: torch.dtype, kernels: Kernels) -> ArenaEntry:
    name = str(dtype).removeprefix("torch.")
    if not spec.matrix:
        return ArenaEntry(spec.name, 0, spec.shape, name)
    layout = kernels.layout(spec.shape[0], spec.shape[1], dtype)
    return ArenaEntry(spec.name, 0, layout.shape, name, layout.format, layout.out_features, layout.in_features)


def _slices(tensor: Tensor) -> Iterator[Tensor]:
    rows = max(1, SLICE_BYTES // max(1, tensor[0].nbytes))
    for first in range(0, tensor.shape[0], rows):
        yield tensor[first : first + rows]


def _store(arena: WeightArena, spec: WeightSpec, row: int, part: Tensor, kernels: Kernels) -> None:
    if spec.matrix:
        kernels.pack_rows(arena.packed(spec.name), row, part.contiguous())
    else:
        arena[spec.name][row : row + part.shape[0]] = part
