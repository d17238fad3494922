"""The agent as a real process, with a stand-in for the engine's launcher that speaks the real control socket."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from e2e.lib.process import runs, stop
from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_agent.contract import token_digest

pytestmark = pytest.mark.unit

TOKEN = "secret"
STANDIN = Path(__file__).with_name("agent_standin.py")


class RunningAgent:
    def __init__(
        self,
        folder: Path,
        *flags: str,
        prefill: int = 60,
        mode: str = "Manual",
        program: tuple[str, ...] = ("-m", "semipd_agent"),
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        engine: Path | None = None,
    ) -> None:
        """`flags` are the engine's, `options` the agent's own, `program` what Python runs; `engine` replaces the
        stand-in."""
        self.folder = folder
        self.config = folder / "agent.json"
        self.write_config(1, prefill, mode=mode)
        if engine is None:
            engine = folder / "engine"
            engine.write_text(f'#!/bin/sh\nexec {sys.executable} {STANDIN} "$@"\n')
            engine.chmod(0o755)
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        self.log = (folder / "log").open("wb")
        own = ["--config", str(self.config), "--host", "127.0.0.1", "--port", "0", "--port-file", str(folder / "port")]
        own += options
        passed = ["--", "--run-dir", str(self.run_dir), "--device", "cpu", *flags]
        self.process = subprocess.Popen(
            [sys.executable, *program, *own, "--engine-command", str(engine), *passed],
            stdout=self.log,
            stderr=self.log,
            env=os.environ | {"POD_UID": "uid-1", "POD_NAME": "pod-0"} | (env or {}),
        )
        try:
            self.wait(lambda: (folder / "port").exists() and (folder / "port").read_text().endswith("\n"))
        except AssertionError:
            self.stop()
            raise
        port = int((folder / "port").read_text())
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)

    def write_config(
        self, generation: int, prefill: int, tokens: tuple[str, ...] = (TOKEN,), mode: str = "Manual"
    ) -> None:
        partition = {"mode": mode, "split": {"prefillPercent": prefill, "decodePercent": 80}}
        new = self.folder / "agent.json.new"
        digests = [token_digest(t) for t in tokens]
        new.write_text(
            json.dumps({"tokenSha256": digests, "config": {"generation": generation, "partition": partition}})
        )
        new.rename(self.config)

    def status(self, token: str = TOKEN) -> dict[str, Any]:
        answer = self.http.get("/v1/status", headers={"Authorization": f"Bearer {token}"})
        return dict(answer.json()) if answer.status_code == 200 else {"http": answer.status_code}

    def applied(self) -> int | None:
        applied = self.status()["partition"]["applied"]
        return applied and int(applied["prefillPercent"])

    def put(self, generation: int, prefill: int, mode: str = "Manual", decode: int = 80) -> int:
        partition = {"mode": mode, "split": {"prefillPercent": prefill, "decodePercent": decode}}
        body = {"generation": generation, "partition": partition}
        return self.http.put("/v1/config", json=body, headers={"Authorization": f"Bearer {TOKEN}"}).status_code

    def launcher(self) -> int:
        """PID of the launcher: the agent's only child."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, describe=lambda: (self.folder / "log").read_text()[-3000:])

    def stop(self) -> None:
        stop(self.process, patience_s=45)
        self.log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningAgent]]:
    running: list[RunningAgent] = []

    def launch(*flags: str, **options: Any) -> RunningAgent:
        running.append(RunningAgent(tmp_path, *flags, **options))
        return running[-1]

    yield launch
    for agent in running:
        agent.stop()


def test_the_engine_starts_on_the_granted_cpus(start: Callable[..., RunningAgent]) -> None:
    """A quota is no mask: without the agent's help the engine's first split would count all CPUs of the node."""
    last = max(os.sched_getaffinity(0))
    under_quota = (
        "import semipd_agent.__main__ as agent; from semipd_agent.partitioner import Grant; "
        f"agent.granted = lambda uid: Grant(cpus=({last},), quota=1.0); agent.main()"
    )
    agent = start(program=("-c", under_quota))
    agent.wait(lambda: agent.applied() == 60)
    assert os.sched_getaffinity(agent.launcher()) == {last}
    assert os.sched_getaffinity(agent.process.pid) == os.sched_getaffinity(0), "the agent itself is not pinned"


