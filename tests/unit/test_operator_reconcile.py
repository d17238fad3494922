"""The reconciler against an API server in memory: what it makes, and what it shows when it is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, StandIn, new_service
from tests.unit.operator_observed import report
from tests.unit.operator_rendered import KEDA, SETTINGS, scaled

from semipd_agent.contract import Decision, DecisionReason, Split
from semipd_operator.fleet import Fleet
from semipd_operator.publish import Publisher
from semipd_operator.reconcile import Reconciler
from semipd_operator.status import AgentView

pytestmark = pytest.mark.unit


class Fixture:
    """A reconciler whose agents are never asked: their watches are only counted."""

    def __init__(self, *objects: Any, **options: Any) -> None:
        self.kube = StandIn(*(objects or (new_service(),)), **options)
        kube: Any = self.kube
        self.watches: dict[Any, Any] = {}
        fleet: Any = Fleet.__new__(Fleet)
        fleet.watch = self.watches.__setitem__
        fleet.forget = lambda key: self.watches.pop(key, None)
        self.views: dict[str, AgentView] = {}
        self.publisher = Publisher(kube, lambda key: self.views, timedelta(seconds=15), "test")
        self.reconciler = Reconciler(kube, SETTINGS, fleet, self.publisher)

    async def reconcile(self) -> bool:
        return await self.reconciler.reconcile(KEY)


@pytest.mark.parametrize("kind", ["PodMonitor", "ScaledObject", "HorizontalPodAutoscaler", "PodDisruptionBudget"])
async def test_a_kind_that_rbac_does_not_grant_is_not_ours(kind: str) -> None:
    """The cluster serves it, nobody asked for it, and its GET answers 403."""
    one = Fixture()
    one.kube.refuse["get", kind] = 403
    assert not await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True" and one.kube.condition("Ready")
    assert KEY in one.watches and len(one.publisher) == 1, "its agents are asked, its metric is served"
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
        ("get", "PodDisruptionBudget", 500),
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


async def test_what_may_be_read_but_not_deleted_is_said() -> None:
    one = Fixture(new_service(replicas=2))
    await one.reconcile()
    one.kube.put({**new_service(), "metadata": {**new_service()["metadata"], "generation": 2}})
    one.kube.refuse["delete", "PodDisruptionBudget"] = 403
    assert await one.reconcile()
    assert "cannot delete" in one.kube.condition("SpecAccepted")["message"]


async def test_a_read_that_is_older_than_our_last_write_tells_no_event_twice() -> None:
    """A reconcile reads the service, a round of the agents writes a decision, and then the reconcile ends."""
    one = Fixture()
    await one.reconcile()
    stale = one.kube.service()
    one.kube.told.clear()
    decision = Decision(
        time=datetime.now(UTC), from_split=Split(), to=Split(prefill_percent=60), reason=DecisionReason.MANUAL_CHANGE
    )
    view = AgentView(report=report(decisions=(decision,)), received_at=datetime.now(UTC))
    pod = {"kind": "Pod", "metadata": {"name": "p", "namespace": KEY.namespace, "uid": "p"}}
    pod["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    one.kube.put(pod)
    await one.reconcile()
    one.views = {"p": view}
    await one.publisher.publish(KEY)
    assert [event.reason for event in one.kube.told].count("PartitionChanged") == 1
    read = one.kube.get

    async def get(api_version: str, kind: str, namespace: str, name: str) -> Any:
        return stale if kind == "SemiPDService" else await read(api_version, kind, namespace, name)

    one.kube.get = get  # type: ignore[method-assign]
    await one.reconcile()
    assert [event.reason for event in one.kube.told].count("PartitionChanged") == 1


async def test_a_strangers_edit_of_the_status_is_mended() -> None:
    one = Fixture()
    await one.reconcile()
    one.kube.put({**one.kube.service(), "status": {"url": "x"}})
    await one.reconcile()
    assert one.kube.service()["status"]["url"].startswith("http://demo.")
