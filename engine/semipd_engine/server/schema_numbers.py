"""The numbers of a client's JSON schema as llguidance can hold them: bounds and values, at most more strictly. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

Schema = dict[str, Any]

BOUNDS = {"minimum": math.inf, "exclusiveMinimum": math.inf, "maximum": -math.inf, "exclusiveMaximum": -math.inf}
"""Of a number, and where each is rounded to, so that no more is allowed."""
BEYOND = 2**63
"""llguidance reckons in doubles. Those from here on it writes as the shortest decimal that stands for them, it refuses
bounds out there, and of the least 64-bit integer it dies."""
WIDEST = BEYOND - 1024
"""The largest double before that: the bound in place of those further out."""
LEAST_STEP = 1e-9
"""From a bound that is excluded to the first number that is not."""


def check_values(name: str, values: Any) -> None:
    """Raises ValueError for a number in them that would come out as another one. `name`: of the keyword."""
    for value in _inside(values):
        if isinstance(value, int | float) and not _exact(value):
            raise ValueError(
                f"{name}: {value} cannot be held exactly, as integers of 53 bits can, and larger ones below 2 ** 63 "
                "that are doubles; send it as a string"
            )


def _exact(value: float) -> bool:
    if isinstance(value, int):
        return abs(value) < BEYOND and int(float(value)) == value
    return abs(value) < BEYOND or (math.isfinite(value) and int(value) == Decimal(repr(value)))


def _inside(values: Any) -> Iterable[Any]:
    open_values = [values]
    while open_values:
        each = open_values.pop()
        if isinstance(each, dict | list):
            open_values += each.values() if isinstance(each, dict) else each
        else:
            yield each


def bound(value: float, towards: float) -> float:
    """One that llguidance holds, and allows no more. It reads whole numbers exactly, others may be a bit off."""
    if abs(value) >= BEYOND and (value > 0) == (towards < 0):  # no answer needs so many digits
        return WIDEST if value > 0 else -WIDEST
    if isinstance(value, float) or _exact(value) or abs(value) >= BEYOND:
        return value
    near = int(float(value))
    inside = near <= value if towards < 0 else near >= value
    return near if inside else int(math.nextafter(near, towards))


def without_excluded(node: Schema, merges: bool) -> Schema:
    """llguidance lets a whole number through that is excluded, where the other bound is within a unit of it: there the
    next one is the bound, and also where the other one may come from elsewhere (`merges`)."""
    node = _fourth_draft(node)
    if node.get("type") == "integer":
        return node
    bounds = {name: node[name] for name in BOUNDS if type(node.get(name)) in (int, float)}
    least = max((bounds[name] for name in ("minimum", "exclusiveMinimum") if name in bounds), default=-math.inf)
    most = min((bounds[name] for name in ("maximum", "exclusiveMaximum") if name in bounds), default=math.inf)
    if not (0 <= most - least < 1 or merges):
        return node
    for excluded, included, towards in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        value = bounds.get(excluded)
        if value is not None and value in (least, most) and math.isfinite(value) and value == int(value):
            step = max(min(LEAST_STEP, (most - least) / 2 or LEAST_STEP), 4 * math.ulp(value))
            node = {name: each for name, each in node.items() if name != excluded} | {included: value + towards * step}
    return node


def _fourth_draft(node: Schema) -> Schema:
    """A bound that a switch beside it excludes, as OpenAPI 3.0 has it, is an excluded bound."""
    for excluded, included in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(switch := node.get(excluded), bool):
            rest = {name: value for name, value in node.items() if name != excluded}
            value = rest.pop(included, None) if switch else None
            node = rest if value is None else rest | {excluded: value}
    return node
