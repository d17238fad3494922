"""Autoscaling: the condition from what the autoscaler says, how full a service is, and the HPA's arithmetic on it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any

import pytest

from semipd_agent.contract import (
    SLO,
    Enforcement,
    EnginePhase,
    EngineStatus,
    Mode,
    PartitionReason,
    PartitionReport,
    PartitionState,
    SLOReport,
    Split,
    StatusReport,
)
from semipd_agent.report import slo_report
from semipd_agent.slo.attainment import Attainment
from semipd_agent.slo.policy import Verdict
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.metricsapi.wire import value_list
from semipd_operator.reasons import REASONS, ConditionType
from semipd_operator.status import AgentView, AutoscalerView, Observed, PodView, summarise
from semipd_operator.status.scaling import (
    autoscaler_view,
    fullness,
    scaling_ready,
    start_seconds,
    told_arrivals,
    told_rate,
)

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def service(**spec: Any) -> SemiPDService:
    scaling = {"slo": {"ttftMilliseconds": 500}, "autoscaling": {"maxReplicas": 9}}
    meta = {"name": "demo", "namespace": "d", "uid": "u", "generation": 4}
    return SemiPDService.parse({"metadata": meta, "spec": {"model": {"uri": "file:///m"}, **scaling, **spec}})


def says(**conditions: tuple[str, str]) -> dict[str, Any]:
    """An autoscaler whose conditions have these (status, reason)."""
    listed = [
        {"type": name, "status": status, "reason": reason, "message": "words"}
        for name, (status, reason) in conditions.items()
    ]
    return {"status": {"conditions": listed}}


def judged(live: dict[str, Any] | None, kind: str = "HorizontalPodAutoscaler", **changes: Any) -> tuple[str, str]:
    spec = changes.pop("spec", {})
    view = replace(autoscaler_view(kind, live), **changes)
    verdict = scaling_ready(Observed(service(**spec), NOW, autoscaler=view))
    assert verdict is not None
    return verdict.status, verdict.reason


ABLE = ("True", "ReadyForNewScale")


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        (None, ("Unknown", "AutoscalerPending")),
        ({}, ("Unknown", "AutoscalerPending")),
        (says(AbleToScale=ABLE), ("Unknown", "AutoscalerPending")),
        (says(AbleToScale=ABLE, ScalingActive=("True", "ValidMetricFound")), ("True", "ScalingActive")),
        (
            says(ScalingActive=("True", "ValidMetricFound"), ScalingLimited=("False", "DesiredWithinRange")),
            ("True", "ScalingActive"),
        ),
        (
            says(ScalingActive=("True", "ValidMetricFound"), ScalingLimited=("True", "TooManyReplicas")),
            ("True", "AtMaxReplicas"),
        ),
        (
            says(ScalingActive=("True", "ValidMetricFound"), ScalingLimited=("True", "TooFewReplicas")),
            ("True", "ScalingActive"),
        ),
        (says(AbleToScale=ABLE, ScalingActive=("False", "FailedGetExternalMetric")), ("False", "MetricsMissing")),
        (says(ScalingActive=("False", "AmbiguousSelector")), ("False", "ConflictingAutoscaler")),
        (says(AbleToScale=("False", "FailedGetScale")), ("False", "AutoscalerFailed")),
    ],
)
def test_what_the_hpa_says_becomes_the_condition(live: dict[str, Any] | None, expected: tuple[str, str]) -> None:
    assert judged(live) == expected


def test_a_second_autoscaler_of_the_service_is_told_to_go_and_not_to_target_the_service() -> None:
    view = autoscaler_view("HorizontalPodAutoscaler", says(ScalingActive=("False", "AmbiguousSelector")))
    scaling = summarise(Observed(service(), NOW, autoscaler=view)).condition("ScalingReady")
    assert scaling and scaling.message.endswith("Remedy: Delete the other autoscaler, or unset spec.autoscaling.")


def test_a_missing_api_is_told_from_a_missing_value() -> None:
    silent = says(ScalingActive=("False", "FailedGetExternalMetric"))
    assert judged(silent, metrics_served=False) == ("False", "MetricsAPIUnavailable")
    assert judged(silent, metrics_served=False, metrics_owner="keda/x") == ("False", "MetricsServedElsewhere")


def test_keda() -> None:
    keda = {"spec": {"autoscaling": {"maxReplicas": 2, "keda": {"serverAddress": "http://p"}}}}
    assert judged(None, "ScaledObject", known=False, **keda) == ("False", "KEDANotInstalled")
    assert judged(says(Ready=("True", "ScaledObjectReady")), "ScaledObject", **keda) == ("True", "ScalingActive")
    paused = says(Ready=("True", "x"), Active=("False", "ScalerNotActive"), Fallback=("False", "NoFallbackFound"))
    assert judged(paused, "ScaledObject", **keda) == ("True", "ScalingActive")
    wrong = says(Ready=("False", "ScaledObjectCheckFailed"))
    assert judged(wrong, "ScaledObject", **keda) == ("False", "AutoscalerFailed")


def test_scaled_to_zero_by_hand_is_no_defect() -> None:
    off = says(ScalingActive=("False", "ScalingDisabled"))
    assert judged(off, spec={"replicas": 0}) == ("Unknown", "ScaledToZero")


def test_every_verdict_is_documented_and_none_touches_ready() -> None:
    view = autoscaler_view("HorizontalPodAutoscaler", says(ScalingActive=("False", "FailedGetExternalMetric")))
    without, failing = (
        summarise(Observed(service(), NOW, autoscaler=autoscaler)) for autoscaler in (None, replace(view))
    )
    assert without.condition("ScalingReady") is None, "not without autoscaling"
    scaling = failing.condition("ScalingReady")
    assert scaling is not None and scaling.status == "False" and "words" in scaling.message
    assert failing.condition("Ready") == without.condition("Ready")
    listed = {(entry.reason, entry.status) for entry in REASONS[ConditionType.SCALING_READY]}
    assert ("MetricsMissing", "False") in listed and ("ScalingActive", "True") in listed
    unknown = AutoscalerView(kind="ScaledObject", found=False, known=False)
    verdict = scaling_ready(Observed(service(), NOW, autoscaler=unknown))
    assert verdict is not None and (verdict.reason, verdict.status) in listed


# ---- how full --------------------------------------------------------------------------------------------------------


def report(ratio: float | None, arrivals: int | None = None) -> StatusReport:
    split = Split()
    return StatusReport(
        observed_at=NOW,
        partition=PartitionReport(
            mode=Mode.MANUAL,
            backend="cpu-paced",
            enforcement=Enforcement.PACED,
            requested=split,
            quantized=split,
            state=PartitionState.APPLIED,
            reason=PartitionReason.APPLIED,
        ),
        engine=EngineStatus(state=EnginePhase.READY, ready=True),
        slo=SLOReport(percentile=90, window_seconds=60, utilization_ratio=ratio, arrivals=arrivals),
    )


def seen(*ratios: float | None, starting: int = 0, age_seconds: float = 1.0, percent: int = 80) -> Observed:
    """Ready pods with these ratios (None: silent), and some that are not ready yet."""
    pods = tuple(PodView(name=f"p{n}", uid=f"p{n}", ready=n < len(ratios)) for n in range(len(ratios) + starting))
    heard = NOW - timedelta(seconds=age_seconds)
    agents = {f"p{n}": AgentView(report(ratio), heard) for n, ratio in enumerate(ratios)}
    scaling = {"maxReplicas": 9, "targetUtilizationPercent": percent}
    return Observed(service(autoscaling=scaling), NOW, pods, agents)


def hpa(replicas: int, value: float | None, target: float = 0.8) -> int:
    """The wanted number of pods for an external metric with target AverageValue, as the HPA controller computes it:
    no value holds; within a tolerance of 10 % it holds; else ceil(value / target)."""
    if value is None:
        return replicas
    if abs(value / (target * replicas) - 1) <= 0.1:
        return replicas
    return max(1, ceil(round(value * 1000) / round(target * 1000)))


@pytest.mark.parametrize(
    ("ratios", "starting", "wanted"),
    [
        ((0.0,), 0, 1),  # idle
        ((0.8,), 0, 1),
        ((0.87,), 0, 1),  # within the tolerance
        ((0.95,), 0, 2),
        ((1.3,), 0, 2),
        ((1.3,), 1, 2),  # the second one is starting: no third one
        ((2.5,), 0, 4),  # a load of three pods, at 80 %
        ((0.65, 0.65), 0, 2),  # 1.3 over two pods stays there: what scaled up does not scale down again
        ((0.35, 0.35), 0, 1),
        ((0.0, 0.0, 0.0), 0, 1),
        ((1.3, None), 0, 2),  # a new pod that does not tell yet asks for no third one
        ((0.1, None), 0, 2),  # and a silent one is not taken for idle: two pods at most 0.9 full need two
        ((0.1, 0.1, None), 0, 2),
        ((None,), 0, 1),
        ((None, None), 0, 2),
        ((), 1, 1),
    ],
)
def test_the_hpa_arrives_at_the_right_number(ratios: tuple[float | None, ...], starting: int, wanted: int) -> None:
    assert hpa(len(ratios) + starting, fullness(seen(*ratios, starting=starting))) == wanted


@pytest.mark.parametrize(
    ("ratios", "growth", "full"),
    [
        ((0.7, 0.7), 1.5, 2.1),
        ((0.5, 0.3), 1.2, 0.96),
        ((0.7, None), 1.5, 1.05 + 0.55),  # at most full to the target: it asks for no third one
        ((0.7, None), 2.0, 1.6),
        ((1.2, None), 1.5, 1.8),  # as empty, where the others ask for more
        ((None,), 1.5, None),
    ],
)
def test_as_much_as_requests_are_expected_to_grow_the_sum_is_more(
    ratios: tuple[float | None, ...], growth: float, full: float | None
) -> None:
    assert fullness(replace(seen(*ratios), growth=growth)) == (None if full is None else pytest.approx(full))


def test_what_pods_counted_is_told_with_when_they_said_it() -> None:
    at = NOW - timedelta(seconds=2)
    without = report(0.5).model_copy(update={"slo": None})

    def with_slo(**said: Any) -> StatusReport:
        """As an agent says it."""
        slo = slo_report(SLO(ttft_milliseconds=500), Attainment(), Verdict(), auto=False, **said)
        return without.model_copy(update={"slo": slo})

    agents = {
        "new": AgentView(report(0.5, 7), at),
        "older": AgentView(report(0.5), at),
        "older, just started": AgentView(with_slo(fresh=True), at),
        "silent engine": AgentView(with_slo(fresh=False, utilization=0.5, arrivals=7), at),
        "stale": AgentView(report(0.5, 7), NOW - timedelta(seconds=60)),
        "no targets": AgentView(without, at),
        "unheard": AgentView(),
    }
    when = at.timestamp()
    older = {"older": (when, None), "older, just started": (when, None)}
    assert told_arrivals(Observed(service(), NOW, (), agents)) == {"new": (when, 7), **older}


def test_what_the_ratios_speak_of_is_the_ready_pods() -> None:
    told = seen(0.5, 0.7, None, 0.2, starting=1)
    rates = [1.5, 2.25, None, float("nan")]
    agents = dict(told.agents)
    for n, rate in enumerate(rates):
        one = agents[f"p{n}"].report
        assert one and one.slo
        slo = one.slo.model_copy(update={"utilization_rate": rate})
        agents[f"p{n}"] = replace(agents[f"p{n}"], report=one.model_copy(update={"slo": slo}))
    assert told_rate(replace(told, agents=agents)) == 3.75


def test_a_pod_starts_as_quickly_as_the_services_quickest_did() -> None:
    def pod(took: float | None, ready: bool = True) -> PodView:
        made = NOW - timedelta(hours=9)
        since = None if took is None else made + timedelta(seconds=took)
        return PodView(name=f"{took}", uid=f"{took}", ready=ready, created_at=made, ready_since=since)

    def start(*pods: PodView) -> float:
        return start_seconds(Observed(service(), NOW, pods))

    assert start(pod(90), pod(45), pod(20, ready=False)) == 45
    assert start(pod(90), pod(30_000)) == 90
    for nothing in ((), (pod(30_000),), (pod(None),), (pod(-3),)):
        assert start(*nothing) == 120, "not ready for a while since, or clocks apart"


def test_no_word_is_no_zero() -> None:
    assert fullness(seen(None)) is None
    assert fullness(seen(starting=2)) is None
    assert fullness(seen(0.5, age_seconds=60)) is None, "an old word is none"
    assert fullness(seen(0.0)) == 0


def test_a_number_that_is_none_ends_no_answer_to_the_autoscaler() -> None:
    """The others' of the namespace are in the same answer."""
    for odd in (float("inf"), float("nan"), -1e308, 1e308):
        full = fullness(seen(odd, odd))
        assert json.dumps(value_list({"demo": full} if full is not None else {}, None, NOW), allow_nan=False)


def test_a_load_of_constant_size_settles_from_any_number_of_pods() -> None:
    for load in (0.3, 0.7, 1.3, 2.2, 3.9):
        finals = set()
        for start in range(1, 9):
            pods, path = start, [start]
            for _ in range(10):
                pods = hpa(pods, fullness(seen(*[load / pods] * pods)))
                path.append(pods)
            assert path[-1] == path[-2], f"load {load} from {start}: {path}"
            assert load / pods <= 0.88
            finals.add(pods)
        assert max(finals) - min(finals) <= 1, "the tolerance leaves at most one pod of difference"
