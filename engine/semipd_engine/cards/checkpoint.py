"""What a model's safetensors files must hold by its config.json: which tensors, of which shapes and number formats.

Strict: a tensor that is missing, has another shape, or is not known to the model is an error, because ignoring it would
give wrong tokens without a word. Torch-free: it is told what the headers say, and reads no file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from semipd_engine.cards.config import ModelConfig, Spelling
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import there
from semipd_engine.cards.weights import LM_HEAD

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FP8, SCALE = "F8_E4M3", "_scale_inv"
FUSED = ".mlp.experts.gate_up_proj"
NUMBERS = ("F64", "F32", "F16", "BF16")
DERIVED = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Buffers that old checkpoints carry and every reader recomputes."""


def sharded(directory: Path) -> bool:
    """Is it the index that names the folder's files? A whole file beside it wins, as in transformers."""
    return there(directory / INDEX) and not (directory / SINGLE).is_file()


@dataclass(frozen=True)
class Stored:
    """One tensor, as the header of its file has it."""

    path: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name for it."""


def spelt(config: ModelConfig, names: Collection[str]) -> ModelConfig:
    """The configuration with the spelling of a checkpoint that holds tensors of these names."""
    prefix = "" if "embed_tokens.weight" in names or "layers.0.input_layernorm.weight" in names else "model."
    alone = config.tie_word_embeddings and LM_HEAD in names and f"{prefix}embed_tokens.weight" not in names
    fused = any(name.endswith(FUSED) for name in names)
    return replace(config, spelling=Spelling(prefix, alone, fused))


class Inventory:
    """The tensors of a model that were found so far."""

    def __init__(self, expected: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
        """`expected`: the shape of each tensor of the model by its name in a checkpoint."""
        self._expected, self._config = expected, config
        self._found: dict[str, Stored] = {}

    def add(self, name: str, stored: Stored) -> bool:
        """Is it a part of the model? Raises `ModelError`: UnexpectedTensor, ShapeMismatch, UnsupportedDtype,
        InvalidCheckpoint (it is in two files)."""
        wanted = self._wanted(name)
        if wanted is None:
            self._refuse_unknown(name, stored.path)
            return False
        if stored.shape != wanted:
            said = f"{stored.path}: {name} has shape {stored.shape}, config.json says {wanted}"
            raise ModelError("ShapeMismatch", said)
        if stored.dtype not in (NUMBERS if self._config.fp8_block is None else (*NUMBERS, FP8)):
            said = f"{stored.path}: {name} holds {stored.dtype}; expected one of {', '.join(NUMBERS)}"
            raise ModelError("UnsupportedDtype", said)
        if name in self._found:
            raise ModelError("InvalidCheckpoint", f"{stored.path}: {name} is in {self._found[name].path.name}, too")
        self._found[name] = stored
        return True

    def complete(self, directory: Path) -> None:
        """Raises `ModelError` where a tensor was not added: MissingTensors."""
        missing = sorted(set(self._expected) - set(self._found))
        missing += sorted(
            name + SCALE
            for name, stored in self._found.items()
            if name + SCALE not in self._found and stored.dtype == FP8
        )
        if missing:
            some = ", ".join(missing[:3])
            raise ModelError("MissingTensors", f"{directory}: {len(missing)} tensors are missing, among them {some}")

    def _wanted(self, name: str) -> tuple[int, ...] | None:
        """The shape that it must have: a matrix's own, or that of its scales; None: it is no part of the model."""
        matrix, block = self._expected.get(name.removesuffix(SCALE), ()), self._config.fp8_block
        if block is None or not name.endswith(SCALE) or len(matrix) != 2:
            return self._expected.get(name)
        return tuple(-(-size // part) for size, part in zip(matrix, block, strict=True))

    def _refuse_unknown(self, name: str, path: Path) -> None:
        config = self._config
        tied = name == LM_HEAD and config.tie_word_embeddings
        behind = range(config.num_layers, config.num_layers + config.ignored_layers)
        ignored = name.startswith(tuple(f"{config.spelling.prefix}layers.{layer}." for layer in behind))
        if not tied and not ignored and not name.endswith(DERIVED):
            raise ModelError(
                "UnexpectedTensor", f"{path}: {name} is no part of a {config.architecture} as config.json says"
            )
