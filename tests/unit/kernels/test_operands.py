"""What a compiled kernel would misread is refused, with the operand's name, before a pointer is handed over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from tests.unit.kernels.cases import Paged, normal, pack
from torch import Tensor

from semipd_engine.cards.blocks import Routing
from semipd_engine.kernels import PackedGroup, PackedWeight, cpu
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


def group(x: Tensor, out: Tensor, panels: tuple[int, int] | None = None, **places: Tensor) -> None:
    """Three matrices of 70 x 40."""
    layout = kernels().layout(70, 40, BF16)
    kernels().grouped_linear(x, PackedGroup(rows(3, *layout.shape), layout), out, panels=panels, **places)


def ints(*shape: int) -> Tensor:
    return rows(*shape, dtype=torch.int32)


def floats(*shape: int) -> Tensor:
    return rows(*shape, dtype=torch.float32)


def route(**changed: Tensor) -> None:
    """Two rows, two of eight experts for each."""
    given = {
        "logits": floats(2, 8),
        "correction": floats(8),
        "experts": ints(2, 2),
        "weights": floats(2, 2),
        "order": ints(4),
        "starts": ints(9),
    }
    kernels().route(routing=Routing(8, 2, sigmoid=True), **(given | changed))  # type: ignore[arg-type]


def combine(**changed: Tensor) -> None:
    given = {"x": rows(6, 40), "weights": floats(2, 3), "out": rows(2, 40), "shared": rows(2, 40)}
    kernels().combine(**(given | changed))


def rotate_latent(**changed: Tensor) -> None:
    """Three rows of two heads: 24 dimensions that stay, 16 that turn, a rank of 32."""
    given = {
        "q": rows(3, 2, 40),
        "kv": rows(3, 48),
        "cos": floats(3, 8),
        "sin": floats(3, 8),
        "slot_mapping": ints(3),
        "norm": rows(32),
        "cache": rows(4, 16, 48),
        "out": rows(3, 2, 48),
    }
    kernels().latent_rope_write(eps=1e-6, **(given | changed))  # type: ignore[arg-type]


def attend_latent(at: tuple[int, int] | None = None, **changed: Tensor) -> None:
    given = {
        "q": rows(3, 2, 48),
        "cache": rows(4, 16, 48),
        "block_tables": ints(2, 2),
        "seq_lens": torch.tensor([20, 9], dtype=torch.int32),
        "query_start_loc": torch.tensor([0, 2, 3], dtype=torch.int32),
        "out": rows(3, 2, 32),
    }
    kernels().latent_attention(scale=1.0, rows=at, **(given | changed))  # type: ignore[arg-type]


def gated(out: Tensor, features: int, panels: tuple[int, int] | None = None) -> None:
    kernels().gated_linear(rows(2, 40), pack(kernels(), rows(features, 40)), None, out, panels)


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
        (lambda: gated(rows(2, 70), 140), "gate and up need whole panels of 64"),
        (lambda: gated(rows(2, 128), 128), r"out is \[2, 128\], \[2, 64\]"),
        (lambda: gated(floats(2, 64), 128), "out torch.float32"),
        (lambda: gated(rows(2, 64), 128, (0, 2)), r"panels \(0, 2\) of 1"),
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
        (lambda: group(rows(6, 41), rows(6, 70)), r"x is \[6, 41\], \[6, 40\]"),
        (lambda: group(rows(6, 40), rows(6, 64)), r"out is \[6, 64\]"),
        (lambda: group(rows(6, 40), rows(6, 70, dtype=torch.float16)), "out torch.float16"),
        (lambda: group(rows(6, 40), rows(6, 70), panels=(0, 3)), r"panels \(0, 3\) of 2"),
        (lambda: group(rows(5, 40), rows(5, 70)), "5 rows of 5 over 3 matrices, no order"),
        (lambda: group(rows(4, 40), rows(6, 70)), "6 rows of 4 over 3"),
        (lambda: group(rows(6, 40), rows(0, 70), order=ints(0), starts=ints(4)), "0 rows of 6 over 3"),
        (lambda: group(rows(6, 40), rows(6, 70), order=ints(6)), "order and starts belong together"),
        (lambda: group(rows(6, 40), rows(6, 70), order=ints(5), starts=ints(4)), "order is"),
        (lambda: group(rows(6, 40), rows(6, 70), order=ints(6), starts=ints(3)), "starts is"),
        (lambda: route(logits=rows(2, 8)), "logits are torch.bfloat16"),
        (lambda: route(logits=floats(2, 7)), r"logits is \[2, 7\]"),
        (lambda: route(correction=floats(7)), "correction is"),
        (lambda: route(experts=rows(2, 2, dtype=torch.int64)), "experts is torch.int64"),
        (lambda: route(weights=floats(2, 1)), "weights is"),
        (lambda: route(order=ints(3)), "order is"),
        (lambda: route(starts=ints(8)), "starts is"),
        (lambda: combine(x=rows(5, 40)), r"x is \[5, 40\], \[6, 40\]"),
        (lambda: combine(weights=floats(3, 2).T), "weights is"),
        (lambda: combine(shared=rows(1, 40)), "shared is"),
        (lambda: combine(out=floats(2, 40)), "out torch.float32"),
        (lambda: rotate_latent(q=rows(3, 2, 12)), "at most 6"),
        (lambda: rotate_latent(kv=rows(3, 47)), r"kv is \[3, 47\], \[3, 48\]"),
        (lambda: rotate_latent(sin=floats(8, 3).T), "equal strides"),
        (lambda: rotate_latent(slot_mapping=ints(2)), "slot_mapping is"),
        (lambda: rotate_latent(cache=rows(4, 16, 47)), "cache is"),
        (lambda: rotate_latent(out=rows(3, 1, 48)), r"out is \[3, 1, 48\]"),
        (lambda: attend_latent(q=rows(3, 48, 2).transpose(1, 2)), "q: its last dimension"),
        (lambda: attend_latent(cache=rows(4, 16, 64)), "cache is"),
        (lambda: attend_latent(block_tables=rows(2, 2, dtype=torch.int64)), "block_tables are torch.int64"),
        (lambda: attend_latent(seq_lens=rows(2, dtype=torch.int64)), "seq_lens is torch.int64"),
        (lambda: attend_latent(query_start_loc=ints(2)), "query_start_loc is"),
        (lambda: attend_latent(out=rows(2, 2, 32)), r"out is \[2, 2, 32\]"),
        (lambda: attend_latent(out=rows(3, 2, 64)), "out has 64 elements a head, the cache 48"),
        (lambda: attend_latent(at=(0, 4)), r"rows \(0, 4\) of 3"),
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
    group(rows(6, 40), rows(6, 100)[:, 10:80])
    group(rows(2, 40), rows(6, 70), order=torch.arange(6, dtype=torch.int32), starts=ints(4), panels=(1, 2))
    group(rows(0, 40), rows(0, 70))
    route()
    combine()
    rotate_latent()
    attend_latent()
