"""Every kernel in plain torch: the oracle of the others, and what serves where there is no compiled one.

Any device and dtype. A row's bits may depend on its neighbours here (torch chooses its algorithms by shape); the
compiled kernels promise more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from semipd_engine.kernels.packed import PANEL, PANELS, ROWS, PackedGroup, PackedLayout, PackedWeight
from semipd_engine.kernels.rates import RATES, Rates
from semipd_engine.kernels.reference import experts as mixture
from semipd_engine.kernels.reference.attention import paged_attention
from semipd_engine.kernels.reference.sampling import adjust, sample
from semipd_engine.kernels.signatures import RoutingRule


class ReferenceKernels:
    """`signatures.Kernels`; each method is described there."""

    def __init__(self, why: str = "kernels: reference (torch)", shortfall: str = "") -> None:
        self._why, self._shortfall = why, shortfall

    @property
    def name(self) -> str:
        return "reference"

    @property
    def why(self) -> str:
        return self._why

    @property
    def shortfall(self) -> str:
        return self._shortfall

    def rates(self, dtype: torch.dtype, head_dim: int, latent: tuple[int, int] | None = None) -> Rates:
        return RATES["reference"]

    def layout(self, out_features: int, in_features: int, dtype: torch.dtype) -> PackedLayout:
        return PackedLayout(ROWS, (out_features, in_features), out_features, in_features)

    def pack_rows(self, weight: PackedWeight, first: int, rows: Tensor) -> None:
        weight.data[first : first + rows.shape[0]] = rows

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        first, last = (0, weight.out_features) if panels is None else (panels[0] * PANEL, panels[1] * PANEL)
        rows = unpack(weight)[first:last]
        out[:, first:last] = F.linear(x, rows, None if bias is None else bias[first:last])

    def gated_linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        width = out.shape[1]
        first, last = (0, width) if panels is None else (panels[0] * PANEL, panels[1] * PANEL)
        both = [slice(first, last), slice(width + first, width + last)]
        if last - first == width:
            both = [slice(None)]  # as they lie, without a copy
        rows = unpack(weight)
        matrix = torch.cat([rows[half] for half in both]) if len(both) > 1 else rows
        added = None if bias is None else torch.cat([bias[half] for half in both])
        self.silu_mul(F.linear(x, matrix, added), out[:, first:last])

    def grouped_linear(
        self,
        x: Tensor,
        weights: PackedGroup,
        out: Tensor,
        order: Tensor | None = None,
        starts: Tensor | None = None,
        panels: tuple[int, int] | None = None,
    ) -> None:
        if not len(out):
            return
        factor, count = len(out) // max(1, len(x)), len(weights)
        first, last = (0, weights.layout.out_features) if panels is None else (panels[0] * PANEL, panels[1] * PANEL)
        bounds = [] if starts is None else starts.tolist()
        for group in range(count):
            if order is None:
                rows = torch.arange(group, len(out), count, device=x.device)
            elif bounds[group] < bounds[group + 1]:
                rows = order[bounds[group] : bounds[group + 1]].long()
            else:
                continue
            out[rows, first:last] = F.linear(x[rows // factor], unpack(weights[group])[first:last]).to(out.dtype)

    def route(
        self,
        logits: Tensor,
        correction: Tensor | None,
        routing: RoutingRule,
        experts: Tensor,
        weights: Tensor,
        order: Tensor,
        starts: Tensor,
    ) -> None:
        mixture.route(logits, correction, routing, experts, weights, order, starts)

    def combine(self, x: Tensor, weights: Tensor, out: Tensor, shared: Tensor | None = None) -> None:
        mixture.combine(x, weights, out, shared)

    def embedding(self, token_ids: Tensor, weight: PackedWeight, out: Tensor) -> None:
        if weight.layout.format == ROWS:
            torch.index_select(weight.data, 0, token_ids, out=out)
        else:
            out.copy_(unpack(weight, token_ids))

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None) -> None:
        if residual is not None:
            x = residual.add_(x)
        out.copy_(_norm(x, weight, eps))

    def silu_mul(self, x: Tensor, out: Tensor) -> None:
        gate, up = x.float().chunk(2, dim=-1)
        out.copy_(F.silu(gate) * up)

    def qk_norm_rope_write_kv(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        slot_mapping: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        head_dim: int,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
        eps: float = 1e-6,
    ) -> None:
        kv_width = key_cache.shape[-1]
        q, k, v = torch.split(qkv, [qkv.shape[1] - 2 * kv_width, kv_width, kv_width], dim=-1)
        heads_q, heads_k = (part.view(len(part), part.shape[1] // head_dim, head_dim) for part in (q, k))
        heads_q.copy_(_rotate(heads_q if q_norm is None else _norm(heads_q, q_norm, eps), cos, sin))
        rotated = _rotate(heads_k if k_norm is None else _norm(heads_k, k_norm, eps), cos, sin)
        written = slot_mapping >= 0
        slots = slot_mapping[written].long()
        key_cache.view(-1, kv_width).index_copy_(0, slots, rotated.to(qkv.dtype).flatten(1)[written])
        value_cache.view(-1, kv_width).index_copy_(0, slots, v[written])

    def paged_attention(
        self,
        q: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        query_start_loc: Tensor,
        scale: float,
        out: Tensor,
        rows: tuple[int, int] | None = None,
        window: int = 0,
    ) -> None:
        paged_attention(
            q, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale, out, rows or (0, len(q)), window
        )

    def latent_rope_write(
        self,
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
        rotary = 2 * cos.shape[1]
        out[:, :, -rotary:] = _rotate(q[:, :, -rotary:], cos, sin)
        entry = torch.cat((_norm(kv[:, :-rotary], norm, eps), kv[:, -rotary:]), dim=-1)
        entry[:, -rotary:] = _rotate(kv[:, None, -rotary:], cos, sin)[:, 0]
        written = slot_mapping >= 0
        cache.view(-1, cache.shape[-1]).index_copy_(0, slot_mapping[written].long(), entry[written])

    def latent_attention(
        self,
        q: Tensor,
        cache: Tensor,
        block_tables: Tensor,
        seq_lens: Tensor,
        query_start_loc: Tensor,
        scale: float,
        out: Tensor,
        rows: tuple[int, int] | None = None,
    ) -> None:
        values = cache[..., : out.shape[-1]]
        where = rows or (0, len(q))
        paged_attention(q, cache, values, block_tables, seq_lens, query_start_loc, scale, out, where, 0)

    def adjust(
        self, logits: Tensor, edits: Tensor, starts: Tensor, repetition: Tensor, masks: Tensor, mask_of: Tensor
    ) -> Tensor:
        return adjust(logits, edits, starts, repetition, masks, mask_of)

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
    ) -> Tensor:
        return sample(logits, temperature, top_k, top_p, min_p, uniform)


def unpack(weight: PackedWeight, rows: Tensor | None = None) -> Tensor:
    """The weight, or these `rows` of it, as ``[rows, in_features]``; a view where the format allows it."""
    if weight.layout.format == ROWS:
        return weight.data if rows is None else weight.data[rows]
    assert weight.layout.format == PANELS, weight.layout.format
    if rows is None:
        rows = torch.arange(weight.out_features, device=weight.data.device)
    rows = rows.long()
    return weight.data[rows // PANEL, :, rows % PANEL].flatten(1)[:, : weight.in_features]


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Rounded to x's dtype before the weight and after it."""
    if x.dtype == torch.float32:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x.float(), weight.shape, None, eps).to(x.dtype) * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``x [T, heads, D]`` by the angles of its row, in float32."""
    half = cos.shape[1]
    first, second, rest = torch.split(x.float(), [half, half, x.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
