"""Experts on a GPU: chosen, arranged, multiplied and summed up as the twin and float64 say, under Triton's interpreter.

In float32 and float16, as `test_gpu`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from tests.unit.kernels.cases import TOLERANCE, normal, pack_group
from torch import Tensor

from semipd_engine.cards.blocks import Routing
from semipd_engine.kernels import Kernels, ReferenceKernels
from semipd_engine.kernels.gpu import TritonKernels, experts

pytestmark = [
    pytest.mark.unit,
    pytest.mark.filterwarnings("ignore:invalid value encountered in"),  # rows that are no numbers
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered"),
]
DTYPES = (torch.float32, torch.float16)
TWINS, KERNELS = ReferenceKernels(), TritonKernels(num_sms=1)
LOOSE = TOLERANCE | {torch.float16: 2e-3}
RULES = {
    "Qwen3": Routing(20, 8, normalise=True),
    "V2-Lite": Routing(16, 6),
    "V2": Routing(15, 4, scale=16.0, groups=5, groups_chosen=3),
    "V3": Routing(24, 6, sigmoid=True, normalise=True, scale=2.5, groups=4, groups_chosen=2),
    "odd": Routing(7, 3),
    "one": Routing(1, 1),
}
"""As those models choose, from fewer experts."""


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few rows fill some, and a sum takes several turns."""
    monkeypatch.setattr(experts, "ROWS", 16)
    monkeypatch.setattr(experts, "COLUMNS", 32)
    monkeypatch.setattr(experts, "INNER_BYTES", 64)


@pytest.fixture
def products_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter multiplies tiles with numpy's BLAS, and on some CPUs a row's bits hang there on where it lies in
    its tile. A GPU's do not."""
    from triton.runtime import interpreter  # type: ignore[import-untyped]

    def create_dot(builder: Any, a: Any, b: Any, sums: Any, *_: Any) -> Any:
        of = sums.data.dtype
        product = np.einsum("ik,kj->ij", a.data.astype(of), b.data.astype(of))
        return interpreter.TensorHandle(product + sums.data, sums.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


CLOSEST = 1e-6
"""Scores that lie closer, by their size, may be taken either way: both sides round."""


def close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=LOOSE[dtype], atol=LOOSE[dtype])


def route(room: Kernels, logits: Tensor, correction: Tensor | None, rule: Routing) -> tuple[Tensor, ...]:
    rows, chosen = len(logits), rule.chosen
    taken, order = torch.full((rows, chosen), -7, dtype=torch.int32), torch.full((rows * chosen,), -7).int()
    weights, starts = torch.full((rows, chosen), -7.0), torch.full((rule.experts + 1,), -7).int()
    room.route(logits, correction, rule, taken, weights, order, starts)
    return taken, weights, order, starts


def told_apart(logits: Tensor, correction: Tensor | None, rule: Routing) -> bool:
    """Are there no two scores, nor groups, so close that rounding decides?"""
    scores = logits.double().sigmoid() if rule.sigmoid else logits.double().softmax(-1)
    choice = scores if correction is None else scores + correction
    grouped = choice.unflatten(1, (rule.groups, -1))
    groups = grouped.topk(2).values.sum(-1) if rule.sigmoid else grouped.amax(-1)
    ordered = [one.sort(dim=-1).values for one in (choice, groups)]
    return all(bool((one.diff() > CLOSEST * (one[:, 1:] if correction is None else 1)).all()) for one in ordered)


@settings(max_examples=4)
@example(rows=0, seed=0)
@given(st.integers(0, 3), st.integers(0, 1000))
@pytest.mark.parametrize("name", RULES)
def test_each_row_has_its_twins_experts_in_the_twins_order(name: str, rows: int, seed: int) -> None:
    rule = RULES[name]
    logits = normal(rows, rule.experts + 3, seed=seed)[:, :-3] * 2
    correction = normal(rule.experts, seed=seed + 1) if rule.sigmoid else None
    assume(told_apart(logits, correction, rule))
    mine, twins = route(KERNELS, logits, correction, rule), route(TWINS, logits, correction, rule)
    for index in (0, 2, 3):
        assert torch.equal(mine[index], twins[index])
    close(mine[1], twins[1], torch.float32)


def test_more_places_than_a_turn_takes_are_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "PLACES", 16)
    logits = normal(29, 7, seed=3)
    for mine, twins in zip(*(route(room, logits, None, RULES["odd"]) for room in (KERNELS, TWINS)), strict=True):
        close(mine, twins, torch.float32)


