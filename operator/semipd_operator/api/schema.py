"""Turns a pydantic type into a structural OpenAPI v3 schema as a CustomResourceDefinition wants it.

Structural: no ``$ref``, no ``null`` branches, no ``additionalProperties: false``.
https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema
It knows no field of the resource.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
_DROPPED = ("title", "$defs", "const")
_INT_OR_STRING = "x-kubernetes-int-or-string"


def openapi(model: type[BaseModel]) -> Schema:
    """The schema of `model`, with each default named in the description of its field."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    if "$ref" in node:
        target = definitions[node["$ref"].rsplit("/", 1)[-1]]
        # What stands beside a $ref (description, default) is about the field; the type's own docstring is not.
        inherited = {key: value for key, value in target.items() if key != "description"}
        return _structural({**inherited, **{key: value for key, value in node.items() if key != "$ref"}}, definitions)
    if "anyOf" in node and _INT_OR_STRING not in node:
        (branch,) = [branch for branch in node["anyOf"] if branch.get("type") != "null"]
        own = {key: value for key, value in node.items() if key != "anyOf"}
        if "default" in own and own["default"] is None:
            del own["default"]
        return _structural({**branch, **own}, definitions)
    result: Schema = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in node:
        result |= {"type": "string", "enum": [node["const"]]}
    if result.get("additionalProperties") is False:
        del result["additionalProperties"]
    if "x-kubernetes-preserve-unknown-fields" in result:
        result.pop("additionalProperties", None)
    if isinstance(result.get("additionalProperties"), dict):
        result["additionalProperties"] = _structural(result["additionalProperties"], definitions)
    if "properties" in result:
        result["properties"] = {name: _structural(field, definitions) for name, field in result["properties"].items()}
    if "items" in result:
        result["items"] = _structural(result["items"], definitions)
    if "default" in result:
        result = _with_default(result)
    return dict(sorted(result.items()))


def _with_default(result: Schema) -> Schema:
    if result.get("type") == "object":
        # The fields below carry their own defaults.
        return {**result, "default": {}} if result["default"] is not None else result
    if result["default"] in ("", [], 0) and "items" in result:
        return {key: value for key, value in result.items() if key != "default"}
    shown = str(result["default"]).lower() if isinstance(result["default"], bool) else result["default"]
    described = result.get("description", "")
    return {**result, "description": f"{described} Default: {shown}.".strip()}
