"""Renders a service's objects. Pure: no clock, no network; one builder for each kind."""

from __future__ import annotations

from dataclasses import dataclass

from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render.autoscaler import HPA_API, KEDA_API, horizontal_pod_autoscaler, scaled_object
from semipd_operator.render.configmap import config_map
from semipd_operator.render.deployment import deployment, template_hash
from semipd_operator.render.names import Object
from semipd_operator.render.pdb import pod_disruption_budget
from semipd_operator.render.podmonitor import PROMETHEUS_API, pod_monitor
from semipd_operator.render.service import service as service_object
from semipd_operator.settings import Settings

__all__ = ["Kind", "Known", "Object", "Rendered", "render"]


@dataclass(frozen=True)
class Kind:
    api_version: str
    kind: str


@dataclass(frozen=True)
class Known:
    """Which kinds of others the cluster knows."""

    pod_monitors: bool = False
    scaled_objects: bool = False

    def __contains__(self, kind: Kind) -> bool:
        return {PROMETHEUS_API: self.pod_monitors, KEDA_API: self.scaled_objects}.get(kind.api_version, True)


OPTIONAL_KINDS = (
    Kind("policy/v1", "PodDisruptionBudget"),
    Kind(HPA_API, "HorizontalPodAutoscaler"),
    Kind(PROMETHEUS_API, "PodMonitor"),
    Kind(KEDA_API, "ScaledObject"),
)
"""Kinds that a service may stop wanting: what is left of them is deleted."""


@dataclass(frozen=True)
class Rendered:
    """What should exist, in the order in which it is applied."""

    objects: tuple[Object, ...]
    unwanted: tuple[Kind, ...]
    """Optional kinds, named like the service, that should not exist."""
    template_hash: str


def render(
    service: SemiPDService, settings: Settings, *, live_deployment: Object | None = None, known: Known | None = None
) -> Rendered:
    """`live_deployment`: the service's own Deployment as it stands."""
    known = known or Known()
    pods = deployment(service, settings, live_deployment)
    optional = [
        pod_disruption_budget(service),
        pod_monitor(service, available=known.pod_monitors),
        horizontal_pod_autoscaler(service),
        scaled_object(service, available=known.scaled_objects),
    ]
    wanted = [obj for obj in optional if obj is not None]
    kinds = {obj["kind"] for obj in wanted}
    return Rendered(
        objects=(config_map(service, settings.key), service_object(service), pods, *wanted),
        unwanted=tuple(kind for kind in OPTIONAL_KINDS if kind.kind not in kinds and kind in known),
        template_hash=template_hash(pods),
    )
