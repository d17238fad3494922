"""Objects that bear a service's names and are not its: all are named, and what is told gives back those of ours."""

from __future__ import annotations

import json
import shlex
from typing import Any

import jsonpatch
import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_reconciler import Fixture
from tests.unit.operator_rendered import scaled

from semipd_operator.reconcile import Next

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "kind", ["Deployment", "Service", "ConfigMap", "PodDisruptionBudget", "HorizontalPodAutoscaler"]
)
@pytest.mark.parametrize("labelled", [False, True])
async def test_an_object_of_the_same_name_that_is_not_ours_is_named_and_left_alone(kind: str, labelled: bool) -> None:
    """Whether the watch shows it (it bears our label, or a copy of it) or not; nothing is applied beside it."""
    name = f"{KEY.name}-agent" if kind == "ConfigMap" else KEY.name
    labels = {"app.kubernetes.io/managed-by": "semipd-operator"} if labelled else {}
    owner = [{**OURS, "uid": "someone", "controller": True, "name": "other"}]
    meta = {"name": name, "namespace": KEY.namespace, "labels": labels, "ownerReferences": owner}
    one = Fixture(new_service(replicas=2, **scaled()))
    one.kube.put({"kind": kind, "apiVersion": "v1", "metadata": meta})
    if not labelled:
        gone = one.kube.objects[kind, KEY.namespace, name]
        one.kube.informer.told(kind, gone, gone=True)
    assert await one.reconcile() is Next.RETRY
    accepted, ready = one.kube.condition("SpecAccepted"), one.kube.condition("Ready")
    assert accepted["reason"] == ready["reason"] == "NameConflict"
    told = f"{kind} {name} (of SemiPDService other) exists and does not belong to this SemiPDService. "
    what = "Remedy: Rename the SemiPDService; or, once you know that nothing needs it, delete that object."
    assert accepted["message"] == ready["message"] == told + what
    assert one.kube.service()["status"]["reason"] == f"NameConflict({kind}/{name})"
    assert not any(verb in ("apply", "delete") and what != "status" for verb, what in one.kube.asked)


async def test_all_names_that_are_taken_are_told_at_once_and_each_with_its_remedy() -> None:
    """One a try would have its reader delete one object after another."""
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    agent = f"{KEY.name}-agent"
    for kind, name in (("Deployment", KEY.name), ("ConfigMap", agent)):  # of ours, without their owner
        ours = one.kube.objects[kind, KEY.namespace, name]
        one.kube.put({**ours, "metadata": {**ours["metadata"], "ownerReferences": []}})
    budget = one.kube.objects["PodDisruptionBudget", KEY.namespace, KEY.name]
    chart = [{"apiVersion": "helm.io/v1", "uid": "x", "controller": True, "kind": "Chart", "name": "web"}]
    one.kube.put({**budget, "metadata": {**budget["metadata"], "ownerReferences": chart}})
    service = one.kube.objects["Service", KEY.namespace, KEY.name]
    one.kube.put({**service, "metadata": {**service["metadata"], "labels": {}, "ownerReferences": []}})
    assert await one.reconcile() is Next.RETRY
    for condition in ("SpecAccepted", "Ready"):
        said, _, remedy = one.kube.condition(condition)["message"].partition(" Remedy: ")
        assert said == (
            f"Service {KEY.name} and PodDisruptionBudget {KEY.name} (of Chart web) exist and do not belong to this "
            f"SemiPDService; ConfigMap {agent} and Deployment {KEY.name} were of this operator's making and have no "
            "owner."
        )
        rename, _, back = remedy.partition(" Give them back: ")
        both = f"Service/{KEY.name} and PodDisruptionBudget/{KEY.name}"
        assert rename == f"Rename the SemiPDService; or, once you know that nothing needs them, delete {both}."
        assert back.startswith(f"kubectl patch ConfigMap/{agent} Deployment/{KEY.name} --type=json -p '[{{")
    assert one.kube.service()["status"]["reason"] == (
        f"NameConflict(ConfigMap/{agent},Service/{KEY.name},Deployment/{KEY.name},PodDisruptionBudget/{KEY.name})"
    )
    patch = json.loads(back.partition("'")[2].partition("'")[0])
    for kind, name in (("Deployment", KEY.name), ("ConfigMap", agent)):
        one.kube.put(jsonpatch.apply_patch(one.kube.objects[kind, KEY.namespace, name], patch))
    await one.reconcile()
    assert one.kube.service()["status"]["reason"] == (
        f"NameConflict(Service/{KEY.name},PodDisruptionBudget/{KEY.name})"
    )


async def test_a_service_whose_objects_all_lost_their_owner_has_the_whole_command() -> None:
    """A restored backup: the commands of each would be longer than a message may be."""
    one = Fixture(new_service(replicas=2, **scaled()))
    await one.reconcile()
    lost = [live for (kind, *_), live in one.kube.objects.items() if kind not in ("SemiPDService", "Event")]
    assert len(lost) == 5
    for live in lost:
        one.kube.put({**live, "metadata": {**live["metadata"], "ownerReferences": []}})
    assert await one.reconcile() is Next.RETRY
    message = one.kube.condition("Ready")["message"]
    assert len(message) <= 1024 and message.endswith("or delete them (a Deployment's pods go with it).")
    command = shlex.split(message.partition("Give them back: kubectl patch ")[2].partition(" in their namespace")[0])
    assert set(command[:5]) == {f"{live['kind']}/{live['metadata']['name']}" for live in lost}
    for live in lost:
        orphan = one.kube.objects[live["kind"], KEY.namespace, live["metadata"]["name"]]
        one.kube.put(jsonpatch.apply_patch(orphan, json.loads(command[-1])))
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True"


