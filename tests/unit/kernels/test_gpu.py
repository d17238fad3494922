"""The GPU's kernels against float64 and their twins, under Triton's interpreter: right on any shape.

In float32 and float16: the interpreter multiplies the bits of bfloat16 as integers, and cuts where a GPU rounds.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.cases import TOLERANCE, Paged, normal, pack_group
from torch import Tensor

from semipd_engine.cards.errors import ModelError
from semipd_engine.contract import EngineOptions
from semipd_engine.kernels import KernelsError, ReferenceKernels, choose
from semipd_engine.kernels.gpu import TritonKernels, attention
from semipd_engine.resident import loading

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide"),  # rows of a tile that nobody stores
]
DTYPES = (torch.float32, torch.float16)
TWINS = ReferenceKernels()
LOOSE = TOLERANCE | {torch.float16: 2e-3}
KERNELS = TritonKernels(num_sms=1)
"""So few SMs that nothing is split."""
WIDE = TritonKernels(num_sms=1 << 20)
"""So many that everything is."""


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=LOOSE[dtype], atol=LOOSE[dtype])


@settings(max_examples=10)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 20)), min_size=1, max_size=3),
    st.sampled_from([(4, 4), (4, 2), (6, 1), (3, 1), (8, 1)]),
    st.sampled_from([16, 64, 80, 96]),
    st.sampled_from([1, 8, 16]),
    st.sampled_from([0, 1, 17]),
    st.sampled_from(DTYPES),
)
def test_attention_of_chunks_and_decode_rows(
    shapes: list[tuple[int, int]],
    heads: tuple[int, int],
    head_dim: int,
    block_size: int,
    window: int,
    dtype: torch.dtype,
) -> None:
    lengths, new = [past + new for past, new in shapes], [new for _, new in shapes]
    case = Paged.make(lengths, new, *heads, head_dim, block_size, 1, dtype)
    expected = case.expected(window)
    close(case.attend(KERNELS, window=window), expected, dtype)
    first = len(expected) // 2
    half = case.attend(KERNELS, (first, len(expected)), window)
    close(half[first:], expected[first:], dtype)
    assert not half[:first].any(), "rows that were not asked for stay"


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("heads", [(7, 1), (32, 2), (2, 2)])
def test_attention_over_heads_of_each_size(head_dim: int, heads: tuple[int, int]) -> None:
    """Lengths around a block's edge, nobody among them; one decode row, a prompt's last chunk, a whole prompt."""
    case = Paged.make([16, 33, 9, 15], [1, 18, 0, 15], *heads, head_dim, 16, 4, torch.float32)
    close(case.attend(KERNELS), case.expected(), torch.float32)
    decode = Paged.make([17, 0, 531, 16], [1, 0, 1, 1], *heads, head_dim, 16, 5, torch.float32)
    close(decode.attend(WIDE), decode.expected(), torch.float32)


@settings(max_examples=6)
@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=2),
    st.sampled_from([(4, 1), (4, 4)]),
    st.sampled_from([0, 300]),
    st.sampled_from(DTYPES),
)
def test_long_contexts_are_split_and_joined(
    lengths: list[int], heads: tuple[int, int], window: int, dtype: torch.dtype
) -> None:
    """Parts without any position, too: a short sequence beside a long one, or a window that begins late."""
    lengths = [*lengths, 600]
    case = Paged.make(lengths, [1] * len(lengths), *heads, 64, 16, 2, dtype)
    close(case.attend(WIDE, window=window), case.expected(window), dtype)


def test_how_work_is_split() -> None:
    assert attention.splits_for(programs=8, positions=8192, num_sms=132) == 16
    assert attention.splits_for(programs=512, positions=8192, num_sms=132) == 1, "the SMs are full"
    assert attention.splits_for(programs=8, positions=300, num_sms=132) == 1, "too little for two"


@pytest.mark.parametrize("rows", [(1, 1), (3, 21)])
@pytest.mark.parametrize("kernels", [KERNELS, WIDE])
def test_rows_of_padding_stay(kernels: TritonKernels, rows: tuple[int, int]) -> None:
    """Beside chunks, too, whose last tile is not full: of another sequence's rows none is written, but the interpreter
    carries out programs in order, so that nobody would see it there."""
    case = Paged.make([600, 25], [*rows], 4, 2, 16, 16, 3, torch.float32)
    expected, count = case.expected(), sum(rows)
    padded = torch.cat((case.q, torch.full_like(case.q, torch.nan)))
    out = torch.full_like(padded, 7.0)
    arguments = (case.keys, case.values, case.tables, case.lengths, case.starts, case.scale, out)
    kernels.paged_attention(padded, *arguments)
    close(out[:count], expected, torch.float32)
    assert bool((out[count:] == 7.0).all())


@settings(max_examples=8)
@given(st.integers(0, 5), st.sampled_from([1, 64, 80, 1000]), st.booleans(), st.sampled_from(DTYPES))
def test_norm(count: int, width: int, adds: bool, dtype: torch.dtype) -> None:
    wide = normal(count, width + 3, seed=1, dtype=dtype)
    x, weight = wide[:, :width], normal(width, seed=2, dtype=dtype)
    sums = [normal(count, width, seed=3, dtype=dtype) for _ in range(2)] if adds else [None, None]
    out, expected = (torch.empty(count, width, dtype=dtype) for _ in range(2))
    KERNELS.rms_norm(x, weight, 1e-5, out, sums[0])
    TWINS.rms_norm(x.clone(), weight, 1e-5, expected, sums[1])
    close(out, expected, dtype)
    if sums[0] is not None and sums[1] is not None:
        assert torch.equal(sums[0], sums[1]), "the sum is rounded as the twin's"


def test_a_norm_may_be_in_place() -> None:
    x, weight = normal(3, 64, seed=1), normal(64, seed=2)
    expected = F.rms_norm(x.double(), (64,), weight.double(), 1e-5)
    KERNELS.rms_norm(x, weight, 1e-5, x)
    close(x, expected, torch.float32)


@settings(max_examples=6)
@given(st.integers(0, 4), st.sampled_from([1, 100, 1025]), st.sampled_from(DTYPES))
def test_activation(count: int, width: int, dtype: torch.dtype) -> None:
    x = normal(count, 2 * width, seed=1, dtype=dtype)
    out, expected = (torch.empty(count, width, dtype=dtype) for _ in range(2))
    KERNELS.silu_mul(x, out)
    TWINS.silu_mul(x, expected)
    close(out, expected, dtype)


@settings(max_examples=12)
@given(
    st.lists(st.integers(-1, 23), min_size=1, max_size=5, unique=True),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.sampled_from([64, 80, 96, 128, 256]),
    st.sampled_from([1.0, 0.5]),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_norm_rotation_and_the_write(
    slots: list[int],
    heads: tuple[int, int],
    head_dim: int,
    rotated: float,
    norms: bool,
    dtype: torch.dtype,
) -> None:
    """All that is written is the twin's, and what is not stays; rows of padding, which have no slot, at the end."""
    slots = [*slots, -1, -1]
    count, (queries, kv_heads) = len(slots), heads
    qkv = normal(count, (queries + 2 * kv_heads) * head_dim, seed=1, dtype=dtype)
    angles = normal(count, int(head_dim * rotated) // 2, seed=2) * 3
    mapping = torch.tensor(slots, dtype=torch.int32)
    weights = [normal(head_dim, seed=seed, dtype=dtype) if norms else None for seed in (3, 4)]
    results = []
    for kernels in (KERNELS, TWINS):
        mine = qkv.clone()
        keys, values = (torch.full((3, 8, kv_heads * head_dim), 5.0, dtype=dtype) for _ in range(2))
        kernels.qk_norm_rope_write_kv(
            mine, angles.cos(), angles.sin(), mapping, keys, values, head_dim, weights[0], weights[1], 1e-6
        )
        results.append((mine[:, : queries * head_dim], keys, values))
    for got, want in zip(*results, strict=True):
        close(got, want, dtype)
    assert torch.equal(results[0][2], results[1][2]), "values are copied"


def latent_case(kernels: ReferenceKernels, case: Paged, rank: int, rows: tuple[int, int] | None = None) -> Tensor:
    out = torch.zeros(*case.q.shape[:2], rank, dtype=case.q.dtype)
    kernels.latent_attention(case.q, case.keys, case.tables, case.lengths, case.starts, case.scale, out, rows)
    return out


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(0, 9)), min_size=1, max_size=3),
    st.sampled_from([1, 4, 16, 20]),
    st.sampled_from([(32, 16), (48, 8)]),
    st.sampled_from([1, 16]),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_latent_attention(
    shapes: list[tuple[int, int]],
    heads: int,
    widths: tuple[int, int],
    block_size: int,
    split: bool,
    dtype: torch.dtype,
) -> None:
    """Ragged lengths, empty sequences, heads that do not fill a block; the second length is long enough for a split."""
    rank, rotary = widths
    lengths, new = [past + new for past, new in shapes] + [600], [new for _, new in shapes] + [1]
    case = Paged.make(lengths, new, heads, 1, rank + rotary, block_size, 1, dtype)
    kernels = WIDE if split else KERNELS
    expected = latent_case(TWINS, case, rank)
    close(latent_case(kernels, case, rank), expected, dtype)
    first = len(expected) // 2
    half = latent_case(kernels, case, rank, (first, len(expected)))
    close(half[first:], expected[first:], dtype)
    assert not half[:first].any(), "rows that were not asked for stay"


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(-1, 23), min_size=1, max_size=4, unique=True),
    st.sampled_from([1, 3]),
    st.sampled_from([(32, 16, 8), (40, 8, 24)]),
    st.sampled_from(DTYPES),
)
def test_the_latent_vectors_norm_rotation_and_write(
    slots: list[int], heads: int, widths: tuple[int, int, int], dtype: torch.dtype
) -> None:
    count, (rank, rotary, nope) = len(slots), widths
    q = normal(count, heads, nope + rotary, seed=1, dtype=dtype)
    kv, norm = normal(count, rank + rotary + 3, seed=2, dtype=dtype)[:, :-3], normal(rank, seed=3, dtype=dtype)
    angles, mapping = normal(count, rotary // 2, seed=4) * 3, torch.tensor(slots, dtype=torch.int32)
    results = []
    for kernels in (KERNELS, TWINS):
        cache, out = (
            torch.full(shape, 5.0, dtype=dtype) for shape in ((3, 8, rank + rotary), (count, heads, rank + rotary))
        )
        kernels.latent_rope_write(q, kv, angles.cos(), angles.sin(), mapping, norm, 1e-6, cache, out)
        results.append((cache, out))
    for got, want in zip(*results, strict=True):
        close(got, want, dtype)
    assert bool((results[0][1][:, :, :rank] == 5.0).all()), "the first dimensions are another kernel's"


@pytest.mark.parametrize("panels", [None, (1, 2)])
@pytest.mark.parametrize("rows", [0, 5])
def test_one_product_for_the_heads(rows: int, panels: tuple[int, int] | None) -> None:
    group = pack_group(TWINS, normal(3, 130, 16, seed=1))
    x = normal(rows, 3, 24, seed=2).flatten(0, 1)[:, :16]
    results = []
    for kernels in (KERNELS, TWINS):
        wide = torch.zeros(rows, 3, 140)
        kernels.grouped_linear(x, group, wide.flatten(0, 1)[:, :130], panels=panels)
        results.append(wide)
    close(results[0], results[1], torch.float32)
    assert bool(results[0].any()) == bool(rows)


def test_without_a_gpu_or_a_compiler_they_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KernelsError, match="they need --device cuda, not cpu"):
        choose("cpu", {"SEMIPD_KERNELS": "triton"})
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(KernelsError, match="a C compiler, and there is none here"):
        choose("cuda", {"SEMIPD_KERNELS": "triton"})
    twins = choose("cuda", {})
    assert twins.name == "reference" and "a C compiler, and there is none here" in twins.why
    assert "install gcc" in twins.shortfall, "said aloud"


