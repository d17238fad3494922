"""What the operator shows: the status of a SemiPDService. It knows neither where the values come from nor when they
are written (`semipd_operator.status`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field

from semipd_agent.contract import Split
from semipd_operator.api.rules import ApiModel

MAX_PODS = 64
MAX_DECISIONS = 10

ConditionStatus = Literal["True", "False", "Unknown"]


class StatusModel(ApiModel):
    """Words and fields of another version are no error: a status is read to be written anew."""

    model_config = ConfigDict(extra="ignore")


class Condition(StatusModel):
    """metav1.Condition."""

    type: str = Field(max_length=64, description="Name of the condition, e.g. Ready.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    reason: str = Field(max_length=128, description="Why, one CamelCase word; docs/conditions.md lists them.")
    message: str = Field(max_length=4096, description="Why, for people.")
    last_transition_time: AwareDatetime = Field(description="When status last changed.")
    observed_generation: int = Field(default=0, description="metadata.generation that the condition is about.")


class Shares(StatusModel):
    prefill_percent: int = Field(description="Prefill's share, percent of the device.")
    decode_percent: int = Field(description="Decode's share, percent of the device.")
    mixed_tokens: int | None = Field(
        default=None,
        description="Present where there is no isolation: most tokens of a step in which prompts and answers are "
        "computed together.",
    )

    def __str__(self) -> str:
        return f"mixed/{self.mixed_tokens}" if self.mixed_tokens else f"{self.prefill_percent}/{self.decode_percent}"

    @classmethod
    def of(cls, split: Split) -> Shares:
        return cls(
            prefill_percent=split.prefill_percent,
            decode_percent=split.decode_percent,
            mixed_tokens=split.mixed_tokens or None,
        )


class ModelFailure(StatusModel):
    pod: str = Field(description="Pod that failed.")
    reason: str = Field(description="CamelCase reason, as in ModelReady.")
    message: str = Field(default="", description="What it said.")
    exit_code: int | None = Field(default=None, description="Exit status of the init container `model`, if it ended.")


class ModelStatus(StatusModel):
    uri: str = Field(description="spec.model.uri in force.")
    revision: str = Field(default="", description="Branch, tag or commit of a hf:// model in force.")
    resolved_revision: str = Field(
        default="", description="Commit that the revision stood for when the first pod came; all pods run from it."
    )
    served_name: str = Field(description="Name of the model in the API.")
    state: str = Field(
        description="The least advanced state of the pods: Pending, Downloading, Loading, Loaded or Failed."
    )
    load_progress_percent: int | None = Field(default=None, description="Least progress of loading, percent.")
    architecture: str = Field(default="", description="Architecture that the engine loaded.")
    dtype: str = Field(default="", description="Number format that the engine runs.")
    device: str = Field(default="", description="Device that the engine runs on.")
    last_failure: ModelFailure | None = Field(default=None, description="The failure in force, if any.")


class PodPartition(StatusModel):
    name: str = Field(description="Pod.")
    node: str = Field(default="", description="Node of the pod.")
    requested: Shares | None = Field(default=None, description="What the pod's agent asks for.")
    quantized: Shares | None = Field(default=None, description="What the device can do of it.")
    applied: Shares | None = Field(default=None, description="What the workers executed, read back from them.")
    enforcement: str | None = Field(
        default=None, description="What stands behind the split in this pod: spatial-cap, paced or none."
    )
    state: str = Field(description="Applied, Adjusting, Failed or Unknown.")
    message: str = Field(default="", description="Why the state is not Applied, or what has no effect.")


class DecisionStatus(StatusModel):
    """One change of a pod's split."""

    time: AwareDatetime = Field(description="When the pod decided.")
    pod: str = Field(description="Pod that decided.")
    from_split: Shares = Field(alias="from", description="Split before.")
    to: Shares = Field(description="Split after.")
    reason: str = Field(description="Why, one CamelCase word; docs/conditions.md lists them.")
    metric: str | None = Field(default=None, description="Metric that caused it: ttft or tpot.")
    observed_milliseconds: float | None = Field(default=None, description="What was observed, milliseconds.")
    target_milliseconds: float | None = Field(default=None, description="What was wanted, milliseconds.")
    outcome: str = Field(description="Pending, Applied, Failed or Superseded.")
    message: str = Field(default="", description="What was expected of it, and what came of it; or why it failed.")


