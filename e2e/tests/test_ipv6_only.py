"""A pod of a single-stack IPv6 cluster: agent and engine where there is no IPv4 address at all, not even 127.0.0.1.

The local cluster is IPv4. So the pod's processes run in a network namespace of their own, and the operator's client and
a user's speak to them there.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from e2e.lib.models import random_model
from e2e.lib.waiting import wait_until
from localkube.namespaces import network_of
from semipd_agent.contract import AgentConfig, AgentFile, StatusReport, token_digest
from semipd_operator.agents import AgentClient, AgentError

pytestmark = pytest.mark.node

POD_IP = "fd00::5"
NETWORK = f"ip link set lo up && ip address delete 127.0.0.1/8 dev lo && ip address add {POD_IP}/128 dev lo nodad"
API, AGENT = 8000, 9400


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The agent as the rendered pod starts it, and through it the engine."""
    file = tmp_path / "agent.json"
    start = AgentFile(token_sha256=(token_digest("secret"),), config=AgentConfig(generation=1))
    file.write_text(start.model_dump_json(by_alias=True))
    model = random_model("llama")
    agent = [sys.executable, "-m", "semipd_agent", "--config", str(file), "--"]
    engine = [
        "--model",
        str(model),
        "--served-model-name",
        "m",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--host",
        "::",
    ]
    engine += ["--max-model-len", "512", "--kv-cache-memory", str(64 << 20), "--drain-seconds", "2"]
    command = ["unshare", "--net", "sh", "-c", f'{NETWORK} && exec "$@"', "pod", *agent, *engine]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={"POD_UID": "uid-6", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        )
    yield process
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    print((tmp_path / "log").read_text()[-3000:])


def look() -> StatusReport | str:
    """As the operator's poller does."""

    async def ask() -> StatusReport:
        client = AgentClient(AGENT, 5.0)
        try:
            return await client.look(POD_IP, "uid-6", ("secret",), None)
        finally:
            await client.close()

    try:
        return asyncio.run(ask())
    except AgentError as error:
        return str(error)


def ready_report() -> StatusReport | None:
    report = look()
    return report if isinstance(report, StatusReport) and report.engine.ready else None


def test_a_pod_without_any_ipv4_address_serves(pod: subprocess.Popen[bytes]) -> None:
    def network(pid: str) -> str:
        return str(Path(f"/proc/{pid}/ns/net").readlink())

    # The process makes the namespace itself.
    wait_until(lambda: network(str(pod.pid)) != network("self"), describe=lambda: "no network of its own")
    with network_of(pod.pid):
        report = wait_until(ready_report, describe=look)
        with httpx.Client(timeout=30, trust_env=False) as http:
            # Probes and Services use the pod's address alone.
            assert http.get(f"http://[{POD_IP}]:{AGENT}/ready").status_code == 200
            body = {"model": "m", "prompt": "one two", "max_tokens": 4, "ignore_eos": True}
            answer = http.post(f"http://[{POD_IP}]:{API}/v1/completions", json=body).raise_for_status().json()
    assert report and answer["usage"]["completion_tokens"] == 4
    assert report.partition.applied is not None and report.engine.reason != "APINotResponding"