def test_a_gpu_gets_them_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    device = type("Properties", (), {"multi_processor_count": 66})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: device)
    kernels = choose("cuda", {"CC": "gcc"})
    assert isinstance(kernels, TritonKernels) and kernels._num_sms == 66 and "66 SMs" in kernels.why
    monkeypatch.setitem(sys.modules, "semipd_engine.kernels.gpu", None)
    assert choose("cuda", {"CC": "gcc"}).name == "reference"
    with pytest.raises(KernelsError, match="Triton is not here"):
        choose("cuda", {"CC": "gcc", "SEMIPD_KERNELS": "triton"})


def test_a_gpu_that_cannot_be_used_is_named_before_kernels_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """`choose` asks the driver for the GPU's properties: a broken one would end the load without a reason."""

    def broken(*_: object) -> None:
        raise RuntimeError("CUDA driver initialization failed")

    card = SimpleNamespace(max_position_embeddings=64, dtype="bfloat16")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # of this process
    monkeypatch.setattr(loading, "read_card", lambda folder: card)
    monkeypatch.setattr(loading.devices, "resolve", lambda asked: loading.devices.GPU)
    for function in ("set_device", "get_device_properties"):
        monkeypatch.setattr(torch.cuda, function, broken)
    monkeypatch.setenv("CC", "gcc")
    with pytest.raises(ModelError, match="CUDA driver initialization failed") as error:
        loading.load(EngineOptions(model=Path("m"), run_dir=Path("r")), lambda percent: None)
    assert error.value.reason == "CUDAUnavailable"


def test_the_engine_imports_without_triton() -> None:
    script = (
        "import sys; sys.modules['triton'] = None; import semipd_engine.worker.attach, semipd_engine.resident.loading"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
