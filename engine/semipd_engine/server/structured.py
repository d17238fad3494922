"""From a request's fields to the grammar that its answer must follow, in llguidance's form. Pure; knows no tokenizer.

`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_*` vLLM's older names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from semipd_engine.server.errors import ApiError, bad_request

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_GRAMMAR_CHARACTERS = 1 << 18
ANY_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,32}"
"""Between the parts of JSON: bounded, so that a model that likes blanks gets further."""
KINDS = ("json", "regex", "choice", "grammar", "json_object")
_HARMLESS = ("disable_fallback",)
_MODIFIERS = ("disable_any_whitespace", "whitespace_pattern")
GUIDED = {f"guided_{kind}": kind for kind in KINDS}


def grammar_of(given: Mapping[str, Any]) -> str:
    """The grammar that these fields ask for; empty without one. Raises `ApiError` (400) with llguidance's own words."""
    asked: list[tuple[str, str, Any, Mapping[str, Any]]] = []
    whitespace = (
        {"whitespace_pattern": given["guided_whitespace_pattern"]} if given.get("guided_whitespace_pattern") else {}
    )
    if (wanted := _response_format(given.get("response_format"))) is not None:
        asked.append(("response_format", *wanted, whitespace))
    options = given.get("structured_outputs") or {}
    if unknown := [name for name in options if name not in (*KINDS, *_MODIFIERS, *_HARMLESS) and options[name]]:
        remedy = f"use one of {', '.join(KINDS)}"
        raise bad_request(f"structured_outputs.{unknown[0]}", f"not supported; {remedy}")
    asked += [
        ("structured_outputs." + kind, kind, options[kind], options) for kind in KINDS if _given(options.get(kind))
    ]
    asked += [(name, kind, given[name], whitespace) for name, kind in GUIDED.items() if _given(given.get(name))]
    if not asked:
        return ""
    if len(asked) > 1:
        names = ", ".join(name for name, *_ in asked)
        raise bad_request(
            asked[1][0], f"one answer cannot follow more than one grammar ({names}); leave all but one out"
        )
    field, kind, value, modifiers = asked[0]
    return check(field, _grammar(field, kind, value, modifiers))


def json_grammar(schema: Any, modifiers: Mapping[str, Any] | None = None) -> str:
    """Of JSON that follows the schema. Raises ValueError for one that is no JSON object or text of one."""
    from llguidance import LLMatcher

    defaults: JsonCompileOptions = {"whitespace_pattern": ANY_WHITESPACE}
    if modifiers and modifiers.get("disable_any_whitespace"):
        defaults = {"whitespace_flexible": False}
    elif modifiers and modifiers.get("whitespace_pattern"):
        defaults = {"whitespace_pattern": modifiers["whitespace_pattern"]}
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    return str(LLMatcher.grammar_from_json_schema(schema, defaults=defaults))


def check(field: str, grammar: str) -> str:
    """The grammar, if it can be used. Raises `ApiError` (400) naming the field."""
    from llguidance import LLMatcher

    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise bad_request(field, f"is larger than {MAX_GRAMMAR_CHARACTERS} characters; simplify it")
    try:
        error = LLMatcher.validate_grammar(grammar)
    except Exception as failure:  # a bare one, for text that is no Unicode, say
        raise _refused(field, str(failure)) from None
    if error and not error.startswith("WARNING"):
        raise _refused(field, error)
    return grammar


def _response_format(value: Any) -> tuple[str, Any] | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if value is None or kind == "text":
        return None
    if unknown := [name for name in value if name not in ("type", "json_schema", "schema") and value[name]]:
        raise bad_request(f"response_format.{unknown[0]}", "is not known; leave it out")
    if kind == "json_object":
        if value.get("json_schema") is not None:
            raise bad_request("response_format.json_schema", "needs the type 'json_schema'")
        return ("json_object", True) if value.get("schema") is None else ("json", value["schema"])
    if kind == "json_schema":
        if value.get("schema") is not None:
            raise bad_request("response_format.schema", "belongs into json_schema, or to the type 'json_object'")
        described = value.get("json_schema")
        if not isinstance(described, dict):
            raise bad_request("response_format.json_schema", "is missing; send {'name': ..., 'schema': {...}}")
        schema = described.get("schema")
        return "json", {"type": "object"} if schema is None else schema
    raise bad_request("response_format", "its type must be 'text', 'json_object' or 'json_schema'")


def _grammar(field: str, kind: str, value: Any, modifiers: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher, grammar_from

    if isinstance(value, str) and len(value) > MAX_GRAMMAR_CHARACTERS:  # before any work is done for it
        raise bad_request(field, f"is larger than {MAX_GRAMMAR_CHARACTERS} characters; simplify it")
    try:
        if kind == "json_object":
            return json_grammar({"type": "object"}, modifiers)
        if kind == "json":
            schema = json.loads(value) if isinstance(value, str) else value
            if not isinstance(schema, dict | bool):
                raise bad_request(field, "must be a JSON schema: an object, or the text of one")
            return json_grammar(schema, modifiers)
        if kind == "choice":
            if (
                not isinstance(value, list)
                or not value
                or not all(isinstance(choice, str) and choice for choice in value)
            ):
                raise bad_request(field, "must be a list of strings, neither it nor they empty")
            return str(LLMatcher.grammar_from_lark("start: " + " | ".join(map(_quoted, value))))
        if not isinstance(value, str):
            raise bad_request(field, "must be a string")
        if kind == "regex":
            return str(LLMatcher.grammar_from_regex(_ascii_digits(value)))
        return str(grammar_from("grammar", value))
    except (ValueError, RecursionError) as error:
        raise _refused(field, str(error)) from None


def _ascii_digits(regex: str) -> str:
    r"""`\d` is 0 to 9, as in a schema's `pattern` (ECMA-262); llguidance takes the digits of all scripts."""
    return re.sub(r"\\(.)", lambda found: {"d": "[0-9]", "D": "[^0-9]"}.get(found[1], found[0]), regex, flags=re.DOTALL)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _given(value: Any) -> bool:
    return value is not None and value is not False


def _refused(field: str, words: str) -> ApiError:
    return bad_request(field, f"cannot be used as a grammar: {words}")
