"""Reasoning, content and tool calls, told apart: whole and at any cut, well formed or not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from semipd_engine.server.answer import AnswerOptions, AnswerParser, Parsed
from semipd_engine.server.responses import merged
from semipd_engine.server.tools import (
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    ToolFormat,
)

pytestmark = pytest.mark.unit

HERE = frozenset({"get", "put"})
H = AnswerOptions(functions=HERE, reasoning=True)
L = AnswerOptions(functions=HERE, format=LLAMA3_JSON)
M, N = (AnswerOptions(functions=HERE, format=form) for form in (MISTRAL, MISTRAL_ARGS))


def read(options: AnswerOptions, text: str, cut: int = 0, thinking: bool = False) -> tuple[Parsed, str]:
    """Whole (cut 0), or streamed in pieces of so many characters. Calls are merged."""
    pieces = [text[i : i + cut] for i in range(0, len(text), cut)] if cut else [text]
    return join(replace(options, streamed=cut > 0), pieces, thinking)


def join(options: AnswerOptions, pieces: list[str], thinking: bool = False) -> tuple[Parsed, str]:
    parser = AnswerParser(options, thinking)
    parts = []
    for piece in pieces:
        parts.append(parser.push(piece))
        if parser.ended:
            break
    parts.append(parser.flush())
    calls = merged([call for part in parts for call in part.calls])
    assert all(re.fullmatch("call_[0-9a-f]{24}", call.id) for call in calls)
    joined = Parsed("".join(p.content for p in parts), calls, "".join(p.reasoning for p in parts))
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
    (H, '<tool_call>{"arguments": {"a": 1e999}, "name": "get"}</tool_call>', "",
     '<tool_call>{"arguments": {"a": 1e999}, "name": "get"}</tool_call>', []),
    (H, '<tool_call>{"name": "get", "arguments": "{\\"a\\": 1}"}</tool_call>', "", "", [("get", '{"a": 1}')]),
    (H, '<tool_call>{"name": "get"}</tool_call>', "", "", [("get", "{}")]),
    (H, '<tool_call>{"name": "get", "arguments": {"a": 1}}', "", "", [("get", '{"a": 1}')]),
    (H, '<tool_call>{"name": "get", "arguments": null}</tool_call>', "", "", [("get", "{}")]),
    (H, '<tool_call>{"name": "get", "arguments": {"a": "x\ny\t"}}</tool_call>', "", "", [("get", '{"a": "x\\ny\\t"}')]),
    (H, '<tool_call>{"arguments": {"a": "x\ny"}, "name": "get"}</tool_call>', "", "", [("get", '{"a": "x\\ny"}')]),
    (H, '<tool_call>{"name": "get", "arguments": {}}\n<tool_call>{"name": "put", "arguments": {}}\n</tool_call>',
     "", "", [("get", "{}"), ("put", "{}")]),
    (H, '<tool_call>{"name": "get", "arguments": {}}}} </tool_call>', "", "", [("get", "{}")]),
    (H, '<tool_call>{"name": "get", "arguments": {}</tool_call> a b', "", " a b", [("get", "{}")]),
    (H, '<tool_call>{"name": "get", "arguments": {}, "id": {"x": 1}}</tool_call>', "", "", [("get", "{}")]),
    (H, f"a \n<tool_call> b\n{hermes('get', A)}\n c \n", "", "a \n<tool_call> b\n c \n", [("get", A)]),
    (L, f'{{"name": "get", "parameters": {A}}}', "", "", [("get", A)]),
    (L, f'<|python_tag|>{{"type": "function", "name": "get", "parameters": {A}}}', "", "", [("get", A)]),
    (L, f'{{"name": "get", "parameters": {A}}}; {{"name": "put", "parameters": {{}}}}', "", "",
     [("get", A), ("put", "{}")]),
    (L, f'{{"name": "get", "parameters": {A}}};', "", "", [("get", A)]),
    (L, f'{{"name": "get", "parameters": {A}}}; \n', "", "", [("get", A)]),
    (L, '{"name": "get", "parameters": {}}; <|python_tag|>', "", "", [("get", "{}")]),
    (L, '{"name": "get", "parameters": {}}; and', "", "; and", [("get", "{}")]),
    (L, " ; ", "", " ; ", []),
    (L, '{"name": "get", "parameters": {}} \n a b ', "", " \n a b ", [("get", "{}")]),
    (L, "{not JSON", "", "{not JSON", []),
    (L, '{"answer": {"x": 1}} is JSON', "", '{"answer": {"x": 1}} is JSON', []),
    (L, 'Use {"name": "get", "parameters": {}}', "", 'Use {"name": "get", "parameters": {}}', []),
    (M, f'[TOOL_CALLS] [{{"name": "get", "arguments": {A}}}]', "", "", [("get", A)]),
    (M, f'I look. [TOOL_CALLS][{{"name": "get", "arguments": {A}, "id": "abcdefghi"}}, '
     '{"name": "put", "arguments": {}}]', "", "I look.", [("get", A), ("put", "{}")]),
    (M, '[TOOL_CALLS] [{"arguments": {"a": 1}, "name": "get"},\n{"name": "put"}]\n', "", "",
     [("get", '{"a": 1}'), ("put", "{}")]),
    (M, '[TOOL_CALLS] [{"name": "get", "arguments": {}}, {"name": "nobody", "arguments": {}}]', "",
     ', {"name": "nobody", "arguments": {}}]', [("get", "{}")]),
    (M, '[TOOL_CALLS] {"name": "get", "arguments": {"a": 1}} so', "", " so", [("get", '{"a": 1}')]),
    (M, '[TOOL_CALLS] [{"name": "get", "arguments": {}}} ] so', "", " so", [("get", "{}")]),
    (M, '[TOOL_CALLS] [{"name": "get", "arguments": {}', "", "", [("get", "{}")]),
    (M, '[TOOL_CALLS] [{"name": "get", "arguments": {}}, and', "", ", and", [("get", "{}")]),
    (M, f'[TOOL_CALLS]get{A}[TOOL_CALLS]put{{}}', "", "", [("get", A), ("put", "{}")]),
    (N, f'I look.[TOOL_CALLS]get[ARGS]{A}', "", "I look.", [("get", A)]),
    (N, f'[TOOL_CALLS]get[CALL_ID]abcdefghi[ARGS]{A}\n[TOOL_CALLS]put [ARGS]{{}}', "", "",
     [("get", A), ("put", "{}")]),
    (N, '[TOOL_CALLS] get[ARGS] {"a": "x\ny"} ', "", "", [("get", '{"a": "x\\ny"}')]),
    (N, '[TOOL_CALLS][{"name": "get", "arguments": {}}]', "", "", [("get", "{}")]),
]  # fmt: skip
WORDS_ALONE = [
    "[TOOL_CALLS]", "[TOOL_CALLS] ", "[TOOL_CALLS] [", "[TOOL_CALLS] []", "[TOOL_CALLS]get", "[TOOL_CALLS]get[ARGS]",
    "[TOOL_CALLS]nobody[ARGS]{}", "[TOOL_CALLS]get[ARGS]{1}", "[TOOL_CALLS]get it {}", "[TOOL_CALLS][get{}]",
    "a [TOOL_CALLS] b", "[TOOL_CAL", "[TOOL_CALLS]get, {}", "[TOOL_CALLS]" + "x" * 300,
]  # fmt: skip


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("options", "text", "reasoning", "content", "wanted"), CASES)
def test_whole_and_at_any_cut(
    options: AnswerOptions, text: str, reasoning: str, content: str, wanted: list[tuple[str, str]], cut: int
) -> None:
    parsed, reason = read(options, text, cut)
    assert (parsed.reasoning, parsed.content, calls(parsed)) == (reasoning, content, wanted)
    assert reason == ("tool_calls" if wanted else "stop")


@pytest.mark.parametrize("cut", [0, 1, 5])
@pytest.mark.parametrize("text", WORDS_ALONE)
def test_what_is_no_call_of_mistrals_is_content(text: str, cut: int) -> None:
    parsed, reason = read(M, text, cut)
    assert (parsed.content, parsed.calls, reason) == (text, [], "stop")


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
    """Of a stream, which has given them out; a whole answer has no such call."""
    text = '<tool_call>{"name": "get", "arguments": {"a": 1, oops}}</tool_call>'
    for cut in (1, 2, 7, 1000):
        parsed, _ = read(H, text, cut)
        assert (calls(parsed), parsed.content) == ([("get", '{"a": 1, ')], "oops}}</tool_call>")
    assert read(H, text)[0] == Parsed(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [(H, "Use <tool_call> tags"), (H, "a <tool_call>[1"), (L, '{"a": 1} and'), (L, "{ x"), (L, '{"a": 01')],
)
def test_a_stream_holds_back_no_more_than_may_be_a_call(options: AnswerOptions, text: str) -> None:
    assert AnswerParser(replace(options, streamed=True)).push(text).content == text


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


def test_one_call_of_a_list_at_most() -> None:
    text = f'[TOOL_CALLS] [{{"name": "get", "arguments": {A}}}, {{"name": "put", "arguments": {{}}}}]'
    for cut in (0, 1, 9):
        parsed, reason = read(replace(M, most_calls=1), text, cut)
        assert (calls(parsed), parsed.content, reason) == ([("get", A)], "", "tool_calls")


@pytest.mark.parametrize("form", [MISTRAL, MISTRAL_ARGS])
def test_a_call_of_mistrals_that_was_forced_and_cut_is_a_part_of_one(form: ToolFormat) -> None:
    before = form.around[0] + form.before_arguments("get")
    options = AnswerOptions(functions=HERE, format=form, forced=True)
    for cut in (0, 1, 9):
        parsed, _ = read(options, before + '{"city": "Par', cut)
        assert (calls(parsed), parsed.content) == ([("get", '{"city": "Par')], "")
        for length in range(len(before)):
            assert read(options, before[:length], cut)[0] == Parsed(), "nothing of it is content"


def test_ids_are_as_short_as_the_template_wants_them() -> None:
    for streamed in (False, True):
        parser = AnswerParser(replace(M, short_ids=True, streamed=streamed))
        ids = {call.id for call in parser.push("[TOOL_CALLS]get{}[TOOL_CALLS]put{}").calls if call.id}
        assert len(ids) == 2 and all(re.fullmatch("[0-9a-f]{9}", each) for each in ids)


def test_an_answer_that_was_forced_and_cut_is_a_part_of_a_call() -> None:
    before = '<tool_call>\n{"name": "get", "arguments": '
    text = before + '{"city": "Par'
    for cut in (0, 1, 9):
        parsed, _ = read(replace(H, forced=True, named=True), text, cut)
        assert (calls(parsed), parsed.content) == ([("get", '{"city": "Par')], "")
        for length in range(len(before)):
            assert read(replace(H, forced=True), before[:length], cut)[0] == Parsed(), "nothing of it is content"
