"""The real operator process, with the chart's rights only, against the real API server: what it makes and leaves.

Pods are made by hand, as there is no controller manager; a stand-in speaks the agent's real contract on their IPs.
"""

from __future__ import annotations

import asyncio
import copy
import json
import shlex
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import yaml
from kubernetes.aio import client as kube_client
from kubernetes.aio import config as kube_config
from tests.api.harness import (
    ROOT,
    Operator,
    condition,
    row,
    service,
)

from e2e.lib.waiting import PATIENCE_S, wait_until
from semipd_operator.answers import ApiRefused
from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND, SemiPDService
from semipd_operator.kube import Kube
from semipd_operator.skew import OlderCRD

pytestmark = pytest.mark.api


def test_children_appear_and_drift_is_corrected(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("demo", namespace, replicas=2))
    deployment = wait_until(lambda: crd.get("deployment", "demo", namespace))
    assert deployment["spec"]["replicas"] == 2
    for kind, name in (("service", "demo"), ("configmap", "demo-agent"), ("pdb", "demo")):
        child = wait_until(lambda kind=kind, name=name: crd.get(kind, name, namespace))
        assert child["metadata"]["ownerReferences"][0]["kind"] == "SemiPDService", kind
    live = wait_until(lambda: (got := crd.get("spd", "demo", namespace)).get("status", {}).get("selector") and got)
    assert condition(live, "SpecAccepted")["status"] == "True"
    assert condition(live, "Available")["reason"] == "NoPods"
    assert live["status"]["observedGeneration"] == live["metadata"]["generation"]
    assert not live["metadata"].get("finalizers")
    # kubectl's own annotation is the only one: the operator writes no metadata.
    assert set(live["metadata"]["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}

    crd.kubectl("scale", "deployment/demo", "-n", namespace, "--replicas=7")
    wait_until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 2)
    crd.kubectl("delete", "service/demo", "-n", namespace)
    wait_until(lambda: crd.get("service", "demo", namespace))

    crd.kubectl("scale", "spd/demo", "-n", namespace, "--replicas=1")
    wait_until(lambda: crd.get("deployment", "demo", namespace)["spec"]["replicas"] == 1)
    wait_until(lambda: crd.get("pdb", "demo", namespace) is None, describe="a single pod keeps no budget")


def test_what_others_change_of_a_deployment_is_taken_back_and_what_they_add_is_named(
    operator: Operator, crd: Any, namespace: str
) -> None:
    crd.apply(service("edited", namespace))
    wait_until(lambda: condition(crd.get("spd", "edited", namespace), "SpecAccepted"))

    def spec() -> dict[str, Any]:
        found: dict[str, Any] = crd.get("deployment", "edited", namespace)["spec"]
        return found

    crd.kubectl("rollout", "pause", "deployment/edited", "-n", namespace)
    wait_until(lambda: not spec().get("paused"), describe="it is resumed")
    crd.kubectl("set", "image", "deployment/edited", "engine=other:1", "-n", namespace)
    wait_until(lambda: spec()["template"]["spec"]["containers"][0]["image"] == "engine:test")
    crd.kubectl("rollout", "restart", "deployment/edited", "-n", namespace)
    node = '{"spec":{"template":{"spec":{"nodeSelector":{"disk":"fast"}}}}}'
    crd.kubectl("patch", "deployment", "edited", "-n", namespace, "--type=merge", f"-p={node}")

    def said() -> str:
        return str(condition(crd.get("spd", "edited", namespace), "SpecAccepted").get("message", ""))

    wait_until(lambda: "others changed Deployment edited: kubectl-patch set spec.template.spec.nodeSelector" in said())
    assert spec()["template"]["spec"]["nodeSelector"] == {"disk": "fast"}, "Kubernetes leaves it to its manager"
    assert "kubectl edit deployment edited" in said() and "restart" not in said() and "image" not in said()
    undo = '[{"op":"remove","path":"/spec/template/spec/nodeSelector"}]'
    crd.kubectl("patch", "deployment", "edited", "-n", namespace, "--type=json", f"-p={undo}")
    wait_until(lambda: said() == "", describe=said)


def test_an_object_of_someone_else_is_left_alone(operator: Operator, crd: Any, namespace: str) -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": namespace},
        "spec": {"ports": [{"port": 1}], "selector": {"a": "b"}},
    }
    crd.apply(theirs)
    crd.apply(service("taken", namespace))
    wait_until(lambda: row(crd, namespace, "taken")[1:3] == ["False", "NameConflict(Service/taken)"])
    assert crd.get("service", "taken", namespace)["spec"]["selector"] == {"a": "b"}
    assert crd.get("deployment", "taken", namespace) is None, "nothing is half made"
    assert not crd.get("spd", "taken", namespace)["status"].get("observedGeneration")
    crd.kubectl("delete", "service", "taken", "-n", namespace)
    wait_until(lambda: crd.get("deployment", "taken", namespace), describe="it is tried again")