def test_of_equals_the_first_is_chosen() -> None:
    taken, weights, order, starts = route(KERNELS, torch.zeros(2, 7), None, RULES["odd"])
    assert taken.tolist() == [[0, 1, 2]] * 2 and order.tolist() == [0, 3, 1, 4, 2, 5]
    assert starts.tolist() == [0, 2, 4, 6, 6, 6, 6, 6]
    close(weights, torch.full((2, 3), 1 / 7), torch.float32)


@pytest.mark.parametrize("name", ["V2-Lite", "V2", "V3"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_points_at_experts_all_the_same(name: str, value: float) -> None:
    """A step of a broken model must not read beyond its weights; its neighbours see nothing of it."""
    rule = RULES[name]
    logits = normal(3, rule.experts, seed=1)
    correction = normal(rule.experts, seed=2) if rule.sigmoid else None
    alone = route(KERNELS, logits[:1].clone(), correction, rule)
    logits[1] = value
    logits[2, rule.experts // 2] = value
    taken, weights, order, starts = route(KERNELS, logits, correction, rule)
    assert all(0 <= expert < rule.experts for expert in taken.flatten().tolist())
    assert all(len(set(row)) == rule.chosen for row in taken.tolist())
    assert sorted(order.tolist()) == list(range(3 * rule.chosen)) and int(starts[-1]) == 3 * rule.chosen
    assert torch.equal(taken[0], alone[0][0]) and torch.equal(weights[0], alone[1][0])
    if value != value:
        assert bool(weights[1].isnan().all())


def placed(counts: list[int], seed: int) -> tuple[Tensor, Tensor]:
    """Order and starts of so many places of each expert, in no order."""
    taken = torch.tensor([e for e, count in enumerate(counts) for _ in range(count)], dtype=torch.int32)
    taken = taken[torch.randperm(len(taken), generator=torch.Generator().manual_seed(seed))]
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    return taken.argsort(stable=True).int(), starts


COUNTS = st.one_of(
    st.lists(st.sampled_from([0, 0, 1, 2, 3, 15, 16, 17, 31, 33]), min_size=1, max_size=5),
    st.tuples(st.integers(0, 3), st.sampled_from([1, 16, 50])).map(
        lambda one: [one[1] * (e == one[0]) for e in range(4)]
    ),
)
"""Of places: ragged, around a tile's edges, nobody's; and one expert that has them all."""


@settings(max_examples=16)
@given(COUNTS, st.sampled_from([1, 3]), st.sampled_from([7, 32, 70]), st.booleans(), st.sampled_from(DTYPES))
def test_products_take_each_places_expert(
    counts: list[int], each: int, width: int, gated: bool, dtype: torch.dtype
) -> None:
    """Against float64. What nobody takes is never read: it is not a number."""
    counts = [*counts, -sum(counts) % each]
    order, starts = placed(counts, seed=1)
    places, inner = int(starts[-1]), 45
    x = normal(places // each, inner + 3, seed=2, dtype=dtype)[:, :-3]
    weights = (normal(len(counts), 2 * width if gated else width, inner, seed=3) / 4).to(dtype)
    weights[[e for e, count in enumerate(counts) if not count]] = torch.nan
    out = torch.full((places, width + 2), 7.0, dtype=dtype)
    product = KERNELS.grouped_gated_linear if gated else KERNELS.grouped_linear
    product(x, pack_group(TWINS, weights), out[:, :-2], order, starts)
    assert bool((out[:, -2:] == 7.0).all())
    expected = torch.zeros(places, width, dtype=torch.float64)
    for e in range(len(counts)):
        mine = order[int(starts[e]) : int(starts[e + 1])].long()
        said = x[mine // each].double() @ weights[e].double().T
        expected[mine] = F.silu(said[:, :width]) * said[:, width:] if gated else said
    close(out[:, :-2], expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gated", [False, True])
def test_products_are_the_twins_to_the_rounding(gated: bool, dtype: torch.dtype) -> None:
    """Of small whole numbers, whose sums are exact: what is rounded, and where, is all that may differ."""
    order, starts = placed([5, 0, 33, 16], seed=4)
    x = (normal(18, 45, seed=5) * 2).round().to(dtype)
    group = pack_group(TWINS, (normal(4, 64, 45, seed=6) * 2).round().to(dtype))
    mine, twins, both = (
        torch.zeros(54, width, dtype=dtype) for width in (32 if gated else 64, 32 if gated else 64, 64)
    )
    TWINS.grouped_linear(x, group, both, order, starts)
    if gated:
        KERNELS.grouped_gated_linear(x, group, mine, order, starts)
        TWINS.silu_mul(both, twins)
        torch.testing.assert_close(mine, twins, rtol=2e-3 if dtype == torch.float16 else 1e-6, atol=1e-6)
    else:
        KERNELS.grouped_linear(x, group, mine, order, starts)
        assert torch.equal(mine, both)


def test_some_panels_of_the_columns() -> None:
    order, starts = placed([3, 0, 20], seed=1)
    x, group = normal(23, 16, seed=2), pack_group(TWINS, normal(3, 260, 16, seed=3))
    whole, part = torch.zeros(23, 130), torch.full((23, 130), 7.0)
    KERNELS.grouped_gated_linear(x, group, whole, order, starts)
    KERNELS.grouped_gated_linear(x, group, part, order, starts, (1, 2))
    assert torch.equal(part[:, 64:128], whole[:, 64:128])
    assert bool((part[:, :64] == 7.0).all() and (part[:, 128:] == 7.0).all())
    KERNELS.grouped_gated_linear(x, group, part, order, starts, (0, 3))
    assert torch.equal(part, whole)


@pytest.mark.usefixtures("products_row_by_row")
@pytest.mark.parametrize("name", ["V2-Lite", "V3"])
def test_a_row_alone_has_the_bits_that_it_has_in_a_crowd(name: str) -> None:
    """Through all four: chosen, multiplied twice, summed up."""
    rule, hidden, width = RULES[name], 45, 32
    x, router = normal(19, hidden, seed=1), normal(rule.experts, hidden, seed=2) / 4
    up = pack_group(TWINS, normal(rule.experts, 2 * width, hidden, seed=3) / 4)
    down = pack_group(TWINS, normal(rule.experts, hidden, width, seed=4) / 4)
    logits = x.double() @ router.double().T  # of one row, whatever the others are

    def block(rows: Tensor) -> Tensor:
        taken, weights, order, starts = route(KERNELS, logits[rows].float(), None, rule)
        inner, said = torch.empty(taken.numel(), width), torch.empty(taken.numel(), hidden)
        KERNELS.grouped_gated_linear(x[rows], up, inner, order, starts)
        KERNELS.grouped_linear(inner, down, said, order, starts)
        out = torch.empty(len(rows), hidden)
        KERNELS.combine(said, weights, out, x[rows])
        return out

    crowd = block(torch.arange(19))
    for rows in ([0], [18], [5, 3, 5]):
        assert torch.equal(block(torch.tensor(rows)), crowd[rows]), rows


@settings(max_examples=10)
@given(
    st.integers(0, 4),
    st.sampled_from([1, 6, 8]),
    st.sampled_from([1, 100, 1030]),
    st.booleans(),
    st.sampled_from(DTYPES),
)
def test_what_they_say_is_weighed_and_summed_up(
    rows: int, chosen: int, width: int, shared: bool, dtype: torch.dtype
) -> None:
    x, weights = normal(rows * chosen, width, seed=1, dtype=dtype), normal(rows, chosen, seed=2)
    rest = normal(rows, width + 2, seed=3, dtype=dtype)[:, :-2] if shared else None
    mine, twins = (torch.empty(rows, width, dtype=dtype) for _ in range(2))
    KERNELS.combine(x, weights, mine, rest)
    TWINS.combine(x, weights, twins, rest)
    close(mine, twins, dtype)


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6))
def test_there_are_tiles_enough_however_rows_fall(counts: list[int]) -> None:
    filled = sum(-(-count // experts.ROWS) for count in counts)
    most = experts.most_tiles(sum(counts), len(counts))
    assert filled <= most <= sum(counts) // experts.ROWS + len(counts)


def test_no_rows_are_nobodys() -> None:
    taken, _, order, starts = route(KERNELS, torch.empty(0, 16), None, RULES["V2-Lite"])
    assert taken.numel() == order.numel() == 0 and not starts.any()
    group = pack_group(TWINS, normal(16, 32, 16, seed=1))
    KERNELS.grouped_linear(torch.empty(0, 16), group, torch.empty(0, 32), order, starts)
    KERNELS.combine(torch.empty(0, 32), torch.empty(0, 6), torch.empty(0, 32))
