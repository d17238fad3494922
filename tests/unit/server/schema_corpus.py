"""Two hundred JSON schemas of the shapes that people send: forty written by hand, the rest by a seeded generator.

Extraction, classification, tool arguments, API bodies, trees and unions; with bounds, enums, patterns, formats, $ref.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
SHORT: Schema = {"type": "string", "maxLength": 20}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 1000}
FLAG: Schema = {"type": "boolean"}
DATE: Schema = {"type": "string", "format": "date"}


def record(properties: dict[str, Schema], *optional: str, **more: Any) -> Schema:
    """An object that has all of these, but perhaps the optional ones, and nothing else."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False} | more


def listed(items: Schema, least: int = 0, most: int = 4, **more: Any) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most} | more


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


ADDRESS = record({"street": SHORT, "city": SHORT, "zip": {"type": "string", "pattern": "^[0-9]{5}$"}})
MONEY = record({"amount": NUMBER, "currency": {"enum": ["EUR", "USD", "JPY"]}})
POINT = record({"x": NUMBER, "y": NUMBER})

BY_HAND: list[Schema] = [
    record({"name": SHORT, "age": {"type": "integer", "minimum": 0, "maximum": 150}}),
    record({"sentiment": {"enum": ["positive", "negative", "neutral"]}, "score": {"type": "number"}}),
    record({"title": SHORT, "authors": listed(SHORT, 1), "year": {"type": "integer"}, "doi": SHORT}, "doi"),
    record({"city": SHORT, "unit": {"enum": ["celsius", "fahrenheit"]}}, "unit"),
    record(
        {"query": SHORT, "top_k": {"type": "integer", "minimum": 1, "maximum": 50}, "filters": listed(SHORT)}, "filters"
    ),
    record({"steps": listed(record({"explanation": SHORT, "output": SHORT}), 1), "final_answer": SHORT}),
    record({"name": SHORT, "date": DATE, "participants": listed(SHORT)}),
    record({"street": SHORT, "address": ADDRESS, "billing": {"anyOf": [ADDRESS, {"type": "null"}]}}),
    record({"id": {"type": "string", "format": "uuid"}, "email": {"type": "string", "format": "email"}}),
    record({"start": {"type": "string", "format": "date-time"}, "minutes": COUNT}),
    record({"items": listed(record({"sku": SHORT, "quantity": COUNT, "price": MONEY}), 1), "total": MONEY}),
    record(
        {"root": ref("node")},
        **{"$defs": {"node": record({"v": COUNT, "next": {"anyOf": [ref("node"), {"type": "null"}]}})}},
    ),
    record({"tree": ref("t")}, **{"$defs": {"t": record({"name": SHORT, "children": listed(ref("t"), 0, 2)})}}),
    {
        "anyOf": [
            record({"kind": {"const": "circle"}, "radius": NUMBER}),
            record({"kind": {"const": "square"}, "side": NUMBER}),
        ]
    },
    {"oneOf": [record({"ok": {"const": True}, "value": NUMBER}), record({"ok": {"const": False}, "error": SHORT})]},
    listed({"type": "integer", "minimum": -5, "maximum": 5}, 1, 6),
    listed(listed({"enum": [0, 1]}, 2, 2), 2, 2),
    {"enum": ["yes", "no", "unsure"]},
    {"const": {"version": 1}},
    {"type": ["string", "null"], "maxLength": 10},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
    {"type": "string", "minLength": 2, "maxLength": 8},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 100},
    {"type": "number", "minimum": 0, "maximum": 1},
    record(
        {
            "entities": listed(
                record({"text": SHORT, "label": {"enum": ["PER", "ORG", "LOC"]}, "span": listed(COUNT, 2, 2)})
            )
        }
    ),
    record({"sql": SHORT, "tables": listed({"type": "string", "pattern": "^[a-z_]{1,12}$"}, 1, 3), "safe": FLAG}),
    record({"translations": record({"de": SHORT, "fr": SHORT, "es": SHORT})}),
    record({"rating": {"type": "integer", "enum": [1, 2, 3, 4, 5]}, "pros": listed(SHORT), "cons": listed(SHORT)}),
    record({"shape": {"anyOf": [POINT, listed(POINT, 2, 3)]}}),
    record(
        {
            "command": {"enum": ["open", "close"]},
            "target": SHORT,
            "force": FLAG,
            "timeout": {"type": ["integer", "null"]},
        }
    ),
    record(
        {"invoice": SHORT, "lines": listed(ref("line"), 1, 3), "paid": FLAG},
        **{"$defs": {"line": record({"d": SHORT, "m": MONEY})}},
    ),
    record({"a": ref("a")}, **{"$defs": {"a": record({"b": ref("b")}), "b": record({"c": COUNT})}}),
    {"$ref": "#/$defs/main", "$defs": {"main": record({"lang": {"enum": ["py", "go"]}, "code": SHORT})}},
    {"type": "array", "prefixItems": [SHORT, COUNT, FLAG], "items": False, "minItems": 3},
    {"type": "object", "additionalProperties": {"type": "integer", "maximum": 9, "minimum": 0}, "maxProperties": 3},
    {"allOf": [record({"a": COUNT}, additionalProperties=True), record({"b": FLAG}, additionalProperties=True)]},
    record({"phone": {"type": "string", "pattern": "^\\+?[0-9]{6,12}$"}, "ip": {"type": "string", "format": "ipv4"}}),
    record({"when": {"type": "string", "format": "time"}, "repeat": {"enum": ["daily", "weekly", None]}}),
    {"title": "Answer", "description": "d", "type": "object", "properties": {"answer": FLAG}, "required": ["answer"]},
    record(
        {
            "tags": listed({"type": "string", "enum": ["a", "b", "c"]}, 1, 3),
            "weight": {"type": "number", "multipleOf": 0.5},
        }
    ),
]


