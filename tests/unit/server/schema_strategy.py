"""Bodies that a JSON schema allows, for hypothesis: of the keywords that `/openapi.json` has.

What a keyword alone does not make true (if, not, allOf) is left to a filter.
"""

from __future__ import annotations

from typing import Any

import jsonschema
from hypothesis import strategies as st

Json = dict[str, Any]
ANY = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.text(max_size=5), st.just({}), st.just([]))
RARELY = 4
"""One of so many optional properties is there."""


def bodies(document: Json, name: str) -> st.SearchStrategy[Any]:
    """That the component `name` of an OpenAPI document allows."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    valid = jsonschema.Draft202012Validator(schema).is_valid
    return values(document["components"]["schemas"][name], document).filter(valid)


def values(schema: Json, document: Json) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return values(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values(each, document) for each in schema["anyOf"]])
    kinds = schema.get("type", [])
    return st.one_of(
        [_of_type(kind, schema, document) for kind in ([kinds] if isinstance(kinds, str) else kinds)] or [ANY]
    )


def _of_type(kind: str, schema: Json, document: Json) -> st.SearchStrategy[Any]:
    low, high = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum")
    if kind == "integer":
        return st.integers(low, high)
    if kind == "number":
        return st.floats(low, high, allow_nan=False, allow_infinity=False, exclude_min="exclusiveMinimum" in schema)
    if kind == "string":
        if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        text = st.characters(exclude_categories=["Cs"])
        return st.text(text, min_size=schema.get("minLength", 0), max_size=schema.get("maxLength", 20))
    if kind == "array":
        most = min(schema.get("maxItems", 3), 3)
        return st.lists(values(schema.get("items", {}), document), min_size=schema.get("minItems", 0), max_size=most)
    if kind == "object":
        return _objects(schema, document)
    return {"boolean": st.booleans(), "null": st.none()}[kind]


@st.composite
def _objects(draw: st.DrawFn, schema: Json, document: Json) -> Json:
    properties, required = schema.get("properties", {}), schema.get("required", [])
    found = {
        name: draw(values(each, document))
        for name, each in properties.items()
        if name in required or draw(st.integers(1, RARELY)) == 1
    }
    more = schema.get("additionalProperties")
    if isinstance(more, dict):
        names = _of_type("string", schema.get("propertyNames", {}), document)
        found |= draw(st.dictionaries(names, values(more, document), max_size=3))
    return found
