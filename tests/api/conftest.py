"""A real etcd and kube-apiserver for the api tier: no root, a private folder, free ports, gone after the session.

There is no controller manager: Deployments make no pods and nothing is garbage-collected; tests make the pods that
they need. Identities come from a static token file: `admin`, and the operator's ServiceAccount without extra rights.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.api.harness import OPERATOR_NAMESPACE, ROOT, Agent, Operator, chart_rights, programs
from tests.api.metrics_api import Scaled, demo, scaling

from e2e.lib.kube import Kube
from e2e.lib.process import free_port
from e2e.lib.waiting import PATIENCE_S, wait_until
from localkube.pki import Certificate, issue

OPERATOR_ACCOUNT = "semipd-operator"
OPERATOR_USER = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{OPERATOR_ACCOUNT}"


@dataclass(frozen=True)
class Cluster:
    bin: Path
    folder: Path
    url: str

    @property
    def kubeconfig(self) -> Path:
        return self.folder / "admin.kubeconfig"

    @property
    def audit_log(self) -> Path:
        """Every request of the operator, a line of JSON each."""
        return self.folder / "audit.log"

    @property
    def operator_kubeconfig(self) -> Path:
        return self.folder / "operator.kubeconfig"

    def kubectl(self, *arguments: str, stdin: str | None = None, ok: bool = True) -> subprocess.CompletedProcess[str]:
        """As admin. Raises `KubeError`."""
        home = {"HOME": str(self.folder)}  # discovery cache
        kube = Kube(env=home | {"PATH": f"{self.bin}:{os.environ['PATH']}", "KUBECONFIG": str(self.kubeconfig)})
        return kube.exec("kubectl", *arguments, stdin=stdin, check=ok)

    def apply(self, obj: dict[str, Any], *arguments: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        return self.kubectl("apply", "-f", "-", *arguments, stdin=json.dumps(obj), ok=ok)

    def define(self, *definitions: dict[str, Any]) -> None:
        """CRDs, until kubectl finds their kinds: "Established" comes a moment before that."""
        for definition in definitions:
            self.apply(definition)
            name = definition["metadata"]["name"]
            wait_until(lambda name=name: self.kubectl("get", name, "-A", ok=False).returncode == 0)  # type: ignore[misc]

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        answer = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(answer.stdout) if answer.stdout.strip() else None

    def request(self, method: str, path: str, body: Any = None, content_type: str = "application/json") -> Any:
        """One request as admin; raises AssertionError with the server's words."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Authorization", "Bearer admin-token")
        request.add_header("Content-Type", content_type)
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        try:
            with urllib.request.urlopen(request, context=context, timeout=PATIENCE_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read().decode()}") from None


