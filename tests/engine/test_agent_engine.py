"""The agent with the real engine on the CPU: a changed split read back from real workers, stops, kills, drain."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from e2e.lib.models import random_model
from e2e.lib.process import free_port, stop
from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_agent.contract import (
    SLO,
    AgentConfig,
    AgentFile,
    Mode,
    PartitionConfig,
    Split,
    StatusReport,
    token_digest,
)
from semipd_agent.slo.recording import replayed

pytestmark = pytest.mark.engine

HEADERS = {"Authorization": "Bearer secret"}


def config(generation: int, prefill: int, decode: int) -> AgentConfig:
    split = Split(prefill_percent=prefill, decode_percent=decode)
    return AgentConfig(generation=generation, partition=PartitionConfig(split=split))


class Pod:
    """Agent and engine as in a pod, without the pod."""

    def __init__(self, folder: Path, model: Path) -> None:
        file = folder / "agent.json"
        start = AgentFile(token_sha256=(token_digest("secret"),), config=config(1, 60, 80))
        file.write_text(start.model_dump_json(by_alias=True))
        api_port = free_port()
        port = folder / "port"
        own = ["--config", str(file), "--host", "127.0.0.1", "--port", "0", "--port-file", str(port)]
        own += ["--api-hung-seconds", "15"]
        engine = ["--model", str(model), "--device", "cpu", "--dtype", "float32", "--port", str(api_port)]
        engine += ["--max-model-len", "512", "--kv-cache-memory", str(64 << 20), "--drain-seconds", "5"]
        self._log_path = folder / "log"
        self._log = self._log_path.open("wb")
        command = [sys.executable, "-m", "semipd_agent", *own, "--", *engine]
        self.process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        self.wait(lambda: port.exists() and port.read_text().endswith("\n"))
        self.agent = httpx.Client(base_url=f"http://127.0.0.1:{int(port.read_text())}", headers=HEADERS, timeout=60)
        self.api = httpx.Client(base_url=f"http://127.0.0.1:{api_port}", timeout=60)

    def status(self) -> StatusReport:
        return StatusReport.model_validate_json(self.agent.get("/v1/status").raise_for_status().content)

    def put(self, wanted: AgentConfig) -> None:
        self.agent.put("/v1/config", json=wanted.model_dump(mode="json", by_alias=True)).raise_for_status()

    def applied(self) -> str:
        return str(self.status().partition.applied)

    def worker(self, phase: str) -> int:
        return next(w.pid for w in self.status().engine.workers if w.phase == phase)

    def complete(self) -> dict[str, Any]:
        body = {"prompt": "one two three", "max_tokens": 8, "temperature": 0, "model": self.status().engine.model_name}
        return dict(self.api.post("/v1/completions", json=body).raise_for_status().json())

    def wait(self, condition: Callable[[], bool]) -> None:
        wait_until(condition, describe=lambda: self._log_path.read_text()[-4000:])

    def stop(self) -> None:
        stop(self.process, patience_s=PATIENCE_S)
        self._log.close()


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    running = Pod(tmp_path_factory.mktemp("pod"), random_model("llama"))
    yield running
    running.stop()


def test_an_api_that_hangs_is_killed_and_another_one_answers(pod: Pod) -> None:
    """A stopped process ends by itself never, and would keep the pod out of its Service for good."""
    pod.wait(lambda: pod.agent.get("/ready").status_code == 200)

    def api() -> psutil.Process:
        children = psutil.Process(pod.process.pid).children(recursive=True)
        return next(child for child in children if child.cmdline()[:1] == ["semipd: api"])

    first = api()
    first.suspend()
    pod.wait(lambda: not first.is_running())
    pod.wait(lambda: pod.agent.get("/ready").status_code == 200)
    assert pod.complete()["choices"] and pod.status().engine.restarts["api"] == 1


def test_the_split_is_read_back_and_changed_in_place(pod: Pod) -> None:
    pod.wait(lambda: pod.applied() == "60/80")
    before = pod.complete()["choices"][0]["text"]
    pids = {phase: pod.worker(phase) for phase in ("prefill", "decode")}
    pod.put(config(2, 30, 70))
    pod.wait(lambda: pod.applied() == "30/70")
    assert {phase: pod.worker(phase) for phase in pids} == pids
    assert pod.complete()["choices"][0]["text"] == before
    assert pod.status().partition.enforcement == "paced"


def test_a_stopped_worker_is_not_applied(pod: Pod) -> None:
    pod.wait(lambda: pod.status().partition.state == "Applied")
    stopped = pod.worker("prefill")
    os.kill(stopped, signal.SIGSTOP)
    try:
        pod.wait(lambda: pod.status().partition.reason == "WorkerNotResponding")
        assert pod.status().partition.applied is None
    finally:
        os.kill(stopped, signal.SIGCONT)
    pod.wait(lambda: pod.status().partition.state == "Applied")


def test_the_split_survives_the_death_of_worker_and_core(pod: Pod) -> None:
    pod.wait(lambda: pod.status().partition.state == "Applied")
    split, epoch = pod.applied(), pod.status().partition.split_epoch
    killed = pod.worker("decode")
    os.kill(killed, signal.SIGKILL)
    pod.wait(lambda: pod.status().partition.state == "Applied" and pod.worker("decode") != killed)
    os.kill(_core_of(pod.process.pid), signal.SIGKILL)
    pod.wait(lambda: pod.status().partition.split_epoch > epoch and pod.status().partition.state == "Applied")
    assert pod.applied() == split
    assert pod.status().engine.restarts["core"] == 1
    pod.wait(lambda: pod.agent.get("/ready").status_code == 200)
    assert pod.complete()["choices"][0]["finish_reason"] == "length"


def test_a_recording_of_real_traffic_decided_again_comes_to_the_same(pod: Pod) -> None:
    pod.wait(lambda: pod.agent.get("/ready").status_code == 200)
    slo = SLO(ttft_milliseconds=2000, tpot_milliseconds=200)
    pod.put(AgentConfig(generation=9, slo=slo, partition=PartitionConfig(mode=Mode.AUTO)))

    def judged() -> bool:
        pod.complete()
        told = pod.status().slo
        return told is not None and told.feasible is not None

    pod.wait(judged)
    ticks = list(replayed(pod.agent.get("/v1/recording").raise_for_status().content.splitlines()))
    decided = [tick for tick in ticks if tick.recorded is not None]
    assert decided and all(tick.same for tick in ticks)
    assert any(tick.recorded.feasible is not None for tick in decided if tick.recorded), "it had requests to judge by"


def test_sigterm_drains_and_leaves_nothing(pod: Pod) -> None:
    pod.wait(lambda: pod.status().engine.ready)
    family = _descendants(pod.process.pid)
    assert len(family) >= 5
    pod.process.terminate()
    pod.wait(lambda: pod.agent.get("/ready").status_code == 503)
    assert pod.process.wait(PATIENCE_S) == 0
    pod.wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in family))


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _descendants(pid: int) -> list[int]:
    children = _children(pid)
    return children + [grandchild for child in children for grandchild in _descendants(child)]


def _core_of(agent: int) -> int:
    """The process named ``semipd: core`` below this agent."""
    return next(p for p in _descendants(agent) if b"semipd: core" in Path(f"/proc/{p}/cmdline").read_bytes())
