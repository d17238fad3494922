"""From what is observed to the status: tables for pods, conditions, the split, the write budget and the events."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from semipd_agent.contract import (
    Bounds,
    Decision,
    DecisionReason,
    Enforcement,
    EnginePhase,
    EngineStatus,
    MetricWindow,
    Mode,
    PartitionReason,
    PartitionReport,
    PartitionState,
    SLOReport,
    Split,
    StatusReport,
)
from semipd_agent.partitioner.mps.preflight import POLICIES
from semipd_operator.api.v1alpha1.resource import SemiPDService, dump_status, parse_status
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.reason_entries import NO_START
from semipd_operator.reasons import REASONS, ConditionType, Reason
from semipd_operator.status import AgentView, Observed, PodView, Problem, summarise
from semipd_operator.status.events import events
from semipd_operator.status.pods import missing_resource, pod_view
from semipd_operator.status.slo import two_digits
from semipd_operator.status.summarise import write_due

pytestmark = pytest.mark.unit
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
assert Bounds()  # the contract that these reports come from


def service(**spec: Any) -> SemiPDService:
    meta = {"name": "demo", "namespace": "d", "uid": "u", "generation": 4}
    return SemiPDService.parse({"metadata": meta, "spec": {"model": {"uri": "file:///m"}, **spec}})


def pod(name: str = "p1", **changes: Any) -> PodView:
    base = PodView(name=name, uid=name, node="n", ip="10.0.0.1", ready=True, template_hash="h", started=True)
    return replace(base, **changes)


def report(split: Split | None = None, **changes: Any) -> StatusReport:
    split = split or Split()
    partition: dict[str, Any] = {
        "mode": Mode.MANUAL,
        "backend": "cpu-paced",
        "enforcement": Enforcement.PACED,
        "requested": split,
        "quantized": split,
        "applied": split,
        "state": PartitionState.APPLIED,
        "reason": PartitionReason.APPLIED,
    }
    engine = EngineStatus(state=EnginePhase.READY, ready=True, device="cpu", dtype="float32", architecture="llama")
    base: dict[str, Any] = {"observed_at": NOW, "config_generation": 4, "engine": engine}
    partition |= changes.pop("partition", {})
    return StatusReport(**{**base, **changes, "partition": PartitionReport(**partition)})


def heard(one: StatusReport, seconds_ago: float = 1.0, **changes: Any) -> AgentView:
    return AgentView(report=one, received_at=NOW - timedelta(seconds=seconds_ago), **changes)


def observed(spec: dict[str, Any] | None = None, **changes: Any) -> Observed:
    base: dict[str, Any] = {
        "service": service(**(spec or {})),
        "now": NOW,
        "pods": (pod(),),
        "agents": {"p1": heard(report())},
        "template_hash": "h",
        "url": "http://demo.d.svc:8000",
        "selector": "semipd.io/service=demo",
    }
    return Observed(**{**base, **changes})


def conditions(status: SemiPDServiceStatus) -> dict[str, str]:
    return {c.type: f"{c.status} {c.reason}" for c in status.conditions}


AUTO = {"slo": {"ttftMilliseconds": 500, "tpotMilliseconds": 50}}
FAILED_ENGINE = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="OutOfMemory", message="KV does not fit")
REFUSED_ENGINE = EngineStatus(
    state=EnginePhase.FAILED, ready=False, reason="ComputeModeUnsupported", message="compute mode Prohibited"
)
NO_GPU_ENGINE = EngineStatus(state=EnginePhase.FAILED, ready=False, reason="NoGPU", message="no CUDA device")
REFUSED = {
    "state": PartitionState.FAILED,
    "reason": PartitionReason.COMPUTE_MODE_UNSUPPORTED,
    "message": "compute mode Prohibited",
    "applied": None,
}
LOST = {"state": PartitionState.FAILED, "reason": PartitionReason.MPS_SERVER_FAULT, "applied": None}
WAITING = {
    "mode": Mode.DISABLED,
    "state": PartitionState.UNKNOWN,
    "reason": PartitionReason.ENGINE_NOT_READY,
    "applied": None,
}
LOADING_ENGINE = EngineStatus(state=EnginePhase.LOADING, ready=False, load_progress_percent=47)
NOT_READY = pod(ready=False)
GPU = Problem(Reason.UNSCHEDULABLE, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", "nvidia.com/gpu")
ADJUSTING = {"state": PartitionState.ADJUSTING, "reason": PartitionReason.ADJUSTING, "mode": Mode.AUTO}
SILENT = {"state": PartitionState.FAILED, "reason": PartitionReason.WORKER_NOT_RESPONDING, "applied": None}


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


TABLE: dict[str, tuple[Observed, dict[str, str]]] = {
    "ready": (
        observed(),
        {
            "SpecAccepted": "True Accepted",
            "ModelReady": "True Loaded",
            "Available": "True PodsReady",
            "PartitionApplied": "True Applied",
            "Ready": "True Ready",
        },
    ),
    "no pods yet": (observed(pods=()), {"Available": "False NoPods", "Ready": "False NoPods"}),
    "scaled to zero": (
        observed({"replicas": 0}, pods=()),
        {"Available": "False ScaledToZero", "ModelReady": "Unknown ScaledToZero", "Ready": "True ScaledToZero"},
    ),
    "last pod still ends": (
        observed({"replicas": 0}, pods=(pod(terminating=True, ready=False),)),
        {"Ready": "True ScaledToZero"},
    ),
    "no gpu": (
        observed(pods=(pod(ready=False, started=False, problem=GPU),), agents={}),
        {"ModelReady": "Unknown Pending", "Available": "False Unschedulable", "Ready": "False Unschedulable"},
    ),
    "refused by the preflight": (
        observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=REFUSED_ENGINE, partition=REFUSED))}),
        {
            "ModelReady": "False ComputeModeUnsupported",
            "Available": "False PodsNotReady",
            "PartitionApplied": "False ComputeModeUnsupported",
            "Ready": "False ComputeModeUnsupported",
        },
    ),
    "cuda without a gpu, partitioning disabled": (
        observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=NO_GPU_ENGINE, partition=WAITING))}),
        {"ModelReady": "False NoGPU", "PartitionApplied": "Unknown NoReadyPods", "Ready": "False NoGPU"},
    ),
    "mps lost while serving": (
        observed(agents={"p1": heard(report(partition=LOST))}),
        {"ModelReady": "True Loaded", "PartitionApplied": "False MPSServerFault", "Ready": "False MPSServerFault"},
    ),
    "downloading": (
        observed(pods=(pod(ready=False, started=False, downloading=True),), agents={}),
        {"ModelReady": "False Downloading", "Ready": "False Downloading"},
    ),
    "gated model": (
        observed(pods=(pod(ready=False, started=False, model_problem=Problem("AuthRequired", "401")),), agents={}),
        {"ModelReady": "False AuthRequired", "Ready": "False AuthRequired"},
    ),
    "loading": (
        observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=LOADING_ENGINE))}),
        {"ModelReady": "False Loading", "Available": "False PodsNotReady", "Ready": "False Loading"},
    ),
    "engine out of memory": (
        observed(pods=(NOT_READY,), agents={"p1": heard(report(engine=FAILED_ENGINE))}),
        {"ModelReady": "False OutOfMemory", "Ready": "False OutOfMemory"},
    ),
    "rollout: an old pod serves": (
        observed(pods=(pod(template_hash="old"),)),
        {"Available": "True PodsReady", "Ready": "False RolloutInProgress"},
    ),
    "one of two": (
        observed({"replicas": 2}),
        {"Available": "True PodsReady", "Ready": "False PodsNotReady"},
    ),
    "second pod finds no gpu": (
        observed({"replicas": 2}, pods=(pod(), pod("p2", ready=False, started=False, problem=GPU))),
        {"Available": "True PodsReady", "Ready": "False Unschedulable"},
    ),
    "configuration not there yet": (
        observed(agents={"p1": heard(report(config_generation=3))}),
        {"PartitionApplied": "False Applying", "Ready": "False Applying"},
    ),
    "paused: older configuration is meant": (
        observed({"paused": True}, agents={"p1": heard(report(config_generation=3))}),
        {"SpecAccepted": "True Paused", "PartitionApplied": "True Applied", "Ready": "True Ready"},
    ),
    "other split than asked": (
        observed({"partition": {"prefillPercent": 10}}),
        {"PartitionApplied": "False Applying"},
    ),
    "a worker is silent": (
        observed(agents={"p1": heard(report(partition=SILENT))}),
        {"PartitionApplied": "False WorkerNotResponding", "Ready": "False WorkerNotResponding"},
    ),
    "report too old": (
        observed(agents={"p1": heard(report(), 11)}),
        {"PartitionApplied": "False ReportStale"},
    ),
    "agent away for long": (
        observed(agents={"p1": heard(report(), 11, error="refused")}),
        {"PartitionApplied": "False AgentUnreachable"},
    ),
    "agent away for a moment": (
        observed(agents={"p1": heard(report(), 9, error="refused")}),
        {"PartitionApplied": "True Applied"},
    ),
    "agent never heard": (observed(agents={}), {"PartitionApplied": "False AgentUnreachable"}),
    "a short move": (
        observed(AUTO, agents={"p1": heard(report(partition=ADJUSTING), adjusting_since=ago(29))}),
        {"PartitionApplied": "True Adjusting", "Ready": "True Ready"},
    ),
    "a long move": (
        observed(AUTO, agents={"p1": heard(report(partition=ADJUSTING), adjusting_since=ago(31))}),
        {"PartitionApplied": "False Adjusting", "Ready": "False Adjusting"},
    ),
    "disabled": (
        observed(
            {"partition": {"mode": "Disabled"}},
            agents={"p1": heard(report(partition={"mode": Mode.DISABLED, "reason": PartitionReason.DISABLED}))},
        ),
        {"PartitionApplied": "True Disabled", "Ready": "True Ready"},
    ),
    "name conflict": (
        observed(problem=Problem(Reason.NAME_CONFLICT, "Service demo exists", "Service/demo")),
        {"SpecAccepted": "False NameConflict", "Available": "True PodsReady", "Ready": "False NameConflict"},
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_conditions(case: str) -> None:
    seen, expected = TABLE[case]
    shown = conditions(summarise(seen))
    assert {kind: shown[kind] for kind in expected} == expected
    assert "SLOAttained" in shown if seen.service.spec.slo else "SLOAttained" not in shown


def test_every_reason_shown_is_in_the_table_of_reasons() -> None:
    known = {
        (kind, entry.reason, status)
        for kind, entries in REASONS.items()
        for entry in entries
        for status in entry.status.split(", ")
    }
    for seen, _ in TABLE.values():
        for condition in summarise(seen).conditions:
            if condition.type != "Ready":
                assert (condition.type, condition.reason, condition.status) in known


def test_every_reason_that_an_agent_gives_for_a_failure_is_in_the_table() -> None:
    shown = {entry.reason.value for entry in REASONS[ConditionType.PARTITION_APPLIED]}
    assert {reason.value for reason in PartitionReason} <= shown
    start = {entry.reason.value for entry in NO_START}
    assert {reason.value for reason, _ in POLICIES} <= start


def test_the_reason_column_names_the_missing_resource() -> None:
    assert summarise(TABLE["no gpu"][0]).reason == "Unschedulable(nvidia.com/gpu)"


def slo(ttft: float | None, attained: bool | None, **changes: Any) -> SLOReport:
    window = MetricWindow(target_milliseconds=500, observed_milliseconds=ttft, attainment_percent=97.9, samples=9)
    return SLOReport(percentile=90, window_seconds=60, ttft=window, attained=attained, **changes)


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


def test_two_significant_digits() -> None:
    assert [two_digits(x) for x in (0, 0.0456, 3.14, 31.4, 613.7, 12345)] == [0, 0.046, 3.1, 31, 610, 12000]


def test_pods_that_differ_show_a_range_and_no_applied_split() -> None:
    two = observed(
        {**AUTO, "replicas": 2},
        pods=(pod("p1"), pod("p2")),
        agents={
            "p1": heard(report(Split(prefill_percent=60, decode_percent=60), partition={"mode": Mode.AUTO})),
            "p2": heard(
                report(
                    Split(prefill_percent=80, decode_percent=40),
                    partition={"mode": Mode.AUTO, "enforcement": Enforcement.NONE},
                )
            ),
        },
    )
    partition = summarise(two).partition
    assert partition and partition.summary == "60-80/40-60" and partition.applied is None
    assert partition.enforcement is Enforcement.NONE, "the weakest counts"
    assert partition.enforced == "none" and partition.converged_replicas == 2
    assert [str(p.applied) for p in partition.pods] == ["60/60", "80/40"]
    assert conditions(summarise(two))["Ready"] == "True Ready"


def test_applied_is_absent_while_a_worker_is_silent() -> None:
    partition = summarise(TABLE["a worker is silent"][0]).partition
    assert partition and partition.applied is None and partition.requested is not None


def decision(second: int) -> Decision:
    return Decision(
        time=NOW + timedelta(seconds=second, microseconds=123456),
        from_split=Split(),
        to=Split(prefill_percent=60),
        reason=DecisionReason.TTFT_ABOVE_TARGET,
        metric="ttft",
        observed_milliseconds=640.04,
        target_milliseconds=500,
    )


def test_decisions_are_the_newest_of_all_pods_and_outlive_them() -> None:
    first = summarise(observed(agents={"p1": heard(report(decisions=tuple(decision(s) for s in range(8, 0, -1))))}))
    shown = parse_status({"status": dump_status(first)})
    second = summarise(
        observed(
            pods=(pod("p2"),),
            agents={"p2": heard(report(decisions=tuple(decision(s) for s in range(12, 8, -1))))},
            previous=shown,
        )
    )
    assert second.partition
    assert [(d.pod, d.time.second - NOW.second) for d in second.partition.decisions] == [
        *(("p2", s) for s in range(12, 8, -1)),
        *(("p1", s) for s in range(8, 2, -1)),
    ]
    told = [event for event in events(shown, second) if event.reason == "PartitionChanged"]
    assert len(told) == 4
    assert told[0].message == "p2: 100/100 -> 60/100: TTFTAboveTarget (TTFT 640 ms, target 500 ms)"


def test_a_status_survives_the_api_server() -> None:
    for seen, _ in TABLE.values():
        status = summarise(seen)
        assert parse_status({"status": dump_status(status)}) == status


def test_transition_times_move_with_the_status_only() -> None:
    first = summarise(observed())
    later = summarise(
        observed({"replicas": 2}, now=NOW + timedelta(seconds=9), agents={"p1": heard(report(), -8)}, previous=first)
    )
    before, after = first.condition("Available"), later.condition("Available")
    assert before and after and before.last_transition_time == after.last_transition_time
    ready = later.condition("Ready")
    assert ready and ready.last_transition_time == NOW + timedelta(seconds=9)


def test_observed_generation_waits_for_the_specification_to_be_in_force() -> None:
    previous = SemiPDServiceStatus(observed_generation=3)
    assert summarise(observed(previous=previous)).observed_generation == 4
    assert summarise(observed({"paused": True}, previous=previous)).observed_generation == 3
    assert summarise(observed(previous=previous, problem=Problem("NameConflict", "x"))).observed_generation == 3


def with_ttft(value: float) -> SemiPDServiceStatus:
    return summarise(observed(AUTO, agents={"p1": heard(report(slo=slo(value, True)))}))


@pytest.mark.parametrize(
    ("before", "after", "seconds", "due"),
    [
        (with_ttft(410), with_ttft(410), 99, False),
        (with_ttft(410), with_ttft(414), 99, False),  # the same two digits
        (with_ttft(410), with_ttft(420), 14, False),
        (with_ttft(410), with_ttft(420), 16, True),
        (with_ttft(410), summarise(TABLE["a long move"][0]), 0, True),
        (with_ttft(410), summarise(observed(AUTO, pods=())), 0, True),
    ],
)
def test_write_budget(before: SemiPDServiceStatus, after: SemiPDServiceStatus, seconds: int, due: bool) -> None:
    last = NOW - timedelta(seconds=seconds)
    assert write_due(before, after, now=NOW, last_write=last, slo_period=timedelta(seconds=15)) is due


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ("no pods yet", "ready", ["ModelLoaded"]),
        ("ready", "ready", []),
        ("no pods yet", "no gpu", ["NotAvailable"]),
        ("no gpu", "no gpu", []),
        ("downloading", "gated model", ["ModelFailed"]),
        ("no pods yet", "refused by the preflight", ["MPSUnavailable"]),
        ("no pods yet", "cuda without a gpu, partitioning disabled", ["ModelFailed"]),
        ("ready", "mps lost while serving", ["MPSUnavailable"]),
        ("ready", "a worker is silent", ["PartitionApplyFailed"]),
        ("ready", "agent never heard", ["AgentUnreachable"]),
        ("ready", "configuration not there yet", []),
        ("ready", "name conflict", ["SpecRejected"]),
        ("rollout: an old pod serves", "ready", ["RolloutFinished"]),
    ],
)
def test_events_are_edges(before: str, after: str, reasons: list[str]) -> None:
    found = events(summarise(TABLE[before][0]), summarise(TABLE[after][0]))
    assert [event.reason for event in found] == reasons


def test_a_new_template_is_told() -> None:
    found = events(summarise(observed()), summarise(observed(template_hash="h2")))
    assert [event.reason for event in found] == ["RolloutStarted"]


def test_slo_events() -> None:
    good, bad = with_ttft(400), summarise(observed(AUTO, agents={"p1": heard(report(slo=slo(600, False)))}))
    assert [event.reason for event in events(good, bad)] == ["SLOViolated"]
    assert [event.reason for event in events(bad, good)] == ["SLORecovered"]


def raw(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "uid": "u", "labels": {"semipd.io/template-hash": "h"}}, "status": status}


def container(state: dict[str, Any], name: str = "engine", **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, **more}


FETCH = '{"reason": "AuthRequired", "message": "the model is gated"}'
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu. preemption: none.",
}


@pytest.mark.parametrize(
    ("status", "where", "reason", "detail"),
    [
        ({"conditions": [UNSCHEDULABLE]}, "problem", "Unschedulable", "nvidia.com/gpu"),
        (
            {"containerStatuses": [container({"waiting": {"reason": "ImagePullBackOff"}})]},
            "problem",
            "ImagePullFailed",
            "engine",
        ),
        (
            {"initContainerStatuses": [container({"waiting": {"reason": "ErrImagePull"}}, "model")]},
            "problem",
            "ImagePullFailed",
            "model",
        ),
        (
            {
                "containerStatuses": [
                    container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}})
                ]
            },
            "problem",
            "CreateContainerConfigError",
            "engine",
        ),
        (
            {
                "containerStatuses": [
                    container(
                        {"waiting": {"reason": "CrashLoopBackOff"}},
                        restartCount=4,
                        lastState={"terminated": {"exitCode": 2}},
                    )
                ]
            },
            "problem",
            "CrashLoop",
            "engine",
        ),
        (
            {
                "containerStatuses": [
                    container(
                        {"waiting": {"reason": "CrashLoopBackOff"}},
                        lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    )
                ]
            },
            "problem",
            "OutOfMemory",
            "engine",
        ),
        ({"phase": "Failed", "reason": "Evicted"}, "problem", "PodFailed", ""),
        (
            {"initContainerStatuses": [container({"terminated": {"exitCode": 3, "message": FETCH}}, "model")]},
            "model_problem",
            "AuthRequired",
            "",
        ),
        (
            {
                "initContainerStatuses": [
                    container(
                        {"waiting": {"reason": "CrashLoopBackOff"}},
                        "model",
                        lastState={"terminated": {"exitCode": 3, "message": FETCH}},
                    )
                ]
            },
            "model_problem",
            "AuthRequired",
            "",
        ),
        (
            {"initContainerStatuses": [container({"terminated": {"exitCode": 1, "message": "Traceback"}}, "model")]},
            "model_problem",
            "DownloadFailed",
            "",
        ),
    ],
)
def test_why_a_pod_cannot_start(status: dict[str, Any], where: str, reason: str, detail: str) -> None:
    view = pod_view(raw(**status))
    problem = getattr(view, where)
    assert problem and (problem.reason, problem.detail) == (reason, detail)
    assert getattr(view, {"problem": "model_problem", "model_problem": "problem"}[where]) is None


def test_a_download_that_is_tried_again_is_no_failure_while_it_runs() -> None:
    again = container({"running": {}}, "model", lastState={"terminated": {"exitCode": 3, "message": FETCH}})
    view = pod_view(raw(initContainerStatuses=[again]))
    assert view.downloading and view.model_problem is None
    assert (
        pod_view(raw(initContainerStatuses=[container({"terminated": {"exitCode": 0}}, "model")])).model_problem is None
    )


@pytest.mark.parametrize(
    ("message", "resource"),
    [
        ("0/1 nodes are available: 1 Insufficient cpu.", "cpu"),
        ("0/1 nodes are available: 1 Insufficient memory, 1 Insufficient nvidia.com/gpu.", "nvidia.com/gpu"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint", ""),
    ],
)
def test_missing_resource(message: str, resource: str) -> None:
    assert missing_resource(message) == resource
