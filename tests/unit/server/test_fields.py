"""Each field of vLLM's and OpenAI's completion endpoints: honoured, harmless or refused; and the small endpoints."""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletionContentPartTextParam, ChatCompletionStreamOptionsParam
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as ChatParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase
from tests.unit.server.api_process import Api, StartApi
from tests.unit.server.test_completions import events
from tests.unit.server.test_metrics import value

from e2e.lib.waiting import wait_until
from semipd_engine.core.kv_cache_manager import extend_digests
from semipd_engine.server import fields
from semipd_engine.server.chat_fields import PART
from semipd_engine.server.protocol import ChatRequest, CompletionRequest, StreamOptions

pytestmark = pytest.mark.unit

DOCS = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
VLLM = re.findall(
    r"\w+",
    """
    model prompt prompt_embeds best_of echo frequency_penalty logit_bias logprobs max_tokens n presence_penalty
    seed stop stream stream_options suffix temperature top_p user use_beam_search top_k min_p repetition_penalty
    length_penalty stop_token_ids include_stop_str_in_output ignore_eos min_tokens skip_special_tokens
    spaces_between_special_tokens truncate_prompt_tokens truncation_side allowed_token_ids prompt_logprobs
    add_special_tokens response_format structured_outputs priority request_id session_id logits_processors
    return_tokens_as_token_ids return_token_ids return_token_offsets return_prompt_text return_mm_kwargs
    cache_salt kv_transfer_params ec_transfer_params vllm_xargs repetition_detection stream_interval
    watermarking messages top_logprobs max_completion_tokens tools tool_choice reasoning_effort
    thinking_token_budget include_reasoning parallel_tool_calls logprob_token_ids bad_words
    mm_payload add_generation_prompt continue_final_message documents chat_template chat_template_kwargs media_io_kwargs
    mm_processor_kwargs routed_experts_prompt_start guided_json guided_regex guided_choice guided_grammar
    guided_decoding_backend guided_whitespace_pattern
    """,
)
"""Of vLLM's two request models, old and new."""
OPENAI = [
    *CompletionCreateParamsBase.__annotations__,
    *ChatParamsBase.__annotations__,
    *(f"stream_options.{name}" for name in ChatCompletionStreamOptionsParam.__annotations__),
]
"""Of its own client, which is newer with each version."""


def section(title: str, until: str) -> str:
    return DOCS.partition(title)[2].partition(until)[0]


def rows(text: str) -> dict[str, str]:
    """Of the tables: each name of the first column, and the last column."""
    found = re.findall(r"^\| (`.*?`) \|.*?\|?([^|\n]*) \|$", text, re.MULTILINE)
    return {name: last.strip() for names, last in found for name in re.findall(r"`([\w.]+)`", names)}


def test_every_field_is_in_the_table_once_and_in_the_docs() -> None:
    honoured = CompletionRequest.model_fields.keys() | ChatRequest.model_fields.keys()
    options = {f"stream_options.{name}" for name in StreamOptions.model_fields}
    for name in (*VLLM, *OPENAI):
        if name in options:
            continue
        assert sum((name in honoured, name in fields.HARMLESS, name in fields.REFUSED)) == 1, name
    written = {name.partition(".")[0] for name in rows(section("## Request fields", "### Harmless"))}
    assert honoured <= written, honoured - written
    assert set(ChatCompletionContentPartTextParam.__annotations__) <= PART
    assert rows(section("### Harmless", "### Refused")) == dict(fields.HARMLESS)
    refused = {name: remedy for name, (remedy, _) in fields.REFUSED.items()}
    assert rows(section("### Refused", "Any other field")) == refused


@pytest.mark.parametrize("chat", [False, True])
def test_a_refused_field_is_named_and_its_neutral_values_pass(api: Api, chat: bool) -> None:
    ask = api.chat if chat else api.complete
    for name, (remedy, neutral) in fields.REFUSED.items():
        refused = ask(**{name: "something else"})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, name), name
        assert remedy in error["message"]
        for harmless in (None, False, [], *neutral):
            assert ask(**{name: harmless}).status_code == 200, (name, harmless)


