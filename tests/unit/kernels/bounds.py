"""``python -m tests.unit.kernels.bounds LEVEL...``: kernels over operands that each end at a page nobody may touch.

A read or write behind an operand, in a tile or under a mask, ends the process with SIGSEGV. `beyond` in the place of
levels: one call is told of a row too many, and must end so.
"""

from __future__ import annotations

import ctypes
import faulthandler
import itertools
import mmap
import resource
import sys
from dataclasses import replace

import torch
from tests.unit.kernels.cases import Paged, normal, pack, pack_group
from torch import Tensor

from semipd_engine.kernels import cpu

PAGE = mmap.PAGESIZE
mapped: list[mmap.mmap] = []


def guarded(tensor: Tensor) -> Tensor:
    """A copy whose last byte is the last of a page."""
    tensor = torch.nan_to_num(tensor).contiguous()
    room = -(-tensor.nbytes // PAGE) * PAGE
    mapped.append(mmap.mmap(-1, room + PAGE))
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped[-1]))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + room), ctypes.c_size_t(PAGE), 0):
        raise OSError("mprotect")
    held = torch.frombuffer(mapped[-1], dtype=tensor.dtype, count=tensor.numel(), offset=room - tensor.nbytes)
    return held.view(tensor.shape).copy_(tensor)


def products(kernels: cpu.CpuKernels, dtype: torch.dtype) -> None:
    for rows, inner, columns in itertools.product((1, 17, 33, 513), (2, 70, 384), (64, 200)):
        packed = pack(kernels, normal((1 if columns % 64 else 2) * columns, inner, seed=1, dtype=dtype))
        weight, features = replace(packed, data=guarded(packed.data)), packed.out_features
        x, bias = guarded(normal(rows, inner, seed=2, dtype=dtype)), guarded(normal(features, seed=3, dtype=dtype))
        kernels.linear(x, weight, bias, guarded(torch.zeros(rows, features, dtype=dtype)))
        if columns % 64 == 0:
            kernels.gated_linear(x, weight, bias, guarded(torch.zeros(rows, columns, dtype=dtype)))
    experts, chosen = 4, 2
    for rows, inner, columns in itertools.product((1, 7, 40), (32, 70), (64, 200)):
        group = pack_group(kernels, normal(experts, columns, inner, seed=1, dtype=dtype))
        taken = normal(rows, experts, seed=2).topk(chosen).indices.flatten()
        starts = torch.tensor([int((taken < e).sum()) for e in range(experts + 1)], dtype=torch.int32)
        x, out = normal(rows, inner, seed=3, dtype=dtype), torch.zeros(rows * chosen, columns, dtype=dtype)
        order = guarded(taken.argsort(stable=True).int())
        kernels.grouped_linear(
            guarded(x), replace(group, data=guarded(group.data)), guarded(out), order, guarded(starts)
        )


def attention(kernels: cpu.CpuKernels, dtype: torch.dtype) -> None:
    shapes = (([1], [1]), ([65, 3], [2, 3]), ([140], [33]), ([16], [16]))
    latent = ((80, 64, 5, 1), (48, 32, 16, 16), (576, 512, 16, 16), (640, 640, 3, 8))
    for (width, rank, heads, block), (lengths, new) in itertools.product(latent, shapes):
        case = Paged.make(lengths, new, heads, 1, width, block, 1, dtype)
        paging = (guarded(case.tables), guarded(case.lengths), guarded(case.starts))
        out = guarded(torch.zeros(len(case.q), heads, rank, dtype=dtype))
        kernels.latent_attention(guarded(case.q), guarded(case.keys), *paging, case.scale, out)
    for (dim, heads, kv, block), (lengths, new) in itertools.product(
        ((64, 4, 2, 16), (80, 3, 1, 1), (128, 8, 8, 16), (256, 6, 1, 8)), shapes
    ):
        case = Paged.make(lengths, new, heads, kv, dim, block, 1, dtype)
        paging = (guarded(case.tables), guarded(case.lengths), guarded(case.starts))
        caches, out = (guarded(case.keys), guarded(case.values)), guarded(torch.zeros_like(case.q))
        kernels.paged_attention(guarded(case.q), *caches, *paging, case.scale, out)


def rows(kernels: cpu.CpuKernels, dtype: torch.dtype) -> None:
    for count, width in itertools.product((1, 5), (1, 15, 64, 100)):
        x, weight, sums = (normal(*shape, seed=1, dtype=dtype) for shape in ((count, width), (width,), (count, width)))
        kernels.rms_norm(guarded(x), guarded(weight), 1e-5, guarded(torch.zeros_like(x)), guarded(sums))
        kernels.silu_mul(guarded(normal(count, 2 * width, seed=2, dtype=dtype)), guarded(torch.zeros_like(x)))


def beyond(library: cpu.Library) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # an end as it should be leaves no core
    x, out = guarded(torch.ones(5, 64)), torch.zeros(6, 32)
    library.calls.semipd_silu_mul(0, x.data_ptr(), 64, out.data_ptr(), 32, 6, 32)


def main(levels: list[str]) -> None:
    faulthandler.enable()
    torch.set_num_threads(1)
    if levels == ["beyond"]:
        beyond(cpu.load(cpu.runnable()[0]))
    for level, dtype in itertools.product(levels, (torch.float32, torch.bfloat16)):
        for part in (products, attention, rows):
            part(cpu.CpuKernels(cpu.load(level)), dtype)
            mapped.clear()


if __name__ == "__main__":
    main(sys.argv[1:])
