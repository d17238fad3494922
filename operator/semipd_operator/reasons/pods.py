"""Whether pods can serve, and why one cannot be made, start or stay."""

from __future__ import annotations

from semipd_operator.reasons.reason import Reason


class PodsReason(Reason):
    """Of Available."""

    PODS_READY = (
        "PodsReady",
        "True",
        "At least one pod is ready.",
    )
    NO_PODS = (
        "NoPods",
        "False",
        "No pod exists yet.",
        "kubectl describe deployment (of the same name)",
    )
    PODS_NOT_READY = (
        "PodsNotReady",
        "False",
        "Pods exist and none is ready yet.",
    )


class PodTrouble(Reason):
    """Why a pod is missing or not ready: of Available, and so of Ready."""

    UNSCHEDULABLE = (
        "Unschedulable",
        "False",
        "No node fits the pod; beside the reason stands what is missing, e.g. nvidia.com/gpu, or what keeps it away, "
        "e.g. taint/nvidia.com/gpu.",
        "Add a node that has what the message names, or ask for less: spec.engine.resources, or nodeSelector, "
        "affinity and tolerations of spec.podTemplate. engine.device cpu needs no GPU.",
    )
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "False",
        "A ResourceQuota of the namespace allows no further pod, or wants requests and limits that the pod lacks.",
        "Raise the quota, lower spec.replicas, or set spec.engine.resources as the message asks.",
    )
    LIMIT_RANGE_VIOLATED = (
        "LimitRangeViolated",
        "False",
        "A LimitRange of the namespace refuses the pod's resources.",
        "Set spec.engine.resources within the range that the message names, or change the LimitRange.",
    )
    POD_SECURITY_VIOLATED = (
        "PodSecurityViolated",
        "False",
        "The namespace's Pod Security level refuses what spec.podTemplate adds; as rendered, pods fit `restricted`.",
        "Remove from spec.podTemplate what the message names, or use a namespace of another level.",
    )
    RUNTIME_CLASS_MISSING = (
        "RuntimeClassMissing",
        "False",
        "spec.podTemplate names a RuntimeClass that the cluster does not have.",
        "Correct runtimeClassName, or install that runtime.",
    )
    PRIORITY_CLASS_MISSING = (
        "PriorityClassMissing",
        "False",
        "spec.podTemplate names a PriorityClass that the cluster does not have.",
        "Correct priorityClassName, or create that class.",
    )
    SERVICE_ACCOUNT_MISSING = (
        "ServiceAccountMissing",
        "False",
        "The pod's ServiceAccount is not in the namespace.",
        "Create it, or correct serviceAccountName in spec.podTemplate.",
    )
    POD_REFUSED = (
        "PodRefused",
        "False",
        "The API server refuses to create a pod; the message has its words.",
        "Mend what the API server names; the pod is tried again by itself.",
    )
    CLAIM_MISSING = (
        "ClaimMissing",
        "False",
        "The PersistentVolumeClaim that the model comes from or goes to does not exist.",
        "Create the claim, or correct spec.model.",
    )
    CLAIM_LOST = (
        "ClaimLost",
        "False",
        "The volume behind the claim is gone, and the data with it.",
        "Delete the claim and create it anew, with the model; spec.model may name another one meanwhile.",
    )
    CLAIM_UNBOUND = (
        "ClaimUnbound",
        "False",
        "The claim has no volume yet.",
        "kubectl describe pvc: its storage class, or a missing provisioner, says why.",
    )
    VOLUME_ELSEWHERE = (
        "VolumeElsewhere",
        "False",
        "The claim's volume is reached from some nodes only (a local disk, one zone), and none of those takes the pod.",
        "Free or add such a node (kubectl describe pv names them), use a ReadWriteMany claim, or one replica.",
    )
    CLAIM_IN_USE = (
        "ClaimInUse",
        "False",
        "The claim can be mounted on one node only (ReadWriteOnce, ReadWriteOncePod), and is on another.",
        "Use a ReadWriteMany or ReadOnlyMany claim, or one replica.",
    )
    VOLUME_NOT_MOUNTED = (
        "VolumeNotMounted",
        "False",
        "The kubelet does not get the pod's volumes and network ready: its own words, or none after 30 s.",
        "Create what the message names (a Secret, a claim's volume); without words: kubectl describe pvc, "
        "volumeattachment (a storage driver that the node lacks says nothing) and node.",
    )
    NODE_NOT_READY = (
        "NodeNotReady",
        "False",
        "The pod's node does not answer, or is gone; Kubernetes moves the pod after five minutes.",
        "kubectl describe node: mend the node, or delete it so that the pod moves at once; where spec.podTemplate "
        "names it (nodeName), correct that.",
    )
    IMAGE_PULL_FAILED = (
        "ImagePullFailed",
        "False",
        "The kubelet cannot pull an image; the message has the registry's words.",
        "Check spec.engine.image (not found: name or tag), the registry (no such host, refused, time-out: the "
        "node does not reach it) and the pull Secrets (401, 403, unauthorized: imagePullSecrets in "
        "spec.podTemplate).",
    )
    CREATE_CONTAINER_CONFIG_ERROR = (
        "CreateContainerConfigError",
        "False",
        "The kubelet cannot make the container's configuration: a Secret or key that is missing, an image that "
        "runs as root.",
        "Create what the message names; for runAsNonRoot: an image with a user, or runAsUser in spec.podTemplate.",
    )
    CONTAINER_NOT_STARTED = (
        "ContainerNotStarted",
        "False",
        "The container runtime refuses the pod's sandbox or a container.",
        "Mend what the runtime names: an image of another architecture or without semipd-agent (spec.engine.image), a "
        "runtime, seccomp or AppArmor profile that the node lacks.",
    )
    CRASH_LOOP = (
        "CrashLoop",
        "False",
        "A container ended with an error, once or again and again, and has not been ready since; the message has its "
        "last exit status and last words."
        " One that nobody probes is well once it has run for a minute, and for twice as long as before; so is one that "
        "is probed and ready, after three ends or more, the last within a minute, once it has run for twice as long.",
        "kubectl logs POD -c CONTAINER --previous, with the names that the message has.",
    )
    PROBE_FAILING = (
        "ProbeFailing",
        "False",
        "A probe fails, and its container stands beside the reason: one that spec.podTemplate, or a webhook, adds and "
        "that the engine waits for or is ready without, for 30 s; or the engine, which serves, and whose probe "
        "spec.podTemplate changes; or one that the kubelet ends again and again for its probe.",
        "kubectl logs POD -c CONTAINER and the events of kubectl describe pod say why: mend its probe or what it waits "
        "for, or remove it from spec.podTemplate.",
    )
    INIT_CONTAINER_RUNNING = (
        "InitContainerRunning",
        "False",
        "The pod waits for an init container of spec.podTemplate, or of a webhook, that has run for 30 s or more.",
        "If it stays: kubectl logs POD -c CONTAINER, with the names that the message has.",
    )
    API_NOT_RESPONDING = (
        "APINotResponding",
        "False",
        "The process that answers the OpenAI API is dead, hangs or could not start; the pod is out of the Service.",
        "It is restarted by itself, after half a minute if it hangs; if it stays: kubectl logs POD -c engine",
    )
    NO_API_KEY = (
        "NoAPIKey",
        "False",
        "The Secret of spec.service.apiKeySecretRef holds no key: the engine does not start, or, if it served before, "
        "refuses every request with 401.",
        "Write a key into that Secret, one on each line; it is in force within two minutes, and no pod restarts.",
    )
    POD_FAILED = (
        "PodFailed",
        "False",
        "The pod ended, or the node's kubelet refused it; the message has its words. Another pod follows by itself.",
        "Mend what the message names if the next one ends the same way; spec.replicas 0 stops them meanwhile, of which "
        "Kubernetes may make several a second.",
    )
    EVICTED = (
        "Evicted",
        "False",
        "The kubelet ended the pod: it used more storage than its limit, or the node ran out. Another follows.",
        "If it happens again: raise the limit that the message names (ephemeral-storage, model.cache.emptyDir), "
        "set requests in spec.engine.resources, or keep the model on a claim.",
    )
    PREEMPTED = (
        "Preempted",
        "False",
        "A pod was preempted: ended for one of a higher priority, whose room it had; the message has the scheduler's "
        "words, and what keeps its successor from a node.",
        "Give the pods a priority (priorityClassName in spec.podTemplate) or a node of their own, or add a node.",
    )
    READINESS_GATES_NOT_READY = (
        "ReadinessGatesNotReady",
        "False",
        "A readiness gate that spec.podTemplate, or a controller of the cluster, adds to the pods is not open.",
        "See the controller that sets the condition which the message names, or remove the gate.",
    )
