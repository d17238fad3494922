"""Speaks the command language (version 2) of ``nvidia-cuda-mps-control`` with one daemon. Knows no life-cycle.

Each command is a run of the program, which hands its standard input to the daemon of a pipe directory. Its exit status
is no proof of success, so an answer counts only if it has the form that the command promises. A program that hangs is
killed: the caller gets an error within the time limit.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum

from semipd_agent.children import Children, ChildTimeout
from semipd_agent.partitioner.mps.programs import surroundings

_ABSENT = "cannot find mps control daemon"


class ControlError(Exception):
    """The daemon is not there, refuses the command, or answers something else than the command promises."""


class ControlTimeout(ControlError):
    """The daemon did not answer in time."""


class ServerStatus(StrEnum):
    INITIALIZING = "INITIALIZING"
    ACTIVE = "ACTIVE"
    FAULT = "FAULT"


class ControlClient:
    def __init__(self, program: str, variables: Mapping[str, str], children: Children, seconds: float) -> None:
        """`variables`: the daemon's directories. `seconds`: for each command that names no time of its own."""
        self._program = program
        self._environment = surroundings(variables)
        self._children = children
        self._seconds = seconds

    async def default_percentage(self) -> float:
        """The daemon's own ceiling, percent. Also the cheapest question that only a live daemon answers."""
        command = "get_default_active_thread_percentage"
        answer = await self._ask(command)
        try:
            return float(answer)
        except ValueError:
            raise _unexpected(command, answer) from None

    async def start_server(self, uid: int, seconds: float) -> None:
        """Ask for a server for the user's clients, and wait at most so long for the answer, which may come only when
        the driver is initialised; `servers` tells when there is one."""
        await self._ask(f"start_server -uid {uid}", seconds)

    async def terminate_client(self, server: int, client: int, seconds: float) -> None:
        """End a client's work on the GPU and wait for that: afterwards a signal to its process harms nobody.

        Success has no documented words: the answer counts as one unless it is a CUDA error or says that it failed.
        """
        command = f"terminate_client {server} {client}"
        answer = await self._ask(command, seconds)
        if re.search(r"^[1-9]\d*$|error|fail|invalid|unknown|not found|cannot|unable", answer, re.IGNORECASE):
            raise _unexpected(command, answer)

    async def servers(self) -> list[int]:
        """PIDs of the servers."""
        return await self._numbers("get_server_list")

    async def server_status(self, server: int) -> ServerStatus:
        command = f"get_server_status {server}"
        answer = await self._ask(command)
        try:
            return ServerStatus(answer.upper())
        except ValueError:
            raise _unexpected(command, answer) from None

    async def clients(self, server: int) -> list[int]:
        """PIDs of the server's clients, in the daemon's PID namespace."""
        return await self._numbers(f"get_client_list {server}")

    async def quit(self) -> None:
        """End the daemon. It waits for its clients to leave, so this may time out."""
        await self._ask("quit")

    async def _numbers(self, command: str) -> list[int]:
        answer = await self._ask(command)
        words = answer.split()
        if not all(re.fullmatch(r"\d+", word) for word in words):
            raise _unexpected(command, answer)
        return [int(word) for word in words]

    async def _ask(self, command: str, seconds: float | None = None) -> str:
        try:
            done = await self._children.run(
                [self._program], self._environment, stdin=command + "\n", seconds=seconds or self._seconds
            )
        except ChildTimeout as e:
            raise ControlTimeout(f"{command}: {e}") from None
        except OSError as e:
            raise ControlError(f"{self._program} cannot be run: {e.strerror}") from e
        answer = done.output.strip()
        if done.status != 0 or _ABSENT in answer.lower():
            raise ControlError(f"{command}: {answer[:300] or f'exit status {done.status}'}")
        return answer


def _unexpected(command: str, answer: str) -> ControlError:
    return ControlError(f"{command}: the daemon answered {answer[:300]!r}")
