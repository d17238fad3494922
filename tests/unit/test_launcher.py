"""What the launcher makes of an api that ends with status 2: real processes that stand for the engine's, a clock of the
test's own, and a core whose state is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.lib.waiting import PATIENCE_S
from semipd_engine import launcher
from semipd_engine.contract import EngineOptions, EngineSnapshot, EngineState
from semipd_engine.launcher import Child, Launcher

pytestmark = pytest.mark.unit


class Engine:
    """The launcher of an api that is a shell script; `state` is what core says."""

    def __init__(self, folder: Path, api: str, by_hand: bool = False) -> None:
        self.state = EngineState.READY
        self._starts = folder / "starts"
        self._now = 0.0
        commands = {name: ["sleep", "600"] for name in ("resident", "core")}
        script = f"cd {folder}; echo >>starts; {api}"
        options = EngineOptions(model=folder / "no-model", run_dir=folder, port=8000, drain_seconds=0)
        self.launcher = Launcher(options, commands | {"api": ["sh", "-c", script]}, by_hand)

    @property
    def starts(self) -> int:
        return len(self._starts.read_text().splitlines()) if self._starts.exists() else 0

    def until(self, done: Callable[[], bool]) -> str | None:
        """Turns of 20 s each until it is `done`, or the launcher gives up and says why."""
        limit = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < limit, "timed out"
            self._now += 20.0
            if problem := self.launcher.turn(self._now):
                return problem
            time.sleep(0.005)
        return None


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Engine]]:
    started = []

    def begin(api: str, by_hand: bool = False) -> Engine:
        engine = Engine(tmp_path, api, by_hand)

        def snapshot(_: Path) -> EngineSnapshot:
            return EngineSnapshot(monotonic_time=0, state=engine.state, reason="OutOfMemory", message="too little")

        monkeypatch.setattr(launcher, "read_snapshot", snapshot)
        started.append(engine)
        return engine

    yield begin
    for engine in started:
        engine.launcher.stop()


def test_an_api_that_refuses_at_its_start_ends_the_engine(start: Callable[[str], Engine]) -> None:
    engine = start("exit 2")
    assert "no-model" in (engine.until(lambda: engine.starts > 2) or "")
    assert engine.starts == 1


def test_an_api_that_hangs_is_killed_when_it_is_asked_for_and_started_again(start: Callable[[str], Engine]) -> None:
    """A stopped process takes no SIGTERM."""
    engine = start("[ -e again ] && exec sleep 600; touch again; kill -STOP $$; exec sleep 600")
    assert engine.until(lambda: engine.starts == 1) is None
    turns = iter(range(5))
    assert engine.until(lambda: next(turns, None) is None) is None and engine.starts == 1, "by itself it stays"
    engine.launcher.end_api()
    assert engine.until(lambda: engine.starts == 2) is None


def test_an_api_that_has_served_is_started_again_whatever_its_status(start: Callable[[str], Engine]) -> None:
    """Nor is the first one's successor, which finds half a file where somebody is copying."""
    engine = start("echo 8000 >api.port; exit 2")
    assert engine.until(lambda: engine.starts > 3) is None


def test_a_refusal_that_has_passed_while_the_weights_were_loaded_counts_no_more(start: Callable[[str], Engine]) -> None:
    engine = start("[ -e repaired ] && exec sleep 600; touch repaired; exit 2")
    engine.state = EngineState.LOADING
    assert engine.until(lambda: engine.starts == 2) is None
    engine.state = EngineState.READY
    turns = iter(range(5))
    assert engine.until(lambda: next(turns, None) is None) is None


def test_a_model_that_cannot_be_loaded_ends_an_engine_that_a_person_started(start: Callable[..., Engine]) -> None:
    engine = start("exec sleep 600", by_hand=True)
    engine.state = EngineState.LOADING
    turns = iter(range(5))
    assert engine.until(lambda: next(turns, None) is None) is None
    engine.state = EngineState.FAILED
    assert engine.until(lambda: False) == "the model cannot be served: OutOfMemory: too little"


def test_under_an_agent_the_engine_stays_and_says_why(start: Callable[..., Engine]) -> None:
    engine = start("exec sleep 600")
    engine.state = EngineState.FAILED
    turns = iter(range(5))
    assert engine.until(lambda: next(turns, None) is None) is None


def test_a_model_that_was_served_is_waited_for_whoever_started_the_engine(
    start: Callable[..., Engine], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its memory was taken by another program while the resident was down."""
    engine = start("echo 8000 >api.port; exec sleep 600", by_hand=True)
    assert engine.until(lambda: engine.launcher.announced) is None
    assert capsys.readouterr().out.count("is ready at http://127.0.0.1:8000") == 1
    engine.state = EngineState.FAILED
    turns = iter(range(5))
    assert engine.until(lambda: next(turns, None) is None) is None


def test_whoever_can_do_nothing_is_started_less_and_less_often_however_long_it_took_to_find_out() -> None:
    """Weights that took a minute to read, before the pool did not fit."""
    child, now, pauses = Child("resident", ["sh", "-c", "exit 75"]), 0.0, []
    for _ in range(8):
        child.tick(now)
        assert child.process is not None
        child.process.wait()
        now += 60.0
        child.tick(now)
        pauses.append(child.start_at - now)
        now = child.start_at
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 30]
