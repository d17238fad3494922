"""Kubernetes' HorizontalPodAutoscaler as pure functions: metrics to a number of pods, windows, rates.

What is not said in the documentation (https://kubernetes.io/docs/concepts/workloads/autoscaling/horizontal-pod-autoscale,
"Algorithm details", "Configurable scaling behavior") is as the controller does it: `pkg/controller/podautoscaler`,
`replica_calculator.go` for a metric and `horizontal.go` for the rest, of Kubernetes 1.33. Values are in thousandths, as
there: 0.8 is 800. It knows no simulator, no pod's insides and no clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from semipd_operator.api.quantity import parse_quantity

SYNC_SECONDS = 15.0
"""--horizontal-pod-autoscaler-sync-period."""
TOLERANCE = 0.1
"""--horizontal-pod-autoscaler-tolerance."""


class Form(StrEnum):
    """How a metric is turned into a number of pods."""

    PER_POD = "External, AverageValue"
    """A sum, and the target is each pod's part of it."""
    VALUE = "External, Value"
    """A ratio that the number of ready pods is multiplied by."""
    PODS = "Pods, AverageValue"
    """Each pod has its own value; those without one are guessed at, cautiously."""


@dataclass(frozen=True)
class Metric:
    name: str
    form: Form
    target: int
    """Thousandths."""


@dataclass(frozen=True)
class PodSeen:
    """A pod that nobody deletes yet."""

    name: int
    pending: bool = False
    """Not scheduled, or its init containers run."""
    ready: bool = True


Reading = int | Mapping[int, int] | None
"""Thousandths: one value, or that of each pod that has one; None: the metrics API has no answer."""


def within(ratio: float) -> bool:
    return abs(1.0 - ratio) <= TOLERANCE


def per_pod(total: int, target: int, pods: int) -> int:
    """`pods`: as the controller sees it now, which counts only for the tolerance."""
    if pods and within(total / (target * pods)):
        return pods
    return math.ceil(total / target)


def by_value(value: int, target: int, replicas: int, ready: int) -> int:
    ratio = value / target
    return replicas if within(ratio) else math.ceil(ratio * ready)


def by_pods(values: Mapping[int, int], target: int, replicas: int, pods: Sequence[PodSeen]) -> int | None:
    """None: no pod that counts has a value. A pending pod counts as empty where more are asked for and not at all
    else; one that runs without a value as empty where more are asked for, and as full to the target where fewer are;
    and what turns the answer around thereby changes nothing."""
    pending = [pod.name for pod in pods if pod.pending]
    missing = [pod.name for pod in pods if not pod.pending and pod.name not in values]
    known = {pod.name: values[pod.name] for pod in pods if not pod.pending and pod.name in values}
    if not known:
        return None
    ratio = _mean(known) / target
    rebalanced = bool(pending) and ratio > 1
    if not rebalanced and not missing:
        return replicas if within(ratio) else math.ceil(ratio * len(known))
    guessed = known | dict.fromkeys(missing, target if ratio < 1 else 0)
    if rebalanced:
        guessed |= dict.fromkeys(pending, 0)
    again = _mean(guessed) / target
    if within(again) or ratio < 1 < again or again < 1 < ratio:
        return replicas
    wanted = math.ceil(again * len(guessed))
    return replicas if (again < 1) == (wanted > replicas) else wanted


def _mean(values: Mapping[int, int]) -> int:
    return sum(values.values()) // len(values)


@dataclass(frozen=True)
class Rate:
    """How much may change within a period."""

    value: int
    percent: bool
    period: float


@dataclass(frozen=True)
class Rules:
    """Of one direction."""

    window: float
    """Seconds of recommendations, of which the most cautious one counts."""
    rates: tuple[Rate, ...]
    select: str = "Max"
    """Max, Min or Disabled."""


UP = Rules(0.0, (Rate(4, False, 15.0), Rate(100, True, 15.0)))
DOWN = Rules(300.0, (Rate(100, True, 15.0),))
"""Kubernetes' own, where a manifest gives none."""


@dataclass(frozen=True)
class Autoscaler:
    least: int
    most: int
    metrics: tuple[Metric, ...]
    up: Rules = UP
    down: Rules = DOWN

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Autoscaler:
        """Of an `autoscaling/v2` object with External metrics. Raises ValueError for another sort of metric."""
        spec = manifest["spec"]
        behavior = spec.get("behavior") or {}
        return cls(
            spec.get("minReplicas", 1),
            spec["maxReplicas"],
            tuple(map(_metric, spec["metrics"])),
            _rules(behavior.get("scaleUp"), UP),
            _rules(behavior.get("scaleDown"), DOWN),
        )


