"""The chart's rules against what the operator asks for, by the API server's audit log: none is missing, none idle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.api.conftest import POD_MONITOR_CRD, Cluster
from tests.api.harness import OPERATOR_NAMESPACE, chart_rights, make_pod, service
from tests.api.metrics_api import SLO, Scaled, available, demo, metric, scaled_objects, scaling

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api

Right = tuple[str, str, str]
"""(API group, resource with its subresource, verb)"""

OPENSHIFT = "OpenShift asks for it where an address lies in the pods' network; others do not know it"
OWNER = "where owner references are guarded, only who may delete an object may give it another owner"
IDLE_HERE: dict[Right, str] = {
    ("", "endpoints", "delete"): OWNER,
    ("discovery.k8s.io", "endpointslices", "delete"): OWNER,
    ("", "endpoints/restricted", "create"): OPENSHIFT,
    ("", "endpointslices/restricted", "create"): OPENSHIFT,
    ("discovery.k8s.io", "endpoints/restricted", "create"): OPENSHIFT,
    ("discovery.k8s.io", "endpointslices/restricted", "create"): OPENSHIFT,
    ("semipd.io", "semipdservices/finalizers", "update"): "asked for by the guard of owner references itself",
}
"""Granted, and not seen below: why it is granted all the same."""
AT_TIMES: set[Right] = {("apiregistration.k8s.io", "apiservices", "delete")}
"""The registration is withdrawn where no service scales when the operator looks, which it may or may not do below."""


@pytest.fixture(scope="module")
def audited(crd: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scaled, int]]:
    """The operator, and where in the audit log it begins: the API server is the session's, and others were refused."""
    crd.define(POD_MONITOR_CRD, scaled_objects())
    # What another module's operator left would not be made again.
    crd.kubectl("delete", "secrets,endpoints,endpointslices", "--all", "-n", OPERATOR_NAMESPACE)
    since = crd.audit_log.stat().st_size
    with scaling(crd, tmp_path_factory.mktemp("rights")) as running:
        yield running, since


def granted() -> set[Right]:
    ours = [obj for obj in chart_rights("metrics-api") if "rules" in obj and "aggregat" not in json.dumps(obj)]
    rules = [rule for obj in ours for rule in obj["rules"]]
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked(crd: Cluster, since: int) -> tuple[set[Right], list[str]]:
    """What the operator was let do, and what it was refused."""
    used: set[Right] = set()
    refused = []
    *lines, _ = crd.audit_log.read_bytes()[since:].split(b"\n")  # the last one may be half written
    for line in lines:
        entry = json.loads(line)
        what, code = entry.get("objectRef"), entry.get("responseStatus", {}).get("code", 0)
        if not what or "resource" not in what:
            continue
        resource = "/".join(filter(None, (what["resource"], what.get("subresource", ""))))
        right = (what.get("apiGroup", ""), resource, entry["verb"])
        if code == 403:
            refused.append(f"{entry['verb']} {entry['requestURI']}")
        used.add(right)
        if entry["verb"] == "patch" and code == 201:  # server-side apply of what is not there needs both
            used.add((*right[:2], "create"))
    return used, refused


def test_no_right_is_missing_and_none_is_idle(audited: tuple[Scaled, int], namespace: str) -> None:
    api, since = audited
    crd = api.crd

    def patch(spec: dict[str, Any]) -> None:
        crd.kubectl("patch", "spd", "all", "-n", namespace, "--type=merge", "-p", json.dumps({"spec": spec}))

    def there(kind: str, wanted: bool = True) -> None:
        wait_until(lambda: bool(crd.get(kind, "all", namespace)) is wanted, describe=lambda: (kind, wanted))

    keda = {"maxReplicas": 3, "keda": {"serverAddress": "http://p:9090"}}
    crd.apply(service("all", namespace, replicas=2, slo=SLO, monitoring={"podMonitor": True}, autoscaling=keda))
    for kind in ("deployment", "pdb", "podmonitor", "scaledobject"):
        there(kind)
    patch({"replicas": 1, "monitoring": None, "autoscaling": {"keda": None, "hpa": {}}})
    there("hpa")
    for kind in ("pdb", "podmonitor", "scaledobject"):
        there(kind, wanted=False)
    patch({"autoscaling": None})
    there("hpa", wanted=False)

    began = (datetime.now(UTC) - timedelta(seconds=20)).strftime("%Y-%m-%dT%H:%M:%SZ")
    creating = {"name": "engine", "image": "e", "imageID": "", "restartCount": 0, "ready": False}
    creating["state"] = {"waiting": {"reason": "ContainerCreating"}}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": began}
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": began}
    status = {"conditions": [scheduled, unready], "containerStatuses": [creating]}
    make_pod(crd, namespace, "all", "all-1", status, nodeName="n")
    tainted = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    tainted["message"] = "0/1 nodes are available: 1 node(s) had untolerated taint(s)."
    make_pod(crd, namespace, "all", "all-2", {"phase": "Pending", "conditions": [tainted]})

    with demo(api, namespace) as agent:
        wait_until(lambda: available(crd))
        agent.utilization_ratio = 0.5
        wait_until(lambda: crd.kubectl("get", "--raw", metric(namespace), ok=False).returncode == 0)
        # Whom kube-apiserver lets through it hands on, and the operator asks for itself.
        rules = [{"apiGroups": ["external.metrics.k8s.io"], "resources": ["*"], "verbs": ["list"]}]
        meta = {"name": "reader", "namespace": namespace}
        crd.apply({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": meta, "rules": rules})
        crd.kubectl("create", "rolebinding", "reader", "--role=reader", "--user=alice", "-n", namespace)
        wait_until(lambda: crd.kubectl("get", "--raw", metric(namespace), "--as=alice", ok=False).returncode == 0)
    wanted = {("", "events", "list"), ("", "nodes", "get"), ("", "nodes", "list")}
    wait_until(lambda: wanted <= asked(crd, since)[0], describe="of the pods that stand still")

    used, refused = asked(crd, since)
    rights = granted()
    assert not refused
    idle = rights - used - AT_TIMES
    assert idle == IDLE_HERE.keys(), "\n".join(map(str, sorted(idle ^ IDLE_HERE.keys())))
    assert rights >= AT_TIMES
