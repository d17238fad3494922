"""The SLO in the status: attained, feasible, in two digits, and how often it may be written."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.operator_observed import AUTO, NOW, TABLE, conditions, heard, observed, pod, report, slo, with_ttft

from semipd_agent.contract import SLOReport
from semipd_agent.contract.report import StepProfileReport
from semipd_agent.slo.feasibility import MESSAGES
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.status import summarise
from semipd_operator.status.slo import two_digits
from semipd_operator.status.summarise import write_due

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("reports", "attained", "feasible", "summary"),
    [
        ([slo(413, True, feasible=True)], "True TargetsMet", "True Feasible", "410/500ms"),
        ([slo(413, True), slo(620, False)], "False TTFTAboveTarget", "Unknown NotAssessed", "620/500ms"),
        (
            [slo(413, True), slo(None, None, reason="InsufficientTraffic")],
            "True TargetsMet",
            "Unknown NotAssessed",
            "410/500ms",
        ),
        (
            [slo(None, None, reason="InsufficientTraffic")],
            "Unknown InsufficientTraffic",
            "Unknown NotAssessed",
            "-/500ms",
        ),
        (
            [slo(900, False, reason="TPOTAboveTarget", feasible=False)],
            "False TPOTAboveTarget",
            "False NotFeasible",
            "900/500ms",
        ),
        ([], "Unknown MetricsUnavailable", "Unknown NotAssessed", "-/500ms"),
    ],
)
def test_slo(reports: list[SLOReport], attained: str, feasible: str, summary: str) -> None:
    names = [f"p{i}" for i in range(len(reports))]
    status = summarise(
        observed(
            AUTO,
            pods=tuple(pod(name) for name in names) or (pod(),),
            agents={name: heard(report(slo=one)) for name, one in zip(names, reports, strict=True)},
        )
    )
    shown = conditions(status)
    assert (shown["SLOAttained"], shown["SLOFeasible"]) == (attained, feasible)
    assert status.slo and status.slo.ttft and status.slo.ttft.summary == summary


@pytest.mark.parametrize(
    ("feasible", "reason", "says"),
    [
        (
            False,
            "TTFTBound",
            "TTFTBound: no split in reach keeps the TTFT target under this load: another pod helps. Remedy: Add "
            "replicas, relax the targets or widen the bounds.",
        ),
        (
            False,
            "TargetBelowServiceTime",
            "TargetBelowServiceTime: a single request on the idle device takes longer than the target: neither another "
            "split nor another pod helps. Remedy: Raise the target, or use a faster device or a smaller model.",
        ),
        (False, "OfANewerAgent", "OfANewerAgent. Remedy: Add replicas, relax the targets or widen the bounds."),
        (
            None,
            "PolicyFailed",
            "PolicyFailed: the policy failed and the split holds; the pod's message says how",
        ),
    ],
)
def test_who_describes_it_reads_whether_another_pod_helps(feasible: bool | None, reason: str, says: str) -> None:
    one = slo(900, False, feasible=feasible, feasible_reason=reason, feasible_message=MESSAGES.get(reason, ""))
    found = summarise(observed(AUTO, agents={"p1": heard(report(slo=one))})).condition("SLOFeasible")
    assert found and found.message == says


@pytest.mark.parametrize(
    ("ratios", "target", "percent", "pods"),
    [
        ((0.9, 1.5), None, 120, 3),
        ((0.4, 0.3), None, 35, 1),
        ((0.8, 0.8), 80, 80, 2),
        ((0.9, 0.8), 80, 85, 3),
        ((1.5, None), 80, 150, 2),  # a silent one moves nothing
        ((2.0, None), 80, 200, 3),
        ((0.0, 0.0), None, 0, 1),
        ((None, None), None, None, None),
        ((float("inf"), None), None, None, None),
        ((float("nan"), 0.5), None, 50, 2),
        ((1e308, 1e308), None, 1_000_000, 20_000),  # their sum is no number
        ((1e300, 0.0), None, 500_000, 10_000),
        ((-1e308, -1.0), None, 0, 1),
    ],
)
def test_how_full_it_is_and_how_many_pods_the_load_asks_for(
    ratios: tuple[float | None, ...], target: int | None, percent: int | None, pods: int | None
) -> None:
    scaling = {"autoscaling": {"maxReplicas": 9, "targetUtilizationPercent": target}} if target else {}
    names = [f"p{i}" for i in range(len(ratios))]
    reports = {
        name: heard(report(slo=slo(413, True, utilization_ratio=ratio)))
        for name, ratio in zip(names, ratios, strict=True)
    }
    seen = observed({**AUTO, **scaling}, pods=tuple(map(pod, names)), agents=reports)
    found = summarise(seen).slo
    assert found and (found.utilization_percent, found.recommended_replicas) == (percent, pods)


@pytest.mark.parametrize(
    ("growth", "shown", "pods"), [(1.0, None, 2), (1.04, None, 2), (1.14, 10, 3), (1.57, 60, 3), (2.0, 100, 4)]
)
def test_the_growth_that_is_expected_is_shown_beside_what_it_makes_of_the_pods(
    growth: float, shown: int | None, pods: int
) -> None:
    scaling = {"autoscaling": {"maxReplicas": 9, "targetUtilizationPercent": 80}}
    reports = {"p1": heard(report(slo=slo(413, True, utilization_ratio=1.5)))}
    found = summarise(replace(observed({**AUTO, **scaling}, agents=reports), growth=growth)).slo
    assert found and (found.utilization_percent, found.growth_percent, found.recommended_replicas) == (150, shown, pods)


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ((None, None), None),
        ((None, 12.34), 12.0),
        ((0.567, 0.0), 0.57),
        ((30.0, 100.0), 100.0),
        ((float("nan"), 3.0), 3.0),
        ((float("inf"), -5.0), None),
        ((1e9, None), None),
    ],
)
def test_the_pod_that_refuses_most_is_shown(told: tuple[float | None, float | None], shown: float | None) -> None:
    reports = {
        name: heard(report(slo=slo(413, True, refused_percent=part)))
        for name, part in zip(("p0", "p1"), told, strict=True)
    }
    found = summarise(observed(AUTO, pods=(pod("p0"), pod("p1")), agents=reports)).slo
    assert found and found.refused_percent == shown


@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_json_cannot_say_is_none(number: float) -> None:
    """One agent's answer silences the status of no service."""
    odd = slo(number, True)
    assert odd.ttft
    odd = odd.model_copy(update={"ttft": odd.ttft.model_copy(update={"attainment_percent": number})})
    status = summarise(observed(AUTO, pods=(pod(),), agents={"p1": heard(report(slo=odd))}))
    assert status.slo and status.slo.ttft
    assert (status.slo.ttft.summary, status.slo.ttft.attainment_percent) == ("-/500ms", None)


