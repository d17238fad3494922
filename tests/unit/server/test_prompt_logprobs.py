"""Log-probabilities of prompts: an echo's and vLLM's, whole and streamed, and where their tokens begin."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
from tests.unit.server.api_process import Api
from tests.unit.server.test_completions import events
from tokenizers import Tokenizer

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_an_echo_has_the_prompts_logprobs(api: Api, tokenizer: Tokenizer, stream: bool, max_tokens: int) -> None:
    """As evaluation harnesses ask for them: token ids, greedy, one more token than they need."""
    ids = tokenizer.encode("The größe 🙂").ids
    for prompt in ("The größe 🙂", [ids, ids]):
        response = api.complete(prompt, echo=True, logprobs=2, max_tokens=max_tokens, stream=stream)
        parts: dict[int, list[Any]] = {}
        for chunk in events(response.text) if stream else [response.json()]:
            for choice in chunk["choices"]:
                parts.setdefault(choice["index"], []).append(choice)
        assert len(parts) == (1 if isinstance(prompt, str) else 2)
        for choices in parts.values():
            text = "".join(choice["text"] for choice in choices)
            found = {
                name: [*chain.from_iterable(choice["logprobs"][name] for choice in choices)]
                for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
            }
            assert text.startswith("The größe 🙂") and {len(each) for each in found.values()} == {len(ids) + max_tokens}
            assert found["token_logprobs"][: len(ids)] == [None, *(-i / 1000 for i in ids[1:])]
            assert found["top_logprobs"][0] is None and len(found["top_logprobs"][1]) == 3
            assert found["text_offset"][: len(ids)] == tokenizer_offsets(tokenizer, ids)
            for name, offset in zip(found["tokens"], found["text_offset"], strict=True):
                assert "\ufffd" in name or text[offset:].startswith(name)
    assert api.core.added[-1].sampling.prompt_logprobs == 2
    api.complete(echo=True)
    assert api.core.added[-1].sampling.prompt_logprobs == -1


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_alone_takes_a_prompt_of_the_models_length(api: Api, tokenizer: Tokenizer, stream: bool) -> None:
    text = " fox" * 300
    while len(tokenizer.encode(text).ids) > 256:
        text = text[:-1]
    ids = tokenizer.encode(text).ids
    assert len(ids) == 256
    prompts: list[Any] = [text, ids]
    for prompt in prompts:
        response = api.complete(prompt, echo=True, logprobs=0, max_tokens=0, stream=stream)
        (choice,) = (events(response.text) if stream else [response.json()])[0]["choices"]
        assert choice["text"] == text and choice["logprobs"]["token_logprobs"] == [None, *(-i / 1000 for i in ids[1:])]
        for more, fields in ((prompt + prompt[:1], {}), (prompt, {"max_tokens": 1}), (prompt, {"echo": False})):
            fields = {"echo": True, "max_tokens": 0} | fields
            refused = api.complete(more, **fields, stream=stream)
            assert refused.status_code == 400 and refused.json()["error"]["param"] in ("prompt", "max_tokens")
    assert {add.sampling.max_tokens for add in api.core.added} == {1} and len(api.core.added) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_choices_of_a_prompt_share_its_logprobs(api: Api, tokenizer: Tokenizer, stream: bool) -> None:
    """Each would be computed past the prefix cache; in a stream a choice may come before the first one."""
    response = api.complete(["The", "dog"], n=3, echo=True, logprobs=1, stream=stream)
    found: dict[int, list[Any]] = {}
    for chunk in events(response.text) if stream else [response.json()]:
        for choice in chunk["choices"]:
            found.setdefault(choice["index"], []).extend(choice["logprobs"]["token_logprobs"])
    for index in range(6):
        ids = tokenizer.encode(["The", "dog"][index // 3]).ids
        assert found[index][: len(ids)] == [None, *(-i / 1000 for i in ids[1:])]
    asked = [add.sampling.prompt_logprobs for add in api.core.added]
    assert asked == [1] * 6 if stream else asked == [1, -1, -1] * 2
    assert len(api.complete(n=2, prompt_logprobs=0).json()["choices"][1]["prompt_logprobs"]) > 1


def test_more_logprobs_of_prompts_than_an_answer_holds_are_refused(api: Api) -> None:
    for fields, param in (({"echo": True, "logprobs": 20}, "logprobs"), ({"prompt_logprobs": 20}, "prompt_logprobs")):
        refused = api.complete([5] * 200, n=100, **fields)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert not api.core.added


@pytest.mark.parametrize("skip", [False, True])
def test_offsets_of_a_prompt_with_special_tokens(api: Api, tokenizer: Tokenizer, skip: bool) -> None:
    text = "<|im_start|>The dog<|im_end|>"
    ids = tokenizer.encode(text).ids
    for prompt in (text, ids):
        choice = api.complete(prompt, echo=True, logprobs=0, max_tokens=0, skip_special_tokens=skip).json()["choices"][
            0
        ]
        shown = text if prompt is text or not skip else "The dog"
        assert choice["text"] == shown
        pairs = zip(choice["logprobs"]["tokens"], choice["logprobs"]["text_offset"], strict=True)
        assert all(shown[offset:].startswith(name) for name, offset in pairs if "|" not in name or shown is text)


def tokenizer_offsets(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Of tokens in their text: pieces of one character share its offset."""
    return [len(tokenizer.decode(ids[:i]).rstrip("\ufffd")) for i in range(len(ids))]


def test_prompt_logprobs_have_the_shape_of_vllm(api: Api, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("The dog").ids
    shown = api.complete("The dog", prompt_logprobs=1).json()["choices"][0]["prompt_logprobs"]
    assert shown[0] is None and len(shown) == len(ids)
    own = {"logprob": -ids[1] / 1000, "rank": ids[1], "decoded_token": tokenizer.decode([ids[1]])}
    best = {"logprob": 0.0, "rank": 1, "decoded_token": tokenizer.decode([ids[1] + 1])}
    assert shown[1] == {str(ids[1]): own, str(ids[1] + 1): best}
    chat = api.chat("x", prompt_logprobs=0).json()
    assert chat["prompt_logprobs"][0] is None and len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert "prompt_logprobs" not in api.chat("x").json()
    assert api.complete(prompt_logprobs=1, stream=True).json()["error"]["message"].startswith("prompt_logprobs: not in")
