"""The agent as a real process with MPS, on stand-ins: control program, server, probe, NVML, and an engine with rungs.

What is real: the agent, its children, their environments, time-outs, restarts and ends. What is not: the GPU.
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
from tests.unit.mps_bench import STAND_IN, stand_ins
from tests.unit.mps_stand_in import script_faults
from tests.unit.test_agent_process import RunningAgent

from e2e.lib.process import runs
from e2e.lib.waiting import PATIENCE_S

pytestmark = pytest.mark.unit


class GpuAgent(RunningAgent):
    def __init__(
        self,
        folder: Path,
        base: Path,
        *,
        flags: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        engine: Path | None = None,
        **machine: Any,
    ) -> None:
        """`machine`: what NVML says; `engine`: takes the place of the stand-in."""
        self.machine_file = folder / "machine.json"
        self.machine(**machine)
        self.script = folder / "script"
        self.script.write_text("")
        programs = stand_ins(folder)
        probe = folder / "probe"
        probe.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {STAND_IN} probe "$@"\n')
        probe.chmod(0o755)
        variables = {
            "PATH": f"{Path(programs.control).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(Path(__file__).with_name("nvml_stand_in")),
            "NVML_STAND_IN": str(self.machine_file),
            "STAND_IN_SCRIPT": str(self.script),
        }
        options = ("--mps-dir", str(base), "--mps-probe", str(probe))
        super().__init__(
            folder, "--device", "cuda", *flags, options=options, env=variables | (env or {}), engine=engine
        )

    def machine(self, **fields: Any) -> None:
        self.machine_file.write_text(json.dumps(fields))

    def faults(self, *lines: str) -> None:
        script_faults(self.script, *lines)

    def partition(self) -> dict[str, Any]:
        return dict(self.status()["partition"])

    def wait_applied(self, prefill: int, decode: int) -> None:
        split = {"prefillPercent": prefill, "decodePercent": decode}

        def there() -> bool:
            partition = self.partition()
            return partition["state"] == "Applied" and partition["applied"] == split

        self.wait(there)

    def workers(self) -> dict[tuple[str, int], int]:
        """PIDs of the live workers by phase and SMs."""
        return {(w["phase"], w["smCount"]): w["pid"] for w in self.status()["engine"]["workers"]}

    def daemon(self) -> int:
        return next(pid for pid in children(self.process.pid) if words(pid)[-2:] == ["control", "-f"])

    def server(self) -> int:
        return next(pid for pid in children(self.daemon()) if "server" in words(pid))


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def words(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="spd") as folder:
        yield Path(folder)


@pytest.fixture
def agent(tmp_path: Path, base: Path) -> Iterator[GpuAgent]:
    running = GpuAgent(tmp_path, base)
    try:
        running.wait_applied(60, 80)
        yield running
    finally:
        running.stop()


def test_start_warm_rung_cold_rung_and_quit(agent: GpuAgent, base: Path) -> None:
    partition = agent.partition()
    assert (partition["backend"], partition["enforcement"]) == ("mps", "spatial-cap")
    first = agent.workers()
    assert set(first) == {("prefill", 78), ("prefill", 132), ("decode", 104), ("decode", 132)}
    assert agent.http.get("/ready").status_code == 200

    agent.put(2, 100, decode=100)  # both 100 % workers are warm: nobody is started
    agent.wait_applied(100, 100)
    assert agent.workers() == first

    agent.put(3, 33, decode=100)  # quantized to 30 %: cold
    agent.wait_applied(30, 100)
    partition = agent.partition()
    assert (partition["requested"]["prefillPercent"], partition["quantized"]["prefillPercent"]) == (33, 30)
    cold = agent.workers()
    assert ("prefill", 38) in cold and first.items() <= cold.items(), "the others stayed"

    metrics = agent.http.get("/metrics").text
    assert "semipd_mps_up 1.0" in metrics and 'semipd_gpu_memory_bytes{state="total"}' in metrics
    assert f'semipd_worker_sms{{phase="prefill",pid="{cold[("prefill", 38)]}"}} 38.0' in metrics
    for part, seconds in (("launch", 0.25), ("warm_up", 1.5)):
        labels = f'part="{part}",phase="prefill",pid="{cold[("prefill", 38)]}"'
        assert f"semipd_worker_start_seconds{{{labels}}} {seconds}" in metrics

    family = [agent.daemon(), agent.server(), *cold.values()]
    agent.process.send_signal(signal.SIGTERM)
    assert agent.process.wait(PATIENCE_S) == 0
    agent.wait(lambda: not any(map(runs, family)))
    assert list(base.iterdir()) == []


def test_a_server_fault_moves_every_worker_to_a_new_daemon(agent: GpuAgent) -> None:
    before, epoch = agent.workers(), agent.partition()["splitEpoch"]
    daemon, server = agent.daemon(), agent.server()
    agent.faults(f"get_server_status {server}: answer FAULT")
    agent.wait(lambda: agent.partition()["splitEpoch"] > epoch)
    agent.wait_applied(60, 80)
    after = agent.workers()
    assert set(after) == set(before) and not set(after.values()) & set(before.values())
    agent.wait(lambda: not runs(daemon) and not runs(server))
    assert agent.status()["decisions"] == [], "the split was not moved"
    assert "semipd_mps_losses_total 1.0" in agent.http.get("/metrics").text
    # The report names the fault until the successor serves, which may be sooner than anybody asks; the log keeps it.
    assert "MPSServerFault: the MPS server is in state FAULT" in (agent.folder / "log").read_text()


def test_a_dead_daemon_and_then_a_dead_worker(agent: GpuAgent) -> None:
    daemon, server = agent.daemon(), agent.server()
    before, epoch = agent.workers(), agent.partition()["splitEpoch"]
    os.kill(daemon, signal.SIGKILL)
    agent.wait(lambda: agent.partition()["splitEpoch"] > epoch)
    assert "MPSDaemonDied" in (agent.folder / "log").read_text()
    agent.wait_applied(60, 80)
    after = agent.workers()
    assert not set(after.values()) & set(before.values())
    agent.wait(lambda: not runs(server))

    epoch = agent.partition()["splitEpoch"]
    os.kill(after[("decode", 104)], signal.SIGKILL)  # the server passes the probe: nobody else is restarted
    agent.wait(lambda: agent.status()["engine"]["restarts"]["decode"] == 1)
    agent.wait(lambda: "serves on after the death of a decode worker" in (agent.folder / "log").read_text())
    agent.wait_applied(60, 80)
    reborn = agent.workers()
    assert {key for key in reborn if reborn[key] != after[key]} == {("decode", 104)}
    assert agent.partition()["splitEpoch"] == epoch

    agent.faults("probe: refuse")
    os.kill(reborn[("prefill", 78)], signal.SIGKILL)  # now it does not: all are
    agent.wait(lambda: "MPSServerFault: after the death of a prefill" in (agent.folder / "log").read_text())
    agent.faults()
    agent.wait(lambda: agent.partition()["splitEpoch"] > epoch)
    agent.wait_applied(60, 80)
    assert not set(agent.workers().values()) & set(reborn.values())


@pytest.mark.parametrize(
    ("machine", "reason"), [({"compute_mode": 3}, "ComputeModeUnsupported"), ({"mig": 1}, "MIGEnabled")]
)
def test_a_refusal_starts_nothing_until_partitioning_is_disabled(
    tmp_path: Path, base: Path, machine: dict[str, Any], reason: str
) -> None:
    agent = GpuAgent(tmp_path, base, **machine)
    try:
        agent.wait(lambda: agent.partition()["reason"] == reason)
        engine = agent.status()["engine"]
        assert (engine["state"], engine["reason"]) == ("Failed", reason)
        assert children(agent.process.pid) == [] and list(base.iterdir()) == []
        agent.put(2, 60, mode="Disabled")
        agent.wait(lambda: agent.partition()["state"] == "Applied")
        assert {sms for _, sms in agent.workers()} == {132}
    finally:
        agent.stop()


def test_a_second_sigterm_has_mps_end_the_workers_before_anything_is_killed(tmp_path: Path, base: Path) -> None:
    agent = GpuAgent(tmp_path, base, flags=("--drain-seconds", "600"))
    try:
        agent.wait_applied(60, 80)
        workers = agent.workers().values()
        agent.process.send_signal(signal.SIGTERM)
        agent.wait(lambda: agent.http.get("/ready").status_code == 503)
        agent.process.send_signal(signal.SIGTERM)
        assert agent.process.wait(PATIENCE_S) == 0
        said = (agent.folder / "log").read_text()
        assert all(f"MPS ended its client {pid}," in said for pid in workers)
    finally:
        agent.stop()


def test_a_launcher_that_dies_makes_the_server_suspect(agent: GpuAgent) -> None:
    """Its workers are killed with it, by the kernel, and no core is left to count them."""
    launcher = next(pid for pid in children(agent.process.pid) if "serve" in words(pid))
    before = agent.workers()
    os.kill(launcher, signal.SIGKILL)
    agent.wait(lambda: "serves on after the end of all workers with their core" in (agent.folder / "log").read_text())
    agent.wait(lambda: not set(agent.workers().values()) & set(before.values()))
    agent.wait_applied(60, 80)


def test_a_gpu_that_the_driver_has_lost_takes_the_pod_out_of_service(agent: GpuAgent) -> None:
    agent.machine(lost=True)
    agent.wait(lambda: agent.partition()["reason"] == "GPUUnhealthy")
    assert "the driver has lost the GPU (GPU is lost): delete the pod" in agent.partition()["message"]
    assert agent.http.get("/ready").status_code == 503


def test_a_hardware_error_takes_the_pod_out_of_service(agent: GpuAgent) -> None:
    agent.machine(xids=[79])
    agent.wait(lambda: agent.partition()["reason"] == "GPUUnhealthy")
    assert agent.http.get("/ready").status_code == 503
    assert 'semipd_gpu_xid_errors_total{xid="79"} 1.0' in agent.http.get("/metrics").text
