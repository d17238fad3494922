"""Bodies of all requests together, and texts that are only tokenised: bounded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from starlette.types import Message, Receive, Scope, Send
from tests.unit.server.api_process import Api

from e2e.lib.waiting import wait_until_async
from semipd_engine.contract import EngineOptions
from semipd_engine.server.bodies import most_values
from semipd_engine.server.errors import ApiError
from semipd_engine.server.held_bodies import SMALL_BYTES, HeldBodies
from semipd_engine.server.service import Service

pytestmark = pytest.mark.unit


class Answering:
    """An application that reads a body and answers once it may."""

    def __init__(self) -> None:
        self.read = 0
        self.may = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            more = (await receive())["more_body"]
        self.read += 1
        await self.may.wait()


async def ask(app: HeldBodies, *pieces: int) -> None:
    left = list(pieces)

    async def receive() -> Message:
        size = left.pop(0)
        return {"type": "http.request", "body": bytes(size), "more_body": bool(left)}

    async def send(_: Message) -> None: ...

    await app({"type": "http"}, receive, send)


async def test_bodies_are_held_up_to_a_sum_and_small_ones_always() -> None:
    inner = Answering()
    app = HeldBodies(inner, most=4 * SMALL_BYTES)
    held = [asyncio.create_task(ask(app, SMALL_BYTES, SMALL_BYTES)) for _ in range(2)]
    await wait_until_async(lambda: inner.read == 2, every_s=0)
    assert app.held == 4 * SMALL_BYTES
    with pytest.raises(ApiError) as refused:
        await ask(app, SMALL_BYTES, 1)
    assert (refused.value.status, refused.value.retry_after) == (429, 1)
    held.append(asyncio.create_task(ask(app, SMALL_BYTES // 2, SMALL_BYTES // 2)))
    await wait_until_async(lambda: inner.read == 3, every_s=0)
    inner.may.set()
    await asyncio.gather(*held)
    assert app.held == 0
    await ask(app, 2 * SMALL_BYTES)


async def test_whose_request_is_cancelled_gives_back_what_it_held() -> None:
    inner = Answering()
    app = HeldBodies(inner, most=4 * SMALL_BYTES)
    asked = asyncio.create_task(ask(app, 3 * SMALL_BYTES))
    await wait_until_async(lambda: inner.read == 1, every_s=0)
    assert app.held == 3 * SMALL_BYTES
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert app.held == 0


@pytest.mark.parametrize("text", ["Ω" * 100_000, "Ω " * 500_000])
@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_text_of_more_tokens_than_detokenize_takes_is_refused(api: Api, text: str, field: str) -> None:
    asked = {"prompt": text, "messages": [{"role": "user", "content": text}]}
    refused = api.client.post("/tokenize", json={field: asked[field]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (413, field)
    assert str(most_values(256)) in refused.json()["error"]["message"]


def test_a_text_longer_than_the_model_takes_is_counted(api: Api) -> None:
    answer = api.client.post("/tokenize", json={"prompt": "Ω" * 10_000}).json()
    assert answer["count"] == len(answer["tokens"]) > 10 * answer["max_model_len"]
    back = api.client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "Ω" * 10_000}


def test_texts_wait_for_a_place_of_their_own(model_dir: Path, tmp_path: Path) -> None:
    service = Service(EngineOptions(model=model_dir, run_dir=tmp_path, max_queued_requests=2))
    with service.text_place(), service.text_place():
        with pytest.raises(ApiError) as refused, service.text_place():
            pass
        assert (refused.value.status, refused.value.code) == (429, "queue_full")
    with service.text_place():
        pass
    service.close()
