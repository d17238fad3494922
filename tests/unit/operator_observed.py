"""Observations for the tests of the status: a service, pods and reports by a few words, and a table of situations."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from semipd_agent.contract import (
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
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus
from semipd_operator.reasons import PodTrouble, SpecReason
from semipd_operator.status import AgentView, Observed, PodView, Problem, summarise

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def service(meta: dict[str, Any] | None = None, **spec: Any) -> SemiPDService:
    meta = {"name": "demo", "namespace": "d", "uid": "u", "generation": 4, **(meta or {})}
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
GPU = Problem(PodTrouble.UNSCHEDULABLE, "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", "nvidia.com/gpu")
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
            "Available": "False ComputeModeUnsupported",
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
    "a new generation on its way, as an autoscaler makes them": (
        observed(agents={"p1": heard(report(config_generation=3), behind_since=ago(29))}),
        {"PartitionApplied": "True Applied", "Ready": "True Ready"},
    ),
    "configuration not there yet": (
        observed(agents={"p1": heard(report(config_generation=3), behind_since=ago(31))}),
        {"PartitionApplied": "False Applying", "Ready": "False Applying"},
    ),
    "a later generation than the service's, just restored": (
        observed(agents={"p1": heard(report(config_generation=5), behind_since=ago(29))}),
        {"PartitionApplied": "True Applied", "Ready": "True Ready"},
    ),
    "a later generation than the service's, whose changes it refuses": (
        observed(agents={"p1": heard(report(config_generation=5), behind_since=ago(31))}),
        {"PartitionApplied": "False Applying", "Ready": "False Applying"},
    ),
    "the configuration of the service before it": (
        observed(agents={"p1": heard(report(config_uid="gone"), behind_since=ago(31))}),
        {"PartitionApplied": "False Applying", "Ready": "False Applying"},
    ),
    "another split was asked for just now": (
        observed(
            {"partition": {"prefillPercent": 10}},
            agents={"p1": heard(report(config_generation=3), behind_since=ago(2))},
        ),
        {"PartitionApplied": "False Applying", "Ready": "True Ready"},
    ),
    "a short manual move": (
        observed(agents={"p1": heard(report(partition={**ADJUSTING, "mode": Mode.MANUAL}), adjusting_since=ago(29))}),
        {"PartitionApplied": "False Adjusting", "Ready": "True Ready"},
    ),
    "one order on its way and one pod lost": (
        observed(
            {"replicas": 2, "partition": {"prefillPercent": 10}},
            pods=(pod(), pod("p2")),
            agents={"p1": heard(report(config_generation=3), behind_since=ago(2))},
        ),
        {"PartitionApplied": "False AgentUnreachable", "Ready": "False AgentUnreachable"},
    ),
    "a pod that became ready a moment ago": (
        observed(pods=(pod(ready_since=ago(3)),), agents={}),
        {"PartitionApplied": "False AgentUnreachable", "Ready": "True Ready"},
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
        observed(problem=Problem(SpecReason.NAME_CONFLICT, "Service demo exists", "Service/demo")),
        {"SpecAccepted": "False NameConflict", "Available": "True PodsReady", "Ready": "False NameConflict"},
    ),
}


def slo(ttft: float | None, attained: bool | None, **changes: Any) -> SLOReport:
    window = MetricWindow(target_milliseconds=500, observed_milliseconds=ttft, attainment_percent=97.9, samples=9)
    return SLOReport(percentile=90, window_seconds=60, ttft=window, attained=attained, **changes)


def with_ttft(value: float, ratio: float | None = None) -> SemiPDServiceStatus:
    return summarise(observed(AUTO, agents={"p1": heard(report(slo=slo(value, True, utilization_ratio=ratio)))}))


def messages(status: SemiPDServiceStatus) -> dict[str, str]:
    return {one.type: one.message for one in status.conditions if one.type in ("Available", "Ready")}
