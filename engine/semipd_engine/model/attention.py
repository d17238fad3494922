"""Grouped-query attention over the paged cache: one layer's attention block.

Exchangeable: a latent attention has the same call and another set of cache components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from semipd_engine import ops
from semipd_engine.cards.config import ModelConfig
from semipd_engine.model.batch import Batch, Segment
from semipd_engine.model.quanta import Load, Quanta

MOST_SCORE_BYTES = 256 << 20
"""Of one prefill operation on a GPU, in float32; torch's plain kernel keeps about three such matrices."""
FLOAT32_BYTES = 4


class GroupedQueryAttention:
    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], prefix: str, caches: Sequence[Tensor], quanta: Quanta
    ) -> None:
        """`weights[prefix + ...]` are read, never written. `caches`: this layer's key and value views of the pool."""
        self._config = config
        self._quanta = quanta
        self._keys, self._values = caches
        self._qkv, self._qkv_bias = weights[f"{prefix}.qkv.weight"], weights.get(f"{prefix}.qkv.bias")
        self._out, self._out_bias = (
            weights[f"{prefix}.attention_output.weight"],
            weights.get(f"{prefix}.attention_output.bias"),
        )
        self._q_norm, self._k_norm = weights.get(f"{prefix}.q_norm"), weights.get(f"{prefix}.k_norm")

    def load(self, batch: Batch) -> Load:
        config = self._config
        return Load(
            batch.rows,
            weights=self._qkv.numel() + self._out.numel(),
            attention=batch.visible * config.q_width,
            pointwise=batch.rows * 4 * config.q_width,
        )

    def __call__(self, x: Tensor, batch: Batch) -> Tensor:
        """``x [T, hidden]``, normalised. Writes the rows' keys and values, then attends. Returns [T, hidden]."""
        config, quanta = self._config, self._quanta
        qkv = quanta.linear(x, self._qkv, self._qkv_bias)
        with quanta.quantum(Load(batch.rows, pointwise=batch.rows * 4 * config.q_width)):
            q, k, v = torch.split(qkv, [config.q_width, config.kv_width, config.kv_width], dim=-1)
            q = q.view(-1, config.num_heads, config.head_dim)
            k = k.view(-1, config.num_kv_heads, config.head_dim)
            if self._q_norm is not None and self._k_norm is not None:
                q = ops.rms_norm(q, self._q_norm, config.rms_norm_eps)
                k = ops.rms_norm(k, self._k_norm, config.rms_norm_eps)
            q = ops.apply_rope(q, batch.cos, batch.sin)
            k = ops.apply_rope(k, batch.cos, batch.sin)
            ops.write_kv(self._keys, batch.slots, k.view(-1, config.kv_width))
            ops.write_kv(self._values, batch.slots, v)
        out = torch.empty_like(q)
        self._attend_groups(q, batch, out)
        self._attend_segments(q, batch, out)
        return quanta.linear(out.reshape(-1, config.q_width), self._out, self._out_bias)

    def _attend_groups(self, q: Tensor, batch: Batch, out: Tensor) -> None:
        """Each group makes one quantum: the size of groups is bounded where they are formed."""
        for group in batch.groups:
            with self._quanta.quantum(Load(1, attention=group.visible * self._config.q_width)):
                out[group.rows] = ops.paged_decode(
                    q[group.rows], self._keys, self._values, group.block_tables, group.context, group.mask
                )

    def _attend_segments(self, q: Tensor, batch: Batch, out: Tensor) -> None:
        """Each sequence's rows are cut so that a piece fits one quantum, and on a GPU so that its scores fit the
        worker's memory whichever kernel torch takes."""
        for segment in batch.segments:
            pieces = self._quanta.pieces(self._segment_load(segment, 0, segment.rows))
            if q.device.type == "cuda":
                scores = segment.rows * (segment.start + segment.rows) * self._config.num_heads * FLOAT32_BYTES
                pieces = min(segment.rows, max(pieces, -(-scores // MOST_SCORE_BYTES)))
            step = -(-segment.rows // pieces)
            for begin in range(0, segment.rows, step):
                end = min(begin + step, segment.rows)
                with self._quanta.quantum(self._segment_load(segment, begin, end)):
                    out[segment.first + begin : segment.first + end] = ops.paged_prefill(
                        q[segment.first + begin : segment.first + end],
                        self._keys,
                        self._values,
                        segment.block_table,
                        segment.start + begin,
                        segment.mask(q, begin, end),
                    )

    def _segment_load(self, segment: Segment, begin: int, end: int) -> Load:
        """SDPA on the CPU skips no masked block, so each row costs the whole visible range of the piece."""
        rows = end - begin
        return Load(rows, attention=rows * (segment.start + end) * self._config.q_width)