def generated(seed: int) -> Schema:
    """Nested up to four deep; every part is bounded, but strings only mostly."""
    draw = random.Random(seed)
    words = ["id", "name", "kind", "value", "items", "status", "note", "size", "user", "tags", "größe", "a b", 'q"']

    def leaf() -> Schema:
        low = draw.randrange(-50, 50)
        pattern = draw.choice(["^[a-z]{1,8}$", "^[0-9]{2,4}$", "^(x|y)[A-F0-9]{2}$", "^[^\\s]{1,5}$"])
        return draw.choice(
            [
                {"type": "string", "maxLength": draw.randrange(1, 30)},
                {"type": "string", "pattern": pattern},
                {"type": "string", "format": draw.choice(["date", "time", "uuid", "ipv4"])},
                {"type": "integer", "minimum": low, "maximum": low + draw.randrange(1, 500)},
                {"type": "number", "minimum": low, "maximum": low + draw.randrange(1, 9)},
                {"type": "boolean"},
                {"type": ["integer", "null"]},
                {
                    "enum": draw.sample(
                        ["red", "green", "blue", 1, 2.5, None, True, "größe", 'a "b"'], draw.randrange(1, 5)
                    )
                },
                {"const": draw.choice(["fixed", 7, None, ["x"]])},
            ]
        )

    def schema(depth: int, names: list[str]) -> Schema:
        kind = draw.random()
        if names and kind < 0.12:
            return ref(draw.choice(names))
        if depth == 0 or kind < 0.35:
            return leaf()
        if kind < 0.5:
            least = draw.randrange(3)
            return listed(schema(depth - 1, names), least, least + draw.randrange(1, 4))
        if kind < 0.62:
            return {"anyOf": [schema(depth - 1, names) for _ in range(draw.randrange(2, 4))]}
        properties = {word: schema(depth - 1, names) for word in draw.sample(words, draw.randrange(1, 5))}
        return record(properties, *draw.sample(list(properties), draw.randrange(len(properties))))

    shared = {f"d{i}": schema(1, []) for i in range(draw.randrange(3))}
    whole = record({word: schema(3, list(shared)) for word in draw.sample(words, draw.randrange(1, 4))})
    return whole | ({"$defs": shared} if shared else {})


@cache
def corpus() -> list[Schema]:
    return BY_HAND + [generated(seed) for seed in range(200 - len(BY_HAND))]
