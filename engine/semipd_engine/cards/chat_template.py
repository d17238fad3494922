"""Renders a model's Jinja chat template in a sandbox, with the helpers that templates on the Hub rely on.

The template comes with the model and is not trusted; the messages come from clients and are plain JSON data. So the
work of one rendering is bounded, by counts and not by a clock: the same messages are always served, or never. Knows no
tokenizer and no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

_PROBE = "two words"
"""A user's message that shows how a template reads content."""
MOST_TURNS = 1_000_000
"""Turns of loops, and calls, of one rendering: a long conversation takes some ten for each message."""
MOST_ITEMS = 1 << 24
"""Characters, or items, of what is repeated: no conversation is so long."""
MOST_BITS = 1 << 12
"""Of a product or power: nobody counts so far."""
_TURNS = "\x00turns\x00"
"""The rendering's count in its context. No name of a template is such."""
_COUNTED = "semipd_counted"
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


class _Turns:
    """What one rendering has left."""

    def __init__(self) -> None:
        self._left = MOST_TURNS

    def take(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise jinja2.TemplateError(f"it takes more than {MOST_TURNS} turns of its loops")


@jinja2.pass_context  # which also keeps it out of what is computed once, when a template is compiled
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    turns: _Turns = context[_TURNS]
    for item in items:
        turns.take()
        yield item


def _too_large(operator: str, left: Any, right: Any) -> bool:
    """Would this product, or power, be? Whatever is neither number nor sequence has its own say."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return bits > MOST_BITS
    count, items = (left, right) if isinstance(left, int) else (right, left)
    return isinstance(count, int) and isinstance(items, str | list | tuple) and len(items) * count > MOST_ITEMS


class _Bounded(ImmutableSandboxedEnvironment):
    """Counts the turns of each loop and each call, and judges products and powers before they are computed."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.filters[_COUNTED] = _counted
        del self.globals["lipsum"]  # as many words as it is asked for

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, _COUNTED, [], [], None, None, lineno=loop.lineno)
        template.set_environment(self)
        return template

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __context[_TURNS].take()
        if isinstance(__obj, LoopContext) and args:  # a recursive loop's next level
            args = (_counted(__context, args[0]), *args[1:])
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if _too_large(operator, left, right):
            raise jinja2.TemplateError(f"{operator} gives more than {MOST_ITEMS} items, or {MOST_BITS} bits")
        return super().call_binop(context, operator, left, right)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = _Bounded()
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda format: now().strftime(format)
    return environment


class ChatTemplates:
    """The model's templates by name; "tool_use" serves requests with tools where the model has one."""

    def __init__(
        self, sources: dict[str, str], special_tokens: dict[str, str], now: Callable[[], datetime] = datetime.now
    ) -> None:
        self._special_tokens = special_tokens
        self._templates: dict[str, jinja2.Template] = {}
        self._wants_parts: dict[str, bool] = {}
        """Templates that read content as a list of parts only, as those of multimodal models do."""
        self._error = "the model has no chat template; use /v1/completions or add chat_template.jinja to the model"
        environment = _environment(now)
        for name, source in sources.items():
            try:
                self._templates[name] = environment.from_string(source)
                self._wants_parts[name] = self._shows(name, [_part(_PROBE)]) and not self._shows(name, _PROBE)
            except jinja2.TemplateError as error:
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

        With `continue_final_message` the text ends inside the last message, for the model to go on from there.
        """
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ChatTemplateError(self._error)
        if continue_final_message:
            messages = [*messages[:-1], messages[-1] | {"content": str(messages[-1].get("content") or "") + _CONTINUE}]
        if self._wants_parts[name]:
            messages = [_in_parts(message) for message in messages]
        context = (variables or {}) | self._special_tokens
        context |= {"messages": messages, "tools": tools, "add_generation_prompt": add_generation_prompt}
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

    def objection(self) -> str | None:
        """Why no chat can be served, in the words of `render`; None: one message of a user can."""
        try:
            self.render([{"role": "user", "content": _PROBE}])
        except ChatTemplateError as error:
            return str(error)
        return None

    def _render(self, name: str, context: dict[str, Any]) -> str:
        return self._templates[name].render(context | {_TURNS: _Turns()})

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
