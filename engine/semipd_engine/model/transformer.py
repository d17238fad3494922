"""The decoder: embedding, layers, final norm and language-model head, for every architecture of `ModelConfig`.

Holds references to shared weights and to the KV pool, and no state of its own between two steps. Knows nothing of
requests and sampling.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from semipd_engine import ops
from semipd_engine.cards.config import ModelConfig
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.attention import GroupedQueryAttention
from semipd_engine.model.batch import Batch
from semipd_engine.model.mlp import SwiGLU
from semipd_engine.model.quanta import Load, Quanta


class DecoderLayer:
    """Attention and feed-forward block, each behind a norm and added to the residual stream."""

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], kv: KVPool, layer: int, quanta: Quanta
    ) -> None:
        prefix = f"layers.{layer}"
        self._eps = config.rms_norm_eps
        self._quanta = quanta
        self._attention_norm, self._mlp_norm = weights[f"{prefix}.attention_norm"], weights[f"{prefix}.mlp_norm"]
        self._attention = GroupedQueryAttention(config, weights, prefix, kv.layer(layer), quanta)
        self._mlp = SwiGLU(weights, prefix, quanta)

    def load(self, batch: Batch) -> Load:
        return self._attention.load(batch) + self._mlp.load(batch)

    def __call__(self, hidden: Tensor, batch: Batch) -> Tensor:
        """``hidden [T, hidden_size]`` is the residual stream; it is updated in place and returned."""
        quanta = self._quanta
        pointwise = Load(batch.rows, pointwise=hidden.numel())
        with quanta.quantum(pointwise):
            x = ops.rms_norm(hidden, self._attention_norm, self._eps)
        with quanta.group(self._attention.load(batch)):
            x = self._attention(x, batch)
        with quanta.quantum(pointwise):
            hidden += x
            x = ops.rms_norm(hidden, self._mlp_norm, self._eps)
        with quanta.group(self._mlp.load(batch)):
            x = self._mlp(x)
        hidden += x
        return hidden


class Decoder:
    def __init__(self, config: ModelConfig, weights: Mapping[str, Tensor], kv: KVPool, quanta: Quanta) -> None:
        """`weights` are named as in `weight_specs`; read, never written."""
        self._eps = config.rms_norm_eps
        self._quanta = quanta
        self._embedding = weights["embedding"]
        self._norm = weights["norm"]
        self._lm_head = weights["embedding" if config.tie_word_embeddings else "lm_head"]
        self._layers = [DecoderLayer(config, weights, kv, layer, quanta) for layer in range(config.num_layers)]

    def forward(self, token_ids: Tensor, batch: Batch) -> Tensor:
        """``token_ids`` int64 [T]. Writes all keys and values. Returns the last hidden states [T, hidden_size]."""
        hidden = F.embedding(token_ids, self._embedding)
        load = self._layers[0].load(batch)
        step = min(self._quanta.fitting(load), len(self._layers))
        for first in range(0, len(self._layers), step):
            layers = self._layers[first : first + step]
            with self._quanta.group(load * len(layers)):
                for layer in layers:
                    hidden = layer(hidden, batch)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """``hidden [R, hidden_size]`` of the rows to sample from. Returns float32 [R, vocab_size]."""
        with self._quanta.quantum(Load(hidden.shape[0], pointwise=hidden.numel())):
            hidden = ops.rms_norm(hidden, self._norm, self._eps)
        return self._quanta.linear(hidden, self._lm_head).float()
