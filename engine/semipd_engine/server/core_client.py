"""The api's end of the socket to core: connects, reconnects, sends and receives. Knows no requests and no HTTP.

Core speaks every second. One that has stopped speaking is as good as dead to those who wait for its tokens: the
connection is given up, and a core that goes on later finds it closed and forgets its requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

from semipd_engine.ipc import frames
from semipd_engine.ipc.requests import ApiToCore, CoreState, CoreToApi, Outputs

CORE_SOCKET = "core.sock"
"""File name of core's socket inside the run directory."""
RETRY_SECONDS = 0.05
READ_BYTES = 1 << 16
SILENCE_SECONDS = 10.0
"""Core has been silent for so long: its connection is lost. Longer than any pause of a core that works."""
LOOKS = 2

log = logging.getLogger(__name__)


class Listener(Protocol):
    """Called on the event loop, in the order of arrival."""

    def core_state(self, state: CoreState) -> None: ...

    def core_outputs(self, outputs: Outputs) -> None: ...

    def core_lost(self) -> None: ...


class CoreClient:
    """One connection at a time. Losing it loses all requests sent over it: core aborts them, the listener is told."""

    def __init__(self, run_dir: Path, listener: Listener) -> None:
        self._path = run_dir / CORE_SOCKET
        self._listener = listener
        self._writer: asyncio.StreamWriter | None = None

    @property
    def connected(self) -> bool:
        return self._writer is not None

    def send(self, message: ApiToCore) -> None:
        """Queue a message. Without a connection it is dropped: the listener has heard, or will hear, `core_lost`."""
        if self._writer is not None:
            self._writer.write(frames.encode(message))

    async def run(self) -> None:
        """Serve the connection for ever. Connected means that core has sent its first state."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self._path))
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            try:
                await self._read(reader, writer)
            except (OSError, frames.FrameError) as error:
                log.warning("connection to the scheduler: %s", error)
            finally:
                writer.close()
                if self._writer is not None:
                    self._writer = None
                    self._listener.core_lost()
            await asyncio.sleep(RETRY_SECONDS)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder: frames.Decoder[CoreToApi] = frames.Decoder(CoreToApi)
        while data := await _hear(reader):
            for message in decoder.feed(data):
                if isinstance(message, Outputs):
                    self._listener.core_outputs(message)
                    continue
                self._listener.core_state(message)
                self._writer = writer


async def _hear(reader: asyncio.StreamReader) -> bytes:
    """The next bytes, empty at the end of the stream. Raises ConnectionError after a silence.

    It looks twice: if this process itself was stopped, the first look finds its time over, and the second the bytes.
    """
    for _ in range(LOOKS):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SILENCE_SECONDS / LOOKS):
                return await reader.read(READ_BYTES)
    raise ConnectionError(f"it has been silent for {SILENCE_SECONDS:g} s")
