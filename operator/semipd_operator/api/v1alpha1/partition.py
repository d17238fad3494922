"""spec.slo and spec.partition: what the split should achieve, and within what. Both change in place."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from semipd_agent.contract import SLO as AgentSLO
from semipd_agent.contract import Bounds, Mode, Split
from semipd_operator.api.rules import ApiModel, Rule, between, not_above

_LONGEST_TARGET_MS = 3_600_000


def _percent(field: str) -> Rule:
    return between(field, 1, 100, "it is a percentage of the device, 100 means no limit")


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
            limits=(("minimum", 50), ("maximum", 99), ("format", "int32")),
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
    policy: Literal["ModelPredictive", "Algorithm1"] = Field(
        default="ModelPredictive",
        description="How Auto chooses: ModelPredictive (the split under which the most requests would meet both "
        "targets, by a model that is learned as it serves) or Algorithm1 (the window-based rule of the semi-PD paper).",
    )
    prefill_percent: Annotated[int, _percent("partition.prefillPercent")] | None = Field(
        default=None,
        description="Prefill's share of the device while both phases are busy, in percent: fixed in Manual, the "
        "start in Auto. A GPU has it in rungs (10, 20, 30, 40, 50, 60, 80, 100): the nearest counts. "
        f"Default: {Split().prefill_percent}.",
    )
    decode_percent: Annotated[int, _percent("partition.decodePercent")] | None = Field(
        default=None,
        description="Decode's share of the device while both phases are busy, in percent: fixed in Manual, the "
        f"start in Auto. A GPU has it in the same rungs. Default: {Split().decode_percent}.",
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
    # Without a default of the schema: an API server would write it into every service, and an operator of 0.1.0, which
    # does not know the field, would name it in each SpecAccepted.
    mixed_batches: bool | None = Field(
        default=None,
        description="ModelPredictive may also choose to have no isolation: prompts are computed in the steps that "
        "decode, on the whole device (chunked prefill), where more requests are expected to meet both targets so. On a "
        "CPU, and where no share is bounded below 100. Default: false.",
    )
