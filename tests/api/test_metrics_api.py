"""The external metrics through the aggregation layer of a real API server: who is served, refused, registered."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import OPERATOR_NAMESPACE, Agent, Operator
from tests.api.metrics_api import (
    API_SERVICE,
    NAME,
    ROOT_PATH,
    Scaled,
    available,
    flags,
    freshness,
    metric,
)

from e2e.lib.process import free_port
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


def test_the_metric_passes_the_aggregation_layer(scaled: Scaled, agent: Agent, namespace: str) -> None:
    crd = scaled.crd
    wait_until(lambda: available(crd), describe=lambda: crd.get("apiservice", API_SERVICE, "default")["status"])
    listed = json.loads(crd.kubectl("get", "--raw", ROOT_PATH).stdout)
    assert [each["name"] for each in listed["resources"]] == ["semipd_utilization_ratio"]
    groups = [group["name"] for group in json.loads(crd.kubectl("get", "--raw", "/apis").stdout)["groups"]]
    assert "external.metrics.k8s.io" in groups
    # Else no namespace could be deleted: the controller for that wants to know every API.
    wait_until(lambda: freshness(crd) == "Current", describe=lambda: freshness(crd))

    def value(path: str = metric(namespace)) -> Any:
        return [item["value"] for item in json.loads(crd.kubectl("get", "--raw", path).stdout)["items"]]

    assert value() == [], "the agent does not tell: no value, and no zero"
    agent.utilization_ratio = 1.25
    wait_until(lambda: value() == ["1250m"])
    agent.utilization_ratio = 0.0
    wait_until(lambda: value() == ["0"] or value() == ["0m"])
    assert value(metric(namespace, "")) and not value(metric(namespace, "semipd_service%3Dother"))
    assert not value(metric("default"))
    refused = crd.kubectl("get", "--raw", metric(namespace, "app%3Ddemo"), ok=False)
    assert refused.returncode != 0 and "semipd_service=NAME" in refused.stderr


def test_a_user_needs_the_right_to_read_the_metric(scaled: Scaled, agent: Agent, namespace: str) -> None:
    crd = scaled.crd
    wait_until(lambda: available(crd))
    path = metric(namespace)
    denied = crd.kubectl("get", "--raw", path, "--as=eve", ok=False)
    assert denied.returncode != 0 and "orbidden" in denied.stderr
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "reader", "namespace": namespace},
        "rules": [{"apiGroups": ["external.metrics.k8s.io"], "resources": ["*"], "verbs": ["list"]}],
    }
    crd.apply(role)
    crd.kubectl("create", "rolebinding", "reader", "--role=reader", "--user=alice", "-n", namespace)
    as_alice = ("get", "--raw", path, "--as=alice")
    wait_until(lambda: crd.kubectl(*as_alice, ok=False).returncode == 0, describe=lambda: crd.kubectl(*as_alice))
    # The HPA's controller has the right from Kubernetes itself.
    account = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
    assert crd.kubectl("get", "--raw", path, f"--as={account}").returncode == 0


def ask_directly(scaled: Scaled, namespace: str, certificate: str = "", user: str = "") -> int:
    """HTTP status of a request past kube-apiserver, with a certificate of the front proxy's CA; 0: no TLS at all."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if certificate:
        folder: Path = scaled.crd.folder / "pki"
        context.load_cert_chain(folder / f"{certificate}.crt", folder / f"{certificate}.key")
    request = urllib.request.Request(f"https://localhost:{scaled.port}{metric(namespace)}")
    request.add_header("Authorization", "Bearer admin-token")
    if user:
        request.add_header("X-Remote-User", user)
        request.add_header("X-Remote-Group", "system:authenticated")
    try:
        with urllib.request.urlopen(request, context=context, timeout=60) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (urllib.error.URLError, OSError):
        return 0


def test_a_direct_call_is_refused(scaled: Scaled, agent: Agent, namespace: str) -> None:
    wait_until(lambda: available(scaled.crd))
    assert ask_directly(scaled, namespace) == 0, "without a certificate there is no connection"
    assert ask_directly(scaled, namespace, user="admin") == 0, "and headers alone prove nothing"
    assert ask_directly(scaled, namespace, "stranger", "admin") == 401, (
        "the CA's other certificates are not the proxy's"
    )
    assert ask_directly(scaled, namespace, "front-proxy") == 401, "the proxy must name a user"
    assert ask_directly(scaled, namespace, "front-proxy", "eve") == 403
    assert ask_directly(scaled, namespace, "front-proxy", "admin") == 403, "a name is not its groups"


