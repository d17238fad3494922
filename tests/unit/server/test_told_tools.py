"""Tools of a model whose chat template knows none, and what of a chat no template reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.server.api_process import Api
from tests.unit.server.conftest import TEMPLATE, start_api_process, stop_api, write_model
from tests.unit.server.test_completions import events, say
from tests.unit.server.test_metrics import value
from tests.unit.server.test_tools import ASKS, CALL, TEXT, TIME, TOOLS, WEATHER
from tokenizers import Tokenizer

from e2e.lib.waiting import wait_until
from semipd_engine.cards.chat_template import ChatTemplates
from semipd_engine.server import chat, chat_fields
from semipd_engine.server.protocol import ChatRequest
from semipd_engine.server.told_tools import in_words
from semipd_engine.server.tools import HERMES, LLAMA3_JSON

pytestmark = pytest.mark.unit

PLAIN = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful AI assistant<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
"""SmolLM2's, which knows no tools."""
NO_SYSTEM = """\
{%- for message in messages %}
{%- if message.role not in ('user', 'assistant') %}{{ raise_exception('only users and assistants') }}{% endif %}
{%- if (message.role == 'user') != loop.index0 is even %}{{ raise_exception('they must alternate') }}{% endif %}
{{- message.role }}: {{ message.content }};
{%- endfor %}"""
KNOWING = """\
{%- if tools %}{{ tools | tojson }}{% endif %}
{%- for message in messages %}{{ message.role }}: {{ message.content }}{{ message.thinking }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %};{% endfor %}
{%- if enable_thinking is defined and enable_thinking %}<think>{% endif %}"""
CALLED: list[Any] = [
    {"role": "user", "content": "How is it in Paris and Rome?"},
    {
        "role": "assistant",
        "content": "I look.",
        "tool_calls": [
            {"id": f"c{number}", "type": "function", "function": {"name": "get_weather", "arguments": {"city": city}}}
            for number, city in enumerate(("Paris", "Rome"))
        ],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    {"role": "tool", "tool_call_id": "c0", "content": "sun"},
]


@pytest.fixture(scope="module")
def plain_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from _serving(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def strict_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from _serving(tmp_path_factory.mktemp("strict"), PLAIN, "--strict-fields")


def _serving(folder: Path, template: str, *flags: str) -> Iterator[Api]:
    model = write_model(folder / "letters")
    told = model / "tokenizer_config.json"
    told.write_text(json.dumps(json.loads(told.read_text()) | {"chat_template": template}))
    (folder / "run").mkdir()
    api = start_api_process(model, folder / "run", list(flags))
    api.core.set_state(max_model_len=4096)
    wait_until(lambda: api.client.get("/v1/models").json()["data"][0]["max_model_len"] == 4096)
    yield api
    stop_api(api)


def prompt_of(api: Api, **fields: Any) -> str:
    """The text that a chat becomes."""
    ids = api.client.post("/tokenize", json=fields).json()["tokens"]
    return str(api.client.post("/detokenize", json={"tokens": ids}).json()["prompt"])


# ---- what a template shows ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "tools", "calls", "system", "names"),
    [
        (PLAIN, False, False, True, False),
        (TEMPLATE, True, False, True, False),
        (KNOWING, True, True, True, False),
        (NO_SYSTEM, False, False, False, False),
        ("{% for m in messages %}{{ m.name or '' }}: {{ m.content }}{% endfor %}", False, False, True, True),
        ("{{ raise_exception('never') }}", True, True, True, True),
    ],
)
def test_what_a_template_shows_is_found(template: str, tools: bool, calls: bool, system: bool, names: bool) -> None:
    reach = ChatTemplates({"default": template}, {}).reach(with_tools=True)
    assert (reach.tools, reach.calls, reach.system, reach.names) == (tools, calls, system, names)
    assert reach.reads("enable_thinking") is (template is KNOWING or "never" in template)


def test_the_template_for_tools_is_another_one() -> None:
    templates = ChatTemplates({"default": PLAIN, "tool_use": KNOWING}, {})
    assert templates.reach(with_tools=True).calls and not templates.reach(with_tools=False).calls


def test_calls_and_results_are_told_in_their_order() -> None:
    reach = ChatTemplates({"default": PLAIN}, {}).reach(with_tools=True)
    system, user, said, results = in_words(CALLED, [WEATHER], reach, HERMES)
    assert system["role"] == "system" and json.dumps(WEATHER) in system["content"]
    assert HERMES.begin in system["content"] and user == CALLED[0]
    assert said["content"].startswith("I look.\n<tool_call>\n") and said["content"].count(HERMES.end) == 2
    assert '"arguments": {"city": "Rome"}' in said["content"] and "tool_calls" not in said
    assert results["role"] == "user" and results["content"].index("sun") < results["content"].index("rain")
    briefed = [{"role": "system", "content": "Be brief."}, *CALLED]
    told = in_words(briefed, [WEATHER], reach, LLAMA3_JSON)
    assert told[0]["content"].startswith("Be brief.\n\nYou can call functions") and len(told) == 4
    example = '{"name": "get_weather", "parameters": {"city": "...", "days": "..."}}'
    assert example in told[0]["content"] and '; {"name": "get_weather"' in told[2]["content"]


def test_a_template_without_a_system_hears_of_tools_from_the_user() -> None:
    templates = ChatTemplates({"default": NO_SYSTEM}, {})
    told = in_words(CALLED, TOOLS, templates.reach(with_tools=True), HERMES)
    assert [message["role"] for message in told] == ["user", "assistant", "user"]
    text = templates.render(told, TOOLS)
    assert text.index("get_time") < text.index("How is it in") < text.index("I look.") < text.index("sun")
    told = in_words([*CALLED, {"role": "user", "content": "So?"}], TOOLS, templates.reach(with_tools=True), HERMES)
    assert templates.render(told, TOOLS).endswith("rain\n</tool_response>\n\nSo?;"), "turns alternate"


def test_a_template_that_knows_tools_is_told_nothing() -> None:
    reach = ChatTemplates({"default": KNOWING}, {}).reach(with_tools=True)
    assert in_words(CALLED, TOOLS, reach, HERMES) == CALLED


# ---- through the API ---------------------------------------------------------------------------------------------


def test_a_model_whose_template_knows_no_tools_calls(plain_api: Api, tokenizer: Tokenizer) -> None:
    """As with langchain's `bind_tools` and no choice: the model sees the functions, and its calls are calls."""
    fields: dict[str, Any] = {"messages": ASKS, "tools": TOOLS}
    shown = prompt_of(plain_api, **fields)
    for part in ("get_weather", "get_time", "The weather of a city", HERMES.begin, ASKS[0]["content"]):
        assert part in shown, part
    ids = say(plain_api, tokenizer, TEXT)
    for stream in (False, True):
        asked = fields | {"max_tokens": len(ids), "stream": stream}
        response = plain_api.client.post("/v1/chat/completions", json=asked)
        assert "x-semipd-unknown-fields" not in response.headers
        choices = [each["choices"][0] for each in (events(response.text) if stream else [response.json()])]
        calls = [call for each in choices for call in each.get("message", each.get("delta")).get("tool_calls", [])]
        assert calls[0]["function"]["name"] == "get_weather" and choices[-1]["finish_reason"] == "tool_calls"
        assert "".join(call["function"]["arguments"] for call in calls) == CALL
    assert "get_weather" not in prompt_of(plain_api, messages=ASKS)


def test_what_was_called_is_in_the_prompt(plain_api: Api) -> None:
    answers = [*CALLED[:2], *CALLED[2:], {"role": "user", "content": "So?"}]
    for tools in (TOOLS, None):
        shown = prompt_of(plain_api, messages=answers, tools=tools)
        assert all(part in shown for part in ("I look.", '"city": "Rome"', "<tool_response>\nsun", "So?"))
        assert ("get_time" in shown) is (tools is not None)


def test_a_result_has_the_name_of_what_was_called() -> None:
    """Hermes' template wants it; OpenAI's clients send the call's id alone."""
    other = {"role": "tool", "tool_call_id": "c9", "content": "x"}
    named = {"role": "tool", "tool_call_id": "c0", "content": "x", "name": "mine"}
    normal = chat.normalise([*CALLED, other, named])
    assert [message.get("name") for message in normal[2:]] == ["get_weather", "get_weather", None, "mine"]
    assert "name" not in CALLED[2]


def test_calls_that_nobody_reads_are_named(api: Api) -> None:
    """The fixture's template shows tools, and does not say how calls look."""
    assert api.chat(tools=[TIME]).headers["x-semipd-unknown-fields"] == "tool_choice"
    for choice in ("none", "required"):
        assert "x-semipd-unknown-fields" not in api.chat(tools=[TIME], tool_choice=choice, max_tokens=100).headers


def user(content: Any = "x", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content} | more]}


