"""Replicas: more load than one pod is to carry brings a second one, by Kubernetes' own HPA; one remains without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.traffic.plan import poisson_plan
from bench.traffic.records import Record
from e2e.demo.acts.auto import PROMPT, single_latency
from e2e.demo.acts.cluster import NAMESPACE, show
from e2e.demo.outcome import Outcome
from e2e.demo.service import Deployed, Load, wait_for
from e2e.lib.kube import Kube, Object
from e2e.lib.service import condition

KIND = "ScalingReady"
PODS = 2
TARGET_PERCENT = 60
LOAD, REST = 1.1, 0.15
"""Of what the prefill of one pod can do: what brings the second pod, and what is asked while it goes."""
LONGEST = 120.0
READY_SECONDS = 60.0
"""The operator registers its metrics API with the first service that scales by it; a pod tells after ten seconds."""
WINDOW_SECONDS = 10
AT_ONCE = {"stabilizationWindowSeconds": 0, "policies": [{"type": "Pods", "value": 1, "periodSeconds": 5}]}
"""For people who watch; the defaults wait for minutes before they take a pod away."""


def scale(outcome: Outcome, service: Deployed, kube: Kube, *, local: bool) -> None:
    """PASS if the second pod comes with the load and goes once it is light, no request lost, the first pod untouched.

    Left out only in a cluster of somebody else (`local` is ours) in which another program serves the metrics API.
    """
    ttft, _ = single_latency(service)
    slo = {"ttftMilliseconds": max(1, round(ttft * 5000)), "tpotMilliseconds": 10_000, "windowSeconds": WINDOW_SECONDS}
    behavior = {"scaleUp": AT_ONCE, "scaleDown": AT_ONCE}
    scaling = {"maxReplicas": PODS, "targetUtilizationPercent": TARGET_PERCENT, "behavior": behavior}
    service.patch({"slo": slo, "partition": {"mode": "Manual"}, "autoscaling": scaling})
    try:
        obj, _ = wait_for(service, lambda obj: _ready(obj) or _elsewhere(obj), READY_SECONDS, KIND, kind=KIND)
        if not _ready(obj):
            said = "{reason}: {message}".format(**condition(obj, KIND))
            if local:
                outcome.check("the autoscaler is ready", False, said)
            else:
                outcome.console.print(f"  left out: {said}", markup=False, highlight=False)
            return
        first = service.lives()
        _come_and_go(outcome, service, kube, 1 / ttft)
    finally:
        service.patch({"autoscaling": None, "slo": None})
    outcome.check("the first pod served throughout", first.items() <= service.lives().items())


def _come_and_go(outcome: Outcome, service: Deployed, kube: Kube, rate: float) -> None:
    """`rate`: requests per second that one pod's prefill can do."""
    first = service.lives().keys()
    with _load(service, LOAD * rate) as came:
        _, up = wait_for(service, lambda obj: _pods(obj) == (PODS, PODS), LONGEST, "two pods")
        show(outcome, kube, "-n", NAMESPACE, "get", "spd,hpa")
    outcome.check("a second pod comes with the load", True, f"ready {up:.0f} s after it began")
    with _load(service, REST * rate) as went:  # until the pod itself is gone, and not only taken away
        gone = f"one pod, and the other's end, while {REST:.0%} of a pod's load is on"
        _, down = wait_for(service, lambda obj: _pods(obj) == (1, 1) and service.lives().keys() == first, LONGEST, gone)
    outcome.check("and goes when the load is light", True, f"{down:.0f} s after the last heavy request")
    lost = [record.error or "cut off" for record in (*came, *went) if not record.ok]
    said = lost[0] if lost else f"{len(came)} requests, and {len(went)} while it went"
    outcome.check("no request was lost while it came and went", not lost and bool(went), said)


@contextmanager
def _load(service: Deployed, rate: float) -> Iterator[list[Record]]:
    """Prompts inside the block; after it the list holds what became of each."""
    plan = poisson_plan(rate, LONGEST, prompt_tokens=PROMPT, max_tokens=1, seed=29, label="prompts")
    records: list[Record] = []
    load = Load(service, plan, time.monotonic())
    try:
        yield records
    finally:
        load.stop()
        records += load.records()


def _ready(obj: Object) -> bool:
    return bool(condition(obj, KIND).get("status") == "True")


def _elsewhere(obj: Object) -> bool:
    return bool(condition(obj, KIND).get("reason") == "MetricsServedElsewhere")


def _pods(obj: Object) -> tuple[int, int]:
    """(wanted, ready)"""
    return obj["spec"]["replicas"], obj.get("status", {}).get("readyReplicas", 0)
