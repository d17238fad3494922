"""spec.autoscaling: how many pods, by how full they are, and who does it. In place."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from semipd_operator.api.rules import ApiModel, at_least, at_most_one, between, matches, not_above

MAX_POLICIES = 8


class ScalingPolicy(ApiModel):
    type: Literal["Pods", "Percent"] = Field(
        description="What value counts: Pods or Percent (of the present number). Default: none, required."
    )
    value: Annotated[int, at_least("behavior policies' value", 1, "it is how much may change in periodSeconds")] = (
        Field(description="Most change in one period, in pods or percent. Default: none, required.")
    )
    period_seconds: Annotated[int, between("behavior policies' periodSeconds", 1, 1800, "it is seconds")] = Field(
        description="Length of the period, in seconds. Default: none, required."
    )


class ScalingRules(ApiModel):
    """One direction. What is not given is Kubernetes' default."""

    stabilization_window_seconds: (
        Annotated[int, between("behavior stabilizationWindowSeconds", 0, 3600, "it is seconds, 0 acts at once")] | None
    ) = Field(
        default=None,
        description="The most cautious recommendation of so many seconds counts. Default: Kubernetes', 0 up, 300 down.",
    )
    select_policy: Literal["Max", "Min", "Disabled"] | None = Field(
        default=None,
        description="Which policy counts where there are several: Max, Min or Disabled (never scale in this "
        "direction). Default: Max.",
    )
    policies: tuple[ScalingPolicy, ...] = Field(
        default=(),
        max_length=MAX_POLICIES,
        description="How fast the number of pods may change. Default: Kubernetes' policies.",
    )


class ScalingBehavior(ApiModel):
    scale_up: ScalingRules | None = Field(
        default=None,
        description="Default: at most twice as many pods in 60 s, after 15 s of wanting to.",
    )
    scale_down: ScalingRules | None = Field(
        default=None,
        description="Default: one pod less in 60 s, after 300 s of wanting to.",
    )


class HPASpec(ApiModel):
    """A HorizontalPodAutoscaler on the external metric that the operator serves. It has no settings of its own."""


class KEDASpec(ApiModel):
    server_address: Annotated[
        str,
        Field(max_length=512),
        matches("^https?://", "autoscaling.keda.serverAddress must be an URL: write it like http://prometheus:9090"),
    ] = Field(
        description="URL of the Prometheus server that scrapes the agents, as KEDA reaches it. Default: none, required."
    )


class AutoscalingSpec(ApiModel):
    """In place."""

    RULES: ClassVar = (not_above("minReplicas", "maxReplicas"), at_most_one("hpa", "keda", of="autoscaling"))

    min_replicas: Annotated[int, at_least("autoscaling.minReplicas", 1, "to stop serving, set replicas to 0")] = Field(
        default=1, description="Least number of pods."
    )
    max_replicas: Annotated[int, at_least("autoscaling.maxReplicas", 1, "it is the most pods, each with a device")] = (
        Field(description="Greatest number of pods, each with a device of its own. Default: none, required.")
    )
    target_utilization_percent: Annotated[
        int, between("autoscaling.targetUtilizationPercent", 10, 100, "100 leaves no room for a burst, 80 is usual")
    ] = Field(
        default=80,
        description="How full the pods should be on average, in percent of the load that just meets the SLO.",
    )
    behavior: ScalingBehavior = Field(
        default=ScalingBehavior(), description="How fast, as in a HorizontalPodAutoscaler."
    )
    hpa: HPASpec | None = Field(
        default=None,
        description="Scale by a HorizontalPodAutoscaler on the metric that the operator serves; needs no Prometheus. "
        "Default: used, unless keda is given.",
    )
    keda: KEDASpec | None = Field(
        default=None, description="Scale by a ScaledObject of KEDA, which asks Prometheus. Default: not used."
    )
