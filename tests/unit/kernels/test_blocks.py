"""Experts and latent attention: the twins against plain formulas in float64, the compiled kernels against the twins, at
each level of this CPU; a row's bits are its own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.kernels.cases import DTYPES, LEVELS, TWINS, Paged, close, kernels, normal, pack_group
from torch import Tensor

from semipd_engine.cards.blocks import Routing
from semipd_engine.kernels import Kernels

pytestmark = pytest.mark.unit
ALL = [("reference", torch.float32), *((level, dtype) for level in LEVELS for dtype in DTYPES)]
ROUTINGS = [
    Routing(8, 3, normalise=True),
    Routing(33, 6, scale=2.5),
    Routing(16, 4, groups=4, groups_chosen=2, scale=1.5),
    Routing(32, 5, sigmoid=True, normalise=True, scale=2.5, groups=8, groups_chosen=3),
]


def named(level: str) -> Kernels:
    return TWINS if level == "reference" else kernels(level)


def route(room: Kernels, logits: Tensor, correction: Tensor | None, rule: Routing) -> tuple[Tensor, ...]:
    rows, chosen = len(logits), rule.chosen
    experts, order = torch.empty(rows, chosen, dtype=torch.int32), torch.empty(rows * chosen, dtype=torch.int32)
    weights, starts = torch.empty(rows, chosen), torch.empty(rule.experts + 1, dtype=torch.int32)
    room.route(logits, correction, rule, experts, weights, order, starts)
    return experts, weights, order, starts


@pytest.mark.parametrize("level", ["reference", *LEVELS])
@pytest.mark.parametrize("rule", ROUTINGS)
@pytest.mark.parametrize("rows", [1, 40])
def test_route(level: str, rule: Routing, rows: int) -> None:
    logits = normal(rows, rule.experts, seed=rows) * 2
    correction = normal(rule.experts, seed=9) if rule.sigmoid else None
    experts, weights, order, starts = route(named(level), logits, correction, rule)
    scores = logits.double().sigmoid() if rule.sigmoid else logits.double().softmax(-1)
    for row in range(rows):
        choice = scores[row] if correction is None else scores[row] + correction
        size = rule.experts // rule.groups
        groups = choice.view(rule.groups, size).sort(descending=True).values
        value = groups[:, 0] + groups[:, 1] if rule.sigmoid else groups[:, 0]
        best = set(value.sort(descending=True).indices[: rule.groups_chosen].tolist())
        allowed = [e for e in range(rule.experts) if e // size in best]
        taken = sorted(allowed, key=lambda e: -float(choice[e]))[: rule.chosen]
        assert experts[row].tolist() == taken
        expected = scores[row][taken]
        close(weights[row], (expected / expected.sum() if rule.normalise else expected) * rule.scale, torch.float32)
    places = experts.flatten().tolist()
    assert order.tolist() == sorted(range(len(places)), key=lambda i: (places[i], i))
    assert starts.tolist() == [sum(e < expert for e in places) for expert in range(rule.experts + 1)]


@pytest.mark.parametrize(("level", "dtype"), ALL)
@pytest.mark.parametrize("each", [1, 3])
def test_products_take_each_rows_matrix(level: str, dtype: torch.dtype, each: int) -> None:
    """Also matrices of odd sizes, groups that nobody takes, and some that more take than fit into a tile, or two."""
    room, rows = named(level), 60
    x = normal(rows if each == 3 else 3 * rows, 70, seed=1, dtype=dtype)
    weights = (normal(6, 330, 70, seed=2) / 8).to(dtype)
    group = pack_group(room, weights)
    experts = torch.tensor([[0, 2, 5], [2, 3, 5], [5, 2, 0]] * 20, dtype=torch.int32).flatten()
    order = experts.argsort(stable=True).to(torch.int32)
    starts = torch.tensor([int((experts < e).sum()) for e in range(7)], dtype=torch.int32)
    out = torch.full((3 * rows, 330), -1.0)
    room.grouped_linear(x, group, out, order, starts, (0, 1))
    assert (out[:, 64:] == -1).all()
    room.grouped_linear(x, group, out, order, starts, (1, 6))
    expected = torch.stack([x[i // each].double() @ weights[e].double().T for i, e in enumerate(experts.tolist())])
    close(out, expected, torch.float32)
    if level != "reference":  # alone: equal bits
        for place in (0, 31, 178):
            lone = torch.empty(1, 330)
            bounds = torch.tensor([int(experts[place] < e) for e in range(7)], dtype=torch.int32)
            taken = x[place // each : place // each + 1]
            room.grouped_linear(taken, group, lone, torch.zeros(1, dtype=torch.int32), bounds)
            assert torch.equal(lone[0], out[place])


@pytest.mark.parametrize(("level", "dtype"), ALL)
@pytest.mark.parametrize("rows", [2, 20])
def test_products_of_heads(level: str, dtype: torch.dtype, rows: int) -> None:
    """Every sixth row is of one head; rows lie in a wider buffer, fewer or more than fill a tile."""
    room, x = named(level), normal(6 * rows, 70, seed=1, dtype=dtype)
    weights = (normal(6, 330, 70, seed=2) / 8).to(dtype)
    group = pack_group(room, weights)
    heads = torch.full((6 * rows, 600), -1.0, dtype=dtype)
    room.grouped_linear(x, group, heads[:, 100:430])
    expected = torch.stack([x[i].double() @ weights[i % 6].double().T for i in range(6 * rows)])
    close(heads[:, 100:430], expected, dtype)
    assert (heads[:, :100] == -1).all() and (heads[:, 430:] == -1).all()
    if level != "reference":  # alone: equal bits
        for row in (0, rows - 1):
            lone = torch.empty(6, 330, dtype=dtype)
            room.grouped_linear(x[6 * row : 6 * row + 6], group, lone)
            assert torch.equal(lone, heads[6 * row : 6 * row + 6, 100:430])


@pytest.mark.parametrize(("level", "dtype"), ALL)
def test_combine(level: str, dtype: torch.dtype) -> None:
    x, weights, shared = normal(21, 90, seed=1, dtype=dtype), normal(7, 3, seed=2), normal(7, 90, seed=3, dtype=dtype)
    out = torch.empty(7, 90, dtype=dtype)
    expected = torch.einsum("tk,tkw->tw", weights.double(), x.view(7, 3, 90).double())
    for rest in (None, shared):
        named(level).combine(x, weights, out, rest)
        close(out, expected if rest is None else expected + shared.double(), dtype)


@pytest.mark.parametrize(("level", "dtype"), ALL)
def test_latent_rope_write(level: str, dtype: torch.dtype) -> None:
    rows, heads, nope, rank, rotary = 9, 3, 24, 40, 16
    q, kv = normal(rows, heads, nope + rotary, seed=1, dtype=dtype), normal(rows, rank + rotary, seed=2, dtype=dtype)
    angles, norm = normal(rows, rotary // 2, seed=3), normal(rank, seed=4, dtype=dtype)
    slots = torch.tensor([5, -1, 0, 17, 3, 30, 31, 12, 8], dtype=torch.int32)
    cache, out = torch.full((4, 8, rank + rotary), -1.0, dtype=dtype), torch.full((rows, heads, 99), -1.0, dtype=dtype)
    place = out[:, :, : rank + rotary]
    named(level).latent_rope_write(q, kv, angles.cos(), angles.sin(), slots, norm, 1e-6, cache, place)

    def turned(x: Tensor, row: int) -> Tensor:
        first, second, cos, sin = *x.double().chunk(2, -1), angles[row].double().cos(), angles[row].double().sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)

    for row, slot in enumerate(slots.tolist()):
        close(place[row, :, rank:], turned(q[row, :, nope:], row), dtype)
        if slot >= 0:
            low = kv[row, :rank].double()
            normed = low / (low.square().mean() + 1e-6).sqrt() * norm.double()
            entry = cache.view(-1, rank + rotary)[slot]
            close(entry[:rank], normed, dtype)
            close(entry[rank:], turned(kv[row, rank:], row), dtype)
    untouched = [slot for slot in range(32) if slot not in slots.tolist()]
    assert (cache.view(-1, rank + rotary)[untouched] == -1).all()
    assert (place[:, :, :rank] == -1).all() and (out[:, :, rank + rotary :] == -1).all()


def attend(room: Kernels, case: Paged, rank: int, rows: tuple[int, int] | None = None) -> Tensor:
    out = torch.zeros(*case.q.shape[:2], rank, dtype=case.q.dtype)
    room.latent_attention(case.q, case.keys, case.tables, case.lengths, case.starts, case.scale, out, rows)
    return out


@pytest.mark.parametrize(("level", "dtype"), ALL)
@pytest.mark.parametrize("widths", [(48, 32), (80, 64), (576, 512), (50, 30)])
@settings(max_examples=2)
@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 63, 64, 65, 140]), st.sampled_from([0, 1, 2, 17, 33])), min_size=1, max_size=3
    ),
    st.sampled_from([1, 3, 40]),
)
def test_latent_attention(
    level: str, dtype: torch.dtype, widths: tuple[int, int], sizes: list[tuple[int, int]], heads: int
) -> None:
    lengths, new = [before + rows for before, rows in sizes], [rows for _, rows in sizes]
    (width, rank), room = widths, named(level)
    case = Paged.make(lengths, new, heads, 1, width, 16, 3, dtype)
    case = Paged(case.q, case.keys, case.keys, case.tables, case.lengths, case.starts, case.scale)
    out = attend(room, case, rank)
    close(out, case.expected()[:, :, :rank], dtype)
    total = len(case.q)
    if level != "reference" and total > 1 and width != 50:  # cut: equal bits
        first, second = attend(room, case, rank, (0, total // 2)), attend(room, case, rank, (total // 2, total))
        assert torch.equal(first + second, out)
