"""Parameters of the rotary position embedding, from both spellings of config.json. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields

KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


@dataclass(frozen=True)
class RopeConfig:
    """`kind` decides which of the other fields count; see `model.layers.rotary`."""

    kind: str
    theta: float
    factor: float = 1.0
    original_max_position_embeddings: float = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @property
    def score_scale(self) -> float:
        """Of attention scores, where a model takes `mscale_all_dim` into them: the factor of YaRN, squared."""
        if self.kind == "default" or not self.mscale_all_dim or self.factor <= 1:
            return 1.0
        return float((0.1 * self.mscale_all_dim * log(self.factor) + 1.0) ** 2)

    @classmethod
    def parse(cls, config: Fields) -> RopeConfig:
        """`rope_parameters` of transformers 5, `rope_scaling` + `rope_theta` of transformers 4; of both the latter."""
        scaling = config.nested("rope_scaling") if config.get("rope_scaling") else config.nested("rope_parameters")
        config.refuse_unless("partial_rotary_factor", 1.0)
        theta = config.above_zero("rope_theta", 10000.0)
        if scaling is None:
            return cls("default", theta)
        scaling.refuse_unless("partial_rotary_factor", 1.0)
        theta = scaling.above_zero("rope_theta", theta)
        kind = scaling.get("rope_type") or scaling.get("type")
        if kind is None and (unread := sorted(scaling.names() - {"rope_theta", "partial_rotary_factor"})):
            raise ModelError(
                "InvalidConfig",
                f"config.json: the rotary scaling has {', '.join(unread)} and no rope_type; name the type, one of"
                f" {', '.join(KINDS)}",
            )
        if (kind or "default") not in KINDS:
            raise ModelError(
                "UnsupportedRopeScaling", f"config.json: rope_type is {kind!r}; this engine knows {', '.join(KINDS)}"
            )
        if kind == "dynamic":
            # Its factor counts beyond max_position_embeddings, where no request is let: a key's rotation would depend
            # on how long its prompt is, and no two prompts could share one.
            scaling.above_zero("factor")
            scaling.refuse_unless("mscale_all_dim", None)  # DeepSeek's scores would be scaled at any length
        if kind in (None, "default", "dynamic"):
            return cls("default", theta)
        longest = config.positive("max_position_embeddings", 2048)
        original = scaling.above_zero("original_max_position_embeddings", longest)
        if kind in ("llama3", "yarn"):  # beside the rotary parameters it wins, as in transformers
            original = config.above_zero("original_max_position_embeddings", original)

        def optional(name: str) -> float | None:
            return None if scaling.get(name) is None else scaling.number(name)

        return cls(
            kind=kind,
            theta=theta,
            factor=scaling.above_zero("factor", longest / original if kind == "yarn" else None),
            original_max_position_embeddings=original,
            low_freq_factor=scaling.number("low_freq_factor", None if kind == "llama3" else 1.0),
            high_freq_factor=scaling.number("high_freq_factor", None if kind == "llama3" else 4.0),
            beta_fast=optional("beta_fast") or 32.0,
            beta_slow=optional("beta_slow") or 1.0,
            attention_factor=optional("attention_factor"),
            mscale=optional("mscale"),
            mscale_all_dim=optional("mscale_all_dim"),
            truncate=scaling.flag("truncate", True, null=False),
        )
