"""Fills a `WeightArena` from a checkpoint: each tensor cast, stacked and packed into its one place.

Runs no torch operator in more than the caller's number of threads, so a process that forks its workers later stays
single-threaded with ``torch.set_num_threads(1)``. Beside the arena it holds one slice of one tensor at a time; where
that is FP8 blocks, all of it in the arena's dtype, and while it is dequantised the file's bytes too (1.5 times that in
bfloat16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.weights import Source, WeightSpec, checkpoint_tensors, weight_specs
from semipd_engine.kernels import Kernels, PackedWeight
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
    admit: Callable[[int], None] = lambda nbytes: None,
) -> WeightArena:
    """The model's weights as `dtype` on `device`, in the formats that `kernels` read.

    `admit` is asked with the arena's size in bytes before anything is put in it, and may raise `ModelError`.
    `inherited`: see `WeightArena.create`; the arena is sealed then. `progress` is told the percentage whenever it
    grows. Raises `ModelError` (`model.checkpoint`; NotFinite for a weight that is no number).
    """
    specs = weight_specs(config)
    expected = {source.name: source.shape for source in checkpoint_tensors(specs)}
    checkpoint = Checkpoint(Path(model_dir), expected, config)
    arena = WeightArena.create(arena_entries(specs, dtype, kernels), device, inherited)
    admit(arena.nbytes)
    total, done, percent = sum(torch.Size(shape).numel() for shape in expected.values()), 0, 0
    held, tensor = "", torch.empty(0)
    for spec in specs:
        row = 0
        for number, source in enumerate(spec.sources):
            place = _place(arena, spec, number // spec.each)
            row = row if number % spec.each else 0
            if source.name != held:  # heads are parts of one tensor
                held, tensor = source.name, checkpoint.tensor(source.name, dtype)
            for part in _slices(_part(tensor, source)):
                part = part.to(device, torch.float32 if spec.float32 else dtype)
                if not torch.isfinite(part.sum(dtype=torch.float32)):
                    raise ModelError(
                        "NotFinite",
                        f"{checkpoint.path(source.name)}: {source.name} holds NaN or infinity as {dtype}; fetch the"
                        " file again, or choose a dtype that holds its numbers",
                    )
                _store(place, row, part, kernels)
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
    arena = WeightArena.create(arena_entries(specs, dtype, kernels), device, inherited)
    generator = torch.Generator(device).manual_seed(0)
    for spec in specs:
        if spec.matrix:
            rows, width = spec.shape
            step = max(1, SLICE_BYTES // (width * dtype.itemsize))
            for number in range(max(1, spec.count)):
                for row in range(0, rows, step):
                    part = torch.empty(min(step, rows - row), width, dtype=dtype, device=device)
                    part.normal_(0.0, width**-0.5, generator=generator)
                    _store(_place(arena, spec, number), row, part, kernels)
        elif not spec.name.endswith(("bias", "correction")):
            arena[spec.name].fill_(1.0)
    arena.region.seal()
    return arena


def arena_entries(specs: Sequence[WeightSpec], dtype: torch.dtype, kernels: Kernels) -> list[ArenaEntry]:
    """What an arena has room for, in the formats that `kernels` read."""
    return [_entry(spec, dtype, kernels) for spec in specs]


def _entry(spec: WeightSpec, dtype: torch.dtype, kernels: Kernels) -> ArenaEntry:
    name = str(dtype).removeprefix("torch.")
    if not spec.matrix:
        return ArenaEntry(spec.name, 0, spec.shape, "float32" if spec.float32 else name)
    layout = kernels.layout(spec.shape[0], spec.shape[1], dtype)
    shape = (spec.count, *layout.shape) if spec.count else layout.shape
    sizes = (layout.out_features, layout.in_features)
    return ArenaEntry(spec.name, 0, shape, name, layout.format, *sizes, count=spec.count)


def _part(tensor: Tensor, source: Source) -> Tensor:
    """What the engine takes of a checkpoint's tensor."""
    if source.index is not None:
        tensor = tensor[source.index]
    if source.rows is not None:
        tensor = tensor[source.rows[0] : source.rows[1]]
    if source.transposed:
        tensor = tensor.T
    if source.pairs is not None:
        size, paired = source.pairs
        rows = torch.arange(size)
        last = rows[-paired:]
        rows = torch.cat((rows[:-paired], last[0::2], last[1::2]))
        tensor = tensor[(torch.arange(0, tensor.shape[0], size)[:, None] + rows).flatten()]
    return tensor


def _slices(tensor: Tensor) -> Iterator[Tensor]:
    rows = max(1, SLICE_BYTES // max(1, tensor[0].nbytes))
    for first in range(0, tensor.shape[0], rows):
        yield tensor[first : first + rows]


def _place(arena: WeightArena, spec: WeightSpec, number: int) -> PackedWeight | Tensor:
    """Where the matrix with this number lies, or the vector."""
    if not spec.matrix:
        return arena[spec.name]
    return arena.group(spec.name)[number] if spec.count else arena.packed(spec.name)


def _store(place: PackedWeight | Tensor, row: int, part: Tensor, kernels: Kernels) -> None:
    if isinstance(place, PackedWeight):
        kernels.pack_rows(place, row, part.contiguous())
    else:
        place[row : row + part.shape[0]] = part
