"""The GPU's metrics and those of MPS, at each scrape. Without a GPU there are none, and that is no error."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from semipd_agent import metrics
from semipd_agent.gpu.sampler import Sampler
from semipd_agent.partitioner.mps.backend import Mps


class GpuCollector(Collector):
    def __init__(self, sampler: Sampler, mps: Mps | None) -> None:
        self._sampler = sampler
        self._mps = mps

    def collect(self) -> Iterator[Metric]:
        if self._mps is None:
            return
        yield GaugeMetricFamily(metrics.MPS_UP, "1 while an MPS daemon of ours serves.", value=float(self._mps.ready))
        yield CounterMetricFamily(
            metrics.MPS_LOSSES,
            "MPS daemons that were lost in service (fault, death, silence) and replaced.",
            value=self._mps.losses,
        )
        xids = CounterMetricFamily(metrics.GPU_XIDS, "Critical errors that the driver reported.", labels=["xid"])
        for xid, count in sorted(self._sampler.xids.items()):
            xids.add_metric([str(xid)], count)
        yield xids
        if (sample := self._sampler.latest()) is None:
            return
        facts = sample.facts
        info = GaugeMetricFamily(
            metrics.GPU_INFO, "Always 1; what the GPU is.", labels=["uuid", "name", "driver", "compute_mode", "mig"]
        )
        info.add_metric([facts.uuid, facts.name, facts.driver, facts.compute_mode, str(facts.mig).lower()], 1)
        yield info
        memory = GaugeMetricFamily(
            metrics.GPU_MEMORY, "Memory of the GPU, used (by all processes) and total.", labels=["state"]
        )
        memory.add_metric(["used"], sample.memory_used)
        memory.add_metric(["total"], sample.memory_total)
        yield memory
        if sample.utilization is not None:
            yield GaugeMetricFamily(
                metrics.GPU_UTILIZATION,
                "Part of the time in which any kernel ran; says nothing about how many SMs it took.",
                value=sample.utilization,
            )
