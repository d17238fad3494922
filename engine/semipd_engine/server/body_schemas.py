"""JSON schemas of the parts of a body that `protocol` checks by hand, for `/openapi.json`: what they say is accepted.

Where the truth depends on the model, `bound` fills it in: names, token ids and lengths.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

TOKEN_ID, TOKEN_COUNT = "token-id", "token-count"
"""Formats of integers that are below the vocabulary's size, or the model's length."""

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
    "propertyNames": {"pattern": "^[0-9]{1,2}$"},
    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
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
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {
                        "name": {"type": "string"},
                        "schema": _SCHEMA,
                        "strict": {"type": ["boolean", "null"]},
                    },
                },
            },
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


def _if(given: Json, then: Json) -> Json:
    return {"if": {"required": [*given], "properties": given}, "then": then}


def _not(name: str, value: Json) -> Json:
    return {"properties": {name: {"not": value}}}


_TRUE: Json = {"const": True}
_FREE: Json = {"allOf": [_not("ignore_eos", _TRUE), _not("min_tokens", {"type": "integer", "minimum": 1})]}
_FORMAT: Json = {"type": "object", "properties": {"type": {"not": {"const": "text"}}}}
_TWO_GRAMMARS: Json = {"response_format": _FORMAT, "structured_outputs": {"type": "object"}}
BOTH = [
    _if({"stream_options": {"type": "object"}}, {"required": ["stream"], "properties": {"stream": _TRUE}}),
    _if({"prompt_logprobs": {"type": "integer"}}, _not("stream", _TRUE)),
    _if({"response_format": _FORMAT}, _FREE),
    _if({"structured_outputs": {"type": "object"}}, _FREE),
    {
        "not": {
            "required": [*_TWO_GRAMMARS],
            "properties": _TWO_GRAMMARS,
        }
    },
]
"""What holds between the fields of either request."""
_ONE_END: Json = {
    "not": {
        "required": ["continue_final_message", "add_generation_prompt"],
        "properties": {"continue_final_message": _TRUE, "add_generation_prompt": _TRUE},
    }
}
TOKENIZE = [
    _ONE_END,
    {
        "anyOf": [
            {"required": ["prompt"], "properties": {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
            {"required": ["messages"], "properties": {"messages": {"type": "array"}, "prompt": {"type": "null"}}},
        ]
    },
]
COMPLETIONS = [_if({"max_tokens": {"const": 0}}, {"required": ["echo"], "properties": {"echo": _TRUE}})]
CHAT = [
    _not("max_tokens", {"const": 0}),
    _not("max_completion_tokens", {"const": 0}),
    _ONE_END,
    {
        "not": {
            "required": ["top_logprobs"],
            "properties": {"top_logprobs": {"type": "integer", "minimum": 1}, "logprobs": {"enum": [False, None]}},
        }
    },
    _if(
        {"tool_choice": {"anyOf": [{"const": "required"}, {"type": "object"}]}},
        {
            "required": ["tools"],
            "properties": {"tools": {"type": "array", "minItems": 1}, "structured_outputs": {"type": "null"}},
        }
        | _FREE,
    ),
]


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
    properties = found.get("properties", {})
    if isinstance(properties.get("model"), dict) and "title" in properties["model"]:
        properties["model"] = {"enum": [model, None]}
    return found
