"""Tools of a request: what they must look like, which of them an answer is forced to call, and the grammar for that.

Pure. Knows no answers: those `answer` reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from semipd_engine.server.errors import ApiError
from semipd_engine.server.json_schema import held
from semipd_engine.server.structured import MAX_GRAMMAR_CHARACTERS, ErrorOf, check, parsed, refused

THINK, THOUGHT = "<think>", "</think>"
Tool = dict[str, Any]
MAX_TOOLS = 128
NAME = r"^[a-zA-Z0-9_.-]{1,64}$"
NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
"""Of a function that names none."""
MOST_CALLS = 16
"""In one answer that is forced to call."""
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As templates print calls."""


CALL_ID, ARGS = "[CALL_ID]", "[ARGS]"
"""Mistral's, between a call's name, its id and its arguments."""


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes a call: JSON with the name and the arguments, between two markers or alone."""

    name: str
    begin: str
    end: str
    arguments: str
    """The key of the arguments."""
    separator: str
    """Between two calls."""
    listed: bool = False
    """All calls are one list behind one marker."""
    split: str = ""
    """Between the name and the arguments, where there is no JSON around them."""

    def before_arguments(self, function: str) -> str:
        if self.split:
            return self.begin + function + self.split
        marker = f"{self.begin}\n" if self.begin and not self.listed else ""
        return f'{marker}{{"name": {json.dumps(function)}, "{self.arguments}": '

    @property
    def after_arguments(self) -> str:
        return "" if self.split else "}\n" + self.end if self.end else "}"

    @property
    def around(self) -> tuple[str, str]:
        """What stands before and behind all calls."""
        return (f"{self.begin} [", "]") if self.listed else ("", "")

    def written(self, calls: Sequence[str]) -> str:
        before, after = self.around
        return before + self.separator.join(calls) + after


HERMES = ToolFormat("hermes", "<tool_call>", "</tool_call>", "arguments", "\n")
LLAMA3_JSON = ToolFormat("llama3_json", "", "", "parameters", "; ")
MISTRAL = ToolFormat("mistral", "[TOOL_CALLS]", "", "arguments", ", ", listed=True)
MISTRAL_ARGS = ToolFormat("mistral_args", MISTRAL.begin, "", "arguments", "", split=ARGS)
"""Since its eleventh tokenizer. What is read is the same: of either kind."""
TOOL_FORMATS = {each.name: each for each in (HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_ARGS)}
MARKS = (HERMES.begin, HERMES.end, MISTRAL.begin, CALL_ID, ARGS)
"""Many tokenizers have them as special tokens."""
PYTHON_TAG = "<|python_tag|>"
"""Llama 3 may write it before a call."""
TOOL_SCHEMA = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": NAME},
                "description": {"type": ["string", "null"]},
                "parameters": {"type": ["object", "null"], "properties": {"type": {"const": "object"}}},
                "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}
TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        {
            "type": "object",
            "required": ["type", "function"],
            "properties": {
                "type": {"const": "function"},
                "function": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string", "pattern": NAME}},
                },
            },
        },
    ]
}


def check_tools(value: Any) -> list[Tool]:
    """As they were sent, but each with its type: a template shows them so. Raises ValueError that names the one at
    fault."""
    if not isinstance(value, list):
        raise ValueError("must be a list of {'type': 'function', 'function': {...}}")
    if len(value) > MAX_TOOLS:
        raise ValueError(f"has {len(value)} tools; send at most {MAX_TOOLS}")
    names = [_checked_name(tool, number) for number, tool in enumerate(value)]
    if len(set(names)) < len(names):
        raise ValueError("two functions have the same name; names must differ")
    return [tool if "type" in tool else {"type": "function"} | tool for tool in value]


def _checked_name(tool: Any, number: int) -> str:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise ValueError(f"{number} must be {{'type': 'function', 'function': {{...}}}}; other tools are not served")
    name = function.get("name")
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"{number}.function.name must be 1 to 64 letters, digits, '_', '-' or '.'")
    if not isinstance(function.get("description"), str | None):
        raise ValueError(f"{number}.function.description must be a string")
    if not isinstance(function.get("strict"), bool | None):
        raise ValueError(f"{number}.function.strict must be true or false")
    parameters = function.get("parameters")
    if not isinstance(parameters, dict | None):
        raise ValueError(f"{number}.function.parameters must be a JSON schema, an object")
    kind = (parameters or {}).get("type", "object")
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        raise ValueError(f"{number}.function.parameters.type must be 'object': arguments have names")
    return name


def check_tool_choice(value: Any) -> str | Tool:
    """Raises ValueError for what is no choice."""
    if value in ("none", "auto", "required"):
        return str(value)
    given: Tool = {"type": "function"} | (value if isinstance(value, dict) else {})
    function = given.get("function")
    if given["type"] == "function" and isinstance(function, dict) and isinstance(function.get("name"), str):
        return given
    raise ValueError("must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': ...}}")


def function_names(tools: Sequence[Tool]) -> list[str]:
    return [tool["function"]["name"] for tool in tools]


def calls_grammar(
    tools: Sequence[Tool],
    only: str | None,
    form: ToolFormat,
    parallel: bool,
    error_of: ErrorOf = parsed,
    marks: Mapping[str, int] | None = None,
) -> str:
    """Of an answer that is calls of these functions, or one of `only`. `marks`: ids of the `MARKS` that are special
    tokens, which no text stands for. Raises `ApiError` (400) for parameters that cannot be held, naming them."""
    from llguidance import LLMatcher

    def literal(text: str) -> str:
        parts = re.split(f"({'|'.join(map(re.escape, marks))})", text) if marks else [text]
        return " ".join(f"<[{marks[part]}]>" if marks and part in marks else json.dumps(part) for part in parts if part)

    rules, bodies = dict[str, str](), list[str]()
    for number, tool in enumerate(tools):
        function, field = tool["function"], f"tools.{number}.function.parameters"
        if only is not None and function["name"] != only:
            continue
        schema = {"type": "object"} | (function.get("parameters") or NO_PARAMETERS)
        try:
            rules[field] = f"arguments_{number}: %json {json.dumps(held(schema) | {'x-guidance': _STYLE})}"
        except (ValueError, RecursionError) as error:
            raise refused(field, str(error)) from None
        before, after = form.before_arguments(function["name"]), form.after_arguments
        bodies.append(f"{literal(before)} arguments_{number} {literal(after)}")
    before, after = map(literal, form.around)
    more = f"({literal(form.separator)} call){{0,{MOST_CALLS - 1}}}" if parallel and only is None else ""
    lines = [f"start: {before} call {more} {after}", f"call: {' | '.join(bodies)}", *rules.values()]
    grammar = LLMatcher.grammar_from_lark("\n".join(lines))
    try:
        return check("tools", grammar, error_of)
    except ApiError:
        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise
        for field, rule in rules.items():  # which one is it?
            alone = f"start: {rule.partition(':')[0]}\n{rule}"
            check(field, LLMatcher.grammar_from_lark(alone), error_of)
        raise


def format_of(templates: Mapping[str, str]) -> ToolFormat | None:
    """How a model with these chat templates writes calls; None where they do not say, or say something else."""
    template = templates.get("tool_use") or templates.get("default", "")
    if any(other in template for other in ("<function=", "<arg_key>")):
        return None
    if MISTRAL.begin in template:
        return MISTRAL_ARGS if ARGS in template else MISTRAL
    if HERMES.begin in template:
        return HERMES
    named = '"name": function name' in template and f'"{LLAMA3_JSON.arguments}"' in template
    return LLAMA3_JSON if named or PYTHON_TAG in template else None


def format_named(name: str, templates: Mapping[str, str]) -> ToolFormat | None:
    """The one that an operator names, written as the model's chat templates do; None for one that there is not."""
    told = TOOL_FORMATS.get(name)
    shown = format_of(templates)
    return shown if told and shown and told.begin == shown.begin else told


def reasons(templates: Mapping[str, str]) -> bool:
    """Does a model with these chat templates think aloud?"""
    return any(THINK in template for template in templates.values())
