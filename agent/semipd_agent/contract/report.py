"""What an agent tells: the split and what stands behind it, the engine, the SLO, decisions, faults."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import AwareDatetime, Field

from semipd_agent.contract.config import REPORT_VERSION, AgentConfig, Mode, Open, Policy, Split, Wire, apart


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
    """mps, mps-green, cpu-paced or none: the one in force. `message` says so where another was asked for."""
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
    start_seconds: dict[str, float] = Field(default={})
    """What its start took, by part (`semipd_engine.contract.WorkerReport`)."""


class EngineStatus(Wire):
    state: Open[EnginePhase]
    ready: bool
    served: bool = False
    """It was ready once; stays true while it drains."""
    reason: str = ""
    """CamelCase; for `ModelReady`: LoadFailed, OutOfMemory, NotFound, CrashLoop ..."""
    message: str = ""
    model_name: str = ""
    architecture: str = ""
    device: str = ""
    dtype: str = ""
    kernels: str = ""
    """What computes: `reference` (plain torch), `triton`, or the level of the compiled kernels, as `avx512_bf16`."""
    kernels_shortfall: str = ""
    """Why something slower computes than the machine could run, and what helps; empty where nothing is amiss."""
    weight_bytes: int = 0
    load_progress_percent: int | None = None
    restarts: dict[str, int] = Field(default={})
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
    refused_percent: float | None = None
    """Of the window's requests, those that were answered 429; None: nobody, or an agent that does not tell."""
    feasible_message: str = ""
    utilization_ratio: float | None = None
    """How full the pod is: 0 idle, 1 the largest load that some split in reach serves within the targets. None:
    unknown, or an agent that does not tell."""
    utilization_rate: float | None = None
    """Requests a second that `utilization_ratio` speaks of: those of its window. None: as there."""
    arrivals: int | None = None
    """Requests that were asked for, refused ones included: a counter, which begins at 0 with the agent, or with another
    model. None: unknown, or an agent that does not tell."""


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
    realised_attainment_percent: float | None = None
    """Of the requests that came in the first minute after it was in force, or two where ten came no sooner; `predicted`
    says what was expected. Absent until then, and where fewer came, or other targets or another decision first."""


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


class StepProfileReport(Wire):
    """What the agent believed of step times before it saw any; it learns from each step since."""

    measured: bool = False
    """False: assumed, a documented prior; so are what is predicted of splits that were not tried yet."""
    source: str = ""
    """File of a measured one."""
    message: str = ""
    """Why it is assumed, or that a measured one is another processor's; and what helps."""


class StatusReport(Wire):
    version: int = REPORT_VERSION
    identity: Identity = Identity()
    observed_at: AwareDatetime
    agent_version: str = ""
    config_generation: int = 0
    config_uid: str = ""
    """Of the object whose generation it is; empty: nobody told, or an older agent."""
    partition: PartitionReport
    engine: EngineStatus
    slo: SLOReport | None = None
    step_profile: StepProfileReport = StepProfileReport()
    decisions: tuple[Decision, ...] = ()
    """Newest first, at most 20."""
    faults: tuple[Fault, ...] = ()
    """Defects of the last five minutes."""

    def lacks(self, config: AgentConfig) -> bool:
        """Whether the agent is yet to take it: of a newer generation, or of another object."""
        return self.config_generation < config.generation or apart(self.config_uid, config.uid)


class Health(Wire):
    status: str = "ok"
    pod_uid: str = ""
    version: int = REPORT_VERSION
    observed_at: datetime | None = None
