"""Request fields to `Sampling`: precedence, ranges, the model's limits, and what a refusal says."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from semipd_engine.cards.model_card import ModelCard, SamplingDefaults
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.server.errors import ApiError, from_validation
from semipd_engine.server.params import resolve
from semipd_engine.server.protocol import ChatRequest, CompletionRequest

pytestmark = pytest.mark.unit

PLAIN = ModelCard("m", 100, 64, (2, 3), SamplingDefaults())
TUNED = ModelCard(
    "m", 100, 64, (2,), SamplingDefaults(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1, max_new_tokens=9)
)


def completion(card: ModelCard = PLAIN, prompt_tokens: int = 4, **fields: Any) -> Sampling:
    return resolve(CompletionRequest.model_validate({"prompt": "x"} | fields), prompt_tokens, card, 64)


def chat(card: ModelCard = PLAIN, prompt_tokens: int = 4, **fields: Any) -> Sampling:
    body = {"messages": [{"role": "user", "content": "x"}]} | fields
    return resolve(ChatRequest.model_validate(body), prompt_tokens, card, 64)


def test_silent_request_takes_neutral_values() -> None:
    sampling = completion()
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1.0, 1.0, 0, 0.0)
    assert (sampling.repetition_penalty, sampling.logprobs, sampling.max_tokens) == (1.0, -1, 16)
    assert sampling.stop_token_ids == (2, 3)
    assert sampling.seed != completion().seed
    assert completion(seed=-1).seed != completion(seed=-1).seed  # vLLM's word for none
    assert completion(seed=-2).seed == completion(seed=-2).seed


def test_a_completion_has_sixteen_tokens_and_a_chat_what_fits() -> None:
    assert (completion().max_tokens, completion(max_tokens=None).max_tokens, chat().max_tokens) == (16, 16, 60)
    assert completion(prompt_tokens=60).max_tokens == 4
    assert completion(min_tokens=30).max_tokens == 30


def test_generation_config_fills_what_the_request_leaves_open() -> None:
    sampling = completion(TUNED)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (0.6, 0.9, 20, 9)
    assert sampling.repetition_penalty == 1.1
    sampling = completion(TUNED, temperature=1.5, top_p=1, top_k=-1, max_tokens=30, repetition_penalty=1)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.max_tokens) == (1.5, 1.0, 0, 30)
    assert sampling.repetition_penalty == 1


def test_zero_temperature_is_greedy_and_switches_filters_off() -> None:
    sampling = completion(TUNED, temperature=0, min_p=0.3)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 1.0, 0, 0.0)


def test_null_means_absent() -> None:
    fields = ("temperature", "top_p", "n", "stop", "seed", "logit_bias", "max_tokens", "stream", "logprobs")
    assert completion(seed=1) == completion(**dict.fromkeys(fields) | {"seed": 1})


def test_stop_ids_are_complete() -> None:
    assert completion(stop_token_ids=[7, 3]).stop_token_ids == (7, 3, 2)
    assert completion(stop_token_ids=[7], ignore_eos=True).stop_token_ids == (7,)
    assert completion(ignore_eos=True).stop_token_ids == ()


def test_logprobs_of_both_apis() -> None:
    assert [completion(logprobs=k).logprobs for k in (0, 5)] == [0, 5]
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=True, top_logprobs=4).logprobs == 4
    assert chat(logprobs=False).logprobs == -1


def test_max_completion_tokens_wins() -> None:
    assert chat(max_tokens=5, max_completion_tokens=6).max_tokens == 6


def test_the_whole_room_may_be_asked_for() -> None:
    assert completion(prompt_tokens=63, max_tokens=1).max_tokens == 1
    assert completion(prompt_tokens=4, max_tokens=60).max_tokens == 60


def test_a_prompt_that_is_scored_alone_may_have_the_whole_length() -> None:
    for fields in ({"logprobs": 1}, {"prompt_logprobs": 0}, {}):
        assert completion(prompt_tokens=64, echo=True, max_tokens=0, **fields).max_tokens == 1
    with pytest.raises(ApiError) as refused:
        completion(prompt_tokens=65, echo=True, max_tokens=0)
    assert (refused.value.param, refused.value.code) == ("prompt", "context_length_exceeded")
    assert "65 tokens" in refused.value.message and "at most 64" in refused.value.message
    assert "one token" not in refused.value.message


@pytest.mark.parametrize(
    ("prompt_tokens", "fields", "param", "words"),
    [
        (64, {}, "prompt", ["64 tokens", "at most 64", "one token is output", "shorten"]),
        (64, {"echo": True, "max_tokens": 1, "logprobs": 0}, "prompt", ["64 tokens", "one token is output"]),
        (64, {"prompt_logprobs": 0, "max_tokens": 1}, "prompt", ["64 tokens", "one token is output"]),
        (60, {"max_tokens": 5}, "max_tokens", ["5", "60 tokens", "at most 4"]),
        (4, {"max_tokens": 3, "min_tokens": 4}, "min_tokens", ["4", "3", "lower"]),
        (4, {"max_tokens": 0, "echo": True, "min_tokens": 1}, "min_tokens", ["1", "max_tokens (0)", "lower"]),
        (4, {"logit_bias": {"100": 1}}, "logit_bias", ["100", "0 to 99"]),
        (4, {"stop_token_ids": [100]}, "stop_token_ids", ["100", "0 to 99"]),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    prompt_tokens: int, fields: dict[str, Any], param: str, words: list[str]
) -> None:
    with pytest.raises(ApiError) as refused:
        completion(prompt_tokens=prompt_tokens, **fields)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert all(word in refused.value.message for word in words), refused.value.message


BAD = [
    ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    ({"temperature": "hot"}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"top_k": -2}, "top_k", "-1"),
    ({"min_p": 2}, "min_p", "less than or equal to 1"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"n": 1000}, "n", "128"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"presence_penalty": 3}, "presence_penalty", "less than or equal to 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "greater than 0"),
    ({"seed": 2**70}, "seed", ""),
    ({"stop": ["a", ""]}, "stop", "leave it out"),
    ({"stop": 5}, "stop", "list of strings"),
    ({"stop": ["s"] * 257}, "stop", "at most 256"),
    ({"stop": ["s" * 9_000, "t" * 9_000]}, "stop", "shorten"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "token ids"),
    ({"logit_bias": {"1": 101}}, "logit_bias", "[-100, 100]"),
    ({"logit_bias": dict.fromkeys(map(str, range(1025)), 1)}, "logit_bias", "at most 1024"),
    ({"logprobs": 21}, "logprobs", "20"),
    ({"stop_token_ids": [-1]}, "stop_token_ids", "greater than or equal to 0"),
    ({"prompt": []}, "prompt", "none empty"),
    ({"prompt": [[]]}, "prompt", "none empty"),
    ({"prompt": [1, "a"]}, "prompt", "must be a string"),
    ({"prompt": None}, "prompt", "must be a string"),
    ({"prompt": [True]}, "prompt", "must be a string"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
]


@pytest.mark.parametrize(("fields", "param", "words"), BAD, ids=[str(bad[0]) for bad in BAD])
def test_a_refusal_names_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ValidationError) as refused:
        CompletionRequest.model_validate({"prompt": "x"} | fields)
    error = from_validation(refused.value)
    assert (error.status, error.param) == (400, param)
    assert error.message.startswith(param) and words in error.message


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ("", [""])],
)
def test_prompts_have_four_forms(prompt: Any, parsed: Any) -> None:
    assert CompletionRequest.model_validate({"prompt": prompt}).prompt == parsed
