"""Reasoning, content and tool calls, told apart: whole and at any cut, well formed or not."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semipd_engine.server.answer import AnswerOptions, AnswerParser, Parsed
from semipd_engine.server.responses import merged
from semipd_engine.server.tools import HERMES, LLAMA3_JSON, ToolFormat, check_tools, format_of, reasons

pytestmark = pytest.mark.unit

HERE = frozenset({"get", "put"})
H = AnswerOptions(functions=HERE, reasoning=True)
L = AnswerOptions(functions=HERE, format=LLAMA3_JSON)


def read(options: AnswerOptions, text: str, cut: int = 0, thinking: bool = False) -> tuple[Parsed, str]:
    """Whole (cut 0), or streamed in pieces of so many characters. Calls are merged."""
    parser = AnswerParser(replace(options, streamed=cut > 0), thinking)
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)] if cut else [text]
    parts = []
    for piece in pieces:
        parts.append(parser.push(piece))
        if parser.ended:
            break
    parts.append(parser.flush())
    calls = merged([call for part in parts for call in part.calls])
    assert all(re.fullmatch("call_[0-9a-f]{24}", call.id) for call in calls)
    joined = Parsed("".join(p.content for p in parts), "".join(p.reasoning for p in parts), calls)
    return joined, parser.finish_reason


def calls(parsed: Parsed) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in parsed.calls]


def hermes(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


A = '{"city": "Pa\\"r}is <b>", "n": [1, {"x": null}]}'
CASES: list[tuple[AnswerOptions, str, str, str, list[tuple[str, str]]]] = [
    (H, "plain", "", "plain", []),
    (H, " a < b <tool", "", " a < b <tool", []),
    (H, hermes("get", A), "", "", [("get", A)]),
    (H, f"I look.\n{hermes('get', A)}\n{hermes('put', '{}')}\n", "", "I look.", [("get", A), ("put", "{}")]),
    (H, f"<think>\nHm. <b>\n</think>\n\nI look.\n{hermes('put', '{}')}", "Hm. <b>", "I look.", [("put", "{}")]),
    (H, "<think></think>\n\nYes", "", "Yes", []),
    (H, "<think>never ends", "never ends", "", []),
    (H, "No <think> later", "", "No <think> later", []),
    (H, '<tool_call>{"name": "get", "arguments": {"a": "</tool_call>"}}</tool_call>', "", "",
     [("get", '{"a": "</tool_call>"}')]),
    (H, '<tool_call>{"arguments": {"a": 1}, "name": "get"}</tool_call>', "", "", [("get", '{"a": 1}')]),
    (H, '<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>', "", "", [("get", '{"a": 1}')]),
    (H, '<tool_call>{"name": "get"}</tool_call>', "", "", [("get", "{}")]),
    (H, '<tool_call>{"name": "get", "arguments": {"a": 1}}', "", "", [("get", '{"a": 1}')]),
    (L, f'{{"name": "get", "parameters": {A}}}', "", "", [("get", A)]),
    (L, f'<|python_tag|>{{"type": "function", "name": "get", "parameters": {A}}}', "", "", [("get", A)]),
    (L, f'{{"name": "get", "parameters": {A}}}; {{"name": "put", "parameters": {{}}}}', "", "",
     [("get", A), ("put", "{}")]),
    (L, "{not JSON", "", "{not JSON", []),
    (L, '{"answer": {"x": 1}} is JSON', "", '{"answer": {"x": 1}} is JSON', []),
    (L, 'Use {"name": "get", "parameters": {}}', "", 'Use {"name": "get", "parameters": {}}', []),
]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("options", "text", "reasoning", "content", "wanted"), CASES)
def test_whole_and_at_any_cut(
    options: AnswerOptions, text: str, reasoning: str, content: str, wanted: list[tuple[str, str]], cut: int
) -> None:
    parsed, reason = read(options, text, cut)
    assert (parsed.reasoning, parsed.content, calls(parsed)) == (reasoning, content, wanted)
    assert reason == ("tool_calls" if wanted else "stop")


MALFORMED = [
    '<tool_call>{"name": "get", "arguments": {oops}}</tool_call>',
    '<tool_call>{"name": "get", "arguments": [1]}</tool_call>',
    '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
    '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
    '<tool_call>{"name": "g\\xet", "arguments": {}}</tool_call>',
    "<tool_call>get(1)</tool_call>",
    "<tool_call></tool_call>",
    "<tool_call>[]</tool_call> and more",
    '<tool_call>{"name": "get", "arguments": "no JSON"}</tool_call>',
    "<tool_call>" + "[" * 20_000 + "</tool_call>",
    "<tool_call>" + '{"a":' * 20_000,
]


@pytest.mark.parametrize("cut", [0, 1, 5])
@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_call_is_content(text: str, cut: int) -> None:
    if cut == 1 and len(text) > 1000:
        cut = 500
    parsed, reason = read(H, text, cut)
    assert (parsed.content, parsed.calls, reason) == (text, [], "stop")


def test_after_a_malformed_call_the_next_is_read() -> None:
    text = f"<tool_call>no</tool_call>{hermes('get', A)}"
    for cut in (0, 1, 4):
        parsed, _ = read(H, text, cut)
        assert (parsed.content, calls(parsed)) == ("<tool_call>no</tool_call>", [("get", A)])


def test_arguments_that_go_wrong_midway_are_content_from_there_on() -> None:
    parsed, _ = read(H, '<tool_call>{"name": "get", "arguments": {"a": 1, oops}}</tool_call>', 1)
    assert calls(parsed) == [("get", '{"a": 1, ')] and parsed.content.startswith("oops}")


def test_arguments_arrive_in_pieces() -> None:
    parser = AnswerParser(replace(H, streamed=True))
    seen = [parser.push(character) for character in hermes("get", A)]
    first = next(i for i, part in enumerate(seen) if part.calls)
    assert (seen[first].calls[0].name, seen[first].calls[0].id[:5]) == ("get", "call_")
    pieces = [call.arguments for part in seen for call in part.calls]
    assert len(pieces) > len(A) // 2 and "".join(pieces) == A
    assert not any(call.id for part in seen[first + 1 :] for call in part.calls)


def test_a_prompt_that_opens_the_reasoning() -> None:
    for cut in (0, 1, 3):
        parsed, _ = read(H, "First, this.\n</think>\nYes", cut, thinking=True)
        assert (parsed.reasoning, parsed.content) == ("First, this.", "Yes")


def test_blanks_after_the_reasoning_are_dropped_without_tools_too() -> None:
    for cut in (0, 1, 3):
        parsed, _ = read(AnswerOptions(reasoning=True), "<think>\nHm.\n</think>\n\nYes. ", cut)
        assert (parsed.reasoning, parsed.content) == ("Hm.", "Yes. ")


def test_one_call_at_most() -> None:
    text = hermes("get", A) + "\n" + hermes("put", "{}")
    for cut in (0, 1, 9):
        parsed, reason = read(replace(H, most_calls=1), text, cut)
        assert (calls(parsed), parsed.content, reason) == ([("get", A)], "", "tool_calls")


def test_an_answer_that_was_forced_and_cut_is_a_part_of_a_call() -> None:
    text = '<tool_call>\n{"name": "get", "arguments": {"city": "Par'
    for cut in (0, 1, 9):
        parsed, _ = read(replace(H, forced=True, named=True), text, cut)
        assert (calls(parsed), parsed.content) == ([("get", '{"city": "Par')], "")


TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "get", "arguments": ', '{"a": 1}', "}", "{",
         '"', "\\", ";", " ", "\n", "x", "[", "]", '"name"', ":", ",", "<|python_tag|>", "</tool", '"parameters"']
    ),
    max_size=12,
).map("".join)  # fmt: skip


@given(text=TEXTS, cut=st.integers(0, 5), llama=st.booleans(), thinking=st.booleans(), forced=st.booleans())
@settings(max_examples=600, deadline=None)
def test_nothing_is_an_error_and_calls_have_names(
    text: str, cut: int, llama: bool, thinking: bool, forced: bool
) -> None:
    form: ToolFormat = LLAMA3_JSON if llama else HERMES
    options = AnswerOptions(functions=HERE, format=form, reasoning=True, forced=forced)
    parsed, _ = read(options, text, cut, thinking)
    for call in parsed.calls:
        assert call.name in HERE
        if not cut and not forced:
            assert isinstance(json.loads(call.arguments), dict)
    if not parsed.calls:  # nothing but markers of reasoning and blanks is lost
        rest = re.sub(r"\s|</?think>", "", text)
        assert re.sub(r"\s|</?think>", "", parsed.reasoning + parsed.content) == rest or "<|python" in rest


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("...<tool_call>\\n{...", HERMES),
        ('Respond in the format {"name": function name, "parameters": dictionary}', LLAMA3_JSON),
        ("<tool_call>\n<function=f>", None),
        ("{{ messages }}", None),
        ("[TOOL_CALLS]", None),
    ],
)
def test_the_template_says_how_calls_are_written(template: str, form: ToolFormat | None) -> None:
    assert format_of({"default": template}) is form
    assert format_of({"default": "", "tool_use": template}) is form
    assert not reasons({"default": template}) and reasons({"default": template + "<think>"})


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([{"type": "custom", "custom": {}}], "0 must be"),
        ([{"type": "function", "function": {"name": "a b"}}], "0.function.name"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], "0.function.parameters"),
        ([{"type": "function", "function": {"name": "a"}}] * 2, "same name"),
        ([{"type": "function", "function": {"name": f"a{i}"}} for i in range(129)], "at most 128"),
    ],
)
def test_tools_that_are_none(tools: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_tools(tools)
