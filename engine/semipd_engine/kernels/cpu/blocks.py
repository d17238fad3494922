"""The compiled kernels of experts and of latent attention (`src/experts.h`, `src/latent.h`)."""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.kernels.cpu.operands import DTYPES, matrix, number, whole
from semipd_engine.kernels.reference import ReferenceKernels
from semipd_engine.kernels.signatures import PANELS, PackedGroup, RoutingRule

LATENT_STEP, LATENT_WIDTH_MAX = 16, 640
"""Widths that `latent_attention` takes."""


class BlockKernels(ReferenceKernels):
    """`signatures.RecordingKernels` in part; each method is described there."""

    def _call(self, name: str, *arguments: float | None) -> None:
        """Carry out a function of the library, or keep it."""
        raise NotImplementedError

    def _twin(self) -> None:
        """A twin is about to serve, which no tape can hold."""
        raise NotImplementedError

    def grouped_linear(
        self,
        x: Tensor,
        weights: PackedGroup,
        out: Tensor,
        order: Tensor | None = None,
        starts: Tensor | None = None,
        panels: tuple[int, int] | None = None,
    ) -> None:
        layout = weights.layout
        if layout.format != PANELS:
            self._twin()
            super().grouped_linear(x, weights, out, order, starts, panels)
            return
        if len(x) == 0:
            return
        self._call(
            "grouped_linear",
            number(weights=weights.data, x=x),
            *matrix("x", x, len(x), layout.in_features),
            len(out) // len(x),
            layout.in_features,
            whole("weights", weights.data, x.dtype, len(weights), *layout.shape),
            layout.out_features,
            weights.data.stride(0),
            len(weights),
            *matrix("out", out, len(out), layout.out_features),
            out.dtype == torch.float32,
            len(out),
            None if order is None else whole("order", order, torch.int32, len(out)),
            None if starts is None else whole("starts", starts, torch.int32, len(weights) + 1),
            *(panels or (0, weights[0].panels)),
        )

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
        self._call(
            "route",
            DTYPES[torch.float32],
            *matrix("logits", logits, len(logits), routing.experts),
            len(logits),
            routing.experts,
            routing.chosen,
            None if correction is None else whole("correction", correction, torch.float32, routing.experts),
            routing.sigmoid,
            routing.normalise,
            routing.scale,
            routing.groups,
            routing.groups_chosen,
            whole("experts", experts, torch.int32, len(logits), routing.chosen),
            whole("weights", weights, torch.float32, len(logits), routing.chosen),
            whole("order", order, torch.int32, len(logits) * routing.chosen),
            whole("starts", starts, torch.int32, routing.experts + 1),
        )

    def combine(self, x: Tensor, weights: Tensor, out: Tensor, shared: Tensor | None = None) -> None:
        if x.dtype not in DTYPES:
            self._twin()
            super().combine(x, weights, out, shared)
            return
        self._call(
            "combine",
            number(x=x, out=out, shared=shared),
            *matrix("x", x, *x.shape),
            whole("weights", weights, torch.float32, *weights.shape),
            weights.shape[1],
            *((None, 0) if shared is None else matrix("shared", shared, *out.shape)),
            *matrix("out", out, *out.shape),
            *out.shape,
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
        if q.dtype not in DTYPES:
            self._twin()
            super().latent_rope_write(q, kv, cos, sin, slot_mapping, norm, eps, cache, out)
            return
        rows, heads, query_dim = q.shape
        half = cos.shape[1]
        self._call(
            "latent_rope",
            number(q=q, kv=kv, norm=norm, cache=cache, out=out),
            q.data_ptr(),
            *q.stride()[:2],
            *matrix("kv", kv, rows, cache.shape[2]),
            rows,
            heads,
            query_dim - 2 * half,
            norm.shape[0],
            half,
            cos.data_ptr(),
            sin.data_ptr(),
            cos.stride(0),
            slot_mapping.data_ptr(),
            norm.data_ptr(),
            eps,
            cache.data_ptr(),
            out.data_ptr(),
            *out.stride()[:2],
        )

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
        total, heads, width = q.shape
        rank = out.shape[-1]
        if q.dtype not in DTYPES or width % LATENT_STEP or rank % LATENT_STEP or width > LATENT_WIDTH_MAX:
            self._twin()
            super().latent_attention(q, cache, block_tables, seq_lens, query_start_loc, scale, out, rows)
            return
        self._call(
            "latent_attention",
            number(q=q, cache=cache, out=out),
            q.data_ptr(),
            *q.stride()[:2],
            cache.data_ptr(),
            cache.shape[1],
            width,
            block_tables.data_ptr(),
            block_tables.stride(0),
            seq_lens.data_ptr(),
            query_start_loc.data_ptr(),
            len(seq_lens),
            heads,
            rank,
            scale,
            out.data_ptr(),
            *out.stride()[:2],
            *(rows or (0, total)),
        )
