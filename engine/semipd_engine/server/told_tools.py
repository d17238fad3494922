"""Tools told to a model in words, where its chat template has no place for them: in the system's message, and what was
called and given back in the messages' text, as the format of its calls has it. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from semipd_engine.cards.template_reach import Reach
from semipd_engine.server.chat import Message
from semipd_engine.server.tools import Tool, ToolFormat


def in_words(messages: list[Message], tools: Sequence[Tool] | None, reach: Reach, form: ToolFormat) -> list[Message]:
    """Messages, as `chat.normalise` leaves them, of which the template shows all that matters."""
    if not reach.calls:
        messages = _with_calls(messages, form)
    if tools and not reach.tools:
        messages = _with_tools(messages, _described(tools, form), reach.system)
    return messages


def _described(tools: Sequence[Tool], form: ToolFormat) -> str:
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    function = tools[0]["function"]
    given = (function.get("parameters") or {}).get("properties")
    arguments = dict.fromkeys(given, "...") if isinstance(given, dict) else {}
    example = form.written(_written([{"function": {"name": function["name"], "arguments": arguments}}], form))
    where = f" within {form.begin}{form.end}" if form.end else f" in a list behind {form.begin}" if form.listed else ""
    call = f"a JSON object of its name and its {form.arguments}{where}"
    if form.split:
        call = f"{form.begin}, its name, {form.split} and a JSON object of its {form.arguments}"
    return (
        f"You can call functions. They are described within <tools></tools>:\n<tools>\n{listed}\n</tools>\n\n"
        f"To call one, answer with {call}, and with nothing else, as in:\n{example}\nIf none of them helps, answer in "
        "words."
    )


def _with_tools(messages: list[Message], told: str, system: bool) -> list[Message]:
    """In the system's first message, or where the template takes none, before the user's first words."""
    role = "system" if system else "user"
    if system and messages[0].get("role") != role:
        return [{"role": role, "content": told}, *messages]
    at = next((number for number, message in enumerate(messages) if message.get("role") == role), None)
    if at is None:
        return [{"role": role, "content": told}, *messages]
    content = messages[at]["content"]
    both = (content, told) if system else (told, content)
    return [*messages[:at], messages[at] | {"content": "\n\n".join(filter(None, both))}, *messages[at + 1 :]]


def _with_calls(messages: list[Message], form: ToolFormat) -> list[Message]:
    """What the assistant called ends its content; what came back of it is one message of the user's, in the order of
    the calls, and begins what the user says next: some templates want turns that alternate."""
    told: list[Message] = []
    order: dict[Any, int] = {}
    results: list[Message] = []

    def given_back() -> str:
        given = sorted(results, key=lambda message: order.get(message.get("tool_call_id"), len(order)))
        results.clear()
        return "\n".join(f"<tool_response>\n{message['content']}\n</tool_response>" for message in given)

    for message in messages:
        if message["role"] in ("tool", "function"):
            results.append(message)
            continue
        if results and message["role"] == "user":
            message = message | {"content": "\n\n".join(filter(None, (given_back(), message["content"])))}
        elif results:
            told.append({"role": "user", "content": given_back()})
        if calls := message.get("tool_calls"):
            order = {call.get("id"): number for number, call in enumerate(calls)}
            content = "\n".join(filter(None, [message["content"], form.written(_written(calls, form))]))
            message = {name: value for name, value in message.items() if name != "tool_calls"} | {"content": content}
        told.append(message)
    return [*told, {"role": "user", "content": given_back()}] if results else told


def _written(calls: Sequence[dict[str, Any]], form: ToolFormat) -> list[str]:
    written = []
    for call in calls:
        function = call["function"]
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else json.dumps(arguments or {}, ensure_ascii=False)
        written.append(form.before_arguments(function["name"]) + text + form.after_arguments)
    return written
