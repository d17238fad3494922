"""The compiled kernels of experts and of latent attention (`src/experts.h`, `src/latent.h`)."""

from __future__ import annotations

import torch
from torch import Tensor

from semipd_engine.kernels.cpu.operands import DTYPES, OperandError, angles, heads, matrix, number, paging, span, whole
from semipd_engine.kernels.packed import PANELS, PackedGroup
from semipd_engine.kernels.reference import ReferenceKernels
from semipd_engine.kernels.signatures import RoutingRule

LATENT_STEP, LATENT_WIDTH_MAX = 16, 640
"""Widths that `latent_attention` takes."""


def takes_latent_attention(dtype: torch.dtype, width: int, rank: int) -> bool:
    """Or does the twin serve it?"""
    return dtype in DTYPES and width % LATENT_STEP == 0 and rank % LATENT_STEP == 0 and width <= LATENT_WIDTH_MAX


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
        factor, rest = divmod(len(out), len(x)) if len(x) else (1, len(out))
        if rest or factor < 1 or (order is None) != (starts is None) or (order is None and len(out) % len(weights)):
            told = "order and starts belong together" if order is not None or starts is not None else "no order"
            raise OperandError(f"{len(out)} rows of {len(x)} over {len(weights)} matrices, {told}")
        if out.dtype != torch.float32:
            number(weights=weights.data, out=out)
        if len(x) == 0:
            return
        self._call(
            "grouped_linear",
            number(weights=weights.data, x=x),
            *matrix("x", x, len(x), layout.in_features),
            factor,
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
            *span("panels", panels, weights[0].panels),
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
        if number(logits=logits):
            raise OperandError(f"logits are {logits.dtype}, torch.float32 is needed")
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
        (rows, width), chosen = out.shape, weights.shape[-1]
        self._call(
            "combine",
            number(x=x, out=out, shared=shared),
            *matrix("x", x, rows * chosen, width),
            whole("weights", weights, torch.float32, rows, chosen),
            chosen,
            *((None, 0) if shared is None else matrix("shared", shared, rows, width)),
            *matrix("out", out, rows, width),
            rows,
            width,
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
        (rows, count, query_dim), rotary = q.shape, 2 * cos.shape[-1]
        rank = norm.shape[0]
        self._call(
            "latent_rope",
            number(q=q, kv=kv, norm=norm, cache=cache, out=out),
            *heads("q", q, rows, count, query_dim),
            *matrix("kv", kv, rows, rank + rotary),
            rows,
            count,
            query_dim - rotary,
            rank,
            rotary // 2,
            *angles(cos, sin, rows, query_dim),
            whole("slot_mapping", slot_mapping, torch.int32, rows),
            whole("norm", norm, q.dtype, rank),
            eps,
            whole("cache", cache, q.dtype, -1, -1, rank + rotary),
            *heads("out", out, rows, count, rank + rotary),
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
        (total, count, width), rank = q.shape, out.shape[-1]
        if not takes_latent_attention(q.dtype, width, rank):
            self._twin()
            super().latent_attention(q, cache, block_tables, seq_lens, query_start_loc, scale, out, rows)
            return
        if rank > width:
            raise OperandError(f"out has {rank} elements a head, the cache {width}")
        self._call(
            "latent_attention",
            number(q=q, cache=cache, out=out),
            *heads("q", q, total, count, width),
            whole("cache", cache, q.dtype, -1, -1, width),
            cache.shape[1],
            width,
            *paging(block_tables, seq_lens, query_start_loc),
            count,
            rank,
            scale,
            *heads("out", out, total, count, rank),
            *span("rows", rows, total),
        )
