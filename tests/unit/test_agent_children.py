"""Child processes that cannot hang the agent: what they print, how they end, and what is left of those that hang."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.mps_bench import OwnReaper

from e2e.lib.process import runs
from e2e.lib.waiting import PATIENCE_S, wait_until_async
from semipd_agent.children import Children, ChildTimeout

pytestmark = pytest.mark.unit
ENV = dict(os.environ)


@pytest.fixture
async def children() -> AsyncIterator[Children]:
    reaper = OwnReaper()

    async def reap() -> None:
        while True:
            reaper.reap()
            await asyncio.sleep(0.02)

    task = asyncio.create_task(reap())
    yield Children(reaper)
    task.cancel()


async def test_input_output_and_status(children: Children) -> None:
    done = await children.run(["sh", "-c", "cat; echo well >&2; exit 7"], ENV, stdin="hello\n", seconds=60)
    assert (done.status, sorted(done.output.split())) == (7, ["hello", "well"])


async def test_a_program_that_does_not_read_its_input_is_no_error(children: Children) -> None:
    assert (await children.run(["true"], ENV, stdin="x\n" * 100, seconds=60)).status == 0


async def test_one_that_ends_by_a_signal(children: Children) -> None:
    assert (await children.run(["sh", "-c", "kill -9 $$"], ENV, seconds=60)).status == -signal.SIGKILL


async def test_one_that_hangs_is_killed_with_all_that_it_started(children: Children, tmp_path: Path) -> None:
    file, seconds = tmp_path / "pid", 1
    while not (file.exists() and file.read_text().endswith("\n")):  # a busy machine may need longer to begin
        seconds *= 2
        with pytest.raises(ChildTimeout, match=f"sh did not answer within {seconds} s"):
            await children.run(["sh", "-c", f"sleep 1000 & echo $! > {file}; wait"], ENV, seconds=seconds)
    sleeper = int(file.read_text())
    await wait_until_async(lambda: not runs(sleeper))


async def test_a_grandchild_that_keeps_the_output_open_holds_nobody_up(children: Children) -> None:
    done = await children.run(["sh", "-c", "sleep 1000 & echo $!"], ENV, seconds=60)
    os.kill(int(done.output), signal.SIGKILL)
    assert done.status == 0


async def test_one_that_cannot_be_started(children: Children) -> None:
    with pytest.raises(FileNotFoundError):
        await children.run(["/does/not/exist"], ENV, seconds=60)


async def test_a_cancelled_run_leaves_nothing(children: Children, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    running = asyncio.create_task(children.run(["sh", "-c", f"echo $$ > {file}; sleep 1000"], ENV, seconds=60))
    await wait_until_async(lambda: file.exists() and file.read_text().strip())
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await wait_until_async(lambda: not runs(int(file.read_text())))


async def test_a_long_lived_child_and_its_output(children: Children, tmp_path: Path) -> None:
    child = children.start(["sh", "-c", "echo here; exec sleep 1000"], ENV, tmp_path / "out")
    await wait_until_async(lambda: (tmp_path / "out").read_text() == "here\n")
    assert not await child.wait(0.1) and child.status is None
    child.signal_group(signal.SIGTERM)
    assert await child.wait(PATIENCE_S) and child.status == -signal.SIGTERM
    child.signal_group(signal.SIGKILL)  # its number may be a stranger's by now: nothing is sent
