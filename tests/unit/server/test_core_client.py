"""The api's connection to core: when silence is a loss, and when it is only this process that slept."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from e2e.lib.waiting import PATIENCE_S, wait_until_async
from semipd_engine.ipc import frames
from semipd_engine.ipc.requests import CoreState, Outputs
from semipd_engine.server import core_client
from semipd_engine.server.core_client import CORE_SOCKET, CoreClient

pytestmark = pytest.mark.unit

STATE = frames.encode(CoreState(ready=True, state="ready"))


class Told:
    def __init__(self) -> None:
        self.said: list[str] = []

    def core_state(self, state: CoreState) -> None:
        self.said.append("state")

    def core_outputs(self, outputs: Outputs) -> None: ...

    def core_lost(self) -> None:
        self.said.append("lost")


async def test_a_silent_core_is_lost_and_taken_back_when_it_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core_client, "SILENCE_SECONDS", 1.0)
    speaks, closed = asyncio.Event(), asyncio.Event()
    speaks.set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.TaskGroup() as group:
            talk = group.create_task(_talk(writer, speaks))
            while await reader.read(1):
                pass
            talk.cancel()
            closed.set()
            writer.close()

    told = Told()
    async with await asyncio.start_unix_server(serve, tmp_path / CORE_SOCKET):
        running = asyncio.create_task(CoreClient(tmp_path, told).run())
        await wait_until_async(lambda: len(told.said) > 20)
        assert "lost" not in told.said, "it speaks more often than it may be silent"
        time.sleep(1.3)  # noqa: ASYNC251  as if stopped: our time is over, and the bytes come due with it
        await asyncio.sleep(0.1)
        assert "lost" not in told.said
        speaks.clear()
        await asyncio.wait_for(closed.wait(), PATIENCE_S)
        assert told.said.count("lost") == 1
        await asyncio.sleep(1.2)
        assert told.said.count("lost") == 1, "a connection that never spoke is not lost again"
        before = len(told.said)
        speaks.set()
        await wait_until_async(lambda: len(told.said) > before + 5)
        assert set(told.said[before:]) == {"state"}
        running.cancel()


async def _talk(writer: asyncio.StreamWriter, speaks: asyncio.Event) -> None:
    while True:
        await speaks.wait()
        writer.write(STATE)
        await asyncio.sleep(0.05)