async def test_an_object_that_someone_has_deleted_already_is_waited_for() -> None:
    """A load balancer's, whose finalizer takes a minute."""
    one = Fixture(new_service())
    meta = {"name": KEY.name, "namespace": KEY.namespace, "deletionTimestamp": "2026-01-02T03:04:05Z"}
    one.kube.put({"kind": "Service", "apiVersion": "v1", "metadata": meta})
    assert await one.reconcile() is Next.RETRY
    assert one.kube.condition("Ready")["message"] == (
        f"Service {KEY.name} (being deleted) exists and does not belong to this SemiPDService. Remedy: Rename the "
        "SemiPDService; or, wait until that object is gone: its finalizers hold it."
    )
    stays = {**meta, "deletionTimestamp": None}
    one.kube.put({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": stays})
    await one.reconcile()
    remedy = one.kube.condition("Ready")["message"].partition("Remedy: ")[2]
    assert remedy.endswith(f"once you know that nothing needs it, delete Deployment/{KEY.name}.")


async def test_objects_of_a_deleted_service_of_the_same_name_go_by_themselves_and_nobody_is_to_delete_them() -> None:
    """``kubectl delete spd``, and at once the same again: the garbage collector comes a moment later."""
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    again = new_service(replicas=2)
    again["metadata"]["uid"] = "uid-2"
    one.kube.told.clear()
    one.kube.objects.pop(("SemiPDService", *KEY))
    one.kube.put(again)
    assert await one.reconcile() is Next.RETRY
    agent = f"{KEY.name}-agent"
    paths = f"ConfigMap/{agent},Service/{KEY.name},Deployment/{KEY.name},PodDisruptionBudget/{KEY.name}"
    for condition in ("SpecAccepted", "Ready"):
        said = one.kube.condition(condition)
        assert (said["status"], said["reason"]) == ("False", "PredecessorRemains")
        cause, _, remedy = said["message"].partition(" Remedy: ")
        assert cause == (
            f"ConfigMap {agent}, Service {KEY.name}, Deployment {KEY.name} and PodDisruptionBudget {KEY.name} still "
            f"belong to the deleted SemiPDService {KEY.name} before this one: the garbage collector takes them away."
        )
        assert remedy.startswith("Wait: ") and "delete" not in remedy and "Rename" not in remedy
    assert one.kube.service()["status"]["reason"].startswith("PredecessorRemains(ConfigMap/")
    assert one.kube.told == [], "it is on its way, and nothing is wrong"
    chart = [{"apiVersion": "helm.io/v1", "uid": "x", "controller": True, "kind": "Chart", "name": "web"}]
    budget = one.kube.objects["PodDisruptionBudget", KEY.namespace, KEY.name]
    one.kube.put({**budget, "metadata": {**budget["metadata"], "ownerReferences": chart}})
    await one.reconcile()
    assert one.kube.service()["status"]["reason"] == f"NameConflict(PodDisruptionBudget/{KEY.name})"
    assert agent not in one.kube.condition("Ready")["message"]
    one.kube.put(budget)
    for path in paths.split(","):
        kind, _, name = path.partition("/")
        one.kube.news.clear()
        one.kube.end(kind, name)
        assert one.kube.news == [KEY], "each that goes brings the service back to the workers"
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True"
    assert one.kube.objects["Deployment", *KEY]["metadata"]["ownerReferences"][0]["uid"] == "uid-2"


BACKUP = {"apiVersion": "v1", "kind": "ConfigMap", "name": "team's backup", "uid": "b"}
OURS = {"apiVersion": "semipd.io/v1alpha1", "kind": "SemiPDService", "name": KEY.name, "uid": "uid-1"}


@pytest.mark.parametrize("left", [[], [BACKUP], [BACKUP, OURS]], ids=["none", "another owner", "ours controls nothing"])
@pytest.mark.parametrize("kind", ["Deployment", "Service", "ConfigMap"])
async def test_an_object_of_ours_that_lost_its_owner_is_told_how_to_come_back_and_does(
    kind: str, left: list[dict[str, Any]]
) -> None:
    """A restored backup, or `--cascade=orphan`: to delete it would end the pods that serve. Who else owns it stays."""
    one = Fixture()
    await one.reconcile()
    name = f"{KEY.name}-agent" if kind == "ConfigMap" else KEY.name
    ours = one.kube.objects[kind, KEY.namespace, name]
    one.kube.put({**ours, "metadata": {**ours["metadata"], "ownerReferences": left}})
    assert await one.reconcile() is Next.RETRY
    ready = one.kube.condition("Ready")
    assert ready["reason"] == "NameConflict"
    said, _, patch = ready["message"].partition(f" Remedy: Give it back: kubectl patch {kind}/{name} --type=json -p '")
    assert said == f"{kind} {name} was of this operator's making and has no owner."
    live = one.kube.objects[kind, KEY.namespace, name]
    patched = jsonpatch.apply_patch(live, json.loads(patch.partition("'")[0]))
    owners = patched["metadata"]["ownerReferences"]
    assert owners == [*left[:1], {**OURS, "controller": True, "blockOwnerDeletion": True}]
    one.kube.put(patched)
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True"
