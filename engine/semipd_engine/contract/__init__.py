"""What the engine promises to its callers: launch options and the control protocol of the core.

The agent imports this package and nothing else of the engine. It knows no torch, no HTTP and no Kubernetes.

Control protocol: the core listens on the Unix stream socket ``<run_dir>/control.sock`` (mode 0600). Each request is one
line of JSON (`ControlRequest`), each answer one line of JSON (`ControlReply`); a connection may carry any number of
them, in order. All times are seconds of CLOCK_MONOTONIC, which all processes of one machine share.
"""

from semipd_engine.contract.control import (
    CONTRACT_VERSION,
    CONTROL_REPLY,
    CONTROL_REQUEST,
    CONTROL_SOCKET,
    END_API,
    Ack,
    BlockCounts,
    ControlError,
    ControlReply,
    ControlRequest,
    Drain,
    EngineSnapshot,
    EngineState,
    GetSnapshot,
    ModelInfo,
    Promised,
    Refusal,
    SetPartition,
    WorkerReport,
    WorkerState,
)
from semipd_engine.contract.observation import (
    Arrival,
    FinishedRequest,
    Observation,
    QueuedRequest,
    RunningRequest,
    StepTimes,
)
from semipd_engine.contract.options import (
    Device,
    DType,
    EngineOptions,
    LoadFormat,
    ReasoningParser,
    ToolParser,
    api_keys,
    no_api_key,
)
from semipd_engine.contract.partition import (
    Enforcement,
    Frozen,
    PacingMode,
    PartitionPlan,
    Percent,
    Phase,
    PhaseLimit,
    Split,
)

__all__ = [
    "CONTRACT_VERSION",
    "CONTROL_REPLY",
    "CONTROL_REQUEST",
    "CONTROL_SOCKET",
    "END_API",
    "Ack",
    "Arrival",
    "BlockCounts",
    "ControlError",
    "ControlReply",
    "ControlRequest",
    "DType",
    "Device",
    "Drain",
    "Enforcement",
    "EngineOptions",
    "EngineSnapshot",
    "EngineState",
    "FinishedRequest",
    "Frozen",
    "GetSnapshot",
    "LoadFormat",
    "ModelInfo",
    "Observation",
    "PacingMode",
    "PartitionPlan",
    "Percent",
    "Phase",
    "PhaseLimit",
    "Promised",
    "QueuedRequest",
    "ReasoningParser",
    "Refusal",
    "RunningRequest",
    "SetPartition",
    "Split",
    "StepTimes",
    "ToolParser",
    "WorkerReport",
    "WorkerState",
    "api_keys",
    "no_api_key",
]
