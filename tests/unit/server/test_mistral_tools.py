"""Tools of a model whose chat template takes ids of nine characters alone, and whose marks are special tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.unit.server.api_process import Api
from tests.unit.server.conftest import start_api_process, stop_api, write_model
from tests.unit.server.test_completions import events
from tests.unit.server.test_told_tools import prompt_of
from tests.unit.server.test_tools import ASKS, CALL, NAMED, TOOLS
from tokenizers import Tokenizer

from e2e.lib.waiting import wait_until
from semipd_engine.cards.chat_template import ChatTemplates
from semipd_engine.cards.guidance import new_matcher, read_vocabulary
from semipd_engine.server import chat
from semipd_engine.server.tools import ARGS, CALL_ID, MISTRAL, MISTRAL_ARGS, ToolFormat, calls_grammar

pytestmark = pytest.mark.unit

MARKS = (MISTRAL.begin, CALL_ID, ARGS)
TEMPLATE = """\
{%- if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}
{%- for message in messages %}
    {%- if message.role == "user" %}{{ "[INST] " + message.content + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {%- set out = call.function | tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id | length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + call.id + '"}' + (", " if not loop.last else "]") }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if not message.tool_call_id is defined or message.tool_call_id | length != 9 %}
            {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
        {%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ', "call_id": "' + message.tool_call_id + '"}' }}
    {%- else %}{{ " " + message.content }}{% endif %}
{%- endfor %}"""
"""As that of Mistral-7B-Instruct-v0.3 has it."""
LIST = f'{MISTRAL.begin} [{{"name": "get_weather", "arguments": {CALL}}}, {{"name": "get_time", "arguments": {{}}}}]'
SPLIT = f"{MISTRAL.begin}get_weather{ARGS}{CALL}{MISTRAL.begin}get_time{ARGS}{{}}"


@pytest.fixture(scope="module")
def mistral_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = write_model(tmp_path_factory.mktemp("mistral") / "letters")
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.save(str(model / "tokenizer.json"))
    for name, told in {
        "config.json": {"vocab_size": 420},
        "tokenizer_config.json": {"chat_template": TEMPLATE},
    }.items():
        (model / name).write_text(json.dumps(json.loads((model / name).read_text()) | told))
    return model


@pytest.fixture(scope="module")
def mistral_api(mistral_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    api = start_api_process(mistral_dir, tmp_path_factory.mktemp("run"), [])
    api.core.set_state(max_model_len=4096)
    wait_until(lambda: api.client.get("/v1/models").json()["data"][0]["max_model_len"] == 4096)
    yield api
    stop_api(api)


def say(api: Api, model: Path, text: str) -> int:
    ids = Tokenizer.from_file(str(model / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    api.core.answer = lambda add: [*ids, 2]
    return len(ids) + 1


def conversation(*ids: str) -> list[Any]:
    named = [{"id": each, "type": "function", "function": {"name": "f", "arguments": "{}"}} for each in ids]
    results = [{"role": "tool", "tool_call_id": each, "content": "done"} for each in ids]
    return [*ASKS, {"role": "assistant", "content": None, "tool_calls": named}, *results]


@pytest.mark.parametrize("tools", [True, False])
def test_a_template_that_wants_short_ids_is_found(tools: bool) -> None:
    assert ChatTemplates({"default": TEMPLATE}, {}).reach(tools).short_ids
    assert not ChatTemplates({"default": TEMPLATE.replace("!= 9", "== 0")}, {}).reach(tools).short_ids


def test_each_id_stands_for_itself() -> None:
    ids = [
        "call_0123456789abcdef01234567",
        "call_x123456789abcdef01234567",
        "abcDEF123",
        "c1",
        "abcdefgh-",
        "äbcdefghi",
    ]
    told = chat.with_short_ids(chat.normalise(conversation(*ids)))
    called = [call["id"] for call in told[1]["tool_calls"]]
    assert called == [message["tool_call_id"] for message in told[2:]]
    assert len(set(called)) == len(ids) and all(len(each) == 9 and each.isascii() and each.isalnum() for each in called)
    assert called[2] == ids[2], "a good one is not touched"
    assert told == chat.with_short_ids(chat.normalise(conversation(*ids))), "and the prompt is the same each time"


def test_a_conversation_with_usual_ids_is_served(mistral_api: Api) -> None:
    for tools in (TOOLS, None):
        asked = {"messages": conversation("call_0123456789abcdef01234567", "c1"), "tools": tools, "max_tokens": 2}
        assert mistral_api.client.post("/v1/chat/completions", json=asked).status_code == 200
    assert '"call_id": "abcdefghi"' in prompt_of(mistral_api, messages=conversation("abcdefghi"))


@pytest.mark.parametrize("text", [LIST, SPLIT])
def test_calls_come_and_go_back(mistral_api: Api, mistral_dir: Path, text: str) -> None:
    """Whole and streamed, with OpenAI's client, in both of the forms that Mistral's models have had."""
    most = say(mistral_api, mistral_dir, text)
    with openai.OpenAI(base_url=f"{mistral_api.url}/v1", api_key="none", max_retries=0) as client:
        whole = client.chat.completions.create(model="letters", messages=ASKS, tools=TOOLS, max_tokens=most)
        with client.chat.completions.stream(model="letters", messages=ASKS, tools=TOOLS, max_tokens=most) as stream:
            streamed = stream.get_final_completion()
        for answer in (whole, streamed):
            message, calls = answer.choices[0].message, answer.choices[0].message.tool_calls or []
            assert [(call.function.name, json.loads(call.function.arguments)) for call in calls] == [
                ("get_weather", json.loads(CALL)),
                ("get_time", {}),
            ]
            assert answer.choices[0].finish_reason == "tool_calls" and not message.content
            assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)
            results: list[Any] = [{"role": "tool", "tool_call_id": call.id, "content": "sun"} for call in calls]
            history: list[Any] = [*ASKS, message.model_dump(exclude_none=True, exclude={"parsed"}), *results]
            for call in history[1]["tool_calls"]:
                call["function"].pop("parsed_arguments", None)
            again = client.chat.completions.create(model="letters", messages=history, tools=TOOLS, max_tokens=most)
            assert again.choices[0].message.tool_calls
            shown = prompt_of(mistral_api, messages=history, tools=TOOLS)
            assert all(shown.count(call.id) == 2 for call in calls)


@pytest.mark.parametrize("stream", [False, True])
def test_forced_calls_are_calls(mistral_api: Api, mistral_dir: Path, stream: bool) -> None:
    most = say(mistral_api, mistral_dir, LIST)
    asked: dict[str, Any] = {"messages": ASKS, "tools": TOOLS, "tool_choice": "required", "max_tokens": most}
    response = mistral_api.client.post("/v1/chat/completions", json=asked | {"stream": stream})
    choices = [each["choices"][0] for each in (events(response.text) if stream else [response.json()])]
    calls = [call for each in choices for call in each.get("message", each.get("delta")).get("tool_calls", [])]
    assert [call["function"]["name"] for call in calls if "name" in call["function"]] == ["get_weather", "get_time"]
    assert mistral_api.core.added[-1].grammar == calls_grammar(TOOLS, None, MISTRAL, True, marks=ids_of(mistral_dir))
    assert mistral_api.client.post("/v1/chat/completions", json=asked | {"tool_choice": NAMED}).status_code == 200


def ids_of(model: Path) -> dict[str, int]:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return {mark: tokenizer.token_to_id(mark) for mark in MARKS}


@pytest.mark.parametrize("form", [MISTRAL, MISTRAL_ARGS])
def test_a_forced_call_begins_with_the_special_token(mistral_dir: Path, form: ToolFormat) -> None:
    """No text stands for it: letters that look like it are nothing that the model has learnt."""
    vocabulary, marks = read_vocabulary(mistral_dir, 420), ids_of(mistral_dir)
    grammar = calls_grammar(TOOLS, None, form, True, marks=marks)
    tokenizer = Tokenizer.from_file(str(mistral_dir / "tokenizer.json"))
    for seed in range(4):
        matcher, draw, ids = new_matcher(vocabulary, grammar), random.Random(seed), list[int]()
        while not matcher.is_stopped() and len(ids) < 500:
            mask = matcher.compute_bitmask()
            may = [i for i in range(420) if mask[i // 8] >> i % 8 & 1]
            token = draw.choice(may)
            if token in vocabulary.eos_tokens:
                break
            assert matcher.consume_token(token)
            ids.append(token)
        assert ids[0] == marks[MISTRAL.begin], tokenizer.decode(ids, skip_special_tokens=False)
        assert (marks[ARGS] in ids) is (form is MISTRAL_ARGS)
