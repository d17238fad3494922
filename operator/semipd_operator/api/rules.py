"""Validation rules that are declared once and hold in two places: in the API server (as CEL) and in Python.

A `Rule` carries the CEL expression and the predicate side by side; the table test runs both against the same
specifications. It knows no field of the resource.

CEL: https://kubernetes.io/docs/reference/using-api/cel/ (``self`` is the value that carries the rule).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

RULE_ERROR = "semipd_rule"
VALIDATIONS = "x-kubernetes-validations"
STORED = "stored"
"""In the context of a validation: true for an object that an API server has stored."""


@dataclass(frozen=True)
class Rule:
    """One rule. Use it in ``Annotated[...]`` for a scalar, or in `ApiModel.RULES` for an object."""

    cel: str
    holds: Callable[[Any], bool]
    message: str
    """Names the field and the remedy: it is all that the user sees."""
    field: str = ""
    """For a rule of an object: the path below it that is at fault, e.g. ``.minPrefillPercent``."""
    limits: tuple[tuple[str, int | str], ...] = ()
    """What the schema says of it, too, for tools that read no CEL: ``minimum``, ``maximum``, ``format``."""
    spares_stored: bool = False
    """It came after a release that took anything, and spec.podTemplate may have made that work: what is stored is read
    all the same, as the API server, too, lets stand what does not change."""

    def check(self, value: Any) -> Any:
        if not self.holds(value):
            raise PydanticCustomError(RULE_ERROR, "{message}", {"message": self.message, "field": self.field})
        return value

    def openapi(self) -> dict[str, str]:
        entry = {"rule": self.cel, "message": self.message}
        return entry | {"fieldPath": self.field} if self.field else entry

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_after_validator_function(self._check_unless_spared, handler(source))

    def _check_unless_spared(self, value: Any, info: ValidationInfo) -> Any:
        spared = self.spares_stored and (info.context or {}).get(STORED)
        return value if spared else self.check(value)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        result = dict(handler(schema)) | dict(self.limits)
        result[VALIDATIONS] = [*result.get(VALIDATIONS, []), self.openapi()]
        return result


MAX_INT32 = 2**31 - 1


def between(field: str, low: int, high: int, remedy: str) -> Rule:
    """An integer in [low, high]. A CEL rule besides, because the stock message of ``maximum`` names no remedy."""
    return Rule(
        cel=f"self >= {low} && self <= {high}",
        holds=lambda value: low <= value <= high,
        message=f"{field} must be {low} to {high}: {remedy}",
        limits=(("minimum", low), ("maximum", high), ("format", "int32")),
    )


def at_least(field: str, low: int, remedy: str) -> Rule:
    """An integer from `low` up to what 32 bits hold, as Kubernetes counts."""
    return Rule(
        cel=f"self >= {low} && self <= {MAX_INT32}",
        holds=lambda value: low <= value <= MAX_INT32,
        message=f"{field} must be at least {low} (and below 2^31): {remedy}",
        limits=(("minimum", low), ("maximum", MAX_INT32), ("format", "int32")),
    )


def matches(pattern: str, message: str, *, unless: str = "") -> Rule:
    """A string that matches the RE2 `pattern`; strings that do not start with `unless` are exempt when it is given."""
    compiled = _re2(pattern)
    if not unless:
        return Rule(f"self.matches({cel_string(pattern)})", lambda value: bool(compiled.search(value)), message)
    return Rule(
        cel=f"!self.startsWith({cel_string(unless)}) || self.matches({cel_string(pattern)})",
        holds=lambda value: not value.startswith(unless) or bool(compiled.search(value)),
        message=message,
    )


def matches_not(pattern: str, message: str) -> Rule:
    """A string in which the RE2 `pattern` is nowhere."""
    compiled = _re2(pattern)
    return Rule(f"!self.matches({cel_string(pattern)})", lambda value: not compiled.search(value), message)


def _re2(pattern: str) -> re.Pattern[str]:
    """As the API server reads it: ``$`` is the end of the text, where Python's would let a newline follow."""
    return re.compile(re.sub(r"(?<!\\)\$", r"\\Z", pattern), re.ASCII)