def test_harmless_fields_change_nothing(api: Api) -> None:
    sent = {name: "x" for name in fields.HARMLESS if "." not in name}
    answer = api.complete(seed=1, **sent)
    assert "x-semipd-unknown-fields" not in answer.headers
    assert answer.json()["choices"] == api.complete(seed=1).json()["choices"]
    stream = api.complete(stream=True, stream_options={"include_obfuscation": True})
    assert "x-semipd-unknown-fields" not in stream.headers


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_fields_are_named_and_counted(api: Api, stream: bool) -> None:
    before = value(api, "semipd_requests_with_unknown_fields_total")
    odd = {"temprature": 0, "größe\n,": 1, "stream_options": {"x": 1}} if stream else {"temprature": 0, "größe\n,": 1}
    answer = api.complete(stream=stream, **odd)
    names = answer.headers["x-semipd-unknown-fields"].split(", ")
    assert names == ["temprature", "gr\\xf6\\xdfe\\n\\x2c", *(["stream_options.x"] if stream else [])]
    assert value(api, "semipd_requests_with_unknown_fields_total") == before + 1
    many = api.complete(**{f"x{i}" * 100: 1 for i in range(100)})
    assert many.status_code == 200 and len(many.headers["x-semipd-unknown-fields"]) < 2000


def test_fields_of_the_other_endpoint_are_refused(api: Api) -> None:
    assert api.chat(prompt="x").json()["error"]["param"] == "prompt"
    assert api.complete(tools=[{"type": "function"}]).json()["error"]["param"] == "tools"
    assert api.chat(prompt=None).status_code == api.complete(tools=None).status_code == 200
    assert api.complete(max_tokens=5, max_completion_tokens=6).json()["error"]["param"] == "max_completion_tokens"
    same = api.complete(max_tokens=5, max_completion_tokens=5)  # as vLLM's guidellm says it
    assert same.json()["usage"]["completion_tokens"] == 5 and "x-semipd-unknown-fields" not in same.headers


def test_strict_fields_refuses_the_unknown(start_api: StartApi) -> None:
    api = start_api("--strict-fields")
    refused = api.complete(temprature=0)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "temprature")
    assert api.complete(user="x").status_code == 200


# ---- ids ---------------------------------------------------------------------------------------------------------


def test_request_ids_are_taken_and_echoed(api: Api) -> None:
    body = {"prompt": "The", "max_tokens": 1}
    for stream in (False, True):
        answer = api.client.post("/v1/completions", json=body | {"stream": stream}, headers={"x-request-id": "abc-1"})
        assert answer.headers["x-request-id"] == "abc-1"
        assert ('"id":"cmpl-abc-1"' in answer.text.replace(" ", "")) is True
    assert api.complete(request_id="mine").json()["id"] == "cmpl-mine"
    assert api.client.get("/v1/nothing", headers={"x-request-id": "abc-2"}).headers["x-request-id"] == "abc-2"
    made = [api.client.get("/health", headers={"x-request-id": bad}).headers["x-request-id"] for bad in ("", "a b")]
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made) and made[0] != made[1]
    assert api.complete(request_id="a b").json()["error"]["param"] == "request_id"


def test_equal_request_ids_do_not_meet(api: Api) -> None:
    """The client's id is a name, not a key."""
    alone = [api.complete(prompt, seed=1).json()["choices"] for prompt in "ab"]
    api.core.added.clear()
    api.core.steps = asyncio.Semaphore(0)
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(api.complete, prompt, seed=1, request_id="same") for prompt in "ab"]
        wait_until(lambda: len(api.core.added) == 2)
        for _ in range(16):
            api.core.step()
        answers = [each.result().json() for each in asked]
    assert len({add.key for add in api.core.added}) == 2 and {answer["id"] for answer in answers} == {"cmpl-same"}
    assert [answer["choices"] for answer in answers] == alone


def test_a_salt_reaches_core_and_parts_the_prefixes(api: Api) -> None:
    assert api.complete(cache_salt="mine").status_code == 200
    assert api.core.added[-1].cache_salt == "mine"
    assert api.complete(cache_salt="").json()["error"]["param"] == "cache_salt"
    digests: dict[bytes, list[bytes]] = {salt: [] for salt in (b"", b"a", b"b")}
    for salt, chain in digests.items():
        extend_digests(chain, range(64), 16, salt)
    assert len({digest for chain in digests.values() for digest in chain}) == 12


