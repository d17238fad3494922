"""The names of a JSON schema's objects as llguidance can hold them: at most more strictly. Pure."""

from __future__ import annotations

from typing import Any

from semipd_engine.server.schema_patterns import IN_CLASSES, literal

Schema = dict[str, Any]

CONTROLS = r"\x00-\x1f\x7f"
"""In no name that nothing is said of by name, so that all its characters are written in one way."""
PLAIN = f"^[^{CONTROLS}]*$"
_ANYTHING: tuple[Any, ...] = (True, {})


def with_plain_names(node: Schema) -> Schema:
    r"""llguidance lets any name be written with escapes where others than `properties` may come, and then takes it for
    another one: `"\u0061"` would come for "a", with any value. So these are held by a pattern; beside patterns that say
    something there are none."""
    others, patterns = node.get("additionalProperties", True), node.get("patternProperties") or {}
    properties = node.get("properties") or {}
    if others is False or not (properties or patterns or node.get("required")):
        return node
    if not (isinstance(patterns, dict) and isinstance(properties, dict)):
        return node  # llguidance says so
    if any(each not in _ANYTHING for each in patterns.values()) or (patterns and others not in _ANYTHING):
        return node | {"additionalProperties": False}
    name = PLAIN if others in _ANYTHING else f"^{_none_of(sorted(properties))}$"
    return node | {"patternProperties": {name: others}, "additionalProperties": False}


def _none_of(names: list[str]) -> str:
    """A pattern of all plain names but these."""
    behind: dict[str, list[str]] = {}
    for name in names:
        if name:
            behind.setdefault(name[0], []).append(name[1:])
    firsts = "".join(literal(first, IN_CLASSES) for first in behind)
    others = [f"[^{firsts}{CONTROLS}][^{CONTROLS}]*"]
    others += [f"{literal(first)}{_none_of(rests)}" for first, rests in behind.items()]
    return f"(?:{'|'.join(others)}){'' if '' in names else '?'}"


def check_count(node: Schema) -> Schema:
    """llguidance counts a name that comes twice as two. Names in `properties` come once, and one more is another.
    Raises ValueError."""
    least, required = node.get("minProperties"), node.get("required")
    if not isinstance(least, int) or (node.get("additionalProperties") is False and not node.get("patternProperties")):
        return node
    named = len(set(required)) if isinstance(required, list) and all(isinstance(name, str) for name in required) else 0
    if least > named + 1:
        raise ValueError(
            f"minProperties: {least}, of which {named} are required, could be met by one name that comes twice; "
            f"name them in properties with additionalProperties: false, or ask for at most {named + 1}"
        )
    return node
