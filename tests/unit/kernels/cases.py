"""Inputs for kernels, and what float64 makes of them: the oracle of the twins as of the compiled kernels."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from semipd_engine.kernels import Kernels, PackedGroup, PackedWeight, ReferenceKernels, cpu

DTYPES = (torch.float32, torch.bfloat16)
LEVELS = [level for level in cpu.LEVELS if level in cpu.runnable()]
TWINS = ReferenceKernels()
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 1.6e-2}


@functools.cache
def kernels(level: str) -> cpu.CpuKernels:
    return cpu.CpuKernels(cpu.load(level))


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def pack(kernels: Kernels, weight: Tensor, pieces: int = 1) -> PackedWeight:
    rows, columns = weight.shape
    layout = kernels.layout(rows, columns, weight.dtype)
    packed = PackedWeight(torch.zeros(layout.shape, dtype=weight.dtype), layout)
    first = 0
    for piece in weight.tensor_split(pieces):
        kernels.pack_rows(packed, first, piece)
        first += len(piece)
    return packed


def pack_group(kernels: Kernels, weights: Tensor) -> PackedGroup:
    _, rows, columns = weights.shape
    layout = kernels.layout(rows, columns, weights.dtype)
    group = PackedGroup(torch.zeros(len(weights), *layout.shape, dtype=weights.dtype), layout)
    for index, weight in enumerate(weights):
        kernels.pack_rows(group[index], 0, weight)
    return group


@dataclass(frozen=True)
class Paged:
    """Sequences of `lengths` positions, the last `new` of each being query rows, over caches full of NaN elsewhere."""

    q: Tensor
    keys: Tensor
    values: Tensor
    tables: Tensor
    lengths: Tensor
    starts: Tensor
    scale: float

    @classmethod
    def make(
        cls,
        lengths: list[int],
        new: list[int],
        heads: int,
        kv_heads: int,
        head_dim: int,
        block_size: int,
        seed: int,
        dtype: torch.dtype,
    ) -> Paged:
        blocks = [-(-length // block_size) for length in lengths]
        width = max([*blocks, 1])
        order = np.random.default_rng(seed).permutation(sum(blocks) + 2)
        tables, taken = torch.zeros(len(lengths), width, dtype=torch.int32), 0
        shape = (sum(blocks) + 2, block_size, kv_heads * head_dim)
        keys, values = torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
        for index, (length, count) in enumerate(zip(lengths, blocks, strict=True)):
            tables[index, :count] = torch.from_numpy(order[taken : taken + count].astype(np.int32))
            taken += count
            at = torch.arange(length)
            places = tables[index].long()[at // block_size] * block_size + at % block_size
            for number, cache in enumerate((keys, values)):
                entries = normal(length, shape[2], seed=seed * 7919 + index * 2 + number, dtype=dtype)
                cache.view(-1, shape[2])[places] = entries
        starts = torch.tensor([0, *np.cumsum(new)], dtype=torch.int32)
        q = normal(int(starts[-1]), heads, head_dim, seed=seed, dtype=dtype)
        return cls(q, keys, values, tables, torch.tensor(lengths, dtype=torch.int32), starts, head_dim**-0.5)

    def attend(self, kernels: Kernels, rows: tuple[int, int] | None = None, window: int = 0) -> Tensor:
        out = torch.zeros_like(self.q)
        kernels.paged_attention(
            self.q, self.keys, self.values, self.tables, self.lengths, self.starts, self.scale, out, rows, window
        )
        return out

    def expected(self, window: int = 0) -> Tensor:
        """Row by row, in float64."""
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        _, heads, head_dim = self.q.shape
        block_size = self.keys.shape[1]
        for s, length in enumerate(self.lengths.tolist()):
            start, end = int(self.starts[s]), int(self.starts[s + 1])
            for row in range(start, end):
                last = length - (end - row)
                seen = torch.arange(max(0, last + 1 - window) if window else 0, last + 1)
                places = self.tables[s][seen // block_size].long() * block_size + seen % block_size
                k = self.keys.flatten(0, 1)[places].double().unflatten(1, (-1, head_dim))
                v = self.values.flatten(0, 1)[places].double().unflatten(1, (-1, head_dim))
                group = heads // k.shape[1]
                scores = torch.einsum("hd,nhd->hn", self.q[row].double(), k.repeat_interleave(group, 1)) * self.scale
                out[row] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v.repeat_interleave(group, 1))
        return out
