"""What the operator tells an agent: the mounted file, the configuration, the token."""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic.alias_generators import to_camel

REPORT_VERSION = 1
"""Raised on an incompatible change. The agent accepts configuration of its own version and the one before it."""

AGENT_PORT = 9400
API_PORT = 8000
CONFIG_MOUNT = "/etc/semipd"
CONFIG_FILE = "agent.json"
"""The mounted ConfigMap key that holds an `AgentFile`."""

Percent = Annotated[int, Field(ge=1, le=100)]


class Wire(BaseModel):
    """camelCase on the wire, unknown fields ignored (a newer peer may add some), immutable."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


E = TypeVar("E", bound=StrEnum)
Open = Annotated[E | str, Field(union_mode="left_to_right")]
"""A word of a report: a known one becomes the enum's member, any other stays a string."""


def _or_default(default: StrEnum) -> WrapValidator:
    """An unknown word of a newer peer counts as `default`."""

    def read(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            return handler(value)
        except ValidationError:
            if isinstance(value, str):
                return default
            raise

    return WrapValidator(read)


class Mode(StrEnum):
    AUTO = "Auto"
    MANUAL = "Manual"
    DISABLED = "Disabled"


class Policy(StrEnum):
    ALGORITHM1 = "Algorithm1"
    MODEL_PREDICTIVE = "ModelPredictive"


class Admission(StrEnum):
    """Are requests refused (429) for the targets of the SLO?"""

    OFF = "Off"
    """None is: the engine's own bound on the queue holds, and no other."""
    ON = "On"
    """Who would have its first token too late; and, after lasting pressure on TPOT, who would slow the others down."""
    AUTO = "Auto"
    """The same, only while no split in reach serves all that is asked for."""


class Split(Wire):
    """Shares in percent of the device; the sum may exceed 100."""

    prefill_percent: Percent = 100
    decode_percent: Percent = 100
    mixed_tokens: int = Field(default=0, ge=0, exclude_if=lambda tokens: tokens == 0)
    """Above 0: no isolation, prompts and answers are computed in the same steps of at most so many tokens."""

    def __str__(self) -> str:
        return f"mixed/{self.mixed_tokens}" if self.mixed_tokens else f"{self.prefill_percent}/{self.decode_percent}"


class Bounds(Wire):
    """Inclusive bounds of each share in percent, for Auto."""

    min_prefill_percent: Percent = 10
    max_prefill_percent: Percent = 100
    min_decode_percent: Percent = 10
    max_decode_percent: Percent = 100


class PartitionConfig(Wire):
    mode: Annotated[Mode, _or_default(Mode.MANUAL)] = Mode.MANUAL
    policy: Annotated[Policy, _or_default(Policy.MODEL_PREDICTIVE)] = Policy.MODEL_PREDICTIVE
    split: Split = Split()
    """The fixed split (Manual) or the one to start from (Auto)."""
    bounds: Bounds = Bounds()
    mixed_batches: bool = Field(default=False, exclude_if=lambda on: not on)
    """Auto may choose to have no isolation, too."""


class SLO(Wire):
    """Targets for one percentile of the requests that finished in the window."""

    ttft_milliseconds: int | None = Field(default=None, gt=0)
    tpot_milliseconds: int | None = Field(default=None, gt=0)
    percentile: int = Field(default=90, ge=1, le=99)
    window_seconds: int = Field(default=60, ge=5, le=3600)


class AgentConfig(Wire):
    """Everything about a service that may change without a restart."""

    version: int = REPORT_VERSION
    generation: int = Field(default=0, ge=0)
    """metadata.generation of the custom resource."""
    uid: str = Field(default="", exclude_if=lambda uid: not uid)
    """Its metadata.uid: one that is made anew under the same name counts generations anew. Empty: an older operator."""
    slo: SLO | None = None
    partition: PartitionConfig = PartitionConfig()
    admission: Annotated[Admission, _or_default(Admission.OFF)] = Field(
        default=Admission.OFF, exclude_if=lambda mode: mode == Admission.OFF
    )


def apart(uid: str, other: str) -> bool:
    """Whether these are two objects, as far as both are told."""
    return bool(uid and other) and uid != other


class AgentFile(Wire):
    """The mounted file: start configuration and the accepted tokens. Reread when it changes."""

    token_sha256: tuple[str, ...] = ()
    """Lower-case hex SHA-256 of each accepted token. Empty: no token is accepted."""
    config: AgentConfig = AgentConfig()


def service_token(key: bytes, namespace: str, name: str, uid: str) -> str:
    """Token of one service: hex HMAC-SHA256 of ``namespace/name/uid`` under the operator's key (RFC 2104)."""
    return hmac.new(key, f"{namespace}/{name}/{uid}".encode(), hashlib.sha256).hexdigest()


def token_digest(token: str) -> str:
    """What the pod may know of a token: its hex SHA-256."""
    return hashlib.sha256(token.encode()).hexdigest()
