"""How a model writes its calls, by its template or the operator's word; and which tools are none."""

from __future__ import annotations

from typing import Any

import pytest

from semipd_engine.server.tools import (
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    ToolFormat,
    check_tools,
    format_named,
    format_of,
    reasons,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("...<tool_call>\\n{...", HERMES),
        ('Respond in the format {"name": function name, "parameters": dictionary}', LLAMA3_JSON),
        ("<tool_call>\n<function=f>", None),
        ("{{ messages }}", None),
        ("'[TOOL_CALLS] [' + calls", MISTRAL),
        ("'[TOOL_CALLS]' + name + '[ARGS]' + arguments", MISTRAL_ARGS),
    ],
)
def test_the_template_says_how_calls_are_written(template: str, form: ToolFormat | None) -> None:
    assert format_of({"default": template}) is form
    assert format_of({"default": "", "tool_use": template}) is form
    assert not reasons({"default": template}) and reasons({"default": template + "<think>"})


def test_the_operators_word_is_written_as_the_template_shows_it() -> None:
    newer = {"default": "[TOOL_CALLS]name[ARGS]"}
    assert (format_named("mistral", {}), format_named("mistral", newer)) == (MISTRAL, MISTRAL_ARGS)
    assert format_named("hermes", newer) is HERMES and format_named("none", newer) is None


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ([{"type": "custom", "custom": {}}], "0 must be"),
        ([{"type": "function", "function": {"name": "a b"}}], "0.function.name"),
        ([{"type": "function", "function": {"name": "a\n"}}], "0.function.name"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], "0.function.parameters"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "string"}}}], "parameters.type"),
        ([{"type": "function", "function": {"name": "a"}}] * 2, "same name"),
        ([{"type": "function", "function": {"name": f"a{i}"}} for i in range(129)], "at most 128"),
    ],
)
def test_tools_that_are_none(tools: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_tools(tools)
