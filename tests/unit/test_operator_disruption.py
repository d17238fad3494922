"""A pod that the cluster takes away: told once as an event and, where it was preempted, by the status of its successor,
and not of pods that it has nothing to do with."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_observed import NOW, conditions, messages, observed, pod
from tests.unit.operator_reconciler import Fixture, ready_pod

from semipd_operator.status import PodView, summarise
from semipd_operator.status.disruption import Losses
from semipd_operator.status.observed import Disruption
from semipd_operator.status.pods import pod_view
from semipd_operator.status.scheduling import unplaced

pytestmark = pytest.mark.unit

WORDS = "default-scheduler: preempting to accommodate a higher priority pod"
NO_ROOM = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."
REMEDY = (
    "Remedy: Give the pods a priority (priorityClassName in spec.podTemplate) or a node of their own, or add a node."
)


def said(at: datetime, reason: str = "PreemptionByScheduler") -> dict[str, Any]:
    stamp = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": WORDS,
        "lastTransitionTime": stamp,
    }


def gone(minutes_ago: float) -> PodView:
    return pod("old", disruption=Disruption("PreemptionByScheduler", WORDS, NOW - timedelta(minutes=minutes_ago)))


def waiting(minutes_ago: float) -> PodView:
    made = NOW - timedelta(minutes=minutes_ago)
    return pod("new", node="", ready=False, started=False, created_at=made, problem=unplaced(NO_ROOM))


@pytest.mark.parametrize("minutes", [1, 600])
def test_what_a_successor_lacks_was_taken_from_the_one_before_it(minutes: float) -> None:
    status = summarise(observed(pods=(waiting(minutes),), agents={}, preempted=gone(minutes)))
    assert status.reason == "Preempted(nvidia.com/gpu)"
    assert messages(status)["Ready"] == f"new: {NO_ROOM}; old, before it, was preempted: {WORDS}. {REMEDY}"


def test_a_pod_that_is_added_later_only_lacks_room() -> None:
    """And one that waited before."""
    for made in (30, 90):
        status = summarise(observed({"replicas": 2}, pods=(pod(), waiting(made)), preempted=gone(60)))
        assert status.reason == "Unschedulable(nvidia.com/gpu)" and "preempted" not in messages(status)["Ready"]


def test_while_the_successor_loads_it_says_why_it_has_to() -> None:
    loads = pod("new", ready=False, created_at=NOW)
    status = summarise(observed(pods=(loads,), agents={}, preempted=gone(1)))
    assert conditions(status)["Available"] == "False Preempted"
    assert messages(status)["Available"] == f"old: was preempted: {WORDS}. {REMEDY}"
    assert conditions(summarise(observed(preempted=gone(1))))["Ready"] == "True Ready", "it is over"
    assert "Preempted" not in conditions(summarise(observed(pods=(loads,), agents={}, preempted=gone(11))))["Available"]


def test_a_kubelet_preempts_for_a_critical_pod_with_words_of_its_own() -> None:
    raw = {**ready_pod(), "status": {"phase": "Failed", "reason": "Preempting", "message": "Preempted in order to..."}}
    found = pod_view(raw).problem
    assert found and (found.reason, found.message) == ("Preempted", "Preempting: Preempted in order to...")


def test_the_moment_is_told_by_the_clock_that_stamps_creations() -> None:
    """A scheduler's may be minutes off."""
    raw = ready_pod()
    raw["status"]["conditions"].append(said(NOW - timedelta(minutes=7)))
    at = pod_view(raw).disruption
    assert at and at.at == NOW - timedelta(minutes=7), "as long as nothing better is known"
    end = (NOW + timedelta(seconds=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    raw["metadata"] |= {"deletionTimestamp": end, "deletionGracePeriodSeconds": 30}
    at = pod_view(raw).disruption
    assert at and at == Disruption("PreemptionByScheduler", WORDS, NOW)
    raw["status"]["conditions"][-1] = said(NOW, "DeletionByTaintManager")
    at = pod_view(raw).disruption
    assert at and not at.preempts


async def test_it_is_remembered_when_it_is_gone_until_the_service_is() -> None:
    one = Fixture()
    await one.reconcile()
    now = datetime.now(UTC).replace(microsecond=0)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    old = ready_pod("old")
    old["status"]["conditions"].append(said(now))
    one.kube.put(old)
    one.kube.informer.told("Pod", one.kube.objects["Pod", KEY.namespace, "old"], gone=True)
    new = ready_pod("new")
    new["metadata"]["creationTimestamp"] = stamp
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_ROOM}
    new["status"] = {"phase": "Pending", "conditions": [scheduled]}
    one.kube.put(new)
    await one.reconcile()
    ready = one.kube.condition("Ready")
    assert ready["reason"] == "Preempted"
    assert ready["message"] == f"new: {NO_ROOM}; old, before it, was preempted: {WORDS}. {REMEDY}"
    one.kube.informer.told("SemiPDService", one.kube.service(), gone=True)
    assert one.kube.informer.preempted(KEY) is None


def test_a_strangers_pod_is_no_loss_of_ours() -> None:
    one = Fixture()
    bare = ready_pod("bare")
    del bare["metadata"]["labels"]["pod-template-hash"]
    bare["status"]["conditions"].append(said(NOW))
    one.kube.put(bare)
    assert one.kube.informer.preempted(KEY) is None
    taken = pod_view(bare).disruption
    assert taken and taken.preempts


def test_a_pod_that_is_spared_was_not_preempted() -> None:
    """Its deletion failed, or another node came: after two minutes Kubernetes takes the condition back."""
    one = Fixture()
    for status, preempted in (("True", True), ("False", False)):
        pod = ready_pod("old")
        pod["status"]["conditions"].append(said(NOW) | {"status": status})
        one.kube.put(pod)
        assert (one.kube.informer.preempted(KEY) is not None) == preempted


@pytest.mark.parametrize("hours", [-1, 1])
def test_it_is_told_for_as_long_as_others_whatever_the_api_servers_clock_says(hours: int) -> None:
    loads = pod("new", ready=False, created_at=NOW)
    for minutes, told in ((1, True), (11, False)):
        seen = observed(pods=(loads,), agents={}, preempted=gone(minutes - 60 * hours), ahead=timedelta(hours=hours))
        assert ("Preempted" in conditions(summarise(seen))["Available"]) == told


async def test_a_pod_that_is_preempted_is_told_once_with_the_schedulers_words() -> None:
    one = Fixture()
    await one.reconcile()
    one.kube.put(ready_pod())
    await one.reconcile()
    before = list(one.kube.told)
    pod = ready_pod()
    words = "default-scheduler: preempting to accommodate a higher priority pod"
    target = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": words}
    pod["status"]["conditions"].append(target)
    one.kube.put(pod)
    for _ in range(3):
        await one.reconcile()
    assert one.kube.told[len(before) :] == ["PodDisrupted"]
    assert one.kube.said[-1] == f"pod p was preempted for a pod of higher priority (PreemptionByScheduler): {words}"


async def test_each_pod_of_a_drain_is_told_and_a_pod_that_no_longer_is_to_go_is_none() -> None:
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    before = list(one.kube.told)
    for name in ("p", "q"):
        pod = ready_pod(name)
        reason = "EvictionByEvictionAPI" if name == "p" else "DeletionByTaintManager"
        pod["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True", "reason": reason})
        one.kube.put(pod)
        await one.reconcile()
    assert [told for told in one.kube.told[len(before) :] if told == "PodDisrupted"] == ["PodDisrupted"] * 2
    calm = ready_pod("r")
    calm["status"]["conditions"].append({"type": "DisruptionTarget", "status": "False", "reason": "Undone"})
    one.kube.put(calm)
    await one.reconcile()
    assert one.kube.told.count("PodDisrupted") == 2


