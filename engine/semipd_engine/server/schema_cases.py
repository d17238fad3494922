"""Which cases of a `oneOf` exclude each other, so that any of them is one of them. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]
Resolve = Callable[[Any], Any]
"""What a schema refers to, if it does nothing else; another one as it is."""
TYPES = frozenset(("null", "boolean", "integer", "number", "string", "array", "object"))
DEEPEST = 8
"""Properties of properties that are looked at."""


def one_of_as_any_of(node: Schema, resolve: Resolve) -> Schema:
    cases = node.get("oneOf")
    if not isinstance(cases, list) or "anyOf" in node:
        return node
    if not all(exclusive(*pair, resolve) for pair in itertools.combinations(cases, 2)):
        return node
    return {("anyOf" if name == "oneOf" else name): value for name, value in node.items()}


def exclusive(one: Any, other: Any, resolve: Resolve, depth: int = 0) -> bool:
    """Nothing is valid against both: by their types, by values that are listed, or by those of a property that one of
    them requires."""
    one, other = resolve(one), resolve(other)
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is False or other is False
    first, second = _values(one), _values(other)
    if first is not None and second is not None:
        return not first & second
    both = _types(one) & _types(other)
    if both != {"object"} or depth == DEEPEST:
        return not both
    left, right = _of_kind(one, "properties", dict), _of_kind(other, "properties", dict)
    required = [*_of_kind(one, "required", list), *_of_kind(other, "required", list)]
    return any(
        isinstance(name, str)
        and name in left
        and name in right
        and exclusive(left[name], right[name], resolve, depth + 1)
        for name in required
    )


def _types(node: Schema) -> set[str]:
    kinds = node.get("type", list(TYPES))
    found = {kind for kind in (kinds if isinstance(kinds, list) else [kinds]) if isinstance(kind, str)}
    return found | {"integer"} if "number" in found else found


def _values(node: Schema) -> set[str] | None:
    """Each as a text; equal ones have the same."""
    values = [node["const"]] if "const" in node else node.get("enum")
    if not isinstance(values, list):
        return None
    return {json.dumps(_whole(value), sort_keys=True) for value in values}


def _whole(value: Any) -> Any:
    """1.0 is 1."""
    if isinstance(value, dict):
        return {name: _whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _of_kind(node: Schema, name: str, kind: type) -> Any:
    value = node.get(name)
    return value if isinstance(value, kind) else kind()
