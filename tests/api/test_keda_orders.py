"""KEDA beside us, whichever came first: install, upgrade and removal of either take nothing from the other.

KEDA is what its chart has of it in a cluster's API: the one APIService, applied by Helm. There is no garbage collector
here, so what goes with the release's ClusterRole is looked up and deleted by hand.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.api.harness import OPERATOR_NAMESPACE, Operator, chart_rights, condition, service
from tests.api.metrics_api import API_SERVICE, NAME, SLO, flags, here

from e2e.lib.process import free_port
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.api

PATH = f"/apis/apiregistration.k8s.io/v1/apiservices/{API_SERVICE}"
THEIRS = {"namespace": "keda", "name": "keda-operator-metrics-apiserver", "port": 443}
SPEC = {
    "group": "external.metrics.k8s.io",
    "version": "v1beta1",
    "groupPriorityMinimum": 100,
    "versionPriority": 100,
    "service": THEIRS,
}
OURS = f"{NAME}-metrics-api"


class Keda:
    def __init__(self, crd: Any) -> None:
        self._crd, self._versions = crd, itertools.count(1)

    def _apply(self, *how: str, ok: bool = True) -> Any:
        labels = {"app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": f"keda-2.{next(self._versions)}"}
        meta = {"name": API_SERVICE, "labels": labels}
        registered = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": meta, "spec": SPEC}
        return self._crd.apply(registered, "--server-side", "--field-manager=helm", *how, ok=ok)

    def install(self) -> None:
        """An upgrade is the same, of another version."""
        self._apply()

    def install_over_ours(self) -> None:
        """Helm and server-side apply refuse to take what is not theirs; who insists has it."""
        refused = self._apply(ok=False)
        assert refused.returncode != 0 and "conflict" in refused.stderr
        self._apply("--force-conflicts")

    def uninstall(self) -> None:
        self._crd.kubectl("delete", "apiservice", API_SERVICE)


class Release:
    """Ours: the chart's rights and the operator."""

    def __init__(self, crd: Any, folder: Path) -> None:
        self._crd, self._folder, self._starts = crd, folder, itertools.count()
        self.operator: Operator | None = None

    def install(self) -> None:
        for obj in chart_rights("metrics-api"):
            self._crd.apply(here(obj))
        folder = self._folder / str(next(self._starts))
        folder.mkdir()
        self.operator = Operator(self._crd, folder, free_port(), *flags(free_port()), ip="10.1.2.3").__enter__()

    def stop(self) -> None:
        if self.operator is not None:
            self.operator.__exit__()
            self.operator = None

    def upgrade(self) -> None:
        self.stop()
        self.install()

    def uninstall(self) -> None:
        """With what Kubernetes collects then: all whose owner is the ClusterRole."""
        self.stop()
        uid = self._crd.get("clusterrole", OURS, "default")["metadata"]["uid"]
        self._crd.kubectl("delete", "clusterrole", OURS)
        if uid in owners(self._crd):
            self._crd.kubectl("delete", "apiservice", API_SERVICE)

    def looks(self) -> int:
        """How often the operator has looked at the registration: each time it reads the front proxy's CA first."""
        lines = self._crd.audit_log.read_text().splitlines()
        return sum('"name":"extension-apiserver-authentication"' in line for line in lines)

    def has_looked(self) -> None:
        """A whole look began and ended since."""
        before = self.looks()
        wait_until(lambda: self.looks() >= before + 2)


def live(crd: Any) -> dict[str, Any] | None:
    found: dict[str, Any] | None = crd.get("apiservice", API_SERVICE, "default")
    return found


def owners(crd: Any) -> list[str]:
    found = (live(crd) or {"metadata": {}})["metadata"].get("ownerReferences") or []
    return [each["uid"] for each in found]


def is_ours(crd: Any) -> bool:
    """It leads to us, and goes with our release."""
    found = live(crd)
    return found is not None and found["spec"]["service"]["name"] == OURS and bool(owners(crd))


def is_theirs_alone(crd: Any) -> bool:
    """It leads to KEDA, would survive the end of our release, and is not believed by our CA."""
    found = live(crd)
    if found is None or found["spec"] != SPEC or owners(crd):
        return False
    return "semipd" not in json.dumps(found["metadata"]["labels"])


