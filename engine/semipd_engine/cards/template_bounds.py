"""A sandbox for Jinja templates whose work and memory are bounded, by counts and not by a clock.

A rendering has a number of turns (of loops, and calls) and of characters and items that it may make. What an operation
gave is counted; an operation that may give more than it was handed is judged before. Knows nothing of chats.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from string import Formatter
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_TURNS = 1_000_000
"""Turns of loops, and calls, of one rendering: a long conversation takes some ten for each message."""
MOST_ITEMS = 1 << 24
"""Characters, or items, that one operation gives: no conversation is so long."""
MOST_MADE = 1 << 28
"""That all of them give: a template may copy a long conversation with each of its messages."""
MOST_BITS = 1 << 12
"""Of a product or power: nobody counts so far."""
ALLOWANCE = "\x00allowance\x00"
"""The rendering's `Allowance` in its context. No name of a template is such."""

_COUNTED, _JOINED, _CUT = "semipd_counted", "semipd_joined", "semipd_cut"
_WIDE = re.compile(r"%(?:\([^)]*\))?[-#0 +.\d]*(?:\*|\d{5})")
"""A place of a format with a large width, or with one that an argument gives."""


class Allowance:
    """What one rendering has left."""

    def __init__(self) -> None:
        self._turns, self._made = MOST_TURNS, MOST_MADE

    def turn(self) -> None:
        self._turns -= 1
        if self._turns < 0:
            raise jinja2.TemplateError(f"it takes more than {MOST_TURNS} turns of its loops")

    def made(self, value: Any) -> Any:
        """`value`, counted."""
        if isinstance(value, str | list | tuple | dict | bytes):
            self._made -= len(value)
            if self._made < 0:
                raise jinja2.TemplateError(f"it makes more than {MOST_MADE} characters and items")
        return value


def judge(what: str, items: int) -> None:
    """Raises TemplateError for an operation that would give so many."""
    if items > MOST_ITEMS:
        raise jinja2.TemplateError(f"{what} gives more than {MOST_ITEMS} items, or {MOST_BITS} bits")


def size(value: Any) -> int:
    """About how long its text is. What it holds more than once is looked at once, and counts as often as it is held."""
    known: dict[int, int] = {}

    def of(item: Any) -> int:
        if isinstance(item, str | bytes):
            return 1 + len(item)
        held: Iterable[Any]
        if isinstance(item, Namespace):
            held = object.__getattribute__(item, "_Namespace__attrs").values()
        elif isinstance(item, Mapping):
            held = chain(item.keys(), item.values())
        elif isinstance(item, list | tuple | set | frozenset):
            held = item
        else:
            return 1
        if id(item) not in known:
            known[id(item)] = 1 + sum(map(of, held))
        return known[id(item)]

    return of(value)


def _of_format(form: str, values: Any) -> int:
    """What `form` gives with these values in each of its places, by the operator %."""
    if _WIDE.search(form):
        raise _too_wide()
    return len(form) + form.count("%") * (size(values) + 10_000 * bool(re.search(r"%\S*\d", form)))


def _of_braces(form: str, values: Any) -> int:
    """The same by a string's method."""
    places = [spec or "" for _, field, spec, _ in Formatter().parse(form) if field is not None]
    if any("{" in spec or re.search(r"\d{5}", spec) for spec in places):
        raise _too_wide()
    return len(form) + len(places) * size(values) + 10_000 * sum(map(bool, places))


def _too_wide() -> jinja2.TemplateError:
    return jinja2.TemplateError("a place of a format gives more than 9999 characters, or as many as an argument says")


def _of_call(name: str, text: Any, given: list[Any]) -> int:
    """What a filter or a method of that name may give, where it may be more than it was handed; else 0."""
    width = max((each for each in given if isinstance(each, int)), default=0)
    match name:
        case "center" | "ljust" | "rjust" | "zfill" | "batch" | "slice" | "to_bytes":
            return width
        case "indent" | "wordwrap":
            longest = max([width, 4, *(len(each) for each in given if isinstance(each, str))])
            return size(text) + longest * (str(text).count("\n") + 1 if name == "indent" else size(text))
        case "expandtabs":
            return size(text) + str(text).count("\t") * max(width, 8)
        case "replace":
            old, new = (str(each) for each in [*given, "", ""][:2])
            return size(text) + str(text).count(old) * len(new)
        case "join":
            items = text if isinstance(text, list | tuple) else next(iter(given), ())
            other = next(iter(given), "") if isinstance(text, list | tuple) else text
            return size(items) + len(items) * size(other) if isinstance(items, list | tuple | str | dict) else 0
        case "tojson" | "string" | "pprint" | "xmlattr" | "urlencode" | "escape" | "e" | "forceescape" | "urlize":
            return size(text) * (1 + width)
        case "format":
            return _of_format(str(text), given)
        case "sum":
            return sum(len(each) for each in text if isinstance(each, str | list | tuple))
        case "translate" | "maketrans":
            return MOST_ITEMS + 1  # a table may give a long text for each letter
    return 0