def said(**call: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": "{}"}
    return {"messages": [{"role": "assistant", "tool_calls": [{"function": function} | call]}]}


ODD: dict[str, dict[str, Any]] = {
    "documents": {"documents": [{"text": "x"}]},
    "reasoning_effort": {"reasoning_effort": "low"},
    "chat_template_kwargs.enable_thinking": {"chat_template_kwargs": {"enable_thinking": True}},
    "messages[].weight": user(weight=1),
    "messages[].name": user(name="Ann"),
    "messages[].content[].detail": user([{"type": "text", "text": "x", "detail": 1}]),
    "messages[].tool_calls[].x": said(x=1),
    "messages[].tool_calls[].function.x": said(function={"name": "f", "arguments": "{}", "x": 1}),
    "tools[].x": {"tools": [TIME | {"x": 1}]},
    "tools[].function.x": {"tools": [{"function": {"name": "f", "x": 1}}]},
}


@pytest.mark.parametrize("name", ODD)
def test_what_no_template_reads_is_named_counted_and_refused_if_asked_for(
    plain_api: Api, strict_api: Api, name: str
) -> None:
    fields = ODD[name]
    before = value(plain_api, "semipd_requests_with_unknown_fields_total")
    answer = plain_api.chat(**fields)
    assert (answer.status_code, answer.headers["x-semipd-unknown-fields"]) == (200, name)
    assert value(plain_api, "semipd_requests_with_unknown_fields_total") == before + 1
    refused = strict_api.chat(**fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
    asked = {"messages": ASKS} | fields
    assert plain_api.client.post("/tokenize", json=asked).headers["x-semipd-unknown-fields"] == name


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thoughts_that_are_sent_back_to_a_template_without_them_are_named_and_never_refused(
    plain_api: Api, strict_api: Api, field: str
) -> None:
    """Agents send an answer back as it came."""
    for api in (plain_api, strict_api):
        answer = api.chat(messages=[*ASKS, {"role": "assistant", "content": "x", field: "Hm."}, *ASKS])
        assert (answer.status_code, answer.headers["x-semipd-unknown-fields"]) == (200, f"messages[].{field}")


def test_what_asks_for_nothing_is_not_named(strict_api: Api) -> None:
    nothing: dict[str, Any] = {"documents": [], "reasoning_effort": "none", "tools": TOOLS}
    nothing["chat_template_kwargs"] = {"enable_thinking": False, "add_generation_prompt": True, "x": None}
    said = {"role": "assistant", "content": "x", "audio": None, "annotations": [], "refusal": None, "weight": None}
    nothing["messages"] = [*ASKS, said, *CALLED[1:], *ASKS]
    assert strict_api.chat(**nothing).status_code == 200


def test_what_was_thought_is_shown_under_the_name_that_the_template_knows() -> None:
    """And either name that a client sends it by is read then."""
    templates = ChatTemplates(
        {"default": "{% for m in messages %}{{ m.reasoning_content }}{{ m.content }}{% endfor %}"}, {}
    )
    for name in ("reasoning", "reasoning_content"):
        said = [{"role": "assistant", "content": "x", name: "Hm."}]
        assert templates.render(chat.normalise(said)).startswith("Hm.")
        body = ChatRequest.model_validate({"messages": said})
        assert not chat_fields.unread(body, body.messages, templates.reach(with_tools=False))


def test_an_image_is_refused_as_one_under_strict_fields_too(strict_api: Api) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    error = strict_api.chat(messages=[{"role": "user", "content": [image]}]).json()["error"]
    assert "reads text" in error["message"] and error["param"].startswith("messages")


def test_a_field_that_the_template_names_is_read(tmp_path: Path) -> None:
    reach = ChatTemplates({"default": KNOWING}, {}).reach(with_tools=False)
    assert "thinking" in reach.words and reach.reads("enable_thinking") and not reach.reads("documents")


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("messages.0.name", {"messages": [{"role": "user", "content": "x", "name": 5}]}),
        ("messages.0.tool_call_id", {"messages": [{"role": "tool", "content": "x", "tool_call_id": 5}]}),
        ("messages.0.tool_calls", {"messages": [{"role": "assistant", "tool_calls": {}}]}),
        (
            "messages.0.tool_calls.0.function.arguments",
            {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
        ),
        ("tools", {"tools": [{"function": {"name": "f", "strict": "x"}}]}),
        ("tools", {"tools": [{"function": {"name": "f", "description": 5}}]}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"messages": []}}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"tools": []}}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"chat_template": "x"}}),
        ("chat_template_kwargs", {"chat_template_kwargs": {"tokenize": False}}),
        (
            "continue_final_message",
            {"continue_final_message": True, "chat_template_kwargs": {"add_generation_prompt": True}},
        ),
    ],
)
def test_wrong_types_and_names_are_refused(api: Api, param: str, fields: dict[str, Any]) -> None:
    refused = api.chat(**fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


def test_the_clients_template_variables_win(plain_api: Api) -> None:
    shown = prompt_of(plain_api, messages=ASKS)
    assert shown.endswith("<|im_start|>assistant\n")
    bare = prompt_of(plain_api, messages=ASKS, chat_template_kwargs={"add_generation_prompt": False})
    assert shown.removesuffix("<|im_start|>assistant\n") == bare
    assert (
        ChatTemplates({"default": "{{ bos_token }}{{ messages[0].content }}"}, {"bos_token": "<s>"})
        .render(ASKS, variables={"bos_token": "<b>"})
        .startswith("<b>")
    )