def reason(crd: Any, namespace: str) -> str | None:
    return condition(crd.get("spd", "h", namespace), "ScalingReady").get("reason")


@pytest.fixture
def release(crd: Any, tmp_path: Path, namespace: str) -> Iterator[Release]:
    """A service scales by the external metrics, and nobody serves them yet."""
    crd.kubectl("delete", "apiservice", API_SERVICE, "--ignore-not-found")
    crd.apply(service("h", namespace, slo=SLO, autoscaling={"maxReplicas": 3}))
    ours = Release(crd, tmp_path)
    try:
        yield ours
    finally:
        ours.stop()
        crd.kubectl("delete", "spd", "h", "-n", namespace)
        crd.kubectl("delete", "apiservice", API_SERVICE, "--ignore-not-found")


def told_whose(release: Release) -> bool:
    assert release.operator is not None
    return "belongs to keda/keda-operator-metrics-apiserver; it is left alone" in release.operator.log.read_text()


def test_keda_comes_first(crd: Any, namespace: str, release: Release) -> None:
    keda = Keda(crd)
    keda.install()
    uid = (live(crd) or {})["metadata"]["uid"]

    def untouched() -> bool:
        found = crd.request("GET", PATH)
        managers = {entry["manager"] for entry in found["metadata"]["managedFields"]}
        return is_theirs_alone(crd) and found["metadata"]["uid"] == uid and not managers & {NAME, "semipd"}

    release.install()
    wait_until(lambda: told_whose(release))
    wait_until(lambda: reason(crd, namespace) == "MetricsServedElsewhere", describe=lambda: reason(crd, namespace))
    keda.install()  # its upgrade meets nothing of ours
    release.has_looked()
    assert untouched()
    release.upgrade()
    wait_until(lambda: told_whose(release))
    assert untouched()
    release.uninstall()
    assert untouched()
    release.install()
    wait_until(lambda: told_whose(release))
    keda.uninstall()
    wait_until(lambda: is_ours(crd), describe=lambda: live(crd))
    wait_until(lambda: reason(crd, namespace) != "MetricsServedElsewhere")
    release.uninstall()
    assert live(crd) is None, "nothing of ours is left behind, and no namespace waits for an API that is gone"


def test_keda_comes_after_us(crd: Any, namespace: str, release: Release) -> None:
    keda = Keda(crd)
    release.install()
    wait_until(lambda: is_ours(crd), describe=lambda: live(crd))
    release.upgrade()
    assert is_ours(crd)
    keda.install_over_ours()
    wait_until(lambda: is_theirs_alone(crd), describe=lambda: live(crd))
    assert told_whose(release)
    keda.install()
    # Nobody scales by ours any more: what is theirs is not withdrawn for it.
    crd.kubectl("patch", "spd", "h", "-n", namespace, "--type=merge", "-p", json.dumps({"spec": {"autoscaling": None}}))
    release.has_looked()
    assert is_theirs_alone(crd)
    scales = {"spec": {"autoscaling": {"maxReplicas": 3}}}
    crd.kubectl("patch", "spd", "h", "-n", namespace, "--type=merge", "-p", json.dumps(scales))
    release.upgrade()
    wait_until(lambda: told_whose(release))
    assert is_theirs_alone(crd)
    keda.uninstall()
    wait_until(lambda: is_ours(crd), describe=lambda: live(crd))
    keda.install_over_ours()
    wait_until(lambda: is_theirs_alone(crd), describe=lambda: live(crd))
    release.uninstall()
    assert is_theirs_alone(crd)
    keda.uninstall()
    assert live(crd) is None and crd.get("namespace", OPERATOR_NAMESPACE, "default")


def test_keda_that_takes_over_while_we_are_away(crd: Any, release: Release) -> None:
    """Our operator was down: the tie to our release is off as soon as it is up."""
    keda = Keda(crd)
    release.install()
    wait_until(lambda: is_ours(crd), describe=lambda: live(crd))
    release.stop()
    keda.install_over_ours()
    release.install()
    wait_until(lambda: is_theirs_alone(crd), describe=lambda: live(crd))
    release.uninstall()
    assert is_theirs_alone(crd)
