"""Tools and reasoning through the real api process: OpenAI's own client, its wire shapes, and grammars that force."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pytest
from starlette.types import Message
from tests.unit.server.api_process import Api
from tests.unit.server.conftest import stop_api, write_model
from tests.unit.server.test_completions import events, say
from tests.unit.server.test_structured import answer
from tokenizers import Tokenizer as RustTokenizer

from e2e.lib.process import wait_until
from semipd_engine.cards.tokenizer import Tokenizer
from semipd_engine.contract import EngineOptions
from semipd_engine.core.grammar import Grammars
from semipd_engine.server.answer import AnswerOptions, AnswerParser
from semipd_engine.server.errors import ApiError
from semipd_engine.server.protocol import ChatRequest
from semipd_engine.server.service import Service
from semipd_engine.server.tools import (
    HERMES,
    LLAMA3_JSON,
    MISTRAL,
    MISTRAL_ARGS,
    NO_PARAMETERS,
    ToolFormat,
    calls_grammar,
)

pytestmark = pytest.mark.unit

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["Paris", "Rome", 'The "Hague"']}},
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
TOOLS: list[Any] = [WEATHER, TIME]
ASKS: list[Any] = [{"role": "user", "content": "How is it in Paris?"}]
CALL = '{"city": "Paris", "days": 2}'
TEXT = f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {CALL}}}\n</tool_call>'
NAMED: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def tool_api(start_api_in: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    flags = ["--tool-parser", "hermes", "--reasoning-parser", "think"]
    api = start_api_in(tmp_path_factory.mktemp("run"), flags)
    api.core.set_state(max_model_len=4096)  # so that the tools, in letters, fit the prompt
    wait_until(lambda: api.client.get("/v1/models").json()["data"][0]["max_model_len"] == 4096)
    yield api
    stop_api(api)


@pytest.fixture
def slow(tool_api: Api) -> Iterator[None]:
    """Tokens one by one, each a chunk of its own."""
    tool_api.core.seconds_per_token = 0.003
    yield
    tool_api.core.seconds_per_token = 0.0


@pytest.fixture
def client(tool_api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tool_api.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def tokens(model_dir: Path) -> RustTokenizer:
    return RustTokenizer.from_file(str(model_dir / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer(model_dir: Path) -> Tokenizer:
    return Tokenizer(model_dir)


# ---- calls that the model makes ----------------------------------------------------------------------------------


def by_tokens(api: Api, ids: list[int], fields: dict[str, Any]) -> list[Any]:
    """The chunks of a stream whose next token is made once the one before it was read."""
    api.core.steps = asyncio.Semaphore(0)
    asked = fields | {"stream": True, "return_token_ids": True}
    chunks: list[Any] = []
    with api.client.stream("POST", "/v1/chat/completions", json=asked) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        for _ in ids:
            api.core.step()
            while (chunk := json.loads(next(lines))) and not chunk["choices"][0].get("token_ids"):
                chunks.append(chunk)
            chunks.append(chunk)
        assert next(lines) == "[DONE]"
    api.core.steps = None
    return chunks


def test_a_call_in_the_shape_of_openai(tool_api: Api, tokens: RustTokenizer) -> None:
    ids = say(tool_api, tokens, TEXT)
    fields = {"messages": ASKS, "tools": TOOLS, "max_tokens": 150}
    (choice,) = tool_api.client.post("/v1/chat/completions", json=fields).json()["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": "I look."}
    assert choice["finish_reason"] == "tool_calls" and call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "get_weather", "arguments": CALL}}
    chunks = by_tokens(tool_api, ids, fields)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    first, *more = [piece for delta in deltas for piece in delta.get("tool_calls", [])]
    assert first.pop("id").startswith("call_")
    begun = first["function"].pop("arguments")
    assert first == {"index": 0, "type": "function", "function": {"name": "get_weather"}}
    assert more and all(piece.keys() == {"index", "function"} and piece["index"] == 0 for piece in more)
    assert all(piece["function"].keys() == {"arguments"} and piece["function"]["arguments"] for piece in more)
    assert begun + "".join(piece["function"]["arguments"] for piece in more) == CALL
    assert len(more) >= len(tokens.encode(CALL).ids) - 2, "a piece for each token, but where one reaches over an edge"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "tool_calls"]


def test_openais_client_follows_a_stream(
    client: openai.OpenAI, tool_api: Api, slow: None, tokens: RustTokenizer
) -> None:
    say(tool_api, tokens, TEXT + TEXT)
    with client.chat.completions.stream(
        model="letters", messages=ASKS, tools=TOOLS, max_completion_tokens=240, stream_options={"include_usage": True}
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert {"tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert message.content == "I look.I look." and final.usage and final.usage.completion_tokens
    assert [json.loads(call.function.arguments) for call in message.tool_calls or []] == [json.loads(CALL)] * 2
    assert len({call.id for call in message.tool_calls or []}) == 2
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_no_parallel_calls_means_one(tool_api: Api, slow: None, tokens: RustTokenizer, stream: bool) -> None:
    ids = say(tool_api, tokens, TEXT + TEXT + " and so on" * 20, end=None)
    fields = {"messages": ASKS, "tools": TOOLS, "parallel_tool_calls": False, "stream": stream, "max_tokens": len(ids)}
    response = tool_api.client.post("/v1/chat/completions", json=fields)
    text = response.text
    assert text.count('"id":"call_') == 1 and '"finish_reason":"tool_calls"' in text
    key = tool_api.core.added[-1].key
    wait_until(lambda: key in tool_api.core.aborted)  # the second is not even made


@pytest.mark.parametrize("tools", [{}, {"tools": TOOLS, "tool_choice": "none"}])
def test_without_tools_it_is_text(tool_api: Api, tokens: RustTokenizer, tools: Any) -> None:
    say(tool_api, tokens, TEXT)
    message = tool_api.client.post("/v1/chat/completions", json={"messages": ASKS, **tools}).json()["choices"][0]
    assert message["message"] == {"role": "assistant", "content": TEXT} and message["finish_reason"] == "stop"
    prompt = tokens.decode(tool_api.core.added[-1].prompt_token_ids, skip_special_tokens=False)
    assert "<tools>" not in prompt


def test_calls_and_their_results_are_in_the_prompt(tool_api: Api) -> None:
    """As a client sends them back: arguments as text, no content, results by parts."""
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": CALL}}
    history = [
        *ASKS,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "Rain"}]},
    ]
    assert tool_api.client.post("/v1/chat/completions", json={"messages": history, "tools": TOOLS}).status_code == 200
    del history[1]["content"]
    assert tool_api.client.post("/v1/chat/completions", json={"messages": history, "tools": TOOLS}).status_code == 200
    call["function"]["arguments"] = "no JSON"  # type: ignore[index]
    assert tool_api.client.post("/v1/chat/completions", json={"messages": history}).status_code == 200


# ---- calls that the request forces -------------------------------------------------------------------------------


def test_forced_calls_reach_core_as_grammars(tool_api: Api, tokens: RustTokenizer) -> None:
    ask: dict[str, Any] = {"messages": ASKS, "tools": TOOLS, "max_tokens": 150}
    text = f'<tool_call>\n{{"name": "get_weather", "arguments": {CALL}}}\n</tool_call>'
    say(tool_api, tokens, text)
    for choice, only, reason in (("required", None, "tool_calls"), (NAMED, "get_weather", "stop")):
        answered = tool_api.client.post("/v1/chat/completions", json=ask | {"tool_choice": choice}).json()["choices"][0]
        assert answered["finish_reason"] == reason and answered["message"]["content"] is None
        assert answered["message"]["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": CALL}
        assert tool_api.core.added[-1].grammar == calls_grammar(TOOLS, only, HERMES, True)
    both = ask | {"tool_choice": "required", "response_format": {"type": "json_object"}}
    assert tool_api.client.post("/v1/chat/completions", json=both).status_code == 200


@pytest.mark.parametrize("form", [HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_ARGS])
@pytest.mark.parametrize(("only", "parallel"), [(None, True), (None, False), ("get_weather", True)])
def test_what_is_forced_cannot_fail(
    grammars: Grammars, tokenizer: Tokenizer, form: ToolFormat, only: str | None, parallel: bool
) -> None:
    grammar = calls_grammar(TOOLS, only, form, parallel)
    texts = [text for seed in range(6) if (text := answer(grammars, tokenizer, grammar, seed, 500)) is not None]
    assert texts
    schemas = {"get_weather": WEATHER["function"]["parameters"], "get_time": NO_PARAMETERS}  # type: ignore[index]
    for text in texts:
        names = frozenset(schemas if only is None else [only])
        options = AnswerOptions(functions=names, format=form, forced=True)
        for each in (options, replace(options, streamed=True)):
            parser = AnswerParser(each)
            calls = parser.push(text).calls + parser.flush().calls
            assert 1 <= parser.calls <= (16 if parallel and only is None else 1)
            for index in range(parser.calls):
                name = next(call.name for call in calls if call.index == index and call.name)
                arguments = "".join(call.arguments for call in calls if call.index == index)
                jsonschema.validate(json.loads(arguments), schemas[name])


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
        ({"tools": TOOLS, "tool_choice": "any"}, "tool_choice", "'required'"),
        ({"tools": [{"type": "function"}]}, "tools", "0 must be"),
        ({"tools": TOOLS, "tool_choice": "required", "guided_regex": "a"}, "guided_regex", "leave it out"),
        ({"tools": TOOLS, "tool_choice": "required", "min_tokens": 3}, "min_tokens", "grammar"),
    ],
)
def test_what_cannot_be_is_refused(tool_api: Api, fields: Any, param: str, words: str) -> None:
    refused = tool_api.client.post("/v1/chat/completions", json={"messages": ASKS, **fields})
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (400, param) and words in error["message"]


def test_parameters_that_cannot_be_held_are_named() -> None:
    odd = {"type": "function", "function": {"name": "odd", "parameters": {"not": {"type": "object"}}}}
    with pytest.raises(ApiError, match="Unimplemented") as refused:
        calls_grammar([TIME, odd], None, HERMES, True)
    assert refused.value.param == "tools.1.function.parameters"
    assert calls_grammar([TIME, odd], "get_time", HERMES, True)


# ---- reasoning ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("include", [None, False])
def test_what_the_model_thinks_is_no_content(tool_api: Api, tokens: RustTokenizer, include: bool | None) -> None:
    say(tool_api, tokens, "<think>\nHm, naïve.\n</think>\n\nIt rains.")
    fields = {"messages": ASKS, "include_reasoning": include, "max_tokens": 100}
    choice = tool_api.client.post("/v1/chat/completions", json=fields).json()["choices"][0]
    thought = {} if include is False else dict.fromkeys(("reasoning", "reasoning_content"), "Hm, naïve.")
    assert choice["message"] == {"role": "assistant", "content": "It rains."} | thought
    chunks = events(tool_api.client.post("/v1/chat/completions", json=fields | {"stream": True}).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    for name in ("reasoning", "reasoning_content"):
        assert "".join(delta.get(name, "") for delta in deltas) == thought.get(name, "")
    assert "".join(delta.get("content", "") for delta in deltas) == "It rains."
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("begun", "thinks"), [("<think>\nHm,", True), ("<think>Hm.</think>\nIt", False), ("A <think> tag,", False)]
)
def test_a_message_that_goes_on_may_be_a_thought(
    tool_api: Api, tokens: RustTokenizer, begun: str, thinks: bool
) -> None:
    say(tool_api, tokens, " it rains.")
    messages = [*ASKS, {"role": "assistant", "content": begun}]
    fields = {"messages": messages, "continue_final_message": True, "add_generation_prompt": False, "max_tokens": 60}
    message = tool_api.client.post("/v1/chat/completions", json=fields).json()["choices"][0]["message"]
    assert (message.get("reasoning") or "", message["content"] or "") == (
        ("it rains.", "") if thinks else ("", " it rains.")
    )


async def test_a_grammar_that_cannot_end_names_what_asked_for_it(model_dir: Path, tmp_path: Path) -> None:
    service = Service(EngineOptions.model_validate({"model": model_dir, "run_dir": tmp_path}))
    service.card = replace(service.card, eos_token_ids=())

    async def connected() -> Message:
        await asyncio.sleep(3600)
        return {}

    fields: list[tuple[str, Any]] = [
        ("tool_choice", {"tools": TOOLS, "tool_choice": "required"}),
        ("guided_regex", {"guided_regex": "a"}),
        ("response_format", {"response_format": {"type": "json_object"}}),
    ]
    for name, given in fields:
        with pytest.raises(ApiError, match="no end-of-sequence") as refused:
            await service.grammar(ChatRequest.model_validate({"messages": ASKS} | given), connected, "")
        assert refused.value.param == name
    await service.judge.end()
    service.close()


def test_an_answer_with_a_grammar_is_all_content(tool_api: Api, tokens: RustTokenizer) -> None:
    say(tool_api, tokens, '{"a": "<think>"}')
    fields = {"messages": ASKS, "response_format": {"type": "json_object"}, "max_tokens": 60}
    message = tool_api.client.post("/v1/chat/completions", json=fields).json()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": '{"a": "<think>"}'}


@pytest.mark.parametrize("template", ["{{ tools }}{{ messages }}", "{{ messages }}", "<tool_call> <think>"])
def test_the_flags_win_over_the_template(tmp_path: Path, template: str) -> None:
    model = write_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(template)
    known = "<think>" in template
    told = "tools" not in template  # here, in words
    for tools, reasoning, form, reads in (
        ("auto", "auto", HERMES if known or told else None, known),
        ("none", "none", None, False),
        ("llama3_json", "think", LLAMA3_JSON, True),
    ):
        options = EngineOptions.model_validate(
            {"model": model, "run_dir": tmp_path, "tool_parser": tools, "reasoning_parser": reasoning}
        )
        service = Service(options)
        assert (service.tool_format, service.reasons) == (form, reads)
        service.close()
