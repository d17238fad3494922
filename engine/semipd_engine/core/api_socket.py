"""Core's end of ``<run_dir>/core.sock``: requests come in, tokens go out, the state is told to whoever listens.

Knows which connection a request belongs to; when a connection ends, its requests are aborted.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from semipd_engine.core.event_loop import Connection, EventLoop
from semipd_engine.core.request import Request
from semipd_engine.core.wishes import Wishes
from semipd_engine.ipc.requests import AbortRequest, AddRequest, ApiToCore, CoreState, Outputs, Rejected, RequestOutput
from semipd_engine.process import listen

CORE_SOCKET = "core.sock"
FREED_AT_ONCE = 50_000
"""KV blocks that requests of clients who left give back in one turn of the loop: everybody's tokens wait meanwhile."""
ABORT = 50
"""What a request costs besides, in blocks."""


class ApiClient:
    def __init__(self) -> None:
        self.connection: Connection[AddRequest | AbortRequest | Rejected] | None = None
        self.ids: dict[str, int] = {}
        """Key -> request id of the requests that are not finished."""


class ApiSocket:
    def __init__(
        self,
        loop: EventLoop,
        run_dir: Path,
        on_add: Callable[[Request, str], None],
        on_abort: Callable[[int, bool], int],
        on_rejected: Callable[[Rejected], None],
        wishes: Wishes,
        aggregated: Callable[[], bool],
    ) -> None:
        """`on_abort` returns how many blocks the request gave back. `aggregated`: do prompts share decode's steps?"""
        self._loop = loop
        self._on_add = on_add
        self._on_abort = on_abort
        self._on_rejected = on_rejected
        self._wishes = wishes
        self._aggregated = aggregated
        self._left: deque[tuple[int, bool]] = deque()
        """Requests that nobody waits for any more, and whether that is because their answer is complete."""
        self._clients: dict[int, ApiClient] = {}
        self._owners: dict[int, ApiClient] = {}
        self._next_id = itertools.count(1)
        self._state: CoreState | None = None
        self._listener = listen(run_dir / CORE_SOCKET)
        loop.watch(self._listener, 1, lambda _: self._accept())

    @property
    def connected(self) -> bool:
        return bool(self._clients)

    @property
    def behind(self) -> bool:
        """Is there work that nobody will wake the loop for?"""
        return bool(self._left)

    def tick(self) -> None:
        """Once in each turn of the loop."""
        work = 0
        while self._left and work < FREED_AT_ONCE:
            work += ABORT + self._on_abort(*self._left.popleft())

    def deliver(self, outputs: Iterable[tuple[Request, RequestOutput]]) -> None:
        """Send each output to the connection that asked, one message for each connection."""
        batches: dict[int, tuple[ApiClient, list[RequestOutput]]] = {}
        for request, output in outputs:
            owner = self._owners.get(request.id)
            if owner is None:
                continue
            batches.setdefault(id(owner), (owner, []))[1].append(output)
            if output.finish_reason is not None or output.error is not None:
                del self._owners[request.id]
                owner.ids.pop(request.key, None)
        for owner, batch in batches.values():
            if owner.connection is not None:
                owner.connection.send(Outputs(batch))

    def publish(self, state: CoreState) -> None:
        """Tell every api, and those that connect later."""
        self._state = state
        for client in list(self._clients.values()):
            if client.connection is not None:
                client.connection.send(state)

    def _accept(self) -> None:
        sock, _ = self._listener.accept()
        client = ApiClient()
        self._clients[id(client)] = client
        client.connection = Connection(
            self._loop,
            sock,
            ApiToCore,
            on_message=lambda message: self._on_message(client, message),
            on_close=lambda: self._on_close(client),
        )
        if self._state is not None:
            client.connection.send(self._state)

    def _on_message(self, client: ApiClient, message: AddRequest | AbortRequest | Rejected) -> None:
        if isinstance(message, Rejected):
            self._on_rejected(message)
            return
        if isinstance(message, AbortRequest):
            request_id = client.ids.get(message.key)
            if request_id is not None:
                self._left.append((request_id, message.ended))
            return
        request = Request(
            next(self._next_id),
            message.key,
            message.prompt_token_ids,
            message.sampling,
            message.received_at,
            self._wishes.patience(message.priority, message.ttft_target),
            self._wishes.gap(message.tpot_target, self._aggregated()),
            self._wishes.steps_alone,
        )
        if message.cache_salt:
            salt = message.cache_salt.encode(errors="surrogatepass")
            request.cache_salt = hashlib.blake2b(salt, digest_size=16, person=b"salt").digest()
        client.ids[message.key] = request.id
        self._owners[request.id] = client
        self._on_add(request, message.grammar)

    def _on_close(self, client: ApiClient) -> None:
        del self._clients[id(client)]
        for request_id in client.ids.values():
            del self._owners[request_id]
        self._left += ((request_id, False) for request_id in client.ids.values())
