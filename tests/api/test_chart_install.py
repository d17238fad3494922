"""The chart with the real helm on a real API server: install, upgrade, uninstall. Pods never start here."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.conftest import Cluster, api_server
from tests.api.harness import ROOT, helm_program, service

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A server without the CRD: the chart brings it."""
    with api_server(tmp_path_factory.mktemp("helm")) as cluster:
        yield cluster


def helm(cluster: Cluster, *arguments: str, namespace: str = "semipd-system") -> str:
    answer = subprocess.run(
        [helm_program(), "--kubeconfig", cluster.kubeconfig, "-n", namespace, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(cluster.folder)},
        timeout=300,
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
    wait_until(lambda: bare.kubectl("get", "spd", ok=False).returncode == 0)
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

    bare.kubectl("delete", "spd", "kept", "-n", "default", "--timeout=60s")
    assert bare.get("spd", "kept", "default") is None


@pytest.mark.parametrize(("release", "namespace"), [("true", "1234"), ("y.1", "1e5")])
def test_names_that_yaml_takes_for_something_else(bare: Cluster, release: str, namespace: str) -> None:
    chart = str(ROOT / "charts/semipd-operator")
    quoted = ("--set-string", "priorityClassName=1000,serviceAccount.name=0x10,key.existingSecret=123")
    watched = ("--set-json", f'watchNamespaces=["{namespace}"]', "--set", "crds.enabled=false")
    helm(bare, "install", release, chart, "--create-namespace", *quoted, *watched, namespace=namespace)
    pod = bare.get("deployment", f"{release.replace('.', '-')}-semipd-operator", namespace)["spec"]["template"]["spec"]
    assert (pod["priorityClassName"], pod["serviceAccountName"]) == ("1000", "0x10")
    helm(bare, "uninstall", release, namespace=namespace)


def test_what_is_rendered_without_a_cluster_is_applied_in_one_go(bare: Cluster) -> None:
    """The command of docs/operations.md, for whoever has no release of Helm's."""
    chart = str(ROOT / "charts/semipd-operator")
    bare.kubectl("create", "namespace", "raw")
    given = ("--set", "key.existingSecret=semipd-key", "--kube-version", "1.36.0", "--skip-tests")
    text = helm(bare, "template", "raw", chart, *given, namespace="raw")
    assert "kind: Pod\n" not in text, "no hook of Helm's"
    bare.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    assert bare.get("deployment", "raw-semipd-operator", "raw")["spec"]["replicas"] == 2
    bare.kubectl("delete", "namespace", "raw", "--wait=false")


def test_users_get_the_resource_with_their_roles(bare: Cluster) -> None:
    roles = {
        name: bare.request("GET", f"/apis/rbac.authorization.k8s.io/v1/clusterroles/semipd-operator-{name}")
        for name in ("view", "edit")
    }
    assert roles["view"]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "semipdservices/scale" in roles["edit"]["rules"][0]["resources"]


API_SERVICE = "v1beta1.external.metrics.k8s.io"


def test_the_metrics_api_survives_upgrades_and_helm_owns_no_registration(bare: Cluster) -> None:
    chart = str(ROOT / "charts/semipd-operator")
    name = "semipd-operator-metrics-api"
    helm(bare, "upgrade", "--install", "semipd-operator", chart, "--create-namespace")
    bare.kubectl("patch", "secret", name, "-n", "semipd-system", "-p", '{"data":{"ca.crt":"b3Vycw=="}}')
    lease = '{"spec":{"holderIdentity":"a_1","leaseDurationSeconds":15}}'
    bare.kubectl("patch", "lease", "semipd-operator", "-n", "semipd-system", "--type=merge", "-p", lease)
    helm(bare, "upgrade", "semipd-operator", chart, "--set", "logLevel=debug")
    assert bare.get("secret", name, "semipd-system")["data"] == {"ca.crt": "b3Vycw=="}
    assert bare.get("lease", "semipd-operator", "semipd-system")["spec"]["holderIdentity"] == "a_1"
    assert bare.get("apiservice", API_SERVICE, "default") is None, "the leader registers, not the chart"
    another = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": API_SERVICE},
        "spec": {
            "group": "external.metrics.k8s.io",
            "version": "v1beta1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": {"namespace": "keda", "name": "keda-operator-metrics-apiserver", "port": 443},
        },
    }
    bare.apply(another)
    for values in (("--set", "metricsApi.enabled=false"), ("--reset-values",)):
        helm(bare, "upgrade", "semipd-operator", chart, *values)
        assert bare.get("apiservice", API_SERVICE, "default")["spec"]["service"]["namespace"] == "keda"
    helm(bare, "uninstall", "semipd-operator")
    assert bare.get("apiservice", API_SERVICE, "default")["spec"]["service"]["namespace"] == "keda"
    assert bare.get("lease", "semipd-operator", "semipd-system") is None
    bare.kubectl("delete", "apiservice", API_SERVICE)


