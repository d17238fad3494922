"""From a request's fields to the grammar that its answer must follow, in llguidance's form. Pure; knows no tokenizer.

`response_format` is OpenAI's, `structured_outputs` vLLM's, `guided_*` vLLM's older names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from semipd_engine.cards.guidance import words
from semipd_engine.server.errors import ApiError, bad_request
from semipd_engine.server.json_schema import held
from semipd_engine.server.schema_names import CONTROLS

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_GRAMMAR_CHARACTERS = 1 << 18
ANY_WHITESPACE = r"[\x20\x0A\x0D\x09]{0,32}"
"""Between the parts of JSON: bounded, so that a model that likes blanks gets further."""
KINDS = ("json", "regex", "choice", "grammar", "json_object")
_HARMLESS = ("disable_fallback", "_backend", "_backend_was_auto")
"""Of vLLM's: there is one backend."""
_MODIFIERS = ("disable_any_whitespace", "whitespace_pattern")
GUIDED = {f"guided_{kind}": kind for kind in KINDS}
ErrorOf = Callable[[str], str]
"""What is wrong with a grammar; empty: nothing."""
SCHEMA_NAME = r"[a-zA-Z0-9_-]{1,64}"
_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)
_GBNF_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)


def parsed(grammar: str) -> str:
    """An `ErrorOf` that only reads it; `grammar_trial.Trial.error` is for clients' own."""
    from llguidance import LLMatcher

    error = LLMatcher.validate_grammar(grammar)
    return "" if error.startswith("WARNING") else error


def grammar_of(given: Mapping[str, Any], error_of: ErrorOf = parsed) -> str:
    """The grammar that these fields ask for; empty without one. Raises `ApiError` (400) with llguidance's own words."""
    asked: list[tuple[str, str, Any, Mapping[str, Any]]] = []
    blanks = given.get("guided_whitespace_pattern")
    whitespace: Mapping[str, Any] = {"whitespace_pattern": blanks} if blanks else {}
    if (wanted := _response_format(given.get("response_format"))) is not None:
        asked.append(("response_format", *wanted, whitespace))
    options = given.get("structured_outputs") or {}
    if unknown := [name for name in options if name not in (*KINDS, *_MODIFIERS, *_HARMLESS) and options[name]]:
        remedy = f"use one of {', '.join(KINDS)}"
        if unknown[0] == "disable_additional_properties":
            remedy = "write additionalProperties: false into the schema"
        raise bad_request(f"structured_outputs.{unknown[0]}", f"not supported; {remedy}")
    modifiers: Mapping[str, Any] = {
        name: value for name in _MODIFIERS if (value := options.get(name)) not in (None, False)
    }
    asked += [
        ("structured_outputs." + kind, kind, options[kind], modifiers)
        for kind in KINDS
        if _given(kind, options.get(kind))
    ]
    asked += [(name, kind, given[name], whitespace) for name, kind in GUIDED.items() if _given(kind, given.get(name))]
    for name, about in (
        ("guided_whitespace_pattern", whitespace),
        (f"structured_outputs.{next(iter(modifiers), '')}", modifiers),
    ):
        if about and not any(kind in ("json", "json_object") and its is about for _, kind, _, its in asked):
            raise bad_request(name, "says how JSON is written, and none is asked for beside it; leave it out")
    if len(modifiers) > 1:
        name = f"structured_outputs.{_MODIFIERS[1]}"
        raise bad_request(name, f"means nothing with {_MODIFIERS[0]}; leave one of them out")
    if not asked:
        return ""
    if len(asked) > 1:
        names = ", ".join(name for name, *_ in asked)
        raise bad_request(
            asked[1][0], f"one answer cannot follow more than one grammar ({names}); leave all but one out"
        )
    field, kind, value, modifiers = asked[0]
    return check(field, _grammar(field, kind, value, modifiers), error_of)


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
    return str(LLMatcher.grammar_from_json_schema(json.dumps(held(schema)), defaults=defaults))


def check(field: str, grammar: str, error_of: ErrorOf = parsed) -> str:
    """The grammar, if it can be used. Raises `ApiError` (400) naming the field."""
    if len(grammar) > MAX_GRAMMAR_CHARACTERS:
        raise larger(field)
    try:
        error = error_of(grammar)
    except Exception as failure:  # a bare one, for text that is no Unicode, say
        raise refused(field, str(failure)) from None
    if error:
        raise refused(field, error)
    return grammar


def larger(field: str) -> ApiError:
    return bad_request(field, f"is larger than {MAX_GRAMMAR_CHARACTERS} characters; simplify it")


