"""Schemas with what llguidance does not know: what comes of them, and that what ends follows the schema as it was."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from llguidance import LLTokenizer
from tests.unit.server.test_structured import answer, json_of, tokenizer  # noqa: F401

from semipd_engine.cards.guidance import new_matcher
from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.core.grammar import Grammars
from semipd_engine.server.errors import ApiError
from semipd_engine.server.json_schema import FORMATS, MOST_ARRANGEMENTS, STRICTER, Schema, held
from semipd_engine.server.schema_cases import exclusive
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
        {"type": "string", "format": "json-pointer", "maxLength": 6, "pattern": "/a"},
        {"type": "string", "format": "relative-json-pointer", "maxLength": 6},
        {"type": "string", "format": "idn-email", "maxLength": 12},
        {"type": "string", "format": "idn-email", "pattern": "^a", "maxLength": 12},
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
def test_what_is_excluded_stays_out(schema: Any, out: list[str], within: list[str]) -> None:
    """gt=0, le=0.5, as pydantic has a rate."""
    assert taken({"type": "number"} | schema, *out, *within) == within


OPEN: Schema = {"type": "object", "properties": {"a": {"const": 1}, "é": {"const": 1}}}


@pytest.mark.parametrize(
    ("schema", "out", "within"),
    [
        (OPEN, [r'{"\u0061":2}', r'{"\u00e9":2}', '{"a":2}', '{"a":1,"a":2}'], ['{"a":1}', '{"x":2,"y/z":[]}', "{}"]),
        (
            OPEN | {"additionalProperties": {"const": 2}},
            ['{"b":1}', r'{"\u0061":2}', '{"a":2}', '{"ab":1}'],
            ['{"a":1,"ab":2,"":2}', '{"é":1,"éé":2}'],
        ),
        (
            OPEN | {"allOf": [{"properties": {"b": {"const": 1}}}]},
            [r'{"\u0062":2}', '{"b":2}'],
            ['{"a":1,"b":1,"c":2}'],
        ),
        (
            OPEN | {"patternProperties": {"^x": {"const": 3}}},
            ['{"x":2}', r'{"\u0078":2}', '{"b":1}'],
            ['{"a":1,"x":3}'],
        ),
        (OPEN | {"patternProperties": {"^x": {}}}, [r'{"\u0061":2}'], ['{"a":1,"x":3,"b":1}']),
        (
            {"type": "object", "properties": {"": {"const": 1}}, "additionalProperties": {"const": 2}},
            ['{"":2}'],
            ['{"":1}', '{"x":2}'],
        ),
        ({"type": "object", "properties": {chr(10): {"const": 1}}}, [r'{"\u000a":2}', r'{"\n":2}'], [r'{"\n":1}']),
        ({"type": "object", "required": ["a"], "minProperties": 2}, [r'{"a":1,"\u0061":2}'], ['{"a":1,"b":2}']),
        (
            {"type": "array", "items": [{"const": 1}], "anyOf": [{"minItems": 1}], "additionalItems": False},
            ["[1,2]"],
            ["[1]"],
        ),
        (
            {"type": "array", "prefixItems": [{"const": 1}], "items": {"const": 2}, "additionalItems": False},
            ["[2]", "[1,1]"],
            ["[1]", "[1,2,2]"],
        ),
        (
            {"type": "string", "format": "date"},
            ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"', '"2024-02-30"', '"2024-13-01"', '"2024-01-01T"'],
            ['"2024-02-29"', '"2000-02-29"', '"2023-02-28"', '"2023-12-31"', '"0001-01-01"'],
        ),
        (
            {"type": ["string", "null"], "format": "date-time"},
            ['"2023-02-29T10:00:00Z"', '"2016-12-31T23:59:60Z"'],
            ['"2024-02-29T10:00:59.5+01:00"', '"2023-03-01T23:59:59Z"', "null"],
        ),
        ({"type": "string", "format": "time", "minLength": 9}, ['"23:59:60Z"'], ['"23:59:59Z"']),
        ({"type": "number", "exclusiveMinimum": 0.5}, ["0.5" + "0" * 30 + "1", "0.5"], ["0.50001", "7"]),
        ({"type": "number", "exclusiveMaximum": 1}, ["0." + "9" * 30, "1"], ["0.9", "0.99999", "-7"]),
        ({"type": "number", "exclusiveMinimum": -2.5}, ["-2.4" + "9" * 30, "-2.5"], ["-2.4", "-2.49", "7.5"]),
        ({"type": "number", "exclusiveMaximum": 1e15}, ["9" * 15 + "." + "9" * 9], ["9" * 15, "0"]),
        ({"exclusiveMaximum": 1, "allOf": [{"type": "number"}]}, ["0." + "9" * 30, "1"], ["0.8", "-7"]),
        ({"type": "number", "exclusiveMinimum": 0}, ["0." + "0" * 400 + "1", "0"], ["0.0000000001"]),
        ({"type": ["integer", "null"], "exclusiveMinimum": 0}, ["0", "-1"], ["null", "1"]),
        ({"type": "number", "minimum": 5, "exclusiveMinimum": 3}, ["4", "3"], ["5"]),
        ({"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.1}, ["0.3", "0.15", "1.1"], ["0.2", "0.4"]),
        (
            {"type": "number", "multipleOf": 1.5, "anyOf": [{"exclusiveMaximum": 5}, {"type": "null"}]},
            ["4.1093659136", "5"],
            ["3", "1.5"],
        ),
        ({"allOf": [{"multipleOf": 6}, {"multipleOf": 2.5}], "type": "integer"}, ["6", "15"], ["30", "-60"]),
        ({"type": "number", "multipleOf": 0.25}, ["0.3", "9007199254740993.25"], ["0.75", "3"]),
        ({"multipleOf": 1.5}, ["4976207089438780.5", "2"], ["1.5", "-3", "1000000000000.5"]),
        ({"type": "number", "multipleOf": 2.0}, ["3", "2.5"], ["4"]),
    ],
)  # fmt: skip
def test_no_text_gets_round_a_schema(schema: Any, out: list[str], within: list[str]) -> None:
    """Names written with escapes, digits beyond a double's, items and multiples that a validator does not take."""
    checker = jsonschema.Draft202012Validator(schema)
    assert taken(schema, *out, *within) == within
    if not isinstance(schema.get("items"), list):
        assert all(checker.is_valid(json.loads(text)) for text in within)


