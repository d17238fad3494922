"""The reconciler against an API server in memory: what it makes, what it leaves alone, and what it costs."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_observed import report, slo
from tests.unit.operator_reconciler import Fixture, ready_pod

from semipd_agent.contract import Decision, DecisionReason, Split
from semipd_operator.reconcile import Next
from semipd_operator.status import AgentView

pytestmark = pytest.mark.unit


async def test_pods_of_a_copy_that_bears_our_labels_are_not_ours_and_are_named() -> None:
    """``kubectl get deployment -o yaml``, another name, ``apply``: the Service's selector finds its pods, too."""
    one = Fixture()
    await one.reconcile()

    def controlled(name: str, by: str) -> dict[str, Any]:
        pod = ready_pod(name)
        pod["metadata"]["ownerReferences"] = [{"kind": "ReplicaSet", "name": by, "uid": by, "controller": True}]
        pod["metadata"]["labels"]["semipd.io/template-hash"] = one.kube.service()["status"]["templateHash"]
        return pod

    one.kube.put(controlled("p", f"{KEY.name}-5c8f"))
    for number in range(5):
        one.kube.put(controlled(f"q{number}", "copy-of-demo-7d9a"))
    one.views = {"p": AgentView(report=report(config_generation=1), received_at=datetime.now(UTC))}
    await one.reconcile()
    status = one.kube.service()["status"]
    assert (status["replicas"], status["readyReplicas"], status["reason"]) == (1, 1, "ForeignPods")
    assert one.kube.condition("Available")["message"] == "1 of 1 pods are ready"
    assert one.kube.condition("Ready")["message"] == (
        "q0 (of ReplicaSet copy-of-demo-7d9a), q1 (of ReplicaSet copy-of-demo-7d9a), q2 (of ReplicaSet "
        "copy-of-demo-7d9a) and 2 more bear semipd.io/service=demo, so the Service sends them requests, too. Remedy: "
        "Remove the label semipd.io/service from the pod, or the template of the owner, that the message names."
    )
    assert [view.name for view in one.watches[KEY].pods] == ["p"], "their agents are not asked"


async def test_a_pod_that_ended_or_is_of_someone_else_is_not_waited_for() -> None:
    """They may lie about for days."""
    one = Fixture()
    await one.reconcile()
    one.kube.put({**ready_pod("gone"), "spec": {"nodeName": "n"}, "status": {"phase": "Failed", "reason": "Evicted"}})
    bare = {**ready_pod("bare"), "spec": {"nodeName": "n"}, "status": {}}
    bare["metadata"]["labels"] = {"semipd.io/service": KEY.name}
    one.kube.put(bare)
    assert await one.reconcile() is Next.NEWS
    assert one.kube.service()["status"]["replicas"] == 0


async def test_a_service_that_finalizers_hold_says_so_and_nothing_more_is_done_for_it() -> None:
    one = Fixture()
    await one.reconcile()
    live = one.kube.service()
    ours = one.kube.asked["apply", "Deployment"]
    held = {"deletionTimestamp": "2026-01-02T03:04:05Z", "finalizers": ["team.io/audit", "foregroundDeletion"]}
    one.kube.put({**live, "metadata": {**live["metadata"], **held}})
    for _ in range(2):
        assert await one.reconcile() is Next.NEWS
    ready = one.kube.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "Deleting") and KEY not in one.watches
    assert ready["message"].startswith(
        "it is being deleted, and waits for finalizers team.io/audit, foregroundDeletion. "
    )
    assert one.kube.asked["apply", "status"] == 2 and one.kube.asked["apply", "Deployment"] == ours
    last = one.kube.service()
    one.kube.put({**last, "metadata": {**last["metadata"], "finalizers": ["foregroundDeletion"]}})
    one.kube.refuse["apply", "status"] = 404
    assert await one.reconcile() is Next.NEWS, "it went meanwhile: nothing to try again"


