"""JSON schemas of what is answered, for `/openapi.json`: OpenAI's shapes, with vLLM's additions and this engine's.

Clients meet fields of later versions: objects are open. Knows no requests; what `responses` makes is held against it.
"""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
REFS = "#/components/schemas/{model}"

_TEXT: Json = {"type": "string"}
_COUNT: Json = {"type": "integer", "minimum": 0}
_NUMBER: Json = {"type": "number"}
_TRUTH: Json = {"type": "boolean"}
_IDS: Json = {"type": "array", "items": _COUNT}


def ref(name: str) -> Json:
    return {"$ref": REFS.format(model=name)}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}


def _object(optional: Json | None = None, /, **properties: Json) -> Json:
    """`optional` fields are not always there."""
    return {"type": "object", "required": [*properties], "properties": properties | (optional or {})}


def _envelope(kind: str, choice: str, more: Json, **rest: Json) -> Json:
    return _object(
        more,
        id=_TEXT,
        object={"const": kind},
        created={"type": "integer", "description": "seconds since 1970"},
        model=_TEXT,
        system_fingerprint=_TEXT,
        choices=_list(ref(choice)),
        **rest,
    )


_REASON = {"finish_reason": _or_null({"enum": ["stop", "length", "tool_calls"]})}
_ENDS = _REASON | {
    "stop_reason": {
        "anyOf": [_TEXT, _COUNT, {"type": "null"}],
        "description": "the stop string, or the requested stop id, that ended it",
    }
}
_PROMPT_LOGPROBS: Json = {
    "type": "array",
    "items": _or_null(
        {
            "type": "object",
            "additionalProperties": _object(logprob=_NUMBER, rank=_COUNT, decoded_token=_TEXT),
            "description": "by token id",
        }
    ),
}
_COMPLETION_CHOICE = _object(
    {"token_ids": _IDS, "prompt_token_ids": _IDS, "prompt_logprobs": _PROMPT_LOGPROBS},
    index=_COUNT,
    text=_TEXT,
    logprobs=_or_null(ref("CompletionLogprobs")),
    **_ENDS,
)
_SAID = {"reasoning": _TEXT, "reasoning_content": _TEXT}
_TOKEN = {"token": _TEXT, "logprob": _NUMBER, "bytes": _list({"type": "integer", "minimum": 0, "maximum": 255})}
_CALLED = _object(name=_TEXT, arguments=_TEXT | {"description": "JSON text"})
_LAST_USAGE = {"usage": _or_null(ref("Usage"))}
_CHAT_EXTRA = {"prompt_token_ids": _IDS, "prompt_logprobs": _PROMPT_LOGPROBS}

ANSWERS: dict[str, Json] = {
    "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_or_null(_TEXT), code=_or_null(_TEXT))),
    "Usage": _object(
        prompt_tokens=_COUNT,
        completion_tokens=_COUNT,
        total_tokens=_COUNT,
        prompt_tokens_details=_object(cached_tokens=_COUNT | {"description": "served from the prefix cache"}),
    ),
    "CompletionLogprobs": _object(
        tokens=_list(_TEXT),
        token_logprobs=_list(_or_null(_NUMBER)),
        top_logprobs=_list(_or_null({"type": "object", "additionalProperties": _NUMBER})),
        text_offset=_list(_COUNT),
    ),
    "CompletionChoice": _COMPLETION_CHOICE,
    "Completion": _envelope("text_completion", "CompletionChoice", {}, usage=ref("Usage")),
    "CompletionChunk": _envelope("text_completion", "CompletionChoice", _LAST_USAGE),
    "ChatLogprobs": _object(content=_list(ref("TokenLogprob"))),
    "TokenLogprob": _object(**_TOKEN, top_logprobs=_list(_object(**_TOKEN))),
    "ToolCall": _object(id=_TEXT, type={"const": "function"}, function=_CALLED),
    "ChatMessage": _object(
        _SAID | {"tool_calls": _list(ref("ToolCall"))}, role={"const": "assistant"}, content=_or_null(_TEXT)
    ),
    "ChatChoice": _object(
        {"token_ids": _IDS},
        index=_COUNT,
        message=ref("ChatMessage"),
        logprobs=_or_null(ref("ChatLogprobs")),
        **_ENDS,
    ),
    "ChatCompletion": _envelope("chat.completion", "ChatChoice", _CHAT_EXTRA, usage=ref("Usage")),
    "ToolCallDelta": _object(
        {"id": _TEXT, "type": {"const": "function"}}, index=_COUNT, function=_object({"name": _TEXT}, arguments=_TEXT)
    ),
    "ChatDelta": _object(
        _SAID | {"role": {"const": "assistant"}, "content": _TEXT, "tool_calls": _list(ref("ToolCallDelta"))}
    ),
    "ChatChunkChoice": _object(
        {"token_ids": _IDS, "stop_reason": _ENDS["stop_reason"]},
        index=_COUNT,
        delta=ref("ChatDelta"),
        logprobs=_or_null(ref("ChatLogprobs")),
        **_REASON,
    ),
    "ChatChunk": _envelope("chat.completion.chunk", "ChatChunkChoice", _CHAT_EXTRA | _LAST_USAGE),
    "Model": _object(
        id=_TEXT,
        object={"const": "model"},
        created={"type": "integer"},
        owned_by=_TEXT,
        root=_TEXT,
        max_model_len=_COUNT | {"description": "tokens of a prompt and its output together"},
    ),
    "Models": _object(object={"const": "list"}, data=_list(ref("Model"))),
    "Tokens": _object({"token_strs": _list(_TEXT)}, count=_COUNT, max_model_len=_COUNT, tokens=_IDS),
    "Text": _object(prompt=_TEXT),
    "TokenizerInfo": _object(
        bos_token=_or_null(_TEXT), eos_token=_or_null(_TEXT), pad_token=_or_null(_TEXT), chat_template=_or_null(_TEXT)
    ),
    "Version": _object(version=_TEXT),
    "Load": _object(server_load=_COUNT | {"description": "HTTP requests that are being answered"}),
    "Readiness": _object(ready=_TRUTH, reason=_or_null(_TEXT)),
}
"""By the names that they have in the document."""