def test_a_second_release_beside_the_first(bare: Cluster) -> None:
    """Whose the CRD is, what helm says to who would take it, and what docs/operations.md tells him to do."""
    chart, crd, other = str(ROOT / "charts/semipd-operator"), "semipdservices.semipd.io", "second-system"

    def owner() -> tuple[str, str]:
        notes = bare.get("crd", crd, "default")["metadata"]["annotations"]
        return notes["meta.helm.sh/release-namespace"], notes["meta.helm.sh/release-name"]

    def refused(release: str, *values: str) -> str:
        with pytest.raises(AssertionError) as said:
            helm(bare, "install", release, chart, "--create-namespace", *values, namespace=other)
        return str(said.value)

    bare.kubectl("delete", "crd", crd, "--ignore-not-found", "--timeout=60s")
    helm(bare, "install", "one", chart, "--create-namespace", namespace="one-system")
    try:
        words = refused("second")
        assert f'CustomResourceDefinition "{crd}" in namespace "" exists and cannot be imported' in words
        assert 'key "meta.helm.sh/release-name" must equal "second": current value is "one"' in words
        same = refused("one", "--set", "crds.enabled=false")
        assert "ClusterRole" in same and f'must equal "{other}": current value is "one-system"' in same

        bare.kubectl("create", "namespace", "team-b")
        right = ("--set", "crds.enabled=false", "--set", "watchNamespaces={team-b}", "--create-namespace")
        notes = helm(bare, "install", "second", chart, *right, namespace=other)
        assert "belongs to release one in namespace one-system: upgrade that one first" in notes
        assert "WARNING" not in notes
        helm(bare, "upgrade", "one", chart, namespace="one-system")
        bare.apply(service("kept", "team-b"))

        helm(bare, "uninstall", "one", namespace="one-system")
        assert owner() == ("one-system", "one"), "kept, and nobody's any more"
        taken = ("--reset-then-reuse-values", "--set", "crds.enabled=true", "--take-ownership")
        helm(bare, "upgrade", "second", chart, *taken, namespace=other)
        assert owner() == (other, "second") and bare.get("spd", "kept", "team-b")
    finally:
        helm(bare, "uninstall", "second", "--ignore-not-found", namespace=other)
        bare.kubectl("delete", "crd", crd, "--timeout=60s")


def test_an_administrator_of_a_namespace_installs_beside_a_crd_that_is_not_his_to_read(bare: Cluster) -> None:
    """Where nothing of the release is the cluster's."""
    bare.kubectl("apply", "--server-side", "-f", str(ROOT / "crds/semipdservices.semipd.io.yaml"))
    wait_until(lambda: bare.kubectl("get", "spd", ok=False).returncode == 0)
    bare.kubectl("create", "namespace", "tenant")
    meta = {"name": "all", "namespace": "tenant"}
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    bare.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": everything})
    bare.kubectl("create", "rolebinding", "ann", "--role=all", "--user=ann", "-n", "tenant")
    without = ("crds.enabled=false", "rbac.aggregate=false", "metricsApi.enabled=false", "watchNamespaces={tenant}")
    flags = [word for each in without for word in ("--set", each)]
    chart = str(ROOT / "charts/semipd-operator")
    notes = helm(bare, "install", "own", chart, "--kube-as-user=ann", *flags, namespace="tenant")
    assert "it watches tenant" in notes and "WARNING" not in notes
    helm(bare, "uninstall", "own", namespace="tenant")
    bare.kubectl("delete", "crd", "semipdservices.semipd.io", "--timeout=60s")
