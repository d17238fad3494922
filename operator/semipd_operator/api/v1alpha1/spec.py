"""What a user writes: the specification of a SemiPDService, its defaults and its rules.

Every default and rule is declared here and in the modules of its parts, and nowhere else; `semipd_operator.crd` emits
them as OpenAPI and CEL.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from semipd_agent.contract import API_PORT, Admission, Mode, Split
from semipd_operator.api.rules import RULE_ERROR, ApiModel, Rule, at_least, between, data_key, object_name
from semipd_operator.api.v1alpha1.autoscaling import AutoscalingSpec
from semipd_operator.api.v1alpha1.engine import EngineSpec
from semipd_operator.api.v1alpha1.model import ModelSpec, Text
from semipd_operator.api.v1alpha1.partition import PartitionSpec, SLOSpec

MAX_NAME_LENGTH = 52
"""Leaves room for the suffixes of child objects within a label's 63 characters."""


class ServiceType(StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


class APIKeySecretRef(ApiModel):
    name: Annotated[Text, object_name("service.apiKeySecretRef.name", "Secret")] = Field(
        description="Name of the Secret, in the namespace of the service. Default: none, required."
    )
    key: Annotated[Text, data_key("service.apiKeySecretRef.key")] = Field(
        default="api-keys",
        description="Key in the Secret; its value holds one API key on each line, and # begins a comment line.",
    )


class ServiceSpec(ApiModel):
    """In place, but for the reference to the API keys."""

    type: ServiceType = Field(
        default=ServiceType.CLUSTER_IP, description="Type of the Service: ClusterIP, NodePort or LoadBalancer."
    )
    port: Annotated[int, between("service.port", 1, 65535, "it is the port of the Service")] = Field(
        default=API_PORT, description="Port of the Service, where the OpenAI API answers."
    )
    api_key_secret_ref: APIKeySecretRef | None = Field(
        default=None,
        description="API keys of which each request must bear one (Authorization: Bearer KEY). What the Secret holds "
        "may change at any time; to set, change or remove the reference rolls the pods. Default: no key is asked for.",
    )


class MonitoringSpec(ApiModel):
    """In place."""

    pod_monitor: bool = Field(
        default=False,
        description="Create a PodMonitor for engine and agent, where the cluster knows monitoring.coreos.com/v1.",
    )


class UpgradePolicy(StrEnum):
    ON_SPEC_CHANGE = "OnSpecChange"
    AUTO = "Auto"


class PodTemplateMeta(ApiModel):
    labels: dict[str, str] = Field(default={}, description="Labels added to the pods.")
    annotations: dict[str, str] = Field(default={}, description="Annotations added to the pods.")


class PodTemplate(ApiModel):
    """Rolls."""

    metadata: PodTemplateMeta = Field(default=PodTemplateMeta(), description="Metadata merged into the pods'.")
    spec: Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})] = Field(
        default={},
        description="A pod specification merged over the rendered one: maps deeply; containers, volumes and "
        "environment variables by name, mounts by path. The containers are named `engine` and `model`.",
    )


def _start_within(share: str, low: str, high: str, names: tuple[str, str, str]) -> Rule:
    def holds(spec: SemiPDServiceSpec) -> bool:
        value = getattr(spec.partition, names[0])
        if value is None or spec.mode is not Mode.AUTO:
            return True
        return bool(getattr(spec.partition, names[1]) <= value <= getattr(spec.partition, names[2]))

    auto = "has(self.partition.mode) ? self.partition.mode == 'Auto' : has(self.slo)"
    inside = f"self.partition.{low} <= self.partition.{share} && self.partition.{share} <= self.partition.{high}"
    return Rule(
        cel=f"!has(self.partition.{share}) || !({auto}) || ({inside})",
        holds=holds,
        message=f"partition.{share} lies outside {low} and {high}: move the start of Auto inside its bounds",
        field=f".partition.{share}",
    )


def _no_boolean(value: Any) -> Any:
    if isinstance(value, bool):
        said = "On" if value else "Off"
        message = f'YAML reads {said} as {str(value).lower()}: write "{said}"'
        raise PydanticCustomError(RULE_ERROR, "{message}", {"message": message, "field": ""})
    return value


