"""Reads the safetensors files of a Hugging Face directory, one tensor at a time, in any order.

What the files hold is judged before the first tensor is read (`cards.checkpoint`). Knows nothing of where the tensors
go.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from semipd_engine.cards.checkpoint import INDEX, SCALE, SINGLE, Inventory, Stored, sharded, spelt
from semipd_engine.cards.config import ModelConfig
from semipd_engine.cards.errors import ModelError
from semipd_engine.cards.fields import denied, no_file, read_json
from semipd_engine.cards.weights import LM_HEAD, embedding_name


class Checkpoint:
    def __init__(self, directory: Path, expected: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
        """Opens all files. Raises `ModelError`: NotFound, NotReadable, InvalidCheckpoint, MissingTensors,
        UnexpectedTensor, ShapeMismatch, UnsupportedDtype."""
        self._files: dict[str, tuple[Path, Any]] = {}
        self._block = config.fp8_block
        self._open = ExitStack()
        inventory = Inventory(expected, config)
        try:
            for path in _files(directory):
                self._add(path, inventory)
            inventory.complete(directory)
        except BaseException:
            self._open.close()
            raise

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """Whole, as the file has it; FP8 blocks dequantised, rounded once to `dtype`."""
        path, file = self._files[name]
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _broken(path, error) from error
        if tensor.dtype != torch.float8_e4m3fn:
            return tensor
        assert self._block is not None
        return dequantised(tensor, self.tensor(name + SCALE, torch.float32), self._block, dtype)

    def path(self, name: str) -> Path:
        """The file that holds it."""
        return self._files[name][0]

    def close(self) -> None:
        self._files.clear()
        self._open.close()

    def _add(self, path: Path, inventory: Inventory) -> None:
        try:
            file = self._open.enter_context(safe_open(path, framework="pt"))
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                entry = file.get_slice(name)
                if inventory.add(name, Stored(path, tuple(entry.get_shape()), entry.get_dtype())):
                    self._files[name] = (path, file)
        except (SafetensorError, OSError) as error:
            raise _broken(path, error) from error


def dequantised(tensor: Tensor, scale: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """``tensor [N, K]`` times the scale of each block of rows x columns. In float32, a row of blocks at a time."""
    rows, columns = block
    out = torch.empty(tensor.shape, dtype=dtype)
    for row, scales in zip(range(0, tensor.shape[0], rows), scale.float(), strict=True):
        part = tensor[row : row + rows].float()
        out[row : row + rows] = part.mul_(scales.repeat_interleave(columns)[: tensor.shape[1]])
    return out


def settle(config: ModelConfig, directory: Path) -> ModelConfig:
    """The configuration as the checkpoint bears it out: how it spells its tensors, and whether its embeddings are tied.
    One that holds an output layer unlike its embedding has two matrices, whatever config.json says. So reads
    transformers 5. Raises `ModelError`."""
    places: dict[str, Path] = {}
    for path in _files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                places |= dict.fromkeys(file.keys(), path)
        except (SafetensorError, OSError) as error:
            raise _broken(path, error) from error
    config = spelt(config, places)
    ends = (embedding_name(config), LM_HEAD)
    if not config.tie_word_embeddings or not places.keys() >= set(ends):
        return config
    embedding, head = (_tensor(places[name], name) for name in ends)
    return config if torch.equal(embedding, head) else replace(config, tie_word_embeddings=False)


def _tensor(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise _broken(path, error) from error
    return tensor


def _files(directory: Path) -> list[Path]:
    if sharded(directory):
        index = read_json(directory / INDEX).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ModelError("InvalidCheckpoint", f"{directory / INDEX}: weight_map must name a file for each tensor")
        if outside := sorted(name for name in set(index.values()) if Path(name).name != name):
            raise ModelError("InvalidCheckpoint", f"{directory / INDEX}: {outside[0]!r} is no file of this folder")
        files = [directory / name for name in sorted(set(index.values()))]
    else:
        files = [directory / SINGLE]
    for path in files:
        if why := denied(path):
            raise ModelError("NotReadable", why)
        if not path.exists():
            missing = f"{path} does not exist; weights are read from safetensors files only"
            raise ModelError("NotFound", no_file(path) or missing)
    return files


def _broken(path: Path, error: Exception) -> ModelError:
    if why := denied(path):
        return ModelError("NotReadable", why)
    return ModelError("InvalidCheckpoint", no_file(path) or f"{path}: {error}")
