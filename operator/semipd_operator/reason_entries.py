"""The reasons, and the entries that several conditions share. `reasons` joins them to the table of all conditions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    ACCEPTED = "Accepted"
    PAUSED = "Paused"
    INVALID_SPEC = "InvalidSpec"
    INVALID_POD_TEMPLATE = "InvalidPodTemplate"
    NAME_CONFLICT = "NameConflict"
    APPLY_FAILED = "ApplyFailed"

    LOADED = "Loaded"
    PENDING = "Pending"
    DOWNLOADING = "Downloading"
    LOADING = "Loading"
    LOAD_FAILED = "LoadFailed"
    DOWNLOAD_FAILED = "DownloadFailed"
    AUTH_REQUIRED = "AuthRequired"
    NOT_FOUND = "NotFound"
    NO_SPACE = "NoSpace"
    INVALID_URI = "InvalidURI"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    UNREACHABLE = "Unreachable"
    INCOMPLETE = "Incomplete"
    CACHE_NOT_WRITABLE = "CacheNotWritable"
    OUT_OF_MEMORY = "OutOfMemory"

    PODS_READY = "PodsReady"
    PODS_NOT_READY = "PodsNotReady"
    NO_PODS = "NoPods"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CREATE_CONTAINER_CONFIG_ERROR = "CreateContainerConfigError"
    CONTAINER_NOT_STARTED = "ContainerNotStarted"
    CRASH_LOOP = "CrashLoop"
    POD_FAILED = "PodFailed"
    EVICTED = "Evicted"
    READINESS_GATES_NOT_READY = "ReadinessGatesNotReady"
    QUOTA_EXCEEDED = "QuotaExceeded"
    LIMIT_RANGE_VIOLATED = "LimitRangeViolated"
    POD_SECURITY_VIOLATED = "PodSecurityViolated"
    RUNTIME_CLASS_MISSING = "RuntimeClassMissing"
    PRIORITY_CLASS_MISSING = "PriorityClassMissing"
    SERVICE_ACCOUNT_MISSING = "ServiceAccountMissing"
    ADMISSION_DENIED = "AdmissionDenied"
    ADMISSION_WEBHOOK_FAILED = "AdmissionWebhookFailed"
    POD_REFUSED = "PodRefused"
    CLAIM_MISSING = "ClaimMissing"
    CLAIM_LOST = "ClaimLost"
    CLAIM_UNBOUND = "ClaimUnbound"
    CLAIM_IN_USE = "ClaimInUse"
    VOLUME_NOT_MOUNTED = "VolumeNotMounted"
    NODE_NOT_READY = "NodeNotReady"
    API_NOT_RESPONDING = "APINotResponding"
    SCALED_TO_ZERO = "ScaledToZero"

    APPLIED = "Applied"
    DISABLED = "Disabled"
    APPLYING = "Applying"
    ADJUSTING = "Adjusting"
    NO_READY_PODS = "NoReadyPods"
    AGENT_UNREACHABLE = "AgentUnreachable"
    REPORT_STALE = "ReportStale"
    ENGINE_NOT_READY = "EngineNotReady"
    WORKER_NOT_RESPONDING = "WorkerNotResponding"
    READBACK_MISMATCH = "ReadbackMismatch"
    PREPARATION_FAILED = "PreparationFailed"
    NO_CPUS = "NoCPUs"
    NO_GPU = "NoGPU"
    MPS_UNAVAILABLE = "MPSUnavailable"
    USER_MISMATCH = "UserMismatch"
    MIG_ENABLED = "MIGEnabled"
    COMPUTE_MODE_UNSUPPORTED = "ComputeModeUnsupported"
    FOREIGN_MPS = "ForeignMPS"
    MPS_DIRECTORY_UNUSABLE = "MPSDirectoryUnusable"
    MPS_START_FAILED = "MPSStartFailed"
    MPS_NOT_ENFORCING = "MPSNotEnforcing"
    MPS_DAEMON_DIED = "MPSDaemonDied"
    MPS_NOT_RESPONDING = "MPSNotResponding"
    MPS_SERVER_FAULT = "MPSServerFault"
    WORKER_OUTSIDE_MPS = "WorkerOutsideMPS"
    GPU_UNHEALTHY = "GPUUnhealthy"
    GPU_SHARED = "GPUShared"
    CUDA_UNAVAILABLE = "CUDAUnavailable"

    SCALING_ACTIVE = "ScalingActive"
    AT_MAX_REPLICAS = "AtMaxReplicas"
    AUTOSCALER_PENDING = "AutoscalerPending"
    METRICS_MISSING = "MetricsMissing"
    METRICS_API_UNAVAILABLE = "MetricsAPIUnavailable"
    METRICS_SERVED_ELSEWHERE = "MetricsServedElsewhere"
    NOT_GRANTED = "NotGranted"
    KEDA_NOT_INSTALLED = "KEDANotInstalled"
    CONFLICTING_AUTOSCALER = "ConflictingAutoscaler"
    AUTOSCALER_FAILED = "AutoscalerFailed"

    TARGETS_MET = "TargetsMet"
    TTFT_ABOVE_TARGET = "TTFTAboveTarget"
    TPOT_ABOVE_TARGET = "TPOTAboveTarget"
    INSUFFICIENT_TRAFFIC = "InsufficientTraffic"
    METRICS_UNAVAILABLE = "MetricsUnavailable"
    TELEMETRY_STALE = "TelemetryStale"

    FEASIBLE = "Feasible"
    NOT_FEASIBLE = "NotFeasible"
    NOT_ASSESSED = "NotAssessed"

    READY = "Ready"
    ROLLOUT_IN_PROGRESS = "RolloutInProgress"
    ROLLOUT_STALLED = "RolloutStalled"
    DELETING = "Deleting"


@dataclass(frozen=True)
class Entry:
    reason: Reason
    status: str
    meaning: str
    remedy: str = ""


ADMISSION = (
    Entry(
        Reason.ADMISSION_DENIED,
        "False",
        "An admission webhook or policy of the cluster denies an object of the service, mostly its pods; the message "
        "names it and has its words.",
        "Change spec.podTemplate as it asks, or have the owner of that policy exempt the namespace.",
    ),
    Entry(
        Reason.ADMISSION_WEBHOOK_FAILED,
        "False",
        "An admission webhook that must be asked does not answer.",
        "Mend the webhook that the message names; it is tried again by itself.",
    ),
)
"""What stands between us and the API server: it may refuse any object."""

POD_TROUBLE = (
    Entry(
        Reason.UNSCHEDULABLE,
        "False",
        "No node fits the pod; beside the reason stands what is missing, e.g. nvidia.com/gpu, or what keeps it away.",
        "Add a node that has what the message names, or ask for less: spec.engine.resources, or nodeSelector, affinity "
        "and tolerations of spec.podTemplate. engine.device cpu needs no GPU.",
    ),
    Entry(
        Reason.QUOTA_EXCEEDED,
        "False",
        "A ResourceQuota of the namespace allows no further pod, or wants requests and limits that the pod lacks.",
        "Raise the quota, lower spec.replicas, or set spec.engine.resources as the message asks.",
    ),
    Entry(
        Reason.LIMIT_RANGE_VIOLATED,
        "False",
        "A LimitRange of the namespace refuses the pod's resources.",
        "Set spec.engine.resources within the range that the message names, or change the LimitRange.",
    ),
    Entry(
        Reason.POD_SECURITY_VIOLATED,
        "False",
        "The namespace's Pod Security level refuses what spec.podTemplate adds; as rendered, pods fit `restricted`.",
        "Remove from spec.podTemplate what the message names, or use a namespace of another level.",
    ),
    Entry(
        Reason.RUNTIME_CLASS_MISSING,
        "False",
        "spec.podTemplate names a RuntimeClass that the cluster does not have.",
        "Correct runtimeClassName, or install that runtime.",
    ),
    Entry(
        Reason.PRIORITY_CLASS_MISSING,
        "False",
        "spec.podTemplate names a PriorityClass that the cluster does not have.",
        "Correct priorityClassName, or create that class.",
    ),
    Entry(
        Reason.SERVICE_ACCOUNT_MISSING,
        "False",
        "The pod's ServiceAccount is not in the namespace.",
        "Create it, or correct serviceAccountName in spec.podTemplate.",
    ),
    *ADMISSION,
    Entry(
        Reason.POD_REFUSED,
        "False",
        "The API server refuses to create a pod; the message has its words.",
        "Mend what the API server names; the pod is tried again by itself.",
    ),
    Entry(
        Reason.CLAIM_MISSING,
        "False",
        "The PersistentVolumeClaim that the model comes from or goes to does not exist.",
        "Create the claim, or correct spec.model.",
    ),
    Entry(
        Reason.CLAIM_LOST,
        "False",
        "The volume behind the claim is gone, and the data with it.",
        "Delete the claim and create it anew, with the model; spec.model may name another one meanwhile.",
    ),
    Entry(
        Reason.CLAIM_UNBOUND,
        "False",
        "The claim has no volume yet.",
        "kubectl describe pvc: its storage class, or a missing provisioner, says why.",
    ),
    Entry(
        Reason.CLAIM_IN_USE,
        "False",
        "The claim can be mounted on one node only (ReadWriteOnce, ReadWriteOncePod), and is on another.",
        "Use a ReadWriteMany or ReadOnlyMany claim, or one replica.",
    ),
    Entry(
        Reason.VOLUME_NOT_MOUNTED,
        "False",
        "The kubelet does not get the pod's volumes and network ready: its own words, or none after 30 s.",
        "Create what the message names (a Secret, a claim's volume); without words: kubectl describe node.",
    ),
    Entry(
        Reason.NODE_NOT_READY,
        "False",
        "The pod's node does not answer, or is gone; Kubernetes moves the pod after five minutes.",
        "kubectl describe node: mend the node, or delete it so that the pod moves at once.",
    ),
    Entry(
        Reason.IMAGE_PULL_FAILED,
        "False",
        "The kubelet cannot pull an image; the message has the registry's words.",
        "Check spec.engine.image (not found: name or tag), the registry (no such host, refused, time-out: the node "
        "does not reach it) and the pull Secrets (401, 403, unauthorized: imagePullSecrets in spec.podTemplate).",
    ),
    Entry(
        Reason.CREATE_CONTAINER_CONFIG_ERROR,
        "False",
        "The kubelet cannot make the container's configuration: a Secret or key that is missing, an image that runs as "
        "root.",
        "Create what the message names; for runAsNonRoot: an image with a user, or runAsUser in spec.podTemplate.",
    ),
    Entry(
        Reason.CONTAINER_NOT_STARTED,
        "False",
        "The container runtime refuses the pod's sandbox or a container.",
        "Mend what the runtime names: an image of another architecture, a runtime, seccomp or AppArmor profile that "
        "the node lacks.",
    ),
    Entry(
        Reason.CRASH_LOOP,
        "False",
        "A container ends again and again; the message has its last exit status and last words.",
        "kubectl logs POD -c CONTAINER --previous, with the names that the message has.",
    ),
    Entry(
        Reason.API_NOT_RESPONDING,
        "False",
        "The process that answers the OpenAI API is dead, hangs or could not start; the pod is out of the Service.",
        "It is restarted by itself; if it stays: kubectl logs POD -c engine",
    ),
    Entry(
        Reason.POD_FAILED,
        "False",
        "The pod ended, or the node's kubelet refused it; the message has its words. Another pod follows by itself.",
        "Mend what the message names if the next one ends the same way.",
    ),
    Entry(
        Reason.EVICTED,
        "False",
        "The kubelet ended the pod: it used more storage than its limit, or the node ran out. Another follows.",
        "If it happens again: raise the limit that the message names (ephemeral-storage, model.cache.emptyDir), set "
        "requests in spec.engine.resources, or keep the model on a claim.",
    ),
    Entry(
        Reason.READINESS_GATES_NOT_READY,
        "False",
        "A readiness gate that spec.podTemplate, or a controller of the cluster, adds to the pods is not open.",
        "See the controller that sets the condition which the message names, or remove the gate.",
    ),
)

MODEL_TROUBLE = (
    Entry(
        Reason.DOWNLOAD_FAILED,
        "False",
        "The download failed.",
        "It is tried again by itself; kubectl logs POD -c model has more.",
    ),
    Entry(
        Reason.AUTH_REQUIRED,
        "False",
        "Hugging Face refuses the download: the model is gated, or the token is wrong or has expired.",
        "Accept the model's terms and set spec.model.tokenSecretRef to a token that may read it.",
    ),
    Entry(Reason.NOT_FOUND, "False", "There is no such model, revision or folder.", "Correct spec.model."),
    Entry(Reason.NO_SPACE, "False", "The cache is full.", "Use a larger claim or emptyDir."),
    Entry(
        Reason.CACHE_NOT_WRITABLE,
        "False",
        "The model cache takes no files: a ReadOnlyMany claim, or one that belongs to another user.",
        "Use a claim that can be written (ReadWriteOnce, ReadWriteMany) by the pod's user or fsGroup; a model that is "
        "there already is read by pvc://CLAIM/FOLDER.",
    ),
    Entry(Reason.INVALID_URI, "False", "The uri names no model that can be fetched.", "Correct spec.model.uri."),
    Entry(
        Reason.CHECKSUM_MISMATCH,
        "False",
        "A file came damaged; it is fetched again.",
        "If it stays: look for a proxy that changes files.",
    ),
    Entry(
        Reason.UNREACHABLE,
        "False",
        "The model hub cannot be reached, or answers none of it now; it is asked again by itself.",
        "Check DNS, the network and its policies. Certificates: give the container `model` the CA (SSL_CERT_FILE). "
        "429: set spec.model.tokenSecretRef. A mirror: HF_ENDPOINT (docs/operations.md).",
    ),
    Entry(
        Reason.INCOMPLETE,
        "False",
        "The folder lacks files of the model; the message names them.",
        "Complete the folder, or correct spec.model.",
    ),
    Entry(
        Reason.LOAD_FAILED,
        "False",
        "The engine cannot load the weights.",
        "Mend the file that the message names; kubectl logs POD -c engine has more.",
    ),
    Entry(
        Reason.OUT_OF_MEMORY,
        "False",
        "The weights and the KV cache do not fit.",
        "Raise the memory limit, or lower engine.kvCacheMemory or engine.maxModelLen.",
    ),
    Entry(
        Reason.CUDA_UNAVAILABLE,
        "False",
        "engine.device is cuda, and CUDA cannot be initialised in the pod.",
        "Compare the node's driver with the image's CUDA: `semipd doctor` on the node.",
    ),
)
"""Why a model does not come into a pod."""

NO_START = (
    Entry(Reason.NO_CPUS, "False", "The affinity mask grants the pod no CPU.", "Widen the cpuset."),
    Entry(
        Reason.NO_GPU,
        "False",
        "engine.device is cuda, and no NVIDIA GPU is visible in the pod.",
        "Ask for nvidia.com/gpu in spec.engine.resources, or set engine.device cpu.",
    ),
    Entry(
        Reason.MPS_UNAVAILABLE,
        "False",
        "The programs of NVIDIA MPS, which enforces the split, are not in the container.",
        "Check the node's NVIDIA container toolkit (capabilities compute,utility), or set partition.mode Disabled.",
    ),
    Entry(
        Reason.USER_MISMATCH,
        "False",
        "The agent runs under several user ids; MPS serves the clients of one.",
        "Start the agent as one user.",
    ),
    Entry(
        Reason.MIG_ENABLED,
        "False",
        "The GPU is in MIG mode.",
        "Use a node whose GPU is whole, or set partition.mode Disabled.",
    ),
    Entry(
        Reason.COMPUTE_MODE_UNSUPPORTED,
        "False",
        "The GPU's compute mode is not Default, so the process that holds the weights is refused.",
        "Have an administrator set it: nvidia-smi -c DEFAULT",
    ),
    Entry(
        Reason.FOREIGN_MPS,
        "False",
        "Another MPS daemon is in charge of the GPU.",
        "Use nodes whose device plugin does not share GPUs (nvidia.com/gpu.sharing-strategy none).",
    ),
    Entry(
        Reason.MPS_DIRECTORY_UNUSABLE,
        "False",
        "The directory for the MPS daemon is not writable, too long, or not local.",
        "Leave the volume at /run/spd as it is rendered; elsewhere use semipd-agent --mps-dir.",
    ),
    Entry(
        Reason.MPS_START_FAILED,
        "False",
        "The MPS daemon, its server or a first client did not start; it is tried again.",
        "The daemon's own words say why; `semipd doctor --trial` shows the same on the node.",
    ),
    Entry(
        Reason.MPS_NOT_ENFORCING,
        "False",
        "MPS runs, and its percentages have no effect on what a client sees.",
        "Look for another limit on this GPU, or for a driver without MPS (gVisor, WSL).",
    ),
    Entry(
        Reason.GPU_UNHEALTHY,
        "False",
        "The driver reported a hardware error, or MPS was lost again and again.",
        "Delete the pod; check the node's GPU (dmesg, nvidia-smi) before it gets work again.",
    ),
)
"""Why a pod's engine is not started, or may not serve: reasons of PartitionApplied, and of ModelReady before a load."""

MPS_LOST = (
    Entry(
        Reason.MPS_DAEMON_DIED,
        "False",
        "The MPS control daemon ended. Its server serves on; a new daemon and new workers take over.",
        "It mends itself; if it happens again: kubectl logs POD -c engine",
    ),
    Entry(
        Reason.MPS_NOT_RESPONDING,
        "False",
        "The MPS control daemon does not answer; it and its server are replaced.",
        "It mends itself; if it happens again: the pod's log and the driver's (dmesg).",
    ),
    Entry(
        Reason.MPS_SERVER_FAULT,
        "False",
        "A fatal GPU error or the end of the MPS server took all workers; all of it is replaced.",
        "It mends itself; if it happens again: semipd_gpu_xid_errors_total and dmesg name the error.",
    ),
    Entry(
        Reason.WORKER_OUTSIDE_MPS,
        "False",
        "A worker runs without MPS, and so with the whole GPU.",
        "See the pod's log; delete the pod if it stays.",
    ),
)
"""What may happen to MPS while it serves."""
