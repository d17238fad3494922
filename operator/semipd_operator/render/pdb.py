"""The PodDisruptionBudget: one pod at a time, where there is more than one."""

from __future__ import annotations

from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render import names
from semipd_operator.render.names import Object


def pod_disruption_budget(service: SemiPDService) -> Object | None:
    """None for a single pod: a budget would only block the drain of its node."""
    if service.spec.replicas < 2:
        return None
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": names.metadata(service),
        "spec": {
            "maxUnavailable": 1,
            "selector": {"matchLabels": names.selector(service)},
            # A pod that serves nobody holds no drain up.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    }
