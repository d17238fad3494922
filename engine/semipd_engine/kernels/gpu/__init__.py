"""Kernels of a GPU in Triton; dense matrix products and embedding are torch's (cuBLAS), as in the twin.

**Not executed on a GPU yet**: held against their twins and float64 under Triton's interpreter. `auto` takes them where
Triton is, and its launcher (from the image) or a C compiler; a worker whose kernels differ from their twins on its card
does not serve.
"""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.kernels.gpu import adjusting, attention, latent, rows, sampling
from semipd_engine.kernels.gpu import experts as mixture
from semipd_engine.kernels.packed import PANEL, PackedGroup, PackedWeight
from semipd_engine.kernels.rates import UNPACED, Rates
from semipd_engine.kernels.reference import ReferenceKernels
from semipd_engine.kernels.signatures import RoutingRule


class TritonKernels(ReferenceKernels):
    """`signatures.Kernels`; each method is described there."""

    def __init__(self, num_sms: int, why: str = "kernels: triton") -> None:
        """`num_sms`: streaming multiprocessors that this process may use, as it sees them."""
        super().__init__(why)
        self._num_sms = num_sms

    @property
    def name(self) -> str:
        return "triton"

    def rates(self, dtype: torch.dtype, head_dim: int, latent: tuple[int, int] | None = None) -> Rates:
        return UNPACED

    def linear(
        self, x: Tensor, weight: PackedWeight, bias: Tensor | None, out: Tensor, panels: tuple[int, int] | None = None
    ) -> None:
        if out.dtype != weight.data.dtype or panels not in (None, (0, weight.panels)):
            super().linear(x, weight, bias, out, panels)
        elif bias is None:  # straight into its place: a copy would be a kernel more
            torch.mm(x, weight.data.T, out=out)
        else:
            torch.addmm(bias, x, weight.data.T, out=out)

    def grouped_linear(
        self,
        x: Tensor,
        weights: PackedGroup,
        out: Tensor,
        order: Tensor | None = None,
        starts: Tensor | None = None,
        panels: tuple[int, int] | None = None,
    ) -> None:
        columns = first, last = _columns(panels, weights.layout.out_features)
        if order is not None and starts is not None:
            mixture.multiply(x, weights.data, out, order, starts, columns, gated=False)
            return
        if len(x) != len(out):
            super().grouped_linear(x, weights, out, order, starts, panels)
            return
        # Heads: row i takes matrix i % G. One product for all of them.
        by_head = (len(x) // len(weights), len(weights))
        heads = x.view(*by_head, x.shape[1]).transpose(0, 1)
        there = out.view(*by_head, out.shape[1])[:, :, first:last].transpose(0, 1)
        torch.bmm(heads, weights.data[:, first:last].transpose(1, 2), out=there)

    def grouped_gated_linear(
        self,
        x: Tensor,
        weights: PackedGroup,
        out: Tensor,
        order: Tensor,
        starts: Tensor,
        panels: tuple[int, int] | None = None,
    ) -> None:
        mixture.multiply(x, weights.data, out, order, starts, _columns(panels, out.shape[1]), gated=True)

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

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor, residual: Tensor | None = None) -> None:
        rows.rms_norm(x, weight, eps, out, residual)

    def silu_mul(self, x: Tensor, out: Tensor) -> None:
        rows.silu_mul(x, out)

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
        rows.qk_norm_rope_write_kv(qkv, cos, sin, slot_mapping, key_cache, value_cache, head_dim, q_norm, k_norm, eps)

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
        attention.paged_attention(
            *(q, key_cache, value_cache, block_tables, seq_lens, query_start_loc, scale, out),
            rows or (0, len(q)),
            window,
            self._num_sms,
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
        latent.latent_rope_write(q, kv, cos, sin, slot_mapping, norm, eps, cache, out)

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
        where = rows or (0, len(q))
        latent.latent_attention(q, cache, block_tables, seq_lens, query_start_loc, scale, out, where, self._num_sms)

    def adjust(
        self, logits: Tensor, edits: Tensor, starts: Tensor, repetition: Tensor, masks: Tensor, mask_of: Tensor
    ) -> Tensor:
        return adjusting.adjust(logits, edits, starts, repetition, masks, mask_of)

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
    ) -> Tensor:
        return sampling.sample(logits, temperature, top_k, top_p, min_p, uniform)


def _columns(panels: tuple[int, int] | None, width: int) -> tuple[int, int]:
    return (0, width) if panels is None else (panels[0] * PANEL, min(panels[1] * PANEL, width))
