"""Client of the core's control socket. Knows the protocol, decides nothing.

One connection, one request at a time; any failure closes it, and the next call connects anew.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import ValidationError

from semipd_engine.contract import (
    CONTROL_REPLY,
    CONTROL_SOCKET,
    Ack,
    ControlError,
    Drain,
    EngineSnapshot,
    Gate,
    GetSnapshot,
    Promised,
    SetPartition,
)

LINE_LIMIT = 16 << 20
"""Bytes of the longest reply: a snapshot carries up to 4,096 finished requests and a minute of arrivals."""


class EngineUnreachable(Exception):
    """No valid answer within the time limit: not started yet, restarting, stopped or of another version."""


class CoreGone(EngineUnreachable):
    """Nobody listens on core's socket: it has not begun, or it has ended. One that hangs still listens."""


class EngineClient:
    def __init__(self, run_dir: Path, timeout: float = 1.0) -> None:
        """`timeout`: seconds for one request, connecting included."""
        self._path = run_dir / CONTROL_SOCKET
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def snapshot(self, since: int, promised: Promised | None = None, gate: Gate | None = None) -> EngineSnapshot:
        reply = await self._call(GetSnapshot(since=since, promised=promised, gate=gate))
        if not isinstance(reply, EngineSnapshot):
            raise EngineUnreachable(f"asked for a snapshot, got {_words(reply)}")
        return reply

    async def set_partition(self, message: SetPartition) -> None:
        reply = await self._call(message)
        if not isinstance(reply, Ack):
            raise EngineUnreachable(f"epoch {message.split_epoch} was not acknowledged: {_words(reply)}")

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _call(self, request: SetPartition | GetSnapshot | Drain) -> EngineSnapshot | Ack | ControlError:
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout):
                    line = await self._exchange(request.model_dump_json().encode() + b"\n")
                return CONTROL_REPLY.validate_json(line)
            except (ConnectionRefusedError, FileNotFoundError) as e:
                raise CoreGone(f"{self._path.name}: {e}") from e
            except (OSError, TimeoutError, ValueError, ValidationError) as e:
                await self.close()  # a late reply must not answer the next request
                raise EngineUnreachable(f"{self._path.name}: {e or type(e).__name__}") from e
            except asyncio.CancelledError:
                await self.close()
                raise

    async def _exchange(self, line: bytes) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_unix_connection(str(self._path), limit=LINE_LIMIT)
        reader, writer = self._streams
        writer.write(line)
        await writer.drain()
        reply = await reader.readline()
        if not reply.endswith(b"\n"):
            raise ConnectionError("closed by the engine")
        return reply


def _words(reply: EngineSnapshot | Ack | ControlError) -> str:
    return reply.message if isinstance(reply, ControlError) else reply.kind