def _kubeconfig(url: str, token: str) -> str:
    return yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
    )


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(
        signal.SIGKILL
    )  # the apiserver's graceful shutdown takes most of a minute; the data is thrown away
    child.wait()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with api_server(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@contextlib.contextmanager
def api_server(folder: Path) -> Iterator[Cluster]:
    """etcd and kube-apiserver of their own, in `folder`."""
    bin_folder = programs("etcd", "kube-apiserver", "kubectl")
    etcd_port, peer_port, api_port = free_port(), free_port(), free_port()
    url = f"https://127.0.0.1:{api_port}"
    certificates = folder / "pki"
    issue(certificates, (Certificate("front-proxy", "/CN=front-proxy-client"), Certificate("stranger", "/CN=stranger")))
    key = certificates / "service-account.key"
    (folder / "tokens.csv").write_text(
        f'admin-token,admin,1,"system:masters"\noperator-token,{OPERATOR_USER},2,"system:serviceaccounts"\n'
    )
    cluster = Cluster(bin_folder, folder, url)
    every = {"level": "Metadata", "users": [OPERATOR_USER], "omitStages": ["RequestReceived"]}
    policy = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [every, {"level": "None"}]}
    (folder / "audit.json").write_text(json.dumps(policy))
    for path, token in ((cluster.kubeconfig, "admin-token"), (cluster.operator_kubeconfig, "operator-token")):
        path.write_text(_kubeconfig(url, token))
        path.chmod(0o600)
    etcd = subprocess.Popen(
        [
            bin_folder / "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{etcd_port}",
            f"--advertise-client-urls=http://127.0.0.1:{etcd_port}",
            f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
            "--unsafe-no-fsync",
            "--log-level=error",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "etcd.log").open("wb"),
    )
    apiserver = subprocess.Popen(
        [
            bin_folder / "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{etcd_port}",
            "--bind-address=127.0.0.1",
            f"--secure-port={api_port}",
            f"--cert-dir={folder / 'certs'}",
            f"--token-auth-file={folder / 'tokens.csv'}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.96.0.0/24",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--service-account-issuer={url}",
            # The plugin that wants .../finalizers rights for blockOwnerDeletion is on in some clusters.
            "--enable-admission-plugins=OwnerReferencesPermissionEnforcement",
            "--disable-admission-plugins=ServiceAccount",
            # Aggregated APIs. Without endpoints' routing a Service of type ExternalName may name this machine.
            f"--requestheader-client-ca-file={certificates}/ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={certificates}/front-proxy.crt",
            f"--proxy-client-key-file={certificates}/front-proxy.key",
            f"--audit-policy-file={folder / 'audit.json'}",
            f"--audit-log-path={cluster.audit_log}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=(folder / "apiserver.log").open("wb"),
    )
    try:

        def ready() -> bool:
            assert apiserver.poll() is None, (folder / "apiserver.log").read_text()[-2000:]
            return cluster.kubectl("get", "--raw", "/readyz", ok=False).returncode == 0

        wait_until(ready)
        yield cluster
    finally:
        _stop(apiserver)
        _stop(etcd)


@pytest.fixture(scope="session")
def crd(cluster: Cluster) -> Cluster:
    """The cluster with the project's CRD served, applied as a user would (client-side: its size is tested too)."""
    cluster.kubectl("apply", "-f", str(ROOT / "crds"))
    wait_until(lambda: cluster.kubectl("get", "spd", ok=False).returncode == 0)
    return cluster


@pytest.fixture
def namespace(crd: Cluster, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    answer = crd.request("POST", "/api/v1/namespaces", {"metadata": {"generateName": "test-"}})
    name: str = answer["metadata"]["name"]
    return name


POD_MONITOR_CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "podmonitors.monitoring.coreos.com"},
    "spec": {
        "group": "monitoring.coreos.com",
        "scope": "Namespaced",
        "names": {
            "kind": "PodMonitor",
            "plural": "podmonitors",
            "singular": "podmonitor",
            "listKind": "PodMonitorList",
        },
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(scope="module")
def agent_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def operator(crd: Any, tmp_path_factory: pytest.TempPathFactory, agent_port: int) -> Iterator[Operator]:
    for obj in chart_rights():
        crd.apply(obj)
    crd.define(POD_MONITOR_CRD)
    with Operator(crd, tmp_path_factory.mktemp("operator"), agent_port) as running:
        yield running


@pytest.fixture(scope="module")
def scaled(crd: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scaled]:
    """An operator that serves external metrics."""
    with scaling(crd, tmp_path_factory.mktemp("scaled")) as running:
        yield running


@pytest.fixture
def agent(scaled: Scaled, namespace: str) -> Iterator[Agent]:
    """The agent of the one ready pod of the autoscaled service `demo`."""
    with demo(scaled, namespace) as speaking:
        yield speaking


@pytest.fixture(scope="session")
def controllers(crd: Cluster) -> Iterator[None]:
    """Of Deployments, quotas and volumes, and the scheduler, started once. From then on they make pods of every
    Deployment, so the modules that have them come last."""
    from tests.api.cluster_table import controllers_and_scheduler

    with controllers_and_scheduler(crd):
        yield


@pytest.fixture(scope="module")
def control_plane(operator: Operator, controllers: None, crd: Cluster) -> Cluster:
    """The cluster with an operator, the controllers and the scheduler."""
    return crd
