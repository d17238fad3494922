"""Sending answers on one HTTP connection, and noticing that the client left. Knows no API shapes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from semipd_engine.server.errors import ApiError
from semipd_engine.server.json_text import dump

T = TypeVar("T")


KEY = "semipd.key"
"""In a request's scope: the API key that came with it, where there are keys."""


def client_of(scope: Scope) -> str:
    """Who asks: an API key, where there are keys, and the address that it is used from."""
    host, _ = scope.get("client") or ("", 0)
    return f"{scope.get(KEY, '')} {host}"


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
