"""Pods that ended, pods that cannot be, and rollouts: which of them the status tells."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator_observed import ago, conditions, observed, pod
from tests.unit.operator_pods import ended, unplaced

from semipd_operator.status import summarise
from semipd_operator.status.pods import pod_view
from semipd_operator.status.refusals import stalled

pytestmark = pytest.mark.unit


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
