"""Reading bodies and sending answers on one HTTP connection, and noticing that the client left. Knows no API shapes."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from semipd_engine.server.errors import ApiError, from_validation
from semipd_engine.server.json_text import dump

MAX_BODY_BYTES = 64 << 20
MAX_ELEMENTS = 1 << 17
"""Values of a body, most of them token ids: what is parsed in one go keeps everybody else waiting."""

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


def most_values(max_tokens: int) -> int:
    """Of one body: so many as two of the longest prompts have, where these are long."""
    return max(MAX_ELEMENTS, 2 * max_tokens)


async def read_body(request: Request, model: type[Model], max_tokens: int = 0) -> tuple[Model, int]:
    """The request's body as `model`, and its size in bytes. Raises `ApiError` (400 with the fields at fault, 413,
    415).

    A body may have `most_values` of the `max_tokens` of the model's longest prompt.
    """
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise ApiError(
            415,
            f"content-encoding: {encoding!r} is not read here; send the body as it is",
            param="content-encoding",
            code="unsupported_encoding",
        )
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"body: larger than {MAX_BODY_BYTES >> 20} MiB; send less", code="body_too_large")
    most = most_values(max_tokens)
    if sum(map(body.count, (b",", b"[", b"{"))) > most:  # an upper bound: text has commas, too
        found = await asyncio.get_running_loop().run_in_executor(None, elements, bytes(body), most)
        if found > most:
            raise ApiError(413, f"body: has more than {most} values; send less in one request", code="body_too_large")
    try:
        return model.model_validate_json(bytes(body).removeprefix(codecs.BOM_UTF8)), len(body)
    except ValidationError as error:
        raise from_validation(error) from None


def elements(body: bytes, most: int) -> int:
    """Commas and opening brackets of JSON text outside its strings, counted until there are more than `most`.

    JSON has at most two strings for each of them, so a text with more strings is none, and counts as too many: the work
    is bounded whatever the bytes.
    """
    body = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # a quotation mark that is left begins or ends a string
    count = at = strings = 0
    while count <= most:
        quote = body.find(b'"', at)
        end = quote if quote >= 0 else len(body)
        count += body.count(b",", at, end) + body.count(b"[", at, end) + body.count(b"{", at, end)
        if quote < 0:
            break
        strings += 1
        if strings > 2 * most + 2:
            return most + 1
        at = (body.find(b'"', quote + 1) + 1) or len(body)
    return count


def json_response(value: Any, status: int = 200) -> Response:
    """`value` as JSON; bytes are JSON already."""
    content = value if isinstance(value, bytes) else dump(value)
    return Response(content, status, media_type="application/json")


def error_response(error: ApiError) -> Response:
    return Response(error.body(), error.status, error.headers())


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; cancel it and raise `ClientDisconnect` when the client leaves. The body must have been read."""

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        for pending in (task, watch):
            pending.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


class EventStream(Response):
    """Server-sent events. `finished` runs on every path: also when the client left before the first event."""

    def __init__(self, events: AsyncIterator[bytes], finished: Callable[[], None]) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._events = events
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._send(send))
        except ClientDisconnect:
            pass
        finally:
            self._finished()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else dump(value)) + b"\n\n"