def test_what_a_deleted_service_of_the_same_name_left_is_waited_for(
    operator: Operator, crd: Any, namespace: str
) -> None:
    """No garbage collector runs here: for once its seconds last."""
    crd.apply(service("again", namespace))
    wait_until(lambda: condition(crd.get("spd", "again", namespace), "SpecAccepted").get("status") == "True")
    crd.kubectl("delete", "spd", "again", "-n", namespace)
    crd.apply(service("again", namespace))
    left = "PredecessorRemains(ConfigMap/again-agent,Service/again,Deployment/again)"
    wait_until(lambda: row(crd, namespace, "again")[1:3] == ["False", left])
    assert "Remedy: Wait: " in condition(crd.get("spd", "again", namespace), "Ready")["message"]
    for path in ("configmap/again-agent", "service/again", "deployment/again"):
        crd.kubectl("delete", path, "-n", namespace)
    wait_until(lambda: condition(crd.get("spd", "again", namespace), "SpecAccepted")["status"] == "True")
    uid = crd.get("spd", "again", namespace)["metadata"]["uid"]
    assert crd.get("deployment", "again", namespace)["metadata"]["ownerReferences"][0]["uid"] == uid


def test_what_is_told_of_an_object_that_lost_its_owner_gives_it_back(
    operator: Operator, crd: Any, namespace: str
) -> None:
    """Word for word, as somebody pastes it; another owner, who controls nothing, stays."""
    crd.apply(service("orphan", namespace))
    wait_until(lambda: crd.get("deployment", "orphan", namespace))
    other = {"apiVersion": "v1", "kind": "ConfigMap", "name": "backup", "uid": "8a6c7c1e-0000-4000-8000-000000000000"}
    lost = json.dumps({"metadata": {"ownerReferences": [other]}})
    crd.kubectl("patch", "deployment", "orphan", "-n", namespace, "--type=merge", "-p", lost)
    wait_until(lambda: row(crd, namespace, "orphan")[1:3] == ["False", "NameConflict(Deployment/orphan)"])
    told = condition(crd.get("spd", "orphan", namespace), "Ready")["message"]
    command = told.partition("Give it back: kubectl ")[2].partition(" in its namespace")[0]
    crd.kubectl(*shlex.split(command), "-n", namespace)
    owners = crd.get("deployment", "orphan", namespace)["metadata"]["ownerReferences"]
    assert [(owner["kind"], owner.get("controller")) for owner in owners] == [
        ("ConfigMap", None),
        ("SemiPDService", True),
    ]
    wait_until(lambda: condition(crd.get("spd", "orphan", namespace), "SpecAccepted")["status"] == "True")


def test_a_pod_template_that_the_server_refuses(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("typo", namespace, podTemplate={"spec": {"nodeSelecter": {"a": "b"}}}))
    wait_until(lambda: condition(crd.get("spd", "typo", namespace), "SpecAccepted").get("status") == "False")
    rejected = condition(crd.get("spd", "typo", namespace), "SpecAccepted")
    assert rejected["reason"] == "InvalidPodTemplate" and "nodeSelecter" in rejected["message"]


def test_pod_monitor_comes_and_goes(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("seen", namespace, monitoring={"podMonitor": True}))
    wait_until(lambda: crd.get("podmonitor", "seen", namespace))
    crd.kubectl(
        "patch", "spd", "seen", "-n", namespace, "--type=merge", "-p", '{"spec":{"monitoring":{"podMonitor":false}}}'
    )
    wait_until(lambda: crd.get("podmonitor", "seen", namespace) is None)


