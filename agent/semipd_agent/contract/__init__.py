"""What the agent promises to its callers: the control API on :9400 and the mounted configuration.

The operator imports this package and nothing else of the agent. It knows no torch, no HTTP framework, no Kubernetes.

``GET /v1/status``  -> `StatusReport`
``PUT /v1/config``  <- `AgentConfig`, -> `StatusReport`; idempotent by `generation`: an older one is refused (409), and
                       so is one of the same generation with other content; another `uid` counts anew
``GET /health``     -> `Health` (open: carries the pod's uid, so that a caller can tell a recycled pod IP before it
                       shows its token)
``GET /ready``      -> 200 or 503; ``GET /metrics`` Prometheus (both open)

Peers may be a version apart, in either direction. What a report says in words that this version does not know (another
state, reason, mode ...) is kept as a plain string, so that it can be shown. A configuration is obeyed as far as it is
understood: an unknown mode or policy counts as the default, and the report says what is in force.

`/v1/*` demands ``Authorization: Bearer <token>``; the pod knows only the SHA-256 of the accepted tokens, from the
mounted `AgentFile`. Field names on the wire are camelCase.
"""

from semipd_agent.contract.config import (
    AGENT_PORT,
    API_PORT,
    CONFIG_FILE,
    CONFIG_MOUNT,
    REPORT_VERSION,
    SLO,
    Admission,
    AgentConfig,
    AgentFile,
    Bounds,
    Mode,
    Open,
    PartitionConfig,
    Percent,
    Policy,
    Split,
    Wire,
    apart,
    service_token,
    token_digest,
)
from semipd_agent.contract.report import (
    Decision,
    DecisionOutcome,
    DecisionReason,
    Enforcement,
    EnginePhase,
    EngineStatus,
    Fault,
    Health,
    Identity,
    MetricWindow,
    PartitionReason,
    PartitionReport,
    PartitionState,
    Prediction,
    SLOReport,
    StatusReport,
    StepProfileReport,
    WorkerStatus,
)

__all__ = [
    "AGENT_PORT",
    "API_PORT",
    "CONFIG_FILE",
    "CONFIG_MOUNT",
    "REPORT_VERSION",
    "SLO",
    "Admission",
    "AgentConfig",
    "AgentFile",
    "Bounds",
    "Decision",
    "DecisionOutcome",
    "DecisionReason",
    "Enforcement",
    "EnginePhase",
    "EngineStatus",
    "Fault",
    "Health",
    "Identity",
    "MetricWindow",
    "Mode",
    "Open",
    "PartitionConfig",
    "PartitionReason",
    "PartitionReport",
    "PartitionState",
    "Percent",
    "Policy",
    "Prediction",
    "SLOReport",
    "Split",
    "StatusReport",
    "StepProfileReport",
    "Wire",
    "WorkerStatus",
    "apart",
    "service_token",
    "token_digest",
]
