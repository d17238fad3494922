"""What is asked of the API server as a courtesy: only where there is a question, and never at the status' cost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.operator_asked import AWAY, FORBIDDEN, GPU, SHARED, TROUBLE, Asked, Clock, raw, unready
from tests.unit.operator_observed import ago

from semipd_operator import courtesy
from semipd_operator.answers import ApiRefused
from semipd_operator.inquiry import Inquiry, MetricsServer
from semipd_operator.status.pods import pod_view

pytestmark = pytest.mark.unit


async def test_only_pods_that_stand_still_are_asked_about_and_each_has_its_turn() -> None:
    kube, clock = Asked(), Clock()
    one = Inquiry(kube, clock)
    pods = [raw("young", 3), *(raw(f"p{n}", 12) for n in range(9))]
    looks = []
    for _ in range(3):
        looks.append(await one.look(pods, ago(0)))
        clock.now += 5
    assert not kube.count["young"] and not kube.count["n1"] and sum(kube.count.values()) == 12, "four in a look"
    assert [sum(view.complaint is not None for view in views) for views in looks] == [4, 8, 9]
    assert {view.complaint.message for view in looks[-1] if view.complaint} == {f"no volume for p{n}" for n in range(9)}


async def test_a_pod_is_asked_about_once_in_a_while_however_often_its_service_changes() -> None:
    kube, clock = Asked(), Clock()
    one = Inquiry(kube, clock)
    for _ in range(6):
        assert all(view.complaint for view in await one.look([raw("p", 12)], ago(0)))
        clock.now += 1
    assert kube.count["p"] == 2


async def test_a_missing_pull_secret_is_told_with_the_registrys_refusal_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kube = Asked()
    words = "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed."

    async def events(namespace: str, uid: str) -> list[dict[str, Any]]:
        return [{"reason": "FailedToRetrieveImagePullSecret", "message": words}]

    monkeypatch.setattr(kube, "events", events)
    pod = raw("p", 12)
    [view] = await Inquiry(kube).look([pod], ago(0))
    assert view.complaint is None and view.problem is None
    pod["status"]["containerStatuses"] = [
        {"name": "engine", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "401 Unauthorized"}}}
    ]
    [view] = await Inquiry(kube).look([pod], ago(0))
    assert view.problem and view.problem.message == f"{words} container engine: 401 Unauthorized"


async def test_pods_that_ended_and_those_of_others_take_no_turn() -> None:
    kube = Asked()
    one = Inquiry(kube)
    ended, bare, leaving = (raw(name, 12, **GPU) for name in ("ended", "bare", "leaving"))
    ended["status"]["phase"], bare["metadata"]["labels"] = "Failed", {}
    leaving["metadata"]["deletionTimestamp"] = ago(0).isoformat()
    await one.look([ended, bare, leaving, *(raw(f"p{n}", 12, nodeName="") for n in range(4))], ago(0))
    assert set(kube.count) == {f"p{n}" for n in range(4)}


@pytest.mark.parametrize("failure", [ApiRefused(503, "etcd"), FORBIDDEN], ids=str)
async def test_a_node_that_has_not_answered_is_owed(failure: ApiRefused) -> None:
    """No watch tells when it does; what RBAC refuses it will refuse later, too."""
    kube, clock = Asked(failure), Clock()
    one = Inquiry(kube, clock)
    pods = [raw("gpu", 1, **GPU)]
    [view] = await one.look(pods, ago(0))
    assert view.node_owes is (failure is not FORBIDDEN)
    [other] = await one.look([unready("p", 1)], ago(0))
    assert not other.node_owes, "nobody asks for the sake of this one"
    kube.failure = None
    clock.now += 301
    [view] = await one.look(pods, ago(0))
    assert not view.node_owes


async def test_a_node_is_owed_to_a_pod_no_longer_than_the_pod_is_not_ready() -> None:
    kube = Asked(ApiRefused(503, "etcd"))
    one = Inquiry(kube)
    assert (await one.look([unready("p", 12)], ago(0)))[0].node_owes
    well = unready("p", 1)
    well["status"]["conditions"][0]["status"] = "True"
    assert not (await one.look([well], ago(0)))[0].node_owes


async def test_a_node_that_another_look_asks_for_is_owed() -> None:
    kube, slow, asked = Asked(), asyncio.Event(), asyncio.Event()
    one = Inquiry(kube)

    async def waits(*what: str) -> dict[str, Any]:
        asked.set()
        await slow.wait()
        return {"metadata": {"labels": SHARED}}

    kube.get = waits  # type: ignore[method-assign]
    first = asyncio.ensure_future(one.look([raw("a", 1, **GPU)], ago(0)))
    await asked.wait()
    second = await one.look([raw("b", 1, **GPU)], ago(0))
    assert not second[0].gpu_sharing and second[0].node_owes
    slow.set()
    assert not (await first)[0].node_owes


async def test_a_pod_that_waited_for_a_scheduler_begins_anew_with_its_node() -> None:
    one, now = Inquiry(Asked()), ago(0)
    unseen = {"metadata": {"name": "p", "uid": "p", "namespace": "d", "creationTimestamp": ago(60).isoformat()}}
    assert (await one.look([unseen], ago(50)))[0].unseen_since == ago(60)
    [view] = await one.look([raw("p", 0)], now)
    assert view.preparing_since == now and view.complaint is None


@pytest.mark.parametrize("failure", TROUBLE, ids=str)
async def test_a_server_in_trouble_leaves_what_was_last_known(
    failure: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube, clock = Asked(), Clock()
    one = Inquiry(kube, clock)
    pods = [raw("p", 12), raw("gpu", 12, **GPU)]
    known = await one.look(pods, ago(0))
    server = await one.metrics_server("")
    assert all(view.complaint for view in known) and known[1].gpu_sharing and not server.served
    kube.failure, kube.silent = failure, failure is None
    clock.now += 301
    with monkeypatch.context() as patched:
        if kube.silent:  # any other answer has its time
            patched.setattr(courtesy, "PATIENCE_SECONDS", 0.05)
        assert [replace(view, node_owes=False) for view in await one.look(pods, ago(0))] == list(known)
        assert await one.metrics_server("") == server
    kube.failure, kube.silent, kube.node = None, False, {"metadata": {}}
    clock.now += 30
    assert (await one.look(pods, ago(0)))[1].gpu_sharing == "", "asked again sooner than after an answer"


async def test_an_answer_that_comes_while_another_look_waits_is_kept() -> None:
    """Sixteen services may be looked at at the same time, and who serves the metrics is the same for all."""
    free, waits = asyncio.Event(), iter((True, False))

    class Slow(Asked):
        async def serves(self, api_version: str) -> bool:
            if next(waits):
                await free.wait()
            return True

        async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
            await super().get(api_version, kind, namespace, name)
            return {"spec": {"service": {"namespace": "keda", "name": "metrics"}}}

    kube = Slow()
    one = Inquiry(kube)
    first = asyncio.create_task(one.metrics_server(""))
    await asyncio.sleep(0)
    assert (await one.metrics_server("")).owner == "keda/metrics"
    kube.failure = AWAY
    free.set()
    assert (await first).owner == "keda/metrics"


async def test_what_rbac_refuses_is_not_known() -> None:
    kube, clock = Asked(), Clock()
    one = Inquiry(kube, clock)
    pods = [raw("p", 12, **GPU)]
    await one.look(pods, ago(0))
    kube.failure = FORBIDDEN
    clock.now += 301
    [view] = await one.look(pods, ago(0))
    assert view.complaint is None and view.gpu_sharing == ""
    assert await Inquiry(Asked(FORBIDDEN)).metrics_server("") == MetricsServer()


async def test_the_labels_of_a_node_are_asked_for_seldom_and_its_health_while_a_pod_is_not_ready() -> None:
    condition = {"type": "Ready", "status": "Unknown", "message": "Kubelet stopped posting node status."}
    kube, clock = Asked(), Clock()
    one = Inquiry(kube, clock)
    for _ in range(2):
        [view] = await one.look([raw("gpu", 1, **GPU)], ago(0))
        clock.now += 299
    assert kube.count["n1"] == 1 and view.gpu_sharing and view.node_problem is None
    kube.node = {"metadata": {}, "status": {"conditions": [condition]}}
    [view] = await one.look([unready("p", 12)], ago(0))
    problem = view.node_problem
    assert problem and (problem.reason, problem.detail) == ("NodeNotReady", "n1")
    assert problem.message == "node n1 is not ready: Kubelet stopped posting node status."
    kube.node = None
    clock.now += 29
    assert (await one.look([unready("p", 12)], ago(0)))[0].node_problem == problem
    clock.now += 1
    [view] = await one.look([unready("p", 12)], ago(0))
    assert view.node_problem and view.node_problem.message == "node n1 is gone"
    assert (await one.look([unready("q", 3)], ago(0)))[0].node_problem, "known by another pod's question"


async def test_a_pod_for_a_node_that_never_was_says_so() -> None:
    """``nodeName`` passes the scheduler by, and no kubelet takes the pod: it has no condition at all."""
    kube = Asked(node=None)
    one = Inquiry(kube)
    meta = {"name": "p", "uid": "p", "namespace": "d", "labels": {"pod-template-hash": "7d9c"}}
    lost = {"metadata": {**meta, "creationTimestamp": ago(12).isoformat()}, "spec": {"nodeName": "nowhere"}}
    [view] = await one.look([lost], ago(0))
    assert view.node_problem and view.node_problem.message == "node nowhere is gone"


async def test_looks_at_the_same_time_lose_none_of_the_answers() -> None:
    """One ends while another still waits for its answers."""
    kube, slow = Asked(), asyncio.Event()
    one = Inquiry(kube)
    get = kube.get

    async def waits(*what: str) -> dict[str, Any] | None:
        await slow.wait()
        return await get(*what)

    kube.get = waits  # type: ignore[method-assign]
    waiting = asyncio.ensure_future(one.look([raw("gpu", 12, **GPU)], ago(0)))
    await asyncio.sleep(0)
    await one.look([raw("p", 12)], ago(0))
    slow.set()
    assert (await waiting)[0].gpu_sharing
    assert (await one.look([raw("gpu", 12, **GPU)], ago(0)))[0].gpu_sharing and kube.count["n1"] == 1


@pytest.mark.parametrize("silent", [False, True], ids=["the scheduler says so", "it says nothing"])
async def test_a_claim_without_a_volume_says_itself_why(silent: bool) -> None:
    kube, clock = Asked(), Clock()
    one = Inquiry(kube, clock)
    pod = raw("p", 40, nodeName="", volumes=[{"name": "m", "persistentVolumeClaim": {"claimName": "models"}}])
    pod["metadata"]["creationTimestamp"] = ago(40).isoformat()
    words = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    unplaced = {"type": "PodScheduled", "status": "False", "message": words}
    pod["status"] = {"nominatedNodeName": "n1"} if silent else {"conditions": [unplaced]}
    for _ in range(3):
        [view] = await one.look([pod], ago(0))
        clock.now += 2
    assert kube.count == {"d/models": 1}
    found = view.unseen if silent else view.problem
    assert found and (found.reason, found.detail) == ("ClaimUnbound", "models")
    assert found.message.startswith("claim models: no storage class is set for models; ")
    kube.failure = FORBIDDEN
    clock.now += 5
    [view] = await one.look([pod], ago(0))
    assert view.problem is None if silent else view.problem and view.problem.message == words


@pytest.mark.parametrize("earlier", [[], [("ProvisioningSucceeded", "Successfully provisioned volume pvc-1")]])
async def test_of_several_claims_the_one_without_a_volume_is_named_a_volume_of_the_pods_own_too(
    earlier: list[tuple[str, str]],
) -> None:
    kube = Asked(bound={"models": earlier})
    models = {"name": "m", "persistentVolumeClaim": {"claimName": "models"}}
    pod = raw("p", 40, nodeName="", volumes=[models, {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {}}}])
    words = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    pod["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "message": words}]}
    problem = pod_view(pod).problem
    assert problem and problem.detail == "models,p-scratch", "before anybody was asked"
    [view] = await Inquiry(kube, Clock()).look([pod], ago(0))
    assert view.problem and view.problem.detail == "p-scratch"
    assert view.problem.message == f"claim p-scratch: no storage class is set for p-scratch; {words}"
