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
LEAST_STEP = 1e-12
"""From a bound that is excluded to the first number that is not."""
FEWEST_DIGITS, MOST_DIGITS = 6, 10
"""Behind the point, where a bound is excluded and zero is not behind it, if a double has so many there."""
MOST_STEPS = 1 << 32
MOST_MULTIPLES = 1000
"""That are written out."""


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


def with_numbers(node: Schema, merges: bool) -> Schema:
    """Bounds that are excluded, and what a number is a multiple of. `merges`: more of both may come from other nodes.
    Raises ValueError."""
    return _without_excluded(_with_step(_fourth_draft(node)), merges)


def _without_excluded(node: Schema, merges: bool) -> Schema:
    """Of an excluded bound llguidance knows the digits alone: 0.5000000000000000001 is more than 0.5, and the same
    double; and it lets a whole one through, where the other bound is within a unit of it. So the next number is the
    bound, if zero is behind it; else that would leave out 0.9, as it does 0.99, and fewer digits do."""
    if node.get("type") == "integer":
        return node
    bounds, least, most = _bounds(node)
    for excluded, included, towards in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        value = bounds.get(excluded)
        if value is None or value not in (least, most) or not math.isfinite(value):
            continue
        digits = min(MOST_DIGITS, -math.log10(math.ulp(value)))
        near = abs(value) > 10.0**-FEWEST_DIGITS and digits > FEWEST_DIGITS
        if value * towards >= 0 or not near or merges or (value == int(value) and most - least < 1):
            step = max(min(LEAST_STEP, (most - least) / 2 or LEAST_STEP), 4 * math.ulp(value))
            node = {name: each for name, each in node.items() if name != excluded} | {included: value + towards * step}
        elif "multipleOf" not in node:
            node = node | {"multipleOf": 10.0 ** -int(digits)}
    return node


def _with_step(node: Schema) -> Schema:
    """llguidance reckons in decimals, who checks an answer mostly in doubles: 0.29 is no multiple of 0.01 to him. Steps
    that are the same in both are held; of others the multiples that both take, where they are few."""
    step = node.get("multipleOf")
    if isinstance(step, bool) or not isinstance(step, int | float) or not math.isfinite(step):
        return node
    rest = {name: value for name, value in node.items() if name != "multipleOf"}
    if step == int(step):
        return rest | {"multipleOf": int(step)}
    exact = Decimal(repr(step))
    bounds, least, most = _bounds(node)
    if exact == Decimal(step):  # beyond these the multiples are no doubles
        furthest = float(2**53 // step.as_integer_ratio()[1])
        inside = {"minimum": max(bounds.get("minimum", -furthest), -furthest)}
        return node | inside | {"maximum": min(bounds.get("maximum", furthest), furthest)}
    if node.get("type") == "number" and (most - least) / step <= MOST_MULTIPLES and not node.keys() & {"enum", "const"}:
        first, last = math.ceil(Decimal(least) / exact), math.floor(Decimal(most) / exact)
        multiples = [float(count * exact) for count in range(first, last + 1)]
        outside = (bounds.get("exclusiveMinimum"), bounds.get("exclusiveMaximum"))
        listed = [each for each in multiples if least <= each <= most and each not in outside and each / step % 1 == 0]
        return {name: value for name, value in rest.items() if name not in BOUNDS} | {"enum": listed}
    raise ValueError(
        f"multipleOf: {step} is no binary fraction, so that doubles which ought to be its multiples are none; bound it "
        f"to at most {MOST_MULTIPLES} of them, count in whole ones, or ask for a string with a pattern"
    )


def check_steps(steps: Iterable[Any]) -> None:
    """Raises ValueError where llguidance would reckon two of them together, and be wrong: it has 32 bits for that."""
    given = {Decimal(repr(step)).normalize() for step in steps if type(step) in (int, float) and math.isfinite(step)}
    digits = max((max(0, -int(each.as_tuple().exponent)) for each in given), default=0)
    wide = sorted(abs(each).scaleb(digits) for each in given)[-2:]
    if len(wide) == 2 and wide[0] * wide[1] >= MOST_STEPS:
        raise ValueError("multipleOf: there are several, too large or too fine for each other; leave one of them out")


def _bounds(node: Schema) -> tuple[dict[str, float], float, float]:
    """By their names, and the least and the most that they allow, be it excluded."""
    bounds = {name: node[name] for name in BOUNDS if type(node.get(name)) in (int, float)}
    least = max((bounds[name] for name in ("minimum", "exclusiveMinimum") if name in bounds), default=-math.inf)
    most = min((bounds[name] for name in ("maximum", "exclusiveMaximum") if name in bounds), default=math.inf)
    return bounds, least, most


def _fourth_draft(node: Schema) -> Schema:
    """A bound that a switch beside it excludes, as OpenAPI 3.0 has it, is an excluded bound."""
    for excluded, included in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(switch := node.get(excluded), bool):
            rest = {name: value for name, value in node.items() if name != excluded}
            value = rest.pop(included, None) if switch else None
            node = rest if value is None else rest | {excluded: value}
    return node
