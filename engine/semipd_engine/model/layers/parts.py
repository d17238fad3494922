"""Builds the parts of a layer from their weights' names, so that a family is only its wiring."""

from __future__ import annotations

from dataclasses import dataclass

from semipd_engine.cards.blocks import Mixture
from semipd_engine.cards.config import ModelConfig
from semipd_engine.kernels import Kernels
from semipd_engine.memory.arena import WeightArena
from semipd_engine.memory.kv_pool import KVPool
from semipd_engine.model.layers.attention import Attend, AttentionBackend, WriteKV, attention
from semipd_engine.model.layers.linear import GroupedLinear, Linear
from semipd_engine.model.layers.mla import latent_attention
from semipd_engine.model.layers.mlp import swiglu
from semipd_engine.model.layers.moe import SHARED, mixture
from semipd_engine.model.layers.norm import BLOCK, Norm
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

    def grouped(self, name: str) -> GroupedLinear:
        return GroupedLinear(self.kernels, self.weights.group(f"{name}.weight"))

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

    def latent_attention(self, prefix: str, index: int) -> list[Stage]:
        latent = self.config.latent
        assert latent is not None
        return latent_attention(
            self.kernels,
            self.config,
            latent,
            self.backend,
            index,
            self.kv.layer(index)[0],
            (self.linear(f"{prefix}.q_a"), self.weights[f"{prefix}.q_a_norm"]) if latent.query_rank else None,
            self.linear(f"{prefix}.q"),
            (self.linear(f"{prefix}.kv_a"), self.weights[f"{prefix}.kv_a_norm"]),
            (self.grouped(f"{prefix}.to_latent"), self.grouped(f"{prefix}.from_latent")),
            self.linear(f"{prefix}.attention_output"),
        )

    def mlp(self, prefix: str, index: int) -> list[Stage]:
        """The layer's experts, or its one SwiGLU where it is dense."""
        experts = self.config.experts(index)
        return self.swiglu(prefix) if experts is None else self._mixture(prefix, experts)

    def swiglu(self, prefix: str, tag: str = "", target: str = BLOCK) -> list[Stage]:
        return swiglu(self.kernels, self.linear(f"{prefix}.gate_up"), self.linear(f"{prefix}.down"), tag, target)

    def _mixture(self, prefix: str, experts: Mixture) -> list[Stage]:
        return mixture(
            self.kernels,
            experts.routing,
            self.linear(f"{prefix}.router"),
            self.weights.get(f"{prefix}.router.correction"),
            self.grouped(f"{prefix}.experts.gate_up"),
            self.grouped(f"{prefix}.experts.down"),
            self.swiglu(f"{prefix}.shared", "shared_", SHARED) if experts.shared_size else [],
        )

    def pre_norm(self, index: int, attention: list[Stage], mlp: list[Stage]) -> list[Stage]:
        """Both blocks behind a norm and added to the residual stream, as all of today's families have them."""
        prefix = f"layers.{index}"
        first, second = self.norm(f"{prefix}.attention_norm", add=index > 0), self.norm(f"{prefix}.mlp_norm")
        return [first, *attention, second, *mlp]