def test_fingerprint_and_continuous_usage(api: Api) -> None:
    whole = api.complete(max_tokens=3).json()
    assert re.fullmatch("fp_[0-9a-f]{10}", whole["system_fingerprint"])
    options = {"include_usage": True, "continuous_usage_stats": True}
    api.core.seconds_per_token = 0.02
    chunks = events(api.chat(max_tokens=3, stream=True, stream_options=options).text)
    assert {chunk["system_fingerprint"] for chunk in chunks} == {whole["system_fingerprint"]}
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts) and counts[-1] == 3
    assert not {"usage"} <= set(events(api.chat(stream=True).text)[0])
    alone = events(api.chat(max_tokens=3, stream=True, stream_options={"continuous_usage_stats": True}).text)
    assert [chunk["usage"]["completion_tokens"] for chunk in alone][-1] == 3 and alone[-1]["choices"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_chats_echo_is_the_message_that_goes_on(api: Api, stream: bool) -> None:
    def told(*said: str, **fields: Any) -> str:
        messages = [{"role": role, "content": role[0]} for role in said]
        body = {"messages": messages, "max_tokens": 4, "seed": 1, "stream": stream} | fields
        response = api.client.post("/v1/chat/completions", json=body)
        choices = [chunk["choices"][0] for chunk in (events(response.text) if stream else [response.json()])]
        return "".join(each.get("message", each.get("delta"))["content"] or "" for each in choices if each)

    goes_on = {"continue_final_message": True, "add_generation_prompt": False}
    answer = told("user", "assistant", **goes_on)
    assert answer and told("user", "assistant", echo=True, **goes_on) == "a" + answer
    assert told("user", echo=True) == told("user")


def test_template_variables(api: Api) -> None:
    """The fixture's template shows none of them; a bad value is refused, a good one accepted."""
    assert api.chat(reasoning_effort="low", documents=[{"title": "t", "text": "x"}]).status_code == 200
    assert api.chat(reasoning_effort="enormous").json()["error"]["param"] == "reasoning_effort"
    asked = ChatRequest.model_validate(
        {"messages": [{}], "reasoning_effort": "none", "documents": [{"a": "b"}], "chat_template_kwargs": {"x": 1}}
    )
    expected: dict[str, Any] = {"reasoning_effort": "none", "enable_thinking": False, "documents": [{"a": "b"}], "x": 1}
    assert asked.template_variables == expected


# ---- endpoints ---------------------------------------------------------------------------------------------------


def test_ping_and_load(api: Api) -> None:
    assert api.client.get("/ping").status_code == api.client.post("/ping").status_code == 200
    assert api.client.get("/load").json() == {"server_load": 0}


def test_what_is_not_served_says_so(api: Api) -> None:
    for path in ("/v1/embeddings", "/v1/responses", "/v1/audio/transcriptions", "/v1/images/generations", "/rerank"):
        refused = api.client.post(path, json={})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (404, "unsupported_endpoint")
        assert path in error["message"] and "/v1/chat/completions" in error["message"]
    for method, path, instead in (
        ("GET", "/v1/files/file-1/content", "nothing is kept"),
        ("POST", "/v1/batches/b/cancel", "beside each other"),
        ("DELETE", "/v1/threads/t", "/v1/chat/completions"),
        ("POST", "/v1/messages/count_tokens", "/tokenize"),
        ("POST", "/v1/chat/completions/render", "/tokenize"),
        ("POST", "/v1/completions/render", "/tokenize"),
        ("GET", "/v1/chat/completions/chatcmpl-1", "nothing is kept"),
        ("POST", "/v1/fine_tuning/jobs", "train elsewhere"),
        ("GET", "/v1/vector_stores/v/files", "nothing is kept"),
        ("HEAD", "/v1/embeddings", ""),
    ):
        refused = api.client.request(method, path)
        assert refused.status_code == 404, path
        if method != "HEAD":
            error = refused.json()["error"]
            assert error["code"] == "unsupported_endpoint" and instead in error["message"], path
    assert api.client.get("/v1/chat/completions").headers["allow"] == "POST"


def test_a_path_with_a_slash_too_many_is_told_where_it_is(api: Api) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        refused = api.client.post(path + "/", json={})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (404, "unknown_url")
        assert error["message"] == f"POST {path}/: Not Found; use {path}"
    error = api.client.post("/v1/v1/chat/completions/", json={}).json()["error"]
    assert error["message"].endswith("use /v1/chat/completions, with a base URL that ends in /v1 once")


def test_the_openapi_document_has_the_bodies(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    for path, name in (("/v1/completions", "CompletionRequest"), ("/v1/chat/completions", "ChatRequest")):
        operation = document["paths"][path]["post"]
        assert operation["requestBody"]["content"]["application/json"]["schema"] == {
            "$ref": f"#/components/schemas/{name}"
        }
        assert {"200", "400", "404", "413", "429", "500", "503"} <= set(operation["responses"])
    assert "prompt" in schemas["CompletionRequest"]["required"]
    references = re.findall(r'"#/components/schemas/(\w+)"', api.client.get("/openapi.json").text)
    assert set(references) <= set(schemas)
    assert "openapi.json" in api.client.get("/docs").text
