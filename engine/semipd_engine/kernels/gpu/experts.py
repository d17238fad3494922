"""Experts of a mixture: chosen, put in order, multiplied and summed up on the device. Triton; the host never waits.

Nothing that the host does depends on who was chosen: the grids follow from the batch's sizes alone, so a graph can be
captured. Rows of an expert are taken in tiles; how many tiles an expert fills each program reads from `starts` by
itself, and those behind the last tile have nothing to do. No row is copied, and no place is padded.

A row's bits depend on its own numbers and its experts' weights alone: tiles have one size for a decode step and for a
prompt, each sum runs over its inputs in one order, and no two programs add to one number.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from semipd_engine.kernels.signatures import RoutingRule

PLACES = 1024
"""Of one turn of `_arrange`."""
ROWS = 64
"""Of a tile. Fewer would read an expert's weights more often for a prompt; a decode step waits for memory anyway."""
COLUMNS = 64
INNER_BYTES = 128
"""Of a row of the weights in one turn of the loop."""
WIDTH = 1024
"""Columns of one program of `_combine`."""


@triton.jit
def _choose(
    logits,
    correction,
    experts,
    weights,
    logit_stride,
    scale,
    SIZE: tl.constexpr,
    SIZE_TILE: tl.constexpr,
    GROUPS: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    GROUPS_CHOSEN: tl.constexpr,
    CHOSEN: tl.constexpr,
    CHOSEN_TILE: tl.constexpr,
    SIGMOID: tl.constexpr,
    CORRECTS: tl.constexpr,
    NORMALISES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group, member = tl.arange(0, GROUP_TILE), tl.arange(0, SIZE_TILE)
    there = (group < GROUPS)[:, None] & (member < SIZE)[None, :]
    expert = group[:, None] * SIZE + member[None, :]
    logit = tl.load(logits + row * logit_stride + expert, mask=there, other=float("-inf"))
    if SIGMOID:
        score = 1.0 / (1.0 + tl.exp(-logit))
    else:
        score = tl.exp(logit - tl.max(tl.max(logit, axis=1), axis=0))
        score = score / tl.sum(tl.sum(score, axis=1), axis=0)
    choice = score
    if CORRECTS:
        choice = choice + tl.load(correction + expert, mask=there, other=0.0)
    # NaN is chosen first, and shows in the weights: an index there must be, whatever the numbers.
    choice = tl.where(choice == choice, choice, float("inf"))
    open_ = there
    if GROUPS > 1:
        choice = tl.where(there, choice, float("-inf"))
        value = tl.max(choice, axis=1)
        if SIGMOID:
            best = tl.min(tl.where(choice == value[:, None], member[None, :], SIZE_TILE), axis=1)
            value += tl.max(tl.where(member[None, :] == best[:, None], float("-inf"), choice), axis=1)
        closed = group < GROUPS
        for _ in range(GROUPS_CHOSEN):
            top = tl.max(tl.where(closed, value, float("-inf")), axis=0)
            found = tl.min(tl.where(closed & (value == top), group, GROUP_TILE), axis=0)
            closed = closed & (group != found)
        open_ = there & (closed == 0)[:, None]
    slot = tl.arange(0, CHOSEN_TILE)
    names = tl.zeros([CHOSEN_TILE], tl.int32)
    taken = tl.zeros([CHOSEN_TILE], tl.float32)
    for k in range(CHOSEN):
        top = tl.max(tl.max(tl.where(open_, choice, float("-inf")), axis=1), axis=0)
        found = tl.min(tl.min(tl.where(open_ & (choice == top), expert, GROUPS * SIZE), axis=1), axis=0)
        mine = there & (expert == found)
        names = tl.where(slot == k, found, names)
        taken = tl.where(slot == k, tl.sum(tl.sum(tl.where(mine, score, 0.0), axis=1), axis=0), taken)
        open_ = open_ & (expert != found)
    if NORMALISES:
        taken = taken / (tl.sum(taken, axis=0) + 1e-20)
    tl.store(experts + row * CHOSEN + slot, names, mask=slot < CHOSEN)
    tl.store(weights + row * CHOSEN + slot, taken * scale, mask=slot < CHOSEN)


@triton.jit(do_not_specialize=["places"])
def _arrange(experts, order, starts, places, BLOCK: tl.constexpr):
    """A program puts the places of its expert where they belong: behind those of all experts before it."""
    expert = tl.program_id(0)
    put = tl.zeros([], tl.int32)
    for begin in range(0, places, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        chosen = tl.load(experts + place, mask=place < places, other=0x7FFFFFFF)
        put += tl.sum((chosen < expert).to(tl.int32), axis=0)
    tl.store(starts + expert, put)
    for begin in range(0, places, BLOCK):
        place = begin + tl.arange(0, BLOCK)
        mine = tl.load(experts + place, mask=place < places, other=0x7FFFFFFF) == expert
        rank = tl.cumsum(mine.to(tl.int32), axis=0)
        tl.store(order + put + rank - 1, place, mask=mine)
        put += tl.sum(mine.to(tl.int32), axis=0)


def route(
    logits: Tensor,
    correction: Tensor | None,
    routing: RoutingRule,
    experts: Tensor,
    weights: Tensor,
    order: Tensor,
    starts: Tensor,
) -> None:
    """See `signatures.Kernels.route`; of equals the first is chosen."""
    rows, size = len(logits), routing.experts // routing.groups
    if rows:
        _choose[(rows,)](
            *(logits, logits if correction is None else correction, experts, weights),
            *(logits.stride(0), float(routing.scale)),
            SIZE=size,
            SIZE_TILE=triton.next_power_of_2(size),
            GROUPS=routing.groups,
            GROUP_TILE=triton.next_power_of_2(routing.groups),
            GROUPS_CHOSEN=routing.groups_chosen,
            CHOSEN=routing.chosen,
            CHOSEN_TILE=triton.next_power_of_2(routing.chosen),
            SIGMOID=routing.sigmoid,
            CORRECTS=correction is not None,
            NORMALISES=routing.normalise,
            num_warps=1,
        )
    _arrange[(routing.experts + 1,)](experts, order, starts, experts.numel(), BLOCK=PLACES)


@triton.jit(do_not_specialize=["factor", "experts"])
def _multiply_experts(
    x,
    weights,
    out,
    order,
    starts,
    x_stride,
    out_stride,
    inner,
    features,
    first_column,
    end_column,
    factor,
    experts,
    GATED: tl.constexpr,
    EXPERT_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    INNER: tl.constexpr,
):
    tile = tl.program_id(0)
    index = tl.arange(0, EXPERT_TILE)
    begins = tl.load(starts + index, mask=index < experts, other=0)
    tiles = tl.cdiv(tl.load(starts + index + 1, mask=index < experts, other=0) - begins, ROWS)
    expert = tl.sum((tl.cumsum(tiles, axis=0) <= tile).to(tl.int32), axis=0)
    if expert >= experts:
        return
    before = tl.sum(tl.where(index < expert, tiles, 0), axis=0)
    row = tl.load(starts + expert) + (tile - before) * ROWS + tl.arange(0, ROWS)
    mine = row < tl.load(starts + expert + 1)
    place = tl.load(order + row, mask=mine, other=0)
    column = first_column + tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < end_column
    source = x + (place // factor).to(tl.int64)[:, None] * x_stride
    matrix = weights + expert.to(tl.int64) * features * inner + column.to(tl.int64)[None, :] * inner
    up_matrix = matrix + (features // 2).to(tl.int64) * inner
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    up_total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, inner, INNER):
        at = begin + tl.arange(0, INNER)
        some = tl.load(source + at[None, :], mask=mine[:, None] & (at < inner)[None, :], other=0.0)
        there = (at < inner)[:, None] & inside[None, :]
        total = tl.dot(some, tl.load(matrix + at[:, None], mask=there, other=0.0), total, input_precision="ieee")
        if GATED:
            up = tl.load(up_matrix + at[:, None], mask=there, other=0.0)
            up_total = tl.dot(some, up, up_total, input_precision="ieee")
    if GATED:
        dtype = weights.dtype.element_ty
        gate = total.to(dtype).to(tl.float32)
        total = gate / (1.0 + tl.exp(-gate)) * up_total.to(dtype).to(tl.float32)
    where = out + place.to(tl.int64)[:, None] * out_stride + column[None, :]
    tl.store(where, total.to(out.dtype.element_ty), mask=mine[:, None] & inside[None, :])


def most_tiles(places: int, experts: int) -> int:
    """Tiles that so many places may fill, however they fall on the experts: each one's last may not be full."""
    return places // ROWS + min(places, experts)


def multiply(
    x: Tensor, weights: Tensor, out: Tensor, order: Tensor, starts: Tensor, columns: tuple[int, int], gated: bool
) -> None:
    """`signatures.Kernels.grouped_linear` with an order, and `grouped_gated_linear`: these columns of `out`.

    ``weights [G, out_features, in]``, contiguous.
    """
    experts, features, inner = weights.shape
    if not len(out):
        return
    _multiply_experts[(most_tiles(len(out), experts), triton.cdiv(columns[1] - columns[0], COLUMNS))](
        *(x, weights, out, order, starts, x.stride(0), out.stride(0), inner, features, *columns),
        *(len(out) // len(x), experts),
        GATED=gated,
        EXPERT_TILE=triton.next_power_of_2(experts),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        INNER=INNER_BYTES // x.itemsize,
        num_warps=4,
        num_stages=3,
    )


@triton.jit
def _combine(
    x, weights, out, shared, x_stride, out_stride, shared_stride, width, CHOSEN: tl.constexpr, SHARED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(CHOSEN):
        said = tl.load(x + (row * CHOSEN + k) * x_stride + column, mask=inside, other=0.0)
        total += tl.load(weights + row * CHOSEN + k) * said.to(tl.float32)
    if SHARED:
        total += tl.load(shared + row * shared_stride + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + column, total.to(out.dtype.element_ty), mask=inside)


def combine(x: Tensor, weights: Tensor, out: Tensor, shared: Tensor | None) -> None:
    """See `signatures.Kernels.combine`."""
    rows, width = out.shape
    if rows:
        other = out if shared is None else shared
        _combine[(rows, triton.cdiv(width, WIDTH))](
            *(x, weights, out, other, x.stride(0), out.stride(0), other.stride(0), width),
            CHOSEN=weights.shape[1],
            SHARED=shared is not None,
            BLOCK=WIDTH,
        )