@pytest.mark.parametrize(
    "pattern",
    [
        *('^[^"]*$', r"^[^\\/:*?\"<>|]+$", '^(?:[^"]|"")*$', r"^[^\s\"]+$", "^[^']*$", r"^[^\x00]$", "^[^^]$"),
        *(r"^\d+$", r"^\w+$", r"^\W+$", r"^\D$", r"^\s*$", r"^\S+$", r"^[^\w\s]+$", r"^[\W_]$", r"^[^\D]$", r"^[^\W]$"),
        *(r"^[\w.-]+$", "^[+--]$", "^[a&&b]$", "^[a[b]$", "^[]a]$", "^[~~]$", r"^[!-\-]$", r"^[\b]$", "^[[:a:]]$"),
        *("^{a}$", "^a{2}$", r"^\/a$", r"^\_$", r"^\<a\>$", r"^[\x00-\x21\x23-\x7f]$", "^é$", "^.$", "(?i)^abc$"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Possible")
def test_a_pattern_takes_only_what_it_matches(pattern: str) -> None:
    texts = [*'"\\\n\t\r\x01\x1f\x08abz!é/\u2028-+,[]&~^{}_<> #x5٣²\xa0\ufeff\x85\x1c$.:|日', "", "aa", '""', "ABC"]
    texts += ["{a}", "/a", "<a>", "a]"]
    quoted = [json.dumps(text, ensure_ascii=False) for text in texts]
    found = taken({"type": "string", "pattern": pattern}, *quoted)
    assert all(re.search(pattern, json.loads(text)) for text in found), found
    assert found


def taken(schema: Any, *texts: str) -> list[str]:
    """Those that are whole answers, byte by byte."""
    start = new_matcher(LLTokenizer("byte"), json_of(schema))
    assert not start.is_error(), start.get_error()

    def takes(text: str) -> bool:
        matcher = start.deep_copy()
        return all(matcher.consume_token(one) for one in text.encode()) and matcher.is_accepting()

    return [text for text in texts if takes(text)]


CAT: Schema = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
DOG: Schema = {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}, "of": {"$ref": "#/$defs/any"}}}
PETS: Schema = {"$defs": {"cat": CAT, "dog": DOG, "any": {"oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]}}}


def test_one_of_cases_that_exclude_each_other_is_any_of_them() -> None:
    """As pydantic and OpenAPI write unions with a discriminator: by references, also to themselves."""
    found = taken(
        {"$ref": "#/$defs/any"} | PETS,
        *('{"kind":"cat"}', '{"kind":"wolf","of":{"kind":"cat"}}', '{"kind":"cow"}', '{"kind":"wolf","of":{"kind":1}}'),
    )
    assert found == ['{"kind":"cat"}', '{"kind":"wolf","of":{"kind":"cat"}}']


@pytest.mark.parametrize(
    ("one", "other", "exclude"),
    [
        ({"const": 1}, {"const": 1.0}, False),
        ({"const": 1}, {"enum": [True, 2]}, True),
        ({"const": "a"}, {"const": "a", "type": "string"}, False),
        ({"type": "integer"}, {"type": "number"}, False),
        ({"type": ["integer", "null"]}, {"type": ["string", "boolean"]}, True),
        ({"type": "string"}, {"minLength": 2}, False),
        (CAT, DOG | {"$comment": "requires nothing"}, True),
        ({"properties": {"kind": {"const": 1}}, "required": ["kind"]}, {"properties": {"kind": {"const": 2}}}, False),
        ({"type": "object"} | {"properties": {"kind": {"const": 1}}}, DOG, False),
        ({"type": "array"}, {"type": "array", "maxItems": 1}, False),
        ({"$ref": "#/$defs/x"}, {"$ref": "#/$defs/y"}, False),
        (True, CAT, False),
        (False, CAT, True),
    ],
)
def test_what_excludes_each_other(one: Any, other: Any, exclude: bool) -> None:
    assert exclusive(one, other, lambda node: node) is exclude


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
        ({"type": "array", "x-guidance": {"item_separator": ";"}}, "x-guidance.item_separator"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "use anyOf, or give each a required property"),
        ({"type": "number", "multipleOf": 0.01}, "count in whole ones"),
        ({"type": "number", "multipleOf": 0.001, "minimum": 0, "maximum": 5}, "at most 1000 of them"),
        ({"type": "integer", "multipleOf": 100_000, "allOf": [{"multipleOf": 70_000}]}, "leave one of them out"),
        (OPEN | {"allOf": [{"patternProperties": {"^x": {"const": 1}}}]}, "or say it in one of them"),
        ({"type": "string", "pattern": "[a"}, "not closed"),
        ({"type": "string", "pattern": "a\\"}, "follows a backslash"),
        ({"type": "string", "pattern": "(?m)^a"}, "is not the same everywhere"),
        ({"type": "string", "pattern": "a\\x00"}, "NUL"),
        ({"patternProperties": {"[0-9]": {}, r"\d": {}}}, "two of its patterns are the same"),
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
        "additionalProperties": False,
    }
    assert held(schema) == schema
    assert len(held(unique({"enum": list("abcde")}))["enum"]) <= MOST_ARRANGEMENTS
