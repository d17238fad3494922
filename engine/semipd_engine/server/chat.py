"""Chat messages as templates want them. Pure; knows no template and no tokenizer."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from semipd_engine.server.errors import bad_request
from semipd_engine.server.tools import THINK, THOUGHT

Message = dict[str, Any]
ROLES = {"developer": "system"}
"""OpenAI's newer name, which templates do not know."""
TEXT_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""Kinds of parts that are text, and where they have it; the second and third are those of OpenAI's newer API."""
REFUSED = {"function_call": "send tool_calls", "audio": "send its transcript as content"}
"""Fields of a message that no template shows."""
STRINGS = ("name", "tool_call_id", "refusal", "reasoning", "reasoning_content")
"""Or null."""


def normalise(messages: list[Message]) -> list[Message]:
    """Content as one string, tool-call arguments as objects, results with the name of what was called, which some
    templates want and OpenAI's API does not send. Raises `ApiError` (400) naming the message at fault."""
    normal = [_normalise(message, f"messages.{index}") for index, message in enumerate(messages)]
    called: dict[str | None, str] = {}
    for message in normal:
        called |= {call.get("id"): call["function"]["name"] for call in message.get("tool_calls", [])}
        if message["role"] == "tool" and message.get("name") is None and message.get("tool_call_id") in called:
            message["name"] = called[message["tool_call_id"]]
    return normal


def with_short_ids(messages: list[Message]) -> list[Message]:
    """For a template that takes none but ids of nine letters and digits: each other one stands for itself still, by its
    hash, so that a result is that of its call, and a conversation has the same prompt each time. Messages as
    `normalise` leaves them."""

    def short(given: Any) -> Any:
        if not isinstance(given, str) or re.fullmatch("[a-zA-Z0-9]{9}", given):
            return given
        return hashlib.sha256(given.encode(errors="surrogatepass")).hexdigest()[:9]

    told = []
    for message in messages:
        if calls := message.get("tool_calls"):
            message = message | {"tool_calls": [call | {"id": short(call.get("id"))} for call in calls]}
        if message.get("tool_call_id") is not None:
            message = message | {"tool_call_id": short(message["tool_call_id"])}
        told.append(message)
    return told


def thinks(message: Message) -> bool:
    """Does the message begin with a thought that has not ended? One elsewhere is text. Messages that `normalise` has
    taken only."""
    content: str = _normalise(message, "")["content"]
    return content.lstrip().startswith(THINK) and THOUGHT not in content


def begun(messages: list[Message]) -> str:
    """What the assistant has said last, where nobody has answered it: `echo` shows it before the answer. Messages that
    `normalise` has taken only."""
    last = _normalise(messages[-1], "")
    return str(last["content"]) if last["role"] == "assistant" else ""


def _normalise(message: Message, where: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise bad_request(f"{where}.role", "must be a string such as 'user'")
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_text(part, f"{where}.content.{index}") for index, part in enumerate(content))
    elif content is not None and not isinstance(content, str):
        raise bad_request(f"{where}.content", "must be a string or a list of text parts")
    if "content" not in message and role != "assistant":
        raise bad_request(f"{where}.content", "is missing; send a string")
    for name in STRINGS:
        if not isinstance(message.get(name), str | None):
            raise bad_request(f"{where}.{name}", "must be a string")
    for name, remedy in REFUSED.items():
        if message.get(name) is not None:
            raise bad_request(f"{where}.{name}", f"not supported; {remedy}")
    if content is None and isinstance(message.get("refusal"), str):
        content = message["refusal"]
    normal = message | {"role": ROLES.get(role, role), "content": content or ""}
    thought = message.get("reasoning_content") or message.get("reasoning")
    if thought:  # templates know one of the names, clients send the other
        normal |= {"reasoning_content": thought, "reasoning": thought}
    if calls := _tool_calls(normal.pop("tool_calls", None), f"{where}.tool_calls"):
        normal["tool_calls"] = calls
    return normal


def _text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and (key := TEXT_PARTS.get(str(part.get("type")))) and isinstance(part.get(key), str):
        text: str = part[key]
        return text
    raise bad_request(where, "only parts {'type': 'text', 'text': ...} are supported; this model reads text")


def _tool_calls(calls: Any, where: str) -> list[Any]:
    """The API sends arguments as JSON text; templates print an object."""
    if calls is None:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise bad_request(where, "must be a list of objects")
    parsed = []
    for number, call in enumerate(calls):
        function = call.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise bad_request(f"{where}.{number}.function.name", "is missing; send the name of what was called")
        for name in ("id", "type"):
            if not isinstance(call.get(name), str | None):
                raise bad_request(f"{where}.{number}.{name}", "must be a string")
        if not isinstance(function.get("arguments"), str | dict | None):
            raise bad_request(f"{where}.{number}.function.arguments", "must be JSON text")
        if isinstance(function.get("arguments"), str):
            try:
                arguments = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError):
                arguments = function["arguments"]  # a model's own words, perhaps cut: they are shown as they are
            call = call | {"function": function | {"arguments": arguments}}
        parsed.append(call)
    return parsed
