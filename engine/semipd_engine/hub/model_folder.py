"""Checks that a folder holds a whole Hugging Face model, and lists its tensors, without reading them. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from semipd_engine.cards.checkpoint import INDEX, SINGLE, Stored, sharded
from semipd_engine.cards.fields import BROKEN, no_file, not_json, there

MAX_HEADER_BYTES = 100_000_000
_ITEMSIZE = (
    dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1)
    | dict.fromkeys(("I16", "U16", "F16", "BF16"), 2)
    | dict.fromkeys(("I32", "U32", "F32"), 4)
    | dict.fromkeys(("I64", "U64", "F64"), 8)
)
"""Bytes of an element, by safetensors' names; of others nothing is known here."""


class IncompleteModel(Exception):
    """A file is missing, cut short or unreadable. The message names it."""


def check_model_folder(directory: Path) -> int:
    """Bytes of the weights. Raises `IncompleteModel`.

    Wanted: config.json, tokenizer.json, and safetensors whose sizes fit their headers (an interrupted copy does not);
    with an index, every shard that it names.
    """
    for name in ("config.json", "tokenizer.json"):
        _object(directory / name)
    shards = _shards(directory)
    return sum(_check_shard(shard) for shard in shards)


def tensors(directory: Path) -> Iterator[tuple[str, Stored]]:
    """Each tensor of a whole folder by its name, as the headers say. Raises `IncompleteModel`, also for a header that
    contradicts itself: the tensors fill the file in some order, without gaps, and a shape says how many bytes."""
    for path in _shards(directory):
        end = 0
        try:
            entries = [(name, entry) for name, entry in _header(path)[1].items() if name != "__metadata__"]
            for name, entry in sorted(entries, key=lambda one: tuple(one[1]["data_offsets"])):
                first, last = entry["data_offsets"]
                shape = tuple(int(size) for size in entry["shape"])
                itemsize = _ITEMSIZE.get(entry["dtype"])
                if first != end or (itemsize is not None and last - first != prod(shape) * itemsize):
                    raise IncompleteModel(f"{path}: the place of {name} in it is wrong; copy or fetch it again")
                end = last
                yield name, Stored(path, shape, str(entry["dtype"]))
        except (*BROKEN, TypeError, KeyError, IndexError, AttributeError):
            raise _damaged(path) from None


def _shards(directory: Path) -> list[Path]:
    index = directory / INDEX
    if sharded(directory):
        weight_map = _object(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise IncompleteModel(f"{index}: has no weight_map; fetch the file again")
        if not all(isinstance(name, str) for name in weight_map.values()):
            raise IncompleteModel(f"{index}: weight_map must name a file for each tensor; fetch the file again")
        if outside := sorted(name for name in set(weight_map.values()) if Path(name).name != name):
            raise IncompleteModel(f"{index}: {outside[0]!r} is no file of this folder; fetch the file again")
        return sorted(directory / name for name in set(weight_map.values()))
    if not there(directory / SINGLE):
        remedy = gguf_remedy(directory) or "point the URI at a model folder in that format"
        if other := _one_of(directory, "*.bin", "*.pt", "*.pth"):
            remedy = f"{other} is not read: load it with transformers and save it with save_pretrained"
        raise IncompleteModel(f"{directory} holds neither {SINGLE} nor {INDEX}; {remedy}")
    return [directory / SINGLE]


def _check_shard(path: Path) -> int:
    """The file's size, which its header determines: 8 bytes of length, the header, then the tensors' bytes."""
    try:
        size = path.stat().st_size
        begin, header = _header(path)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        expected = begin + max(ends, default=0)
    except FileNotFoundError:
        missing = f"{path} is missing, but the index names it; copy or fetch the model again"
        raise IncompleteModel(no_file(path) or missing) from None
    except (*BROKEN, TypeError, KeyError, IndexError, AttributeError):
        raise _damaged(path) from None
    if size != expected:
        raise IncompleteModel(f"{path} has {size:,} bytes instead of {expected:,}; copy or fetch it again")
    return size


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    """(where the tensors begin, the header). Raises whatever a damaged file makes of it."""
    size = path.stat().st_size
    with path.open("rb") as source:
        length = int.from_bytes(source.read(8), "little")
        header = json.loads(source.read(length)) if length <= min(size, MAX_HEADER_BYTES) else None
    if not isinstance(header, dict):
        raise ValueError("no header")
    return 8 + length, header


def _damaged(path: Path) -> IncompleteModel:
    damaged = f"{path} is not a safetensors file, or its beginning is damaged; copy or fetch it again"
    return IncompleteModel(no_file(path) or damaged)


def gguf_remedy(directory: Path) -> str:
    """What makes a model folder of this one; nothing where it holds no weights of llama.cpp."""
    weights = _one_of(directory, "*.gguf")
    return f"semipd-engine import-gguf makes such a folder of {weights}" if weights else ""


def _one_of(directory: Path, *patterns: str) -> str:
    """The name of a file like these, the first that there is; or nothing."""
    return next((path.name for pattern in patterns for path in sorted(directory.glob(pattern))), "")


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = gguf_remedy(path.parent) or "point the URI at a Hugging Face model folder"
        other = _one_of(path.parent, "tokenizer.model", "tekken.json", "vocab.json")
        if path.name == "tokenizer.json" and other:
            remedy = f"transformers' AutoTokenizer makes it of {other}, and save_pretrained writes it"
        missing = f"{path} is missing; {remedy}"
        raise IncompleteModel(no_file(path) or missing) from None
    except BROKEN as error:
        raise IncompleteModel(not_json(path, error)) from None
    if not isinstance(value, dict):
        raise IncompleteModel(f"{path}: must hold a JSON object")
    return value
