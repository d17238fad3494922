"""What is said of a service as a whole: its specification, what refuses its objects, and Ready."""

from __future__ import annotations

from semipd_operator.reasons.reason import Reason


class SpecReason(Reason):
    """Of SpecAccepted."""

    ACCEPTED = (
        "Accepted",
        "True",
        "All objects are applied; the message names what the cluster does not let the operator make, and what others "
        "have set in the Deployment.",
        "For a PodMonitor: install the Prometheus operator, and set rbac.podMonitors in the chart. What others have "
        "set in the Deployment: put it into spec.podTemplate, or remove it (kubectl edit deployment).",
    )
    PAUSED = (
        "Paused",
        "True",
        "spec.paused is set: objects are left as they are.",
        "Unset spec.paused.",
    )
    INVALID_SPEC = (
        "InvalidSpec",
        "False",
        "The CRD (of a newer version) allows a value that this operator cannot read. It counts as absent; where "
        "it would roll pods they are left as they are. The rest of the specification is in force.",
        "Upgrade the operator to the CRD's version, or change what the message names.",
    )
    INVALID_POD_TEMPLATE = (
        "InvalidPodTemplate",
        "False",
        "The Deployment is refused, e.g. because it asks for more than one GPU; the message says which field.",
        "Correct spec.podTemplate or spec.engine.resources.",
    )
    NAME_CONFLICT = (
        "NameConflict",
        "False",
        "An object of the same name exists and belongs to someone else.",
        "Rename the SemiPDService; or, once you know that nothing needs it, delete that object.",
    )
    PREDECESSOR_REMAINS = (
        "PredecessorRemains",
        "False",
        "A deleted SemiPDService had the same name, and its objects are not all gone yet; the message names them.",
        "Wait: the garbage collector takes them away within seconds, and then they are made anew by themselves. If "
        "they stay: their finalizers hold them (kubectl get -o yaml), or kube-controller-manager does not run.",
    )
    APPLY_FAILED = (
        "ApplyFailed",
        "False",
        "The API server refuses an object for now.",
        "Mend what the API server names; it is tried again by itself.",
    )


class Admission(Reason):
    """The cluster's own webhooks and policies: they may refuse any object."""

    ADMISSION_DENIED = (
        "AdmissionDenied",
        "False",
        "An admission webhook or policy of the cluster denies an object of the service, mostly its pods; the "
        "message names it and has its words.",
        "Change spec.podTemplate as it asks, or have the owner of that policy exempt the namespace.",
    )
    ADMISSION_WEBHOOK_FAILED = (
        "AdmissionWebhookFailed",
        "False",
        "An admission webhook that must be asked does not answer.",
        "Mend the webhook that the message names; it is tried again by itself.",
    )


class ReadyReason(Reason):
    """Of Ready."""

    READY = (
        "Ready",
        "True",
        "Everything is as specified.",
    )
    SCALED_TO_ZERO = (
        "ScaledToZero",
        "True",
        "spec.replicas is 0 and no pod is left.",
    )
    ROLLOUT_IN_PROGRESS = (
        "RolloutInProgress",
        "False",
        "Pods of an older generation are being replaced; it serves on.",
    )
    ROLLOUT_STALLED = (
        "RolloutStalled",
        "False",
        "Pods are missing or old, and for an hour (the Deployment's deadline) none became ready.",
        "kubectl describe deployment and the log of its newest pod; what serves goes on serving.",
    )
    FOREIGN_PODS = (
        "ForeignPods",
        "False",
        "Pods of someone else, a copy of the Deployment perhaps, or of nobody, bear the service's labels and get its "
        "requests.",
        "Remove the label semipd.io/service from the pod, or the template of the owner, that the message names.",
    )
    DELETING = (
        "Deleting",
        "False",
        "The service is being deleted, and someone's finalizers hold it; none is ours.",
        "Have the controller that the message names finish, or remove its finalizer.",
    )