def _metric(entry: Mapping[str, Any]) -> Metric:
    if entry["type"] != "External":
        raise ValueError(f"metrics: {entry['type']}: only External metrics are read from a manifest")
    source = entry["external"]
    average = "averageValue" in source["target"]
    value = parse_quantity(source["target"]["averageValue" if average else "value"])
    if value is None:
        raise ValueError(f"metrics: {source['metric']['name']}: its target is no quantity")
    return Metric(source["metric"]["name"], Form.PER_POD if average else Form.VALUE, math.ceil(1000 * value))


def _rules(given: Mapping[str, Any] | None, default: Rules) -> Rules:
    if given is None:
        return default
    rates = tuple(Rate(p["value"], p["type"] == "Percent", p["periodSeconds"]) for p in given.get("policies") or ())
    window = given.get("stabilizationWindowSeconds")
    return Rules(
        default.window if window is None else window, rates or default.rates, given.get("selectPolicy") or "Max"
    )


@dataclass(frozen=True)
class State:
    """What the controller remembers: (when, number of pods) for each."""

    recommended: tuple[tuple[float, int], ...] = ()
    added: tuple[tuple[float, int], ...] = ()
    removed: tuple[tuple[float, int], ...] = ()


def sync(
    scaler: Autoscaler, state: State, replicas: int, pods: Sequence[PodSeen], readings: Sequence[Reading], now: float
) -> tuple[int, State]:
    """One look: the number of pods to set. `replicas`: as set now. `readings`: one for each metric."""
    if replicas == 0:
        return 0, state  # somebody switched it off
    if not state.recommended:
        state = replace(state, recommended=((now, replicas),))
    if not scaler.least <= replicas <= scaler.most:
        to = min(max(replicas, scaler.least), scaler.most)
        return to, _changed(scaler, state, to - replicas, now)
    wanted = _wanted(scaler, replicas, pods, readings)
    if wanted is None:
        return replicas, state
    steady = _steadied(scaler, state, replicas, wanted, now)
    longest = max(scaler.up.window, scaler.down.window)
    kept = tuple(entry for entry in state.recommended if entry[0] > now - longest)
    state = replace(state, recommended=(*kept, (now, wanted)))
    to = _limited(scaler, state, replicas, steady, now)
    return to, _changed(scaler, state, to - replicas, now)


def _wanted(scaler: Autoscaler, replicas: int, pods: Sequence[PodSeen], readings: Sequence[Reading]) -> int | None:
    """The most that a metric asks for. None: none has an answer, or one has not and the others ask for fewer pods."""
    ready = sum(pod.ready for pod in pods)
    asked = list[int | None]()
    for metric, reading in zip(scaler.metrics, readings, strict=True):
        if reading is None:
            asked.append(None)
        elif not isinstance(reading, int):
            asked.append(by_pods(reading, metric.target, replicas, pods))
        elif metric.form is Form.PER_POD:
            asked.append(per_pod(reading, metric.target, len(pods)))
        else:
            asked.append(by_value(reading, metric.target, replicas, ready))
    known = [one for one in asked if one is not None]
    if not known or (len(known) < len(asked) and max(known) < replicas):
        return None
    return max(known)


def _steadied(scaler: Autoscaler, state: State, replicas: int, wanted: int, now: float) -> int:
    """Within the most cautious recommendations of both windows."""
    lower = min([wanted, *(n for at, n in state.recommended if at > now - scaler.up.window)])
    upper = max([wanted, *(n for at, n in state.recommended if at > now - scaler.down.window)])
    return min(max(replicas, lower), upper)


def _limited(scaler: Autoscaler, state: State, replicas: int, wanted: int, now: float) -> int:
    """No more than the rates allow, and within the bounds."""
    if wanted > replicas:
        return min(wanted, scaler.most, max(replicas, _limit(scaler.up, state, replicas, now, up=True)))
    if wanted < replicas:
        return max(wanted, scaler.least, min(replicas, _limit(scaler.down, state, replicas, now, up=False)))
    return wanted


def _limit(rules: Rules, state: State, replicas: int, now: float, *, up: bool) -> int:
    if rules.select == "Disabled":
        return replicas
    found = []
    for rate in rules.rates:
        begun = replicas - _within_period(state.added, rate, now) + _within_period(state.removed, rate, now)
        if rate.percent:
            part = rate.value / 100
            found.append(math.ceil(begun * (1 + part)) if up else int(begun * (1 - part)))
        else:
            found.append(begun + rate.value if up else begun - rate.value)
    return max(found) if (rules.select == "Max") == up else min(found)


def _within_period(changes: Sequence[tuple[float, int]], rate: Rate, now: float) -> int:
    return sum(count for at, count in changes if at > now - rate.period)


def _changed(scaler: Autoscaler, state: State, by: int, now: float) -> State:
    if by == 0:
        return state
    longest = max((rate.period for rate in (*scaler.up.rates, *scaler.down.rates)), default=0.0)
    added, removed = (tuple(one for one in told if one[0] > now - longest) for told in (state.added, state.removed))
    if by > 0:
        return replace(state, added=(*added, (now, by)), removed=removed)
    return replace(state, added=added, removed=(*removed, (now, -by)))
