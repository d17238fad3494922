"""Writes one safetensors file tensor by tensor, so that a model never has to fit into memory.

The format: 8 bytes little-endian length, a JSON header with the offsets, then the raw tensors in that order.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from semipd_engine.cards.weights import Source

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class CheckpointWriter:
    """``with CheckpointWriter(path, tensors, dtype) as writer: writer.write(tensor)`` once for each, in order."""

    def __init__(self, path: Path, tensors: Sequence[Source], dtype: torch.dtype) -> None:
        self._tensors = tensors
        self._dtype = dtype
        self._next = 0
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for tensor in tensors:
            end = offset + torch.Size(tensor.shape).numel() * dtype.itemsize
            header[tensor.name] = {"dtype": NAMES[dtype], "shape": tensor.shape, "data_offsets": (offset, end)}
            offset = end
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def write(self, tensor: Tensor) -> None:
        expected = self._tensors[self._next]
        if tuple(tensor.shape) != expected.shape:
            raise ValueError(f"{expected.name} has shape {tuple(tensor.shape)}, announced was {expected.shape}")
        self._file.write(tensor.to(self._dtype).contiguous().view(torch.uint8).numpy().data)
        self._next += 1

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if kind is None and self._next != len(self._tensors):
            raise ValueError(f"{len(self._tensors) - self._next} announced tensors were not written")
