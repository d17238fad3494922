"""The watch of ``semipd run``: whatever fails in a turn is said once and tried again; the watch never ends by it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from tests.unit.operator_observed import report

from e2e.lib.waiting import PATIENCE_S
from semipd_agent.contract import CONFIG_FILE, EnginePhase, EngineStatus, StatusReport
from semipd_cli import embedded
from semipd_cli.embedded import Embedded, RunOptions
from semipd_cli.manifest import ManifestError, load_one

pytestmark = pytest.mark.unit
MANIFEST = (Path(__file__).resolve().parents[2] / "examples/cpu.yaml").read_text()


class Child:
    """Stands for the agent's process."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def send_signal(self, number: int) -> None:
        self.signals.append(number)


class Watch:
    """A run whose agent is a function; `said` is what the terminal would show."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.child = folder, Child()
        self.manifest, self.status = folder / "service.yaml", folder / "out" / "status.json"
        self.manifest.write_text(MANIFEST)
        (folder / "port").write_text("1")
        self.said: list[str] = []
        self.looks = 0
        self.answer: Callable[[], StatusReport] = report
        self.run = Embedded(RunOptions(self.manifest, status_file=self.status), self.said.append)

    async def look(self, *_: object) -> StatusReport:
        self.looks += 1
        return self.answer()

    async def close(self) -> None:
        pass

    async def turns(self, count: int = 3) -> None:
        until = self.looks + count
        async with asyncio.timeout(PATIENCE_S):
            while self.looks < until:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
async def watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    made = Watch(tmp_path)
    monkeypatch.setattr(embedded, "_PERIOD_SECONDS", 0.0)
    monkeypatch.setattr(embedded, "AgentClient", lambda *_, **__: made)
    task = asyncio.create_task(made.run._watch(tmp_path, made.child))  # type: ignore[arg-type]
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_status_file_that_cannot_be_written_is_said_once_and_written_as_soon_as_it_can(watch: Watch) -> None:
    await watch.turns()
    assert [line.startswith("--status-file") and "FileNotFoundError" in line for line in watch.said].count(True) == 1
    watch.status.parent.mkdir()
    await watch.turns()
    assert watch.status.exists()


async def test_a_defect_in_what_is_read_of_the_agent_ends_nothing(watch: Watch) -> None:
    watch.status.parent.mkdir()

    def defect() -> StatusReport:
        raise KeyError("x")

    watch.answer = defect
    await watch.turns(5)
    assert watch.said.count("the agent cannot be asked (KeyError: 'x'); it is tried again") == 1
    engine = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="LoadFailed", message="no weights")
    watch.answer = lambda: report(engine=engine)
    async with asyncio.timeout(PATIENCE_S):
        while not watch.child.signals:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert watch.child.signals == [signal.SIGTERM], "it was still watched: an engine that is refused ends the run"


async def test_a_service_that_is_first_seen_while_it_drains_has_served(watch: Watch) -> None:
    """It became ready since the last look, and was asked to end."""
    watch.status.parent.mkdir()
    loading = EngineStatus(state=EnginePhase.LOADING, ready=False)
    watch.answer = lambda: report(engine=loading)
    await watch.turns()
    assert not watch.run._served
    drains = EngineStatus(state=EnginePhase.DRAINING, ready=False, served=True)
    watch.answer = lambda: report(engine=drains)
    await watch.turns()
    assert watch.run._served


@pytest.mark.parametrize("reason", ["NoGPU", "UserMismatch"])
async def test_what_only_another_start_can_mend_ends_the_run_and_is_said_by_its_last_line(
    reason: str, watch: Watch
) -> None:
    watch.status.parent.mkdir()
    engine = EngineStatus(state=EnginePhase.FAILED, ready=False, reason=reason, message="why: remedy")
    watch.answer = lambda: report(engine=engine)
    async with asyncio.timeout(PATIENCE_S):
        while not watch.child.signals:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert watch.run._refusal == f"the model cannot be served: {reason}: why: remedy"
    assert not any(reason in line for line in watch.said), "whoever calls says it, once"
    assert reason in watch.status.read_text()


async def test_what_may_pass_is_waited_for(watch: Watch) -> None:
    """MPS's programs may be missing until partition.mode changes, which is put in force in place."""
    watch.status.parent.mkdir()
    engine = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="MPSUnavailable", message="why: remedy")
    watch.answer = lambda: report(engine=engine)
    await watch.turns(5)
    assert watch.child.signals == [] and any("MPSUnavailable" in line for line in watch.said)


async def test_slow_kernels_are_said_aloud_and_once(watch: Watch) -> None:
    watch.status.parent.mkdir()
    why = "plain torch computes: build the package again"
    engine = report().engine.model_copy(update={"kernels_shortfall": why})
    watch.answer = lambda: report(engine=engine)
    await watch.turns(5)
    assert [line.startswith("Warning SlowKernels: ") and line.endswith(why) for line in watch.said].count(True) == 1


async def test_a_configuration_that_could_not_be_written_is_written_later(watch: Watch) -> None:
    watch.status.parent.mkdir()
    (watch.folder / "fresh.json").mkdir()
    watch.manifest.write_text(MANIFEST + "  paused: true\n")
    await watch.turns()
    assert sum(line.startswith("the manifest cannot be put in force (IsADirectoryError") for line in watch.said) == 1
    (watch.folder / "fresh.json").rmdir()
    await watch.turns()
    assert (watch.folder / CONFIG_FILE).exists()


def test_metadata_that_is_no_object_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "service.yaml"
    path.write_text("kind: SemiPDService\nmetadata: chat\nspec: {}\n")
    with pytest.raises(ManifestError, match="metadata: must be an object"):
        load_one(path).service()