class SemiPDServiceSpec(ApiModel):
    RULES: ClassVar = (
        Rule(
            cel="!has(self.partition.mode) || self.partition.mode != 'Auto' || has(self.slo)",
            holds=lambda spec: spec.partition.mode is not Mode.AUTO or spec.slo is not None,
            message="partition.mode Auto needs an slo to follow: set spec.slo, or partition.mode Manual",
            field=".partition.mode",
        ),
        Rule(
            cel="!has(self.autoscaling) || has(self.slo)",
            holds=lambda spec: spec.autoscaling is None or spec.slo is not None,
            message="autoscaling needs an slo to follow: set spec.slo, or remove autoscaling and set replicas",
            field=".autoscaling",
        ),
        Rule(
            cel="!has(self.admission) || self.admission == 'Off' || has(self.slo)",
            holds=lambda spec: spec.admission in (None, Admission.OFF) or spec.slo is not None,
            message="admission needs an slo to follow: set spec.slo, or admission Off",
            field=".admission",
        ),
        _start_within(
            "prefillPercent",
            "minPrefillPercent",
            "maxPrefillPercent",
            ("prefill_percent", "min_prefill_percent", "max_prefill_percent"),
        ),
        _start_within(
            "decodePercent",
            "minDecodePercent",
            "maxDecodePercent",
            ("decode_percent", "min_decode_percent", "max_decode_percent"),
        ),
    )

    model: ModelSpec = Field(description="The model to serve. A change rolls the pods. Default: none, required.")
    engine: EngineSpec = Field(default=EngineSpec(), description="How the engine runs. A change rolls the pods.")
    slo: SLOSpec | None = Field(default=None, description="Latency targets. Changes in place. Default: no targets.")
    partition: PartitionSpec = Field(
        default=PartitionSpec(), description="How prefill and decode share the device. Changes in place."
    )
    # Without a default of the schema, as partition.mixedBatches.
    admission: Annotated[Admission | None, BeforeValidator(_no_boolean)] = Field(
        default=None,
        description="Refuse requests (429 with Retry-After) for the SLO's sake: On (who would have its first token "
        "later than the TTFT target; and, after 10 s in which tokens take longer than the TPOT target, who would slow "
        "the others down), Auto (the same, only while no split in reach serves all that is asked for) or Off (nobody). "
        "Changes in place; quote On and Off, which YAML reads as true and false. Default: Off.",
    )
    replicas: Annotated[int, at_least("replicas", 0, "0 stops serving, 1 is one pod")] = Field(
        default=1,
        description="Number of pods, each with a device of its own. Changes in place; `kubectl scale` too. With "
        "autoscaling leave it out: the autoscaler writes it.",
    )
    autoscaling: AutoscalingSpec | None = Field(
        default=None,
        description="Let the number of pods follow how full they are. Changes in place. Default: replicas is fixed.",
    )
    service: ServiceSpec = Field(
        default=ServiceSpec(), description="The Service in front of the pods. Changes in place."
    )
    monitoring: MonitoringSpec = Field(default=MonitoringSpec(), description="Prometheus objects. Changes in place.")
    paused: bool = Field(
        default=False,
        description="Stop changing objects and pushing configuration; the pods serve on and status is still written.",
    )
    upgrade_policy: UpgradePolicy = Field(
        default=UpgradePolicy.ON_SPEC_CHANGE,
        description="When a new operator version may roll the pods: OnSpecChange (with the next change that rolls "
        "them anyway) or Auto (at once).",
    )
    pod_template: PodTemplate = Field(
        default=PodTemplate(), description="Overrides of the rendered pods. A change rolls the pods."
    )

    @property
    def mode(self) -> Mode:
        """The mode in force: as given, else Auto with an slo and Manual without."""
        return self.partition.mode or (Mode.AUTO if self.slo else Mode.MANUAL)

    @property
    def split(self) -> Split:
        """The fixed split (Manual) or the start (Auto), in percent."""
        given = {
            "prefill_percent": self.partition.prefill_percent,
            "decode_percent": self.partition.decode_percent,
        }
        return Split(**{name: value for name, value in given.items() if value is not None})
