"""The writer of statuses keeps what pods counted, and both the autoscaler and the status are told the growth of it."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.unit.operator_observed import report, slo
from tests.unit.operator_reconciler import KEY, Fixture, new_service, ready_pod

from semipd_operator import status_writer
from semipd_operator.status import AgentView

pytestmark = pytest.mark.unit
BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Clock(datetime):
    """Of the day, as the test sets it."""

    at = BEGIN

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return cls.at


def told(counter: int, rate: float) -> AgentView:
    one = slo(413, True, utilization_ratio=0.7, utilization_rate=rate, arrivals=counter)
    return AgentView(report=report(slo=one), received_at=Clock.at)


async def test_a_load_that_grows_is_told_ahead_and_one_that_rests_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_writer, "datetime", Clock)
    scaling = {"maxReplicas": 9, "targetUtilizationPercent": 80}
    one = Fixture(new_service(slo={"ttftMilliseconds": 500}, autoscaling=scaling), ready_pod())
    await one.reconcile()
    counter, full, before = 0, dict[int, float](), deque([0], maxlen=61)
    for second in range(0, 1200, 2):
        Clock.at = BEGIN + timedelta(seconds=second)
        counter += 8 if second < 400 else 8 + (min(second, 800) - 400) // 20
        rate = (counter - before[0]) / (2 * len(before))
        before.append(counter)
        one.views = {"p": told(counter, rate)}
        await one.statuses.publish(KEY)
        full[second] = one.statuses.fullness(KEY.namespace)[KEY.name]
        if second == 790:
            shown = one.kube.service()["status"]["slo"]
            assert (shown["utilizationPercent"], shown["recommendedReplicas"]) == (70, 2)
            assert 30 <= shown["growthPercent"] <= 60
    assert {value for second, value in full.items() if second < 400 or second > 1110} == {0.7}
    assert 0.7 * 1.3 < full[790] < 0.7 * 1.6
    assert "growthPercent" not in one.kube.service()["status"]["slo"]


async def test_a_pod_that_starts_takes_no_growth_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until its engine answers its agent has nothing to tell, and what was counted of the others stays."""
    monkeypatch.setattr(status_writer, "datetime", Clock)
    one = Fixture(new_service(slo={"ttftMilliseconds": 500}, autoscaling={"maxReplicas": 9}), ready_pod())
    await one.reconcile()
    silent, counter, full = slo(None, None, reason="TelemetryStale"), 0, list[float]()
    for second in range(0, 600, 2):
        Clock.at = BEGIN + timedelta(seconds=second)
        rate = 4 + second / 100
        counter += round(2 * rate)
        one.views = {"p": told(counter, rate - 0.6)}
        if 300 <= second < 360:
            one.views["new"] = AgentView(report=report(slo=silent), received_at=Clock.at)
        elif second >= 360:
            one.views["new"] = told(0, 0.0)
        full.append(one.statuses.fullness(KEY.namespace)[KEY.name])
    assert min(full[290 // 2 :]) > 0.7 * 1.1
