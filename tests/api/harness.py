"""What the tests of the running operator need: its process, a stand-in for a pod's agent, pods made by hand."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.lib.process import free_port
from e2e.lib.waiting import PATIENCE_S, wait_until
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
    SLOReport,
    Split,
    StatusReport,
    service_token,
    token_digest,
)

ROOT = Path(__file__).resolve().parents[2]
OPERATOR_NAMESPACE = "semipd-system"
KEY = "0123456789abcdef0123456789abcdef"


class Agent:
    """Speaks the agent's contract for one pod; `report` may be changed while it runs."""

    def __init__(self, ip: str, port: int, pod: dict[str, Any], token: str) -> None:
        self.pod, self.token = pod, token
        self.config = AgentConfig()
        self.state = PartitionState.APPLIED
        self.puts: list[AgentConfig] = []
        self.closed = False
        self.utilization_ratio: float | None = None
        """How full the pod says that it is, with an SLO."""
        self.split: Split | None = None
        """What Auto chose; None: what the configuration says."""
        self.told: StatusReport | None = None
        """What a real controller says of its load: its SLO's figures and its decisions."""
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
        split = self.split or partition.split
        return StatusReport(
            identity=Identity(pod_uid=self.pod["metadata"]["uid"]),
            observed_at=datetime.now(UTC),
            config_generation=self.config.generation,
            partition=PartitionReport(
                mode=partition.mode,
                policy=partition.policy if partition.mode == "Auto" else None,
                backend="cpu-paced",
                enforcement=Enforcement.PACED,
                requested=split,
                quantized=split,
                applied=split if self.state is PartitionState.APPLIED else None,
                state=self.state,
                reason=PartitionReason.APPLIED
                if self.state is PartitionState.APPLIED
                else PartitionReason.WORKER_NOT_RESPONDING,
            ),
            engine=EngineStatus(state=EnginePhase.READY, ready=True, device="cpu", dtype="float32"),
            slo=self._slo() if self.config.slo else None,
            decisions=self.told.decisions if self.told else (),
        )

    def _slo(self) -> SLOReport:
        if self.told and self.told.slo:
            return self.told.slo
        return SLOReport(percentile=90, window_seconds=60, utilization_ratio=self.utilization_ratio)

    def digest(self) -> str:
        return token_digest(self.token)

    def close(self) -> None:
        self.closed = True
        self.server.shutdown()
        self.server.server_close()


class Operator(contextlib.AbstractContextManager["Operator"]):
    """One operator process, ready inside its block; its log is shown when a test fails."""

    def __init__(
        self,
        cluster: Any,
        folder: Path,
        agent_port: int,
        *extra: str,
        key: str = KEY,
        ip: str = "",
    ) -> None:
        ports = free_port(), free_port()
        self.health = f"http://127.0.0.1:{ports[0]}/readyz"
        self.metrics = f"http://127.0.0.1:{ports[1]}/metrics"
        self.key = folder / "key"
        self.key.write_text(key)
        self.log = folder / "operator.log"
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "semipd_operator",
                "--engine-image=engine:test",
                f"--key-file={self.key}",
                f"--agent-port={agent_port}",
                f"--health-port={ports[0]}",
                f"--metrics-port={ports[1]}",
                "--resync-seconds=5",
                *extra,
            ],
            env={**os.environ, "KUBECONFIG": str(cluster.operator_kubeconfig), "POD_IP": ip},
            stdout=self.log.open("ab"),
            stderr=subprocess.STDOUT,
        )

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(self.health, timeout=2).status == 200
        return False

    def __enter__(self) -> Operator:
        try:
            wait_until(self.ready, describe=lambda: self.log.read_text()[-3000:])
        except AssertionError:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        print(self.log.read_text()[-6000:])
        if self.process.poll() is None:
            self.stop()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def programs(*names: str) -> Path:
    """The folder of the built programs; skips, saying how to get them (the tier runner counts a skip as a failure)."""
    found = subprocess.run(
        [sys.executable, ROOT / "hack/cluster/tools", "path", *names], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(found.stderr.strip())
    return Path(found.stdout.strip())


def helm_program() -> Path:
    """The one on the PATH, or the one that is built here."""
    return Path(shutil.which("helm") or programs("helm") / "helm")


def chart_rights(*more: str, values: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """The release's namespace, the chart's RBAC objects and those of `more` templates, by the real helm, for the
    ServiceAccount of the operator's kubeconfig. `values`: as by ``--set``."""
    text = subprocess.run(
        [
            helm_program(),
            "template",
            "semipd-operator",
            ROOT / "charts/semipd-operator",
            "-n",
            OPERATOR_NAMESPACE,
            "--kube-version=1.36.2",
            "-s",
            "templates/rbac.yaml",
            "-s",
            "templates/aggregate.yaml",
            *(word for name in more for word in ("-s", f"templates/{name}.yaml")),
            *(word for name, value in (values or {}).items() for word in ("--set", f"{name}={value}")),
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    system = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": OPERATOR_NAMESPACE}}
    return [system, *(obj for obj in yaml.safe_load_all(text) if obj)]


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


def make_pod(
    cluster: Any, namespace: str, owner: str, name: str, status: dict[str, Any], **spec: Any
) -> dict[str, Any]:
    """A pod as the Deployment's ReplicaSet would have made it, with a status as the kubelet's."""
    template = cluster.get("deployment", owner, namespace)["spec"]["template"]
    pods = f"/api/v1/namespaces/{namespace}/pods"
    labels = {**template["metadata"]["labels"], "pod-template-hash": "7d9c"}
    body = {"metadata": {"name": name, "labels": labels}, "spec": {**template["spec"], **spec}}
    cluster.request("POST", pods, body)
    return cluster.request("PATCH", f"{pods}/{name}/status", {"status": status}, "application/merge-patch+json")


def ready(ip: str) -> dict[str, Any]:
    """Status of a pod that serves."""
    engine = {"name": "engine", "image": "engine:test", "imageID": "", "restartCount": 0, "ready": True}
    return {
        "phase": "Running",
        "podIP": ip,
        "podIPs": [{"ip": ip}],
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [{**engine, "state": {"running": {}}}],
    }


@contextlib.contextmanager
def serving(crd: Any, namespace: str, name: str, ip: str, agent_port: int, **spec: Any) -> Iterator[Agent]:
    """A service with one ready pod, whose agent answers."""
    crd.apply(service(name, namespace, **spec))
    wait_until(lambda: crd.get("deployment", name, namespace))
    uid = crd.get("spd", name, namespace)["metadata"]["uid"]
    pod = make_pod(crd, namespace, name, f"{name}-1", ready(ip))
    agent = Agent(ip, agent_port, pod, service_token(KEY.encode(), namespace, name, uid))
    try:
        wait_until(lambda: condition(crd.get("spd", name, namespace), "PartitionApplied").get("status") == "True")
        yield agent
    finally:
        agent.close()


def row(crd: Any, namespace: str, name: str, *more: str) -> list[str]:
    return crd.kubectl("get", "spd", name, "-n", namespace, "--no-headers", *more).stdout.split()
