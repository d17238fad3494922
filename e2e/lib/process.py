"""What tests, benchmarks and the demo need for a process of theirs: a port, its begin and end, an answer, its log; and
a child as a clock."""

from __future__ import annotations

import random
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from e2e.lib.waiting import PATIENCE_S, Description, NotInTime, wait_until

PORTS = range(20_000, 30_000)
"""Below Kubernetes' node ports, and on most machines below those that the kernel gives to clients."""
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


class NotRunning(Exception):
    """A process ended before it was ready, or did not get so in time; the text ends with its log."""


_held: list[socket.socket] = []


def free_port() -> int:
    """Of this machine, on the loopback, and nobody else's until this process ends: no other caller is told the same
    one, and none is told that the kernel gives to clients and to port 0, unless it gives all of `PORTS` away. Raises
    `OSError` where none is left."""
    low, high = map(int, EPHEMERAL.read_text().split())
    ours = [port for port in PORTS if not low <= port <= high] or list(PORTS)
    for port in random.sample(ours, len(ours)):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0semipd-port-{port}")  # an abstract name: it goes with the process, and leaves no file
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            claim.close()
            continue
        _held.append(claim)
        return port
    raise OSError(f"no port of {ours[0]} to {ours[-1]} is free")


def runs(pid: int) -> bool:
    """Whether there is such a process. False for a zombie as well: whoever inherits it reaps it when he comes to it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


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


class Heartbeat(AbstractContextManager["Heartbeat"]):
    """A clock that is as slow as the machine: counts the lines of a child that sleeps, works and prints one, again and
    again. A limit in beats holds on a busy machine as on an idle one: what delays the child delays the limit."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child, self._beats = child, 0
        self._reader = threading.Thread(target=self._read, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        stop(self._child)
        self._reader.join(20)

    @property
    def beats(self) -> int:
        """So far. Raises `NotRunning` once the child has ended: nothing is late by a clock that stands still."""
        if self._child.poll() is not None:
            raise NotRunning(f"the heartbeat ended with {self._child.returncode} after {self._beats} beats")
        return self._beats

    def until(self, what: Callable[[], object], timeout_s: float = PATIENCE_S, describe: Description = "") -> int:
        """Beats from now until `what` is true, looked at once at least. Raises `NotInTime`."""
        began = self.beats
        wait_until(what, timeout_s, describe)
        return self.beats - began

    def _read(self) -> None:
        for _ in self._child.stdout or ():
            self._beats += 1


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