def test_nothing_is_applied_to_a_service_that_is_being_deleted(operator: Operator, crd: Any, namespace: str) -> None:
    crd.apply(service("last", namespace))
    wait_until(lambda: crd.get("service", "last", namespace))
    hold = '{"metadata":{"finalizers":["test/hold"]}}'
    crd.kubectl("patch", "spd", "last", "-n", namespace, "--type=merge", "-p", hold)
    crd.kubectl("delete", "spd", "last", "-n", namespace, "--wait=false")

    def stays_away() -> bool:
        """Two watches have no order: the operator may hear of this before it hears that the service is leaving."""
        crd.kubectl("delete", "service", "last", "-n", namespace, "--ignore-not-found")
        time.sleep(7)  # longer than a resync
        return crd.get("service", "last", namespace) is None

    wait_until(stays_away)
    crd.kubectl("patch", "spd", "last", "-n", namespace, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    wait_until(lambda: crd.get("spd", "last", namespace) is None, describe="nothing of ours holds it")


def test_the_operators_rights_end_where_they_should(operator: Operator, crd: Any, namespace: str) -> None:
    def may(*question: str) -> bool:
        user = "--as=system:serviceaccount:semipd-system:semipd-operator"
        return crd.kubectl("auth", "can-i", *question, "-n", namespace, user, ok=False).stdout.strip() == "yes"

    assert may("patch", "deployments.apps") and may("patch", "semipdservices.semipd.io", "--subresource=status")
    refused = (
        ("get", "secrets"),
        ("patch", "semipdservices.semipd.io"),
        ("create", "pods"),
        ("delete", "deployments.apps"),
    )
    assert [question for question in refused if may(*question)] == []


_PODS = {"selector": {"matchLabels": {"a": "b"}}}
_TEMPLATE = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}
_SCALED = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ours"}
_SERVED = {"group": "ours.example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 100}
WRITTEN: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("v1", "ConfigMap", {"data": {"a": "b"}}),
    ("v1", "Service", {"spec": {"ports": [{"port": 80}]}}),
    ("apps/v1", "Deployment", {"spec": {**_PODS, "replicas": 0, "template": _TEMPLATE}}),
    ("policy/v1", "PodDisruptionBudget", {"spec": {**_PODS, "maxUnavailable": 1}}),
    ("autoscaling/v2", "HorizontalPodAutoscaler", {"spec": {"maxReplicas": 2, "scaleTargetRef": _SCALED}}),
    ("monitoring.coreos.com/v1", "PodMonitor", {"spec": {}}),
    ("apiregistration.k8s.io/v1", "APIService", {"spec": _SERVED}),
)
"""The kinds that are written to what was read. A ScaledObject is a custom resource as a PodMonitor is."""


def written(namespace: str) -> Iterator[dict[str, Any]]:
    for api_version, kind, content in WRITTEN:
        meta = {"name": "v1.ours.example.com"} if kind == "APIService" else {"name": "ours", "namespace": namespace}
        yield {"apiVersion": api_version, "kind": kind, "metadata": meta, **content}


@asynccontextmanager
async def as_admin(crd: Any) -> AsyncIterator[Kube]:
    """The operator itself may write but one APIService."""
    configuration = kube_client.Configuration()
    await kube_config.load_kube_config(str(crd.kubeconfig), client_configuration=configuration)
    async with kube_client.ApiClient(configuration) as api:
        yield Kube(api)


async def test_only_what_was_read_is_written_and_only_what_is_not_there_is_made(
    operator: Operator, crd: Any, namespace: str
) -> None:
    """Two operators are one field manager, so nothing else keeps them from each other's objects."""
    async with as_admin(crd) as kube:
        for obj in written(namespace):
            kind, name = obj["kind"], obj["metadata"]["name"]
            other = copy.deepcopy(obj)
            other["metadata"]["annotations"] = {"by": "another"}
            made = await kube.apply_to(obj, None)
            entries = [(entry["manager"], entry["operation"]) for entry in made["metadata"]["managedFields"]]
            assert entries == [("semipd-operator", "Apply")], "what a later apply leaves out goes"
            with pytest.raises(ApiRefused) as came_before:
                await kube.apply_to(other, None)
            changed = await kube.apply_to(other, made)
            with pytest.raises(ApiRefused) as came_since:
                await kube.apply_to(obj, made)
            left = await kube.apply_to(obj, changed)
            assert "annotations" not in left["metadata"]
            crd.kubectl("delete", kind, name, "-n", namespace)
            with pytest.raises(ApiRefused) as gone:
                await kube.apply_to(obj, left)
            assert {one.value.status for one in (came_before, came_since, gone)} == {409}, kind
            assert crd.get(kind, name, namespace) is None


