"""What others have set in our Deployment, by its managed fields, and where it is said."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator_observed import GPU, observed, pod

from semipd_operator.settings import MANAGER
from semipd_operator.status import summarise
from semipd_operator.status.foreign import additions

pytestmark = pytest.mark.unit


def entry(manager: str, template: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"manager": manager, "fieldsV1": {"f:spec": {"f:template": template}}, **more}


ENGINE = 'k:{"name":"engine"}'
OURS = entry(MANAGER, {"f:spec": {"f:containers": {ENGINE: {".": {}, "f:image": {}, "f:name": {}}}}})
RESTARTED = {"f:metadata": {"f:annotations": {"f:kubectl.kubernetes.io/restartedAt": {}}}}


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([], ()),
        ([{"manager": "kube-controller-manager", "fieldsV1": {"f:status": {"f:replicas": {}}}}], ()),
        ([entry("kubectl", {}, subresource="scale")], ()),
        ([entry("kubectl-rollout", RESTARTED)], ()),
        ([entry("helm", OURS["fieldsV1"]["f:spec"]["f:template"])], ()),
        ([entry("velero", {"f:spec": {"f:containers": {ENGINE: {".": {}}}}})], ()),
        (
            [entry("kubectl-edit", {"f:spec": {"f:nodeSelector": {".": {}, "f:disk": {}}}})],
            ("kubectl-edit set spec.template.spec.nodeSelector.disk",),
        ),
        (
            [
                entry("b", {"f:spec": {"f:containers": {ENGINE: {"f:tty": {}}, 'k:{"name":"x"}': {".": {}}}}}),
                entry("a", {f"f:{n}": {} for n in "123456"}),
            ],
            (
                "a set spec.template.1, spec.template.2, spec.template.3, spec.template.4 and 2 more",
                "b set spec.template.spec.containers[name=engine].tty, spec.template.spec.containers[name=x]",
            ),
        ),
    ],
    ids=["nobody", "a controller's status", "scaled", "restarted", "the same as we", "what we fill", "added", "two"],
)
def test_fields_that_only_others_own_are_named_with_their_manager(
    entries: list[dict[str, Any]], told: tuple[str, ...]
) -> None:
    assert additions({"metadata": {"managedFields": [OURS, *entries]}}) == told


def test_an_addition_is_told_of_a_service_that_is_ready_and_beside_the_cause_of_one_that_is_not() -> None:
    added = ("kubectl-edit set spec.template.spec.nodeSelector.disk",)
    line = (
        "others changed Deployment demo: kubectl-edit set spec.template.spec.nodeSelector.disk (what is to stay belongs"
        " in spec.podTemplate, and the rest out of it: kubectl edit deployment demo)"
    )
    good = summarise(observed(additions=added))
    accepted, ready = good.condition("SpecAccepted"), good.condition("Ready")
    assert accepted and ready and accepted.status == ready.status == "True"
    assert accepted.message == line and ready.message == f"1 of 1 pods are ready; {line}"
    stuck = pod("p2", ready=False, started=False, problem=GPU)
    for pods, replicas in (((stuck,), 1), ((pod(), stuck), 2)):
        bad = summarise(observed({"replicas": replicas}, pods=pods, additions=added)).condition("Ready")
        assert bad and bad.reason == "Unschedulable" and bad.message.count(line) == 1
        assert bad.message.index(GPU.message) < bad.message.index(line) < bad.message.index("Remedy: ")
