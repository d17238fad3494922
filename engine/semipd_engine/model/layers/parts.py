"""Builds the parts of a layer from their weights' names, so that a family is only its wiring."""

from __future__ import annotations

from dataclasses import dataclass

from semipd_engine.cards.config import ModelConfig
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.layers.attention import Attend, AttentionBackend, WriteKV, attention
from semipd_engine.model.layers.linear import Linear
from semipd_engine.model.layers.mlp import swiglu
from semipd_engine.model.layers.norm import Norm
from semipd_engine.model.stage import Stage


@dataclass(frozen=True)
class Parts:
    config: ModelConfig
    kernels: Kernels
    weights: WeightArena
    kv: KVPool
    backend: AttentionBackend

    def linear(self, name: str) -> Linear:
        return Linear(self.kernels, self.weights.packed(f"{name}.weight"), self.weights.get(f"{name}.bias"))

    def norm(self, name: str, add: bool = True) -> Norm:
        return Norm(self.kernels, self.weights[name], self.config.rms_norm_eps, add)

    def attention(self, prefix: str, index: int, qk_norm: bool = False, window: int = 0) -> list[Stage]:
        """Grouped-query attention: `qkv`, `attention_output`, and with `qk_norm` the norms of its heads."""
        norms = (self.weights[f"{prefix}.q_norm"], self.weights[f"{prefix}.k_norm"]) if qk_norm else (None, None)
        return attention(
            self.linear(f"{prefix}.qkv"),
            WriteKV(self.kernels, self.config, self.kv.layer(index), *norms),
            Attend(self.backend, self.config, index, window),
            self.linear(f"{prefix}.attention_output"),
        )

    def swiglu(self, prefix: str) -> list[Stage]:
        return swiglu(self.kernels, self.linear(f"{prefix}.gate_up"), self.linear(f"{prefix}.down"))

    def pre_norm(self, index: int, attention: list[Stage], mlp: list[Stage]) -> list[Stage]:
        """Both blocks behind a norm and added to the residual stream, as all of today's families have them."""
        prefix = f"layers.{index}"
        first, second = self.norm(f"{prefix}.attention_norm", add=index > 0), self.norm(f"{prefix}.mlp_norm")
        return [first, *attention, second, *mlp]
