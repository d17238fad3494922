"""Whole and streamed answers of the real api process, against a stand-in core."""

from __future__ import annotations

import json

import pytest
from api_process import Api
from tokenizers import Tokenizer

pytestmark = pytest.mark.unit


def test_plain_and_streamed_answers_agree(api: Api, tokenizer: Tokenizer) -> None:
    plain = api.complete(max_tokens=20, return_token_ids=True).json()
    choice = plain["choices"][0]
    assert choice["text"] == tokenizer.decode(choice["token_ids"])
    assert choice["prompt_token_ids"] == tokenizer.encode("The quick").ids
    assert choice["finish_reason"] == "length"
    assert plain["usage"]["completion_tokens"] == 20 == len(choice["token_ids"])
    assert plain["usage"]["prompt_tokens_details"]["cached_tokens"] == len(choice["prompt_token_ids"]) // 2
    lines = api.complete(max_tokens=20, stream=True, return_token_ids=True).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert sum((chunk["choices"][0]["token_ids"] for chunk in chunks), []) == choice["token_ids"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "length"
