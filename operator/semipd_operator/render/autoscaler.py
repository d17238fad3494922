"""The autoscaler: a HorizontalPodAutoscaler, or a ScaledObject of KEDA. Both scale the SemiPDService itself.

Both do the same arithmetic: the metric is the sum over the pods of how full each is (1 is the edge of the SLO), its
target an average value per pod, so the wanted number of pods is ``ceil(sum / target)``. The sum is of the pods that
serve, whatever number the autoscaler takes them for, so a pod that is still starting adds nothing to the demand.
"""

from __future__ import annotations

from typing import Any

from semipd_operator.api.v1alpha1.autoscaling import AutoscalingSpec, ScalingRules
from semipd_operator.api.v1alpha1.resource import API_VERSION, KIND, SemiPDService
from semipd_operator.render import names
from semipd_operator.render.names import Object

HPA_API = "autoscaling/v2"
KEDA_API = "keda.sh/v1alpha1"
UTILIZATION_METRIC = "semipd_utilization_ratio"
"""The agents' metric, and the external metric: its sum over the pods of one service."""

_SCALE_UP: Object = {
    "stabilizationWindowSeconds": 15,
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": 60}],
}
_SCALE_DOWN: Object = {
    "stabilizationWindowSeconds": 300,
    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
}
"""Slower than Kubernetes' own: a pod loads its model for a while, and the split may yet mend a turn of the load."""


def metric_labels(service: SemiPDService) -> dict[str, str]:
    """Selects the service's series among those of its namespace. The key is a legal label of Prometheus, too."""
    return {names.METRIC_LABEL: service.metadata.name}


def horizontal_pod_autoscaler(service: SemiPDService) -> Object | None:
    scaling = service.spec.autoscaling
    if scaling is None or scaling.keda is not None:
        return None
    metric = {"name": UTILIZATION_METRIC, "selector": {"matchLabels": metric_labels(service)}}
    target = {"type": "AverageValue", "averageValue": f"{10 * scaling.target_utilization_percent}m"}
    return {
        "apiVersion": HPA_API,
        "kind": "HorizontalPodAutoscaler",
        "metadata": names.metadata(service),
        "spec": {
            "scaleTargetRef": _target(service),
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "metrics": [{"type": "External", "external": {"metric": metric, "target": target}}],
            "behavior": _behavior(scaling),
        },
    }


def scaled_object(service: SemiPDService) -> Object | None:
    scaling = service.spec.autoscaling
    if scaling is None or scaling.keda is None:
        return None
    matchers = {"namespace": service.metadata.namespace, **metric_labels(service)}
    selector = ",".join(f'{key}="{value}"' for key, value in matchers.items())
    trigger = {
        "type": "prometheus",
        "metricType": "AverageValue",
        "metadata": {
            "serverAddress": scaling.keda.server_address,
            "query": f"sum({UTILIZATION_METRIC}{{{selector}}})",
            "threshold": f"{scaling.target_utilization_percent / 100:g}",
            # No series is no zero: KEDA then holds the number of pods.
            "ignoreNullValues": "false",
        },
    }
    return {
        "apiVersion": KEDA_API,
        "kind": "ScaledObject",
        "metadata": names.metadata(service),
        "spec": {
            "scaleTargetRef": _target(service),
            "minReplicaCount": scaling.min_replicas,
            "maxReplicaCount": scaling.max_replicas,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": _behavior(scaling)}},
            "triggers": [trigger],
        },
    }


def _target(service: SemiPDService) -> Object:
    return {"apiVersion": API_VERSION, "kind": KIND, "name": service.metadata.name}


def _behavior(scaling: AutoscalingSpec) -> Object:
    behavior = scaling.behavior
    return {
        "scaleUp": _rules(behavior.scale_up) if behavior.scale_up else _SCALE_UP,
        "scaleDown": _rules(behavior.scale_down) if behavior.scale_down else _SCALE_DOWN,
    }


def _rules(rules: ScalingRules) -> dict[str, Any]:
    return rules.model_dump(mode="json", by_alias=True, exclude_defaults=True)
