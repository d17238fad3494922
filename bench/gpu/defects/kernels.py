"""Of the Triton kernels: masks, strides, block tables, routes of experts, penalties."""

from __future__ import annotations

from bench.gpu.defects.defect import ENGINE, Defect, of

_KERNELS = "tests/unit/kernels/test_gpu.py"
_EXPERTS = "tests/unit/kernels/test_gpu_experts.py"
KERNELS: tuple[Defect, ...] = (
    *of(
        f"{ENGINE}/kernels/gpu/attention.py",
        f"{_KERNELS} -k chunks_and_decode_rows",
        ("mask", "seen[None, :] <= position[:, None]", "seen[None, :] < position[:, None]"),
        ("mask", "seen[None, :] > position[:, None] -", "seen[None, :] >= position[:, None] -"),
        (
            "mask",
            "visible_end = length - end + tl.minimum(begin_row + ROWS, end)",
            "visible_end = length - end + begin_row",
        ),
        ("stride", "tl.load(tables + s * table_stride", "tl.load(tables + s * block_size"),
        (
            "stride",
            "row.to(tl.int64)[:, None] * q_stride + head[:, None] * HEAD_DIM",
            "row.to(tl.int64)[:, None] * q_stride + member[:, None] * HEAD_DIM",
        ),
        ("block table", "seen // block_size, mask=there", "seen // POSITIONS, mask=there"),
        ("block table", "entry * block_size + seen % block_size) * width", "entry * block_size + seen) * width"),
        ("rows", "// ROWS + middle <= block", "// ROWS + middle < block"),
        ("softmax", "total = total * fade + tl.sum(weights, axis=1)", "total = total + tl.sum(weights, axis=1)"),
    ),
    *of(
        f"{ENGINE}/kernels/gpu/attention.py",
        f"{_KERNELS} -k 'split or padding'",
        ("split", "tile_begin += split * share", "tile_begin += share"),
        ("split", "tl.sum(total * weights, axis=0)", "tl.sum(total, axis=0)"),
        ("rows", "mine = (row < end) & (row >= first_row)", "mine = (row >= first_row)"),
        ("padding", "if row >= tl.load(starts + sequences):", "if row > tl.load(starts + sequences):"),
    ),
    *of(
        f"{ENGINE}/kernels/gpu/rows.py",
        f"{_KERNELS} -k 'norm or activation'",
        ("slot -1", "if is_key & (slot < 0):", "if is_key & (slot < -1):"),
        ("rotation", "tl.where(places < HALF, -second, second)", "tl.where(places < HALF, second, -second)"),
        ("rotation", "angle = row * angle_stride + places % HALF", "angle = row * angle_stride + places"),
        ("stride", "base + kv_heads * HEAD_DIM + places", "base + heads * HEAD_DIM + places"),
        ("stride", "x + row * x_stride + width + columns", "x + row * x_stride + BLOCK + columns"),
        ("stride", "place = residual + row * residual_stride + columns", "place = residual + row * x_stride + columns"),
    ),
    *of(
        f"{ENGINE}/kernels/gpu/latent.py",
        f"{_KERNELS} -k latent",
        ("mask", "seen[None, :] <= position[:, None]", "seen[None, :] < position[:, None]"),
        ("slot -1", "written = paired & ((head < heads) | (slot >= 0))", "written = paired"),
        ("stride", "entry[None, :] + RANK + turned[:, None]", "entry[None, :] + turned[:, None]"),
    ),
    *of(
        f"{ENGINE}/kernels/gpu/experts.py",
        f"{_EXPERTS} -k 'order or twins_experts or equals'",
        ("route", "put += tl.sum((chosen < expert)", "put += tl.sum((chosen <= expert)"),
        ("offset", "order + put + rank - 1, place", "order + put + rank, place"),
        ("route", "value += tl.max(", "value = tl.max("),
        ("route", "tl.sum(tl.sum(tl.where(mine, score, 0.0)", "tl.sum(tl.sum(tl.where(mine, choice, 0.0)"),
    ),
    *of(
        f"{ENGINE}/kernels/gpu/experts.py",
        f"{_EXPERTS} -k 'products or panels or summed or tiles_enough'",
        ("mask", "mask=mine[:, None] & inside[None, :])", "mask=inside[None, :])"),
        ("route", "tl.cumsum(tiles, axis=0) <= tile", "tl.cumsum(tiles, axis=0) < tile"),
        ("rows", "(tile - before) * ROWS + tl.arange", "tile * ROWS + tl.arange"),
        ("stride", "matrix + (features // 2).to(tl.int64) * inner", "matrix + (end_column + 0 * features) * inner"),
        ("rows", "places // ROWS + min(places, experts)", "places // ROWS + 1"),
        ("stride", "tl.load(weights + row * CHOSEN + k)", "tl.load(weights + k)"),
    ),
    *of(
        f"{ENGINE}/kernels/gpu/adjusting.py",
        "tests/unit/kernels/test_gpu_adjusting.py",
        ("mask", "(word >> (tokens % 32)) & 1", "(word >> (tokens // 32)) & 1"),
        ("mask", "tl.load(mask_of + row), words, tokens", "row.to(tl.int32), words, tokens"),
        ("stride", "edits + at.to(tl.int64) * 4", "edits + at.to(tl.int64) * 3"),
        ("penalty", "tl.where(value > 0.0, tl.div_rn", "tl.where(value < 0.0, tl.div_rn"),
        ("stop ids", "(kind & 2) != 0", "(kind & 1) != 0"),
    ),
)
