"""The chart with the real helm on a real API server: install, upgrade, uninstall. Pods never start here."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import Cluster, api_server
from tests.api.harness import ROOT, service

pytestmark = pytest.mark.api


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server without the CRD: the chart brings it."""
    with api_server(tmp_path_factory.mktemp("helm")) as cluster:
        yield cluster


def helm(cluster: Cluster, *arguments: str) -> str:
    program = cluster.bin / "helm"
    if not program.exists():
        found = shutil.which("helm")
        if not found:
            pytest.skip("helm is not built: run `hack/cluster/tools build`")
        program = Path(found)
    answer = subprocess.run(
        [program, "--kubeconfig", cluster.kubeconfig, "-n", "semipd-system", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(cluster.folder)},
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def key(cluster: Cluster) -> Any:
    secret = cluster.get("secret", "semipd-operator-key", "semipd-system")
    return secret and secret["data"]["key"]


def test_install_upgrade_uninstall(bare: Cluster) -> None:
    chart = str(ROOT / "charts/semipd-operator")
    notes = helm(bare, "install", "semipd-operator", chart, "--create-namespace")
    assert "kubectl get spd" in notes
    bare.kubectl("wait", "--for=condition=Established", "crd/semipdservices.semipd.io", "--timeout=30s")
    bare.apply(service("kept", "default"))
    first = key(bare)

    helm(bare, "upgrade", "semipd-operator", chart, "--set", "logLevel=debug")
    assert key(bare) == first, "an upgrade keeps the key"
    arguments = bare.get("deployment", "semipd-operator", "semipd-system")["spec"]["template"]["spec"]["containers"]
    assert "--log-level=debug" in arguments[0]["args"]

    helm(bare, "uninstall", "semipd-operator")
    assert key(bare) is None
    assert bare.get("spd", "kept", "default"), "services outlive the chart"
    helm(bare, "install", "semipd-operator", chart)
    assert key(bare) != first, "a new installation has a new key"

    bare.kubectl("delete", "spd", "kept", "-n", "default", "--timeout=20s")
    assert bare.get("spd", "kept", "default") is None


def test_users_get_the_resource_with_their_roles(bare: Cluster) -> None:
    roles = {
        name: bare.request("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/semipd-operator-{name}")
        for name in ("view", "edit")
    }
    assert roles["view"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "semipdservices/scale" in roles["edit"]["rules"][0]["resources"]


API_SERVICE = "v1beta1.external.metrics.k8s.io"


def test_the_metrics_api_survives_upgrades_and_goes_with_the_chart(bare: Cluster) -> None:
    chart = str(ROOT / "charts/semipd-operator")
    name = "semipd-operator-metrics-api"
    helm(bare, "upgrade", "--install", "semipd-operator", chart, "--create-namespace")
    bare.kubectl("patch", "secret", name, "-n", "semipd-system", "-p", '{"data":{"ca.crt":"b3Vycw=="}}')
    bundle = base64.b64encode((bare.folder / "pki" / "ca.crt").read_bytes()).decode()
    bare.kubectl("patch", "apiservice", API_SERVICE, "--type=merge", "-p", json.dumps({"spec": {"caBundle": bundle}}))
    helm(bare, "upgrade", "semipd-operator", chart, "--set", "logLevel=debug")
    assert bare.get("secret", name, "semipd-system")["data"] == {"ca.crt": "b3Vycw=="}
    assert bare.get("apiservice", API_SERVICE, "default")["spec"]["caBundle"] == bundle
    helm(bare, "upgrade", "semipd-operator", chart, "--set", "metricsApi.enabled=false")
    assert bare.get("apiservice", API_SERVICE, "default") is None
    helm(bare, "upgrade", "semipd-operator", chart, "--reset-values")
    assert bare.get("apiservice", API_SERVICE, "default")
    helm(bare, "uninstall", "semipd-operator")
    assert bare.get("apiservice", API_SERVICE, "default") is None


def test_the_metrics_api_of_another_is_left_alone(bare: Cluster) -> None:
    backend = {"namespace": "keda", "name": "keda-operator-metrics-apiserver", "port": 443}
    bare.apply(
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": API_SERVICE},
            "spec": {
                "group": "external.metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": backend,
            },
        }
    )
    chart = str(ROOT / "charts/semipd-operator")
    notes = helm(bare, "upgrade", "--install", "semipd-operator", chart, "--create-namespace")
    assert "belongs to someone else" in notes
    container = bare.get("deployment", "semipd-operator", "semipd-system")["spec"]["template"]["spec"]["containers"][0]
    assert not [argument for argument in container["args"] if "metrics-api" in argument]
    helm(bare, "uninstall", "semipd-operator")
    assert bare.get("apiservice", API_SERVICE, "default")["spec"]["service"] == backend
    bare.kubectl("delete", "apiservice", API_SERVICE)
