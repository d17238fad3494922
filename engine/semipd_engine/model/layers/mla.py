"""Latent attention, absorbed in both phases: keys and values are never made.

The cache holds one vector for all heads of a token. A head's query is taken to that vector's space, attends there, and
what it attended to is taken to the head's values: two small matrices for each head in place of one large one for each
position. Reads and writes the buffers of grouped-query attention, with another cache.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from semipd_engine.cards.blocks import Latent
from semipd_engine.cards.config import ModelConfig
from semipd_engine.kernels import Kernels
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.batch import Batch
from semipd_engine.model.layers.attention import ATTENDED, AttentionBackend
from semipd_engine.model.layers.linear import GroupedLinear, Linear, Project
from semipd_engine.model.layers.norm import BLOCK, NORMED
from semipd_engine.model.layers.rotary import cosines_and_sines
from semipd_engine.model.stage import Stage, Step, Work

QUERY_LOW, QUERY, LOW, ABSORBED, ATTENDED_LOW = "query_low", "query", "kv_low", "absorbed", "attended_low"
EPS = 1e-6
"""Of the norms inside the block, whatever config.json says of the others."""


class LatentAttention:
    """`layers.attention.AttentionBackend` over a cache of one component; it knows no window."""

    def __init__(self, kernels: Kernels, kv: KVPool, scale: float) -> None:
        self._kernels, self._scale = kernels, scale
        self._caches = [kv.layer(layer)[0] for layer in range(kv.layout.num_layers)]
        self._batch: Batch | None = None

    def prepare(self, batch: Batch) -> None:
        self._batch = batch

    def run(self, layer: int, q: Tensor, out: Tensor, rows: tuple[int, int], window: int = 0) -> None:
        batch = self._batch
        assert batch is not None and window == 0, "prepare comes first"
        self._kernels.latent_attention(
            *(q, self._caches[layer], batch.block_tables, batch.seq_lens, batch.query_start_loc, self._scale, out), rows
        )


class _Sizes:
    """Views of the block's buffers."""

    def __init__(self, config: ModelConfig, latent: Latent) -> None:
        self.heads, self.latent = config.num_heads, latent

    def query(self, step: Step) -> Tensor:
        """[T, H, nope + rope]"""
        size = self.latent.query_dim
        return step.rows(QUERY, self.heads * size).view(-1, self.heads, size)

    def absorbed(self, step: Step) -> Tensor:
        """[T, H, rank + rope]"""
        size = self.latent.width
        return step.rows(ABSORBED, self.heads * size).view(-1, self.heads, size)

    def attended_low(self, step: Step) -> Tensor:
        """[T, H, rank]"""
        size = self.latent.rank
        return step.rows(ATTENDED_LOW, self.heads * size).view(-1, self.heads, size)

    def attended(self, step: Step) -> Tensor:
        """[T, H, value_dim]"""
        size = self.latent.value_dim
        return step.rows(ATTENDED, self.heads * size).view(-1, self.heads, size)


class NormLow:
    """Stage: the norm of what queries are made from, in place."""

    recordable = True

    def __init__(self, kernels: Kernels, weight: Tensor) -> None:
        self._kernels, self._weight = kernels, weight

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        return Work(read=3 * step.batch.rows * self._weight.nbytes)

    def run(self, step: Step, begin: int, end: int) -> None:
        low = step.rows(QUERY_LOW, self._weight.shape[0])[begin:end]
        self._kernels.rms_norm(low, self._weight, EPS, low)


class WriteLatent:
    """Stage: the shared vector normed and rotated, into the cache; the queries' rotated part into its place."""

    recordable = True

    def __init__(self, kernels: Kernels, sizes: _Sizes, cache: Tensor, norm: Tensor) -> None:
        self._kernels, self._sizes, self._cache, self._norm = kernels, sizes, cache, norm

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        width = 3 * self._sizes.latent.width + 2 * self._sizes.heads * self._sizes.latent.rope_dim
        return Work(read=step.batch.rows * width * step.workspace.itemsize)

    def run(self, step: Step, begin: int, end: int) -> None:
        cos, sin = cosines_and_sines(step, self._sizes.latent.rope_dim)
        self._kernels.latent_rope_write(
            self._sizes.query(step)[begin:end],
            step.rows(LOW, self._sizes.latent.width)[begin:end],
            cos[begin:end],
            sin[begin:end],
            step.batch.slot_mapping[begin:end],
            self._norm,
            EPS,
            self._cache,
            self._sizes.absorbed(step)[begin:end],
        )


class ProjectHeads:
    """Stage: the first elements of each head, times its own matrix, become the first ones of another buffer."""

    recordable = True

    def __init__(
        self, linear: GroupedLinear, source: Callable[[Step], Tensor], target: Callable[[Step], Tensor]
    ) -> None:
        """`source` and `target` give ``[T, H, width]``, at least as wide as the matrices."""
        self._linear, self._source, self._target = linear, source, target

    def units(self, step: Step) -> int:
        return self._linear.panels

    def work(self, step: Step) -> Work:
        return self._linear.work(step.batch.rows * self._linear.count)

    def run(self, step: Step, begin: int, end: int) -> None:
        x, out = self._source(step).flatten(0, 1), self._target(step).flatten(0, 1)
        self._linear.run(x[:, : self._linear.in_features], out[:, : self._linear.out_features], begin, end)


class AttendLatent:
    """Stage: each head attends to the cached vectors, and gets their first part back."""

    recordable = True

    def __init__(self, backend: AttentionBackend, sizes: _Sizes, layer: int) -> None:
        self._backend, self._sizes, self._layer = backend, sizes, layer

    def units(self, step: Step) -> int:
        return step.batch.rows

    def work(self, step: Step) -> Work:
        latent, batch = self._sizes.latent, step.batch
        cached = len(batch.seq_lens) * latent.width * step.workspace.itemsize * batch.visible // max(1, batch.rows)
        return Work(read=cached, latent=batch.visible * self._sizes.heads * (latent.width + latent.rank))

    def run(self, step: Step, begin: int, end: int) -> None:
        self._backend.run(self._layer, self._sizes.absorbed(step), self._sizes.attended_low(step), (begin, end))


def latent_attention(
    kernels: Kernels,
    config: ModelConfig,
    latent: Latent,
    backend: AttentionBackend,
    layer: int,
    cache: Tensor,
    low_queries: tuple[Linear, Tensor] | None,
    queries: Linear,
    low: tuple[Linear, Tensor],
    heads: tuple[GroupedLinear, GroupedLinear],
    output: Linear,
) -> list[Stage]:
    """From `normed` to `block`. `low_queries` and `low`: a matrix and the norm of what it makes; `heads`: to the cached
    vector's space, and from it."""
    sizes = _Sizes(config, latent)
    first: list[Stage] = []
    if low_queries is not None:
        first = [Project(low_queries[0], NORMED, QUERY_LOW), NormLow(kernels, low_queries[1])]
    return [
        *first,
        Project(queries, QUERY_LOW if first else NORMED, QUERY),
        Project(low[0], NORMED, LOW),
        WriteLatent(kernels, sizes, cache, low[1]),
        ProjectHeads(heads[0], sizes.query, sizes.absorbed),
        AttendLatent(backend, sizes, layer),
        ProjectHeads(heads[1], sizes.attended_low, sizes.attended),
        Project(output, ATTENDED, BLOCK),
    ]
