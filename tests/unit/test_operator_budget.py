"""What a service costs the API server, counted; and that hundreds of services are looked after in turn."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_reconciler import Fixture, ready_pod
from tests.unit.operator_rendered import scaled

from semipd_operator.reconcile import Next
from semipd_operator.workqueue import Key, WorkQueue

pytestmark = pytest.mark.unit


def verbs(before: Counter[Any], after: Counter[Any]) -> dict[str, int]:
    """Requests by verb, between two counts."""
    found: Counter[str] = Counter()
    for (verb, _), count in (after - before).items():
        found[verb] += count
    return dict(found)


async def test_the_requests_of_a_service_from_its_birth_to_its_end_are_these_and_no_more() -> None:
    one = Fixture(new_service(replicas=2, monitoring={"podMonitor": True}, **scaled()))

    async def costs() -> dict[str, int]:
        before = one.kube.asked.copy()
        await one.reconcile()
        return verbs(before, one.kube.asked)

    # Six objects, each looked for before it is made (a PodMonitor twice: no watch shows it), one kind that is not
    # wanted, and who serves the metric; six objects and one status are written.
    assert await costs() == {"get": 9, "apply": 7}
    assert await costs() == {"get": 2, "apply": 1}, "the autoscaler is there: ScalingReady says so"
    assert await costs() == {"get": 2}, "the pod monitor, which no watch shows, and who serves the external metrics"
    one.change(replicas=2, monitoring={"podMonitor": True}, **{**scaled(), "slo": {"ttftMilliseconds": 700}})
    assert await costs() == {"get": 2, "apply": 3}, "what the agents mount, the Deployment's record, and the status"
    one.change()
    assert await costs() == {"get": 1, "apply": 3, "delete": 3}, "what is not wanted any more is deleted"
    assert await costs() == {"get": 3}, "and looked for once more"
    assert await costs() == {}, "a quiet service costs nothing"


async def test_pods_that_stand_still_cost_four_questions_in_a_look_however_many_they_are() -> None:
    one = Fixture(new_service(replicas=40))
    await one.reconcile()
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-02T03:04:05Z"}
    creating = {"name": "engine", "state": {"waiting": {"reason": "ContainerCreating"}}}
    for number in range(40):
        status = {"conditions": [scheduled], "containerStatuses": [creating]}
        one.kube.put({**ready_pod(f"p{number}"), "spec": {"nodeName": "n"}, "status": status})
    for _ in range(3):
        before = one.kube.asked.copy()
        assert await one.reconcile() is Next.LATER
        assert (one.kube.asked - before)["list", "Event"] == 4


async def test_a_service_that_always_has_news_or_always_fails_keeps_nobody_from_its_turn() -> None:
    """500 services, one worker: the loud one and the failing one come once in a round."""
    queue = WorkQueue(first_delay=0.0)
    keys = [Key("n", str(number)) for number in range(500)]
    loud, failing = keys[:2]
    for key in keys:
        queue.add(key)
    turns: Counter[Key] = Counter()
    for _ in range(3 * len(keys)):
        key = await queue.get()
        turns[key] += 1
        queue.add(loud)
        if key == failing:
            queue.retry(key)
        else:
            queue.done(key)
        if key not in (loud, failing):
            queue.add(key)
    assert set(turns) == set(keys) and max(turns.values()) <= 4
    assert KEY not in turns
