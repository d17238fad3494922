"""What of a body is parsed in one go, and how much is said of a bad one: bounded, for everybody waits meanwhile."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from fastapi import Request
from pydantic import BaseModel, ValidationError, field_validator
from starlette.types import Message
from tests.unit.server.api_process import Api

from semipd_engine.server.bodies import (
    BYTES_PER_TOKEN,
    MAX_BODY_BYTES,
    MAX_ELEMENTS,
    MAX_NAMES,
    Bodies,
    Counts,
    counted,
)
from semipd_engine.server.errors import ApiError
from semipd_engine.server.held_bodies import SMALL_BYTES
from semipd_engine.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

pytestmark = pytest.mark.unit

MOST = Counts(100, 100, 100)


def request_of(body: bytes) -> Request:
    parts = [body[at : at + (1 << 16)] for at in range(0, len(body), 1 << 16)] or [b""]

    async def receive() -> Message:
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    return Request({"type": "http", "headers": [], "method": "POST", "path": "/"}, receive)


@pytest.mark.parametrize(
    ("body", "counts"),
    [
        (b'{"a": [1, 2, 3], "b": {}}', (6, 2, 3)),
        (b'{"a,[{:": "x,\\\\\\",[{:", "b": "\\\\"}', (2, 2, 1)),
        (b'{"a": "never ends,,,', (1, 1, 1)),
        (b"", (0, 0, 0)),
    ],
)
def test_signs_are_counted_outside_of_strings(body: bytes, counts: tuple[int, ...]) -> None:
    assert counted(body, MOST) == counts


def test_more_strings_than_values_can_have_are_too_many() -> None:
    """Such a text is no JSON, and each string is a turn of the loop."""
    assert counted(b'"x"' * 203, MOST).values == 101


async def refusal(body: bytes, max_tokens: int = 512) -> ApiError:
    with pytest.raises(ApiError) as refused:
        await Bodies().read(request_of(body), CompletionRequest, max_tokens)
    return refused.value


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"metadata": {f"name {i}": 1 for i in range(MAX_NAMES)}}, f"more than {MAX_NAMES} names"),
        ({f"name {i}": 1 for i in range(MAX_NAMES)}, f"more than {MAX_NAMES} names"),
        ({"logit_bias": {str(i): 1 for i in range(MAX_NAMES)}}, f"more than {MAX_NAMES} names"),
        ({"prompt": [[5]] * MAX_NAMES}, f"more than {MAX_NAMES} objects and lists"),
        ({"prompt": [5] * (MAX_ELEMENTS + 512)}, f"more than {MAX_ELEMENTS + 512} values"),
        ({"prompt": "a" * MAX_BODY_BYTES}, f"larger than {MAX_BODY_BYTES} bytes"),
    ],
    ids=str,
)
async def test_what_would_take_long_to_parse_is_refused_before(fields: dict[str, Any], words: str) -> None:
    error = await refusal(json.dumps({"prompt": "x"} | fields).encode())
    assert (error.status, error.code) == (413, "body_too_large") and words in error.message


async def test_what_a_long_context_holds_may_be_sent() -> None:
    text = "a" * MAX_BODY_BYTES
    body = json.dumps({"prompt": text}).encode()
    found, size = await Bodies().read(request_of(body), CompletionRequest, len(body) // BYTES_PER_TOKEN + 1)
    assert found.prompt == [text] and size == len(body)
    signs = {"prompt": ",:[{" * 10 * MAX_NAMES}
    assert (await Bodies().read(request_of(json.dumps(signs).encode()), CompletionRequest, 512))[0].prompt
    messages = [{"role": "user", "content": "x"}] * 8192
    assert (await Bodies().read(request_of(json.dumps({"messages": messages}).encode()), ChatRequest, 512))[0]


async def test_everybody_has_a_turn_between_two_large_bodies() -> None:
    """Counted in turns of the loop: however many bodies are whole at the same time."""
    turns, parsed = 0, []

    class Seen(BaseModel):
        prompt: str

        @field_validator("prompt")
        @classmethod
        def see(cls, value: str) -> str:
            parsed.append(turns)
            return value

    async def others() -> None:
        nonlocal turns
        while len(parsed) < 8:
            turns += 1
            await asyncio.sleep(0)

    bodies = Bodies()
    large = [request_of(json.dumps({"prompt": "a" * SMALL_BYTES}).encode()) for _ in range(8)]
    await asyncio.gather(*(bodies.read(request, Seen, 512) for request in large), others())
    assert len(set(parsed)) == 8, parsed


BAD = [1, -1, "x", None, True, 0.5, [], {}, [1], {"a": 1}]


@pytest.mark.parametrize("model", [CompletionRequest, ChatRequest, TokenizeRequest, DetokenizeRequest])
def test_a_bad_body_has_a_handful_of_findings(model: type[BaseModel]) -> None:
    """Whatever is wrong with whichever of its fields: each finding is made into words."""
    seen = 0
    for name in [*model.model_fields, "unknown"]:
        for value in BAD:
            many = [[value] * 1000, {str(i): value for i in range(1000)}, {"include_usage": [value] * 1000}]
            for body in ({name: each} for each in many):
                try:
                    model.model_validate_json(json.dumps(body))
                except ValidationError as error:
                    seen += 1
                    assert error.error_count() <= 4, (name, value)
    assert seen


def test_the_answer_to_many_bad_items_is_short(api: Api) -> None:
    for path, body in (
        ("/detokenize", {"tokens": ["x"] * 100_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "documents": [1] * 100_000}),
        ("/v1/completions", {"prompt": "x", "guided_choice": [1] * 100_000}),
    ):
        refused = api.client.post(path, json=body)
        assert refused.status_code == 400 and len(refused.content) < 500, refused.text