async def test_a_decision_is_told_once_whatever_else_goes_on() -> None:
    """A reconcile has begun, a round of the agents writes the decision, and then the reconcile ends."""
    one = Fixture()
    await one.reconcile()
    one.kube.put(ready_pod())
    await one.reconcile()
    one.kube.told.clear()
    decision = Decision(
        time=datetime.now(UTC), from_split=Split(), to=Split(prefill_percent=60), reason=DecisionReason.MANUAL_CHANGE
    )
    apply = one.kube.apply_to

    async def slow_apply(obj: Any, live: Any) -> Any:
        one.views = {"p": AgentView(report=report(decisions=(decision,)), received_at=datetime.now(UTC))}
        await one.statuses.publish(KEY)
        return await apply(obj, live)

    one.kube.apply_to = slow_apply  # type: ignore[method-assign]
    one.change(slo={"ttftMilliseconds": 500})
    await one.reconcile()
    assert one.kube.asked["apply", "ConfigMap"] == 2, "the round came while the reconcile was at work"
    await one.reconcile()
    assert one.kube.told.count("PartitionChanged") == 1


async def test_what_we_write_ourselves_is_no_news_and_a_quiet_service_costs_no_request() -> None:
    one = Fixture()
    one.kube.news.clear()
    await one.reconcile()
    one.kube.put(ready_pod())
    assert one.kube.news.pop() == KEY, "a pod that became ready is news"
    await one.reconcile()
    one.kube.news.clear()
    for seconds in range(3):
        latencies = slo(400 + 50 * seconds, True)
        one.views = {"p": AgentView(report=report(slo=latencies), received_at=datetime.now(UTC))}
        await one.statuses.publish(KEY)
    assert one.kube.asked["apply", "status"] >= 2 and one.kube.news == []
    before = one.kube.asked.copy()
    for _ in range(3):
        await one.reconcile()
    assert one.kube.asked == before


async def test_a_live_read_comes_before_each_create_and_only_there() -> None:
    one = Fixture()
    await one.reconcile()
    made = {kind: count for (verb, kind), count in one.kube.asked.items() if verb == "get"}
    unwanted = {"PodMonitor": 1, "ScaledObject": 1, "PodDisruptionBudget": 1, "HorizontalPodAutoscaler": 1}
    assert made == {"ConfigMap": 1, "Service": 1, "Deployment": 1, **unwanted}
    one.change(slo={"ttftMilliseconds": 500})
    await one.reconcile()
    assert made == {kind: count for (verb, kind), count in one.kube.asked.items() if verb == "get"}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_child_that_lost_our_label_is_deleted_all_the_same_when_it_is_unwanted(restarted: bool) -> None:
    """The watch does not show it any more, as if it were gone."""
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    await one.reconcile()
    kind = ("PodDisruptionBudget", *KEY)
    bare = one.kube.objects[kind]
    gone = {**bare, "metadata": {**bare["metadata"], "resourceVersion": "900"}}
    one.kube.informer.told("PodDisruptionBudget", gone, gone=True)
    if restarted:
        one.reconciler.forget(KEY)
    one.change()
    await one.reconcile()
    assert kind not in one.kube.objects
    before = one.kube.asked["get", "PodDisruptionBudget"]
    await one.reconcile()
    await one.reconcile()
    assert one.kube.asked["get", "PodDisruptionBudget"] <= before + 1, "looked for once"


async def test_the_write_of_an_older_crd_that_drops_a_field_is_not_repeated() -> None:
    one = Fixture()
    apply_status = one.kube.apply_status

    async def pruned(service: Any, status: Any) -> Any:
        return await apply_status(service, {key: value for key, value in status.items() if key != "model"})

    one.kube.apply_status = pruned  # type: ignore[method-assign]
    await one.reconcile()
    for _ in range(3):
        await one.statuses.publish(KEY)
    assert one.kube.asked["apply", "status"] == 1


async def test_a_rollout_that_the_server_does_not_take_for_now_is_not_under_way() -> None:
    """Ready is taken back from nobody for a server in trouble, so not by calling the pods outdated either."""
    one = Fixture(new_service(replicas=0))
    await one.reconcile()
    before = one.kube.service()["status"]["templateHash"]
    one.change(replicas=0, engine={"image": "example.org/other:1"})
    one.kube.refuse["apply", "Deployment"], one.kube.words = 503, "etcdserver: request timed out"
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["reason"] == "ApplyFailed"
    assert one.kube.service()["status"]["templateHash"] == before
    one.kube.refuse.clear()
    await one.reconcile()
    assert one.kube.service()["status"]["templateHash"] != before


async def test_a_strangers_edit_of_the_status_is_mended() -> None:
    one = Fixture()
    await one.reconcile()
    one.kube.put({**one.kube.service(), "status": {"url": "x"}})
    await one.reconcile()
    assert one.kube.service()["status"]["url"].startswith("http://demo.")
