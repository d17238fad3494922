"""What a compiled kernel would misread is refused, with the operand's name, before a pointer is handed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.unit.kernels.cases import Paged, normal, pack
from torch import Tensor

from semipd_engine.kernels import PackedWeight, cpu
from semipd_engine.kernels.cpu import CpuKernels, OperandError

pytestmark = [pytest.mark.unit, pytest.mark.skipif(not cpu.runnable(), reason="no level runs on this CPU")]
BF16 = torch.bfloat16


def kernels() -> CpuKernels:
    return cpu.best()


def linear(x: Tensor, out: Tensor, bias: Tensor | None = None, panels: tuple[int, int] | None = None) -> None:
    kernels().linear(x, pack(kernels(), normal(70, 40, seed=1, dtype=BF16)), bias, out, panels)


def rows(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


def attend(**changed: Tensor) -> None:
    replace(Paged.make([20, 9], [2, 1], 4, 2, 64, 16, 1, BF16), **changed).attend(kernels())


def rotate(
    cos: Tensor | None = None, sin: Tensor | None = None, slots: Tensor | None = None, cache: Tensor | None = None
) -> None:
    kernels().qk_norm_rope_write_kv(
        rows(3, 8 * 64),
        rows(3, 32, dtype=torch.float32) if cos is None else cos,
        rows(3, 32, dtype=torch.float32) if sin is None else sin,
        rows(3, dtype=torch.int32) if slots is None else slots,
        rows(4, 16, 128) if cache is None else cache,
        rows(4, 16, 128),
        64,
    )


def transposed_weight() -> PackedWeight:
    packed = pack(kernels(), normal(70, 40, seed=1, dtype=BF16))
    return replace(packed, data=packed.data.transpose(0, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear(rows(2, 41), rows(2, 70)), r"x is \[2, 41\], \[2, 40\]"),
        (lambda: linear(rows(40, 2).T, rows(2, 70)), "x: its last dimension has stride 2"),
        (lambda: linear(rows(2, 40), rows(2, 64)), r"out is \[2, 64\]"),
        (lambda: linear(rows(2, 40), rows(2, 70, dtype=torch.float16)), "out torch.float16"),
        (lambda: linear(rows(2, 40, dtype=torch.float32), rows(2, 70)), "x torch.float32"),
        (lambda: linear(rows(2, 40), rows(2, 70), bias=rows(140)[::2]), "bias is"),
        (lambda: linear(rows(2, 40), rows(2, 70), panels=(1, 3)), r"panels \(1, 3\) of 2"),
        (lambda: kernels().linear(rows(2, 40), transposed_weight(), None, rows(2, 70)), "weight is"),
        (lambda: kernels().rms_norm(rows(2, 40), rows(39), 1e-5, rows(2, 40)), "weight is"),
        (lambda: kernels().rms_norm(rows(2, 40), rows(40), 1e-5, rows(2, 40), rows(1, 40)), "residual is"),
        (lambda: kernels().silu_mul(rows(2, 40), rows(2, 40)), r"x is \[2, 40\], \[2, 80\]"),
        (lambda: rotate(cos=rows(3, 32)), "cos torch.bfloat16"),
        (lambda: rotate(sin=rows(32, 3, dtype=torch.float32).T), "equal strides"),
        (lambda: rotate(slots=rows(3, dtype=torch.int64)), "slot_mapping is torch.int64"),
        (lambda: rotate(cache=rows(4, 128, 16).transpose(1, 2)), "key_cache is"),
        (lambda: attend(q=rows(3, 64, 4).transpose(1, 2)), "q: its last dimension"),
        (lambda: attend(tables=rows(2, 2, dtype=torch.int64)), "block_tables are torch.int64"),
        (lambda: attend(lengths=rows(2, dtype=torch.int64)), "seq_lens is torch.int64"),
        (lambda: attend(starts=rows(2, dtype=torch.int32)), r"query_start_loc is torch.int32 \[2\]"),
        (lambda: attend(q=rows(3, 3, 64)), "3 heads over 2"),
        (lambda: attend(values=rows(1, 16, 128)), "value_cache is"),
    ],
)
def test_a_malformed_operand_is_named(call: Callable[[], None], message: str) -> None:
    with pytest.raises(OperandError, match=message):
        call()


def test_what_the_layers_hand_over_is_taken() -> None:
    """Slices of rows and of columns, one row, none at all."""
    wide = rows(4, 200)
    linear(wide[1:3, 100:140], wide[2:4, :70].clone(), panels=(0, 1))
    linear(rows(0, 40), rows(0, 70))
    attend()
    rotate()
