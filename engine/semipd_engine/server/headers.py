"""Headers that every answer carries: the request's id, the connection's end, and what a handler adds to them. Knows no
routes."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semipd_engine.server.protocol import REQUEST_ID

REQUEST_ID_HEADER = b"x-request-id"
UNKNOWN_FIELDS_HEADER = b"x-semipd-unknown-fields"
LAST_ANSWER = (b"connection", b"close")
_ID = "semipd.request_id"
_ADDED = "semipd.headers"

log = logging.getLogger(__name__)


class RequestIds:
    """Takes the client's ``x-request-id``, or makes one, echoes it, and logs it with what went wrong.

    While the server is `leaving`, an answer is the last one of its connection, and says so (RFC 9112, 9.6): a client
    that keeps its connections comes back by a new one, to another replica.
    """

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool] = lambda: False) -> None:
        self._app = app
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[_ID] = id_of_request(scope["headers"])
        added: list[tuple[bytes, bytes]] = [(REQUEST_ID_HEADER, scope[_ID].encode())]
        scope[_ADDED] = added

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                last = (LAST_ANSWER,) if self._leaving() else ()
                message["headers"] = [*message.get("headers", ()), *added, *last]
                status = message["status"]
                level = logging.WARNING if status >= 500 else logging.DEBUG
                log.log(level, "request %s: %s %s: %d", scope[_ID], scope["method"], scope["path"], status)
            await send(message)

        await self._app(scope, receive, with_headers)


def id_of_request(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's, or a new one in place of one that no header may carry on, or no log."""
    given = dict(headers).get(REQUEST_ID_HEADER, b"").decode("latin-1")
    return given if re.fullmatch(REQUEST_ID, given) else uuid.uuid4().hex


def request_id(scope: Scope) -> str:
    """The client's id of this request, or the one that it was given."""
    return str(scope[_ID])


def add_header(scope: Scope, name: bytes, value: str) -> None:
    """Put a header on the answer, which has not begun."""
    scope[_ADDED].append((name, value.encode("ascii")))
