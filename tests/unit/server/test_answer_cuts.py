"""Answers put together at random of calls, marks and odd pieces: what is said of them does not depend on the cuts."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.server.test_answer import HERE, calls, join, read

from semipd_engine.server.answer import AnswerOptions
from semipd_engine.server.tools import HERMES, LLAMA3_JSON, MISTRAL, ToolFormat

pytestmark = pytest.mark.unit

FORMS = st.sampled_from([HERMES, LLAMA3_JSON, MISTRAL])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
ARGUMENTS = st.builds(
    json.dumps, st.dictionaries(st.text(max_size=4), VALUES, max_size=2), indent=st.none() | st.just(1),
    ensure_ascii=st.booleans(),
)  # fmt: skip
CALLS = st.one_of(
    st.builds('{{"name": "{}", "arguments": {}}}'.format, st.sampled_from(["get", "put", "nobody"]), ARGUMENTS),
    st.builds('{{"type": "function", "name": "get", "parameters": {}}}'.format, ARGUMENTS),
    st.builds('{{"arguments": {}, "name": "get"}}'.format, ARGUMENTS),
    st.builds('{{"name": "get", "arguments": {}}}'.format, ARGUMENTS.map(json.dumps)),
    st.sampled_from(
        ['{"name": "put"}', '{"name": "get", "arguments": {"a": "x\ny</tool_call>"}}', '{"name": "get", "ar']
    ),
)
ODD = st.one_of(  # with something left out, doubled or put between
    st.builds(
        lambda text, at, odd: text[:at] + odd + text[at:], CALLS, st.integers(0, 60), st.sampled_from('{}[]",\\\n 0x')
    ),
    st.builds(lambda text, at: text[:at] + text[at + 1 :], CALLS, st.integers(0, 60)),
    st.builds(lambda text, at: text[:at], CALLS, st.integers(0, 60)),
)
FRAGMENTS = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "get", "arguments": ', '{"a": 1}', "}", "{",
     '"', "\\", ";", " ", "\n", "x", "[", "]", '"name"', ":", ",", "<|python_tag|>", "</tool", '"parameters"',
     "[TOOL_CALLS]", "get", "[ARGS]", "[CALL_ID]", "[TOOL"]
)  # fmt: skip
MARKED = st.builds(
    "{}{}{}{}{}".format,
    st.sampled_from(["<tool_call>", "<tool_call>\n", "", "; ", "[TOOL_CALLS] [", ", ", "[TOOL_CALLS]get"]), CALLS | ODD,
    st.sampled_from(["", "\n", "}"]), st.sampled_from(["</tool_call>", "", "</tool_", ";", "]"]),
    st.sampled_from(["", " ", "\n", " and \n"]),
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS | MARKED, max_size=8).map("".join)


def cut_at(text: str, at: list[int]) -> list[str]:
    edges = [0, *sorted({each % (len(text) + 1) for each in at}), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict) and json.dumps(json.loads(text), allow_nan=False) != ""
    except ValueError:
        return False


@given(
    text=TEXTS | st.lists(MARKED, max_size=4).map("".join),
    at=st.lists(st.integers(0, 400), max_size=12),
    form=FORMS,
    reasoning=st.booleans(),
    thinking=st.booleans(),
)
@settings(max_examples=800)
def test_a_stream_says_what_the_whole_answer_says_however_it_is_cut(
    text: str, at: list[int], form: ToolFormat, reasoning: bool, thinking: bool
) -> None:
    options = AnswerOptions(functions=HERE, format=form, reasoning=reasoning)
    live = replace(options, streamed=True)

    def said(options: AnswerOptions, pieces: list[str]) -> tuple[str, str, list[tuple[str, str]], str]:
        parsed, reason = join(options, pieces, thinking)
        return parsed.reasoning, parsed.content, calls(parsed), reason

    whole, streamed = said(options, [text]), said(live, [text])
    for pieces in (cut_at(text, at), list(text)):
        assert said(options, pieces) == whole
        assert said(live, pieces) == streamed
    good = [call for call in streamed[2] if is_object(call[1])]
    assert whole[2] == good and all(name in HERE for name, _ in streamed[2])
    if good == streamed[2]:  # but for a call whose arguments go wrong after they began
        assert streamed == whole
    if not whole[2]:  # nothing but markers of reasoning and blanks is lost
        rest = re.sub(r"\s|</?think>", "", text)
        assert re.sub(r"\s|</?think>", "", whole[0] + whole[1]) == rest


@given(text=TEXTS, cut=st.integers(0, 5), form=FORMS)
@settings(max_examples=300)
def test_nothing_is_an_error_where_calls_are_forced(text: str, cut: int, form: ToolFormat) -> None:
    options = AnswerOptions(functions=HERE, format=form, forced=True)
    parsed, _ = read(options, text, cut)
    assert all(call.name in HERE for call in parsed.calls)
