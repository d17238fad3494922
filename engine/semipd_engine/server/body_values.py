"""What single fields of a request's body may hold: checked, and brought to one form. Knows no body.

Each type is a value that its field has after the check, with what OpenAPI says of it.
"""

from __future__ import annotations

import re
from itertools import chain, islice
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, FailFast, Field, PlainValidator, WithJsonSchema

from semipd_engine.server import body_schemas
from semipd_engine.server.tools import (
    MAX_TOOLS,
    TOOL_CHOICE_SCHEMA,
    TOOL_SCHEMA,
    Tool,
    check_tool_choice,
    check_tools,
)

MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 256
MAX_BIASED = 1024
"""Tokens with a bias; OpenAI takes 300. Each of them is a part of every step of its request."""
MAX_STOP_CHARACTERS = 1 << 14
"""In all: a text that goes along with a long one for a while, and then no more, is looked through for where another
begins, in a time that grows with the square of it (4 ms for so many)."""
INT32_MAX = 2**31 - 1

Item = TypeVar("Item")


class _FirstOnly(FailFast):
    __hash__ = object.__hash__
    """Python 3.11 hashes what stands in a union."""


Listed = Annotated[list[Item], _FirstOnly()]
"""A list of the body. Its first bad item is all that is told: a finding for each of many would hold everybody up."""
Prompt = str | list[int]
TokenId = Annotated[int, Field(ge=0, le=INT32_MAX, json_schema_extra={"format": body_schemas.TOKEN_ID})]
TokenCount = Annotated[int, Field(ge=0, le=INT32_MAX), WithJsonSchema(body_schemas.COUNT)]
AnswerTokens = Annotated[int, Field(ge=1, le=INT32_MAX), WithJsonSchema(body_schemas.COUNT | {"minimum": 1})]


def _parse_stop(value: Any) -> list[str]:
    stops = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOP_STRINGS:
        raise ValueError(f"has {len(stops)} strings; give at most {MAX_STOP_STRINGS}")
    if sum(map(len, stops)) > MAX_STOP_CHARACTERS:
        raise ValueError(f"has more than {MAX_STOP_CHARACTERS} characters in all; shorten the strings")
    if not all(stops):
        raise ValueError("holds an empty string, which would end every answer at once; leave it out")
    return stops


def _parse_prompts(value: Any) -> list[Prompt]:
    """A string, a list of strings, a list of token ids or a list of such lists; each to a list of prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if (ids := _ids(value)) is not None:
            return [ids]
        lists = set(map(type, value)) == {list} and all(value)
        if lists and (ids := _ids(list(chain.from_iterable(value)))) is not None:
            left = iter(ids)
            return [list(islice(left, len(item))) for item in value]
    raise ValueError("must be a string, a list of strings, a list of token ids or a list of such lists, none empty")


def _ids(value: list[Any]) -> list[int] | None:
    """Token ids; JSON has one kind of number, and some clients write 5 as 5.0."""
    kinds = set(map(type, value))
    if kinds in ({float}, {int, float}) and all(each.is_integer() for each in value if type(each) is float):
        value, kinds = list(map(int, value)), {int}
    return value if kinds == {int} and min(value) >= 0 and max(value) <= INT32_MAX else None


def _check_logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict):
        raise ValueError("must be an object from token id to bias")
    if len(value) > MAX_BIASED:
        raise ValueError(f"has {len(value)} tokens; give at most {MAX_BIASED}")
    if not all(isinstance(token, int) or re.fullmatch("0|-?[1-9][0-9]{0,9}", token) for token in value):
        raise ValueError("must map token ids, in plain digits, to numbers")
    try:
        bias = {int(token): float(amount) for token, amount in value.items()}
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must map token ids to numbers") from None
    if not all(0 <= token <= INT32_MAX and -100 <= amount <= 100 for token, amount in bias.items()):
        raise ValueError("must map token ids (0 or more) to numbers in [-100, 100]")
    return bias


def _check_schema(value: Any) -> Any:
    if not isinstance(value, dict | str | bool | None):
        raise ValueError("must be a JSON schema, or the text of one")
    return value


Message = Annotated[dict[str, Any], WithJsonSchema(body_schemas.MESSAGE)]
Tools = Annotated[
    list[Tool],
    PlainValidator(check_tools),
    WithJsonSchema({"type": "array", "maxItems": MAX_TOOLS, "uniqueItems": True, "items": TOOL_SCHEMA}),
]
Stop = Annotated[Listed[str], BeforeValidator(_parse_stop), WithJsonSchema(body_schemas.STOP)]
Prompts = Annotated[list[Prompt], PlainValidator(_parse_prompts), WithJsonSchema(body_schemas.PROMPT)]
Schema = Annotated[Any, PlainValidator(_check_schema)]
ToolChoice = Annotated[str | dict[str, Any], PlainValidator(check_tool_choice), WithJsonSchema(TOOL_CHOICE_SCHEMA)]
LogitBias = Annotated[dict[int, float], BeforeValidator(_check_logit_bias), WithJsonSchema(body_schemas.LOGIT_BIAS)]
Off = Annotated[bool, BeforeValidator(lambda value: False if value is None else value)]
On = Annotated[bool, BeforeValidator(lambda value: True if value is None else value)]
"""Switches: null says what leaving them out says."""


def _count_of_logprobs(value: Any) -> Any:
    """False asks for none, as it does in a chat; 0 asks for the chosen tokens'."""
    return None if value is False else value


LogprobCount = Annotated[Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None, BeforeValidator(_count_of_logprobs)]
