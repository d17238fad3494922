"""The operator with the chart's `rbac` values off, where the cluster serves the kinds all the same."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.api.conftest import POD_MONITOR_CRD
from tests.api.harness import Operator, chart_rights, condition, row, service, serving
from tests.api.metrics_api import scaled_objects

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api

WITHOUT = {"rbac.podMonitors": "false", "rbac.scaledObjects": "false"}


@pytest.fixture(scope="module")
def restricted(crd: Any, tmp_path_factory: pytest.TempPathFactory, agent_port: int) -> Iterator[Operator]:
    for obj in chart_rights(values=WITHOUT):
        crd.apply(obj)
    crd.define(POD_MONITOR_CRD, scaled_objects())
    with Operator(crd, tmp_path_factory.mktemp("restricted"), agent_port) as running:
        yield running


def test_a_kind_without_rights_costs_a_service_nothing(
    restricted: Operator, crd: Any, namespace: str, agent_port: int
) -> None:
    user = "--as=system:serviceaccount:semipd-system:semipd-operator"
    for kind in ("podmonitors.monitoring.coreos.com", "scaledobjects.keda.sh"):
        answer = crd.kubectl("auth", "can-i", "get", kind, "-n", namespace, user, ok=False)
        assert answer.stdout.strip() == "no"
    with serving(crd, namespace, "plain", "127.0.0.21", agent_port):
        wait_until(lambda: row(crd, namespace, "plain")[1:5] == ["True", "Ready", "1", "100/100"])
        crd.kubectl("scale", "spd/plain", "-n", namespace, "--replicas=2")
        wait_until(lambda: crd.get("pdb", "plain", namespace), describe="what it may make it makes")


def test_what_was_asked_for_and_is_not_granted_is_said(restricted: Operator, crd: Any, namespace: str) -> None:
    keda = {"slo": {"ttftMilliseconds": 500}, "autoscaling": {"maxReplicas": 2, "keda": {"serverAddress": "http://p"}}}
    crd.apply(service("asks", namespace, monitoring={"podMonitor": True}, **keda))
    wait_until(lambda: condition(crd.get("spd", "asks", namespace), "ScalingReady").get("reason") == "NotGranted")
    live = crd.get("spd", "asks", namespace)
    accepted = condition(live, "SpecAccepted")
    assert accepted["status"] == "True" and "podmonitors.monitoring.coreos.com" in accepted["message"]
    assert "forbidden" in condition(live, "ScalingReady")["message"]
    assert crd.get("deployment", "asks", namespace)