def _response_format(value: Any) -> tuple[str, Any] | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise bad_request("response_format", "its type must be 'text', 'json_object' or 'json_schema'")
    if unknown := [name for name in value if name not in ("type", "json_schema", "schema") and value[name]]:
        raise bad_request(f"response_format.{unknown[0]}", "is not known; leave it out")
    described, schema = value.get("json_schema"), value.get("schema")
    if kind == "json_schema":
        if schema is not None:
            raise bad_request("response_format.schema", "belongs into json_schema, or to the type 'json_object'")
        return "json", _described(described)
    if described is not None:
        raise bad_request("response_format.json_schema", "needs the type 'json_schema'")
    if kind == "text":
        if schema is not None:
            raise bad_request("response_format.schema", "needs the type 'json_object'")
        return None
    return ("json_object", True) if schema is None else ("json", schema)


def _described(value: Any) -> Any:
    """The schema in a `json_schema`, whose other fields say nothing of the answer. Its name may be missing."""
    field = "response_format.json_schema"
    if not isinstance(value, dict):
        raise bad_request(field, "is missing; send {'name': ..., 'schema': {...}}")
    known = ("name", "schema", "strict", "description")
    if unknown := [name for name in value if name not in known and value[name]]:
        raise bad_request(f"{field}.{unknown[0]}", f"is not known; use {', '.join(known)}")
    name = value.get("name", "answer")
    if not isinstance(name, str) or not re.fullmatch(SCHEMA_NAME, name):
        raise bad_request(f"{field}.name", "must be 1 to 64 letters, digits, '_' or '-'")
    if not isinstance(value.get("strict"), bool | None):
        raise bad_request(f"{field}.strict", "must be true or false; the answer follows the schema in any case")
    if not isinstance(value.get("description"), str | None):
        raise bad_request(f"{field}.description", "must be a text")
    schema = value.get("schema")
    return {"type": "object"} if schema is None else schema


def _grammar(field: str, kind: str, value: Any, modifiers: Mapping[str, Any]) -> str:
    from llguidance import LLMatcher

    if isinstance(value, str) and len(value) > MAX_GRAMMAR_CHARACTERS:  # before any work is done for it
        raise larger(field)
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
            choices = " | ".join(map(_quoted, value))  # one terminal: as rules they may be 2,000 at most
            return str(LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}"))
        if not isinstance(value, str):
            raise bad_request(field, "must be a string")
        if kind == "regex":
            return str(LLMatcher.grammar_from_regex(_ascii_digits(value)))
        return str(LLMatcher.grammar_from_lark(_lark(value)))
    except (ValueError, RecursionError) as error:
        raise refused(field, str(error)) from None


def _ascii_digits(regex: str) -> str:
    r"""`\d` is 0 to 9, as in a schema's `pattern` (ECMA-262); llguidance takes the digits of all scripts."""
    return re.sub(r"\\(.)", lambda found: {"d": "[0-9]", "D": "[^0-9]"}.get(found[1], found[0]), regex, flags=re.DOTALL)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\x7f")


def _lark(grammar: str) -> str:
    """Raises ValueError for GBNF that cannot be read."""
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if not _GBNF_RULE.search(grammar):
        return grammar
    try:
        return gbnf_to_lark(_GBNF_ESCAPE.sub(_escape, grammar))
    except Exception as error:  # a bare one
        raise ValueError(f"it is read as GBNF, for its '::=', and cannot be: {error}") from None


def _escape(found: re.Match[str]) -> str:
    r"""GBNF's `\u`, `\U`, `\[` and `\]`, which the conversion does not know, as it knows them. Raises ValueError."""
    point, other = found[1] or found[2], found[3]
    if point is None and other not in ("[", "]"):
        return found[0]
    character = chr(int(point, 16)) if point else other
    return character if ord(character) > 0x7F else f"\\x{ord(character):02x}"


def _given(kind: str, value: Any) -> bool:
    return value is not None and not (kind == "json_object" and value is False)


def refused(field: str, error: str) -> ApiError:
    if "coerce_one_of" in error:  # its words would have the client set what is refused
        error = "oneOf: two of its cases may hold at once; use anyOf, or give each a required property of another const"
    if "are not disjoint" in error and CONTROLS in error:  # nor does it know a pattern that is ours
        error = (
            "objects that allOf, anyOf or $ref put together each say something of names that they do not list, by "
            "patternProperties or additionalProperties; set additionalProperties: false, or say it in one of them"
        )
    return bad_request(field, f"cannot be used as a grammar: {words(error)}")
