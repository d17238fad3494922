"""What `/openapi.json` says of each endpoint: what goes in, and what can come out. Knows no handlers.

Handlers read their bodies and write their answers themselves, so the document is told of both here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

from fastapi import FastAPI, Response
from pydantic import BaseModel

from semipd_engine.server.answer_schemas import ANSWERS, REFS, ref
from semipd_engine.server.body_schemas import CONDITIONS
from semipd_engine.server.errors import CODES

_ERRORS = {
    400: "A field is missing, of the wrong type, out of range or not supported; the message names it",
    401: "The API key is missing or wrong",
    404: "The model is not served here",
    408: "The request did not come in time",
    413: "The body is too large",
    415: "The body is compressed",
    429: "The queue is full, or the SLO would be missed; send it again after Retry-After",
    500: "The engine failed on this request",
    503: "Not ready, or the engine was lost with the request; send it again after Retry-After",
    504: "It has not finished within its time",
}
_FRAMEWORKS_OWN = ("HTTPValidationError", "ValidationError")
"""Of errors that the framework would answer with; it never does."""


def takes(model: type[BaseModel], answer: str, chunk: str | None = None) -> dict[str, Any]:
    """Arguments of a route whose body is `model` and that gives `answer`, or a stream of `chunk`."""
    content = {"application/json": {"schema": ref(model.__name__)}}
    found = gives(answer, *_ERRORS)
    if chunk is not None:
        event = f"server-sent events, each the JSON of a {chunk}, or of an Error at the end; then [DONE]"
        data = {"type": "string", "contentMediaType": "application/json", "contentSchema": ref(chunk)}
        item = {"type": "object", "required": ["data"], "properties": {"data": data}}
        # OpenAPI 3.2 says itemSchema; few tools read that yet, and 3.1 allows no such name.
        stream = {"schema": {"type": "string", "description": event}, "x-itemSchema": item}
        found["responses"][200]["content"]["text/event-stream"] = stream
    return found | {"openapi_extra": {"requestBody": {"required": True, "content": content}}}


def gives(answer: str | None, *statuses: int, media_type: str = "application/json") -> dict[str, Any]:
    """Arguments of a route that answers 200 with that schema, with text of another type, or without a body (None), and
    may answer with the other statuses."""
    schema = ref(answer) if answer in ANSWERS else {"type": "string"}
    whole: dict[str, Any] = {"description": "The answer"}
    if answer is not None:
        whole["content"] = {media_type: {"schema": schema}}
    errors = {status: {"description": _ERRORS[status], "content": _error(status)} for status in statuses}
    return {"response_class": Response, "responses": {200: whole} | errors}


def answers(description: str, name: str) -> dict[str, Any]:
    """Of one more status."""
    return {"description": description, "content": _json(name)}


def _error(status: int) -> dict[str, Any]:
    """With the codes that it may have."""
    code = {"properties": {"code": {"enum": list(CODES[status])}}}
    return {"application/json": {"schema": {"allOf": [ref("Error"), {"properties": {"error": code}}]}}}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(name)}}


def describe(
    app: FastAPI,
    bound: Callable[[Any], Any],
    length: Callable[[], int],
    *models: type[BaseModel],
    open_paths: Collection[str] | None = None,
) -> None:
    """Put the models and answers that routes refer to into the document, once it is asked for, as `bound` to what is
    served; again where the model's `length` is another, which is known once it is loaded. `open_paths`: those that want
    no key where the others do; None: nobody does."""
    plain, told = app.openapi, 0

    def openapi() -> dict[str, Any]:
        nonlocal told
        if told != length():
            told, app.openapi_schema = length(), None
        if app.openapi_schema is None:
            with warnings.catch_warnings(action="ignore"):  # a route for GET and HEAD has one name
                document = plain()
            for path, operations in document["paths"].items():
                operations.pop("head", None)  # GET without the body
                for method, operation in operations.items():
                    operation["operationId"] = operation["operationId"].rpartition("_")[0] + "_" + method
                    operation["responses"].pop("422", None)
                    if open_paths is not None and path in open_paths:
                        operation["security"] = []
            components = document.setdefault("components", {})
            if open_paths is not None:
                components["securitySchemes"] = {"apiKey": {"type": "http", "scheme": "bearer"}}
                document["security"] = [{"apiKey": []}]
            schemas = components.setdefault("schemas", {})
            for name in _FRAMEWORKS_OWN:
                schemas.pop(name, None)
            for model in models:
                schema = model.model_json_schema(ref_template=REFS)
                schemas.update(schema.pop("$defs", {}))
                if model.__name__ in CONDITIONS:
                    schema["allOf"] = CONDITIONS[model.__name__]
                for name in [name for name in schema["properties"] if name.startswith("guided_")]:
                    del schema["properties"][name]  # vLLM's older names; docs/api.md has them
                schemas[model.__name__] = schema
            components["schemas"] = bound(schemas) | ANSWERS
            document["paths"] = bound(document["paths"])
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]