class PartitionStatus(StatusModel):
    mode: str = Field(description="Mode in force: Auto, Manual or Disabled.")
    policy: str | None = Field(default=None, description="Policy in force; in Auto only.")
    requested: Shares | None = Field(default=None, description="What all pods ask for; absent while they differ.")
    quantized: Shares | None = Field(default=None, description="What the devices can do of it; absent if they differ.")
    applied: Shares | None = Field(
        default=None, description="What the workers of all ready pods executed; absent while pods differ or are silent."
    )
    summary: str = Field(default="", description="The split for people, a range where pods differ; not stable.")
    enforcement: str | None = Field(
        default=None, description="What stands behind the split, the weakest of the pods: spatial-cap, paced or none."
    )
    enforced: str = Field(default="", description="The same for people: SM, paced or none; not stable.")
    converged_replicas: int = Field(default=0, description="Ready pods whose applied split is the requested one.")
    last_change_time: AwareDatetime | None = Field(default=None, description="When a split last changed.")
    pods: tuple[PodPartition, ...] = Field(
        default=(),
        max_length=MAX_PODS,
        description="Each pod's split, by name; the first 64.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    )
    decisions: tuple[DecisionStatus, ...] = Field(
        default=(),
        max_length=MAX_DECISIONS,
        description="The last changes of splits, newest first.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class MetricStatus(StatusModel):
    target_milliseconds: int = Field(description="Target, milliseconds.")
    observed_milliseconds: float | None = Field(
        default=None, description="The worst pod's latency at the SLO's percentile, milliseconds, two digits."
    )
    attainment_percent: int | None = Field(default=None, description="Requests within the target, percent.")
    summary: str = Field(default="", description="observed/target for people; not stable.")


class SLOStatus(StatusModel):
    percentile: int = Field(description="Percentile that is observed.")
    window_seconds: int = Field(description="Length of the window, seconds.")
    ttft: MetricStatus | None = Field(default=None, description="Time to the first token.")
    tpot: MetricStatus | None = Field(default=None, description="Time per output token after the first.")
    refused_percent: float | None = Field(
        default=None,
        description="Percent of the window's requests that were answered 429 (spec.admission, or a full queue), in the "
        "pod with the most; absent where nobody was.",
    )
    utilization_percent: int | None = Field(
        default=None,
        description="How full the ready pods are, their mean: at 100 a pod has all the load that some split serves "
        "within the targets.",
    )
    growth_percent: int | None = Field(
        default=None,
        description="By how much requests are expected to grow until a pod that is ordered now serves, by the trend of "
        "the last five minutes, in tens of percent; absent where no growth is expected.",
    )
    recommended_replicas: int | None = Field(
        default=None,
        description="Pods that the load asks for, with that growth, at spec.autoscaling.targetUtilizationPercent, else "
        "at 100.",
    )
    step_times: str | None = Field(
        default=None,
        description="What is predicted of splits that were not tried yet begins with: measured (semipd-engine profile) "
        "where every ready pod says so, else assumed.",
    )
    step_times_message: str = Field(
        default="", description="Why they are assumed, or measured elsewhere, and what helps; one pod's words."
    )


class SemiPDServiceStatus(StatusModel):
    observed_generation: int = Field(default=0, description="metadata.generation that was last acted on without error.")
    url: str = Field(default="", description="Where the OpenAI API answers, inside the cluster.")
    reason: str = Field(
        default="", description="Ready's reason with its object, e.g. Unschedulable(nvidia.com/gpu); not stable."
    )
    replicas: int = Field(default=0, description="Pods that exist.")
    ready_replicas: int = Field(default=0, description="Pods that are ready.")
    updated_replicas: int = Field(default=0, description="Pods of the current template.")
    selector: str = Field(default="", description="Label selector of the pods, as a string, for the scale subresource.")
    template_hash: str = Field(default="", description="Hash of the current pod template.")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="docs/conditions.md explains each.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    model: ModelStatus | None = Field(default=None, description="The model's way into the pods.")
    partition: PartitionStatus | None = Field(default=None, description="The split, as it is.")
    slo: SLOStatus | None = Field(default=None, description="Latencies against their targets; absent without an slo.")

    def condition(self, kind: str) -> Condition | None:
        return next((condition for condition in self.conditions if condition.type == kind), None)
