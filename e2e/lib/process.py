"""What tests, benchmarks and the demo need for a process of theirs: a port, its begin and end, an answer, its log."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from e2e.lib.waiting import NotInTime, wait_until


class NotRunning(Exception):
    """A process ended before it was ready, or did not get so in time; the text ends with its log."""


def free_port() -> int:
    """Of this machine, on the loopback; free until somebody takes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def answers(url: str) -> bool:
    """Does `url` answer 200 now?"""
    import httpx  # here, for whoever needs a process alone starts many

    try:
        return httpx.get(url, timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def running(
    command: Sequence[str], log: Path, ready: Callable[[], object], timeout_s: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A child whose output goes to `log`, from when it is ready until the block ends. Raises `NotRunning`."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        try:
            wait_until(lambda: process.poll() is not None or ready(), timeout_s, "it is not ready", every_s=0.1)
            ended = process.poll()
        except NotInTime as problem:
            raise NotRunning(f"`{' '.join(command)}`: {problem}; the end of {log}:\n{tail(log)}") from None
        if ended is not None:
            raise NotRunning(f"`{' '.join(command)}` ended with {ended}; the end of {log}:\n{tail(log)}")
        yield process
    finally:
        stop(process)


def stop(process: subprocess.Popen[Any], patience_s: float = 20) -> None:
    """SIGTERM, and SIGKILL when that does not help in time."""
    process.terminate()
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tail(log: Path, lines: int = 12) -> str:
    """Empty where there is no log: who asks is telling of another failure."""
    with suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""
