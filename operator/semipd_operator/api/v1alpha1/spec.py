"""What a user writes: the specification of a SemiPDService, its defaults and its rules.

Every default and rule is declared here and nowhere else; `semipd_operator.crd` emits them as OpenAPI and CEL.
"Rolls" means that a change replaces the pods; everything else changes in place.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from semipd_agent.contract import API_PORT, Bounds, Mode, Split
from semipd_agent.contract import SLO as AgentSLO
from semipd_engine.contract import Device, DType, EngineOptions
from semipd_operator.api.quantity import QuantityValue, any_quantity, positive_quantity
from semipd_operator.api.rules import ApiModel, Rule, at_least, between, exactly_one, matches, not_above

MAX_NAME_LENGTH = 52
"""Leaves room for the suffixes of child objects within a label's 63 characters."""

Text = Annotated[str, Field(min_length=1, max_length=253)]
_LONGEST_TARGET_MS = 3_600_000


def _percent(field: str) -> Rule:
    return between(field, 1, 100, "it is a percentage of the device, 100 means no limit")


def _only_hf(field: str, python_name: str) -> Rule:
    return Rule(
        cel=f"!has(self.{field}) || self.uri.startsWith('hf://')",
        holds=lambda model: getattr(model, python_name) is None or model.uri.startswith("hf://"),
        message=f"model.{field} only applies to a hf:// uri: remove it or change model.uri",
        field=f".{field}",
    )


class SecretKeyRef(ApiModel):
    name: Text = Field(description="Name of the Secret, in the namespace of the service. Default: none, required.")
    key: Text = Field(default="token", description="Key in the Secret.")


class ClaimRef(ApiModel):
    claim_name: Text = Field(description="Name of a PersistentVolumeClaim in the namespace. Default: none, required.")


class EmptyDirCache(ApiModel):
    size_limit: Annotated[QuantityValue, positive_quantity("sizeLimit", "40Gi")] | None = Field(
        default=None, description="Most bytes of the directory. Default: no limit but the node's."
    )


class ModelCache(ApiModel):
    RULES: ClassVar = (exactly_one("persistentVolumeClaim", "emptyDir", of="model.cache"),)

    persistent_volume_claim: ClaimRef | None = Field(
        default=None, description="Keep downloads on this claim; they survive pods. Default: not used."
    )
    empty_dir: EmptyDirCache | None = Field(
        default=None, description="Keep downloads in the pod; each new pod downloads again. Default: used."
    )


class ModelSpec(ApiModel):
    """Rolls."""

    RULES: ClassVar = (
        _only_hf("revision", "revision"),
        _only_hf("tokenSecretRef", "token_secret_ref"),
        _only_hf("cache", "cache"),
    )

    uri: Annotated[
        str,
        Field(max_length=512),
        matches(
            "^(hf|pvc|file)://",
            "model.uri must start with hf://, pvc:// or file://: write it like hf://Qwen/Qwen3-8B, "
            "pvc://CLAIM/FOLDER or file:///models/qwen3",
        ),
        matches(
            r"^hf://[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$",
            "model.uri names no Hugging Face repository: write it like hf://Qwen/Qwen3-8B",
            unless="hf://",
        ),
        matches(
            r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[^/]+)*/?$",
            "model.uri names no claim: write it like pvc://CLAIM/FOLDER",
            unless="pvc://",
        ),
        matches(
            r"^file:///[^/]",
            "model.uri must hold an absolute path: write it like file:///models/qwen3",
            unless="file://",
        ),
    ] = Field(
        description="Where the weights are, a Hugging Face folder: hf://ORG/NAME (downloaded by the init container "
        "`model`), pvc://CLAIM/FOLDER (a mounted claim) or file:///PATH (inside the container; mount it with "
        "podTemplate). Default: none, required."
    )
    revision: Text | None = Field(
        default=None, description="Branch, tag or commit of a hf:// model. Default: the main branch."
    )
    served_name: (
        Annotated[
            str,
            Field(max_length=253),
            matches(
                r"^[A-Za-z0-9][A-Za-z0-9._/:-]*$",
                "model.servedName must be letters, digits and . _ / : -: write it like qwen3-8b",
            ),
        ]
        | None
    ) = Field(default=None, description="Name of the model in the API. Default: metadata.name.")
    token_secret_ref: SecretKeyRef | None = Field(
        default=None, description="Hugging Face token for a gated hf:// model. Default: no token."
    )
    cache: ModelCache | None = Field(
        default=None, description="Where downloads of a hf:// model are kept. Default: an emptyDir of the pod."
    )


ResourceList = dict[str, Annotated[QuantityValue, any_quantity("a resource amount")]]


class Resources(ApiModel):
    limits: ResourceList = Field(
        default={}, max_length=32, description="Most that the engine container may use, quantities by resource name."
    )
    requests: ResourceList = Field(
        default={}, max_length=32, description="What the scheduler reserves, quantities by resource name."
    )


