"""Builds the status report from what the agent knows. Pure; reads no clock and asks nobody."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from semipd_agent import __version__
from semipd_agent.config import mixing_refused
from semipd_agent.contract import (
    SLO,
    Identity,
    MetricWindow,
    PartitionReport,
    SLOReport,
    StatusReport,
    StepProfileReport,
)
from semipd_agent.control import SplitController
from semipd_agent.decisions import wire
from semipd_agent.engine_report import LauncherState, engine_status, judged
from semipd_agent.readback import STALE_AFTER
from semipd_agent.slo.attainment import Attainment
from semipd_agent.slo.feasibility import MESSAGES
from semipd_agent.slo.policy import Verdict
from semipd_agent.slo.window import percentile

MIN_SAMPLES = 5
"""Fewer requests than this in the window say nothing about a percentile."""


def build(
    controller: SplitController,
    launcher: LauncherState,
    identity: Identity,
    *,
    ready: bool,
    now: float,
    wall: datetime,
    served: bool = False,
    api_problem: str = "",
    memory_problem: str = "",
    key_problem: str = "",
) -> StatusReport:
    """`now` is CLOCK_MONOTONIC seconds, `wall` the same moment in UTC.

    `api_problem`: what is wrong with the api process. `memory_problem`: what was killed for memory since it was ready.
    `key_problem`: why the api admits nobody.
    """
    config = controller.config
    snapshot = controller.snapshot
    fresh = snapshot is not None and now - snapshot.monotonic_time <= STALE_AFTER
    readback = controller.readback
    return StatusReport(
        identity=identity,
        observed_at=wall,
        agent_version=__version__,
        config_generation=config.generation,
        config_uid=config.uid,
        partition=PartitionReport(
            mode=config.partition.mode,
            policy=controller.policy_in_force,
            backend=controller.partitioner.name,
            enforcement=controller.partitioner.enforcement,
            requested=wire(controller.requested),
            quantized=wire(controller.intent.split),
            applied=wire(readback.applied) if readback.applied else None,
            split_epoch=controller.intent.epoch,
            state=readback.state,
            reason=readback.reason,
            message="; ".join(
                filter(
                    None,
                    (
                        controller.partitioner.notice,
                        readback.message
                        or controller.pilot.verdict.message
                        or mixing_refused(config.partition, controller.partitioner),
                    ),
                )
            ),
            changes=controller.changes,
            last_change_time=controller.last_change_time,
        ),
        engine=judged(
            engine_status(
                snapshot if fresh else None,
                snapshot,
                launcher,
                ready=ready,
                served=served,
                problem=controller.obstacle,
                restarts=controller.restarts.totals(),
            ),
            api_problem,
            memory_problem,
            key_problem,
        ),
        slo=slo_report(
            config.slo,
            controller.attained(config.slo, now),
            controller.pilot.verdict,
            auto=controller.policy_in_force is not None,
            fresh=fresh,
            utilization=controller.pilot.utilization_ratio,
            utilization_rate=controller.pilot.utilization_rate,
            arrivals=controller.pilot.arrivals,
        )
        if config.slo
        else None,
        step_profile=StepProfileReport(
            measured=controller.pilot.profile.steps.measured,
            source=controller.pilot.profile.source,
            message=controller.pilot.profile.message,
        ),
        decisions=controller.log.newest_first(),
        faults=controller.faults.report(),
    )


def slo_report(
    slo: SLO,
    seen: Attainment,
    verdict: Verdict,
    *,
    auto: bool,
    fresh: bool,
    utilization: float | None = None,
    utilization_rate: float = 0.0,
    arrivals: int | None = None,
) -> SLOReport:
    """Percentiles and attainment of the window against the targets."""
    ttft = _metric(slo.ttft_milliseconds, seen.ttft, seen.refused, slo.percentile)
    tpot = _metric(slo.tpot_milliseconds, seen.tpot, 0, slo.percentile)
    attained, reason = _attained(ttft, tpot, slo.percentile, fresh)
    feasible = verdict.feasible if auto else None
    unknown = verdict.feasible_reason or "InsufficientTraffic" if auto else "PolicyInactive"
    why = unknown if feasible is None else verdict.feasible_reason or "Feasible"
    return SLOReport(
        percentile=slo.percentile,
        window_seconds=slo.window_seconds,
        ttft=ttft,
        tpot=tpot,
        attained=attained,
        reason=reason,
        attainment_percent=round(100 * seen.joint, 2) if seen.joint is not None else None,
        refused_percent=round(100 * seen.refused / seen.requests, 2) if seen.refused else None,
        feasible=feasible,
        feasible_reason=why,
        feasible_message=MESSAGES.get(why, ""),
        utilization_ratio=round(utilization, 3) if fresh and utilization is not None else None,
        utilization_rate=round(utilization_rate, 4) if fresh and utilization is not None else None,
        arrivals=arrivals if fresh else None,
    )


def _metric(target: int | None, seconds: Sequence[float], refused: int, p: int) -> MetricWindow | None:
    """`refused` requests have no latency, and miss."""
    if target is None:
        return None
    samples = len(seconds) + refused
    met = sum(value <= target / 1000 for value in seconds)
    return MetricWindow(
        target_milliseconds=target,
        observed_milliseconds=round(percentile(seconds, p) * 1000, 3) if len(seconds) >= MIN_SAMPLES else None,
        attainment_percent=round(100 * met / samples, 2) if samples else None,
        samples=samples,
    )


def _attained(ttft: MetricWindow | None, tpot: MetricWindow | None, p: int, fresh: bool) -> tuple[bool | None, str]:
    if not fresh:
        return None, "TelemetryStale"
    for metric, reason in ((ttft, "TTFTAboveTarget"), (tpot, "TPOTAboveTarget")):
        if metric and metric.samples >= MIN_SAMPLES and (metric.attainment_percent or 0.0) < p:
            return False, reason
    known = [m for m in (ttft, tpot) if m is not None]
    if not known or any(m.samples < MIN_SAMPLES for m in known):
        return None, "InsufficientTraffic"
    return True, "Attained"
