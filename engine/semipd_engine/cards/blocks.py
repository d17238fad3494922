"""What the blocks of a layer may be beside dense ones: a mixture of experts, latent attention. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields

MOST_EXPERTS = 1 << 16


@dataclass(frozen=True)
class Routing:
    """Which experts a token goes to, and with what weight."""

    experts: int
    chosen: int
    """Experts of a token."""
    sigmoid: bool = False
    """Scores are the sigmoid of each logit; else the softmax over all."""
    normalise: bool = False
    """The weights of the chosen are divided by their sum."""
    scale: float = 1.0
    """Of the weights, at the end."""
    groups: int = 1
    """The experts fall into so many equal groups, in order."""
    groups_chosen: int = 1
    """Only experts of the best groups may be chosen. A group counts as its best score, with `sigmoid` as the sum of its
    two best."""

    def check(self) -> Routing:
        """Raises `ModelError` for counts that contradict each other."""
        size = self.experts // self.groups
        fits = self.experts <= MOST_EXPERTS and self.experts % self.groups == 0 and self.groups_chosen <= self.groups
        if not fits or self.chosen > size * self.groups_chosen or (self.groups > 1 and self.sigmoid and size < 2):
            raise ModelError(
                "InvalidConfig",
                f"config.json: {self.chosen} of {self.experts} experts in {self.groups_chosen} of {self.groups} groups"
                " cannot be chosen; see num_experts_per_tok, n_group and topk_group",
            )
        return self


@dataclass(frozen=True)
class Mixture:
    """SwiGLU experts in place of one feed-forward block."""

    routing: Routing
    intermediate_size: int
    """Of one expert."""
    layers: tuple[bool, ...]
    """For each layer: has it experts? The others are dense."""
    shared_size: int = 0
    """Intermediate size of the expert that every token goes to; 0: there is none."""
    bias: bool = False
    """A number for each expert, added to its score for the choice alone."""


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): the cache holds one vector for all heads."""

    rank: int
    """Of the vector that keys and values are made from."""
    rope_dim: int
    """Dimensions of queries and keys that carry the position; the keys' are shared by all heads."""
    nope_dim: int
    """The other dimensions of a query or key head."""
    value_dim: int
    """Of a value head."""
    query_rank: int = 0
    """Of the vector that queries are made from; 0: they are made from the hidden state."""
    interleaved: bool = True
    """The checkpoint has the dimensions of a rotation side by side; else in two halves."""

    @property
    def width(self) -> int:
        """Elements of a token in the cache."""
        return self.rank + self.rope_dim

    @property
    def query_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    @classmethod
    def parse(cls, config: Fields, interleaved: bool) -> Latent:
        """DeepSeek's fields. Raises `ModelError`."""
        latent = cls(
            rank=config.positive("kv_lora_rank", 512),
            rope_dim=config.positive("qk_rope_head_dim", 64),
            nope_dim=config.positive("qk_nope_head_dim", 128),
            value_dim=config.positive("v_head_dim", 128),
            query_rank=0 if config.get("q_lora_rank", 1536) is None else config.positive("q_lora_rank", 1536),
            interleaved=interleaved,
        )
        if latent.rope_dim % 2:
            raise ModelError("InvalidConfig", f"config.json: qk_rope_head_dim ({latent.rope_dim}) must be even")
        return latent
