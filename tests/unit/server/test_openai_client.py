"""Conformance: OpenAI's own client against the real api process."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from tests.unit.server.api_process import Api
from tokenizers import Tokenizer

pytestmark = pytest.mark.unit


@pytest.fixture
def client(api: Api) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["letters"]
    assert client.models.retrieve("letters").owned_by == "semipd"


def test_chat(client: openai.OpenAI, api: Api, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("naïve 🙂 fox").ids, 2]
    api.core.answer = lambda add: ids
    answer = client.chat.completions.create(
        model="letters", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].message.content == "naïve 🙂 fox"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage and answer.usage.completion_tokens == len(ids)
    assert answer.usage.prompt_tokens_details and answer.usage.prompt_tokens_details.cached_tokens
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.content and len(logprobs.content[0].top_logprobs) == 2


def test_chat_stream(client: openai.OpenAI, api: Api, tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("naïve 🙂 fox").ids, 2]
    api.core.answer = lambda add: ids
    stream = client.chat.completions.create(
        model="letters",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        n=2,
        stream_options={"include_usage": True},
    )
    texts, usage = ["", ""], None
    roles: list[str | None] = [None, None]
    reasons: list[str | None] = [None, None]
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.role:
                assert texts[choice.index] == "" and roles[choice.index] is None
                roles[choice.index] = choice.delta.role
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == ["naïve 🙂 fox"] * 2
    assert (roles, reasons) == (["assistant"] * 2, ["stop"] * 2)
    assert usage and usage.completion_tokens == 2 * len(ids)


def test_completion_stream(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="letters", prompt="The", max_tokens=12, logprobs=1)
    stream = client.completions.create(model="letters", prompt="The", max_tokens=12, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == plain.choices[0].text
    assert (
        plain.choices[0].logprobs and plain.choices[0].logprobs.tokens and len(plain.choices[0].logprobs.tokens) == 12
    )


def test_errors_become_the_clients_exceptions(client: openai.OpenAI, api: Api) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as bad:
        client.completions.create(model="letters", prompt="x", temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.completions.create(model="gpt-9", prompt="x")
    api.core.error = "no"
    with pytest.raises(openai.APIError, match="no"):
        list(client.completions.create(model="letters", prompt="x", stream=True))
