"""Mistral: no biases, and a sliding window in every layer (absent means 4,096, null means none)."""

from __future__ import annotations

from typing import Any

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.fields import Fields


def mistral(config: Fields, generation: dict[str, Any]) -> ModelConfig:
    return ModelConfig.dense(config, generation, window=config.get("sliding_window", 4096))
