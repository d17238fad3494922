"""Whether the split is in force, and why nothing can enforce it."""

from __future__ import annotations

from semipd_operator.reasons.reason import Reason


class SplitReason(Reason):
    """Of PartitionApplied."""

    APPLIED = (
        "Applied",
        "True",
        "Requested and applied split agree in every ready pod.",
    )
    DISABLED = (
        "Disabled",
        "True",
        "partition.mode is Disabled: there are no limits.",
    )
    ADJUSTING = (
        "Adjusting",
        "True, False",
        "A split is moving; False once it takes longer than 30 s, or in Manual.",
    )
    APPLYING = (
        "Applying",
        "False",
        "A pod does not have this generation's configuration yet.",
    )
    NO_READY_PODS = (
        "NoReadyPods",
        "Unknown",
        "No pod is ready, or one that is was there before the service and was not heard yet: a deleted service of the "
        "same name left it.",
    )
    AGENT_UNREACHABLE = (
        "AgentUnreachable",
        "False",
        "A ready pod's agent does not answer the operator.",
        "Allow the operator to reach port 9400 of the pods (NetworkPolicy); where the connection is refused, the agent "
        "has not started (a busy node, another command or image): kubectl logs POD -c engine. Where it refuses the "
        "operator's token, that is over within two minutes, else: kubectl delete pod POD.",
    )
    REPORT_STALE = (
        "ReportStale",
        "False",
        "A pod's last report is too old.",
        "kubectl logs POD -c engine",
    )
    ENGINE_NOT_READY = (
        "EngineNotReady",
        "False",
        "The engine starts or is being replaced.",
    )
    WORKER_NOT_RESPONDING = (
        "WorkerNotResponding",
        "False",
        "A worker does not confirm the split.",
        "kubectl logs POD -c engine",
    )
    READBACK_MISMATCH = (
        "ReadbackMismatch",
        "False",
        "A worker runs under another limit than asked.",
        "kubectl logs POD -c engine",
    )
    GPU_SHARED = (
        "GPUShared",
        "False",
        "The node's device plugin gives the GPU to several pods (nvidia.com/gpu.sharing-strategy), whose work "
        "takes turns with this pod's: no split holds.",
        "Use nodes that do not share GPUs (nodeSelector nvidia.com/gpu.sharing-strategy: none), or set "
        "partition.mode Disabled.",
    )
    PREPARATION_FAILED = (
        "PreparationFailed",
        "False",
        "Workers under the new limit could not be made ready; the split before it serves on.",
        "Auto goes back by itself, within its bounds; a configured split is tried again every minute, or ask for "
        "another one.",
    )


class NoStart(Reason):
    """Why a pod's engine is not started, or may not serve: of PartitionApplied, and of ModelReady before a load."""

    NO_CPUS = (
        "NoCPUs",
        "False",
        "The affinity mask grants the pod no CPU.",
        "Widen the cpuset.",
    )
    NO_GPU = (
        "NoGPU",
        "False",
        "engine.device is cuda, and no NVIDIA GPU is visible in the pod.",
        "Ask for nvidia.com/gpu in spec.engine.resources, or set engine.device cpu.",
    )
    MPS_UNAVAILABLE = (
        "MPSUnavailable",
        "False",
        "The programs of NVIDIA MPS, which enforces the split, are not in the container.",
        "Check the node's NVIDIA container toolkit (capabilities compute,utility), or set partition.mode Disabled.",
    )
    USER_MISMATCH = (
        "UserMismatch",
        "False",
        "The agent runs under several user ids; MPS serves the clients of one.",
        "Start the agent as one user.",
    )
    MIG_ENABLED = (
        "MIGEnabled",
        "False",
        "The GPU is in MIG mode.",
        "Use a node whose GPU is whole, or set partition.mode Disabled.",
    )
    COMPUTE_MODE_UNSUPPORTED = (
        "ComputeModeUnsupported",
        "False",
        "The GPU's compute mode is not Default, so the process that holds the weights is refused.",
        "Have an administrator set it: nvidia-smi -c DEFAULT",
    )
    FOREIGN_MPS = (
        "ForeignMPS",
        "False",
        "Another MPS daemon is in charge of the GPU.",
        "Use nodes whose device plugin does not share GPUs (nvidia.com/gpu.sharing-strategy none).",
    )
    MPS_DIRECTORY_UNUSABLE = (
        "MPSDirectoryUnusable",
        "False",
        "The directory for the MPS daemon is not writable, too long, or not local.",
        "Leave the volume at /run/spd as it is rendered; elsewhere use semipd-agent --mps-dir.",
    )
    MPS_START_FAILED = (
        "MPSStartFailed",
        "False",
        "The MPS daemon, its server or a first client did not start; it is tried again.",
        "The daemon's own words say why; `semipd doctor --trial` shows the same on the node.",
    )
    MPS_NOT_ENFORCING = (
        "MPSNotEnforcing",
        "False",
        "MPS runs, and its percentages have no effect on what a client sees.",
        "Look for another limit on this GPU, or for a driver without MPS (gVisor, WSL).",
    )
    GPU_UNHEALTHY = (
        "GPUUnhealthy",
        "False",
        "The driver reported a hardware error, or MPS was lost again and again.",
        "Delete the pod; check the node's GPU (dmesg, nvidia-smi) before it gets work again.",
    )


class MPSLost(Reason):
    """What may happen to MPS while it serves."""

    MPS_DAEMON_DIED = (
        "MPSDaemonDied",
        "False",
        "The MPS control daemon ended. Its server serves on; a new daemon and new workers take over.",
        "It mends itself; if it happens again: kubectl logs POD -c engine",
    )
    MPS_NOT_RESPONDING = (
        "MPSNotResponding",
        "False",
        "The MPS control daemon does not answer; it and its server are replaced.",
        "It mends itself; if it happens again: the pod's log and the driver's (dmesg).",
    )
    MPS_SERVER_FAULT = (
        "MPSServerFault",
        "False",
        "A fatal GPU error or the end of the MPS server took all workers; all of it is replaced.",
        "It mends itself; if it happens again: semipd_gpu_xid_errors_total and dmesg name the error.",
    )
    WORKER_OUTSIDE_MPS = (
        "WorkerOutsideMPS",
        "False",
        "A worker runs without MPS, and so with the whole GPU.",
        "See the pod's log; delete the pod if it stays.",
    )
