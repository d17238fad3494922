"""The compiled kernels against float64 and their twins, at each level of this CPU; a row's bits are its own."""

from __future__ import annotations

import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.cases import DTYPES, LEVELS, TWINS, Paged, close, kernels, normal, pack
from torch import Tensor

from semipd_engine.kernels import PackedWeight

pytestmark = pytest.mark.unit


def linear(level: str, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    out = torch.empty(len(x), weight.out_features)
    kernels(level).linear(x, weight, bias, out)
    return out


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=10)
@given(
    st.sampled_from([1, 2, 5, 7, 11, 12, 16, 17, 33, 63, 95, 96, 97, 191, 192, 530, 1030]),
    st.sampled_from([1, 2, 31, 32, 70, 576, 1100]),
    st.sampled_from([1, 64, 65, 150, 320, 576]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_linear(level: str, rows: int, inner: int, columns: int, dtype: torch.dtype, biased: bool) -> None:
    x, weight = normal(rows, inner, seed=1, dtype=dtype), normal(columns, inner, seed=2, dtype=dtype) / inner**0.5
    weight = weight.to(dtype)
    bias = normal(columns, seed=3, dtype=dtype) if biased else None
    packed = pack(kernels(level), weight, pieces=3)
    out = linear(level, x, packed, bias)
    expected = F.linear(x.double(), weight.double(), None if bias is None else bias.double())
    close(out, expected, torch.float32)  # sums are float32 for both
    rounded = torch.empty(rows, columns, dtype=dtype)
    kernels(level).linear(x, packed, bias, rounded)
    assert torch.equal(rounded, out.to(dtype))

    row = rows // 2  # alone, among others, in another place, in panels: equal bits
    assert torch.equal(linear(level, x[row : row + 1], packed, bias)[0], out[row])
    assert torch.equal(linear(level, x[row:], packed, bias), out[row:])
    wide = torch.zeros(rows, 2 * inner, dtype=dtype)
    wide[:, inner:] = x
    halves = torch.full((rows, columns), -1.0)
    middle = packed.panels // 2
    kernels(level).linear(wide[:, inner:], packed, bias, halves, (0, middle))
    assert (halves[:, middle * 64 :] == -1).all()
    kernels(level).linear(wide[:, inner:], packed, bias, halves, (middle, packed.panels))
    assert torch.equal(halves, out)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_numbers_have_the_same_bits_in_few_rows_and_in_many(level: str, dtype: torch.dtype) -> None:
    """Factors, products and sums about the smallest normal number, 2 ** -126: an instruction may take less as zero."""
    x = normal(40, 70, seed=1, dtype=dtype) * 2.0 ** torch.arange(-126, -46, 2).to(dtype)[:, None]
    weight = normal(64, 70, seed=2, dtype=dtype) * 2.0 ** torch.arange(-63, 1).to(dtype)[:, None]
    x[:, ::3] = 2.0**-130
    packed = pack(kernels(level), weight)
    many = linear(level, x, packed)
    assert 0 < (many.abs() < 2.0**-120).sum() < many.numel()
    for rows in (1, 2, 7, 8):
        assert torch.equal(torch.cat([linear(level, some, packed) for some in x.split(rows)]), many)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=10)
@given(
    st.sampled_from([1, 2, 5, 16, 17, 33, 97, 191, 530]),
    st.sampled_from([1, 31, 32, 70, 576, 1100]),
    st.sampled_from([64, 128, 320]),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_a_gated_product_has_the_bits_of_a_product_and_the_activation(
    level: str, rows: int, inner: int, columns: int, dtype: torch.dtype, biased: bool
) -> None:
    x = normal(rows, inner, seed=1, dtype=dtype)
    weight = (normal(2 * columns, inner, seed=2) / inner**0.5).to(dtype)
    bias = normal(2 * columns, seed=3, dtype=dtype) if biased else None
    packed, both = pack(kernels(level), weight, pieces=2), torch.empty(rows, 2 * columns, dtype=dtype)
    out, apart, twin = (torch.full((rows, columns), torch.nan, dtype=dtype) for _ in range(3))
    kernels(level).gated_linear(x, packed, bias, out)
    kernels(level).linear(x, packed, bias, both)
    kernels(level).silu_mul(both, apart)
    assert torch.equal(out, apart)
    TWINS.gated_linear(x, pack(TWINS, weight), bias, twin)
    close(out, twin, dtype)

    row, middle = rows // 2, columns // 128  # alone, in another place, in panels: equal bits
    alone = torch.empty(1, columns, dtype=dtype)
    kernels(level).gated_linear(x[row : row + 1], packed, bias, alone)
    assert torch.equal(alone[0], out[row])
    halves = torch.full((rows, columns + 3), -1.0, dtype=dtype)
    kernels(level).gated_linear(x, packed, bias, halves[:, 3:], (0, middle))
    assert (halves[:, 3 + middle * 64 :] == -1).all()
    kernels(level).gated_linear(x, packed, bias, halves[:, 3:], (middle, columns // 64))
    assert torch.equal(halves[:, 3:], out) and (halves[:, :3] == -1).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_hang_on_the_number_of_threads(level: str, dtype: torch.dtype) -> None:
    x, packed = normal(40, 256, seed=1, dtype=dtype), pack(kernels(level), normal(640, 256, seed=2, dtype=dtype))
    case = Paged.make([300, 90], [40, 1], 8, 2, 64, 16, 1, dtype)
    lone = Paged.make([300], [1], 9, 3, 64, 16, 2, dtype)  # a thread takes three of its KV heads, two or one
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            gated = torch.empty(40, 320, dtype=dtype)
            kernels(level).gated_linear(x, packed, None, gated)
            results.append((linear(level, x, packed), *(c.attend(kernels(level)) for c in (case, lone)), gated))
    finally:
        torch.set_num_threads(before)
    for found in results[1:]:
        assert all(torch.equal(mine, first) for mine, first in zip(found, results[0], strict=True))


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=12)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 47, 62, 63, 64, 65, 127, 128, 200]), st.sampled_from([0, 1, 2, 17, 64, 66])),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([(4, 4), (4, 2), (9, 3), (7, 1), (12, 4)]),
    st.sampled_from([64, 80, 96, 128, 256]),
    st.sampled_from([16, 32, 64, 128]),
    st.sampled_from([0, 0, 1, 65]),
    st.sampled_from(DTYPES),
)
def test_attention(
    level: str,
    shapes: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    window: int,
    dtype: torch.dtype,
) -> None:
    """Past positions and new rows around the edges of blocks, empty sequences, caches full of NaN beyond."""
    new = [rows for _, rows in shapes]
    case = Paged.make([past + rows for past, rows in shapes], new, *heads, head_dim, block_size, 1, dtype)
    out = case.attend(kernels(level), window=window)
    twin = case.attend(TWINS, window=window)
    close(out, twin, dtype)
    for index, rows in enumerate(new):  # the last row of each: alone as a decode row, equal bits
        if rows:
            last = int(case.starts[index + 1]) - 1
            alone = Paged(
                case.q[last : last + 1],
                case.keys,
                case.values,
                case.tables[index : index + 1],
                case.lengths[index : index + 1],
                torch.tensor([0, 1], dtype=torch.int32),
                case.scale,
            )
            assert torch.equal(alone.attend(kernels(level), window=window)[0], out[last])
    middle = len(out) // 2
    part = case.attend(kernels(level), (middle, len(out)), window)
    assert torch.equal(part[middle:], out[middle:])
    assert not part[:middle].any()


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=10)
@given(
    st.integers(0, 40),
    st.sampled_from([(4, 4), (4, 1), (8, 2)]),
    st.sampled_from([(16, 16), (64, 64), (80, 80), (80, 32), (128, 128)]),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_rotation_and_cache(
    level: str, rows: int, heads: tuple[int, int], dims: tuple[int, int], normed: bool, dtype: torch.dtype
) -> None:
    (q_heads, kv_heads), (head_dim, rotary) = heads, dims
    width = kv_heads * head_dim
    qkv = normal(rows, (q_heads + 2 * kv_heads) * head_dim, seed=1, dtype=dtype)
    angles = normal(rows, rotary // 2, seed=2) * 10
    slots = torch.from_numpy(np.random.default_rng(rows).permutation(64)[:rows].astype(np.int32))
    slots[::3] = -1
    weights = [normal(head_dim, seed=n, dtype=dtype) if normed else None for n in (3, 4)]
    results = []
    for implementation in (kernels(level), TWINS):
        mine, (keys, values) = qkv.clone(), (torch.full((4, 16, width), 7.0, dtype=dtype) for _ in range(2))
        implementation.qk_norm_rope_write_kv(
            mine, angles.cos(), angles.sin(), slots, keys, values, head_dim, weights[0], weights[1]
        )
        results.append((mine[:, : q_heads * head_dim], keys, values))
    for ours, twins in zip(*results, strict=True):
        close(ours, twins, dtype)
    assert torch.equal(results[0][2], results[1][2])


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=10)
@given(st.sampled_from([1, 3, 40]), st.sampled_from([1, 15, 64, 100, 1030]), st.booleans(), st.sampled_from(DTYPES))
def test_rows(level: str, rows: int, width: int, added: bool, dtype: torch.dtype) -> None:
    x, weight = normal(rows, width, seed=1, dtype=dtype), normal(width, seed=2, dtype=dtype)
    pair = normal(rows, 2 * width, seed=4, dtype=dtype)
    residuals = [normal(rows, width, seed=3, dtype=dtype) if added else None for _ in range(2)]
    outs = [torch.empty_like(x) for _ in range(4)]
    for implementation, residual, normed, gated in zip(
        (kernels(level), TWINS), residuals, outs[:2], outs[2:], strict=True
    ):
        implementation.rms_norm(x, weight, 1e-5, normed, residual)
        implementation.silu_mul(pair, gated)
    close(outs[0], outs[1], dtype)
    close(outs[2], outs[3], dtype)
    if residuals[0] is not None and residuals[1] is not None:
        assert torch.equal(residuals[0], residuals[1])
    alone = torch.empty(1, width, dtype=dtype)
    kernels(level).rms_norm(x[-1:], weight, 1e-5, alone)
    if not added:
        assert torch.equal(alone[0], outs[0][-1])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_is_not_swallowed(level: str, dtype: torch.dtype) -> None:
    """A fault of the model must be seen, in its own row."""
    x = normal(3, 2 * 40, seed=1, dtype=dtype)
    x[1, :40:7] = torch.nan
    out = torch.empty(3, 40, dtype=dtype)
    kernels(level).silu_mul(x, out)
    assert torch.equal(out.isnan(), x[:, :40].isnan())
    case = Paged.make([90], [3], 4, 2, 64, 16, 1, dtype)
    case.q[1, 2, 5] = torch.nan
    attended = case.attend(kernels(level))
    assert bool(attended[1, 2].isnan().all())
    attended[1, 2] = 0
    assert bool(attended.isfinite().all())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding_reads_rows_and_panels(level: str, dtype: torch.dtype) -> None:
    weight, ids = normal(150, 71, seed=1, dtype=dtype), torch.tensor([0, 149, 63, 64, 64], dtype=torch.int32)
    for packed in (pack(kernels(level), weight, 4), pack(TWINS, weight)):
        for implementation in (kernels(level), TWINS):
            out = torch.empty(5, 71, dtype=dtype)
            implementation.embedding(ids, packed, out)
            assert torch.equal(out, weight[ids.long()])
    out = torch.empty(5, 150, dtype=dtype)  # the twins multiply with panels, too
    TWINS.linear(normal(5, 71, seed=2, dtype=dtype), pack(kernels(level), weight), None, out)
    close(out, F.linear(normal(5, 71, seed=2, dtype=dtype), weight), dtype)


def test_float16_and_odd_heads_are_the_twins_business() -> None:
    if not LEVELS:
        pytest.skip("no level runs here")
    ours = kernels(LEVELS[0])
    weight = normal(70, 40, seed=1, dtype=torch.float16)
    out = torch.empty(2, 70, dtype=torch.float16)
    ours.linear(normal(2, 40, seed=2, dtype=torch.float16), pack(ours, weight), None, out)
    assert torch.isfinite(out).all()
    case = Paged.make([30], [3], 2, 1, 24, 16, 1, torch.float32)
    close(case.attend(ours), case.expected(), torch.float32)
    with pytest.raises(TypeError, match="bfloat16"):
        ours.silu_mul(torch.zeros(1, 8), torch.zeros(1, 4, dtype=torch.bfloat16))


@pytest.mark.skipif(not LEVELS, reason="no level runs here")
def test_nothing_behind_an_operand_is_touched() -> None:
    """Ragged shapes, in a process of its own: each operand ends where memory does."""
    command = [sys.executable, "-m", "tests.unit.kernels.bounds"]
    done = subprocess.run([*command, *LEVELS], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    ends = subprocess.run([*command, "beyond"], capture_output=True, timeout=300)
    assert ends.returncode == -signal.SIGSEGV, "the trap is one"
