"""Agent, MPS life-cycle and the real core with real workers on rungs, under load, on a CPU: no token is lost.

Beneath the agent are the stand-ins for the control program, NVML and the probe; the model is the fake one whose tokens
betray every wrong block, and nothing is limited. Messages, processes, restarts and their order are the ones that serve
on a GPU.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.engine.harness import ApiClient
from tests.engine.load import Load
from tests.unit.test_agent_process import TOKEN
from tests.unit.test_mps_process import GpuAgent

from e2e.lib.process import runs
from semipd_agent.slo.preparation import ASSUMED_SECONDS
from semipd_agent.slo.recording import replayed

pytestmark = pytest.mark.engine
ROOT = Path(__file__).resolve().parents[2]


class Loaded(GpuAgent):
    """With eight streams that never stop."""

    def __init__(self, folder: Path, base: Path) -> None:
        engine = folder / "semipd-engine"
        engine.write_text(f'#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -m tests.unit.mps_engine "$@"\n')
        engine.chmod(0o755)
        (folder / "model").mkdir()
        flags = [
            "--model",
            str(folder / "model"),
            "--max-model-len",
            "400",
            "--kv-cache-memory",
            str(1 << 16),
            "--drain-seconds",
            "2",
        ]
        pace = {"SEMIPD_FAKE_TOKEN_MS": "0.3", "SEMIPD_FAKE_STEP_MS": "3"}
        super().__init__(folder, base, engine=engine, flags=tuple(flags), env=pace)

    def begin(self) -> None:
        self.wait_applied(60, 80)
        self.load = Load(self)

    def client(self) -> ApiClient:
        """For `Load`. The core ends once its last client has gone."""
        self._client = ApiClient(self.run_dir)
        return self._client

    def stop(self) -> None:
        if hasattr(self, "load"):
            self.load.stop()
            self._client.close()
        super().stop()

    def more(self, count: int = 20) -> None:
        """Wait until this many more streams have ended well."""
        goal = len(self.load.finished) + count
        self.wait(lambda: len(self.load.finished) >= goal or bool(self.load.wrong))
        assert self.load.wrong == []


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Loaded]:
    with tempfile.TemporaryDirectory(prefix="spd") as base:
        running = Loaded(tmp_path, Path(base))
        try:
            running.begin()
            yield running
        finally:
            running.stop()
        assert running.load.wrong == [] and running.load.finished
        assert list(Path(base).iterdir()) == []


def test_warm_and_cold_rungs_under_load(agent: Loaded) -> None:
    first = agent.workers()
    assert set(first) == {("prefill", 78), ("prefill", 132), ("decode", 104), ("decode", 132)}
    agent.more()
    agent.put(2, 100, decode=100)
    agent.wait_applied(100, 100)
    assert set(agent.workers().items()) <= set(first.items()), "both workers were warm: nobody was started"
    agent.more()
    agent.put(3, 30, decode=50)
    agent.wait_applied(30, 50)
    agent.wait(lambda: set(agent.workers()) == {("prefill", 38), ("prefill", 132), ("decode", 66), ("decode", 132)})
    agent.more()


def test_auto_is_told_which_rungs_are_warm(agent: Loaded) -> None:
    """What it saw is in its recording: the rungs with a worker, and how long the start of one takes here."""
    slo = {"ttftMilliseconds": 60_000, "tpotMilliseconds": 60_000}
    partition = {"mode": "Auto", "split": {"prefillPercent": 60, "decodePercent": 80}}
    body = {"generation": 2, "slo": slo, "partition": partition}
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert agent.http.put("/v1/config", json=body, headers=bearer).status_code == 200
    told: list[dict[str, Any]] = []

    def lines() -> list[str]:
        return agent.http.get("/v1/recording", headers=bearer).text.splitlines()

    def judged() -> bool:
        ticks = [json.loads(line).get("tick") for line in lines()]
        told[:] = [tick["preparation"] for tick in ticks if tick and tick["verdict"]]
        return len(told) > 2

    agent.wait(judged)
    assert all((each["prefill"], each["decode"]) == ([60, 100], [80, 100]) for each in told)
    assert all(0 < each["seconds"] != ASSUMED_SECONDS for each in told)
    assert all(tick.same for tick in replayed(lines()))


def test_a_workers_death_in_mid_step_costs_nobody_else_anything(agent: Loaded) -> None:
    before, epoch = agent.workers(), agent.partition()["splitEpoch"]
    agent.more()
    os.kill(before[("decode", 104)], signal.SIGKILL)
    agent.wait(lambda: "serves on after the death of a decode worker" in (agent.folder / "log").read_text())
    agent.wait_applied(60, 80)
    agent.more()
    after = agent.workers()
    assert {key for key in after if after[key] != before[key]} == {("decode", 104)}
    assert agent.partition()["splitEpoch"] == epoch


def test_a_server_fault_takes_every_worker_and_no_request(agent: Loaded) -> None:
    agent.more()
    before, server, epoch = agent.workers(), agent.server(), agent.partition()["splitEpoch"]
    agent.faults(f"get_server_status {server}: answer FAULT")
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)  # a fatal error of the GPU reaches all clients of the server
    agent.wait(lambda: agent.partition()["splitEpoch"] > epoch)
    agent.wait_applied(60, 80)
    assert not runs(server) and not set(agent.workers().values()) & set(before.values())
    agent.more()


def test_a_dead_daemon_is_replaced_beneath_the_running_streams(agent: Loaded) -> None:
    agent.more()
    before, server, epoch = agent.workers(), agent.server(), agent.partition()["splitEpoch"]
    os.kill(agent.daemon(), signal.SIGKILL)
    agent.wait(lambda: agent.partition()["splitEpoch"] > epoch)
    agent.wait_applied(60, 80)
    agent.wait(lambda: not set(agent.workers().values()) & set(before.values()))
    agent.wait(lambda: not runs(server))
    assert agent.status()["engine"]["restarts"].get("decode", 0) == 0, "nobody died: they were replaced"
    agent.more()
