"""The gate of a rung's matrix products: right ones pass in every type, wrong ones of each known kind do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semipd_engine.worker import gemm_gate
from semipd_engine.worker.servable import UnfitError

pytestmark = pytest.mark.engine

WEIGHTS = {
    "embedding": (512, 96),
    "layers.0.qkv.weight": (160, 96),
    "layers.0.norm": (96,),
    "layers.0.down.weight": (96, 256),
    "lm_head": (512, 96),
}


def weights(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in WEIGHTS.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_right_products_pass(dtype: torch.dtype) -> None:
    gemm_gate.gate_products(weights(dtype))


def test_a_matrix_of_zeros_is_no_error() -> None:
    gemm_gate.gate_products({name: torch.zeros_like(w) for name, w in weights(torch.float32).items()})


def unwritten(out: Tensor) -> Tensor:
    """A tile of 16 rows and 32 columns was left out."""
    out[-16:, 64:96] = 0
    return out


def twice(out: Tensor) -> Tensor:
    out[:, :32] *= 2
    return out


def not_a_number(out: Tensor) -> Tensor:
    out[0, 32] = float("nan")
    return out


def rounded(out: Tensor) -> Tensor:
    """Ten bits of mantissa, as TensorFloat-32 has."""
    return (out.view(torch.int32) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize(
    ("dtype", "wrong"),
    [
        (torch.bfloat16, unwritten),
        (torch.bfloat16, twice),
        (torch.bfloat16, not_a_number),
        (torch.float32, unwritten),
        (torch.float32, rounded),
    ],
)
@pytest.mark.parametrize("rows", gemm_gate.ROWS)
def test_wrong_products_are_named(
    dtype: torch.dtype, wrong: Callable[[Tensor], Tensor], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At one row count only, as a kernel that is chosen by shape would be."""
    right = F.linear

    def linear(x: Tensor, weight: Tensor) -> Tensor:
        out = right(x, weight)
        return wrong(out) if x.shape[0] == rows and tuple(weight.shape) == (160, 96) else out

    monkeypatch.setattr(gemm_gate.F, "linear", linear)
    with pytest.raises(UnfitError, match=rf"\[{rows}, 96\] x \[96, 160\] \(layers.0.qkv.weight\)") as error:
        gemm_gate.gate_products(weights(dtype))
    assert error.value.reason == "WrongProducts"


def test_the_causal_rule_is_the_causal_matrix() -> None:
    """The prefill form that a GPU takes, of rows in the middle of a sequence."""
    from torch.nn.attention.bias import causal_lower_right

    generator = torch.Generator().manual_seed(3)
    q = torch.randn(1, 4, 5, 16, generator=generator)
    k, v = (torch.randn(1, 2, 17, 16, generator=generator) for _ in range(2))
    matrix = torch.ones(5, 17, dtype=torch.bool).tril_(12)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=matrix, enable_gqa=True)
    got = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(5, 17), enable_gqa=True)
    torch.testing.assert_close(got, want)
