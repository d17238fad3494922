"""Kubernetes quantities (``16Gi``, ``500m``, 2): their schema type and their value. It knows no field.

Grammar: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal
from typing import Annotated

from pydantic import WithJsonSchema

from semipd_operator.api.rules import Rule

_FORM = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d+))?\Z", re.ASCII)
_BINARY = {f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", start=1)}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse_quantity(value: int | str) -> Decimal | None:
    """The number that a quantity stands for; None for what is no quantity."""
    found = _FORM.match(str(value))
    if not found:
        return None
    number, binary, decimal, exponent = found.groups()
    try:
        if binary:
            return Decimal(number) * int(_BINARY[binary])
        power: int = _DECIMAL[decimal] if decimal else int(exponent or 0)
        return Decimal(number).scaleb(power)
    except (ArithmeticError, ValueError):  # an exponent that no number has
        return None


def whole(value: int | str) -> int:
    """The quantity as an integer, rounded up as Kubernetes does. Raises ValueError for what is no quantity."""
    number = parse_quantity(value)
    if number is None:
        raise ValueError(f"{value!r} is not a quantity: write it like 16Gi, 500m or 2")
    return int(number.to_integral_value(rounding=ROUND_CEILING))


def positive_quantity(field: str, example: str) -> Rule:
    message = f"{field} must be a quantity above zero: write it like {example}"

    def holds(value: int | str) -> bool:
        number = parse_quantity(value)
        return number is not None and number > 0

    return Rule(
        "type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))", holds, message
    )


def any_quantity(field: str) -> Rule:
    return Rule(
        cel="type(self) == int || isQuantity(self)",
        holds=lambda value: parse_quantity(value) is not None,
        message=f"{field} must be a quantity: write it like 16Gi, 500m or 2",
    )


QuantityValue = Annotated[
    int | str,
    WithJsonSchema(
        {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], "maxLength": 32}
    ),
]
