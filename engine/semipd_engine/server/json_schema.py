"""A client's JSON schema as llguidance can hold it: what it does not know is said otherwise, at most more strictly.

What follows the schema that comes out follows the one that went in. Where that cannot be had the keyword stays, and
llguidance refuses it by its name; what it would hold wrongly is refused here. Pure.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable
from typing import Any

from semipd_engine.server.schema_cases import one_of_as_any_of
from semipd_engine.server.schema_names import check_count, with_plain_names
from semipd_engine.server.schema_numbers import BOUNDS, bound, check_steps, check_values, with_numbers
from semipd_engine.server.schema_patterns import pattern

Schema = dict[str, Any]

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown")
)
"""Those that llguidance holds. Any other is an annotation, as JSON Schema has it ..."""
STRICTER = {
    "idn-email": "email",
    "idn-hostname": "hostname",
    "iri": "uri",
    "iri-reference": "uri",
    "uri-reference": "uri",
    "uri-template": "uri",
}
"""... but for those that one of these is a case of."""
PATTERNS = {
    "json-pointer": r"^(/([^/~]|~[01])*)*$",
    "relative-json-pointer": r"^(0|[1-9][0-9]*)(#|(/([^/~]|~[01])*)*)$",
}
"""Others, by RFC 6901 and its successor's draft."""
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_DAY = f"^(?:{_YEAR}-(?:0[13-9]|1[0-2])|{_YEAR}-02-(?:0[1-9]|1[0-9]|2[0-8])|(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29)"
_SECOND = "^[^:]*:[0-9]{2}:[0-5]"
EXACTER = {"date": (_DAY,), "date-time": (_DAY, _SECOND), "time": (_SECOND,)}
"""What llguidance takes besides: each 29th of February, a year 0, and leap seconds, which few clocks have."""
ANY_ADDRESS = ("ipvanyaddress", "ipvanyinterface", "ipvanynetwork")
"""Pydantic's."""
MOST_ARRANGEMENTS = 400
"""Of an enum's values in an array without repetitions, each of them written out."""
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_VALUES = ("enum", "const", "default", "example", "examples")
_ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly")
)
_BESIDE_REF = frozenset(("$ref", "$defs", "definitions", "$schema", "$id"))
"""What adds nothing to what a node refers to, nor do annotations."""
_COUNTS = (
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minContains",
    "maxContains",
)
MOST_COUNTED = 1 << 31
"""Characters, items or names: no answer has more."""
_DRAFT = re.compile(r"https?://json-schema\.org/(draft-0[467]|draft/2019-09|draft/2020-12)/schema#?")
"""What llguidance knows of `$schema`. Whatever else it names says nothing about answers."""


def held(schema: Any) -> Any:
    """Raises ValueError, RecursionError."""
    return _Rewriting(schema).of(schema)


class _Rewriting:
    def __init__(self, root: Any) -> None:
        self._root = root
        self._merges = any(map(_merges, _nodes(root)))
        """A number's bounds may come from several nodes."""
        if self._merges:
            check_steps(node["multipleOf"] for node in _nodes(root) if "multipleOf" in node)

    def of(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.of(each) for each in node]
        if not isinstance(node, dict):
            return node
        found: Schema = {}
        for name, value in node.items():
            if name in _MAPS and isinstance(value, dict):
                keys = map(pattern, value) if name == "patternProperties" else value
                found[name] = dict(zip(keys, map(self.of, value.values()), strict=True))
                if len(found[name]) < len(value):
                    raise ValueError(f"{name}: two of its patterns are the same; keep one of them")
            elif name in _VALUES:
                if name in ("enum", "const"):
                    check_values(name, value)
                    found[name] = value
            elif name == "$schema" and isinstance(value, str):
                if draft := _DRAFT.fullmatch(value):
                    found[name] = f"http{'' if draft[1][5] == '-' else 's'}://json-schema.org/{draft[1]}/schema"
            elif name == "pattern" and isinstance(value, str):
                found[name] = pattern(value)
            elif name in _COUNTS and not isinstance(value, bool) and isinstance(value, int | float):
                if (count := _count(name, value)) is not None:
                    found[name] = count
            elif name in BOUNDS and not isinstance(value, bool) and isinstance(value, int | float):
                found[name] = bound(value, BOUNDS[name])
            else:
                found[name] = self.of(value)
        found = with_numbers(_format(_check_options(found)), self._merges)
        for rewrite in (self._names, self._unique, check_count):
            found = rewrite(found)
        return _items(with_plain_names(one_of_as_any_of(found, self._target)))

    def _names(self, node: Schema) -> Schema:
        """`propertyNames` that are listed are properties."""
        names = self._target(node.get("propertyNames"))
        names = {} if names is True else names
        if not isinstance(names, dict) or "patternProperties" in node:
            return node
        rest = {name: value for name, value in node.items() if name != "propertyNames"}
        constraints = {
            name: value
            for name, value in names.items()
            if name not in _ANNOTATIONS and (name, value) != ("type", "string")
        }
        if not constraints:
            return rest
        others, listed = node.get("additionalProperties", True), _listed(constraints)
        if listed is not None:
            properties = node.get("properties") or {}
            allowed = {name: properties.get(name, others) for name in listed if isinstance(name, str)}
            return rest | {"properties": allowed, "additionalProperties": False}
        if list(constraints) == ["pattern"] and not node.get("properties"):
            return rest | {"patternProperties": {constraints["pattern"]: others}, "additionalProperties": False}
        return node

    def _unique(self, node: Schema) -> Schema:
        """`uniqueItems` among a few values: all arrays of them."""
        if "uniqueItems" not in node:
            return node
        rest = {name: value for name, value in node.items() if name != "uniqueItems"}
        least, most = node.get("minItems", 0), node.get("maxItems", math.inf)
        if node["uniqueItems"] is False or most in (0, 1):
            return rest
        others = set(rest) - _ANNOTATIONS - {"type", "items", "minItems", "maxItems", "$defs", "definitions"}
        values = _listed(self._target(node.get("items")))
        counted = isinstance(least, int) and (isinstance(most, int) or most == math.inf)
        if others or node.get("type") != "array" or values is None or not counted:
            return node
        if not all(value is None or isinstance(value, str | bool | int) for value in values):
            return node
        kinds = {json.dumps(value): value for value in values}
        lengths = range(least, min(len(kinds), most) + 1)
        for count, choose in ((math.perm, itertools.permutations), (math.comb, itertools.combinations)):
            if sum(count(len(kinds), length) for length in lengths) <= MOST_ARRANGEMENTS:
                arrays = [list(each) for length in lengths for each in choose(kinds.values(), length)]
                return {name: value for name, value in rest.items() if name in ("$defs", "definitions")} | {
                    "enum": arrays
                }
        return node

    def _target(self, node: Any) -> Any:
        """What a schema refers to, if it does nothing else."""
        for _ in range(8):
            if (
                not isinstance(node, dict)
                or not isinstance(node.get("$ref"), str)
                or set(node) - _ANNOTATIONS != {"$ref"}
            ):
                break
            if not node["$ref"].startswith("#/"):
                break
            target = self._root
            for part in node["$ref"][2:].split("/"):
                target = target.get(part) if isinstance(target, dict) else None
            node = target
        return node


