"""Causal attention over the paged cache, decode rows and chunks of prompts in one call. Triton; the host never waits.

A program takes a block of one sequence's rows with all query heads of one key head (their product fills the tile, and
each key is read once for the group), walks the positions that they may see, and keeps a running softmax in float32.
Which sequence it has it finds in `query_start_loc` by itself, so the grid depends on the batch's sizes alone and a
graph can be captured. Where few rows meet long contexts, the positions are split among programs, and a second kernel
joins their parts: split-KV. Source: the online softmax of Milakov and Gimelshein 2018; FlashAttention-2 and
Flash-Decoding.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 16
"""Fewest rows of a product on tensor cores."""
CHUNK_TILE = 64
WIDE_CHUNK_TILE = 32
"""Of heads of 256: 64 rows of them are more than an L4 or L40S has for a program."""
POSITIONS = 64
"""Of one turn of the loop."""
MOST_SPLITS = 16
POSITIONS_OF_A_SPLIT = 256
"""Fewest that are worth a program of their own."""
VARYING = ("sequences", "first_row", "end_row", "table_stride", "heads", "splits", "window")
"""What changes from step to step, or from model to model: Triton would compile each kernel anew where one of them is
1, or a multiple of 16, in the middle of a stream."""


@triton.jit
def _sequence_of(starts, sequences, block, ROWS: tl.constexpr):
    """Sequence s has the blocks from starts[s] // ROWS + s on: at least as many as its rows fill."""
    low, high = 0, sequences
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts + middle) // ROWS + middle <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit(do_not_specialize=VARYING)
def _attend(
    q,
    keys,
    values,
    tables,
    lengths,
    starts,
    out,
    sums,
    tops,
    scale,
    sequences,
    first_row,
    end_row,
    q_stride,
    out_stride,
    table_stride,
    block_size,
    width,
    heads,
    splits,
    window,
    GROUP: tl.constexpr,
    GROUP_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    WINDOWED: tl.constexpr,
    SPLIT: tl.constexpr,
):
    block, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    s = _sequence_of(starts, sequences, block, ROWS)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    begin_row = start + (block - start // ROWS - s) * ROWS
    if (begin_row >= end) | (begin_row >= end_row) | (begin_row + ROWS <= first_row):
        return
    length = tl.load(lengths + s)
    at = tl.arange(0, ROWS * GROUP_TILE)
    row, member = begin_row + at // GROUP_TILE, at % GROUP_TILE
    mine = (row < end) & (row >= first_row) & (row < end_row) & (member < GROUP)
    head = kv_head * GROUP + member
    position = length - end + row
    dims = tl.arange(0, DIM_TILE)
    real = dims < HEAD_DIM
    place = row.to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM + dims[None, :]
    query = tl.load(q + place, mask=mine[:, None] & real[None, :], other=0.0)

    visible_end = length - end + tl.minimum(begin_row + ROWS, end)
    visible_begin = 0
    if WINDOWED:
        visible_begin = tl.maximum(0, length - end + begin_row + 1 - window)
    tile_begin, tile_end = visible_begin // POSITIONS, tl.cdiv(visible_end, POSITIONS)
    if SPLIT:
        share = tl.cdiv(tile_end - tile_begin, splits)
        tile_begin += split * share
        tile_end = tl.minimum(tile_begin + share, tile_end)

    top = tl.full([ROWS * GROUP_TILE], float("-inf"), tl.float32)
    total = tl.zeros([ROWS * GROUP_TILE], tl.float32)
    result = tl.zeros([ROWS * GROUP_TILE, DIM_TILE], tl.float32)
    for tile in range(tile_begin, tile_end):
        seen = tile * POSITIONS + tl.arange(0, POSITIONS)
        there = seen < visible_end
        entry = tl.load(tables + s * table_stride + seen // block_size, mask=there, other=0).to(tl.int64)
        entry = (entry * block_size + seen % block_size) * width + kv_head * HEAD_DIM
        key = tl.load(keys + entry[None, :] + dims[:, None], mask=there[None, :] & real[:, None], other=0.0)
        scores = tl.dot(query, key, input_precision="ieee") * scale
        visible = (seen[None, :] <= position[:, None]) & there[None, :]
        if WINDOWED:
            visible = visible & (seen[None, :] > position[:, None] - window)
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
        weights = tl.exp(scores - finite[:, None])
        fade = tl.exp(top - finite)
        value = tl.load(values + entry[:, None] + dims[None, :], mask=there[:, None] & real[None, :], other=0.0)
        total = total * fade + tl.sum(weights, axis=1)
        result = result * fade[:, None] + tl.dot(weights.to(value.dtype), value, input_precision="ieee")
        top = higher

    if SPLIT:
        part = (row.to(tl.int64) * heads + head) * splits + split
        tl.store(sums + part[:, None] * HEAD_DIM + dims[None, :], result, mask=mine[:, None] & real[None, :])
        tl.store(tops + part * 2, top, mask=mine)
        tl.store(tops + part * 2 + 1, total, mask=mine)
    else:
        place = row.to(tl.int64)[:, None] * out_stride + head[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + place, (result / total[:, None]).to(query.dtype), mask=mine[:, None] & real[None, :])


@triton.jit(do_not_specialize=VARYING)
def _join(
    sums,
    tops,
    starts,
    out,
    sequences,
    first_row,
    out_stride,
    out_head_stride,
    heads,
    splits,
    HEAD_DIM: tl.constexpr,
    DIM_TILE: tl.constexpr,
    SPLIT_TILE: tl.constexpr,
):
    row, head = first_row + tl.program_id(0), tl.program_id(1)
    if row >= tl.load(starts + sequences):
        return  # padding
    split, dims = tl.arange(0, SPLIT_TILE), tl.arange(0, DIM_TILE)
    part = (row.to(tl.int64) * heads + head) * splits + split
    there = split < splits
    top = tl.load(tops + part * 2, mask=there, other=float("-inf"))
    total = tl.load(tops + part * 2 + 1, mask=there, other=0.0)
    weights = tl.exp(top - tl.max(top, axis=0))
    inside = there[:, None] & (dims < HEAD_DIM)[None, :]
    parts = tl.load(sums + part[:, None] * HEAD_DIM + dims[None, :], mask=inside, other=0.0)
    result = tl.sum(parts * weights[:, None], axis=0) / tl.sum(total * weights, axis=0)
    place = out + row.to(tl.int64) * out_stride + head * out_head_stride + dims
    tl.store(place, result.to(out.dtype.element_ty), mask=dims < HEAD_DIM)


def paged_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    out: Tensor,
    rows: tuple[int, int],
    window: int,
    num_sms: int,
) -> None:
    """See `signatures.Kernels.paged_attention`. `num_sms`: those that this process may use, for which work is split."""
    count, heads, head_dim = q.shape
    _, block_size, width = key_cache.shape
    kv_heads, sequences = width // head_dim, len(seq_lens)
    if not count or not sequences or rows[0] >= rows[1]:
        return
    group = heads // kv_heads
    group_tile, dim_tile = triton.next_power_of_2(group), max(TILE, triton.next_power_of_2(head_dim))
    chunk_tile = CHUNK_TILE if dim_tile <= 128 else WIDE_CHUNK_TILE
    tile_rows = max(1, (TILE if count <= 2 * sequences else chunk_tile) // group_tile)
    group_tile = max(group_tile, TILE // tile_rows)
    blocks = count // tile_rows + sequences
    splits = splits_for(blocks * kv_heads, block_tables.shape[1] * block_size, num_sms)
    sums = tops = out
    if splits > 1:
        sums = torch.empty(count, heads, splits, head_dim, dtype=torch.float32, device=q.device)
        tops = torch.empty(count, heads, splits, 2, dtype=torch.float32, device=q.device)
    _attend[(blocks, kv_heads, splits)](
        *(q, key_cache, value_cache, block_tables, seq_lens, query_start_loc, out, sums, tops, scale, sequences),
        *(rows[0], rows[1], q.stride(0), out.stride(0), block_tables.stride(0), block_size, width),
        *(heads, splits, window),
        GROUP=group,
        GROUP_TILE=group_tile,
        ROWS=tile_rows,
        POSITIONS=POSITIONS,
        HEAD_DIM=head_dim,
        DIM_TILE=dim_tile,
        WINDOWED=window > 0,
        SPLIT=splits > 1,
        num_warps=8 if tile_rows * group_tile * dim_tile >= 4096 else 4,  # docs/gpu/kernels.md: none of them spills
        num_stages=2,
    )
    if splits > 1:
        _join[(rows[1] - rows[0], heads)](
            *(sums, tops, query_start_loc, out, sequences, rows[0], out.stride(0), head_dim, heads, splits),
            HEAD_DIM=head_dim,
            DIM_TILE=dim_tile,
            SPLIT_TILE=MOST_SPLITS,
        )


def splits_for(programs: int, positions: int, num_sms: int) -> int:
    """Programs that share one block's positions: as many as fill the SMs twice, while each has enough to do."""
    wanted = 2 * num_sms // max(1, programs)
    return max(1, min(wanted, MOST_SPLITS, positions // POSITIONS_OF_A_SPLIT))
