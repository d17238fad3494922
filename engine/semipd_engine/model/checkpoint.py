"""Reads the safetensors files of a Hugging Face directory, one tensor at a time.

Strict: a tensor that is missing, has another shape, or is not known to the model is an error, because ignoring it
would give wrong tokens without a word. Knows nothing of where the tensors go.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import read_json
from semipd_engine.cards.weights import LM_HEAD

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DERIVED = ("rotary_emb.inv_freq",)
"""Buffers that old checkpoints carry and every reader recomputes."""


def stream(
    directory: Path, expected: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> Iterator[tuple[str, Tensor]]:
    """Yield each expected tensor once, in the order of the files. The tensor is a view of the mapped file."""
    missing = set(expected)
    for path in _files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if name not in expected:
                        _refuse_unknown(name, path, config)
                        continue
                    tensor = file.get_tensor(name)
                    if tuple(tensor.shape) != expected[name]:
                        raise ModelError(
                            "ShapeMismatch",
                            f"{path}: {name} has shape {tuple(tensor.shape)}, config.json says {expected[name]}",
                        )
                    missing.discard(name)
                    yield name, tensor
        except (SafetensorError, OSError) as error:
            raise ModelError("InvalidCheckpoint", f"{path}: {error}") from error
    if missing:
        some = ", ".join(sorted(missing)[:3])
        raise ModelError("MissingTensors", f"{directory}: {len(missing)} tensors are missing, among them {some}")


def _files(directory: Path) -> list[Path]:
    if (directory / INDEX).exists():
        index = read_json(directory / INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise ModelError("InvalidCheckpoint", f"{directory / INDEX}: weight_map is missing")
        files = [directory / name for name in sorted(set(index.values()))]
    else:
        files = [directory / SINGLE]
    for path in files:
        if not path.exists():
            raise ModelError("NotFound", f"{path} does not exist; weights are read from safetensors files only")
    return files


def _refuse_unknown(name: str, path: Path, config: ModelConfig) -> None:
    tied = name == LM_HEAD and config.tie_word_embeddings
    if not tied and not name.endswith(DERIVED):
        raise ModelError(
            "UnexpectedTensor", f"{path}: {name} is no part of a {config.architecture} as config.json says"
        )