def drained(*names: str, reason: str = "EvictionByEvictionAPI") -> list[PodView]:
    return [pod(name, disruption=Disruption(reason, "Eviction API: evicting")) for name in names]


def test_many_pods_that_go_at_once_are_one_event() -> None:
    losses = Losses()
    gone = drained("a") + drained("b", "c", "d", "e", reason="DeletionByTaintManager")
    assert losses.tell(gone, 0.0) == (
        "pod a was evicted, as a drain of its node does it (EvictionByEvictionAPI): Eviction API: evicting; "
        "4 pods (b, c, d and 1 more) were each evicted by a NoExecute taint of its node (DeletionByTaintManager): "
        "Eviction API: evicting"
    )
    assert losses.tell(gone, 1.0) == "" and losses.tell(gone[1:], 2.0) == ""


def test_a_drain_of_many_nodes_floods_nobody_and_no_pod_is_forgotten() -> None:
    """A pod every two seconds, for half an hour: ten events, and then one a minute with all that went since."""
    losses, said, now = Losses(), list[tuple[float, str]](), 0.0
    for n in range(900):
        now = 2.0 * n
        if told := losses.tell(drained(*(f"p{m}" for m in range(max(0, n - 1), n + 1))), now):
            said.append((now, told))
    assert [at for at, _ in said[:10]] == [2.0 * n for n in range(10)]
    combined = [told for _, told in said if told.startswith("(combined from similar events): ")]
    assert combined and combined[0].startswith("(combined from similar events): 30 pods (p10, p11, p12 and 27 more)")
    for at, _ in said:
        assert sum(at - 600 < other <= at for other, _ in said) <= 20
    if told := losses.tell([], now + 60):  # the last ones wait for their turn, though nobody else goes
        said.append((now + 60, told))
    pods = [int(found[1] or 1) for _, told in said for found in re.finditer(r"(?:(\d+) pods|pod p\d+) ", told)]
    assert sum(pods) == 900


