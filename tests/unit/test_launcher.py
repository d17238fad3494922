"""What the launcher makes of an api that ends with status 2: real processes that stand for the engine's, a clock of the
test's own, and a core whose state is given."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from semipd_engine import launcher
from semipd_engine.contract import EngineOptions, EngineSnapshot, EngineState
from semipd_engine.launcher import Launcher

pytestmark = pytest.mark.unit


class Engine:
    """The launcher of an api that is a shell script; `state` is what core says."""

    def __init__(self, folder: Path, api: str) -> None:
        self.state = EngineState.READY
        self._starts = folder / "starts"
        self._now = 0.0
        commands = {name: ["sleep", "60"] for name in ("resident", "core")}
        script = f"cd {folder}; echo >>starts; {api}"
        options = EngineOptions(model=folder / "no-model", run_dir=folder, port=8000, drain_seconds=0)
        self.launcher = Launcher(options, commands | {"api": ["sh", "-c", script]})

    @property
    def starts(self) -> int:
        return len(self._starts.read_text().splitlines()) if self._starts.exists() else 0

    def until(self, done: Callable[[], bool]) -> str | None:
        """Turns of 20 s each until it is `done`, or the launcher gives up and says why."""
        limit = time.monotonic() + 30
        while not done():
            assert time.monotonic() < limit, "timed out"
            self._now += 20.0
            if problem := self.launcher.turn(self._now):
                return problem
            time.sleep(0.005)
        return None


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Engine]]:
    started = []

    def begin(api: str) -> Engine:
        engine = Engine(tmp_path, api)
        monkeypatch.setattr(launcher, "read_snapshot", lambda _: EngineSnapshot(monotonic_time=0, state=engine.state))
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
    engine = start("[ -e again ] && exec sleep 60; touch again; kill -STOP $$; exec sleep 60")
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
    engine = start("[ -e repaired ] && exec sleep 60; touch repaired; exit 2")
    engine.state = EngineState.LOADING
    assert engine.until(lambda: engine.starts == 2) is None
    engine.state = EngineState.READY
    turns = iter(range(5))
    assert engine.until(lambda: next(turns, None) is None) is None
