"""What the agent promises to its callers: the control API on :9400 and the mounted configuration.

The operator imports this module and nothing else of the agent. It knows no torch, no HTTP framework, no Kubernetes.

``GET /v1/status``  -> `StatusReport`
``PUT /v1/config``  <- `AgentConfig`, -> `StatusReport`; idempotent by `generation`: an older one is refused (409), and
                       so is one of the same generation with other content
``GET /health``     -> `Health` (open: carries the pod's uid, so that a caller can tell a recycled pod IP before it
                       shows its token)
``GET /ready``      -> 200 or 503; ``GET /metrics`` Prometheus (both open)

Peers may be a version apart, in either direction. What a report says in words that this version does not know (another
state, reason, mode ...) is kept as a plain string, so that it can be shown. A configuration is obeyed as far as it is
understood: an unknown mode or policy counts as the default, and the report says what is in force.

`/v1/*` demands ``Authorization: Bearer <token>``; the pod knows only the SHA-256 of the accepted tokens, from the
mounted `AgentFile`. Field names on the wire are camelCase.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
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


class Split(Wire):
    """Shares in percent of the device; the sum may exceed 100."""

    prefill_percent: Percent = 100
    decode_percent: Percent = 100

    def __str__(self) -> str:
        return f"{self.prefill_percent}/{self.decode_percent}"


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
    slo: SLO | None = None
    partition: PartitionConfig = PartitionConfig()


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


class Enforcement(StrEnum):
    """What stands behind the split. Shown in the custom resource: a CPU run can never pass for SM partitioning."""

    SPATIAL_CAP = "spatial-cap"
    PACED = "paced"
    NONE = "none"


class PartitionState(StrEnum):
    APPLIED = "Applied"
    ADJUSTING = "Adjusting"
    FAILED = "Failed"
    UNKNOWN = "Unknown"


class PartitionReason(StrEnum):
    """Why `PartitionState` is not Applied. The operator shows it as the reason of PartitionApplied."""

    APPLIED = "Applied"
    DISABLED = "Disabled"
    ADJUSTING = "Adjusting"
    ENGINE_NOT_READY = "EngineNotReady"
    WORKER_NOT_RESPONDING = "WorkerNotResponding"
    READBACK_MISMATCH = "ReadbackMismatch"
    PREPARATION_FAILED = "PreparationFailed"
    NO_CPUS = "NoCPUs"
    # Refusals of the MPS preflight, in the order of its checks.
    NO_GPU = "NoGPU"
    MPS_UNAVAILABLE = "MPSUnavailable"
    USER_MISMATCH = "UserMismatch"
    MIG_ENABLED = "MIGEnabled"
    COMPUTE_MODE_UNSUPPORTED = "ComputeModeUnsupported"
    FOREIGN_MPS = "ForeignMPS"
    MPS_DIRECTORY_UNUSABLE = "MPSDirectoryUnusable"
    # MPS does not start, or went wrong while serving.
    MPS_START_FAILED = "MPSStartFailed"
    MPS_NOT_ENFORCING = "MPSNotEnforcing"
    MPS_DAEMON_DIED = "MPSDaemonDied"
    MPS_NOT_RESPONDING = "MPSNotResponding"
    MPS_SERVER_FAULT = "MPSServerFault"
    WORKER_OUTSIDE_MPS = "WorkerOutsideMPS"
    GPU_UNHEALTHY = "GPUUnhealthy"


class PartitionReport(Wire):
    mode: Open[Mode]
    policy: Open[Policy] | None = None
    """Present in Auto only."""
    backend: str
    """mps, cpu-paced or none."""
    enforcement: Open[Enforcement]
    requested: Split
    quantized: Split
    applied: Split | None = None
    """Read back from the workers, never echoed; absent while they disagree with each other or do not respond."""
    split_epoch: int = 0
    state: Open[PartitionState]
    reason: Open[PartitionReason]
    message: str = ""
    changes: int = 0
    last_change_time: AwareDatetime | None = None


class EnginePhase(StrEnum):
    STARTING = "Starting"
    LOADING = "Loading"
    READY = "Ready"
    DEGRADED = "Degraded"
    DRAINING = "Draining"
    FAILED = "Failed"


class WorkerStatus(Wire):
    phase: str
    pid: int
    state: str
    generation: int
    busy: bool = False
    heartbeat_age_seconds: float = 0.0
    cpu_seconds: float = 0.0
    sm_count: int | None = None


class EngineStatus(Wire):
    state: Open[EnginePhase]
    ready: bool
    reason: str = ""
    """CamelCase; for `ModelReady`: LoadFailed, OutOfMemory, NotFound, CrashLoop ..."""
    message: str = ""
    model_name: str = ""
    architecture: str = ""
    device: str = ""
    dtype: str = ""
    kernels: str = ""
    """What computes: `reference` (plain torch), or the level of the compiled kernels, as `avx512_bf16`."""
    weight_bytes: int = 0
    load_progress_percent: int | None = None
    restarts: dict[str, int] = {}
    waiting: int = 0
    running: int = 0
    kv_used_percent: float = 0.0
    workers: tuple[WorkerStatus, ...] = ()


class MetricWindow(Wire):
    """One latency metric over the window, at the SLO's percentile."""

    target_milliseconds: int
    observed_milliseconds: float | None = None
    """None: too few samples."""
    attainment_percent: float | None = None
    """Share of the requests at or below the target."""
    samples: int = 0


