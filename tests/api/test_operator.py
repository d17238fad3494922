"""The real operator process, with the chart's rights only, against the real API server.

Pods are made by hand, as there is no controller manager; a stand-in speaks the agent's real contract on their IPs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from semipd_agent.contract import (
    AgentConfig,
    Enforcement,
    EnginePhase,
    EngineStatus,
    Health,
    Identity,
    PartitionReason,
    PartitionReport,
    PartitionState,
    StatusReport,
    service_token,
)

pytestmark = pytest.mark.api
ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789abcdef0123456789abcdef"


def until(check: Any, seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        value = check()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.1)


class Agent:
    """Speaks the agent's contract for one pod; `report` may be changed while it runs."""

    def __init__(self, ip: str, port: int, pod: dict[str, Any], token: str) -> None:
        self.pod, self.token = pod, token
        self.config = AgentConfig()
        self.state = PartitionState.APPLIED
        self.puts: list[AgentConfig] = []
        self.closed = False
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def answer(self, status: int, body: str = "{}") -> None:
                if agent.closed:  # a process that ends takes its connections with it
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            def do_GET(self) -> None:
                if self.path == "/health":
                    self.answer(200, Health(pod_uid=agent.pod["metadata"]["uid"]).model_dump_json(by_alias=True))
                elif self.headers.get("Authorization") != f"Bearer {agent.token}":
                    self.answer(401)
                else:
                    self.answer(200, agent.report().model_dump_json(by_alias=True))

            def do_PUT(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Authorization") != f"Bearer {agent.token}":
                    return self.answer(401)
                agent.config = AgentConfig.model_validate_json(body)
                agent.puts.append(agent.config)
                return self.answer(200, agent.report().model_dump_json(by_alias=True))

        self.server = ThreadingHTTPServer((ip, port), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def report(self) -> StatusReport:
        partition = self.config.partition
        return StatusReport(
            identity=Identity(pod_uid=self.pod["metadata"]["uid"]),
            observed_at=datetime.now(UTC),
            config_generation=self.config.generation,
            partition=PartitionReport(
                mode=partition.mode,
                policy=partition.policy if partition.mode == "Auto" else None,
                backend="cpu-paced",
                enforcement=Enforcement.PACED,
                requested=partition.split,
                quantized=partition.split,
                applied=partition.split if self.state is PartitionState.APPLIED else None,
                state=self.state,
                reason=PartitionReason.APPLIED
                if self.state is PartitionState.APPLIED
                else PartitionReason.WORKER_NOT_RESPONDING,
            ),
            engine=EngineStatus(state=EnginePhase.READY, ready=True, device="cpu", dtype="float32"),
        )

    def close(self) -> None:
        self.closed = True
        self.server.shutdown()
        self.server.server_close()


class Operator:
    """One operator process; its log is shown when a test fails."""

    def __init__(self, cluster: Any, folder: Path, agent_port: int, ports: tuple[int, int], *extra: str) -> None:
        self.health = f"http://127.0.0.1:{ports[0]}/healthz"
        self.metrics = f"http://127.0.0.1:{ports[1]}/metrics"
        (folder / "key").write_text(KEY)
        self.log = folder / "operator.log"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "semipd_operator",
                "--engine-image=engine:test",
                f"--key-file={folder / 'key'}",
                f"--agent-port={agent_port}",
                f"--health-port={ports[0]}",
                f"--metrics-port={ports[1]}",
                "--resync-seconds=5",
                *extra,
            ],
            env={**os.environ, "KUBECONFIG": str(cluster.operator_kubeconfig)},
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def healthy(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(self.health, timeout=2).status == 200
        return False

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def chart_rights(cluster: Any) -> list[dict[str, Any]]:
    """The chart's RBAC objects, rendered by the real helm, for the ServiceAccount of the operator's kubeconfig."""
    helm = cluster.bin / "helm"
    if not helm.exists():
        found = shutil.which("helm")
        if not found:
            pytest.skip("helm is not built: run `e2e/cluster/tools build`")
        helm = Path(found)
    text = subprocess.run(
        [
            helm,
            "template",
            "semipd-operator",
            ROOT / "charts/semipd-operator",
            "-n",
            "semipd-system",
            "--kube-version=1.36.2",
            "-s",
            "templates/rbac.yaml",
            "-s",
            "templates/aggregate.yaml",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [obj for obj in yaml.safe_load_all(text) if obj]


@pytest.fixture(scope="module")
def agent_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def operator(crd: Any, tmp_path_factory: pytest.TempPathFactory, agent_port: int) -> Iterator[Operator]:
    for obj in chart_rights(crd):
        crd.apply(obj)
    import socket

    with socket.socket() as a, socket.socket() as b:
        a.bind(("127.0.0.1", 0))
        b.bind(("127.0.0.1", 0))
        ports = (a.getsockname()[1], b.getsockname()[1])
    running = Operator(crd, tmp_path_factory.mktemp("operator"), agent_port, ports)
    try:
        assert until(running.healthy), running.log.read_text()[-3000:]
        yield running
        print(running.log.read_text()[-6000:])
    finally:
        if running.process.poll() is None:
            running.stop()


def service(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "semipd.io/v1alpha1",
        "kind": "SemiPDService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"uri": "file:///models/m"}, **spec},
    }


def condition(obj: dict[str, Any] | None, kind: str) -> dict[str, Any]:
    conditions = ((obj or {}).get("status") or {}).get("conditions") or []
    return next((entry for entry in conditions if entry["type"] == kind), {})


def make_pod(cluster: Any, namespace: str, owner: str, name: str, ip: str) -> dict[str, Any]:
    """A ready pod as the Deployment's ReplicaSet would have made it."""
    template = cluster.get("deployment", owner, namespace)["spec"]["template"]
    spec = {**template["spec"], "nodeName": "node-1"}
    cluster.request(
        "POST",
        f"/api/v1/namespaces/{namespace}/pods",
        {"metadata": {"name": name, "labels": template["metadata"]["labels"]}, "spec": spec},
    )
    running = {"name": "engine", "image": "engine:test", "imageID": "", "restartCount": 0, "ready": True}
    return cluster.request(
        "PATCH",
        f"/api/v1/namespaces/{namespace}/pods/{name}/status",
        {
            "status": {
                "phase": "Running",
                "podIP": ip,
                "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [{**running, "state": {"running": {}}}],
            }
        },
        "application/merge-patch+json",
    )


def test_children_appear_and_drift_is_corrected(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("demo", namespace, replicas=2))
    deployment = until(lambda: crd.get("deployment", "demo", namespace))
    assert deployment["spec"]["replicas"] == 2
    for kind, name in (("service", "demo"), ("configmap", "demo-agent"), ("pdb", "demo")):
        child = until(lambda kind=kind, name=name: crd.get(kind, name, namespace))
        assert child["metadata"]["ownerReferences"][0]["kind"] == "SemiPDService", kind
    live = until(lambda: (got := crd.get("spd", "demo", namespace)).get("status", {}).get("selector") and got)
    assert condition(live, "SpecAccepted")["status"] == "True"
    assert condition(live, "Available")["reason"] == "NoPods"
    assert live["status"]["observedGeneration"] == live["metadata"]["generation"]
    assert not live["metadata"].get("finalizers")
    # kubectl's own annotation is the only one: the operator writes no metadata.
    assert set(live["metadata"]["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}

    crd.kubectl("scale", "deployment/demo", "-n", namespace, "--replicas=7")
    assert until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 2)
    crd.kubectl("delete", "service/demo", "-n", namespace)
    assert until(lambda: crd.get("service", "demo", namespace))

    crd.kubectl("scale", "spd/demo", "-n", namespace, "--replicas=1")
    assert until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 1)
    assert until(lambda: crd.get("pdb", "demo", namespace) is None), "a single pod keeps no budget"


def test_a_patch_reaches_the_agent_and_the_status_at_once(
    operator: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    crd.apply(service("live", namespace, partition={"mode": "Manual", "prefillPercent": 60, "decodePercent": 80}))
    until(lambda: crd.get("deployment", "live", namespace))
    uid = crd.get("spd", "live", namespace)["metadata"]["uid"]
    pod = make_pod(crd, namespace, "live", "live-1", "127.0.0.2")
    agent = Agent("127.0.0.2", agent_port, pod, service_token(KEY.encode(), namespace, "live", uid))
    try:

        def row() -> list[str]:
            return crd.kubectl("get", "spd", "live", "-n", namespace, "--no-headers").stdout.split()

        assert until(lambda: row()[1:6] == ["True", "Ready", "1", "60/80", "paced"]), row()
        template = crd.get("deployment", "live", namespace)["spec"]["template"]

        patch = {"spec": {"partition": {"prefillPercent": 30}, "slo": {"ttftMilliseconds": 300}}}
        crd.kubectl("patch", "spd", "live", "-n", namespace, "--type=merge", "-p", json.dumps(patch))
        began = time.monotonic()

        def applied() -> Any:
            return crd.get("spd", "live", namespace)["status"]["partition"].get("applied")

        assert until(lambda: applied() == {"prefillPercent": 30, "decodePercent": 80}, 5), applied()
        assert time.monotonic() - began < 5
        assert agent.puts[-1].slo is not None and agent.puts[-1].slo.ttft_milliseconds == 300
        assert crd.get("deployment", "live", namespace)["spec"]["template"] == template, "nothing may roll"

        agent.state = PartitionState.FAILED
        assert until(lambda: condition(crd.get("spd", "live", namespace), "PartitionApplied")["status"] == "False", 10)
        assert condition(crd.get("spd", "live", namespace), "PartitionApplied")["reason"] == "WorkerNotResponding"
        agent.state = PartitionState.APPLIED
        assert until(lambda: row()[1] == "True")
        events = crd.kubectl("get", "events", "-n", namespace, "-o", "json").stdout
        assert "PartitionApplyFailed" in {event["reason"] for event in json.loads(events)["items"]}
    finally:
        agent.close()
    assert until(
        lambda: condition(crd.get("spd", "live", namespace), "PartitionApplied").get("reason") == "AgentUnreachable", 25
    )
