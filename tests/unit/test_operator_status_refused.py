"""A status that the API server refuses: said once, where it can be read, and tried again less and less often."""

from __future__ import annotations

import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_reconciler import Fixture

from semipd_operator.answers import ApiRefused

pytestmark = pytest.mark.unit
DENIED = "ValidatingAdmissionPolicy 'no-status' denied request: no"


async def seconds(one: Fixture, count: int) -> int:
    """So many rounds, one each second: how often the status was written or tried."""
    before = one.kube.asked["apply", "status"]
    for _ in range(count):
        try:
            await one.statuses.publish(KEY)
        except ApiRefused as refused:
            assert "denied" in str(refused) or "forbidden" in str(refused)
        one.now += 1
    return one.kube.asked["apply", "status"] - before


@pytest.mark.parametrize(("status", "words"), [(403, ""), (422, DENIED), (409, DENIED)])
async def test_a_status_that_is_denied_is_told_once_and_tried_less_and_less_often(status: int, words: str) -> None:
    one = Fixture(new_service())
    one.kube.refuse["apply", "status"], one.kube.words = status, words
    with pytest.raises(ApiRefused):
        await one.reconcile()
    assert one.kube.told == ["StatusRefused"]
    assert await seconds(one, 63) == 5, "after 2, 6, 14, 30 and 62 s"
    assert await seconds(one, 600) == 10, "once in a minute at most"
    assert one.kube.told == ["StatusRefused"]
    del one.kube.refuse["apply", "status"]
    assert await seconds(one, 61) == 1 and one.kube.condition("Ready")
    one.kube.told.clear()
    one.kube.refuse["apply", "status"] = status
    one.change(replicas=3)
    with pytest.raises(ApiRefused):
        await one.reconcile()
    assert one.kube.told == ["StatusRefused"], "another time is told, too"


@pytest.mark.parametrize("status", [404, 409, 429, 500])
async def test_a_status_that_was_overtaken_or_that_the_server_does_not_take_for_now_is_no_event(status: int) -> None:
    one = Fixture(new_service())
    one.kube.refuse["apply", "status"], one.kube.words = status, "not now: forbidden"
    await seconds(one, 1)
    try:
        await one.reconcile()
    except ApiRefused:
        assert status > 409
    assert one.kube.told == []
