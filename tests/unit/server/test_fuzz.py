"""Whatever a client sends, the answer is never 500 and the process lives on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.server.api_process import Api

from semipd_engine.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest

pytestmark = pytest.mark.unit

PATHS = {
    "/v1/completions": CompletionRequest,
    "/v1/chat/completions": ChatRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 500),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["\ud800", "\x00", "user", "text", "auto", "<|im_end|>", "🙂"]),
)
KEYS = st.one_of(
    st.text(max_size=4), st.sampled_from(["role", "content", "type", "text", "function", "arguments", "messages", "1"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "bad"]), "content": VALUES}), max_size=3
)


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, Any]:
    """A body that is valid but for a few fields of any value: random JSON alone would stop at the first check."""
    path = draw(st.sampled_from(sorted(PATHS)))
    if draw(st.integers(0, 9)) == 0:
        return path, draw(VALUES)
    body: dict[str, Any] = {
        "prompt": "x",
        "tokens": [1],
        "max_tokens": 2,
        "messages": [{"role": "user", "content": "x"}],
    }
    if path == "/tokenize":
        body.pop(draw(st.sampled_from(["prompt", "messages"])))
    for name in draw(st.lists(st.sampled_from(sorted(PATHS[path].model_fields)), max_size=3)):
        body[name] = draw(MESSAGES | VALUES if name == "messages" else VALUES)
    return path, body


@dataclass
class Answers:
    """To mutated bodies: how often each status was one, and how long the slowest took."""

    statuses: Counter[int] = field(default_factory=Counter)
    longest_seconds: float = 0.0


def send_mutated(client: httpx.Client, bodies: int) -> Answers:
    """Send so many `calls`. None may fail."""
    answers = Answers()

    @given(call=calls())
    @settings(max_examples=bodies, suppress_health_check=list(HealthCheck))
    def send(call: tuple[str, Any]) -> None:
        path, body = call
        response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        assert response.status_code in (200, 400, 404), response.text
        if response.status_code != 200:
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        answers.statuses[response.status_code] += 1
        answers.longest_seconds = max(answers.longest_seconds, response.elapsed.total_seconds())

    send()
    return answers


def test_no_body_gives_500(shared_api: Api) -> None:
    assert len(send_mutated(shared_api.client, 300).statuses) > 1
    assert shared_api.process.poll() is None


@given(body=st.binary(max_size=200), path=st.sampled_from(sorted(PATHS)))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_no_bytes_give_500(shared_api: Api, body: bytes, path: str) -> None:
    assert httpx.post(shared_api.url + path, content=body).status_code == 400
