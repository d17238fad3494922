"""The one loop that waits: it returns what came, and tells what did not. And what tests may not lean on."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from e2e.lib.process import PORTS, Heartbeat, NotRunning, free_port
from e2e.lib.waiting import PATIENCE_S, NotInTime, wait_until, wait_until_async

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]


def test_the_value_that_came_is_returned() -> None:
    values = iter([None, 0, "", "there"])
    assert wait_until(lambda: next(values), every_s=0) == "there"


def test_what_is_true_already_is_seen_without_any_time() -> None:
    assert wait_until(lambda: 7, timeout_s=0) == 7
    assert asyncio.run(wait_until_async(lambda: 7, timeout_s=0)) == 7


def test_without_a_description_the_source_and_the_last_value_are_told() -> None:
    with pytest.raises(NotInTime) as told:
        wait_until(lambda: [pod for pod in ("a", "b") if pod == "c"], 0)
    assert "not within 0 s: wait_until(lambda: [pod for pod in" in str(told.value)
    assert str(told.value).endswith("last []")

    def no_second_pod() -> bool:
        return False

    with pytest.raises(NotInTime, match=r"no_second_pod, last False$"):
        wait_until(no_second_pod, 0)
    with pytest.raises(NotInTime, match=r"dict\.keys, last dict_keys"):
        wait_until({}.keys, 0)


@pytest.mark.parametrize("describe", ["a second pod", lambda: "a second pod"])
def test_a_description_is_told_instead(describe: object) -> None:
    with pytest.raises(NotInTime, match=r"^not within 0 s: a second pod$"):
        wait_until(lambda: None, 0, describe)  # type: ignore[arg-type]


async def test_other_tasks_run_meanwhile() -> None:
    come = asyncio.Event()
    asyncio.get_running_loop().call_soon(come.set)
    assert await wait_until_async(come.is_set, every_s=0)
    with pytest.raises(NotInTime, match="nobody"):
        await wait_until_async(lambda: False, 0, "nobody")


def test_a_limit_in_beats_is_of_what_a_child_has_done() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None

    def beat(times: int) -> None:
        assert child.stdin is not None
        child.stdin.write("\n" * times)
        child.stdin.flush()

    with Heartbeat(child) as heart:
        assert heart.until(lambda: True) == 0, "however long it takes"
        before = heart.beats
        beat(3)
        wait_until(lambda: heart.beats == before + 3)
        late = iter([False, False, True])
        seen = heart.beats

        def fourth() -> bool:
            """A beat passes with each look."""
            nonlocal seen
            beat(1)
            seen += 1
            wait_until(lambda: heart.beats == seen)
            return next(late)

        assert heart.until(fourth) == 3
        child.stdin.close()
        child.wait()
        with pytest.raises(NotRunning, match="after 6 beats"):
            heart.until(lambda: True)


def limits(source: str) -> list[float]:
    """The constant limits of a file's waits, in seconds."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    waits = [call for call in calls if getattr(call.func, "id", "") in ("wait_until", "wait_until_async")]
    given = [call.args[1:2] + [each.value for each in call.keywords if each.arg == "timeout_s"] for call in waits]
    return [node.value for nodes in given for node in nodes if isinstance(node, ast.Constant)]


MEANT = {"test_operator_agents.py": [30]}
"""Limits that tell two behaviours apart: there an operator that has yielded says nothing for a minute."""


def test_no_test_gives_a_wait_less_time_than_a_busy_machine_may_need() -> None:
    """A limit costs only a test that fails; what takes how long is for bench/ to say."""
    assert limits("wait_until(f, 5, 'x'); wait_until_async(f, timeout_s=2.5); wait_until(f)") == [5, 2.5]
    files = [file for room in ("tests", "e2e/tests") for file in (ROOT / room).rglob("*.py") if file != Path(__file__)]
    assert len(files) > 150
    short = {file.name: found for file in files if (found := [s for s in limits(file.read_text()) if s < PATIENCE_S])}
    assert short == MEANT


def test_a_port_is_told_once_for_as_long_as_whoever_asked_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    few = range(PORTS.stop - 12, PORTS.stop)
    monkeypatch.setattr("e2e.lib.process.PORTS", few)
    mine = {free_port() for _ in range(4)}
    rest = f"""
from e2e.lib import process
process.PORTS = {few}
while True:
    print(process.free_port())
"""
    others = subprocess.run([sys.executable, "-c", rest], cwd=ROOT, capture_output=True, text=True)
    theirs = [int(port) for port in others.stdout.split()]
    assert len(mine) == 4 and theirs and not mine & set(theirs) and len(theirs) == len(set(theirs))
    assert "no port of 29988 to 29999 is free" in others.stderr


def test_a_port_is_none_that_the_kernel_gives_to_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Clouds widen its range, some from 15,000 on."""
    monkeypatch.setattr("e2e.lib.process.EPHEMERAL", tmp_path / "range")
    (tmp_path / "range").write_text("20020\t60999\n")
    assert {free_port() for _ in range(4)} < set(range(20_000, 20_020))
    (tmp_path / "range").write_text("1024\t65535\n")
    assert free_port() in PORTS, "there is none; then one that is free now"


def test_what_hypothesis_draws_and_how_long_it_takes_fails_no_run() -> None:
    drawn = settings.default
    assert drawn.derandomize and drawn.deadline is None and HealthCheck.too_slow in drawn.suppress_health_check
    chance = settings.get_profile("random")
    assert not chance.derandomize and chance.deadline is None and HealthCheck.too_slow in chance.suppress_health_check
