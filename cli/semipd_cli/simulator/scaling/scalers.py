"""What a number of pods may follow: a fixed pool, our ratio, and its two rivals, all under the same HPA.

The HPA is the manifest that the operator renders for a service, and our metric the sum that it serves; the rivals have
other metrics in its place. It plays nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from semipd_cli.simulator.scaling.hpa import Autoscaler, Form, Metric, Reading
from semipd_cli.simulator.scaling.pod import Exported
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render.autoscaler import UTILIZATION_METRIC, horizontal_pod_autoscaler
from semipd_operator.status.scaling import summed

UTILIZATION, LATENCY, QUEUE = "utilization", "latency", "queue"
TARGETS = {UTILIZATION: 0.8, LATENCY: 0.8, QUEUE: 1.0}
"""Where none is given: of the edge of the SLO; of the latency's target; requests that wait, for each pod."""


@dataclass(frozen=True)
class Scaler:
    """A fixed pool where `autoscaler` is None."""

    name: str
    pods: int
    """To begin with."""
    autoscaler: Autoscaler | None = None


def scaler(text: str, least: int, most: int) -> Scaler:
    """`utilization`, `latency`, `queue`, or one of them with its target: `queue/5`; or `5`: so many pods, always.

    Raises:
        ValueError: it is none of them.
    """
    if text.isdigit() and int(text) > 0:
        return Scaler(f"{text} pods", int(text))
    name, slash, said = text.partition("/")
    if name not in TARGETS:
        raise ValueError(f"{text}: no such metric; there are {', '.join(TARGETS)}, with a target as in queue/5")
    try:
        target = float(said) if slash else TARGETS[name]
    except ValueError:
        target = math.nan
    if not 0.001 <= target < math.inf:
        raise ValueError(f"{text}: the target must be a number of at least 0.001: write it as {name}/{TARGETS[name]:g}")
    if name == UTILIZATION and not 0.1 <= target <= 1:
        raise ValueError(f"{text}: the target must be from 0.1 to 1, as spec.autoscaling.targetUtilizationPercent")
    ours = Autoscaler.of(_manifest(least, most, round(100 * target) if name == UTILIZATION else 80))
    if name != UTILIZATION:
        ours = replace(ours, metrics=(Metric(name, Form.PODS, round(1000 * target)),))
    return Scaler(f"{name}/{target:g}", least, ours)


def _manifest(least: int, most: int, percent: int) -> Mapping[str, Any]:
    scaling = {"minReplicas": least, "maxReplicas": most, "targetUtilizationPercent": percent}
    slo = {"ttftMilliseconds": 1000}  # any: a service without targets has no ratio to scale by
    service = SemiPDService.parse(
        {
            "metadata": {"name": "simulated", "namespace": "simulated", "uid": "simulated"},
            "spec": {"model": {"uri": "file:///simulated"}, "slo": slo, "autoscaling": scaling},
        }
    )
    manifest = horizontal_pod_autoscaler(service)
    assert manifest is not None
    return manifest


def readings(scaler: Autoscaler, told: Mapping[int, Exported], growth: float = 1.0) -> list[Reading]:
    """What the metrics APIs answer for each metric. `told`: what each ready pod exported when it was read last;
    `growth`: of the service's requests, as the operator expects it."""
    return [_reading(metric, told, growth) for metric in scaler.metrics]


def _reading(metric: Metric, told: Mapping[int, Exported], growth: float) -> Reading:
    if metric.name == UTILIZATION_METRIC:
        known = [one.utilization for one in told.values() if one.utilization is not None]
        total = summed(known, len(told), metric.target / 1000, growth)
        return None if total is None else round(1000 * total)
    if metric.name == QUEUE:
        return {number: 1000 * one.waiting for number, one in told.items()}
    return {number: round(1000 * min(one.pressure, 1e6)) for number, one in told.items() if one.pressure is not None}
