"""JSON schemas of the parts of a body that `protocol` checks by hand, for `/openapi.json`: what they say is accepted.

Where the truth depends on the model, `bound` fills it in: names, token ids and lengths.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

TOKEN_ID, TOKEN_COUNT, MODEL = "token-id", "token-count", "model"
"""Formats: integers below the vocabulary's size, or the model's length, and a name that is the model's."""

_IDS: Json = {"type": "array", "minItems": 1, "items": {"type": "integer", "format": TOKEN_ID, "minimum": 0}}
_TEXT: Json = {"type": "string", "minLength": 1}
PROMPT: Json = {
    "anyOf": [
        _TEXT,
        {"type": "array", "minItems": 1, "items": _TEXT},
        _IDS,
        {"type": "array", "minItems": 1, "items": _IDS},
    ]
}
STOP: Json = {"anyOf": [_TEXT, {"type": "array", "maxItems": 256, "items": _TEXT}]}
COUNT: Json = {"type": "integer", "format": TOKEN_COUNT, "minimum": 0}
LOGIT_BIAS: Json = {
    "type": "object",
    "propertyNames": {"pattern": "^(0|[1-9][0-9]?)$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    "maxProperties": 1024,
    "description": "from token id to bias",
}
_CALL: Json = {
    "type": "object",
    "required": ["id", "type", "function"],
    "properties": {
        "id": {"type": "string"},
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name", "arguments"],
            "properties": {"name": {"type": "string"}, "arguments": {"type": "string"}},
        },
    },
}
_PART: Json = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
MESSAGE: Json = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]},
        "name": {"type": "string"},
        "tool_call_id": {"type": "string"},
        "tool_calls": {"type": "array", "items": _CALL},
        "reasoning_content": {"type": ["string", "null"]},
    },
}
_KINDS = ["object", "array", "string", "number", "integer", "boolean", "null"]
_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "type": {"enum": _KINDS},
        "title": {"type": "string"},
        "description": {"type": "string"},
        "properties": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"type": {"enum": _KINDS}},
                "additionalProperties": False,
            },
        },
        "enum": {"type": "array", "minItems": 1},
    },
    "additionalProperties": False,
    "description": "a JSON schema; any keyword that llguidance holds",
}
RESPONSE_FORMAT: Json = {
    "anyOf": [
        {
            "type": "object",
            "required": ["type"],
            "properties": {"type": {"enum": ["text", "json_object"]}},
            "additionalProperties": False,
        },
        {
            "type": "object",
            "required": ["type", "schema"],
            "properties": {"type": {"const": "json_object"}, "schema": _SCHEMA},
            "additionalProperties": False,
        },
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,64}$"},
                        "schema": _SCHEMA,
                        "strict": {"type": ["boolean", "null"]},
                        "description": {"type": ["string", "null"]},
                    },
                    "additionalProperties": False,
                },
            },
            "additionalProperties": False,
        },
    ]
}
STRUCTURED_OUTPUTS: Json = {
    "anyOf": [
        {"type": "object", "required": [name], "properties": {name: value}, "additionalProperties": False}
        for name, value in (
            ("json", _SCHEMA),
            ("choice", {"type": "array", "minItems": 1, "items": _TEXT}),
            ("json_object", {"const": True}),
            ("regex", _TEXT),
            ("grammar", _TEXT),
        )
    ]
}


def _with(*names: str, **values: Json) -> Json:
    """What is said of some fields, the named ones of which must be there."""
    return {"required": [*names], "properties": values} if names else {"properties": values}


_TRUE: Json = {"const": True}
_NULL: Json = {"type": "null"}
_NOT_TRUE: Json = {"enum": [False, None]}
_ANY_FORM = {"response_format": {"anyOf": [_NULL, {"properties": {"type": {"const": "text"}}}]}}
_NO_GRAMMAR = {"structured_outputs": _NULL}
_FREE = {"ignore_eos": _NOT_TRUE, "min_tokens": {"anyOf": [_NULL, {"const": 0}]}}
"""What stands beside a grammar."""
_STREAMS: Json = {
    "anyOf": [_with("stream", stream=_TRUE, prompt_logprobs=_NULL), _with(stream=_NOT_TRUE, stream_options=_NULL)]
}
_ENDS: list[Json] = [{"continue_final_message": {"const": False}}, {"add_generation_prompt": _NOT_TRUE}]
"""One of them. A message that is continued beside a grammar is served, but not spelled out below."""
_EITHER: Json = {
    "anyOf": [
        _with("prompt", prompt={"type": "string"}, messages=_NULL),
        _with("messages", messages={"type": "array"}, prompt=_NULL),
    ]
}
_NO_CALL = {"tool_choice": {"enum": ["none", "auto", None]}}
CONDITIONS: dict[str, list[Json]] = {
    "CompletionRequest": [
        _STREAMS,
        {
            "anyOf": [
                _with(**_ANY_FORM, **_NO_GRAMMAR),
                _with(**_FREE, **_NO_GRAMMAR),
                _with(**_FREE, **_ANY_FORM),
            ]
        },
        {"anyOf": [_with("echo", echo=_TRUE), _with(max_tokens={"not": {"const": 0}})]},
    ],
    "ChatRequest": [
        _STREAMS,
        {
            "anyOf": [
                *(_with(**end, **_ANY_FORM, **_NO_GRAMMAR, **_NO_CALL) for end in _ENDS),
                _with(**_ENDS[0], **_FREE, **_NO_GRAMMAR, **_NO_CALL),
                _with(**_ENDS[0], **_FREE, **_ANY_FORM, **_NO_CALL),
                _with("tools", **_ENDS[0], **_FREE, **_NO_GRAMMAR, tools={"type": "array", "minItems": 1}),
            ]
        },
        {
            "anyOf": [
                _with("logprobs", logprobs=_TRUE),
                _with(top_logprobs={"anyOf": [_NULL, {"const": 0}]}),
            ]
        },
    ],
    "TokenizeRequest": [{"anyOf": [_with(**end) for end in _ENDS]}, _EITHER],
}
"""What holds between the fields of each request: so few alternatives that generators of requests can spell all out."""


def bound(schema: Any, model: str, vocab_size: int, max_model_len: int) -> Any:
    """The schema with what this model takes."""
    if isinstance(schema, list):
        return [bound(each, model, vocab_size, max_model_len) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: bound(value, model, vocab_size, max_model_len) for key, value in schema.items()}
    if found.get("format") == TOKEN_ID:
        found["maximum"] = vocab_size - 1
    elif found.get("format") == TOKEN_COUNT and max_model_len:
        found["maximum"] = max_model_len - 1
    elif found.get("format") == MODEL:
        found["enum"] = [model]
    properties = found.get("properties", {})
    if isinstance(properties.get("model"), dict) and "title" in properties["model"]:
        properties["model"] = {"enum": [model, None]}
    return found
