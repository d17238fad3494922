"""Paged attention in plain torch: gather what a sequence may see, then scaled dot-product attention in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


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
) -> None:
    """See `signatures.Kernels.paged_attention`."""
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    # A GPU has exact kernels for its own dtypes; on a CPU those of bfloat16 are slow for few rows.
    dtype = torch.float32 if q.device.type == "cpu" else q.dtype
    for table, length, start, end in zip(block_tables, lengths, starts[:-1], starts[1:], strict=True):
        first, last = max(start, rows[0]), min(end, rows[1])
        if first >= last:
            continue
        position = length - (end - first)  # of the row `first`
        context = length - (end - last)  # positions that the row before `last` sees
        begin = max(0, position + 1 - window) if window else 0
        queries = q[first:last].to(dtype).transpose(0, 1)[None]
        k = _gather(key_cache, table, begin, context, q.shape[-1], dtype)
        v = _gather(value_cache, table, begin, context, out.shape[-1], dtype)
        visible = _visible(position - begin, last - first, window, q.device)
        attended = F.scaled_dot_product_attention(queries, k, v, attn_mask=visible, scale=scale, enable_gqa=True)
        out[first:last] = attended[0].transpose(0, 1)


def _visible(position: int, rows: int, window: int, device: torch.device) -> Tensor | None:
    """bool [rows, position + rows]: each row, from `position` on, sees up to itself; None: all see all. On a GPU a rule
    instead: torch's fast kernels take no matrix, and its plain one repeats all heads in float32."""
    if rows == 1:
        return None
    if device.type == "cuda" and not window:
        # It brings torch's compiler along: two seconds and 140 MB that no process on a CPU needs.
        from torch.nn.attention.bias import causal_lower_right

        rule: Tensor = causal_lower_right(rows, position + rows)
        return rule
    visible = torch.ones(rows, position + rows, dtype=torch.bool, device=device).tril_(position)
    return visible.triu_(position - window + 1) if window else visible


def _gather(cache: Tensor, table: Tensor, begin: int, end: int, head_dim: int, dtype: torch.dtype) -> Tensor:
    """The entries of positions begin .. end - 1: a view [1, KV, end - begin, D] of a gathered copy."""
    _, block_size, width = cache.shape
    first, last = begin // block_size, -(-end // block_size)
    entries = cache.index_select(0, table[first:last]).view(-1, width)
    entries = entries[begin - first * block_size : end - first * block_size]
    return entries.to(dtype).view(end - begin, width // head_dim, head_dim).transpose(0, 1)[None]
