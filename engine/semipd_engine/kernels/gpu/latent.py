"""Latent attention over the paged cache: all heads share one vector for a position, keys and values in one.

A program takes a few rows with a block of their heads, reads each cached vector once, and uses its first dimensions
twice: as keys and as values. Blocks, splits and their joining are those of `kernels.gpu.attention`. The rotated part
is a product of its own, so that no tile is wider than the rank. Source: DeepSeek-V2 (arXiv 2405.04434), absorbed form.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from semipd_engine.kernels.gpu.attention import MOST_SPLITS, TILE, VARYING, _join, _sequence_of, splits_for

POSITIONS = 32
"""Of one turn of the loop: a tile of 32 vectors of 512 numbers is half of what an SM has for a program."""
ROWS = 1
"""With all heads of a head block. Two of them spill registers, and are more than an L4 or L40S has room for."""


@triton.jit(do_not_specialize=VARYING)
def _attend_latent(
    q,
    cache,
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
    head_stride,
    out_stride,
    out_head_stride,
    table_stride,
    block_size,
    heads,
    splits,
    HEAD_TILE: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    RANK: tl.constexpr,
    ROTARY: tl.constexpr,
    RANK_TILE: tl.constexpr,
    ROTARY_TILE: tl.constexpr,
    SPLIT: tl.constexpr,
):
    block, head_block, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    s = _sequence_of(starts, sequences, block, ROWS)
    start, end = tl.load(starts + s), tl.load(starts + s + 1)
    begin_row = start + (block - start // ROWS - s) * ROWS
    if (begin_row >= end) | (begin_row >= end_row) | (begin_row + ROWS <= first_row):
        return
    length = tl.load(lengths + s)
    at = tl.arange(0, ROWS * HEAD_TILE)
    row, head = begin_row + at // HEAD_TILE, head_block * HEAD_TILE + at % HEAD_TILE
    mine = (row < end) & (row >= first_row) & (row < end_row) & (head < heads)
    position = length - end + row
    dims, turned = tl.arange(0, RANK_TILE), tl.arange(0, ROTARY_TILE)
    real, real_turned = dims < RANK, turned < ROTARY
    place = row.to(tl.int64)[:, None] * q_stride + head[:, None] * head_stride
    query = tl.load(q + place + dims[None, :], mask=mine[:, None] & real[None, :], other=0.0)
    rotated = tl.load(q + place + RANK + turned[None, :], mask=mine[:, None] & real_turned[None, :], other=0.0)

    visible_end = length - end + tl.minimum(begin_row + ROWS, end)
    tile_begin, tile_end = 0, tl.cdiv(visible_end, POSITIONS)
    if SPLIT:
        share = tl.cdiv(tile_end, splits)
        tile_begin = split * share
        tile_end = tl.minimum(tile_begin + share, tile_end)

    top = tl.full([ROWS * HEAD_TILE], float("-inf"), tl.float32)
    total = tl.zeros([ROWS * HEAD_TILE], tl.float32)
    result = tl.zeros([ROWS * HEAD_TILE, RANK_TILE], tl.float32)
    for tile in range(tile_begin, tile_end):
        seen = tile * POSITIONS + tl.arange(0, POSITIONS)
        there = seen < visible_end
        entry = tl.load(tables + s * table_stride + seen // block_size, mask=there, other=0).to(tl.int64)
        entry = (entry * block_size + seen % block_size) * (RANK + ROTARY)
        vector = tl.load(cache + entry[:, None] + dims[None, :], mask=there[:, None] & real[None, :], other=0.0)
        turn = tl.load(
            cache + entry[None, :] + RANK + turned[:, None], mask=there[None, :] & real_turned[:, None], other=0.0
        )
        scores = tl.dot(query, tl.trans(vector), input_precision="ieee")
        scores = (scores + tl.dot(rotated, turn, input_precision="ieee")) * scale
        visible = (seen[None, :] <= position[:, None]) & there[None, :]
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # nothing seen yet
        weights = tl.exp(scores - finite[:, None])
        fade = tl.exp(top - finite)
        total = total * fade + tl.sum(weights, axis=1)
        result = result * fade[:, None] + tl.dot(weights.to(vector.dtype), vector, input_precision="ieee")
        top = higher

    if SPLIT:
        part = (row.to(tl.int64) * heads + head) * splits + split
        tl.store(sums + part[:, None] * RANK + dims[None, :], result, mask=mine[:, None] & real[None, :])
        tl.store(tops + part * 2, top, mask=mine)
        tl.store(tops + part * 2 + 1, total, mask=mine)
    else:
        place = row.to(tl.int64)[:, None] * out_stride + head[:, None] * out_head_stride + dims[None, :]
        tl.store(out + place, (result / total[:, None]).to(query.dtype), mask=mine[:, None] & real[None, :])


def latent_attention(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    scale: float,
    out: Tensor,
    rows: tuple[int, int],
    num_sms: int,
) -> None:
    """See `signatures.Kernels.latent_attention`."""
    count, heads, width = q.shape
    rank, sequences, block_size = out.shape[-1], len(seq_lens), cache.shape[1]
    if not count or not sequences or rows[0] >= rows[1]:
        return
    head_tile = TILE
    blocks, head_blocks = count // ROWS + sequences, triton.cdiv(heads, head_tile)
    splits = splits_for(blocks * head_blocks, block_tables.shape[1] * block_size, num_sms)
    sums = tops = out
    if splits > 1:
        sums = torch.empty(count, heads, splits, rank, dtype=torch.float32, device=q.device)
        tops = torch.empty(count, heads, splits, 2, dtype=torch.float32, device=q.device)
    _attend_latent[(blocks, head_blocks, splits)](
        *(q, cache, block_tables, seq_lens, query_start_loc, out, sums, tops, scale, sequences, rows[0], rows[1]),
        *(q.stride(0), q.stride(1), out.stride(0), out.stride(1), block_tables.stride(0), block_size),
        *(heads, splits),
        HEAD_TILE=head_tile,
        ROWS=ROWS,
        POSITIONS=POSITIONS,
        RANK=rank,
        ROTARY=width - rank,
        RANK_TILE=max(TILE, triton.next_power_of_2(rank)),
        ROTARY_TILE=max(TILE, triton.next_power_of_2(width - rank)),
        SPLIT=splits > 1,
        num_warps=8,
        num_stages=1,
    )
    if splits > 1:
        _join[(rows[1] - rows[0], heads)](
            *(sums, tops, query_start_loc, out, sequences, rows[0], out.stride(0), out.stride(1), heads, splits),
            HEAD_DIM=rank,
            DIM_TILE=triton.next_power_of_2(rank),
            SPLIT_TILE=MOST_SPLITS,
        )


@triton.jit(do_not_specialize=["heads"])
def _rotate_and_write_latent(
    q,
    kv,
    cos,
    sin,
    slots,
    norm,
    cache,
    out,
    q_stride,
    q_head_stride,
    kv_stride,
    angle_stride,
    out_stride,
    out_head_stride,
    heads,
    eps,
    NOPE: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    RANK_TILE: tl.constexpr,
    HALF_TILE: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs = tl.arange(0, HALF_TILE)
    paired = pairs < HALF
    c = tl.load(cos + row * angle_stride + pairs, mask=paired, other=1.0)
    s = tl.load(sin + row * angle_stride + pairs, mask=paired, other=0.0)
    slot = tl.load(slots + row).to(tl.int64)
    if head < heads:
        source = q + row * q_stride + head * q_head_stride + NOPE + pairs
        target = out + row * out_stride + head * out_head_stride + RANK + pairs
    else:
        source = kv + row * kv_stride + RANK + pairs
        target = cache + slot * (RANK + 2 * HALF) + RANK + pairs
    written = paired & ((head < heads) | (slot >= 0))
    loaded = tl.load(source, mask=written, other=0.0)
    dtype = loaded.dtype
    first, second = loaded.to(tl.float32), tl.load(source + HALF, mask=written, other=0.0).to(tl.float32)
    tl.store(target, (first * c - second * s).to(dtype), mask=written)
    tl.store(target + HALF, (second * c + first * s).to(dtype), mask=written)
    if (head == heads) & (slot >= 0):
        dims = tl.arange(0, RANK_TILE)
        real = dims < RANK
        values = tl.load(kv + row * kv_stride + dims, mask=real, other=0.0)
        wide = values.to(tl.float32)
        scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / RANK + eps)
        normed = (wide * scale).to(dtype).to(tl.float32)
        scaled = normed * tl.load(norm + dims, mask=real, other=0.0).to(tl.float32)
        tl.store(cache + slot * (RANK + 2 * HALF) + dims, scaled.to(dtype), mask=real)


def latent_rope_write(
    q: Tensor,
    kv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot_mapping: Tensor,
    norm: Tensor,
    eps: float,
    cache: Tensor,
    out: Tensor,
) -> None:
    """See `signatures.Kernels.latent_rope_write`."""
    rows, heads, query_dim = q.shape
    half, rank = cos.shape[1], norm.shape[0]
    if rows:
        _rotate_and_write_latent[(rows, heads + 1)](
            *(q, kv, cos, sin, slot_mapping, norm, cache, out, q.stride(0), q.stride(1), kv.stride(0)),
            *(cos.stride(0), out.stride(0), out.stride(1), heads, eps),
            NOPE=query_dim - 2 * half,
            RANK=rank,
            HALF=half,
            RANK_TILE=triton.next_power_of_2(rank),
            HALF_TILE=triton.next_power_of_2(half),
            num_warps=4,
        )