class SLOReport(Wire):
    percentile: int
    window_seconds: int
    ttft: MetricWindow | None = None
    tpot: MetricWindow | None = None
    attained: bool | None = None
    """None: unknown (too few samples or stale telemetry); `reason` says which."""
    reason: str = ""
    feasible: bool | None = None
    feasible_reason: str = ""
    attainment_percent: float | None = None
    """Requests of the window that met both targets; those that suffer now, were refused or gave up are misses."""
    feasible_message: str = ""
    utilization_ratio: float | None = None
    """How full the pod is: 0 idle, 1 the largest load that some split in reach serves within the targets. None:
    unknown, or an agent that does not tell."""


class DecisionReason(StrEnum):
    TTFT_ABOVE_TARGET = "TTFTAboveTarget"
    TPOT_ABOVE_TARGET = "TPOTAboveTarget"
    HEADROOM_RECLAIMED = "HeadroomReclaimed"
    MANUAL_CHANGE = "ManualChange"
    BOUND_REACHED = "BoundReached"
    ROLLBACK = "Rollback"
    BETTER_SPLIT_PREDICTED = "BetterSplitPredicted"
    REGRET = "Regret"


class DecisionOutcome(StrEnum):
    PENDING = "Pending"
    APPLIED = "Applied"
    FAILED = "Failed"
    SUPERSEDED = "Superseded"


class Prediction(Wire):
    """What a policy expects of a split, over the requests that it foresees."""

    attainment_percent: float
    """Requests that meet both targets."""
    ttft_milliseconds: float | None = None
    """At the SLO's percentile."""
    tpot_milliseconds: float | None = None


class Decision(Wire):
    """One change of the split: what moved, why, on which evidence."""

    time: AwareDatetime
    from_split: Split = Field(alias="from")
    to: Split
    reason: Open[DecisionReason]
    metric: str | None = None
    """ttft or tpot."""
    observed_milliseconds: float | None = None
    target_milliseconds: float | None = None
    outcome: Open[DecisionOutcome] = DecisionOutcome.PENDING
    message: str = ""
    predicted: Prediction | None = None


class Identity(Wire):
    """Who speaks. From the downward API in a pod; empty under `semipd run`."""

    namespace: str = ""
    service: str = ""
    pod: str = ""
    pod_uid: str = ""
    node: str = ""


class Fault(Wire):
    """A defect of the agent itself. What failed goes on; the split holds meanwhile."""

    part: str
    """policy, partitioner, supervisor ..."""
    message: str
    since: AwareDatetime
    count: int = 1


class StatusReport(Wire):
    version: int = REPORT_VERSION
    identity: Identity = Identity()
    observed_at: AwareDatetime
    agent_version: str = ""
    config_generation: int = 0
    partition: PartitionReport
    engine: EngineStatus
    slo: SLOReport | None = None
    decisions: tuple[Decision, ...] = ()
    """Newest first, at most 20."""
    faults: tuple[Fault, ...] = ()
    """Defects of the last five minutes."""


class Health(Wire):
    status: str = "ok"
    pod_uid: str = ""
    version: int = REPORT_VERSION
    observed_at: datetime | None = None
