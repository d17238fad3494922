"""Kernels that work on one row, or one head of a row: norm, activation, rotation and the write into the KV cache.

Triton. Sums and products are float32, rounded where `signatures` says. Each program reads all that it needs before it
writes; where it reads what a neighbour in the same program overwrites (rotation in place), it is one warp.
"""

# mypy: disable-error-code="import-untyped, untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 1024
"""Of one program of `silu_mul`."""


@triton.jit
def _rms_norm(
    x,
    weight,
    out,
    residual,
    x_stride,
    out_stride,
    residual_stride,
    width,
    eps,
    ADDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    dtype = values.dtype
    if ADDS:
        place = residual + row * residual_stride + columns
        values = (values.to(tl.float32) + tl.load(place, mask=inside, other=0.0).to(tl.float32)).to(dtype)
        tl.store(place, values, mask=inside)
    wide = values.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / width + eps)
    normed = (wide * scale).to(dtype).to(tl.float32)
    scaled = normed * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * out_stride + columns, scaled.to(dtype), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None) -> None:
    """See `signatures.Kernels.rms_norm`."""
    rows, width = x.shape
    if rows:
        block = triton.next_power_of_2(width)
        other = x if residual is None else residual
        _rms_norm[(rows,)](
            *(x, weight, out, other, x.stride(0), out.stride(0), other.stride(0), width, eps),
            ADDS=residual is not None,
            BLOCK=block,
            num_warps=min(16, max(1, block // 512)),
        )


@triton.jit
def _silu_mul(x, out, x_stride, out_stride, width, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    up = tl.load(x + row * x_stride + width + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    result = wide / (1.0 + tl.exp(-wide)) * up.to(tl.float32)
    tl.store(out + row * out_stride + columns, result.to(gate.dtype), mask=inside)


def silu_mul(x: Tensor, out: Tensor) -> None:
    """See `signatures.Kernels.silu_mul`."""
    rows, width = out.shape
    if rows:
        _silu_mul[(rows, triton.cdiv(width, COLUMNS))](x, out, x.stride(0), out.stride(0), width, BLOCK=COLUMNS)


@triton.jit
def _normed(values, weight, places, inside, scale, NORMS: tl.constexpr):
    """Rounded to their dtype before the weight and after it."""
    if NORMS:
        dtype = values.dtype
        normed = (values.to(tl.float32) * scale).to(dtype).to(tl.float32)
        factors = tl.load(weight + places, mask=inside, other=0.0).to(tl.float32)
        return (normed * factors).to(dtype).to(tl.float32)
    return values.to(tl.float32)


@triton.jit(do_not_specialize=["heads", "kv_heads"])
def _rotate_and_write(
    qkv,
    cos,
    sin,
    slots,
    key_cache,
    value_cache,
    q_norm,
    k_norm,
    qkv_stride,
    angle_stride,
    heads,
    kv_heads,
    eps,
    HALF: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    NORMS_Q: tl.constexpr,
    NORMS_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    places = tl.arange(0, BLOCK)
    inside = places < HEAD_DIM
    base = qkv + row * qkv_stride + head * HEAD_DIM
    is_key = head >= heads
    slot = tl.load(slots + row).to(tl.int64)
    if is_key & (slot < 0):
        return
    partners = tl.where(places < HALF, places + HALF, tl.where(places < 2 * HALF, places - HALF, places))
    own = tl.load(base + places, mask=inside, other=0.0)
    other = tl.load(base + partners, mask=inside, other=0.0)
    wide = own.to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(wide * wide, axis=0) / HEAD_DIM + eps)
    if is_key:
        first = _normed(own, k_norm, places, inside, scale, NORMS_K)
        second = _normed(other, k_norm, partners, inside, scale, NORMS_K)
    else:
        first = _normed(own, q_norm, places, inside, scale, NORMS_Q)
        second = _normed(other, q_norm, partners, inside, scale, NORMS_Q)
    turned = places < 2 * HALF
    angle = row * angle_stride + places % HALF
    c = tl.load(cos + angle, mask=turned, other=1.0)
    s = tl.load(sin + angle, mask=turned, other=0.0)
    result = (first * c + tl.where(places < HALF, -second, second) * s).to(own.dtype)
    if is_key:
        entry = slot * kv_heads * HEAD_DIM + (head - heads) * HEAD_DIM + places
        tl.store(key_cache + entry, result, mask=inside)
        value = tl.load(base + kv_heads * HEAD_DIM + places, mask=inside, other=0.0)
        tl.store(value_cache + entry, value, mask=inside)
    else:
        tl.store(base + places, result, mask=inside)


def qk_norm_rope_write_kv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slot_mapping: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    head_dim: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
) -> None:
    """See `signatures.Kernels.qk_norm_rope_write_kv`."""
    rows = qkv.shape[0]
    kv_heads = key_cache.shape[-1] // head_dim
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    if rows:
        _rotate_and_write[(rows, heads + kv_heads)](
            *(qkv, cos, sin, slot_mapping, key_cache, value_cache),
            qkv if q_norm is None else q_norm,
            qkv if k_norm is None else k_norm,
            *(qkv.stride(0), cos.stride(0), heads, kv_heads, eps),
            HALF=cos.shape[1],
            HEAD_DIM=head_dim,
            NORMS_Q=q_norm is not None,
            NORMS_K=k_norm is not None,
            BLOCK=triton.next_power_of_2(head_dim),
            num_warps=1,
        )
