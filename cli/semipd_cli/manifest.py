"""Reads SemiPDServices from files for the command line: YAML, ``--set``, the API server's rules. No cluster."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from semipd_operator.api.v1alpha1.resource import KIND, InvalidSpec, SemiPDService


class ManifestError(ValueError):
    """A file cannot be used; the message names it, and each error in it on a line of its own."""


@dataclass(frozen=True)
class Manifest:
    path: Path
    obj: dict[str, Any]

    def service(self, settings: Iterable[str] = (), **metadata: Any) -> SemiPDService:
        """`settings`: ``model.uri=file:///m``, below spec. `metadata` fills what the API server would.

        Raises `ManifestError`.
        """
        obj = {**self.obj, "spec": _with(self.obj.get("spec"), settings)}
        own = obj.get("metadata") or {}
        if not isinstance(own, dict):
            raise ManifestError(f"{self.path}: metadata: must be an object with a name")
        obj["metadata"] = {**metadata, **own}
        name = obj["metadata"].get("name", "?")
        try:
            return SemiPDService.parse(obj)
        except InvalidSpec as invalid:
            raise ManifestError("\n".join(f"{self.path}: {name}: {error}" for error in invalid.errors)) from None


def load(path: Path) -> list[Manifest]:
    """Every SemiPDService of a file, others are passed over. Raises `ManifestError`, also if there is none."""
    try:
        documents = list(yaml.safe_load_all(path.read_text()))
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}: name a YAML file") from None
    except UnicodeDecodeError:
        raise ManifestError(f"{path}: no text: name a YAML file") from None
    except yaml.YAMLError as error:
        raise ManifestError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    found = [Manifest(path, doc) for doc in documents if isinstance(doc, dict) and doc.get("kind") == KIND]
    if not found:
        raise ManifestError(f"{path}: holds no {KIND}: write apiVersion, kind, metadata and spec")
    return found


def load_one(path: Path) -> Manifest:
    found = load(path)
    if len(found) > 1:
        raise ManifestError(f"{path}: holds {len(found)} {KIND}s: keep one")
    return found[0]


def _with(spec: Any, settings: Iterable[str]) -> Any:
    """A copy of `spec` with each ``path=value`` set; the value is YAML."""
    if not isinstance(spec, dict):
        return spec
    result = _copy(spec)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path:
            raise ManifestError(f"--set {setting}: write it like --set model.uri=file:///models/m")
        *parents, last = path.removeprefix("spec.").split(".")
        place = result
        for parent in parents:
            below = place.setdefault(parent, {})
            if not isinstance(below, dict):
                raise ManifestError(f"--set {setting}: {parent} is not an object")
            place = below
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ManifestError(
                f"--set {setting}: the value is no YAML: quote it like --set '{path}=\"...\"'"
            ) from None
    return result


def _copy(value: Any) -> Any:
    return {key: _copy(item) for key, item in value.items()} if isinstance(value, dict) else value
