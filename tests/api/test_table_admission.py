"""What kube-apiserver's admission, quotas and policies refuse: cause and remedy, in ``get`` and ``describe``."""

from __future__ import annotations

from typing import Any

import pytest
from tests.api.cluster_table import (
    HUGE,
    LIMITS,
    Row,
    denying,
    make,
    quota,
    shows,
    template,
    webhook_away,
)
from tests.api.harness import condition, row, service

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


TABLE: dict[str, Row] = {
    "no pod at all": Row(
        "QuotaExceeded",
        'pods "table-*" is forbidden: exceeded quota: team, requested: pods=1, used: pods=0, limited: pods=0. Remedy: '
        "Raise the quota, lower spec.replicas, or set spec.engine.resources as the message asks.",
        objects=[quota(pods="0")],
    ),
    "two of four": Row(
        "QuotaExceeded",
        'pods "table-*" is forbidden: exceeded quota: team, *used: pods=2, *Remedy: Raise the quota, *',
        {"replicas": 4},
        [quota(pods="2")],
    ),
    "limits wanted": Row(
        "QuotaExceeded",
        "*must specify limits.cpu for: engine. Remedy: *set spec.engine.resources as the message asks.",
        objects=[quota(limits_cpu="4")],
    ),
    "of the download, too": Row(
        "QuotaExceeded",
        "*must specify limits.cpu for: engine,model. Remedy: *",
        {"model": {"uri": "hf://org/m"}, "engine": {"resources": {"limits": {"memory": "1Gi"}}}},
        [quota(limits_memory="9Gi", limits_cpu="4")],
    ),
    "limit range": Row(
        "LimitRangeViolated",
        "*maximum memory usage per Container is 1Gi, but limit is 3Gi. Remedy: Set spec.engine.resources within the "
        "range that the message names, or change the LimitRange.",
        {"engine": HUGE},
        [LIMITS],
    ),
    "pod security": Row(
        "PodSecurityViolated",
        '*violates PodSecurity "restricted:latest": host namespaces (hostNetwork=true)*. Remedy: Remove from '
        "spec.podTemplate what the message names, or use a namespace of another level.",
        template(hostNetwork=True),
    ),
    "runtime class": Row(
        "RuntimeClassMissing",
        '*RuntimeClass "nvidia" not found. Remedy: Correct runtimeClassName, or install that runtime.',
        template(runtimeClassName="nvidia"),
    ),
    "priority class": Row(
        "PriorityClassMissing",
        "*no PriorityClass with name urgent was found. Remedy: Correct priorityClassName, or create that class.",
        template(priorityClassName="urgent"),
    ),
    "a policy denies pods": Row(
        "AdmissionDenied",
        "*ValidatingAdmissionPolicy 'no-pods' with binding 'no-pods' denied request: images must come from "
        "registry.team. Remedy: Change spec.podTemplate as it asks, or have the owner of that policy exempt the "
        "namespace.",
        cluster=lambda namespace: denying("no-pods", namespace, "pods"),
    ),
    "a webhook is away": Row(
        "AdmissionWebhookFailed",
        '*failed calling webhook "policy.team.io": *connection refused. Remedy: Mend the webhook that the message '
        "names; it is tried again by itself.",
        cluster=lambda namespace: [webhook_away(namespace)],
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_cause_and_remedy_are_in_the_row_and_in_the_description(control_plane: Any, namespace: str, case: str) -> None:
    make(control_plane, namespace, TABLE[case])
    shows(control_plane, namespace, TABLE[case])


MISTYPED = {
    "number for a string": template(containers=[{"name": "engine", "env": [{"name": "A", "value": 1}]}]),
    "list for a map": template(nodeSelector=["a"]),
}


@pytest.mark.parametrize("case", MISTYPED)
def test_a_wrong_type_in_the_pod_template_is_the_templates_fault(control_plane: Any, namespace: str, case: str) -> None:
    """The API server says 500, as if it were in trouble."""
    words = "Deployment table: failed to create typed patch object *: expected *. Remedy: Correct spec.podTemplate or *"
    one = Row("InvalidPodTemplate", words, MISTYPED[case], where=("SpecAccepted", "Ready"))
    make(control_plane, namespace, one)
    shows(control_plane, namespace, one)


def test_a_policy_that_denies_the_deployment(control_plane: Any, namespace: str) -> None:
    one = Row(
        "AdmissionDenied",
        "Deployment table: *ValidatingAdmissionPolicy 'no-deployments' *denied request: images must come from "
        "registry.team. Remedy: Change spec.podTemplate as it asks, *",
        where=("SpecAccepted", "Ready"),
        cluster=lambda namespace: denying("no-deployments", namespace, "deployments"),
    )
    make(control_plane, namespace, one)
    shows(control_plane, namespace, one)


def test_a_policy_that_denies_another_object_is_not_blamed_on_the_pod_template(
    control_plane: Any, namespace: str
) -> None:
    one = Row(
        "AdmissionDenied",
        "Service table: *ValidatingAdmissionPolicy 'no-services' *. Remedy: Have the owner of that policy exempt the "
        "namespace, or this operator's objects in it.",
        where=("SpecAccepted", "Ready"),
        cluster=lambda namespace: denying("no-services", namespace, "services"),
    )
    make(control_plane, namespace, one)
    shows(control_plane, namespace, one)


def test_pods_as_rendered_fit_a_restricted_namespace_with_quota_and_limits(control_plane: Any, namespace: str) -> None:
    control_plane.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    both = {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}
    wanted = quota(limits_cpu="4", limits_memory="9Gi", requests_cpu="4", requests_memory="9Gi")
    control_plane.apply({**wanted, "metadata": {"name": "team", "namespace": namespace}})
    wait_until(lambda: (control_plane.get("quota", "team", namespace).get("status") or {}).get("hard"))
    control_plane.apply(service("fits", namespace, model={"uri": "hf://org/m"}, engine={"resources": both}))
    wait_until(lambda: (control_plane.get("spd", "fits", namespace).get("status") or {}).get("replicas") == 1)


def test_an_autoscaler_of_the_deployment_is_named_with_the_remedy(control_plane: Any, namespace: str) -> None:
    control_plane.apply(service("fought", namespace, replicas=0))
    wait_until(lambda: row(control_plane, namespace, "fought")[1] == "True")
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "fought"}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler"}
    spec = {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 4}
    control_plane.apply({**hpa, "metadata": {"name": "theirs", "namespace": namespace}, "spec": spec})
    live = wait_until(
        lambda: (
            (got := control_plane.get("spd", "fought", namespace))
            and condition(got, "ScalingReady").get("reason") == "ConflictingAutoscaler"
            and got
        ),
    )
    assert "HorizontalPodAutoscaler theirs" in condition(live, "ScalingReady")["message"]
    assert (
        "Remedy: Set its scaleTargetRef to the SemiPDService, or delete it."
        in condition(live, "ScalingReady")["message"]
    )
    control_plane.kubectl("delete", "hpa", "theirs", "-n", namespace)
    wait_until(lambda: not condition(control_plane.get("spd", "fought", namespace), "ScalingReady"))