def test_the_secret_is_the_only_one_that_the_operator_may_touch(scaled: Scaled) -> None:
    crd = scaled.crd
    secret = wait_until(lambda: (crd.get("secret", f"{NAME}-metrics-api", OPERATOR_NAMESPACE) or {}).get("data"))
    assert set(secret) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    account = f"--as=system:serviceaccount:{OPERATOR_NAMESPACE}:{NAME}"

    def may(*what: str) -> bool:
        return crd.kubectl("auth", "can-i", *what, account, ok=False).stdout.strip() == "yes"

    assert may("patch", f"secret/{NAME}-metrics-api", "-n", OPERATOR_NAMESPACE)
    assert not may("get", f"secret/{NAME}-key", "-n", OPERATOR_NAMESPACE)
    assert not may("list", "secrets", "-n", OPERATOR_NAMESPACE)
    assert not may("create", "apiservices") and not may("patch", "apiservice/v1beta1.metrics.k8s.io")
    assert not may("delete", "apiservice/v1beta1.metrics.k8s.io") and not may("patch", "clusterroles")
    assert not may("create", "leases", "-n", OPERATOR_NAMESPACE)


def test_a_registration_that_is_deleted_comes_back(scaled: Scaled, agent: Agent, namespace: str) -> None:
    crd = scaled.crd
    wait_until(lambda: available(crd))
    before = crd.get("apiservice", API_SERVICE, "default")
    crd.kubectl("delete", "apiservice", API_SERVICE)
    wait_until(
        lambda: (
            (crd.get("apiservice", API_SERVICE, "default") or before)["metadata"]["uid"] != before["metadata"]["uid"]
        ),
    )
    wait_until(lambda: available(crd))
    [owner] = crd.get("apiservice", API_SERVICE, "default")["metadata"]["ownerReferences"]
    role = crd.get("clusterrole", f"{NAME}-metrics-api", "default")
    assert (owner["kind"], owner["uid"]) == ("ClusterRole", role["metadata"]["uid"]), "it goes with the release"


def test_an_endpoint_of_an_earlier_installation_becomes_ours(scaled: Scaled, agent: Agent) -> None:
    """Its Lease had another uid. Who may not delete an object may not give it another owner, where
    owner references are guarded, as here and on OpenShift."""
    crd = scaled.crd
    wait_until(lambda: available(crd))
    name = f"{NAME}-metrics-api-ipv4"
    wait_until(lambda: crd.get("endpointslice", name, OPERATOR_NAMESPACE))
    lease = crd.get("lease", NAME, OPERATOR_NAMESPACE)["metadata"]["uid"]
    earlier = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "name": NAME, "uid": "of-an-earlier-one"}
    change = json.dumps({"metadata": {"ownerReferences": [earlier]}})
    crd.kubectl("patch", "endpointslice", name, "-n", OPERATOR_NAMESPACE, "--type=merge", "-p", change)

    def owners() -> list[str]:
        found = crd.get("endpointslice", name, OPERATOR_NAMESPACE)["metadata"]["ownerReferences"]
        return [each["uid"] for each in found]

    wait_until(lambda: lease in owners(), describe=owners)


def test_a_follower_takes_over_and_the_api_answers_on(
    scaled: Scaled, agent: Agent, namespace: str, tmp_path: Path
) -> None:
    """Last: it ends the leader, as the loss of its node would."""
    crd = scaled.crd
    wait_until(lambda: available(crd))
    agent.utilization_ratio = 0.5

    def behind() -> list[Any]:
        """Where the Service leads, by both kinds of objects that kube-apiservers look at."""
        name = f"{NAME}-metrics-api"
        sliced = crd.get("endpointslice", f"{name}-ipv4", OPERATOR_NAMESPACE)
        plain = crd.get("endpoints", name, OPERATOR_NAMESPACE)
        if sliced is None or plain is None:
            return []
        return [sliced["endpoints"][0]["addresses"], [plain["subsets"][0]["addresses"][0]["ip"]]]

    wait_until(lambda: behind() == [["10.1.2.3"]] * 2, describe=behind)
    [owner] = crd.get("endpoints", f"{NAME}-metrics-api", OPERATOR_NAMESPACE)["metadata"]["ownerReferences"]
    assert owner["kind"] == "Lease", "they go with the release"
    with Operator(crd, tmp_path, scaled.agent_port, *flags(free_port()), ip="10.1.2.4") as follower:
        wait_until(lambda: "standing by" in follower.log.read_text())
        assert "leading" not in follower.log.read_text()
        scaled.operator.process.kill()
        wait_until(lambda: "leading by Lease" in follower.log.read_text())
        wait_until(lambda: crd.get("apiservice", API_SERVICE, "default")["spec"]["service"]["port"] != scaled.port)
        wait_until(lambda: available(crd) and freshness(crd) == "Current", describe=lambda: freshness(crd))

        def value() -> Any:
            answer = crd.kubectl("get", "--raw", metric(namespace), ok=False)
            return answer.returncode == 0 and [item["value"] for item in json.loads(answer.stdout)["items"]]

        wait_until(lambda: value() == ["500m"], describe=value)
        wait_until(lambda: behind() == [["10.1.2.4"]] * 2, describe=behind)
        crd.kubectl("patch", "spd", "demo", "-n", namespace, "--type=merge", "-p", '{"spec":{"replicas":2}}')
        wait_until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 2)
        assert follower.stop() == 0