def test_two_significant_digits() -> None:
    assert [two_digits(x) for x in (0, 0.0456, 3.14, 31.4, 613.7, 12345)] == [0, 0.046, 3.1, 31, 610, 12000]


@pytest.mark.parametrize(
    ("before", "after", "seconds", "due"),
    [
        (with_ttft(410), with_ttft(410), 99, False),
        (with_ttft(410), with_ttft(414), 99, False),  # the same two digits
        (with_ttft(410), with_ttft(420), 14, False),
        (with_ttft(410), with_ttft(420), 16, True),
        (with_ttft(410), with_ttft(420), -3600, True),  # the clock was set back
        (with_ttft(410), with_ttft(410, 0.7), 14, False),
        (with_ttft(410), with_ttft(410, 0.7), 16, True),
        (with_ttft(410), summarise(TABLE["a long move"][0]), 0, True),
        (with_ttft(410), summarise(observed(AUTO, pods=())), 0, True),
    ],
)
def test_write_budget(before: SemiPDServiceStatus, after: SemiPDServiceStatus, seconds: int, due: bool) -> None:
    last = NOW - timedelta(seconds=seconds)
    assert write_due(before, after, now=NOW, last_write=last, slo_period=timedelta(seconds=15)) is due


MEASURED = StepProfileReport(measured=True, source="/p/l.json")
ELSEWHERE = StepProfileReport(measured=True, source="/p/l.json", message="measured on A, and this is B; run X")
ASSUMED = StepProfileReport(message="assumed: there is no profile of this model and device; semipd-engine profile")


@pytest.mark.parametrize(
    ("profiles", "shown", "message"),
    [
        ([MEASURED, MEASURED], "measured", ""),
        ([MEASURED, ELSEWHERE], "measured", ELSEWHERE.message),
        ([MEASURED, ASSUMED], "assumed", ASSUMED.message),
        ([ELSEWHERE, ASSUMED], "assumed", ASSUMED.message),
        ([StepProfileReport(), StepProfileReport()], None, ""),
        ([StepProfileReport(), MEASURED], "measured", ""),
        ([], None, ""),
    ],
)
def test_step_times_are_measured_where_every_pod_that_tells_says_so(
    profiles: list[StepProfileReport], shown: str | None, message: str
) -> None:
    """An agent of an older release does not tell."""
    names = [f"p{i}" for i in range(len(profiles))]
    told = {n: heard(report(slo=slo(413, True), step_profile=one)) for n, one in zip(names, profiles, strict=True)}
    status = summarise(observed(AUTO, pods=tuple(pod(name) for name in names) or (pod(),), agents=told))
    assert status.slo and (status.slo.step_times, status.slo.step_times_message) == (shown, message)
    assert summarise(observed(pods=tuple(pod(name) for name in names), agents=told)).slo is None
