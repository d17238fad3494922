"""The scaling act against a service of the test's: what may leave it out, what fails it, and that it clears up."""

from __future__ import annotations

import io
from collections.abc import Sequence
from threading import Event
from typing import Any

import pytest
from rich.console import Console

from bench.traffic.plan import Request
from bench.traffic.records import Record
from e2e.demo.acts import scale
from e2e.demo.outcome import Outcome
from e2e.demo.service import Deployed
from e2e.lib.kube import Kube
from e2e.lib.waiting import PATIENCE_S, NotInTime

pytestmark = pytest.mark.unit


class Quiet(Kube):
    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 120) -> str:
        return "smollm2"


class Scripted(Deployed):
    """ScalingReady is as given once autoscaling is asked for; two pods while more comes than one pod can do, and at the
    first two looks after it, in which a light load may find the door closed."""

    def __init__(self, status: str, reason: str, *, closed: bool = False) -> None:
        super().__init__(Quiet(), "demo", "smollm2")
        self.said = {"type": scale.KIND, "status": status, "reason": reason, "message": "in its words"}
        self.spec: dict[str, Any] = {}
        self.reads, self.left, self.closed = 0, 0, closed
        self.rates: list[float] = []

    def send(self, plan: Sequence[Request], start: float | None = None, stop: Event | None = None) -> list[Record]:
        if stop is not None:
            self.rates.append(len(plan) / plan[-1].at)
            heavy = self.rates[-1] > 5
            self.left = 1_000 if heavy else 2
            stop.wait(PATIENCE_S)
            if self.closed and not heavy:
                return [Record(0, r.label, r.at, r.at, error="connection refused") for r in plan]
        return [Record(0, r.label, r.at, r.at, (r.at + 0.1, r.at + 0.2), finish_reason="length") for r in plan]

    def get(self) -> dict[str, Any]:
        self.reads += 1
        self.left -= 1
        pods = 2 if self.left > 0 else 1
        conditions = [self.said] if self.spec.get("autoscaling") else []
        return {"spec": {"replicas": pods}, "status": {"readyReplicas": pods, "conditions": conditions}}

    def patch(self, spec: dict[str, Any]) -> None:
        self.spec |= spec

    def lives(self) -> dict[str, int]:
        return {"first": 0} | ({"second": 0} if self.left > 0 else {})


@pytest.fixture
def outcome() -> Outcome:
    return Outcome(Console(file=io.StringIO(), width=200), mode="cluster")


def shown(outcome: Outcome) -> str:
    assert isinstance(outcome.console.file, io.StringIO)
    return outcome.console.file.getvalue()


def test_a_pod_comes_and_goes(outcome: Outcome) -> None:
    service = Scripted("True", "ScalingActive")
    scale.scale(outcome, service, Quiet(), local=True)
    assert len(outcome.checks) == 4 and not outcome.failed
    heavy, light = service.rates  # a request alone takes 0.1 s
    assert heavy == pytest.approx(11, rel=0.1) and light == pytest.approx(1.5, rel=0.2)
    assert service.spec["autoscaling"] is None and service.spec["slo"] is None


def test_a_request_that_is_lost_while_a_pod_goes_fails_it(outcome: Outcome) -> None:
    scale.scale(outcome, Scripted("True", "ScalingActive", closed=True), Quiet(), local=True)
    [failed] = [check for check in outcome.checks if not check.ok]
    assert failed.name.startswith("no request was lost") and failed.detail == "connection refused"


@pytest.mark.parametrize("reason", ["NotGranted", "AutoscalerFailed", "MetricsAPIUnavailable"])
def test_a_fault_of_ours_is_no_reason_to_leave_it_out(
    outcome: Outcome, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "READY_SECONDS", 0.3)
    service = Scripted("False", reason)
    with pytest.raises(NotInTime, match=f"{reason}: in its words"):
        scale.scale(outcome, service, Quiet(), local=False)
    assert service.spec["autoscaling"] is None, "nothing is left behind"


def test_another_metrics_server_leaves_it_out_where_the_cluster_is_not_ours(outcome: Outcome) -> None:
    service = Scripted("False", "MetricsServedElsewhere")
    scale.scale(outcome, service, Quiet(), local=False)
    assert not outcome.checks and "left out: MetricsServedElsewhere: in its words" in shown(outcome)
    assert service.spec["autoscaling"] is None and service.reads == 1, "judged by the object that was waited for"
    scale.scale(outcome, service, Quiet(), local=True)
    assert outcome.failed
