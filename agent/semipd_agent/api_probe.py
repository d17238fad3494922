"""Asks the engine's api process whether it answers: dead, hung, looping or never started, it is seen from outside.

Core and workers may be well while nobody can reach them. Knows one path, ``/health``, and no HTTP library: a server
that hangs must cost one connection and one time-out.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

from semipd_agent.clock import Clock

PERIOD_SECONDS = 1.0
TIMEOUT_SECONDS = 5.0
NAMED_AFTER_SECONDS = 5.0
"""A shorter outage (a restart) is bridged by readiness and not worth a word."""
HUNG_SECONDS = 30.0
"""A process that takes connections, or does not even refuse them, and answers nothing for so long is to be ended."""
_LOOPBACK = {"0.0.0.0": ("127.0.0.1",), "::": ("127.0.0.1", "::1")}
"""Where whoever listens on any address answers. ``localhost`` is what a file says; a pod may have one of the two."""


class ApiProbe:
    def __init__(self, run_dir: Path, host: str, clock: Clock, hung_seconds: float = HUNG_SECONDS) -> None:
        """`host`: what the api listens on. `hung_seconds`: of silence, before it is to be ended."""
        self._port_file = run_dir / "api.port"
        self._hosts = _LOOPBACK.get(host, (host,))
        self._clock = clock
        self._error = "has not opened its port"
        self._failing_since: float | None = clock.monotonic()
        self._hung_seconds = hung_seconds
        self._silent = 0
        """Questions in a row to which it neither answered nor was away: a process that starts, or has ended, refuses
        connections. They are counted, for time passes too where the whole pod is frozen, or its machine moved."""

    @property
    def answers(self) -> bool:
        return self._failing_since is None

    def problem(self) -> str:
        """What is wrong with the process, in words; empty while it answers, and for the first seconds."""
        since = self._failing_since
        if since is None or self._clock.monotonic() - since < NAMED_AFTER_SECONDS:
            return ""
        killed = f"it is killed after {self._hung_seconds:g} s of that"
        then = "it is restarted when it ends" if not self._silent else killed
        return f"the process api {self._error}; {then}: see the pod's log"

    def hangs(self) -> bool:
        """Whether it is time to end the process. True once in `hung_seconds`."""
        if not self._silent or self._silent * (TIMEOUT_SECONDS + PERIOD_SECONDS) < self._hung_seconds:
            return False
        self._silent = 0
        return True

    async def run(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(PERIOD_SECONDS)

    async def ask(self) -> None:
        silent = False
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                status = await self._health()
            error = "" if status == 200 else f"answers /health with {status}"
        except TimeoutError:
            error, silent = f"does not answer within {TIMEOUT_SECONDS:g} s", True
        except FileNotFoundError:
            error = "has not opened its port"
        except (OSError, ValueError) as reason:
            error = f"cannot be reached ({reason or type(reason).__name__})"
        if not error:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = self._clock.monotonic()
        self._silent = self._silent + 1 if silent else 0
        self._error = error

    async def _health(self) -> int:
        """HTTP status of ``GET /health``. Raises OSError, and ValueError for what is no HTTP."""
        port = int(self._port_file.read_text())
        reader, writer = await self._connect(port)
        try:
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            words = (await reader.readline()).split()
            if len(words) < 2:
                raise ConnectionError("the connection was closed")
            return int(words[1])
        finally:
            writer.close()

    async def _connect(self, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Raises OSError of the last address."""
        *others, last = self._hosts
        for host in others:
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, port)
        return await asyncio.open_connection(last, port)
