"""Renders a model's Jinja chat template in a sandbox, with the helpers that templates on the Hub rely on.

The template comes with the model and is not trusted; the messages come from clients and are plain JSON data. So the
work of one rendering is bounded (`template_bounds`): the same messages are always served, or never. Knows no tokenizer
and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from semipd_engine.cards.template_bounds import ALLOWANCE, Allowance, BoundedEnvironment
from semipd_engine.cards.template_reach import Reach, look

_PROBE = "two words"
"""A user's message that shows how a template reads content."""
_CONTINUE = "\x00continue\x00"
"""Marks the end of the last message; the last occurrence counts, so a client that sends it gains nothing."""


class ChatTemplateError(Exception):
    """The template is missing, broken, or refuses these messages. The message is fit for the client."""


class _GenerationTag(Extension):
    """``{% generation %}`` marks the assistant's text for training; for serving its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as an instance attribute)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Jinja's own tojson escapes HTML characters, which a model must not see."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _environment(now: Callable[[], datetime]) -> BoundedEnvironment:
    tags = [_GenerationTag, loopcontrols]
    environment = BoundedEnvironment({"tojson": _tojson}, trim_blocks=True, lstrip_blocks=True, extensions=tags)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    return environment


class ChatTemplates:
    """The model's templates by name; "tool_use" serves requests with tools where the model has one."""

    def __init__(
        self, sources: dict[str, str], special_tokens: dict[str, str], now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._special_tokens = special_tokens
        self._sources = sources
        self._environment = _environment(now)
        self._reach: dict[bool, Reach] = {}
        self._templates: dict[str, jinja2.Template] = {}
        self._wants_parts: dict[str, bool] = {}
        """Templates that read content as a list of parts only, as those of multimodal models do."""
        self._error = "the model has no chat template; use /v1/completions or add chat_template.jinja to the model"
        for name, source in sources.items():
            try:
                self._templates[name] = self._environment.from_string(source)
                self._wants_parts[name] = self._shows(name, [_part(_PROBE)]) and not self._shows(name, _PROBE)
            except Exception as error:  # also Python's compiler and stack have their say, of one that nests deeply
                self._error = f"the model's chat template {name!r} is broken: {error}; use /v1/completions"

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: dict[str, Any] | None = None,
    ) -> str:
        """The prompt's text. Raises `ChatTemplateError`.

        `variables` come before special tokens and `add_generation_prompt`. With `continue_final_message` the text ends
        inside the last message, for the model to go on from there.
        """
        name = self._name(bool(tools))
        if name not in self._templates:
            raise ChatTemplateError(self._error)
        if continue_final_message:
            messages = [*messages[:-1], messages[-1] | {"content": str(messages[-1].get("content") or "") + _CONTINUE}]
        if self._wants_parts[name]:
            messages = [_in_parts(message) for message in messages]
        context = self._special_tokens | {"add_generation_prompt": add_generation_prompt} | (variables or {})
        context |= {"messages": messages, "tools": tools}
        try:
            text = self._render(name, context)
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template refuses these messages: {error}") from error
        except Exception as error:  # a template is a program on the client's data: any exception is about both
            name = type(error).__name__
            raise ChatTemplateError(f"the model's chat template fails on these messages: {name}: {error}") from error
        if not continue_final_message:
            return text
        end = text.rfind(_CONTINUE)
        if end < 0:
            raise ChatTemplateError("the model's chat template does not show the last message: it cannot be continued")
        return text[:end]

    def reach(self, with_tools: bool) -> Reach:
        """What it shows of requests with tools, or without any."""
        if with_tools not in self._reach:
            name = self._name(with_tools)

            def rendered(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
                shown = [_in_parts(message) for message in messages] if self._wants_parts[name] else messages
                context = self._special_tokens | {"messages": shown, "tools": tools, "add_generation_prompt": True}
                return self._render(name, context)

            known = name in self._templates
            self._reach[with_tools] = (
                look(rendered, self._environment, self._sources[name], with_tools) if known else Reach()
            )
        return self._reach[with_tools]

    def objection(self) -> str | None:
        """Why no chat can be served, in the words of `render`; None: one message of a user can."""
        try:
            self.render([{"role": "user", "content": _PROBE}])
        except ChatTemplateError as error:
            return str(error)
        return None

    def _name(self, with_tools: bool) -> str:
        return "tool_use" if with_tools and "tool_use" in self._templates else "default"

    def _render(self, name: str, context: dict[str, Any]) -> str:
        return self._templates[name].render(context | {ALLOWANCE: Allowance()})

    def _shows(self, name: str, content: str | list[dict[str, str]]) -> bool:
        """Is a user's message with this content in the prompt? A template that refuses it does not show it."""
        messages = [{"role": "user", "content": content}]
        context = self._special_tokens | {"messages": messages, "tools": None, "add_generation_prompt": True}
        try:
            return _PROBE in self._render(name, context)
        except Exception:  # a template is a program
            return False


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    return message | {"content": [_part(content)]} if isinstance(content, str) else message