class EngineSpec(ApiModel):
    """Rolls."""

    image: Text | None = Field(
        default=None, description="Image of agent and engine. Default: the operator's own choice (chart: engine.image)."
    )
    device: Device = Field(
        default=Device.AUTO,
        description="auto, cuda or cpu. auto is cuda where resources name nvidia.com/gpu, else cpu; cuda adds a limit "
        "of one nvidia.com/gpu where resources name none.",
    )
    dtype: DType = Field(
        default=DType.AUTO,
        description="Number format of weights and KV cache: auto (the checkpoint's; float32 on a CPU without "
        "bfloat16), float32 or bfloat16.",
    )
    kv_cache_memory: Annotated[QuantityValue, positive_quantity("engine.kvCacheMemory", "16Gi")] | None = Field(
        default=None, description="Bytes of the KV cache, a quantity. Default: a part of the device's free memory."
    )
    max_model_len: (
        Annotated[int, between("engine.maxModelLen", 1, 10_000_000, "it is the longest prompt plus output, in tokens")]
        | None
    ) = Field(default=None, description="Longest prompt plus output, in tokens. Default: the model's own.")
    max_num_seqs: Annotated[
        int, between("engine.maxNumSeqs", 1, 4096, "it is the most requests that decode at once")
    ] = Field(
        default=EngineOptions.model_fields["max_num_seqs"].default, description="Most requests that decode at once."
    )
    resources: Resources = Field(default=Resources(), description="Resources of the engine container.")


class SLOSpec(ApiModel):
    """In place."""

    RULES: ClassVar = (
        Rule(
            cel="has(self.ttftMilliseconds) || has(self.tpotMilliseconds)",
            holds=lambda slo: slo.ttft_milliseconds is not None or slo.tpot_milliseconds is not None,
            message="slo has no target: set slo.ttftMilliseconds, slo.tpotMilliseconds or both, or remove slo",
        ),
    )

    ttft_milliseconds: (
        Annotated[
            int, between("slo.ttftMilliseconds", 1, _LONGEST_TARGET_MS, "it is milliseconds; remove it for no target")
        ]
        | None
    ) = Field(default=None, description="Target of the time to the first token, in milliseconds. Default: no target.")
    tpot_milliseconds: (
        Annotated[
            int, between("slo.tpotMilliseconds", 1, _LONGEST_TARGET_MS, "it is milliseconds; remove it for no target")
        ]
        | None
    ) = Field(
        default=None,
        description="Target of the time per output token after the first, in milliseconds. Default: no target.",
    )
    percentile: Annotated[
        int,
        Rule(
            "self in [50, 90, 95, 99]",
            lambda value: value in (50, 90, 95, 99),
            "slo.percentile must be 50, 90, 95 or 99: 90 is the usual choice",
        ),
    ] = Field(
        default=AgentSLO.model_fields["percentile"].default,
        description="Percent of the requests that must meet the targets: 50, 90, 95 or 99.",
    )
    window_seconds: Annotated[int, between("slo.windowSeconds", 5, 3600, "it is the observed window, in seconds")] = (
        Field(
            default=AgentSLO.model_fields["window_seconds"].default,
            description="Length of the window over which the SLO is observed, in seconds.",
        )
    )


def _bound(name: str) -> int:
    value: int = Bounds.model_fields[name].default
    return value


class PartitionSpec(ApiModel):
    """In place. The shares may add up to more than 100: the phases then compete for the rest."""

    RULES: ClassVar = (
        not_above("minPrefillPercent", "maxPrefillPercent"),
        not_above("minDecodePercent", "maxDecodePercent"),
    )

    mode: Mode | None = Field(
        default=None,
        description="Auto (the split follows the SLO), Manual (the split given here) or Disabled (no limits). "
        "Default: Auto with an slo, else Manual.",
    )
    policy: Literal["Algorithm1"] = Field(
        default="Algorithm1", description="How Auto chooses: Algorithm1, the window-based rule of the semi-PD paper."
    )
    prefill_percent: Annotated[int, _percent("partition.prefillPercent")] | None = Field(
        default=None,
        description="Prefill's share of the device while both phases are busy, in percent: fixed in Manual, the "
        f"start in Auto. Default: {Split().prefill_percent}.",
    )
    decode_percent: Annotated[int, _percent("partition.decodePercent")] | None = Field(
        default=None,
        description="Decode's share of the device while both phases are busy, in percent: fixed in Manual, the "
        f"start in Auto. Default: {Split().decode_percent}.",
    )
    min_prefill_percent: Annotated[int, _percent("partition.minPrefillPercent")] = Field(
        default=_bound("min_prefill_percent"), description="Least share of prefill in Auto, in percent."
    )
    max_prefill_percent: Annotated[int, _percent("partition.maxPrefillPercent")] = Field(
        default=_bound("max_prefill_percent"), description="Most share of prefill in Auto, in percent."
    )
    min_decode_percent: Annotated[int, _percent("partition.minDecodePercent")] = Field(
        default=_bound("min_decode_percent"), description="Least share of decode in Auto, in percent."
    )
    max_decode_percent: Annotated[int, _percent("partition.maxDecodePercent")] = Field(
        default=_bound("max_decode_percent"), description="Most share of decode in Auto, in percent."
    )


class ServiceType(StrEnum):
    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"


class ServiceSpec(ApiModel):
    """In place."""

    type: ServiceType = Field(
        default=ServiceType.CLUSTER_IP, description="Type of the Service: ClusterIP, NodePort or LoadBalancer."
    )
    port: Annotated[int, between("service.port", 1, 65535, "it is the port of the Service")] = Field(
        default=API_PORT, description="Port of the Service, where the OpenAI API answers."
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


class SemiPDServiceSpec(ApiModel):
    RULES: ClassVar = (
        Rule(
            cel="!has(self.partition.mode) || self.partition.mode != 'Auto' || has(self.slo)",
            holds=lambda spec: spec.partition.mode is not Mode.AUTO or spec.slo is not None,
            message="partition.mode Auto needs an slo to follow: set spec.slo, or partition.mode Manual",
            field=".partition.mode",
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
    replicas: Annotated[int, at_least("replicas", 0, "0 stops serving, 1 is one pod")] = Field(
        default=1, description="Number of pods, each with a device of its own. Changes in place; `kubectl scale` too."
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
