"""A bound on what the bodies of all requests hold together: each may be large, a thousand of them are not held at once.

A body counts from its first byte to its answer's end, for its prompts are kept as long. Knows no routes and no shapes.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from semipd_engine.server.errors import queue_full

MAX_HELD_BYTES = 256 << 20
SMALL_BYTES = 1 << 16
"""Bodies up to this size are not counted, and so never refused for the others'."""


class HeldBodies:
    """Refuses (429) the request whose next bytes would be too many, where its handler reads them."""

    def __init__(self, app: ASGIApp, most: int = MAX_HELD_BYTES) -> None:
        self._app = app
        self._most = most
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size = counted = 0

        async def counting() -> Message:
            nonlocal size, counted
            message = await receive()
            size += len(message.get("body", b""))
            if size > max(counted, SMALL_BYTES):
                self.held += size - counted
                counted = size
                if self.held > self._most:
                    held = f"the bodies of all requests have more than {self._most >> 20} MiB"
                    raise queue_full(f"body: {held}; send it again later")
            return message

        try:
            await self._app(scope, counting, send)
        finally:
            self.held -= counted
