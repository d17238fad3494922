"""A pod as the API server returns it: is it ready, and if it cannot start, why."""

from __future__ import annotations

from typing import Any

import pytest

from semipd_operator.status.pods import pod_view
from semipd_operator.status.scheduling import missing_resource

pytestmark = pytest.mark.unit


def raw(**status: Any) -> dict[str, Any]:
    return {"metadata": {"name": "p", "uid": "u", "labels": {"semipd.io/template-hash": "h"}}, "status": status}


def container(state: dict[str, Any], name: str = "engine", **more: Any) -> dict[str, Any]:
    return {"name": name, "state": state, **more}


FETCH = '{"reason": "AuthRequired", "message": "the model is gated"}'
UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient nvidia.com/gpu. preemption: none.",
}


@pytest.mark.parametrize(
    ("status", "where", "reason", "detail"),
    [
        ({"conditions": [UNSCHEDULABLE]}, "problem", "Unschedulable", "nvidia.com/gpu"),
        (
            {"containerStatuses": [container({"waiting": {"reason": "ImagePullBackOff"}})]},
            "problem",
            "ImagePullFailed",
            "engine",
        ),
        (
            {"initContainerStatuses": [container({"waiting": {"reason": "ErrImagePull"}}, "model")]},
            "problem",
            "ImagePullFailed",
            "model",
        ),
        (
            {
                "containerStatuses": [
                    container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "x" not found'}})
                ]
            },
            "problem",
            "CreateContainerConfigError",
            "engine",
        ),
        (
            {
                "containerStatuses": [
                    container(
                        {"waiting": {"reason": "CrashLoopBackOff"}},
                        restartCount=4,
                        lastState={"terminated": {"exitCode": 2}},
                    )
                ]
            },
            "problem",
            "CrashLoop",
            "engine",
        ),
        (
            {
                "containerStatuses": [
                    container(
                        {"waiting": {"reason": "CrashLoopBackOff"}},
                        lastState={"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
                    )
                ]
            },
            "problem",
            "OutOfMemory",
            "engine",
        ),
        ({"phase": "Failed", "reason": "Evicted"}, "problem", "Evicted", ""),
        ({"phase": "Failed", "reason": "NodeAffinity"}, "problem", "PodFailed", ""),
        (
            {"initContainerStatuses": [container({"terminated": {"exitCode": 3, "message": FETCH}}, "model")]},
            "model_problem",
            "AuthRequired",
            "",
        ),
        (
            {
                "initContainerStatuses": [
                    container(
                        {"waiting": {"reason": "CrashLoopBackOff"}},
                        "model",
                        lastState={"terminated": {"exitCode": 3, "message": FETCH}},
                    )
                ]
            },
            "model_problem",
            "AuthRequired",
            "",
        ),
        (
            {"initContainerStatuses": [container({"terminated": {"exitCode": 1, "message": "Traceback"}}, "model")]},
            "model_problem",
            "DownloadFailed",
            "",
        ),
    ],
)
def test_why_a_pod_cannot_start(status: dict[str, Any], where: str, reason: str, detail: str) -> None:
    view = pod_view(raw(**status))
    problem = getattr(view, where)
    assert problem and (problem.reason, problem.detail) == (reason, detail)
    assert getattr(view, {"problem": "model_problem", "model_problem": "problem"}[where]) is None


def test_a_download_that_is_tried_again_at_a_time_that_nobody_says_is_no_failure_while_it_runs() -> None:
    again = container({"running": {}}, "model", lastState={"terminated": {"exitCode": 3, "message": FETCH}})
    view = pod_view(raw(initContainerStatuses=[again]))
    assert view.downloading and view.model_problem is None
    assert (
        pod_view(raw(initContainerStatuses=[container({"terminated": {"exitCode": 0}}, "model")])).model_problem is None
    )


@pytest.mark.parametrize(
    ("message", "resource"),
    [
        ("0/1 nodes are available: 1 Insufficient cpu.", "cpu"),
        ("0/1 nodes are available: 1 Insufficient memory, 1 Insufficient nvidia.com/gpu.", "nvidia.com/gpu"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint, 1 Insufficient cpu", "cpu"),
        ("0/1 nodes are available: 1 node(s) had untolerated taint", "taint"),
        ("0/2 nodes: 1 node(s) didn't match Pod's node affinity/selector, 1 taint", "nodeSelector"),
        ("0/2 nodes are available", ""),
    ],
)
def test_missing_resource(message: str, resource: str) -> None:
    assert missing_resource(message) == resource


def test_whose_a_pod_is() -> None:
    def whose(owner: str = "", **labels: str) -> str:
        owners = [{"kind": "ReplicaSet", "name": owner, "controller": True}] if owner else []
        meta = {"name": "p", "uid": "u", "labels": {"semipd.io/service": "demo", **labels}, "ownerReferences": owners}
        return pod_view({"metadata": meta}).stranger

    assert whose("demo-7d9c") == whose(**{"pod-template-hash": "7d9c"}) == "", "an orphan will be adopted"
    assert whose("copy-7d9c") == "ReplicaSet copy-7d9c" and whose() == "nobody"


def test_the_commit_that_a_pod_runs_from_is_what_its_download_said() -> None:
    said = '{"reason": "Fetched", "message": "", "bytes": 1, "revision": "abc"}'

    def revision(**ended: Any) -> str:
        return pod_view(raw(initContainerStatuses=[container({"terminated": ended}, "model")])).model_revision

    assert revision(exitCode=0, message=said + "\n") == "abc"
    assert revision(exitCode=7, message=said) == "", "what failed runs nothing"
    assert [revision(exitCode=0, message=text) for text in ("", "no JSON", "[1]")] == ["", "", ""]
