"""What ``kubectl get`` and ``kubectl describe`` say of a pod that does not serve: column and line, word for word.

Each row is a pod as kubelet 1.36, the node controller or the scheduler leaves it, written by hand: most of it cannot be
made to happen on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from tests.unit.operator_observed import observed, pod
from tests.unit.operator_pods import crashed, ended, fetched, running, unplaced, waiting

from semipd_operator.reasons import REASONS, ConditionType, remedy
from semipd_operator.status import summarise
from semipd_operator.status.pods import pod_view

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Row:
    column: str
    cause: str
    """The message of Available and Ready but for ``p2: `` before it and the remedy after it."""
    status: dict[str, Any]
    remedy: str = ""
    """Where it is not that of the reason."""


PULL = 'Back-off pulling image "r.io/engine:1": ErrImagePull: rpc error: failed to pull and unpack image: '
NO_KEY = "couldn't find key token in Secret d/hub"
ROOT = 'container has runAsNonRoot and image will run as root (pod: "p2_d(1)", container: engine)'
SECCOMP = 'failed to create containerd task: cannot load seccomp profile "/var/lib/kubelet/seccomp/strict.json"'
DEVICES = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices nvidia.com/gpu"
LOST = '0/3 nodes are available: persistentvolumeclaim "models" bound to non-existent persistentvolume "pv-1".'
DNS = "hf://o/m@main: the hub cannot be reached: [Errno -2] Name or service not known"
READ_ONLY = "[Errno 30] Read-only file system: '/models/o--m'"
TAINTS = "0/3 nodes are available: 3 node(s) had untolerated taint(s). "
REMEDIES = {str(entry.reason): entry.remedy for entries in REASONS.values() for entry in entries}
ROWS: dict[str, Row] = {
    "evicted: the node ran out": Row(
        "Evicted",
        "Evicted: The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi.",
        ended("Evicted", "The node was low on resource: memory. Threshold quantity: 100Mi, available: 80Mi."),
    ),
    "evicted: ephemeral storage": Row(
        "Evicted",
        "Evicted: Pod ephemeral local storage usage exceeds the total limit of containers 1Gi.",
        ended("Evicted", "Pod ephemeral local storage usage exceeds the total limit of containers 1Gi."),
    ),
    "evicted: the cache": Row(
        "Evicted",
        'Evicted: Usage of EmptyDir volume "models" exceeds the limit "1Gi".',
        ended("Evicted", 'Usage of EmptyDir volume "models" exceeds the limit "1Gi".'),
    ),
    "the kubelet has no device": Row(
        "PodFailed", f"UnexpectedAdmissionError: {DEVICES}", ended("UnexpectedAdmissionError", DEVICES)
    ),
    "AppArmor profile": Row(
        "PodFailed",
        'AppArmor: Cannot enforce AppArmor: profile "strict" is not loaded',
        ended("AppArmor", 'Cannot enforce AppArmor: profile "strict" is not loaded'),
    ),
    "NUMA": Row("PodFailed", "TopologyAffinityError", ended("TopologyAffinityError")),
    "deadline": Row(
        "PodFailed",
        "DeadlineExceeded: Pod was active on the node longer than the specified deadline",
        ended("DeadlineExceeded", "Pod was active on the node longer than the specified deadline"),
    ),
    "node shut down": Row(
        "PodFailed",
        "Terminated: Pod was terminated in response to imminent node shutdown.",
        ended("Terminated", "Pod was terminated in response to imminent node shutdown."),
    ),
    "pull: no Secret": Row(
        "ImagePullFailed(engine)",
        f"container engine: {PULL}failed to authorize: 401 Unauthorized",
        waiting("ImagePullBackOff", f"{PULL}failed to authorize: 401 Unauthorized"),
    ),
    "pull: no such tag": Row(
        "ImagePullFailed(engine)",
        f"container engine: {PULL}r.io/engine:1: not found",
        waiting("ErrImagePull", f"{PULL}r.io/engine:1: not found"),
    ),
    "pull: registry away": Row(
        "ImagePullFailed(engine)",
        f"container engine: {PULL}dial tcp: lookup r.io: no such host",
        waiting("ImagePullBackOff", f"{PULL}dial tcp: lookup r.io: no such host"),
    ),
    "pull: signature": Row(
        "ImagePullFailed(engine)",
        "container engine: image signature validation failed",
        waiting("SignatureValidationFailed", "image signature validation failed"),
    ),
    "Secret without the key": Row(
        "CreateContainerConfigError(engine)",
        f"container engine: {NO_KEY}",
        waiting("CreateContainerConfigError", NO_KEY),
    ),
    "an image that runs as root": Row(
        "CreateContainerConfigError(engine)", f"container engine: {ROOT}", waiting("CreateContainerConfigError", ROOT)
    ),
    "seccomp profile": Row(
        "ContainerNotStarted(engine)", f"container engine: {SECCOMP}", waiting("CreateContainerError", SECCOMP)
    ),
    "hook": Row(
        "ContainerNotStarted(engine)",
        "container engine: PostStartHookError: exec failed",
        waiting("PostStartHookError", "PostStartHookError: exec failed"),
    ),
    "read-only root": Row(
        "CrashLoop(engine)",
        "container engine ended 4 times, last with exit status 1: OSError: [Errno 30] Read-only file system: '/x'",
        crashed("engine", 1, "OSError: [Errno 30] Read-only file system: '/x'"),
    ),
    "a sidecar": Row(
        "CrashLoop(proxy)",
        "container proxy ended 4 times, last with exit status 2: no configuration",
        crashed("proxy", 2, "no configuration"),
    ),
    "an init container of the user's": Row(
        "CrashLoop(prepare)",
        "container prepare ended 4 times, last with exit status 2: no route",
        crashed("prepare", 2, "no route", "initContainerStatuses"),
    ),
    "an engine image without the downloader": Row(
        "ContainerNotStarted(model)",
        'container model: exec: "semipd-engine": executable file not found in $PATH',
        {
            "initContainerStatuses": [
                {
                    "name": "model",
                    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                    "lastState": {
                        "terminated": {
                            "exitCode": 128,
                            "reason": "StartError",
                            "message": 'exec: "semipd-engine": executable file not found in $PATH',
                        }
                    },
                }
            ]
        },
        "Correct spec.engine.image (or the chart's engine.image): that image is none of SemiPD's engine.",
    ),
    "a readiness gate": Row(
        "ReadinessGatesNotReady",
        'corresponding condition of pod readiness gate "lb/ready" does not exist.',
        {
            "conditions": [
                {
                    "type": "Ready",
                    "status": "False",
                    "reason": "ReadinessGatesNotReady",
                    "message": 'corresponding condition of pod readiness gate "lb/ready" does not exist.',
                }
            ]
        },
    ),
    "pull: the registry's own colons": Row(
        "ImagePullFailed(engine)",
        f"container engine: {PULL}may require authorization: authorization failed: no basic auth credentials",
        waiting("ErrImagePull", f"{PULL}may require authorization: authorization failed: no basic auth credentials"),
    ),
    "between two crashes": Row(
        "CrashLoop(engine)",
        "container engine ended 7 times, last with exit status 1: cannot open /models",
        {
            "containerStatuses": [
                {
                    "name": "engine",
                    "restartCount": 7,
                    "state": {"running": {}},
                    "lastState": {"terminated": {"exitCode": 1, "message": "cannot open /models"}},
                }
            ]
        },
    ),
    "an init container that does not end": Row(
        "InitContainerRunning(wait-for-db)",
        "init container wait-for-db has not ended",
        {"initContainerStatuses": [running("wait-for-db", 31)], "containerStatuses": [{"name": "engine"}]},
    ),
    "a sidecar that does not start": Row(
        "ProbeFailing(mesh)",
        "container mesh runs, and its startup probe has not succeeded: the containers after it wait",
        {
            "initContainerStatuses": [{**running("mesh", 31), "started": False}],
            "containerStatuses": [{"name": "engine"}],
        },
    ),
    "claim lost": Row("ClaimLost(models)", LOST, unplaced(LOST)),
    "claim being deleted": Row(
        "ClaimMissing(models)",
        '0/3 nodes are available: persistentvolumeclaim "models" is being deleted.',
        unplaced('0/3 nodes are available: persistentvolumeclaim "models" is being deleted.'),
    ),
    "no node ready": Row("Unschedulable(taint)", TAINTS.strip(), unplaced(TAINTS)),
    "port taken": Row(
        "Unschedulable(hostPort)",
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.",
        unplaced("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."),
        "Remove hostPort from spec.podTemplate, or have as many nodes as replicas.",
    ),
    "spread": Row(
        "Unschedulable(topologySpread)",
        "0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints.",
        unplaced("0/2 nodes are available: 2 node(s) didn't match pod topology spread constraints."),
        "Label the nodes with the topologyKey, add nodes where the message lacks them, or relax "
        "topologySpreadConstraints in spec.podTemplate.",
    ),
    "too many volumes": Row(
        "Unschedulable(volumes)",
        "0/2 nodes are available: 2 node(s) exceed max volume count.",
        unplaced("0/2 nodes are available: 2 node(s) exceed max volume count."),
    ),
    "a resource claim": Row(
        "Unschedulable(resourceClaim)",
        "0/1 nodes are available: 1 cannot allocate all claims.",
        unplaced("0/1 nodes are available: 1 cannot allocate all claims."),
        "kubectl describe resourceclaim: create it, or correct resourceClaims in spec.podTemplate.",
    ),
    "gated": Row(
        "AuthRequired", "hf://o/m: access is restricted", fetched("AuthRequired", "hf://o/m: access is restricted", 3)
    ),
    "revision": Row("NotFound", "hf://o/m: no such revision", fetched("NotFound", "hf://o/m: no such revision", 4)),
    "hub away": Row("Unreachable", DNS, fetched("Unreachable", DNS, 7)),
    "a cache that is read only": Row("CacheNotWritable", READ_ONLY, fetched("CacheNotWritable", READ_ONLY, 9)),
    "a downloader of a later version": Row(
        "HubOnFire", "all of it", fetched("HubOnFire", "all of it", 77), REMEDIES["DownloadFailed"]
    ),
}
SPEC = {"nodeName": "n1", "initContainers": [{"name": "mesh", "restartPolicy": "Always"}]}
OF_THE_MODEL = {"AuthRequired", "NotFound", "Unreachable", "CacheNotWritable", "HubOnFire"}


@pytest.mark.parametrize("case", ROWS)
def test_the_column_and_the_line(case: str) -> None:
    row = ROWS[case]
    meta = {"name": "p2", "uid": "p2", "namespace": "d", "labels": {"semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "spec": SPEC, "status": row.status})
    reason = row.column.partition("(")[0]
    what = row.remedy or remedy("Available", reason)
    assert what
    line = f"p2: {row.cause}{'' if row.cause.endswith('.') else '.'} Remedy: {what}"
    alone = summarise(observed(pods=(view,), agents={}))
    ready, available = alone.condition("Ready"), alone.condition("Available")
    assert ready and available and (alone.reason, ready.message, available.message) == (row.column, line, line)
    some = summarise(observed({"replicas": 2}, pods=(pod(), view)))
    ready, available = some.condition("Ready"), some.condition("Available")
    count = "1 of 2 pods are ready: "
    assert ready and some.reason == row.column
    assert ready.message == (line if reason in OF_THE_MODEL else count + line), "ModelReady's own words"
    assert available and available.message == f"{count}p2: {row.cause}"


def test_every_reason_of_the_rows_has_its_place_in_the_table() -> None:
    known = {entry.reason for entry in REASONS[ConditionType.AVAILABLE]}
    assert {row.column.partition("(")[0] for row in ROWS.values()} - known == {"HubOnFire"}