def _merges(node: Schema) -> bool:
    """More is said of a value than by this node alone."""
    others = set(node) - _ANNOTATIONS - _BESIDE_REF
    return "allOf" in node or any(name in node and others - {name} for name in ("$ref", "anyOf", "oneOf"))


def _check_options(node: Schema) -> Schema:
    """llguidance's own options are not a client's way round the schema, nor round JSON. Raises ValueError."""
    options = node.get("x-guidance")
    for name, value in options.items() if isinstance(options, dict) else ():
        if value and name != "whitespace_flexible":
            raise ValueError(f"x-guidance.{name} may let through what breaks the schema; leave it out")
    return node


def _items(node: Schema) -> Schema:
    """`additionalItems` means nothing but beside a list of `items`, and llguidance wants to see both at once."""
    if "additionalItems" not in node:
        return node
    if not isinstance(node.get("items"), list):
        return {name: value for name, value in node.items() if name != "additionalItems"}
    rest = {name: value for name, value in node.items() if name not in ("items", "additionalItems")}
    return {"items": node["items"], "additionalItems": node["additionalItems"]} | rest


def _format(node: Schema) -> Schema:
    kind, more = node.get("format"), node.get("allOf", [])
    if not isinstance(kind, str) or not isinstance(more, list):
        return node
    if kind in FORMATS:
        patterns = [{"pattern": each} for each in EXACTER.get(kind, ())]
        return node | {"allOf": [*more, *patterns]} if patterns else node
    rest = {name: value for name, value in node.items() if name != "format"}
    if kind in ANY_ADDRESS and "anyOf" not in node:
        return rest | {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]}
    if kind in PATTERNS:
        return rest | {"allOf": [*more, {"pattern": PATTERNS[kind]}]}
    return rest | {"format": STRICTER[kind]} if kind in STRICTER else rest


def _count(name: str, value: float) -> float | None:
    """As an integer, if it is one; None where it bounds nothing."""
    if value > MOST_COUNTED:
        if name.startswith("max"):
            return None
        raise ValueError(f"{name} asks for more than an answer can have; ask for less")
    return int(value) if value == value // 1 else value


def _listed(node: Any) -> list[Any] | None:
    """The values of a schema that lists them."""
    if not isinstance(node, dict):
        return None
    given = {name: value for name, value in node.items() if name not in _ANNOTATIONS}
    kind = given.pop("type", None)
    if kind == "boolean" and not given:
        return [True, False]
    if list(given) == ["const"]:
        given = {"enum": [given["const"]]}
    values = given.get("enum")
    if list(given) != ["enum"] or not isinstance(values, list) or kind not in (None, "string", "integer"):
        return None
    fits = {None: object, "string": str, "integer": int}[kind]
    return [value for value in values if isinstance(value, fits) and (kind is None or not isinstance(value, bool))]


def _nodes(root: Any) -> Iterable[Schema]:
    open_values = [root]
    while open_values:
        each = open_values.pop()
        if isinstance(each, dict):
            yield each
            open_values += each.values()
        elif isinstance(each, list):
            open_values += each
