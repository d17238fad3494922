"""What `/openapi.json` and `/docs` say of the endpoints that read their bodies themselves. Knows no handlers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from semipd_engine.server.body_schemas import CONDITIONS

REFS = "#/components/schemas/{model}"
_ERRORS = {
    400: "A field is missing, of the wrong type, out of range or not supported; the message names it",
    401: "The API key is missing or wrong",
    404: "The model is not served here",
    408: "The request did not come in time",
    413: "The body is too large",
    415: "The body is compressed",
    429: "The queue is full; send it again after Retry-After",
    500: "The engine failed on this request",
    503: "Not ready; send it again after Retry-After",
    504: "It has not finished within its time",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def takes(model: type[BaseModel], streams: bool = False) -> dict[str, Any]:
    """Arguments of a route whose body is `model`: what goes in, and what can come out."""
    schema = {"$ref": REFS.format(model=model.__name__)}
    answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if streams:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    errors = refusals(*_ERRORS)
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}},
        "responses": {200: {"description": "The answer", "content": answer}} | errors,
    }


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer instead of 200."""
    content = {"application/json": {"schema": {"$ref": REFS.format(model="Error")}}}
    return {status: {"description": _ERRORS[status], "content": content} for status in statuses}


def describe(app: FastAPI, bound: Callable[[Any], Any], *models: type[BaseModel]) -> None:
    """Put the models that `takes` refers to into the document, once it is asked for, as `bound` to what is served."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            with warnings.catch_warnings(action="ignore"):  # a route for GET and HEAD has one name
                document = plain()
            for operations in document["paths"].values():
                operations.pop("head", None)  # GET without the body
                for method, operation in operations.items():
                    operation["operationId"] = operation["operationId"].rpartition("_")[0] + "_" + method
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas["Error"] = _ERROR
            for model in models:
                schema = model.model_json_schema(ref_template=REFS)
                schemas.update(schema.pop("$defs", {}))
                if model.__name__ in CONDITIONS:
                    schema["allOf"] = CONDITIONS[model.__name__]
                for name in [name for name in schema["properties"] if name.startswith("guided_")]:
                    del schema["properties"][name]  # vLLM's older names; docs/api.md has them
                schemas[model.__name__] = schema
            document["components"]["schemas"] = bound(schemas)
            document["paths"] = bound(document["paths"])
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
