"""Both completion APIs of the real api process, against a stand-in core, through plain HTTP."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import pytest
from tests.unit.server.api_process import Api
from tests.unit.server.api_standin import logprobs_of
from tokenizers import Tokenizer

from e2e.lib.waiting import wait_until
from semipd_engine.ipc.requests import DRAINING, NOT_READY, AddRequest
from semipd_engine.ipc.tokens import Sampling, pack_bias

pytestmark = pytest.mark.unit


def events(text: str) -> list[Any]:
    """The JSON of each server-sent event; the last one must be [DONE]."""
    *lines, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def say(api: Api, tokenizer: Tokenizer, text: str, end: int | None = 2) -> list[int]:
    """Make core answer with this text, then end-of-sequence."""
    ids = [*tokenizer.encode(text).ids, *([] if end is None else [end])]
    api.core.answer = lambda add: ids
    return ids


# ---- completions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_per_output", [1, 4])
def test_plain_and_streamed_answers_agree(api: Api, tokenizer: Tokenizer, tokens_per_output: int) -> None:
    api.core.tokens_per_output = tokens_per_output
    plain = api.complete(max_tokens=20, return_token_ids=True).json()
    choice = plain["choices"][0]
    assert choice["text"] == tokenizer.decode(choice["token_ids"])
    assert choice["prompt_token_ids"] == tokenizer.encode("The quick").ids
    assert choice["finish_reason"] == "length"
    assert plain["usage"]["completion_tokens"] == 20 == len(choice["token_ids"])
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == len(choice["prompt_token_ids"]) // 2
    chunks = events(api.complete(max_tokens=20, stream=True, return_token_ids=True).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert [*chain.from_iterable(chunk["choices"][0]["token_ids"] for chunk in chunks)] == choice["token_ids"]
    assert chunks[0]["choices"][0]["prompt_token_ids"] == choice["prompt_token_ids"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_end_of_sequence_is_counted_and_not_shown(api: Api, tokenizer: Tokenizer) -> None:
    ids = say(api, tokenizer, " brown fox")
    answer = api.complete(max_tokens=50, return_token_ids=True).json()
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (" brown fox", "stop", None)
    assert choice["token_ids"] == ids
    assert answer["usage"]["completion_tokens"] == len(ids)
    assert api.core.added[-1].sampling.stop_token_ids == (0, 2)


def test_prompt_forms_and_choices_keep_their_order(api: Api, tokenizer: Tokenizer) -> None:
    answer = api.complete(["The", "dog"], n=2, seed=41, return_token_ids=True).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    the, dog = (tokenizer.encode(text).ids for text in ("The", "dog"))
    assert [add.prompt_token_ids for add in api.core.added] == [the, the, dog, dog]
    assert [add.sampling.seed for add in api.core.added] == [41, 42, 41, 42]
    assert answer["usage"]["prompt_tokens"] == len(the) + len(dog)
    assert answer["usage"]["completion_tokens"] == 4 * 8
    api.core.added.clear()
    by_ids = api.complete([the, dog], n=2, seed=41, return_token_ids=True).json()
    assert [c["token_ids"] for c in by_ids["choices"]] == [c["token_ids"] for c in answer["choices"]]
    assert api.complete(the, return_token_ids=True).json()["choices"][0]["prompt_token_ids"] == the
    fractions = [float(token) for token in the]  # JSON has one kind of number
    for prompt in (fractions, [fractions, the], [fractions[0], *the[1:]]):
        same = api.complete(prompt, return_token_ids=True).json()["choices"]
        assert {tuple(choice["prompt_token_ids"]) for choice in same} == {tuple(the)}


def test_streamed_choices_are_told_apart(api: Api) -> None:
    plain = api.complete(["The", "dog"], n=2, seed=1).json()["choices"]
    texts = dict.fromkeys(range(4), "")
    for chunk in events(api.complete(["The", "dog"], n=2, seed=1, stream=True).text):
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["text"]
    assert texts == {choice["index"]: choice["text"] for choice in plain}


@pytest.mark.parametrize("tokens_per_output", [1, 5])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_stop_string_ends_the_answer_and_core_is_told(
    api: Api, tokenizer: Tokenizer, tokens_per_output: int, stream: bool, include: bool
) -> None:
    ids = say(api, tokenizer, " brown fox jumps over the lazy dog", end=None)
    api.core.tokens_per_output, api.core.seconds_per_token = tokens_per_output, 0.02
    fields = {"stop": ["x jum", "zzz"], "include_stop_str_in_output": include, "stream": stream}
    response = api.complete(max_tokens=len(ids), **fields)
    chunks = events(response.text) if stream else [response.json()]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " brown fo" + ("x jum" if include else "")
    assert (chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["choices"][0]["stop_reason"]) == ("stop", "x jum")
    wait_until(lambda: api.core.aborted == [api.core.added[-1].key])


def test_held_back_text_comes_at_the_end(api: Api, tokenizer: Tokenizer) -> None:
    say(api, tokenizer, " brown fox")
    chunks = events(api.complete(max_tokens=50, stream=True, stop="fox jumps").text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == " brown fox"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop" and chunks[-1]["choices"][0]["stop_reason"] is None


def test_logprobs_in_completion_shape(api: Api, tokenizer: Tokenizer) -> None:
    choice = api.complete(logprobs=2, max_tokens=6, return_token_ids=True).json()["choices"][0]
    logprobs, ids = choice["logprobs"], choice["token_ids"]
    names = [tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    assert logprobs["tokens"] == names
    assert logprobs["token_logprobs"] == [-i / 1000 for i in ids]
    assert logprobs["text_offset"] == [sum(map(len, names[:k])) for k in range(6)]
    assert [set(top.values()) for top in logprobs["top_logprobs"]] == [{-i / 1000, -(i + 1) / 1000} for i in ids]
    chunks = events(api.complete(logprobs=2, max_tokens=6, stream=True).text)
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    for field in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
        assert [*chain.from_iterable(part[field] for part in streamed)] == logprobs[field]


def test_usage_comes_last_in_a_stream_when_asked_for(api: Api) -> None:
    chunks = events(api.complete(stream=True, stream_options={"include_usage": True}).text)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    plain = api.complete().json()
    assert chunks[-1]["usage"] == plain["usage"]
    assert "usage" not in events(api.complete(stream=True).text)[0]


def test_sampling_reaches_core(api: Api) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.8,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 5,
        "presence_penalty": 0.25,
        "frequency_penalty": -0.5,
        "repetition_penalty": 1.5,
        "logit_bias": {"9": -3},
        "logprobs": 3,
        "stop_token_ids": [11],
        "min_tokens": 2,
        "max_tokens": 6,
    }
    api.complete(**fields)
    assert api.core.added[-1].sampling == Sampling(
        **fields | {"logit_bias": pack_bias({9: -3.0}), "stop_token_ids": (11, 0, 2)}  # type: ignore[arg-type]
    )


# ---- chat --------------------------------------------------------------------------------------------------------


def test_chat_renders_the_template(api: Api, tokenizer: Tokenizer) -> None:
    say(api, tokenizer, "Paris.")
    answer = api.chat("Where?", return_token_ids=True).json()
    rendered = "<|im_start|>user\nWhere?<|im_end|>\n<|im_start|>assistant\n"
    assert answer["prompt_token_ids"] == tokenizer.encode(rendered, add_special_tokens=False).ids
    choice = answer["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Paris."}
    assert choice["finish_reason"] == "stop"
    tools = [{"type": "function", "function": {"name": "f"}}]
    with_tools = api.chat("Where?", return_token_ids=True, tools=tools).json()["prompt_token_ids"]
    assert tokenizer.decode(with_tools).startswith("<tools>" + json.dumps(tools))


def test_chat_stream_begins_with_the_role(api: Api, tokenizer: Tokenizer) -> None:
    ids = say(api, tokenizer, "Größe 🙂 naïve")
    chunks = events(api.chat("x", stream=True, max_tokens=60, return_token_ids=True).text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[0]["prompt_token_ids"]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Größe 🙂 naïve"
    assert [*chain.from_iterable(chunk["choices"][0].get("token_ids", []) for chunk in chunks)] == ids
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert not any("\ufffd" in json.dumps(chunk, ensure_ascii=False) for chunk in chunks)


def test_logprobs_in_chat_shape(api: Api, tokenizer: Tokenizer) -> None:
    ids = say(api, tokenizer, "🙂 a", end=None)
    choice = api.chat("x", logprobs=True, top_logprobs=1, max_tokens=len(ids)).json()["choices"][0]
    content = choice["logprobs"]["content"]
    assert bytes(chain.from_iterable(token["bytes"] for token in content)) == "🙂 a".encode()
    assert [token["logprob"] for token in content] == [-i / 1000 for i in ids]
    assert all(len(token["top_logprobs"]) == 1 for token in content)
    assert content[0]["top_logprobs"][0]["logprob"] == content[0]["logprob"]


def test_minus_infinity_is_sent_as_a_number(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.unit.server import api_standin

    def lowest(add: AddRequest, token: int) -> Any:
        return type(logprobs_of(add, token))(float("-inf"), [(1, float("-inf"))])

    monkeypatch.setattr(api_standin, "logprobs_of", lowest)
    assert api.complete(logprobs=1).json()["choices"][0]["logprobs"]["token_logprobs"] == [-9999.0] * 8


# ---- tokenize, models --------------------------------------------------------------------------------------------


def test_tokenize_and_back(api: Api, tokenizer: Tokenizer) -> None:
    answer = api.client.post("/tokenize", json={"prompt": "The größe 🙂", "return_token_strs": True}).json()
    assert answer["tokens"] == tokenizer.encode("The größe 🙂").ids
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 256
    back = api.client.post("/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"prompt": "The größe 🙂"}
    messages = [{"role": "user", "content": "hi"}]
    tokens = api.client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert tokens == api.chat("hi", return_token_ids=True).json()["prompt_token_ids"]


def test_models_and_version(api: Api) -> None:
    (model,) = api.client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("letters", "model", 256)
    assert api.client.get("/v1/models/letters").json()["id"] == "letters"
    assert api.client.get("/v1/models/other").status_code == 404
    assert api.client.get("/version").json()["version"]
    for name in ("letters", "", None):
        assert api.complete(model=name).status_code == api.chat(model=name).status_code == 200


# ---- errors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "words"),
    [
        ("/v1/completions", {"prompt": "x", "model": "gpt-9"}, 404, "model", ["gpt-9", "letters"]),
        ("/v1/completions", {}, 400, "prompt", ["required"]),
        ("/v1/completions", {"prompt": [400]}, 400, "prompt", ["400", "0 to 399"]),
        ("/v1/completions", {"prompt": ""}, 400, "prompt", ["no tokens"]),
        ("/v1/completions", {"prompt": [5] * 300}, 400, "prompt", ["300 tokens", "at most 256"]),
        ("/v1/completions", {"prompt": [5] * 200, "max_tokens": 57}, 400, "max_tokens", ["at most 56"]),
        ("/v1/completions", {"prompt": ["x"] * 300, "n": 2}, 400, "n", ["600", "at most 512", "--max-queued-requests"]),
        ("/v1/chat/completions", {"messages": []}, 400, "messages", ["at least 1"]),
        ("/v1/chat/completions", {"messages": [{"role": "bad", "content": "x"}]}, 400, "messages", ["role bad"]),
        ("/v1/chat/completions", {"messages": [{"role": "user"}]}, 400, "messages.0.content", ["missing"]),
        ("/tokenize", {}, 400, "prompt", ["either"]),
        ("/detokenize", {"tokens": [1000]}, 400, "tokens", ["1000"]),
        ("/v1/nothing", {}, 404, None, ["Not Found"]),
    ],
)
def test_errors_have_openai_shape(
    api: Api, path: str, body: dict[str, Any], status: int, param: str | None, words: list[str]
) -> None:
    response = api.client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert all(word in error["message"] for word in words), error


def test_a_body_that_is_not_json(api: Api) -> None:
    for content in (b"{", b"\xff\xfe", b"", b"[" * 30_000):
        response = api.client.post("/v1/completions", content=content)
        assert response.status_code == 400, content[:10]
        assert response.json()["error"]["message"].startswith("body: ")


def test_too_large_a_body(api: Api) -> None:
    response = api.client.post("/v1/completions", content=b" " * (65 << 20))
    assert response.status_code == 413
    assert api.complete().status_code == 200


def test_an_error_of_the_engine_reaches_the_client(api: Api) -> None:
    api.core.error = "the KV cache cannot hold this request"
    response = api.complete()
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the KV cache cannot hold this request"
    streamed = api.complete(stream=True).text
    assert json.loads(streamed.removeprefix("data: "))["error"]["code"] == "engine_error"


@pytest.mark.parametrize("code", [NOT_READY, DRAINING])
def test_a_core_that_takes_none_any_more_asks_the_client_to_come_again(api: Api, code: str) -> None:
    """Api had not heard of it."""
    api.core.error, api.core.error_code = "the engine takes no requests; try again", code
    response = api.complete()
    assert (response.status_code, response.json()["error"]["code"], response.headers["retry-after"]) == (503, code, "1")


def test_a_request_that_core_gives_up_may_come_again(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.core, "_tokens", lambda add: ([5], "abort"))
    response = api.complete()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_restarted")