@jinja2.pass_context  # which also keeps it out of what is computed once, when a template is compiled
def _counted(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    allowance: Allowance = context[ALLOWANCE]
    for item in items:
        allowance.turn()
        yield item


@jinja2.pass_context
def _joined(context: Context, parts: list[Any]) -> Any:
    judge("~", size(parts))
    return context[ALLOWANCE].made("".join(map(str, parts)))


@jinja2.pass_context
def _shown(context: Context, value: Any) -> Any:
    if not isinstance(value, str):
        judge("what is shown", size(value))
    return context[ALLOWANCE].made(value)


@jinja2.pass_context
def _cut(context: Context, value: Any) -> Any:
    return context[ALLOWANCE].made(value)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    wanted = getattr(function, "jinja_pass_arg", None)

    @jinja2.pass_context
    def call(context: Context, *args: Any, **kwargs: Any) -> Any:
        if name in ("join", "sum") and args and isinstance(args[0], Iterator):
            args = (list(args[0]), *args[1:])
        judge(name, _of_call(name, args[0] if args else "", [*args[1:], *kwargs.values()]))
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        more = (first[wanted.name],) if wanted else ()
        return context[ALLOWANCE].made(function(*more, *args, **kwargs))

    return call


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """`render` templates with an `Allowance` as `ALLOWANCE` in their context."""

    intercepted_binops = frozenset({"*", "**", "+", "%"})

    def __init__(self, filters: Mapping[str, Callable[..., Any]], **options: Any) -> None:
        super().__init__(finalize=_shown, **options)
        self.filters |= filters
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.filters |= {_COUNTED: _counted, _JOINED: _joined, _CUT: _cut}
        del self.globals["lipsum"]  # as many words as it is asked for

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for loop in template.find_all(nodes.For):
            loop.iter = self._filtered(loop.iter, _COUNTED)
        _replace(template, self._bounded)
        template.set_environment(self)
        return template

    def _bounded(self, node: nodes.Node) -> nodes.Node:
        if isinstance(node, nodes.Concat):
            return self._filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._filtered(node, _CUT)
        return node

    @staticmethod
    def _filtered(node: Any, name: str) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        allowance: Allowance = __context[ALLOWANCE]
        allowance.turn()
        if isinstance(__obj, LoopContext) and args:  # a recursive loop's next level
            args = (_counted(__context, args[0]), *args[1:])
        of, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(of, str | bytes | int) and name not in ("format", "format_map"):  # `wrap_str_format` judges those
            judge(name, _of_call(name, of, [*args, *kwargs.values()]))
        return allowance.made(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def judged(*args: Any, **kwargs: Any) -> str:
            judge("format", _of_braces(value.__self__, [*args, *kwargs.values()]))
            return wrapped(*args, **kwargs)

        return judged

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            judge(operator, _of_format(left, right))
        elif operator in ("*", "**") and _too_large(operator, left, right):
            judge(operator, MOST_ITEMS + 1)
        return context[ALLOWANCE].made(super().call_binop(context, operator, left, right))


def _too_large(operator: str, left: Any, right: Any) -> bool:
    """Would this product, or power, be? Whatever is neither number nor sequence has its own say."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * abs(right) if operator == "**" else left.bit_length() + right.bit_length()
        return bits > MOST_BITS
    count, items = (left, right) if isinstance(left, int) else (right, left)
    return isinstance(count, int) and isinstance(items, str | list | tuple) and len(items) * count > MOST_ITEMS


def _replace(node: nodes.Node, change: Callable[[nodes.Node], nodes.Node]) -> None:
    """Each node below `node` becomes what `change` makes of it; the innermost first."""
    for name, value in node.iter_fields():
        if isinstance(value, nodes.Node):
            _replace(value, change)
            setattr(node, name, change(value))
        elif isinstance(value, list):
            for at, each in enumerate(value):
                if isinstance(each, nodes.Node):
                    _replace(each, change)
                    value[at] = change(each)
