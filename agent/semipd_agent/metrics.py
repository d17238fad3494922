"""The agent's metric names and their values, read from the status report at each scrape. Counts nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from semipd_agent.contract import DecisionReason, MetricWindow, StatusReport

PARTITION_PERCENT = "semipd_partition_percent"
MIXED_TOKENS = "semipd_partition_mixed_tokens"
PARTITION_APPLIED = "semipd_partition_applied"
PARTITION_CHANGES = "semipd_partition_changes_total"
DECISIONS = "semipd_decisions_total"
SLO_PRESSURE_RATIO = "semipd_slo_pressure_ratio"
SLO_ATTAINMENT_RATIO = "semipd_slo_attainment_ratio"
SLO_FEASIBLE = "semipd_slo_feasible"
UTILIZATION_RATIO = "semipd_utilization_ratio"
STEP_PROFILE = "semipd_step_profile_measured"
ENGINE_READY = "semipd_engine_ready"
ENGINE_RESTARTS = "semipd_engine_restarts_total"
WORKER_SMS = "semipd_worker_sms"
WORKER_START = "semipd_worker_start_seconds"
MPS_UP = "semipd_mps_up"
MPS_LOSSES = "semipd_mps_losses_total"
GPU_INFO = "semipd_gpu_info"
GPU_MEMORY = "semipd_gpu_memory_bytes"
GPU_UTILIZATION = "semipd_gpu_utilization_ratio"
GPU_XIDS = "semipd_gpu_xid_errors_total"

NAMES = (
    PARTITION_PERCENT,
    MIXED_TOKENS,
    PARTITION_APPLIED,
    PARTITION_CHANGES,
    DECISIONS,
    SLO_PRESSURE_RATIO,
    SLO_ATTAINMENT_RATIO,
    SLO_FEASIBLE,
    UTILIZATION_RATIO,
    STEP_PROFILE,
    ENGINE_READY,
    ENGINE_RESTARTS,
    WORKER_SMS,
    WORKER_START,
)
"""What the agent exports on every device."""
GPU_NAMES = (
    MPS_UP,
    MPS_LOSSES,
    GPU_INFO,
    GPU_MEMORY,
    GPU_UTILIZATION,
    GPU_XIDS,
)
"""What it exports beside that on a GPU (`gpu.metrics`)."""


class ReportCollector(Collector):
    """Metrics of one report. An unknown value has no sample, so that an alert can tell it from a good one."""

    def __init__(
        self,
        report: Callable[[], StatusReport],
        decisions: Callable[[], Mapping[DecisionReason, int]],
    ) -> None:
        self._report = report
        self._decisions = decisions

    def collect(self) -> Iterator[Metric]:
        report = self._report()
        yield from self._partition(report)
        yield from self._slo(report)
        yield from self._engine(report)

    def _partition(self, report: StatusReport) -> Iterator[Metric]:
        partition = report.partition
        percent = GaugeMetricFamily(
            PARTITION_PERCENT, "Share of the device, percent; applied is read back.", labels=["phase", "value"]
        )
        mixed = GaugeMetricFamily(
            MIXED_TOKENS,
            "Most tokens of a step that computes prompts with decode's; 0 while each phase has steps of its own.",
            labels=["value"],
        )
        splits = {"requested": partition.requested, "quantized": partition.quantized, "applied": partition.applied}
        for value, split in splits.items():
            if split is not None:
                percent.add_metric(["prefill", value], split.prefill_percent)
                percent.add_metric(["decode", value], split.decode_percent)
                mixed.add_metric([value], split.mixed_tokens)
        yield percent
        yield mixed
        applied = partition.state == "Applied"
        yield GaugeMetricFamily(PARTITION_APPLIED, "1 while the workers prove the split.", value=float(applied))
        yield CounterMetricFamily(PARTITION_CHANGES, "Changes of the split.", value=partition.changes)
        decisions = CounterMetricFamily(DECISIONS, "Decisions by reason.", labels=["reason"])
        counts = self._decisions()
        for reason in DecisionReason:
            decisions.add_metric([reason.value], counts.get(reason, 0))
        yield decisions

    def _slo(self, report: StatusReport) -> Iterator[Metric]:
        pressure = GaugeMetricFamily(
            SLO_PRESSURE_RATIO, "Observed latency over its target, at the SLO's percentile.", labels=["slo"]
        )
        attainment = GaugeMetricFamily(
            SLO_ATTAINMENT_RATIO, "Share of the window's requests at or below the target (joint: both).", labels=["slo"]
        )
        feasible = GaugeMetricFamily(SLO_FEASIBLE, "1 while some split can meet the SLO, as far as is known.")
        if report.slo is not None:
            metrics: dict[str, MetricWindow | None] = {"ttft": report.slo.ttft, "tpot": report.slo.tpot}
            for name, metric in metrics.items():
                if metric is not None and metric.observed_milliseconds is not None:
                    pressure.add_metric([name], metric.observed_milliseconds / metric.target_milliseconds)
                if metric is not None and metric.attainment_percent is not None:
                    attainment.add_metric([name], metric.attainment_percent / 100)
            if report.slo.attainment_percent is not None:
                attainment.add_metric(["joint"], report.slo.attainment_percent / 100)
            if report.slo.feasible is not None:
                feasible.add_metric([], float(report.slo.feasible))
        yield pressure
        yield attainment
        yield feasible
        utilization = GaugeMetricFamily(
            UTILIZATION_RATIO, "How full the pod is: 1 is the largest load that some split serves within the targets."
        )
        if report.slo is not None and report.slo.utilization_ratio is not None:
            utilization.add_metric([], report.slo.utilization_ratio)
        yield utilization
        yield GaugeMetricFamily(
            STEP_PROFILE,
            "1 where step times began from a measured profile, 0 where from an assumed one.",
            value=float(report.step_profile.measured),
        )

    def _engine(self, report: StatusReport) -> Iterator[Metric]:
        yield GaugeMetricFamily(ENGINE_READY, "1 while the engine can serve.", value=float(report.engine.ready))
        restarts = CounterMetricFamily(ENGINE_RESTARTS, "Restarts of the engine's processes.", labels=["process"])
        for process, count in sorted(report.engine.restarts.items()):
            restarts.add_metric([process], count)
        yield restarts
        sms = GaugeMetricFamily(WORKER_SMS, "SMs that a worker itself sees; on a GPU only.", labels=["phase", "pid"])
        for worker in report.engine.workers:
            if worker.sm_count is not None:
                sms.add_metric([worker.phase, str(worker.pid)], worker.sm_count)
        yield sms
        start = GaugeMetricFamily(
            WORKER_START, "What the start of a worker that is alive took, by part.", labels=["phase", "pid", "part"]
        )
        for worker in report.engine.workers:
            for part, seconds in worker.start_seconds.items():
                start.add_metric([worker.phase, str(worker.pid), part], seconds)
        yield start