def test_after_a_quiet_time_each_is_told_at_once_again() -> None:
    losses = Losses()
    for n in range(12):
        losses.tell(drained(f"p{n}"), float(n))
    assert losses.tell([], 70.0).startswith("(combined from similar events): 2 pods (p10, p11) ")
    assert losses.tell(drained("later"), 700.0).startswith("pod later was evicted")


async def test_a_drain_of_a_service_of_many_pods_makes_few_events() -> None:
    """Through the writer, as a service sees it: each pod goes on its own, with a look of ours for each."""
    one = Fixture(new_service(replicas=40))
    await one.reconcile()
    for n in range(40):
        going = ready_pod(f"p{n}")
        going["status"]["conditions"].append(said(NOW, "EvictionByEvictionAPI"))
        one.kube.put(going)
        one.now += 1
        await one.reconcile()
    assert one.kube.told.count("PodDisrupted") == 10
    one.now += 60
    await one.statuses.publish(KEY)
    assert one.kube.told.count("PodDisrupted") == 11
    assert one.kube.said[-1].startswith("(combined from similar events): 30 pods (p10, p11, p12 and 27 more) were each")


async def test_who_begins_to_lead_tells_nothing_of_pods_that_ended_before() -> None:
    """An evicted pod stays, and keeps its condition, until somebody deletes it: each restart would tell of it again."""
    words = "The node was low on resource: ephemeral-storage."
    target = {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": words}
    one = Fixture()
    await one.reconcile()

    def evicted(name: str) -> None:
        one.kube.put({**ready_pod(name), "status": {"phase": "Failed", "reason": "Evicted", "conditions": [target]}})

    evicted("p")
    await one.reconcile()
    assert one.kube.told.count("PodDisrupted") == 1
    one = Fixture(kube=one.kube)
    await one.reconcile()
    assert one.kube.told.count("PodDisrupted") == 1
    evicted("q")
    await one.reconcile()
    assert one.kube.told.count("PodDisrupted") == 2 and one.kube.said[-1].startswith("pod q was ended by its node")
