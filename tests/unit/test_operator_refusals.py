"""What the API server refuses the reconciler, for good or for a moment: what is done without, and what is said."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_observed import report
from tests.unit.operator_reconciler import Fixture, ready_pod
from tests.unit.operator_rendered import KEDA, scaled

from semipd_operator.answers import ApiAway, ApiRefused
from semipd_operator.informer import KINDS
from semipd_operator.reconcile import Next
from semipd_operator.status import AgentView

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", ["PodMonitor", "ScaledObject", "HorizontalPodAutoscaler", "PodDisruptionBudget"])
async def test_a_kind_that_rbac_does_not_grant_is_not_ours(kind: str) -> None:
    """The cluster serves it, nobody asked for it, and reading it answers 403."""
    one = Fixture()
    one.kube.refuse["get", kind] = 403
    if kind in KINDS:
        one.kube.informer.refused(kind, "forbidden")
    assert not await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True" and one.kube.condition("Ready")
    assert KEY in one.watches and len(one.statuses) == 1, "its agents are asked, its metric is served"
    assert ("Deployment", *KEY) in one.kube.objects
    assert one.kube.service()["status"]["observedGeneration"] == 1


async def test_a_pod_monitor_that_rbac_does_not_grant_is_done_without_and_said() -> None:
    one = Fixture(new_service(monitoring={"podMonitor": True}))
    one.kube.refuse["get", "PodMonitor"] = 403
    await one.reconcile()
    accepted = one.kube.condition("SpecAccepted")
    assert accepted["status"] == "True"
    assert accepted["message"] == 'no PodMonitor: PodMonitor is forbidden: User "operator" cannot get it'
    one = Fixture(new_service(monitoring={"podMonitor": True}), unknown=("PodMonitor",))
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["message"].endswith("the cluster does not know monitoring.coreos.com/v1")


async def test_keda_that_rbac_does_not_grant_is_named_by_scaling_ready() -> None:
    one = Fixture(new_service(**scaled(keda=KEDA)))
    one.kube.refuse["get", "ScaledObject"] = 403
    await one.reconcile()
    scaling = one.kube.condition("ScalingReady")
    assert (scaling["status"], scaling["reason"]) == ("False", "NotGranted") and "forbidden" in scaling["message"]
    assert one.kube.condition("SpecAccepted")["status"] == "True"


@pytest.mark.parametrize(
    ("verb", "kind", "status"),
    [
        ("apply", "PodDisruptionBudget", 403),
        ("apply", "Deployment", 403),
        ("get", "Service", 403),
        ("get", "Deployment", 403),
        ("get", "PodMonitor", 500),
        ("apply", "ConfigMap", 429),
    ],
)
async def test_whatever_is_refused_the_status_is_written(verb: str, kind: str, status: int) -> None:
    one = Fixture(new_service(replicas=2))
    one.kube.refuse[verb, kind] = status
    assert await one.reconcile(), "it is tried again"
    accepted = one.kube.condition("SpecAccepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "ApplyFailed") and "forbidden" in accepted["message"]
    assert one.kube.condition("Available") and KEY in one.watches
    one.kube.refuse.clear()
    assert not await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_server_in_trouble_for_a_moment_takes_ready_back_from_nobody(status: int) -> None:
    one = Fixture()
    await one.reconcile()
    one.kube.put(ready_pod())
    one.views = {"p": AgentView(report=report(config_generation=1), received_at=datetime.now(UTC))}
    one.kube.objects["Pod", KEY.namespace, "p"]["metadata"]["labels"]["semipd.io/template-hash"] = one.kube.service()[
        "status"
    ]["templateHash"]
    one.kube.informer.told("Pod", one.kube.put(one.kube.objects["Pod", KEY.namespace, "p"]))
    await one.reconcile()
    assert one.kube.condition("Ready")["status"] == "True"
    one.change(slo={"ttftMilliseconds": 500}, partition={"mode": "Manual"})
    one.kube.refuse["apply", "ConfigMap"] = status
    for seconds, ready in ((0, "True"), (29, "True"), (30, "False")):
        one.now = seconds
        assert await one.reconcile() is Next.RETRY
        accepted = one.kube.condition("SpecAccepted")
        assert (accepted["status"], accepted["reason"]) == ("False", "ApplyFailed") and "forbidden" in accepted[
            "message"
        ]
        assert one.kube.condition("Ready")["status"] == ready, seconds
        assert one.kube.service()["status"]["observedGeneration"] == 1
    one.kube.refuse.clear()
    assert await one.reconcile() is Next.NEWS
    assert one.kube.condition("Ready")["status"] == "True"
    one.change(slo={"ttftMilliseconds": 600}, partition={"mode": "Manual"})
    one.kube.refuse["apply", "ConfigMap"] = 403
    await one.reconcile()
    assert one.kube.condition("Ready")["status"] == "False", "who has no right will have none in a moment"


async def test_a_server_in_trouble_for_a_moment_takes_ready_back_from_no_service_without_pods() -> None:
    one = Fixture(new_service(replicas=0))
    await one.reconcile()
    one.change(replicas=0, slo={"ttftMilliseconds": 500})
    one.kube.refuse["apply", "ConfigMap"] = 503
    for seconds, status, reason in ((0, "True", "ScaledToZero"), (30, "False", "ApplyFailed")):
        one.now = seconds
        await one.reconcile()
        ready = one.kube.condition("Ready")
        assert (ready["status"], ready["reason"]) == (status, reason) and "cannot apply it" in ready["message"]
        assert one.kube.told == ["SpecRejected"] * (status == "False")


@pytest.mark.parametrize(
    ("status", "words", "ready"),
    [
        (500, 'failed calling webhook "policy.team.io": connection refused', "True"),
        (429, 'admission webhook "policy.team.io" denied the request: no', "False"),
    ],
)
async def test_a_webhook_that_is_away_may_be_back_in_a_moment_and_one_that_denies_means_it(
    status: int, words: str, ready: str
) -> None:
    """Whatever status it chooses."""
    one = Fixture(new_service(replicas=0))
    await one.reconcile()
    one.change(replicas=0, slo={"ttftMilliseconds": 500})
    one.kube.refuse["apply", "ConfigMap"], one.kube.words = status, words
    assert await one.reconcile() is Next.RETRY
    assert one.kube.condition("Ready")["status"] == ready and words in one.kube.condition("SpecAccepted")["message"]


@pytest.mark.parametrize("failure", [ApiRefused(503, "etcd is away"), ApiAway("no answer")], ids=str)
async def test_a_courtesy_that_fails_costs_no_status(failure: Exception) -> None:
    """Events of a pod that stands still, its node, and who serves the external metrics."""
    one = Fixture(new_service(**scaled()))
    kube: Any = one.kube

    async def fails(*_: Any) -> Any:
        raise failure

    get = kube.get
    kube.events = kube.serves = fails
    kube.get = lambda *what: fails() if what[1] in ("Node", "APIService") else get(*what)
    long_ago = "2026-01-02T03:04:05Z"
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": long_ago}
    creating = {"name": "engine", "state": {"waiting": {"reason": "ContainerCreating"}}}
    status = {"conditions": [scheduled], "containerStatuses": [creating]}
    one.kube.put({**ready_pod(), "spec": {"nodeName": "n"}, "status": status})
    assert await one.reconcile() is Next.LATER, "the kubelet may still say something; nothing failed"
    assert one.kube.condition("Available")["reason"] == "VolumeNotMounted" and one.kube.condition("ScalingReady")


async def test_what_may_be_read_but_not_deleted_is_said() -> None:
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    one.change()
    one.kube.refuse["delete", "PodDisruptionBudget"] = 403
    assert await one.reconcile()
    told = one.kube.condition("SpecAccepted")
    assert told["reason"] == "ApplyFailed" and "PodDisruptionBudget demo, which is not wanted any" in told["message"]
    assert "cannot delete" in told["message"]


async def test_a_policy_that_denies_a_deletion_is_no_other_writer() -> None:
    """It answers with 409 if it likes."""
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    one.change()
    one.kube.refuse["delete", "PodDisruptionBudget"] = 409
    one.kube.words = 'admission webhook "keep.team.io" denied the request: budgets stay'
    assert await one.reconcile() is Next.RETRY
    told = one.kube.condition("SpecAccepted")
    assert told["reason"] == "AdmissionDenied" and "budgets stay. Remedy: Have the owner of that" in told["message"]


async def test_trouble_before_there_was_anything_is_told_after_the_second_try() -> None:
    """A webhook whose Service is missing comes as an internal error."""
    one = Fixture()
    one.kube.refuse["apply", "ConfigMap"] = 500
    one.kube.words = 'Internal error occurred: failed calling webhook "x.team.io": service "x" not found'
    for one.now in (0, 1):
        await one.reconcile()
        assert one.kube.condition("Ready")["reason"] == "NoPods"
    one.now = 3
    await one.reconcile()
    assert one.kube.condition("Ready")["reason"] == "AdmissionWebhookFailed"


@pytest.mark.parametrize("kind", ["Deployment", "Service", "ConfigMap"])
async def test_a_quota_of_objects_is_told_with_its_remedy_wherever_somebody_looks(kind: str) -> None:
    """There is no Deployment that anybody could describe."""
    one = Fixture()
    one.kube.refuse["apply", kind] = 403
    one.kube.words = f"{kind} is forbidden: exceeded quota: team, requested: count=1, used: count=0, limited: count=0"
    for one.now in (0, 31):
        assert await one.reconcile() is Next.RETRY
    said = {name: one.kube.condition(name)["message"] for name in ("SpecAccepted", "Available", "Ready")}
    assert all("Remedy: Raise the quota that the API server names" in words for words in said.values()), said
    assert said["SpecAccepted"] == said["Ready"] and "exceeded quota: team" in said["Ready"]
    assert said["Available"].startswith("no pod exists: see SpecAccepted, QuotaExceeded. Remedy: ")


QUANTITIES: dict[str, dict[str, Any]] = {
    "podTemplate.spec.volumes[x].emptyDir.sizeLimit": {"volumes": [{"name": "x", "emptyDir": {"sizeLimit": "lots"}}]},
    "podTemplate.spec.containers[engine].resources.limits.memory": {
        "containers": [{"name": "engine", "resources": {"limits": {"memory": "lots"}}}]
    },
    "podTemplate.spec.overhead.cpu": {"overhead": {"cpu": "lots"}},
    "podTemplate.spec.containers[engine].env[A].valueFrom.resourceFieldRef.divisor": {
        "containers": [
            {"name": "engine", "env": [{"name": "A", "valueFrom": {"resourceFieldRef": {"divisor": "lots"}}}]}
        ]
    },
}


@pytest.mark.parametrize("field", QUANTITIES)
async def test_a_quantity_that_is_none_is_named_with_its_field(field: str) -> None:
    one = Fixture(new_service(podTemplate={"spec": QUANTITIES[field]}))
    await one.reconcile()
    accepted = one.kube.condition("SpecAccepted")
    assert accepted["reason"] == "InvalidPodTemplate" and ("Deployment", *KEY) not in one.kube.objects
    assert accepted["message"].startswith(
        f"{field} is 'lots', which is no quantity: write it like 16Gi, 500m or 2. Rem"
    )


NO_LISTS: dict[str, dict[str, Any]] = {
    "podTemplate.spec.containers is 'engine', and is to be a list of maps": {"containers": "engine"},
    "podTemplate.spec.volumes is {'name': 'x'}, and is to be a list of maps": {"volumes": {"name": "x"}},
    "podTemplate.spec.containers[engine].env is {'A': 'b'}, and is to be a list of maps": {
        "containers": [{"name": "engine", "env": {"A": "b"}}]
    },
}


@pytest.mark.parametrize("told", NO_LISTS)
async def test_what_is_no_list_is_named_and_not_taken_letter_by_letter(told: str) -> None:
    one = Fixture(new_service(podTemplate={"spec": NO_LISTS[told]}))
    await one.reconcile()
    accepted = one.kube.condition("SpecAccepted")
    assert accepted["reason"] == "InvalidPodTemplate" and ("Deployment", *KEY) not in one.kube.objects
    assert accepted["message"].startswith(f"{told}. Remedy: ")


async def test_a_template_that_the_deployment_cannot_keep_is_the_templates_fault_and_a_smaller_one_is_none() -> None:
    for characters, status in ((300_000, "False"), (100_000, "True")):
        one = Fixture(new_service(podTemplate={"metadata": {"annotations": {"a": "b" * characters}}}))
        await one.reconcile()
        accepted = one.kube.condition("SpecAccepted")
        assert accepted["status"] == status
        assert ("may have 262,144: move what is long" in accepted["message"]) == (status == "False")


async def test_a_word_that_means_a_quantity_elsewhere_is_whose_it_is() -> None:
    attributes = {"csi": {"driver": "d", "volumeAttributes": {"sizeLimit": "10GB", "limits": "none"}}}
    wanted = {"nodeSelector": {"divisor": "blue"}, "volumes": [{"name": "x", **attributes}]}
    one = Fixture(new_service(podTemplate={"spec": wanted}))
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True"


async def test_a_template_that_cannot_be_converted_is_the_templates_fault() -> None:
    one = Fixture()
    one.kube.refuse["apply", "Deployment"] = 500
    one.kube.words = "failed to convert new object (n/x; apps/v1, Kind=Deployment) to proper version: quantities must"
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["reason"] == "InvalidPodTemplate"


async def test_a_label_that_the_operator_needs_is_told_to_stay() -> None:
    labels = {"semipd.io/service": "other", "team": "a", "app.kubernetes.io/name": "semipd"}
    one = Fixture(new_service(podTemplate={"metadata": {"labels": labels}}))
    await one.reconcile()
    accepted = one.kube.condition("SpecAccepted")
    told = "podTemplate.metadata.labels[semipd.io/service] stays demo: the operator finds the pods by it"
    assert (accepted["status"], accepted["message"]) == ("True", told)
    made = one.kube.objects["Deployment", *KEY]["spec"]["template"]["metadata"]["labels"]
    assert (made["semipd.io/service"], made["team"]) == ("demo", "a")
