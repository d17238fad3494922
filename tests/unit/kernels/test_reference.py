"""The twins against float64, and which kernels are chosen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.cases import Paged, close, normal, pack

from semipd_engine.kernels import KernelsError, ReferenceKernels, choose

pytestmark = pytest.mark.unit
DTYPES = (torch.float32, torch.bfloat16)
TWINS = ReferenceKernels()


def test_what_is_asked_for_is_what_runs() -> None:
    assert choose(environment={"SEMIPD_KERNELS": "reference"}).name == "reference"
    assert "SEMIPD_KERNELS" in choose(environment={"SEMIPD_KERNELS": "reference"}).why
    with pytest.raises(KernelsError, match="expected auto, reference, avx2"):
        choose(environment={"SEMIPD_KERNELS": "sse"})


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_and_embedding(dtype: torch.dtype) -> None:
    x, weight, bias = (normal(*shape, seed=1, dtype=dtype) for shape in ((5, 70), (150, 70), (150,)))
    packed = pack(TWINS, weight, pieces=3)
    assert packed.panels == 3
    out = torch.zeros(5, 150)
    TWINS.linear(x, packed, bias, out, (1, 3))
    assert not out[:, :64].any()
    close(out[:, 64:], F.linear(x.double(), weight.double(), bias.double())[:, 64:], dtype)
    ids, rows = torch.tensor([149, 0, 149], dtype=torch.int32), torch.empty(3, 70, dtype=dtype)
    TWINS.embedding(ids, packed, rows)
    assert torch.equal(rows, weight[ids.long()])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("biased", [True, False])
def test_a_gated_product(dtype: torch.dtype, biased: bool) -> None:
    x, weight, bias = (normal(*shape, seed=1, dtype=dtype) for shape in ((5, 70), (300, 70), (300,)))
    packed, given = pack(TWINS, weight, pieces=2), bias if biased else None
    gate, up = F.linear(x, weight, given).double().chunk(2, dim=-1)
    out = torch.full((5, 150), -1.0, dtype=dtype)
    TWINS.gated_linear(x, packed, given, out)
    close(out, F.silu(gate) * up, dtype)
    part = torch.full((5, 150), -1.0, dtype=dtype)
    TWINS.gated_linear(x, packed, given, part, (1, 2))
    close(part[:, 64:128], out[:, 64:128], dtype)
    assert (part[:, :64] == -1).all() and (part[:, 128:] == -1).all()


@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 20)), min_size=1, max_size=4),
    st.sampled_from([(4, 4), (4, 2), (6, 1)]),
    st.sampled_from([0, 1, 17]),
    st.sampled_from(DTYPES),
)
def test_attention(shapes: list[tuple[int, int]], heads: tuple[int, int], window: int, dtype: torch.dtype) -> None:
    case = Paged.make([past + new for past, new in shapes], [new for _, new in shapes], *heads, 16, 16, 1, dtype)
    expected = case.expected(window)
    close(case.attend(TWINS, window=window), expected, dtype)
    rows = len(expected) // 2
    half = case.attend(TWINS, (rows, len(expected)), window)
    close(half[rows:], expected[rows:], dtype)
    assert not half[:rows].any()


def test_a_slot_of_minus_one_writes_nothing() -> None:
    qkv, keys, values = normal(3, 4 * 16, seed=2), torch.zeros(2, 4, 16), torch.zeros(2, 4, 16)
    angles = normal(3, 4, seed=3)
    before = qkv.clone()
    slots = torch.tensor([6, -1, 1], dtype=torch.int32)
    TWINS.qk_norm_rope_write_kv(qkv, angles.cos(), angles.sin(), slots, keys, values, 16)
    assert torch.equal(values.view(8, 16)[[6, 1]], before[[0, 2], 48:])
    assert keys.view(8, 16).any(dim=1).nonzero().flatten().tolist() == [1, 6]
    turned = torch.view_as_complex(torch.stack((before[0, 32:36], before[0, 36:40]), -1)) * torch.polar(
        torch.ones(4), angles[0]
    )
    torch.testing.assert_close(keys.view(8, 16)[6], torch.cat((turned.real, turned.imag, before[0, 40:48])))
    torch.testing.assert_close(qkv[:, 8:16], before[:, 8:16])  # beyond the rotated dimensions


def test_the_sum_is_rounded_before_its_norm() -> None:
    x, residual, weight = (normal(*shape, seed=4, dtype=torch.bfloat16) for shape in ((3, 64), (3, 64), (64,)))
    expected = x + residual
    out = torch.empty_like(x)
    TWINS.rms_norm(x, weight, 1e-5, out, residual)
    assert torch.equal(residual, expected)
    close(out, F.rms_norm(expected.double(), (64,), weight.double(), 1e-5), torch.bfloat16)


def draw(logits: torch.Tensor, top_k: int, top_p: float, min_p: float, points: int = 1000) -> set[int]:
    """Every token that can be drawn from one row of logits."""
    rows = torch.ones(points)
    tokens = TWINS.sample(
        logits.expand(points, -1).contiguous(),
        rows,
        torch.full((points,), top_k, dtype=torch.int32),
        rows * top_p,
        rows * min_p,
        torch.arange(points, dtype=torch.float64) / points,
    )
    return set(tokens.tolist())


def test_rows_whose_mass_is_not_among_the_candidates_are_sorted_whole() -> None:
    flat = torch.zeros(2048)  # sums of powers of two are exact
    assert draw(flat, 0, 0.5, 0, 1024) == set(range(1024))
    assert draw(flat, 2, 1, 0) == {0, 1}
    assert draw(flat, 1280, 0.5, 0, 1280) == set(range(640))
    peaked = flat.clone()
    peaked[[7, 2047]] = 20.0
    assert draw(peaked, 0, 0.9, 0) == {7, 2047}
    assert draw(peaked, 50, 1, 0.5) == {7, 2047}
    assert draw(peaked, 1, 1, 0) == {7}
