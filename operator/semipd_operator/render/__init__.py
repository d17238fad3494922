"""Renders a service's objects. Pure: no clock, no network; one builder for each kind."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render.autoscaler import HPA_API, KEDA_API, horizontal_pod_autoscaler, scaled_object
from semipd_operator.render.configmap import config_map
from semipd_operator.render.deployment import Unrenderable, deployment, template_hash
from semipd_operator.render.names import Object
from semipd_operator.render.pdb import pod_disruption_budget
from semipd_operator.render.pod import InvalidTemplate
from semipd_operator.render.podmonitor import PROMETHEUS_API, pod_monitor
from semipd_operator.render.service import service as service_object
from semipd_operator.settings import Settings

__all__ = [
    "BUDGET",
    "CONFIG_MAP",
    "HPA",
    "OPTIONAL_KINDS",
    "POD_MONITOR",
    "SCALED_OBJECT",
    "InvalidTemplate",
    "Kind",
    "Object",
    "Rendered",
    "Unrenderable",
    "asked_for",
    "render",
]


@dataclass(frozen=True)
class Kind:
    api_version: str
    kind: str


CONFIG_MAP = Kind("v1", "ConfigMap")
BUDGET = Kind("policy/v1", "PodDisruptionBudget")
HPA = Kind(HPA_API, "HorizontalPodAutoscaler")
POD_MONITOR = Kind(PROMETHEUS_API, "PodMonitor")
SCALED_OBJECT = Kind(KEDA_API, "ScaledObject")
OPTIONAL_KINDS = (BUDGET, HPA, POD_MONITOR, SCALED_OBJECT)
"""Kinds that a service may do without, or stop wanting: what is left of them is deleted."""


def asked_for(service: SemiPDService, settings: Settings) -> dict[Kind, Object]:
    """The optional objects that a specification asks for."""
    wanted = {
        BUDGET: pod_disruption_budget(service),
        POD_MONITOR: pod_monitor(service, settings.pod_monitor_labels),
        HPA: horizontal_pod_autoscaler(service),
        SCALED_OBJECT: scaled_object(service),
    }
    return {kind: obj for kind, obj in wanted.items() if obj is not None}


@dataclass(frozen=True)
class Rendered:
    """What should exist, in the order in which it is applied."""

    objects: tuple[Object, ...]
    unwanted: tuple[Kind, ...]
    """Optional kinds, named like the service, that should not exist."""
    lacking: tuple[Kind, ...]
    """Optional kinds that should exist, and that the operator cannot reach: they are done without."""
    template_hash: str


def render(
    service: SemiPDService,
    settings: Settings,
    *,
    live_deployment: Object | None = None,
    within_reach: Collection[Kind] = OPTIONAL_KINDS,
    hold: bool = False,
    model_revision: str = "",
) -> Rendered:
    """`live_deployment`: the service's own Deployment as it stands.
    `within_reach`: the optional kinds that the cluster serves and its RBAC grants; the others are not ours: neither
    made nor deleted.
    `hold`: leave the pods as they are, whatever the specification says of them.
    `model_revision`: the commit that the service's pods run from, once it is known.

    Raises `Unrenderable` where there are no pods to leave as they are, `InvalidTemplate`.
    """
    pods = deployment(service, settings, live_deployment, hold=hold)
    wanted = asked_for(service, settings)
    made = [obj for kind, obj in wanted.items() if kind in within_reach]
    return Rendered(
        objects=(config_map(service, settings, model_revision), service_object(service), pods, *made),
        unwanted=tuple(kind for kind in OPTIONAL_KINDS if kind not in wanted and kind in within_reach),
        lacking=tuple(kind for kind in OPTIONAL_KINDS if kind in wanted and kind not in within_reach),
        template_hash=template_hash(pods),
    )