_NAME = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{_NAME}(\.{_NAME})*"
"""RFC 1123, as Kubernetes names most objects."""


def object_name(field: str, kind: str) -> Rule:
    """The name of an object that there can be."""
    message = f"{field} names no {kind} that there can be: write it in lower-case letters, digits, - and ."
    return replace(matches(f"^{SUBDOMAIN}$", message), spares_stored=True)


def data_key(field: str) -> Rule:
    """A key of a Secret's data."""
    message = (
        f"{field} is no key that a Secret can have: write it in letters, digits, -, _ and ., not beginning with .."
    )
    return replace(matches(r"^([-_a-zA-Z0-9]|\.[-_a-zA-Z0-9])[-._a-zA-Z0-9]*$", message), spares_stored=True)


def image_reference(field: str) -> Rule:
    """As the kubelet reads it: https://pkg.go.dev/github.com/distribution/reference#hdr-Grammar"""
    host = "[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?"
    registry = rf"({host}(\.{host})*|\[[0-9a-fA-F:]+\])(:[0-9]+)?/"
    folder = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
    tag = r":[A-Za-z0-9_][-.A-Za-z0-9_]{0,127}"
    digest = r"@[A-Za-z][A-Za-z0-9]*([-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}"
    message = (
        f"{field} is no image reference: write it like registry.example/team/engine:1.2, the repository in lower case"
    )
    rule = matches(f"^({registry})?{folder}(/{folder})*({tag})?({digest})?$", message)
    return replace(rule, spares_stored=True)


def not_above(low: str, high: str) -> Rule:
    """``low <= high`` for two integers of one object that are always present (they have defaults)."""
    low_name, high_name = _snake(low), _snake(high)
    return Rule(
        # The API server also tries the rule on the object's own default, {}, before the fields get theirs.
        cel=f"!has(self.{low}) || !has(self.{high}) || self.{low} <= self.{high}",
        holds=lambda value: getattr(value, low_name) <= getattr(value, high_name),
        message=f"{low} must not be above {high}: lower {low} or raise {high}",
        field=f".{low}",
    )


def exactly_one(*fields: str, of: str) -> Rule:
    """Exactly one of the optional `fields` of an object is set."""
    names = [_snake(field) for field in fields]
    return Rule(
        cel="[" + ", ".join(f"has(self.{field})" for field in fields) + "].filter(x, x).size() == 1",
        holds=lambda value: sum(getattr(value, name) is not None for name in names) == 1,
        message=f"{of} needs exactly one of {', '.join(fields)}: keep one of them",
    )


def at_most_one(*fields: str, of: str) -> Rule:
    """At most one of the optional `fields` of an object is set."""
    names = [_snake(field) for field in fields]
    return Rule(
        cel="[" + ", ".join(f"has(self.{field})" for field in fields) + "].filter(x, x).size() <= 1",
        holds=lambda value: sum(getattr(value, name) is not None for name in names) <= 1,
        message=f"{of} takes only one of {', '.join(fields)}: keep one of them",
    )


def cel_string(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _snake(camel: str) -> str:
    return re.sub(r"(?<!^)([A-Z])", r"_\1", camel).lower()


class ApiModel(BaseModel):
    """Base of every type of the resource: camelCase, immutable, unknown fields refused (kubectl's default)."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        protected_namespaces=(),
    )
    RULES: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self) -> ApiModel:
        for rule in self.RULES:
            rule.check(self)
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        result = dict(handler(schema))
        if cls.RULES:
            # A model's schema is a $ref into $defs; the rules belong to the definition itself.
            target = handler.resolve_ref_schema(result)
            target[VALIDATIONS] = [rule.openapi() for rule in cls.RULES]
        return result
