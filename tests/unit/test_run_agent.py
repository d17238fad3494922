"""How ``semipd run`` holds its agent: a stand-in program takes the agent's place, nothing is served."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.lib.waiting import PATIENCE_S
from semipd_cli import agent_process
from semipd_cli.agent_process import catch_signals, port_of, start_agent
from semipd_cli.preflight import RunError

pytestmark = pytest.mark.unit
AGENT = """#!/bin/sh
trap 'echo asked to end' TERM
echo "$@"
while [ "$1" != --port-file ]; do shift; done
echo 4711 > "$2.fresh" && mv "$2.fresh" "$2"
while :; do sleep 0.05; done
"""
"""Tells its arguments, and a port; drains for ever."""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "semipd-agent"
    path.write_text(AGENT)
    path.chmod(0o755)
    monkeypatch.setattr(agent_process, "find", lambda _: str(path))
    return path


async def until(there: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not there():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_the_agent_has_a_pods_arguments_and_tells_its_port(program: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of an earlier run\n")
    assert port_of(tmp_path) == 0
    child = await start_agent(tmp_path, 0, ["--model", "a model"], log)
    try:
        await until(lambda: port_of(tmp_path))
        assert port_of(tmp_path) == 4711
        earlier, arguments = log.read_text().splitlines()
        assert arguments.startswith(f"--config {tmp_path}/") and arguments.endswith(" -- --model a model")
        assert " --host 127.0.0.1 --port 0 " in arguments and earlier == "of an earlier run"
        assert os.getsid(child.pid) == child.pid, "Ctrl-C goes to us alone"
    finally:
        child.kill()
        await child.wait()


async def test_the_first_signal_drains_and_the_second_kills(program: Path, tmp_path: Path) -> None:
    log, said, told = tmp_path / "log", list[str](), list[int]()
    child = await start_agent(tmp_path, 0, [], log)
    catch_signals(child, said.append, told.append)
    try:
        await until(lambda: "--config" in log.read_text())
        os.kill(os.getpid(), signal.SIGINT)
        await until(lambda: "asked to end" in log.read_text())
        assert (len(said), told, child.returncode) == (1, [signal.SIGINT], None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await asyncio.wait_for(child.wait(), PATIENCE_S) == -signal.SIGKILL
        assert (len(said), told) == (1, [signal.SIGINT, signal.SIGTERM])
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
        if child.returncode is None:
            os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


def test_an_agent_that_cannot_be_started_is_named_with_the_remedy(program: Path, tmp_path: Path) -> None:
    program.chmod(0o644)
    with pytest.raises(RunError, match=r"semipd-agent cannot be started \(Permission denied\): install semipd"):
        asyncio.run(start_agent(tmp_path, 0, [], None))
