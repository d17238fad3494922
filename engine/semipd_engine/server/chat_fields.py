"""What of a chat's messages, tools and template fields nobody reads: it is named as unknown fields are, not dropped
without a word. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from semipd_engine.cards.template_reach import Reach
from semipd_engine.server.chat import TEXT_PARTS
from semipd_engine.server.protocol import TemplateFields

MESSAGE = frozenset(
    {"role", "content", "tool_calls", "tool_call_id", "refusal"} | {"annotations", "function_call", "audio"}
)
"""Of these the first are shown as the template has it, annotations are of what was said, the last are refused."""
THOUGHTS = frozenset({"reasoning", "reasoning_content"})
"""Two names of one thing: a template that names either shows it (`chat.normalise`)."""
SENT_BACK = frozenset(f"messages[].{name}" for name in THOUGHTS)
"""Our own answers have them, and clients send those back: named, and refused by nobody."""
PART = frozenset({"type", "text", "refusal", "annotations", "logprobs", "prompt_cache_breakpoint"})
"""The last marks a prefix for OpenAI's cache; this one's are found by their tokens."""
CALL, CALLED = frozenset({"id", "type", "function", "index"}), frozenset({"name", "arguments"})
TOOL, FUNCTION = frozenset({"type", "function"}), frozenset({"name", "description", "parameters", "strict"})


def unread(body: TemplateFields, messages: Iterable[Any], reach: Reach) -> list[str]:
    """Names, each once, as in ``messages[].weight``. A field that is null asks for nothing."""
    named = (*_template_fields(body, reach), *_of_messages(messages, reach), *_of_tools(body.tools or []))
    return list(dict.fromkeys(named))


def _template_fields(body: TemplateFields, reach: Reach) -> Iterator[str]:
    """Those that ask for something which the template has no variable for."""
    if body.documents and not reach.reads("documents"):
        yield "documents"
    if body.reasoning_effort not in (None, "none") and not any(map(reach.reads, body.effort_variables)):
        yield "reasoning_effort"
    for name, value in (body.chat_template_kwargs or {}).items():
        if value is not None and value is not False and not reach.reads(name):
            yield f"chat_template_kwargs.{name}"


def _of_messages(messages: Iterable[Any], reach: Reach) -> Iterator[str]:
    for message in messages:
        if not isinstance(message, dict):
            continue
        for name in _beyond(message, MESSAGE):
            shown = name in reach.words or (name in THOUGHTS and bool(THOUGHTS & reach.words))
            if name == "name":
                shown = reach.names or message.get("role") == "tool"
            if not shown:
                yield f"messages[].{name}"
        content = message.get("content")
        parts = [part for part in content if _is_text(part)] if isinstance(content, list) else []  # others are refused
        yield from _each(parts, PART, "messages[].content[]")
        yield from _each(message.get("tool_calls"), CALL, "messages[].tool_calls[]", CALLED)


def _of_tools(tools: Iterable[Any]) -> Iterator[str]:
    yield from _each(tools, TOOL, "tools[]", FUNCTION)


def _each(items: Any, known: frozenset[str], where: str, function: frozenset[str] = frozenset()) -> Iterator[str]:
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            yield from (f"{where}.{name}" for name in _beyond(item, known))
            if function and isinstance(item.get("function"), dict):
                yield from (f"{where}.function.{name}" for name in _beyond(item["function"], function))


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in TEXT_PARTS


def _beyond(given: Mapping[str, Any], known: frozenset[str]) -> list[str]:
    return [name for name in given if name not in known and given[name] is not None]
