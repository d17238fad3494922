"""The families that the engine runs: one line each. A family is two files, `cards/<family>.py` (what a model is) and
`model/families/<family>.py` (how its layers are wired), and its line here.

Torch-free: the wiring is named and imported where torch is (`model.decoder`). Everything that must know which
architectures there are (commands, importers, errors) asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.deepseek import deepseek_v2, deepseek_v3, random_deepseek_v2, random_deepseek_v3
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import Fields, read_json, there
from semipd_engine.cards.llama import llama
from semipd_engine.cards.mistral import mistral
from semipd_engine.cards.qwen import qwen2, qwen3, qwen3_moe, random_qwen3_moe


@dataclass(frozen=True)
class Family:
    """One `model_type` of config.json."""

    card: Callable[[Fields, Fields], ModelConfig]
    """(config.json, generation_config.json) -> what the model is. Raises `ModelError`."""
    wiring: str
    """Module of `semipd_engine.model.families`; its `layer` builds one decoder layer."""
    random_fields: Callable[[int, int], dict[str, Any]] = lambda heads, inner: {}
    """(heads, intermediate size) -> what config.json of a random model has beyond the fields that all families spell
    alike (`make-model`)."""
    gguf: bool = False
    """`import-gguf` reads its files."""


FAMILIES: Mapping[str, Family] = {
    "deepseek_v2": Family(deepseek_v2, "deepseek", random_deepseek_v2),
    "deepseek_v3": Family(deepseek_v3, "deepseek", random_deepseek_v3),
    "llama": Family(llama, "llama", gguf=True),
    "mistral": Family(mistral, "mistral", lambda heads, inner: {"sliding_window": 256}),
    "qwen2": Family(qwen2, "qwen", gguf=True),
    "qwen3": Family(qwen3, "qwen", gguf=True),
    "qwen3_moe": Family(qwen3_moe, "qwen", random_qwen3_moe),
}


def read_card(path: Path | str) -> ModelConfig:
    """What the Hugging Face directory `path` holds. Raises `ModelError` for a missing or broken file and for what this
    engine cannot run, naming the field."""
    directory = Path(path)
    config = Fields(read_json(directory / "config.json"), "config.json")
    generation = directory / "generation_config.json"
    values = read_json(generation) if there(generation) else {}
    return parse_card(config, Fields(values, generation.name))


def parse_card(config: Fields, generation: Fields | None = None) -> ModelConfig:
    """The same from parsed files. Raises `ModelError`."""
    architecture = config.text("model_type")
    if architecture not in FAMILIES:
        names = config.get("architectures")
        named = f" ({', '.join(map(str, names))})" if isinstance(names, list) and names else ""
        raise ModelError(
            "UnsupportedArchitecture",
            f"config.json: model_type is {architecture!r}{named}; this engine runs {', '.join(FAMILIES)}",
        )
    return FAMILIES[architecture].card(config, generation or Fields({}, "generation_config.json"))