def test_from_loading_to_a_changed_split_read_back_from_the_workers(
    start: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    agent = start("--loading-until", str(loaded))
    agent.wait(lambda: agent.status()["engine"]["state"] == "Loading")
    loading = agent.status()
    assert loading["engine"]["loadProgressPercent"] == 50
    assert loading["partition"]["reason"] == "EngineNotReady"
    assert agent.http.get("/ready").status_code == 503
    loaded.touch()
    agent.wait(lambda: agent.applied() == 60)
    agent.wait(lambda: agent.http.get("/ready").status_code == 200)
    assert agent.http.get("/health").json()["podUid"] == "uid-1"
    assert agent.status()["identity"]["pod"] == "pod-0"
    assert agent.put(2, 30) == 200
    agent.wait(lambda: agent.applied() == 30)
    assert agent.status()["decisions"][0]["outcome"] == "Applied"
    assert agent.put(1, 90) == 409
    assert 'semipd_partition_percent{phase="prefill",value="applied"} 30.0' in agent.http.get("/metrics").text


def test_a_silent_worker_is_noticed(start: Callable[..., RunningAgent]) -> None:
    agent = start()
    agent.wait(lambda: agent.applied() == 60)
    os.kill(agent.launcher(), signal.SIGUSR1)
    agent.wait(lambda: agent.status()["partition"]["reason"] == "WorkerNotResponding")
    assert agent.applied() is None


def test_the_split_survives_core_and_launcher(start: Callable[..., RunningAgent]) -> None:
    agent = start()
    agent.wait(lambda: agent.applied() == 60)
    agent.put(2, 30)
    agent.wait(lambda: agent.applied() == 30)
    epoch = agent.status()["partition"]["splitEpoch"]
    os.kill(agent.launcher(), signal.SIGUSR2)  # a new core: epoch 0
    agent.wait(lambda: agent.status()["partition"]["splitEpoch"] > epoch and agent.applied() == 30)
    os.kill(agent.launcher(), signal.SIGKILL)
    agent.wait(lambda: agent.status()["partition"]["splitEpoch"] > epoch + 1 and agent.applied() == 30)
    assert agent.status()["engine"]["restarts"]["launcher"] == 1
    assert len(agent.status()["decisions"]) == 1


def test_the_file_brings_tokens_and_newer_settings(start: Callable[..., RunningAgent]) -> None:
    agent = start()
    agent.wait(lambda: agent.applied() == 60)
    agent.put(5, 30)
    agent.wait(lambda: agent.applied() == 30)
    agent.write_config(4, 90, (TOKEN, "new"))  # the mount lags: its tokens count, its settings do not
    agent.wait(lambda: "http" not in agent.status("new"))
    assert agent.status()["partition"]["requested"]["prefillPercent"] == 30
    agent.write_config(6, 90, ("new",))
    agent.wait(lambda: agent.status() == {"http": 401})
    agent.wait(lambda: agent.status("new")["partition"]["applied"] == {"prefillPercent": 90, "decodePercent": 80})


def test_sigterm_lets_the_engine_drain(start: Callable[..., RunningAgent]) -> None:
    agent = start("--drain-seconds", "2")
    agent.wait(lambda: agent.http.get("/ready").status_code == 200)
    started = time.monotonic()
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(PATIENCE_S) == 0
    assert time.monotonic() - started >= 2
    assert "drained" in (agent.folder / "log").read_text()


def test_sigterm_fails_ready_and_a_second_one_hurries(start: Callable[..., RunningAgent]) -> None:
    """It drains for longer than anybody looks: what is seen meanwhile does not depend on who is quick."""
    agent = start("--drain-seconds", "600")
    agent.wait(lambda: agent.applied() == 60)
    launcher = agent.launcher()
    agent.process.send_signal(signal.SIGTERM)
    agent.wait(lambda: agent.http.get("/ready").status_code == 503)
    agent.wait(lambda: agent.status()["engine"]["state"] == "Draining")
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(PATIENCE_S) == 0
    assert not Path(f"/proc/{launcher}").exists()


@pytest.mark.parametrize("loads", [True, False])
def test_an_engine_that_became_ready_just_before_sigterm_has_served(
    loads: bool, start: Callable[..., RunningAgent], tmp_path: Path
) -> None:
    """Its users see it first; the agent looks once a second, and when it is told to end."""
    loaded = tmp_path / "loaded"
    agent = start("--drain-seconds", "600", "--loading-until", str(loaded))
    agent.wait(lambda: agent.status()["engine"]["state"] == "Loading")
    assert agent.status()["engine"]["served"] is False
    if loads:
        loaded.touch()
    agent.process.send_signal(signal.SIGTERM)
    agent.wait(lambda: agent.status()["engine"]["state"] == "Draining")
    engine = agent.status()["engine"]
    assert (engine["served"], engine["ready"]) == (loads, False)
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(PATIENCE_S) == 0


def test_the_engine_does_not_outlive_a_killed_agent(start: Callable[..., RunningAgent]) -> None:
    agent = start()
    agent.wait(lambda: agent.applied() == 60)
    launcher = agent.launcher()
    agent.process.kill()
    agent.process.wait()
    agent.wait(lambda: not runs(launcher))


def test_a_launcher_that_cannot_start_is_a_crash_loop_with_its_own_words(start: Callable[..., RunningAgent]) -> None:
    agent = start("--model", "/does/not/exist")
    agent.wait(lambda: agent.status()["engine"]["reason"] == "CrashLoop")
    engine = agent.status()["engine"]
    assert engine["state"] == "Failed" and engine["restarts"]["launcher"] >= 2
    assert "/does/not/exist: no such directory" in engine["message"]
    assert agent.http.get("/ready").status_code == 503


def test_without_a_gpu_the_engine_does_not_start_until_partitioning_is_disabled(
    start: Callable[..., RunningAgent],
) -> None:
    agent = start("--device", "cuda")
    agent.wait(lambda: agent.status()["engine"]["reason"] == "NoGPU")
    assert agent.launcher() == 0
    partition = agent.status()["partition"]
    assert (partition["state"], partition["reason"]) == ("Failed", "NoGPU")
    assert "nvidia.com/gpu" in partition["message"]
    time.sleep(2.5)
    said = [line for line in (agent.folder / "log").read_text().splitlines() if "not started" in line]
    assert len(said) == 1 and "NoGPU" in said[0], "one clear error, not one for each tick"
    assert agent.put(2, 60, mode="Disabled") == 200
    agent.wait(lambda: agent.status()["partition"]["state"] == "Applied")
    assert agent.status()["partition"]["enforcement"] == "none"


def test_a_bad_file_ends_the_agent_with_words(tmp_path: Path) -> None:
    (tmp_path / "agent.json").write_text('{"config": {"partition": {"split": {"decodePercent": 0}}}}')
    command = [sys.executable, "-m", "semipd_agent", "--config", str(tmp_path / "agent.json"), "--port", "0", "--"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert result.returncode == 1
    assert "config.partition.split.decodePercent" in result.stderr
