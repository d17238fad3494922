"""Who leads has just begun, or leads no more: what it does not write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_observed import report
from tests.unit.operator_reconciler import Fixture, ready_pod

from semipd_operator.answers import ApiAway
from semipd_operator.status import AgentView

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("asked_ago", "generation", "written"), [(9, 1, False), (11, 1, True), (9, 2, True)], ids=["new", "late", "changed"]
)
async def test_a_new_leader_takes_nothing_back_and_tells_nothing_before_it_has_heard_the_agents(
    asked_ago: float, generation: int, written: bool
) -> None:
    """Another process has judged the service; this one has only just begun to ask."""
    first = Fixture(new_service(), ready_pod())
    await first.reconcile()
    key_pod = first.kube.informer.pods(KEY)[0]["metadata"]["uid"]
    first.views[key_pod] = AgentView(report=report(config_generation=1), received_at=datetime.now(UTC))
    await first.statuses.publish(KEY)
    before = first.kube.service()["status"]
    assert first.kube.condition("PartitionApplied")["status"] == "True"
    told = list(first.kube.told)
    if generation > 1:
        first.change(replicas=1)
    second = Fixture(kube=first.kube)
    second.views[key_pod] = AgentView(asked_since=datetime.now(UTC) - timedelta(seconds=asked_ago))
    await second.reconcile()
    assert (first.kube.service()["status"] != before) == written
    assert second.kube.told == [*told, *(["AgentUnreachable"] if asked_ago > 10 else [])]
    second.views[key_pod] = AgentView(report=report(config_generation=2), received_at=datetime.now(UTC))
    await second.statuses.publish(KEY)
    assert first.kube.condition("PartitionApplied")["status"] == "True"


async def test_a_process_that_may_not_write_writes_no_status() -> None:
    lost = Fixture(new_service(), ready_pod(), leads=lambda: False)
    await lost.reconcile()
    assert "status" not in lost.kube.service() and lost.kube.told == []
    going = new_service()
    going["metadata"] |= {"deletionTimestamp": "2026-01-02T03:04:05Z", "finalizers": ["example.com/hold"]}
    lost.kube.put(going)
    with pytest.raises(ApiAway):
        await lost.reconcile()
    assert "status" not in lost.kube.service()
