"""Grouped-query attention over the paged cache: one layer's attention block, and the backend behind it.

Exchangeable: a latent attention reads and writes the same buffers, with another set of cache components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.kernels import Kernels
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.batch import Batch
from semipd_engine.model.layers.linear import Linear, Project
from semipd_engine.model.layers.norm import BLOCK, NORMED
from semipd_engine.model.layers.rotary import cosines_and_sines
from semipd_engine.model.stage import Stage, Step, Work

QKV, ATTENDED = "qkv", "attended"


class AttentionBackend(Protocol):
    """Attention of all layers, over caches that it knows. What it needs beyond a batch it makes for itself."""

    def prepare(self, batch: Batch) -> None:
        """Once for each step, before its first layer: masks, groups, splits."""

    def run(self, layer: int, q: Tensor, out: Tensor, rows: tuple[int, int], window: int = 0) -> None:
        """``out[a:b]`` for ``rows = (a, b)`` from ``q [T, heads, head_dim]``; keys and values are in the cache.
        ``window`` > 0: a row sees its last `window` positions."""


class PagedAttention:
    """Kernels that read the block tables themselves: nothing to prepare but the batch."""

    def __init__(self, kernels: Kernels, kv: KVPool, scale: float) -> None:
        self._kernels = kernels
        self._caches = [kv.layer(layer) for layer in range(kv.layout.num_layers)]
        self._scale = scale
        self._batch: Batch | None = None

    def prepare(self, batch: Batch) -> None:
        self._batch = batch

    def run(self, layer: int, q: Tensor, out: Tensor, rows: tuple[int, int], window: int = 0) -> None:
        batch = self._batch
        assert batch is not None, "prepare comes first"
        keys, values = self._caches[layer]
        self._kernels.paged_attention(
            q,
            keys,
            values,
            batch.block_tables,
            batch.seq_lens,
            batch.query_start_loc,
            self._scale,
            out,
            rows=rows,
            window=window,
        )


class WriteKV:
    """Stage: queries and keys normed (where the family does) and rotated, keys and values written to the cache."""

    recordable = True

    def __init__(
        self,
        kernels: Kernels,
        config: ModelConfig,
        caches: Sequence[Tensor],
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> None:
        self._kernels, self._config = kernels, config
        self._keys, self._values = caches
        self._q_norm, self._k_norm = q_norm, k_norm
        self._width = config.q_width + 2 * config.kv_width

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        return Work(read=4 * step.batch.rows * self._width * step.workspace.itemsize)

    def run(self, step: Step, begin: int, end: int) -> None:
        cos, sin = cosines_and_sines(step, self._config.head_dim)
        self._kernels.qk_norm_rope_write_kv(
            step.rows(QKV, self._width)[begin:end],
            cos[begin:end],
            sin[begin:end],
            step.batch.slot_mapping[begin:end],
            self._keys,
            self._values,
            self._config.head_dim,
            self._q_norm,
            self._k_norm,
            self._config.rms_norm_eps,
        )


class Attend:
    """Stage: ``attended = softmax(q k / sqrt(head_dim)) v`` of each row over its sequence."""

    recordable = True

    def __init__(self, backend: AttentionBackend, config: ModelConfig, layer: int, window: int = 0) -> None:
        self._backend, self._config = backend, config
        self._layer, self._window = layer, window

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        config, batch = self._config, step.batch
        cached = 2 * int(batch.seq_lens.shape[0]) * config.kv_width * step.workspace.itemsize
        return Work(read=cached * batch.visible // max(1, batch.rows), scores=2 * batch.visible * config.q_width)

    def run(self, step: Step, begin: int, end: int) -> None:
        config = self._config
        heads = (-1, config.num_heads, config.head_dim)
        qkv = step.rows(QKV, config.q_width + 2 * config.kv_width)
        q, out = qkv[:, : config.q_width].view(heads), step.rows(ATTENDED, config.q_width).view(heads)
        self._backend.run(self._layer, q, out, (begin, end), self._window)


def attention(qkv: Linear, write: WriteKV, attend: Attend, output: Linear) -> list[Stage]:
    """From `normed` to `block`, which the next norm adds to the residual stream."""
    return [Project(qkv, NORMED, QKV), write, attend, Project(output, ATTENDED, BLOCK)]
