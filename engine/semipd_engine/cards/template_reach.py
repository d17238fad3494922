"""What of a chat a template puts into its prompts: found by rendering it with marked parts, and by what it names.

Knows no template's language beyond its names, no tokenizer and no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, meta, nodes

Messages = list[dict[str, Any]]
Renders = Callable[[Messages, list[dict[str, Any]] | None], str]
"""A rendering of messages with tools; may raise anything."""

_MARK, _OTHER = "marked_one", "marked_other"
_USER = {"role": "user", "content": "two words"}
_TOOL = {
    "type": "function",
    "function": {
        "name": _MARK,
        "description": "does it",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "it"}}},
    },
}
_SHORT_ID, _USUAL_ID = "abcdefghi", "call_0123456789abcdef01234567"
"""As Mistral's templates want ids, and as OpenAI's clients and servers have them."""


def _called(call_id: str) -> Messages:
    """Another function than the one that is offered."""
    call = {"id": call_id, "type": "function", "function": {"name": _OTHER, "arguments": {"x": "y"}}}
    return [
        _USER,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "name": "a_function", "content": "done"},
    ]


@dataclass(frozen=True)
class Reach:
    """Without a look nothing is said to be left out."""

    tools: bool = True
    """The functions that a request offers ..."""
    calls: bool = True
    """... and those that the assistant has called."""
    short_ids: bool = False
    """These only where their ids are nine letters and digits, as Mistral's are."""
    system: bool = True
    """A system's message before the user's."""
    names: bool = True
    """Who a user is."""
    variables: frozenset[str] | None = None
    """That the template reads; None: not known."""
    words: frozenset[str] = frozenset()
    """Attributes and texts that it names: fields of messages, perhaps."""

    def reads(self, variable: str) -> bool:
        return self.variables is None or variable in self.variables


def look(render: Renders, environment: Environment, source: str, with_tools: bool) -> Reach:
    """Of requests with tools, or without any. A template that fails on a plain message is not asked for more."""

    def shows(mark: str, messages: Messages, tools: list[dict[str, Any]] | None = None) -> bool:
        try:
            return mark in render(messages, tools)
        except Exception:  # a template is a program, and this one does not take such a chat
            return False

    if not shows(_USER["content"], [_USER]):
        return Reach()
    offered = [_TOOL] if with_tools else None
    parsed = environment.parse(source)
    attributes = {each.attr for each in parsed.find_all(nodes.Getattr)}
    calls = shows(_OTHER, _called(_SHORT_ID), offered)
    return Reach(
        tools=shows(_MARK, [_USER], [_TOOL]),
        calls=calls,
        short_ids=calls and not shows(_OTHER, _called(_USUAL_ID), offered),
        system=shows(_MARK, [{"role": "system", "content": _MARK}, _USER]),
        names=shows(_MARK, [_USER | {"name": _MARK}]),
        variables=frozenset(meta.find_undeclared_variables(parsed)),
        words=frozenset(attributes | {each.value for each in parsed.find_all(nodes.Const) if type(each.value) is str}),
    )
