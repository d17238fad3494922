"""Taints that the scheduler does not name: which nodes that a pod selects have them, and what to do about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.unit.operator_asked import TROUBLE, Asked, Clock
from tests.unit.operator_observed import ago, messages, observed, pod

from semipd_operator.answers import ApiRefused
from semipd_operator.inquiry import Inquiry
from semipd_operator.status import summarise
from semipd_operator.status.observed import Problem
from semipd_operator.status.scheduling import unplaced
from semipd_operator.status.taints import Taint, named, tainted, taints_of, untold, untolerated

pytestmark = pytest.mark.unit

NO_PLACE = "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't match Pod's node affinity."
"""Kubernetes 1.36, pkg/scheduler/framework/plugins/tainttoleration."""
OLDER = "0/1 nodes are available: 1 node(s) had untolerated taint {team.io/repair: disk}."
NO_GPU = "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient nvidia.com/gpu."


def node(name: str, *taints: tuple[str, str, str], **labels: str) -> dict[str, Any]:
    listed = [{"key": key, "value": value, "effect": effect} for key, value, effect in taints]
    return {"metadata": {"name": name, "labels": labels}, "spec": {"taints": listed}}


REPAIR, GPU = ("team.io/repair", "disk", "NoSchedule"), ("nvidia.com/gpu", "", "NoSchedule")


def waiting(words: str = NO_PLACE, **spec: Any) -> dict[str, Any]:
    scheduled = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    meta = {"name": "p", "uid": "p", "namespace": "d", "labels": {"pod-template-hash": "7d9c"}}
    return {"metadata": meta, "spec": spec, "status": {"phase": "Pending", "conditions": [scheduled]}}


@pytest.mark.parametrize(
    ("toleration", "tolerated"),
    [
        ({"operator": "Exists"}, True),
        ({"key": "team.io/repair", "operator": "Exists"}, True),
        ({"key": "team.io/repair", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "team.io/repair", "value": "disk"}, True),
        ({"key": "team.io/repair", "operator": "Equal", "value": "disk", "effect": "NoSchedule"}, True),
        ({"key": "team.io/repair", "value": "fan"}, False),
        ({"key": "team.io/repair"}, False),
        ({"key": "team.io", "operator": "Exists"}, False),
    ],
)
def test_a_toleration_counts_as_it_does_for_the_scheduler(toleration: dict[str, Any], tolerated: bool) -> None:
    taint = Taint(*REPAIR)
    assert untolerated({"spec": {"tolerations": [toleration]}}, [taint]) == (() if tolerated else (taint,))


def test_what_only_makes_a_node_less_liked_keeps_nobody_away() -> None:
    assert taints_of(node("n", ("a", "", "PreferNoSchedule"), REPAIR)) == (Taint(*REPAIR),)
    assert [one.name for one in tainted([node("n"), node("m", REPAIR)])] == ["m"]


def shown(pod: dict[str, Any], *nodes: dict[str, Any]) -> Problem:
    words = pod["status"]["conditions"][0]["message"]
    return named(unplaced(words), pod, tainted(nodes))


def test_the_taint_of_the_nodes_that_the_pod_selects_is_at_fault() -> None:
    found = shown(waiting(nodeSelector={"pool": "h100"}), node("n1", GPU), node("n2", REPAIR, pool="h100"))
    assert found.detail == "taint/team.io/repair"
    assert found.message == f"{NO_PLACE.rstrip('.')}; not tolerated: team.io/repair=disk:NoSchedule (node n2)"
    assert found.remedy == (
        "Tolerate the taint (tolerations in spec.podTemplate), remove it (kubectl taint nodes n2 "
        "team.io/repair-), or add a node without it."
    )
    nothing = shown(waiting(nodeSelector={"pool": "none"}), node("n1", GPU))
    assert nothing == unplaced(NO_PLACE), "no node is selected: that is at fault"
    tolerated = waiting(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}])
    assert shown(tolerated, node("n1", GPU)) == unplaced(NO_PLACE)


def test_a_taint_of_kubernetes_own_is_the_nodes_trouble() -> None:
    found = shown(waiting(), node("n1", ("node.kubernetes.io/disk-pressure", "", "NoSchedule")))
    assert found.detail == "taint/node.kubernetes.io/disk-pressure"
    assert found.remedy.startswith("kubectl describe node n1: mend what Kubernetes tainted it for")


def test_beside_a_resource_the_taint_is_named_and_the_resource_stays_at_fault() -> None:
    """The node with the GPU has the taint, and the others have no GPU: which of both is amiss nobody knows."""
    found = shown(waiting(NO_GPU), node("gpu", GPU))
    assert (found.detail, found.remedy) == ("nvidia.com/gpu", "")
    assert found.message.endswith("2 Insufficient nvidia.com/gpu; not tolerated: nvidia.com/gpu:NoSchedule (node gpu)")


def test_of_many_nodes_and_taints_a_few_are_named() -> None:
    many = [node(f"n{n}", GPU) for n in range(5)] + [node(f"m{n}", (f"t{n}", "", "NoSchedule")) for n in range(4)]
    told = shown(waiting(), *many).message.partition("not tolerated: ")[2]
    assert told == "nvidia.com/gpu:NoSchedule (node n0, n1, n2 and 2 more), t0:NoSchedule (node m0), t1:NoSchedule " + (
        "(node m1) and 2 more"
    )


def test_a_scheduler_that_names_them_is_enough() -> None:
    assert untold(unplaced(NO_PLACE)) and untold(unplaced(NO_GPU))
    assert not untold(unplaced(OLDER)) and not untold(unplaced("0/1 nodes are available: 1 Insufficient cpu."))
    assert not untold(None)


async def test_nodes_are_listed_for_pods_that_taints_keep_away_and_not_again_for_a_while() -> None:
    kube, clock = Asked(node=node("n2", REPAIR)), Clock()
    one = Inquiry(kube, clock)
    others = [waiting(OLDER), waiting("0/1 nodes are available: 1 Insufficient cpu.")]
    await one.look(others, ago(0))
    assert not kube.count["nodes"]
    for _ in range(40):
        [view] = await one.look([waiting()], ago(0))
        assert view.problem and view.problem.detail == "taint/team.io/repair" and not view.node_owes
        clock.now += 1
    assert kube.count["nodes"] == 2
    kube.node = None
    clock.now += 30
    [view] = await one.look([waiting()], ago(0))
    assert view.problem == unplaced(NO_PLACE), "the taint is gone, and something else keeps it away"


async def test_a_pod_that_comes_after_the_list_waits_for_another_and_not_for_long() -> None:
    kube, clock = Asked(node=node("n2", REPAIR)), Clock()
    one = Inquiry(kube, clock)
    await one.look([waiting()], ago(0))
    kube.node = node("n3", GPU)
    later = waiting()
    later["metadata"] |= {"name": "q", "uid": "q"}
    clock.now += 2
    [view] = await one.look([later], ago(0))
    assert view.node_owes and kube.count["nodes"] == 1, "what is known may be old: it is looked at again"
    clock.now += 4
    [view] = await one.look([later], ago(0))
    assert view.problem and view.problem.detail == "taint/nvidia.com/gpu" and not view.node_owes
    assert kube.count["nodes"] == 2
    later["status"]["conditions"][0]["message"] = f"{NO_PLACE} preemption: 0/3 nodes are available."
    [view] = await one.look([later], ago(0))
    assert view.node_owes, "the scheduler says something else: so may the nodes"


async def test_pods_that_went_are_forgotten_while_others_are_kept_away() -> None:
    """In a cluster in which there is always one, each that ever was would be remembered."""
    kube, clock = Asked(node=node("n2", REPAIR)), Clock()
    one = Inquiry(kube, clock)
    for number in range(100):
        passing = waiting()
        passing["metadata"] |= {"name": f"p{number}", "uid": f"p{number}"}
        await one.look([waiting(), passing], ago(0))
        clock.now += 60
    assert len(one._kept_away) <= 17, "those of a quarter of an hour"


async def test_without_the_right_to_list_nodes_the_schedulers_words_are_all() -> None:
    kube = Asked(failure=ApiRefused(403, "forbidden"))
    [view] = await Inquiry(kube, Clock()).look([waiting()], ago(0))
    assert view.problem == unplaced(NO_PLACE) and not view.node_owes, "nobody waits for an answer"


@pytest.mark.parametrize("trouble", [one for one in TROUBLE if one])
async def test_a_server_in_trouble_is_asked_again(trouble: Exception) -> None:
    kube, clock = Asked(failure=trouble, node=node("n2", REPAIR)), Clock()
    one = Inquiry(kube, clock)
    [view] = await one.look([waiting()], ago(0))
    assert view.problem == unplaced(NO_PLACE) and view.node_owes
    kube.failure = None
    clock.now += 30
    [view] = await one.look([waiting()], ago(0))
    assert view.problem and view.problem.detail == "taint/team.io/repair" and not view.node_owes


async def test_the_taint_that_drives_a_pod_out_is_named() -> None:
    """Kubernetes 1.36, pkg/controller/tainteviction: it says no more than this."""
    words = "Taint manager: deleting due to NoExecute taint"
    gone = waiting(nodeName="n1", tolerations=[{"key": "team.io/slow", "operator": "Exists"}])
    gone["metadata"]["deletionTimestamp"] = ago(0).isoformat()
    target = {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": words}
    gone["status"] = {"conditions": [target]}
    kube = Asked(node=node("n1", ("team.io/slow", "", "NoExecute"), REPAIR, ("team.io/repair", "disk", "NoExecute")))
    [view] = await Inquiry(kube, Clock()).look([gone], ago(0))
    assert view.disruption and view.disruption.words == f"{words} (team.io/repair=disk:NoExecute of node n1)"
    one, tainted_node = Inquiry(kube, Clock()), kube.node
    kube.node = node("n1")
    before = waiting(nodeName="n1")
    before["status"]["conditions"] = [{"type": "Ready", "status": "False", "lastTransitionTime": ago(60).isoformat()}]
    await one.look([before], ago(0))
    kube.node = tainted_node
    [view] = await one.look([gone], ago(0))
    assert view.disruption and "team.io/repair=disk:NoExecute" in view.disruption.words, "it was asked before the taint"
    asked = kube.count["n1"]
    await one.look([gone], ago(0))
    assert kube.count["n1"] == asked, "and is not asked at each look"
    kube.node = None
    [view] = await Inquiry(kube, Clock()).look([gone], ago(0))
    assert view.disruption and view.disruption.words == words, "its node is gone, too"
    asked = kube.count["n1"]
    target["reason"] = "EvictionByEvictionAPI"
    [view] = await Inquiry(kube, Clock()).look([gone], ago(0))
    assert view.disruption and view.disruption.words == words and kube.count["n1"] == asked


def test_one_pod_of_two_that_has_no_place_is_told_while_the_other_serves() -> None:
    problem = shown(waiting(), node("n2", REPAIR))
    status = summarise(
        observed({"replicas": 2}, pods=(pod(), replace(pod("p2"), ready=False, started=False, problem=problem)))
    )
    assert status.reason == "Unschedulable(taint/team.io/repair)"
    said = messages(status)
    assert said["Ready"].startswith(f"1 of 2 pods are ready: p2: {NO_PLACE.rstrip('.')}; not tolerated: team.io/repair")
    assert "Remedy: Tolerate the taint (tolerations in spec.podTemplate)" in said["Ready"]
    assert "team.io/repair=disk:NoSchedule (node n2)" in said["Available"], "which is True"
