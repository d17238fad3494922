"""What the C interface takes for granted, checked before a pointer is handed over: dtypes, sizes, strides.

Each function gives what the interface wants of a tensor, or raises `OperandError` with the operand's name and what it
should have been. With recording a step's calls are checked once for each form of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1}


class OperandError(TypeError, ValueError):
    """A kernel was called with a tensor that it would misread."""


def number(**tensors: Tensor | None) -> int:
    """The interface's number for the dtype that all of them have; None is passed over."""
    dtypes = {name: tensor.dtype for name, tensor in tensors.items() if tensor is not None}
    first, *others = set(dtypes.values())
    if others or first not in DTYPES:
        seen = ", ".join(f"{name} {dtype}" for name, dtype in dtypes.items())
        raise OperandError(f"one dtype is needed, float32 or bfloat16: {seen}")
    return DTYPES[first]


def matrix(name: str, x: Tensor, rows: int, columns: int) -> tuple[int, int]:
    """Address and row stride of ``x [rows, columns]``, the elements of a row side by side."""
    if tuple(x.shape) != (rows, columns):
        raise OperandError(f"{name} is {list(x.shape)}, {[rows, columns]} is needed")
    stride, step = x.stride()
    if step != 1 and columns > 1:
        raise OperandError(f"{name}: its last dimension has stride {step}, 1 is needed")
    return x.data_ptr(), stride


def heads(name: str, x: Tensor, rows: int, count: int, dim: int) -> tuple[int, int, int]:
    """Address, row stride and head stride of ``x [rows, count, dim]``, the elements of a head side by side."""
    if tuple(x.shape) != (rows, count, dim):
        raise OperandError(f"{name} is {list(x.shape)}, {[rows, count, dim]} is needed")
    if x.stride(2) != 1:
        raise OperandError(f"{name}: its last dimension has stride {x.stride(2)}, 1 is needed")
    return x.data_ptr(), x.stride(0), x.stride(1)


def whole(name: str, x: Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Address of a contiguous ``x``; a size of -1 may be any."""
    fits = len(shape) == x.dim() and all(want in (-1, size) for want, size in zip(shape, x.shape, strict=False))
    if not fits or x.dtype != dtype or not x.is_contiguous():
        is_, needed = (f"{kind} {list(sizes)}" for kind, sizes in ((x.dtype, x.shape), (dtype, shape)))
        raise OperandError(f"{name} is {is_} with strides {list(x.stride())}, contiguous {needed} is needed")
    return x.data_ptr()


def span(name: str, of: tuple[int, int] | None, size: int) -> tuple[int, int]:
    """A range of `size` panels or rows; None is all."""
    first, last = of or (0, size)
    if not 0 <= first <= last <= size:
        raise OperandError(f"{name} ({first}, {last}) of {size}")
    return first, last


def angles(cos: Tensor, sin: Tensor, rows: int, dim: int) -> tuple[int, int, int]:
    """Addresses of both and their row stride: float32 ``[rows, at most dim / 2]``."""
    if cos.dim() != 2 or number(cos=cos, sin=sin) or sin.stride() != cos.stride() or 2 * cos.shape[1] > dim:
        raise OperandError(f"cos, sin: float32 [{rows}, at most {dim // 2}] of equal strides are needed")
    address, stride = matrix("cos", cos, rows, cos.shape[1])
    return address, matrix("sin", sin, rows, cos.shape[1])[0], stride


def paging(tables: Tensor, lengths: Tensor, starts: Tensor) -> tuple[int, int, int, int, int]:
    """Of int32 block tables, lengths and starts of S sequences: table's address and row stride, the others', and S."""
    sequences = lengths.shape[0]
    if tables.dtype != torch.int32 or tables.dim() != 2:
        raise OperandError(f"block_tables are {tables.dtype} {list(tables.shape)}, a matrix of torch.int32 is needed")
    return (
        *matrix("block_tables", tables, sequences, tables.shape[1]),
        whole("seq_lens", lengths, torch.int32, sequences),
        whole("query_start_loc", starts, torch.int32, sequences + 1),
        sequences,
    )
