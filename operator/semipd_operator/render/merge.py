"""Lays a user's pod template over the rendered one: maps deeply, named lists by their key, other lists whole.

A null removes the rendered value. It knows no rendered object.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "ports": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
}
"""The lists that are merged item by item, and what tells their items apart."""
_APPENDED = ("tolerations",)
LISTS = frozenset({*_KEYS, *_APPENDED})
"""Fields that are lists wherever a pod has them."""


def merge(base: Any, over: Any, field: str = "") -> Any:
    """`over` laid over `base`; neither is changed."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        merged = {key: value for key, value in base.items() if not (key in over and over[key] is None)}
        for key, value in over.items():
            if value is not None:
                merged[key] = merge(merged[key], value, key) if key in merged else value
        return _one_source(base, over, merged) if field in ("env", "volumes") else merged
    if isinstance(base, Sequence) and isinstance(over, Sequence) and not isinstance(base, str):
        if field in _KEYS:
            return _merge_named(base, over, field)
        if field in _APPENDED:
            return [*base, *over]
    return over


def _merge_named(base: Sequence[Any], over: Sequence[Any], field: str) -> list[Any]:
    key = _KEYS[field]
    merged = list(base)
    places = {item.get(key): place for place, item in enumerate(base)}
    for item in over:
        place = places.get(item.get(key)) if isinstance(item, Mapping) else None
        if place is None:
            merged.append(item)
        else:
            merged[place] = merge(merged[place], item, field)
    return merged


def _one_source(base: Mapping[str, Any], over: Mapping[str, Any], merged: dict[str, Any]) -> dict[str, Any]:
    """An environment variable or a volume has one source: a new one replaces the rendered one."""
    replaced = set(over) - {"name"}
    stale = set(base) - {"name"} - set(over) if replaced else set()
    return {key: value for key, value in merged.items() if key not in stale}