async def test_what_is_being_deleted_is_there_until_it_is_gone_and_then_made_anew(
    operator: Operator, crd: Any, namespace: str
) -> None:
    async with as_admin(crd) as kube:
        for obj in written(namespace):
            kind, name = obj["kind"], obj["metadata"]["name"]
            held = copy.deepcopy(obj)
            held["metadata"]["finalizers"] = ["test/hold"]
            first = await kube.apply_to(held, None)
            crd.kubectl("delete", kind, name, "-n", namespace, "--wait=false")
            going = crd.get(kind, name, namespace)
            assert going["metadata"]["deletionTimestamp"]
            with pytest.raises(ApiRefused) as there:
                await kube.apply_to(obj, None)
            held["metadata"]["annotations"] = {"by": "us"}
            changed = await kube.apply_to(held, going)
            assert changed["metadata"]["uid"] == first["metadata"]["uid"] and changed["metadata"]["deletionTimestamp"]
            let_go = '{"metadata":{"finalizers":null}}'
            crd.kubectl("patch", kind, name, "-n", namespace, "--type=merge", "-p", let_go)
            wait_until(lambda kind=kind, name=name: crd.get(kind, name, namespace) is None)  # type: ignore[misc]
            with pytest.raises(ApiRefused) as gone:
                await kube.apply_to(obj, changed)
            assert (there.value.status, gone.value.status) == (409, 409), kind
            again = await kube.apply_to(obj, None)
            assert again["metadata"]["uid"] != first["metadata"]["uid"]
            crd.kubectl("delete", kind, name, "-n", namespace)


async def test_a_crd_that_was_kept_gets_the_status_without_what_it_does_not_know(crd: Any, namespace: str) -> None:
    """Else nothing of a status would be written, Ready neither, until somebody applies the newer one."""
    [newer] = yaml.safe_load_all((ROOT / "crds" / "semipdservices.semipd.io.yaml").read_text())
    older = copy.deepcopy(newer)
    known = older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    pods = known["partition"]["properties"]["pods"]["items"]["properties"]
    decisions = known["partition"]["properties"]["decisions"]["items"]["properties"]
    del known["slo"]["properties"]["utilizationPercent"], pods["enforcement"], decisions["metric"]
    meta = {"name": "kept", "namespace": namespace}
    split = {"prefillPercent": 50, "decodePercent": 50}
    moved = {
        "time": "2026-01-01T00:00:00Z",
        "pod": "a",
        "from": split,
        "to": split,
        "reason": "x",
        "outcome": "Applied",
    }
    decided = [moved, moved]
    status = {
        "reason": "Ready",
        "slo": {"percentile": 90, "windowSeconds": 60, "utilizationPercent": 40},
        "partition": {
            "mode": "Static",
            "decisions": [made | {"metric": "ttft"} for made in decided],
            "pods": [{"name": name, "state": "Applied", "enforcement": "paced"} for name in ("a", "b")],
        },
    }
    crd.apply(older)
    try:
        made = crd.apply(
            {"apiVersion": API_VERSION, "kind": KIND, "metadata": meta, "spec": {"model": {"uri": "file:///m"}}}
        )
        assert made.returncode == 0
        one = SemiPDService.parse(crd.get(KIND, "kept", namespace))
        left, lacking = status, OlderCRD(time.monotonic)
        async with as_admin(crd) as kube, asyncio.timeout(PATIENCE_S):
            while "utilizationPercent" in left["slo"]:  # until the older schema is in force
                try:  # as written: an operator runs beside
                    left = (await kube.apply_status(one, lacking.declared(status)[0]))["status"]
                except ApiRefused as refused:
                    assert lacking.learn(refused), refused
        assert left["reason"] == "Ready" and left["slo"] == {"percentile": 90, "windowSeconds": 60}
        assert left["partition"]["pods"] == [{"name": name, "state": "Applied"} for name in ("a", "b")]
        assert left["partition"]["decisions"] == decided
    finally:
        crd.define(newer)
