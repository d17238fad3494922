"""Schemas with what llguidance does not know: what comes of them, and that what ends follows the schema as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.unit.server.test_structured import answer, json_of, tokenizer  # noqa: F401

from semipd_engine.cards.guidance import new_matcher, read_vocabulary
from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.core.grammar import Grammars
from semipd_engine.server.errors import ApiError
from semipd_engine.server.json_schema import FORMATS, MOST_ARRANGEMENTS, STRICTER, held
from semipd_engine.server.structured import parsed

pytestmark = pytest.mark.unit

CLOSED = {"type": "object", "additionalProperties": False}
OTHERS = {"type": "object", "additionalProperties": {"const": 2}}
LETTERS = ["a", "b", "c"]
COLOUR = {"$defs": {"Colour": {"enum": LETTERS, "title": "Colour", "type": "string"}}}


def named(names: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": {"type": "boolean"}, "propertyNames": names} | more


def unique(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, "uniqueItems": True} | more


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "password", "maxLength": 3},
        {"type": "string", "format": "binary", "maxLength": 3},
        {"type": "string", "format": "ipvanyaddress"},
        {"type": "string", "format": "json-pointer", "maxLength": 6},
        {"type": "string", "format": "relative-json-pointer", "maxLength": 6},
        {"type": "string", "format": "idn-email", "maxLength": 12},
        {"type": "integer", "format": "int32", "minimum": 0, "maximum": 5},
        {"properties": {"format": {"const": "x"}}, "required": ["format"]} | CLOSED,
        unique({"enum": LETTERS}, minItems=2),
        unique({"enum": [1, 2, "x", None, True, 3]}, maxItems=2),
        unique({"enum": list("abcdefgh")}),
        unique({"type": "boolean"}, minItems=2),
        unique({"$ref": "#/$defs/Colour"}, **COLOUR),
        unique({"type": "integer", "minimum": 0, "maximum": 9}, maxItems=1),
        named({"enum": LETTERS}, required=["a"]),
        named({"$ref": "#/$defs/Colour"}, **COLOUR, properties={"a": {"const": True}, "z": {}}),
        named({"const": "only"}, required=["only"]),
        named({"pattern": "^k[0-9]$"}, maxProperties=3),
        named({"type": "string"}, maxProperties=1),
        {"type": "object", "additionalProperties": {"enum": [1]}, "minProperties": 1, "maxProperties": 1},
        {"properties": {"a": {"const": 1}}, "required": ["a"], "minProperties": 2, "maxProperties": 3} | OTHERS,
        {"type": "integer", "minimum": 7, "maximum": 10**40},
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "integer", "exclusiveMinimum": -(2**63) - 1, "exclusiveMaximum": 2**64},
        {"enum": [1e19, 1e22, 0.1]},
        {"type": "string", "minLength": 2.0, "maxLength": 3.0},
        {"enum": [2**53, -(2**53) - 2, -(2**60), 2**62]},
        {"type": "integer", "minimum": 2**53 + 1, "maximum": 2**53 + 5},
        {"type": "string", "pattern": "^ab?$", "maxLength": 10**12},
        {"type": "array", "items": {"const": 1}, "minItems": 1.0, "maxItems": 3},
        {"$schema": "http://json-schema.org/schema#", "const": 1},
        {"$schema": "https://spec.openapis.org/oas/3.1/dialect/base", "properties": {"$schema": {"const": 1}}} | CLOSED,
        {"$schema": "https://json-schema.org/draft-07/schema#", "const": 1},
        {"$schema": "http://json-schema.org/draft/2020-12/schema", "const": 1},
    ],
)  # fmt: skip
def test_what_ends_follows_the_schema_that_was_sent(grammars: Grammars, tokenizer: Tokenizer, schema: Any) -> None:  # noqa: F811
    grammar = json_of(schema)
    ended = [text for seed in range(6) if (text := answer(grammars, tokenizer, grammar, seed, 400)) is not None]
    assert ended
    for text in ended:
        checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        checker.validate(json.loads(text))


@pytest.mark.parametrize(
    ("schema", "out", "within"),
    [
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0", "0.0"], ["0.5", "0.00001"]),
        ({"exclusiveMinimum": 10, "exclusiveMaximum": 10.5}, ["10", "10.5"], ["10.25"]),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, ["-0", "0"], ["-0.5", "-0.001"]),
        ({"exclusiveMinimum": 1, "exclusiveMaximum": 2}, ["1", "2"], ["1.5"]),
        ({"exclusiveMinimum": 0, "maximum": 1}, ["0"], ["1", "0.5"]),
        ({"exclusiveMinimum": 1e12, "maximum": 1e12 + 0.5}, ["1000000000000"], ["1000000000000.25"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-10}, ["0", "0.0", "0.000000000000"], ["0.0000000001", "0.00000000007"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1e-10}, ["0", "0.0000000001"], ["0.00000000007"]),
        ({"minimum": -1e-10, "exclusiveMaximum": 0}, ["0", "-0.0"], ["-0.0000000001", "-0.00000000007"]),
        ({"exclusiveMinimum": 0, "maximum": 1e-9}, ["0"], ["0.000000001", "0.0000000007"]),
        ({"minimum": -(2**63), "maximum": 2**63}, [str(2**64)], ["-5", "0.5", str(2**62)]),
        ({"minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308}, ["x"], ["-3.25", "1000000"]),
        ({"minimum": 0, "exclusiveMaximum": 10**400}, ["-1"], ["7.5"]),
        ({"exclusiveMinimum": 0, "allOf": [{"maximum": 0.5}]}, ["0", "0.0"], ["0.5", "0.25"]),
        ({"minimum": 0, "exclusiveMinimum": True, "maximum": 0.5, "exclusiveMaximum": False}, ["0", "0.0"], ["0.5"]),
        ({"maximum": 2, "exclusiveMaximum": True, "exclusiveMinimum": True}, ["2"], ["1.5", "-3"]),
        ({"allOf": [{"exclusiveMinimum": 0, "maximum": 9}, {"maximum": 0.5}]}, ["0", "0.0"], ["0.5", "0.00001"]),
        ({"$ref": "#/$defs/p", "$defs": {"p": {"exclusiveMaximum": 1}}, "minimum": 0.5}, ["1", "1.0"], ["0.5", "0.98"]),
        ({"exclusiveMinimum": 0}, ["0"], ["0.0000000001", "3"]),
    ],
)
def test_what_is_excluded_stays_out(model_dir: Path, schema: Any, out: list[str], within: list[str]) -> None:
    """gt=0, le=0.5, as pydantic has a rate."""
    vocabulary = read_vocabulary(model_dir, 400)

    def takes(text: str) -> bool:
        matcher = new_matcher(vocabulary, json_of({"type": "number"} | schema))
        return all(matcher.consume_token(one) for one in vocabulary.tokenize_str(text)) and matcher.is_accepting()

    assert [text for text in (*out, *within) if takes(text)] == within


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (unique({"type": "string"}), "uniqueItems"),
        (unique({"enum": list(range(12))}), "uniqueItems"),
        (unique({"enum": LETTERS}, maxItems="2"), "uniqueItems"),
        (unique({"const": 1, "type": "string"}, minItems=1), "Unsatisfiable"),
        (named({"maxLength": 3}), "propertyNames"),
        (named({"pattern": "^a"}, properties={"b": {}}), "propertyNames"),
        ({"type": "object", "minProperties": 2, "additionalProperties": {"enum": [1]}}, "comes twice"),
        ({"type": "string", "minLength": 10**400}, "minLength asks for more"),
        ({"type": "string", "maxLength": 2.5}, "maxLength"),
        ({"minProperties": 3, "patternProperties": {"^x": {}}} | CLOSED, "comes twice"),
        ({"anyOf": [{"type": "object", "minProperties": 2}, {"type": "null"}]}, "comes twice"),
        ({"type": "object", "required": ["a", "a"], "properties": {"a": {}}, "minProperties": 3}, "1 are required"),
        ({"enum": [10**30]}, "be held exactly"),
        ({"const": {"deep": [2**64]}}, "be held exactly"),
        ({"const": 2**53 + 1}, "be held exactly"),
        ({"const": -(2**53) - 1}, "be held exactly"),
        ({"enum": [2**63 - 1]}, "be held exactly"),
        ({"const": -(2**63)}, "const: -9223372036854775808 cannot be held exactly"),
        ({"const": -(2**63) + 1}, "const: -9223372036854775807 cannot be held exactly"),
        ({"const": -(2.0**63)}, "be held exactly"),
        ({"enum": [1e23]}, "be held exactly"),
        ({"const": float("inf")}, "be held exactly"),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0}, "Unsatisfiable"),
        ({"type": "number", "exclusiveMinimum": 1e12, "maximum": 1e12 + 2**-12}, "Unsatisfiable"),
        ({"type": "integer", "minimum": 2**63}, "integer range"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "x-guidance.lenient"),
    ],
)  # fmt: skip
def test_what_would_be_held_wrongly_is_refused_by_name(schema: Any, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        json_of(schema)
    assert refused.value.status == 400 and words in refused.value.message


def test_the_formats_are_llguidances_own() -> None:
    def error(kind: str) -> str:
        return parsed(json.dumps({"grammars": [{"json_schema": {"type": "string", "format": kind}}]}))

    assert not any(map(error, FORMATS)) and set(STRICTER.values()) <= FORMATS
    assert all("Unknown format" in error(kind) for kind in STRICTER)


def test_a_schema_that_needs_nothing_stays_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {"enum": {"enum": [1, {"format": "x"}]}, "a": {"$ref": "#"}},
        "required": ["a"],
    }
    assert held(schema) == schema
    assert len(held(unique({"enum": list("abcde")}))["enum"]) <= MOST_ARRANGEMENTS
