"""What ``kubectl get`` and ``kubectl describe`` say of a pod that does not serve: column and line, word for word.

Each row is a pod as kubelet 1.36, the node controller or the scheduler leaves it, written by hand: most of it cannot be
made to happen on one machine.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from tests.unit.operator_observed import ago, conditions, heard, observed, pod, report

from semipd_agent.contract import EnginePhase, EngineStatus
from semipd_operator.reasons import REASONS, ConditionType, remedy
from semipd_operator.status import AgentView, summarise
from semipd_operator.status.pods import pod_view
from semipd_operator.status.refusals import stalled, unexposed

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Row:
    column: str
    cause: str
    """The message of Available and Ready but for ``p2: `` before it and the remedy after it."""
    status: dict[str, Any]
    remedy: str = ""
    """Where it is not that of the reason."""


def unplaced(words: str) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    return {"phase": "Pending", "conditions": [condition]}


def waiting(reason: str, message: str = "", name: str = "engine") -> dict[str, Any]:
    return {"containerStatuses": [{"name": name, "state": {"waiting": {"reason": reason, "message": message}}}]}


def ended(reason: str, message: str = "", seconds: float = 5) -> dict[str, Any]:
    return {"phase": "Failed", "reason": reason, "message": message, "startTime": ago(seconds).isoformat()}


def running(name: str, seconds: float) -> dict[str, Any]:
    return {"name": name, "ready": False, "state": {"running": {"startedAt": ago(seconds).isoformat()}}}


def fetched(reason: str, message: str, code: int = 1) -> dict[str, Any]:
    said = json.dumps({"reason": reason, "message": message})
    last = {"terminated": {"exitCode": code, "message": said}}
    back_off = {"waiting": {"reason": "CrashLoopBackOff"}}
    return {"initContainerStatuses": [{"name": "model", "state": back_off, "lastState": last}]}


def crashed(container: str, code: int, words: str, where: str = "containerStatuses") -> dict[str, Any]:
    last = {"terminated": {"exitCode": code, "message": words}}
    one = {"name": container, "state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": last}
    return {where: [{**one, "restartCount": 3}]}


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
        "container engine ended 3 times, last with exit status 1: OSError: [Errno 30] Read-only file system: '/x'",
        crashed("engine", 1, "OSError: [Errno 30] Read-only file system: '/x'"),
    ),
    "a sidecar": Row(
        "CrashLoop(proxy)",
        "container proxy ended 3 times, last with exit status 2: no configuration",
        crashed("proxy", 2, "no configuration"),
    ),
    "an init container of the user's": Row(
        "CrashLoop(prepare)",
        "container prepare ended 3 times, last with exit status 2: no route",
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


def started(seconds: float, error: str = "the agent cannot be reached") -> Any:
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "status": {"containerStatuses": [running("engine", seconds)]}})
    return {"pods": (pod(), view), "agents": {"p1": heard(report()), "p2": AgentView().failed(error)}}


def test_an_agent_that_does_not_answer_is_told_of_a_pod_that_started_long_ago() -> None:
    """It may load for ever: nobody knows."""
    ready = summarise(observed({"replicas": 2}, **started(31))).condition("Ready")
    words = (
        "1 of 2 pods are ready: p2: its engine is not ready, and nothing is known of it: the agent cannot be reached"
    )
    assert ready and ready.reason == "AgentUnreachable" and ready.message.startswith(f"{words}. Remedy: Allow the ")
    young = summarise(observed({"replicas": 2}, **started(29))).condition("Ready")
    assert young and young.reason == "PodsNotReady"
    loading = {**started(31), "pods": started(31)["pods"][1:]}
    model = summarise(observed(**loading)).condition("ModelReady")
    words = "the engine loads the weights; of p2 nothing is known: the agent cannot be reached"
    assert model and model.message == words


@pytest.mark.parametrize(("heard_ago", "shown"), [(29, "Loading"), (31, "AgentUnreachable")])
def test_an_agent_that_misses_a_few_polls_on_a_busy_node_is_not_unreachable(heard_ago: float, shown: str) -> None:
    loading = report(engine=EngineStatus(state=EnginePhase.LOADING, ready=False))
    silent = replace(heard(loading, heard_ago), error="the agent cannot be reached (ReadTimeout)")
    seen = {**started(300), "pods": started(300)["pods"][1:], "agents": {"p2": silent}}
    assert conditions(summarise(observed(**seen)))["Ready"] == f"False {shown}"


@pytest.mark.parametrize("error", ["", "the agent does not answer in time"], ids=["stale", "silent"])
@pytest.mark.parametrize(("heard_ago", "ready"), [(11, "True Ready"), (29, "True Ready"), (31, "False")])
def test_a_pod_that_serves_stays_ready_while_its_agent_misses_a_few_polls(
    heard_ago: float, ready: str, error: str
) -> None:
    """PartitionApplied says it at once."""
    shown = conditions(summarise(observed(agents={"p1": replace(heard(report(), heard_ago), error=error)})))
    reason = "AgentUnreachable" if error else "ReportStale"
    assert shown["PartitionApplied"] == f"False {reason}"
    assert shown["Ready"] == (ready if ready != "False" else f"False {reason}")


@pytest.mark.parametrize("error", ["", "the agent does not answer in time"], ids=["not yet", "silent"])
@pytest.mark.parametrize(("asked_ago", "ready"), [(9, "True Ready"), (31, "False AgentUnreachable")])
def test_an_operator_that_was_restarted_takes_no_readiness_back_before_it_has_asked(
    asked_ago: float, ready: str, error: str
) -> None:
    """The pod has been ready for long, and this process has never heard of it."""
    agents = {"p1": AgentView(asked_since=ago(asked_ago), error=error)}
    shown = conditions(summarise(observed(pods=(pod(ready_since=ago(3600)),), agents=agents)))
    assert (shown["PartitionApplied"], shown["Ready"]) == ("False AgentUnreachable", ready)


@pytest.mark.parametrize("containers", [[{"name": "engine", "command": ["sleep", "1"]}], [{"name": "proxy"}], "odd"])
def test_a_template_that_replaces_the_engines_command_is_why_no_agent_answers(containers: Any) -> None:
    spec = {"podTemplate": {"spec": {"containers": containers}}}
    seen = {**started(31), "pods": started(31)["pods"][1:]}
    ready = summarise(observed(spec, **seen)).condition("Ready")
    assert ready and ready.reason == "AgentUnreachable"
    replaced = (
        "nothing is known of it: the agent cannot be reached; spec.podTemplate replaces its command. Remedy: Have "
    )
    assert (replaced in ready.message) == ("command" in str(containers))


@pytest.mark.parametrize(("lived", "shown"), [(599, "CrashLoop"), (600, "Loading")])
def test_a_container_that_ended_after_a_long_run_is_in_no_crash_loop(lived: float, shown: str) -> None:
    last = {"exitCode": 1, "startedAt": ago(lived + 9).isoformat(), "finishedAt": ago(9).isoformat()}
    engine = {**running("engine", 8), "restartCount": 3, "lastState": {"terminated": last}}
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "status": {"containerStatuses": [engine]}})
    assert conditions(summarise(observed(pods=(view,), agents={})))["Ready"] == f"False {shown}"


@pytest.mark.parametrize(("changed", "shown"), [(500, "APINotResponding"), (700, "trouble")])
@pytest.mark.parametrize(
    ("last", "trouble"),
    [({"exitCode": 1}, "CrashLoop"), ({"exitCode": 137, "reason": "OOMKilled"}, "OutOfMemory")],
    ids=["crashed", "killed for memory"],
)
def test_what_ended_a_container_before_it_served_is_not_why_it_is_not_ready(
    last: dict[str, Any], trouble: str, changed: float, shown: str
) -> None:
    """It runs for ten minutes: ready in between, or not since its start."""
    engine = {**running("engine", 600), "restartCount": 3, "lastState": {"terminated": last}}
    unready = {"type": "Ready", "status": "False", "lastTransitionTime": ago(changed).isoformat()}
    meta = {"name": "p2", "uid": "p2", "labels": {"semipd.io/template-hash": "h"}}
    view = pod_view({"metadata": meta, "status": {"conditions": [unready], "containerStatuses": [engine]}})
    hangs = EngineStatus(
        state=EnginePhase.DEGRADED,
        ready=False,
        architecture="llama",
        reason="APINotResponding",
        message="the process api hangs",
    )
    status = summarise(observed(pods=(view,), agents={"p2": heard(report(engine=hangs))}))
    assert conditions(status)["Available"] == f"False {trouble if shown == 'trouble' else shown}"


def test_a_service_that_was_paused_from_the_start_is_told_how_to_go_on() -> None:
    available = summarise(observed({"paused": True}, pods=(), agents={})).condition("Available")
    assert available and available.message == "no pod exists, and none is made. Remedy: Unset spec.paused."


def test_a_pod_that_was_deleted_before_it_served_has_not_failed() -> None:
    """A roll ends it; it is Failed for the moment until it is gone."""
    meta = {"name": "p0", "uid": "p0", "labels": {"semipd.io/template-hash": "h"}}
    deleted = pod_view({"metadata": {**meta, "deletionTimestamp": ago(1).isoformat()}, "status": ended("", "", 1)})
    shown = conditions(summarise(observed(pods=(pod(ready=False), deleted), agents={})))
    assert shown["Ready"] == "False Loading" and shown["Available"] == "False PodsNotReady"


def test_a_pod_that_ended_counts_no_more_and_is_told_while_its_successor_is_on_its_way() -> None:
    """Its ReplicaSet leaves it where it is, whatever becomes of the template."""

    def gone(name: str, seconds: float, template: str = "old") -> Any:
        meta = {"name": name, "uid": name, "labels": {"semipd.io/template-hash": template}}
        return pod_view({"metadata": meta, "status": ended("Evicted", "no room", seconds)})

    served = summarise(observed(pods=(pod(), gone("p0", 5), gone("p2", 9))))
    assert conditions(served)["Ready"] == "True Ready" and served.replicas == served.updated_replicas == 1
    loading = pod("p3", ready=False)
    told = summarise(observed(pods=(loading, gone("p0", 500), gone("p2", 9)), agents={}))
    ready = told.condition("Ready")
    assert ready and told.reason == "Evicted" and ready.message.startswith("p2: Evicted: no room (2 pods have ended ")
    assert conditions(summarise(observed(pods=(loading, gone("p2", 601)), agents={})))["Ready"] == "False Loading"
    rolls = observed(pods=(pod(template_hash="old"), loading, gone("p2", 9)))
    assert conditions(summarise(rolls))["Ready"] == "False RolloutInProgress", "the old one serves"
    again = observed(pods=(pod(template_hash="old"), loading, gone("p2", 9, loading.template_hash)))
    assert conditions(summarise(again))["Ready"] == "False Evicted", "the new one does not stay"
    grows = observed({"replicas": 2}, pods=(pod(), pod("p3", ready=False), gone("p2", 9)))
    assert conditions(summarise(grows))["Ready"] == "False Evicted", "one is missing, and nothing rolls"
    none = conditions(summarise(observed({"replicas": 0}, pods=(gone("p2", 9),), agents={})))
    assert none["Available"] == "False ScaledToZero" and none["Ready"] == "True ScaledToZero"


def test_a_pod_that_cannot_be_tells_more_than_one_that_loads() -> None:
    stuck = pod_view(
        {"metadata": {"name": "p2", "uid": "p2"}, "status": unplaced("0/1: 1 Insufficient nvidia.com/gpu.")}
    )
    shown = summarise(observed({"replicas": 2}, pods=(pod(ready=False), stuck), agents={}))
    assert shown.reason == "Unschedulable(nvidia.com/gpu)" and conditions(shown)["ModelReady"] == "False Loading"


def test_a_rollout_that_stands_still_is_told_once_its_deadline_is_over() -> None:
    words = 'ReplicaSet "demo-5c" has timed out progressing.'
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": words}
    said = stalled({"status": {"conditions": [late]}})
    status = summarise(observed(pods=(pod(template_hash="old"),), stalled=said))
    ready = status.condition("Ready")
    assert status.reason == "RolloutStalled" and ready
    assert ready.message.startswith(
        f"1 of 1 pods are ready: ProgressDeadlineExceeded: {words} Remedy: kubectl describe"
    )
    assert conditions(summarise(observed(stalled=said)))["Ready"] == "True Ready"
    assert stalled(None) == stalled({"status": {}}) == ""


def test_a_load_balancer_that_gives_no_address_is_told_though_the_service_is_ready() -> None:
    made: dict[str, Any] = {"metadata": {"name": "demo"}, "spec": {"type": "LoadBalancer"}}
    words = "no load balancer has given Service demo an address yet: kubectl describe service demo"
    assert unexposed(made) == words
    status = summarise(observed(unexposed=words))
    for kind in ("Ready", "Available"):
        shown = status.condition(kind)
        assert shown and shown.status == "True" and shown.message == f"1 of 1 pods are ready; {words}"
    given = {**made, "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}
    assert unexposed(None) == unexposed(given) == unexposed({**made, "spec": {"type": "NodePort"}}) == ""


def test_every_reason_of_the_rows_has_its_place_in_the_table() -> None:
    known = {entry.reason for entry in REASONS[ConditionType.AVAILABLE]}
    assert {row.column.partition("(")[0] for row in ROWS.values()} - known == {"HubOnFire"}
