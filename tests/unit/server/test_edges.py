"""Edges of sizes and of texts: bodies that cost much before they run, offsets, echoes, OpenAI's defaults."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send
from tests.unit.server.api_process import Api
from tests.unit.server.test_completions import events, say
from tests.unit.server.test_connections import half_closed
from tokenizers import Tokenizer

from e2e.lib.waiting import wait_until
from semipd_engine.cards.tokenizer import CHARACTERS_AT_ONCE, TextTooLong
from semipd_engine.contract import EngineOptions, EngineState
from semipd_engine.ipc.requests import AddRequest, ApiToCore, CoreState
from semipd_engine.ipc.tokens import Sampling
from semipd_engine.server import handlers
from semipd_engine.server.encoding import INLINE_BYTES, LARGE_BYTES
from semipd_engine.server.errors import ApiError
from semipd_engine.server.generation import TOKENS_AT_ONCE, Generation
from semipd_engine.server.headers import RequestIds
from semipd_engine.server.sequence import TextOptions
from semipd_engine.server.service import Service

pytestmark = pytest.mark.unit


# ---- sizes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(EngineOptions(model=model_dir, run_dir=tmp_path_factory.mktemp("run")))
    yield service
    service.close()


async def test_nobody_waits_for_work_that_takes_long(service: Service) -> None:
    """A huge text and a long one stand still; each is alone with that, and short texts pass them all."""
    go, begun = threading.Event(), list[str]()

    def work(name: str) -> str:
        begun.append(name)
        assert go.wait(60)
        return name

    async def connected() -> Message:
        await asyncio.sleep(3600)
        return {}

    long = asyncio.create_task(service.encoding.in_turn(INLINE_BYTES + 1, lambda: work("long"), connected))
    huge = asyncio.create_task(service.encoding.in_turn(LARGE_BYTES + 1, lambda: work("huge"), connected))
    await asyncio.to_thread(wait_until, lambda: len(begun) == 2)
    assert await service.encoding.in_turn(INLINE_BYTES, lambda: "short", connected) == "short"

    async def leave() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await service.encoding.in_turn(INLINE_BYTES + 1, lambda: begun.append("nobody waits for it"), leave)
    go.set()
    assert await asyncio.gather(long, huge) == ["long", "huge"]
    assert await service.encoding.in_turn(INLINE_BYTES + 1, lambda: "next", connected) == "next"
    assert len(begun) == 2


async def test_a_request_whose_time_is_over_waits_for_no_work_of_another(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread stands still at work of others: whose turn does not come in its time has 504, and is never begun."""
    go, begun = threading.Event(), list[str]()

    def work(name: str) -> str:
        begun.append(name)
        assert go.wait(60)
        return ""

    async def connected() -> Message:
        await asyncio.sleep(3600)
        return {}

    body = json.dumps({"prompt": "The " * INLINE_BYTES}).encode()
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else await connected()

    headers = [(b"x-request-timeout-ms", b"20")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    monkeypatch.setattr(service.encoding, "ids", lambda *_: work("its own"))
    service.core_state(CoreState(ready=True, state=EngineState.READY, admitting=True, max_model_len=512))
    others = asyncio.create_task(service.encoding.in_turn(INLINE_BYTES + 1, lambda: work("others"), connected))
    await asyncio.to_thread(wait_until, lambda: begun == ["others"])
    with pytest.raises(ApiError) as refused:
        await RequestIds(partial(_handled, service))(scope, receive, _unsent)
    assert (refused.value.status, refused.value.code) == (504, "deadline_exceeded")
    assert not service.generations.open and not service.generations.by_key
    go.set()
    await others
    await service.encoding.in_turn(INLINE_BYTES + 1, lambda: "next", connected)
    assert "its own" not in begun


async def _handled(service: Service, scope: Scope, receive: Receive, send: Send) -> None:
    await handlers.completions(service, Request(scope, receive))


async def _unsent(_: Message) -> None: ...


async def test_others_have_their_turns_while_copies_of_a_long_prompt_are_sent(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = turn = 0

    def send(message: ApiToCore) -> None:
        nonlocal most, turn
        if isinstance(message, AddRequest):
            turn += len(message.prompt_token_ids)
            most = max(most, turn)

    async def other() -> None:
        nonlocal turn
        while True:
            turn = 0
            await asyncio.sleep(0)

    monkeypatch.setattr(service.generations, "send", send)
    prompt = list(range(1 << 17))
    others = asyncio.create_task(other())
    with Generation(service.generations, "x", [len(prompt)], 64, 0.0) as generation:
        await generation.start([(prompt, Sampling())], 64, TextOptions())
        assert len(generation.sequences) == 64 and most <= TOKENS_AT_ONCE + len(prompt)
    with Generation(service.generations, "x", [len(prompt)], 64, 0.0) as generation:
        asyncio.get_running_loop().call_soon(service.generations.lost)
        with pytest.raises(ApiError) as lost:
            await generation.start([(prompt, Sampling())], 64, TextOptions())
        assert lost.value.code == "engine_restarted" and len(generation.sequences) < 64
    others.cancel()
    assert not service.generations.by_key and not service.generations.in_work


def test_of_a_huge_text_little_is_tokenised(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenised = list[int]()
    encode = service.tokenizer._encode

    def counted(text: str, special: bool) -> list[int]:
        tokenised.append(len(text))
        return encode(text, special)

    monkeypatch.setattr(service.tokenizer, "_encode", counted)
    with pytest.raises(TextTooLong):
        service.tokenizer.encode("lorem ipsum " * 300_000, True, 256)
    assert sum(tokenised) <= 32 * CHARACTERS_AT_ONCE * 256


def test_a_huge_text_is_refused(api: Api) -> None:
    refused = api.client.post("/v1/completions", content=json.dumps({"prompt": "lorem ipsum " * 300_000}).encode())
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    chat = api.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "dog " * 100_000}]})
    assert (chat.status_code, chat.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_the_lengths_of_texts_near_the_limit_are_exact(api: Api, tokenizer: Tokenizer) -> None:
    """What is refused early is longer than the model takes; what is not is tokenised to its end."""
    for text in ("a" * 4000, "jumps over " * 40, " " * 9000, "🙂" * 60):
        tokens = len(tokenizer.encode(text).ids)
        answer = api.complete(text, max_tokens=1)
        assert answer.status_code == (200 if tokens < 256 else 400), (text[:8], tokens)


def test_many_values_are_refused_before_they_are_parsed(api: Api) -> None:
    messages = [{"role": "user", "content": ""}] * 300_000
    refused = api.client.post("/v1/chat/completions", json={"messages": messages})
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
    refused = api.client.post("/v1/chat/completions", json={"messages": messages[:10_000]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    refused = api.client.post("/v1/completions", json={"prompt": [5] * 200_000})
    assert refused.status_code == 413
    assert api.complete("a,[{" * 50_000).json()["error"]["code"] == "context_length_exceeded", "no values: one text"


def test_more_sequences_than_the_queue_holds_are_refused(api: Api) -> None:
    refused = api.complete(["The"] * 100, n=100)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    assert not api.core.added


def test_a_client_that_leaves_takes_all_its_sequences_along(api: Api) -> None:
    api.core.hold = True
    client = half_closed(api, "/v1/completions", {"prompt": ["The"] * 5, "n": 100})
    wait_until(lambda: len(api.core.added) == 500)
    client.close()
    wait_until(lambda: len(set(api.core.aborted)) == 500)
    api.core.hold = False
    assert api.complete().status_code == 200


# ---- texts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{"logprobs": 1}, {"logprobs": 1, "return_tokens_as_token_ids": True}])
@pytest.mark.parametrize("stream", [False, True])
def test_offsets_index_the_text_that_is_sent(
    api: Api, tokenizer: Tokenizer, fields: dict[str, Any], stream: bool
) -> None:
    ids = say(api, tokenizer, "🤗 cat", end=None)
    response = api.complete(max_tokens=len(ids), stream=stream, **fields)
    parts = [chunk["choices"][0] for chunk in (events(response.text) if stream else [response.json()])]
    assert "".join(part["text"] for part in parts) == "🤗 cat"
    offsets = [*chain.from_iterable(part["logprobs"]["text_offset"] for part in parts)]
    pieces = [tokenizer.decode([token_id]) for token_id in ids]
    first = pieces.index(" ") if " " in pieces else next(i for i, piece in enumerate(pieces) if piece.startswith(" "))
    assert first > 1 and offsets[:first] == [0] * first, "pieces of the emoji"
    assert offsets[first:] == [1 + sum(map(len, pieces[first:i])) for i in range(first, len(ids))]


def test_all_likely_tokens_are_told_apart(api: Api, tokenizer: Tokenizer) -> None:
    """Byte-level pieces of characters all decode to U+FFFD."""
    lone = [i for i in range(3, 380) if tokenizer.decode([i]) == "\ufffd"]
    start = next(i for i in lone if i + 1 in lone and i + 2 in lone)
    api.core.answer = lambda add: [start] * 4
    choice = api.complete(max_tokens=4, logprobs=20).json()["choices"][0]["logprobs"]
    for token, top in zip(choice["tokens"], choice["top_logprobs"], strict=True):
        assert len(top) == 20 and top[token] == -start / 1000
        assert sorted(top.values(), reverse=True) == [-(start + i) / 1000 for i in range(20)]
        assert any(name.startswith("bytes:\\x") for name in top)


def test_a_long_stop_string_holds_nothing_back(api: Api, tokenizer: Tokenizer) -> None:
    """Each token's text comes before the next token is made, but for an end with which the stop string may begin."""
    ids = say(api, tokenizer, " brown fox jumps over the lazy dog" * 6, end=None)
    api.core.steps = asyncio.Semaphore(0)
    asked = {"prompt": "The", "max_tokens": len(ids), "stream": True, "stop": ["x" * 200]}
    with api.client.stream("POST", "/v1/completions", json=asked) as response:
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line)
        shown = ""
        for made in range(1, len(ids) + 1):
            api.core.step()
            shown += json.loads(next(lines))["choices"][0]["text"]
            assert shown == tokenizer.decode(ids[:made]).removesuffix("x")


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_stay_in_the_text_that_a_stop_string_cut(api: Api, tokenizer: Tokenizer, stream: bool) -> None:
    """What a stop string took is at the text's end; what it only might have taken is where it is."""
    ids = tokenizer.encode("ab7, 8").ids
    api.core.answer, api.core.seconds_per_token = lambda _: ids, 0.01 * stream
    for stop, whole in (("7, 8", "ab"), ("7, 9", "ab7, 8"), (", ", "ab7")):
        response = api.complete(max_tokens=len(ids), stop=stop, logprobs=1, stream=stream, return_token_ids=True)
        answers = events(response.text) if stream else [response.json()]
        parts = [choice for answer in answers for choice in answer["choices"]]
        offsets = [*chain.from_iterable(part["logprobs"]["text_offset"] for part in parts)]
        text, found = "".join(part["text"] for part in parts), [*chain.from_iterable(p["token_ids"] for p in parts)]
        assert text == whole and found == ids[: len(found)] and len(found) == len(offsets)
        pieces = [tokenizer.decode([each]) for each in found]
        assert offsets == [min(sum(map(len, pieces[:i])), len(text)) for i in range(len(found))]


@pytest.mark.parametrize("stop", [0, False, {}, 5, [None]])
def test_what_is_no_stop_string_is_refused(api: Api, stop: Any) -> None:
    refused = api.complete(stop=stop)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_first(api: Api, tokenizer: Tokenizer, stream: bool) -> None:
    ids = tokenizer.encode("The dog").ids
    for prompt in ("The dog", ids):
        bare = api.complete(prompt, n=2, seed=1).json()["choices"]
        response = api.complete(prompt, n=2, seed=1, echo=True, stream=stream)
        texts = dict.fromkeys(range(2), "")
        for chunk in events(response.text) if stream else [response.json()]:
            for choice in chunk["choices"]:
                texts[choice["index"]] += choice["text"]
        assert texts == {choice["index"]: "The dog" + choice["text"] for choice in bare}


@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_alone_has_no_output(api: Api, stream: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if stream else {}
    response = api.complete("The dog", max_tokens=0, echo=True, stream=stream, **options)
    chunks = events(response.text) if stream else [response.json()]
    (choice,) = chunks[0]["choices"]
    assert (choice["text"], choice["finish_reason"]) == ("The dog", "length")
    assert chunks[-1]["usage"]["completion_tokens"] == 0


def test_sixteen_tokens_unless_asked_for_more(api: Api) -> None:
    answer = api.client.post("/v1/completions", json={"prompt": "The"}).json()
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (16, "length")


def test_chat_takes_what_openais_takes(api: Api) -> None:
    """A developer speaks for the system, null is no content, parts are joined."""
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None},
    ]
    rendered = api.client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    plain = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": ""},
    ]
    assert rendered == api.client.post("/tokenize", json={"messages": plain}).json()["tokens"]
