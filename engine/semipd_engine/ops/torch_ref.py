"""Reference operations in plain torch: the CPU path, and the oracle for faster kernels.

T is the number of rows (tokens) of a step. A cache is one layer's view of one component of the KV pool:
``[num_blocks, block_size, width]``. The operations know nothing of requests, plans and pacing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension, in float32; cast back before the weight, as transformers does."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * weight


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x [T, heads, head_dim]`` by ``cos`` and ``sin [T, 1, head_dim]``; pairs are (i, i + head_dim / 2)."""
    half = x.shape[-1] // 2
    rotated = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + rotated * sin


def silu_and_mul(x: Tensor) -> Tensor:
    """``x [T, 2 * I]`` holds gate and up side by side. Returns silu(gate) * up, [T, I]."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def write_kv(cache: Tensor, slots: Tensor, values: Tensor) -> None:
    """Write ``values [T, width]`` to the slots (block * block_size + offset; int64 [T], all different)."""
    cache.view(-1, cache.shape[-1]).index_copy_(0, slots, values)


def paged_prefill(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, block_table: Tensor, start: int, mask: Tensor | None
) -> Tensor:
    """Causal attention of one sequence's rows at positions ``start .. start + T - 1`` over all positions before.

    ``q [T, heads, head_dim]``; ``block_table`` int64, blocks of the sequence in order; the rows' own keys and values
    are in the cache already. ``mask``: `causal_mask` of these rows, or None to have it made. Returns
    [T, heads, head_dim].
    """
    rows, _, head_dim = q.shape
    context = start + rows
    k = _gather(key_cache, block_table[None], context, head_dim, q.dtype)
    v = _gather(value_cache, block_table[None], context, head_dim, q.dtype)
    queries = q.transpose(0, 1)[None]
    if start == 0:
        out = F.scaled_dot_product_attention(queries, k, v, is_causal=rows > 1, enable_gqa=True)
    else:
        mask = causal_mask(rows, start, q.dtype, q.device) if mask is None and rows > 1 else mask
        out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, enable_gqa=True)
    return out[0].transpose(0, 1)


def causal_mask(rows: int, start: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive mask [rows, start + rows]: row i sees positions up to start + i."""
    mask = torch.zeros(rows, start + rows, dtype=dtype, device=device)
    mask[:, start:] = torch.full((rows, rows), float("-inf"), dtype=dtype, device=device).triu_(1)
    return mask


def paged_decode(
    q: Tensor, key_cache: Tensor, value_cache: Tensor, block_tables: Tensor, context: int, mask: Tensor | None
) -> Tensor:
    """Attention of one new row for each of B sequences of similar length: ``q [B, heads, head_dim]``.

    ``block_tables`` int64 [B, blocks] covers the first `context` positions; a sequence counts its new row, whose key
    and value are in the cache already. ``mask``: `length_mask`, or None if all B have exactly `context` positions.
    On a CPU scores are taken in float32 (bfloat16 attention on one row is many times slower there). Returns q's shape.
    """
    batch, heads, head_dim = q.shape
    dtype = torch.float32 if q.device.type == "cpu" else q.dtype
    k = _gather(key_cache, block_tables, context, head_dim, dtype)
    v = _gather(value_cache, block_tables, context, head_dim, dtype)
    mask = mask.to(dtype) if mask is not None else None
    if q.device.type == "cuda":
        return grouped_decode(q, k, v, mask)
    queries = q.to(dtype).view(batch, heads, 1, head_dim)
    out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, enable_gqa=True)
    return out.view(batch, heads, head_dim).to(q.dtype)


def grouped_decode(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The heads of a group are the rows of one product with their common key head: no head is repeated, and of torch's
    kernels on a GPU those that take a mask know no groups. ``k``, ``v`` [B, kv_heads, context, head_dim]."""
    batch, heads, head_dim = q.shape
    kv_heads = k.shape[1]
    out = F.scaled_dot_product_attention(q.view(batch, kv_heads, heads // kv_heads, head_dim), k, v, attn_mask=mask)
    return out.reshape(batch, heads, head_dim)


def length_mask(lengths: Tensor, context: int) -> Tensor:
    """Additive mask, float32 [B, 1, 1, context]: sequence i sees its first ``lengths[i]`` positions."""
    hidden = torch.arange(context, device=lengths.device) >= lengths[:, None]
    return torch.zeros(hidden.shape, device=lengths.device).masked_fill_(hidden, float("-inf"))[:, None, None, :]


def _gather(cache: Tensor, block_tables: Tensor, context: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """The first `context` entries of B sequences: a view [B, kv_heads, context, head_dim] of a gathered copy."""
    _, block_size, width = cache.shape
    blocks = -(-context // block_size)
    tables = block_tables[:, :blocks]
    entries = cache.index_select(0, tables.reshape(-1)).view(tables.shape[0], blocks * block_size, width)[:, :context]
    return entries.to(dtype).view(-1, context, width // head_dim, head_dim).transpose(1, 2)
