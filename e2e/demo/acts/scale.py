"""Replicas: more load than one pod is to carry brings a second one, by Kubernetes' own HPA; one remains without it."""

from __future__ import annotations

import threading
import time

from bench.traffic.plan import poisson_plan
from bench.traffic.records import Record
from e2e.demo.acts.auto import PROMPT, single_latency
from e2e.demo.acts.cluster import NAMESPACE, show
from e2e.demo.kube import Deployed
from e2e.demo.outcome import DemoError, Outcome
from e2e.demo.paths import OUT
from e2e.demo.service import Manifest, wait_until
from e2e.lib.kube import Kube
from e2e.lib.service import condition

PODS = 2
TARGET_PERCENT = 60
LOAD = 1.1
"""Of what the prefill of one pod can do."""
LONGEST = 120.0
REGISTRATION_SECONDS = 30.0
"""The operator registers its metrics API with the first service that scales by it."""
WINDOW_SECONDS = 10
AT_ONCE = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]}
"""For people who watch; the defaults wait for minutes before they take a pod away."""


def scale(outcome: Outcome, service: Deployed, kube: Kube) -> None:
    """PASS if the second pod comes with the load and goes with it, no request lost and the first pod untouched."""
    ttft, _ = single_latency(service)
    slo = {"ttftMilliseconds": max(1, round(ttft * 5000)), "tpotMilliseconds": 10_000, "windowSeconds": WINDOW_SECONDS}
    behavior = {"scaleUp": AT_ONCE, "scaleDown": AT_ONCE}
    scaling = {"maxReplicas": PODS, "targetUtilizationPercent": TARGET_PERCENT, "behavior": behavior}
    service.merge({"slo": slo, "partition": {"mode": "Manual"}, "autoscaling": scaling})
    registered_by = time.monotonic() + REGISTRATION_SECONDS

    def settled(obj: Manifest) -> bool:
        said = condition(obj, "ScalingReady")
        coming = said.get("reason") == "MetricsAPIUnavailable" and time.monotonic() < registered_by
        return said.get("status") in ("True", "False") and not coming

    obj, _ = wait_until(service, settled, 60, "ScalingReady")
    if _scaling(obj) == "False":
        said = condition(obj, "ScalingReady")
        outcome.console.print(f"  left out: {said['reason']}: {said['message']}", markup=False, highlight=False)
        return
    first = service.identity()
    load = _Load(service, LOAD / ttft)
    try:
        _, up = wait_until(service, lambda obj: _pods(obj) == (PODS, PODS), LONGEST, "two pods", every=0.5)
        show(outcome, kube, "-n", NAMESPACE, "get", "spd,hpa")
    finally:
        records = load.end()
    outcome.check("a second pod comes with the load", True, f"ready {up:.0f} s after it began")
    _, down = wait_until(service, lambda obj: _pods(obj) == (1, 1), LONGEST, "one pod", every=0.5)
    outcome.check("and goes with it", True, f"{down:.0f} s after the last answer")
    lost = [record.error for record in records if not record.ok]
    outcome.check("no request was lost meanwhile", not lost, lost[0] if lost else f"{len(records)} requests")
    service.merge({"autoscaling": None, "slo": None})
    stayed = set(first) <= set(service.identity())
    outcome.check("the first pod served throughout", stayed)


def _scaling(obj: Manifest) -> str:
    return str(condition(obj, "ScalingReady").get("status", ""))


def _pods(obj: Manifest) -> tuple[int, int]:
    """(wanted, ready)"""
    return obj["spec"]["replicas"], obj.get("status", {}).get("readyReplicas", 0)


class _Load:
    """Prompts at a rate, from a client of their own, until `end`."""

    def __init__(self, service: Deployed, rate: float) -> None:
        self._stop = OUT / "sent" / "stop-scale"
        self._stop.parent.mkdir(parents=True, exist_ok=True)
        self._stop.unlink(missing_ok=True)
        self._records: list[Record] = []
        self._problem: Exception | None = None
        plan = poisson_plan(rate, LONGEST, prompt_tokens=PROMPT, max_tokens=1, seed=29, label="prompts")

        def send() -> None:
            try:
                self._records = service.send(plan, time.monotonic() + 1.0, self._stop)
            except Exception as error:
                self._problem = error

        self._thread = threading.Thread(target=send, daemon=True)
        self._thread.start()

    def end(self) -> list[Record]:
        """What was sent is still answered. Raises `DemoError`."""
        self._stop.touch()
        self._thread.join()
        if self._problem:
            raise DemoError(f"the load could not be sent: {self._problem}")
        return self._records
