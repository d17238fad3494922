"""The PodMonitor (Prometheus operator) for the engine's and the agent's metrics."""

from __future__ import annotations

from collections.abc import Iterable

from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render import names
from semipd_operator.render.names import Object

PROMETHEUS_API = "monitoring.coreos.com/v1"
_NAME_THE_SERVICE = {
    "sourceLabels": ["__meta_kubernetes_pod_label_" + names.SERVICE_LABEL.replace(".", "_").replace("/", "_")],
    "targetLabel": names.METRIC_LABEL,
}


def pod_monitor(service: SemiPDService, labels: Iterable[tuple[str, str]] = ()) -> Object | None:
    """`labels`: added to the PodMonitor's own."""
    if not service.spec.monitoring.pod_monitor:
        return None
    metadata = names.metadata(service)
    return {
        "apiVersion": PROMETHEUS_API,
        "kind": "PodMonitor",
        "metadata": metadata | {"labels": dict(labels) | metadata["labels"]},
        "spec": {
            "selector": {"matchLabels": names.selector(service)},
            "podMetricsEndpoints": [
                {"port": port, "path": "/metrics", "relabelings": [_NAME_THE_SERVICE]}
                for port in (names.HTTP_PORT, names.AGENT_PORT_NAME)
            ],
        },
    }
