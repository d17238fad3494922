"""RBAC that refuses for a while what the operator needs: it lives on, says which rule is missing, and hears again."""

from __future__ import annotations

import copy
import itertools
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import Operator, chart_rights, condition, service

from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api


@pytest.fixture
def rights(crd: Any) -> Iterator[list[dict[str, Any]]]:
    """As the chart has them, and as they are again afterwards."""
    whole = chart_rights()
    for obj in whole:
        crd.apply(obj)
    yield whole
    for obj in whole:
        crd.apply(obj)


def without(rights: list[dict[str, Any]], resource: str, *verbs: str) -> list[dict[str, Any]]:
    left = copy.deepcopy(rights)
    for obj in left:
        for rule in obj.get("rules") or []:
            if rule["resources"] == [resource] and "watch" in rule["verbs"]:
                rule["verbs"] = [verb for verb in rule["verbs"] if verb not in verbs] or ["get"]
    assert left != rights
    return left


def apply(crd: Any, rights: list[dict[str, Any]]) -> None:
    for obj in rights:
        if obj["kind"] == "ClusterRole":
            crd.apply(obj)


def answer(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as got:
            return got.status, got.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def refused(crd: Any, since: int, resource: str, verb: str) -> list[datetime]:
    """When the API server refused it, by its audit log."""
    *lines, _ = crd.audit_log.read_bytes()[since:].split(b"\n")
    entries = [json.loads(line) for line in lines]
    return sorted(  # of a watch there is an entry for its beginning, and one for its end
        {
            entry["auditID"]: datetime.fromisoformat(entry["requestReceivedTimestamp"])
            for entry in entries
            if (entry.get("objectRef") or {}).get("resource") == resource
            and entry["verb"] == verb
            and entry.get("responseStatus", {}).get("code") == 403
        }.values()
    )


def gaps(times: list[datetime]) -> list[float]:
    return [(after - before).total_seconds() for before, after in itertools.pairwise(times)]


def test_an_operator_that_begins_without_the_right_to_watch(
    crd: Any, namespace: str, agent_port: int, tmp_path: Path, rights: list[dict[str, Any]]
) -> None:
    apply(crd, without(rights, "semipdservices", "watch"))
    since = crd.audit_log.stat().st_size
    operator = Operator(crd, tmp_path, agent_port)
    try:
        words = "RBAC refuses watch semipdservices.semipd.io in all namespaces (403)"
        rule = "{apiGroups: [semipd.io], resources: [semipdservices], verbs: [list, watch]}"
        wait_until(lambda: words in operator.log.read_text(), describe=lambda: operator.log.read_text()[-3000:])
        assert rule in operator.log.read_text()
        # What a list shows is done all the same, in the period of the resync.
        crd.apply(service("early", namespace, replicas=0))
        wait_until(lambda: condition(crd.get("spd", "early", namespace), "Ready").get("status") == "True")
        wait_until(lambda: len(refused(crd, since, "semipdservices", "watch")) >= 4)
        times = refused(crd, since, "semipdservices", "watch")
        waited = zip(gaps(times), (1, 2, 4, 8, 15), strict=False)
        assert all(seconds > least * 0.9 for seconds, least in waited), "longer each time"
        assert answer(operator.health.replace("readyz", "healthz")) == (200, "ok"), (
            "a new process would be refused, too"
        )
        assert answer(operator.health) == (503, "starting: no watch of the services yet")
        gauge = 'semipd_operator_rights_missing{resource="semipdservices",verb="watch"} 1.0'
        assert gauge in answer(operator.metrics)[1]
        assert operator.log.read_text().count(words) == 1 and "APIForbiddenError" not in operator.log.read_text()

        apply(crd, rights)
        wait_until(operator.ready, describe="without a restart")
        assert "watch semipdservices.semipd.io in all namespaces is granted again" in operator.log.read_text()
        crd.apply(service("late", namespace, replicas=0))
        wait_until(lambda: condition(crd.get("spd", "late", namespace), "Ready").get("status") == "True")
        assert operator.process.poll() is None
    finally:
        operator.__exit__()


def test_a_list_that_is_refused_while_the_operator_runs(
    crd: Any, namespace: str, agent_port: int, tmp_path: Path, rights: list[dict[str, Any]]
) -> None:
    """Its resync meets it. The watch that is open stays so, and the services are looked after."""
    with Operator(crd, tmp_path, agent_port) as operator:
        since = crd.audit_log.stat().st_size
        apply(crd, without(rights, "pods", "list"))
        words = "RBAC refuses list pods in all namespaces (403)"
        wait_until(lambda: words in operator.log.read_text(), describe=lambda: operator.log.read_text()[-3000:])
        crd.apply(service("meanwhile", namespace, replicas=0))
        wait_until(lambda: condition(crd.get("spd", "meanwhile", namespace), "Ready").get("status") == "True")
        wait_until(lambda: len(refused(crd, since, "pods", "list")) >= 3)
        waited = zip(gaps(refused(crd, since, "pods", "list")), (2, 4, 8, 15), strict=False)
        assert all(seconds > least * 0.9 for seconds, least in waited), "it does not spin"
        assert answer(operator.health.replace("readyz", "healthz"))[0] == answer(operator.health)[0] == 200
        apply(crd, rights)
        wait_until(lambda: "list pods in all namespaces is granted again" in operator.log.read_text())
        assert operator.log.read_text().count(words) == 1


def test_a_watched_namespace_that_is_gone_holds_up_no_other_one(
    crd: Any, namespace: str, agent_port: int, tmp_path: Path, rights: list[dict[str, Any]]
) -> None:
    """An operator that starts without it, as after `kubectl delete namespace`, which takes the Role along."""
    gone = f"{namespace}-gone"
    narrow = chart_rights(values={"watchNamespaces": f"{{{namespace},{gone}}}", "metricsApi.enabled": "false"})
    theirs = [obj for obj in narrow if obj["metadata"].get("namespace") == gone]
    crd.kubectl("delete", "clusterrolebinding", "semipd-operator")
    for obj in narrow:
        if obj not in theirs:
            crd.apply(obj)
    with Operator(crd, tmp_path, agent_port, f"--namespace={namespace}", f"--namespace={gone}") as operator:
        crd.apply(service("one", namespace, replicas=0))
        wait_until(lambda: condition(crd.get("spd", "one", namespace), "Ready").get("status") == "True")
        refusal = f"RBAC refuses list semipdservices.semipd.io in namespace {gone} (403)"
        assert operator.log.read_text().count(refusal) == 1
        crd.kubectl("create", "namespace", gone)
        crd.apply(service("two", gone, replicas=0))
        for obj in theirs:
            crd.apply(obj)
        wait_until(lambda: condition(crd.get("spd", "two", gone), "Ready").get("status") == "True")
        assert f"list semipdservices.semipd.io in namespace {gone} is granted again" in operator.log.read_text()
        assert answer(operator.health)[0] == answer(operator.health.replace("readyz", "healthz"))[0] == 200


def test_a_namespace_whose_role_lacks_the_pods_holds_up_no_other_one(
    crd: Any, namespace: str, agent_port: int, tmp_path: Path, rights: list[dict[str, Any]]
) -> None:
    other = f"{namespace}-other"
    crd.kubectl("create", "namespace", other)
    narrow = chart_rights(values={"watchNamespaces": f"{{{namespace},{other}}}", "metricsApi.enabled": "false"})
    theirs = [obj for obj in narrow if obj["metadata"].get("namespace") == other]
    crd.kubectl("delete", "clusterrolebinding", "semipd-operator")
    for obj in (*narrow, *without(theirs, "pods", "list")):
        crd.apply(obj)
    with Operator(crd, tmp_path, agent_port, f"--namespace={namespace}", f"--namespace={other}") as operator:
        crd.apply(service("two", other, replicas=0))
        crd.apply(service("one", namespace, replicas=0))
        wait_until(lambda: condition(crd.get("spd", "one", namespace), "Ready").get("status") == "True")
        assert f"RBAC refuses list pods in namespace {other} (403)" in operator.log.read_text()
        assert not crd.get("spd", "two", other).get("status"), "what is not known of it would be told wrongly"
        for obj in theirs:
            crd.apply(obj)
        wait_until(lambda: condition(crd.get("spd", "two", other), "Ready").get("status") == "True")
