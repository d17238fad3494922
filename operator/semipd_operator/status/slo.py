"""Latencies against their targets: the worst pod counts, because a user may land on it."""

from __future__ import annotations

from math import ceil, floor, isfinite, log10

from semipd_agent.contract import MetricWindow, SLOReport
from semipd_operator.api.v1alpha1.status import MetricStatus, SLOStatus
from semipd_operator.reasons import ConditionType, SLOReason
from semipd_operator.status import words
from semipd_operator.status.observed import Observed
from semipd_operator.status.scaling import fullness, target_fullness, told_fullness
from semipd_operator.status.verdict import Verdict


def slo_reports(seen: Observed) -> list[SLOReport]:
    return [report.slo for pod in seen.ready_pods if (report := seen.report(pod)) and report.slo]


def slo_status(seen: Observed) -> SLOStatus | None:
    slo = seen.service.spec.slo
    if slo is None:
        return None
    reports = slo_reports(seen)
    step_times, step_times_message = _step_times(seen)
    return SLOStatus(
        percentile=slo.percentile,
        window_seconds=slo.window_seconds,
        ttft=_metric(slo.ttft_milliseconds, [report.ttft for report in reports]),
        tpot=_metric(slo.tpot_milliseconds, [report.tpot for report in reports]),
        refused_percent=_refused(reports),
        utilization_percent=_utilization(seen),
        growth_percent=_growth(seen),
        recommended_replicas=_recommended(seen),
        step_times=step_times,
        step_times_message=step_times_message,
    )


def _step_times(seen: Observed) -> tuple[str | None, str]:
    """With the words of a pod whose are assumed, if there is one. An older agent says nothing of them."""
    profiles = [report.step_profile for pod in seen.ready_pods if (report := seen.report(pod)) and report.slo]
    said = sorted((one.measured, one.message) for one in profiles if one.measured or one.message)
    if not said:
        return None, ""
    message = next((message for measured, message in said if message and measured == said[0][0]), "")
    return "measured" if said[0][0] else "assumed", words.told(message)


def _refused(reports: list[SLOReport]) -> float | None:
    told = [part for report in reports if (part := report.refused_percent) is not None and 0 < part <= 100]
    return two_digits(max(told)) if told else None


def _utilization(seen: Observed) -> int | None:
    told = told_fullness(seen)
    return round(two_digits(100 * sum(told) / len(told))) if told else None


def _growth(seen: Observed) -> int | None:
    """In tens: what is finer changes all the time and tells nothing."""
    return 10 * round(10 * (seen.growth - 1)) or None


def _recommended(seen: Observed) -> int | None:
    """As the autoscaler's rule has it, without its tolerance and its bounds."""
    full = fullness(seen)
    return None if full is None else max(1, ceil(round(full / target_fullness(seen), 3)))


def _metric(target: int | None, windows: list[MetricWindow | None]) -> MetricStatus | None:
    if target is None:
        return None
    observed = [v for w in windows if w and (v := w.observed_milliseconds) is not None and isfinite(v)]
    attained = [v for w in windows if w and (v := w.attainment_percent) is not None and isfinite(v)]
    worst = two_digits(max(observed)) if observed else None
    return MetricStatus(
        target_milliseconds=target,
        observed_milliseconds=worst,
        attainment_percent=min(100, max(0, floor(min(attained)))) if attained else None,
        summary=f"{'-' if worst is None else f'{worst:g}'}/{target}ms",
    )


def two_digits(value: float) -> float:
    """Two significant digits: what is finer changes all the time and tells nothing."""
    if value <= 0:
        return 0.0
    return float(round(value, 1 - floor(log10(value))))


def slo_attained(seen: Observed) -> Verdict | None:
    if seen.service.spec.slo is None:
        return None
    kind = ConditionType.SLO_ATTAINED
    reports = slo_reports(seen)
    if not reports:
        return Verdict(kind, "Unknown", SLOReason.METRICS_UNAVAILABLE, "no ready pod reports fresh latencies")
    if missed := next((report for report in reports if report.attained is False), None):
        return Verdict(kind, "False", missed.reason or _missed(missed), _numbers(missed))
    if any(report.attained for report in reports):
        return Verdict(kind, "True", SLOReason.TARGETS_MET)
    reason = next((report.reason for report in reports if report.reason), SLOReason.INSUFFICIENT_TRAFFIC)
    return Verdict(kind, "Unknown", reason)


def _missed(report: SLOReport) -> str:
    ttft = report.ttft
    above = ttft and ttft.observed_milliseconds is not None and ttft.observed_milliseconds > ttft.target_milliseconds
    return SLOReason.TTFT_ABOVE_TARGET if above else SLOReason.TPOT_ABOVE_TARGET


def _numbers(report: SLOReport) -> str:
    """Targets only: observed values in a condition's message would break the write budget."""
    named = {"TTFT": report.ttft, "TPOT": report.tpot}
    missed = [
        f"p{report.percentile} {name} is above {window.target_milliseconds} ms"
        for name, window in named.items()
        if window
        and window.observed_milliseconds is not None
        and window.observed_milliseconds > window.target_milliseconds
    ]
    return "; ".join(missed)


def slo_feasible(seen: Observed) -> Verdict | None:
    if seen.service.spec.slo is None:
        return None
    kind = ConditionType.SLO_FEASIBLE
    reports = slo_reports(seen)
    if no := next((report for report in reports if report.feasible is False), None):
        what = _HELPS.get(no.feasible_reason, "")
        return Verdict(kind, "False", SLOReason.NOT_FEASIBLE, _why(no), remedy=what)
    if any(report.feasible for report in reports):
        return Verdict(kind, "True", SLOReason.FEASIBLE)
    said = next((_why(report) for report in reports if report.feasible_reason), "")
    return Verdict(kind, "Unknown", SLOReason.NOT_ASSESSED, said)


_HELPS = {"TargetBelowServiceTime": "Raise the target, or use a faster device or a smaller model."}
"""Instead of the condition's remedy, which names replicas."""


def _why(report: SLOReport) -> str:
    """The pod's word and its sentence, which says whether another pod helps; an older agent has no sentence."""
    return ": ".join(filter(None, (report.feasible_reason, report.feasible_message)))
