"""Documents of external.metrics.k8s.io/v1beta1 and the selector of a request. Pure.

Types: https://github.com/kubernetes/metrics/tree/master/pkg/apis/external_metrics/v1beta1
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from semipd_operator.render.autoscaler import UTILIZATION_METRIC
from semipd_operator.render.names import METRIC_LABEL
from semipd_operator.status.scaling import EXTERNAL_METRICS_API

Document = dict[str, Any]
REASONS = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 404: "NotFound", 503: "ServiceUnavailable"}


class BadSelector(ValueError):
    """A label selector that this API cannot answer; the message says what it can."""


def resource_list() -> Document:
    """What the group version serves, for discovery."""
    metric = {
        "name": UTILIZATION_METRIC,
        "singularName": "",
        "namespaced": True,
        "kind": "ExternalMetricValueList",
        "verbs": ["get"],
    }
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": EXTERNAL_METRICS_API, "resources": [metric]}


def value_list(values: Mapping[str, float], selected: str | None, now: datetime) -> Document:
    """`values` by service; `selected`: the one that is asked for, None for all. One without a value has no item: to
    the autoscaler that is an error, and it holds."""
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    items = [
        {
            "metricName": UTILIZATION_METRIC,
            "metricLabels": {METRIC_LABEL: service},
            "timestamp": stamp,
            "value": f"{round(value * 1000)}m",
        }
        for service, value in sorted(values.items())
        if selected is None or service == selected
    ]
    return {"kind": "ExternalMetricValueList", "apiVersion": EXTERNAL_METRICS_API, "metadata": {}, "items": items}


def failure(code: int, message: str) -> Document:
    """metav1.Status of a request that failed."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "reason": REASONS.get(code, "InternalError"),
        "message": message,
        "code": code,
    }


def selected_service(selector: str) -> str | None:
    """The service that ``semipd_service=NAME`` names; None for an empty selector. Raises `BadSelector`."""
    if not selector.strip():
        return None
    key, equals, name = selector.replace("==", "=").partition("=")
    if key.strip() != METRIC_LABEL or not equals or not name.strip() or set(name) & set(",=!"):
        raise BadSelector(f"labelSelector {selector!r}: this API selects by {METRIC_LABEL}=NAME only")
    return name.strip()
