"""A SemiPDService on a live cluster, as tests and the demo drive it: apply, patch, read, wait, and the pods behind it.

Everything goes through kubectl, the way a user would. It knows no test and no load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from e2e.lib.kube import Kube, Object
from e2e.lib.waiting import PATIENCE_S, wait_until

TINY_ENGINE: Object = {
    "device": "cpu",
    "dtype": "float32",
    "kvCacheMemory": "128Mi",
    "maxModelLen": 2048,
    "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "3Gi"}},
}
"""Enough for the random models and for SmolLM2 in float32; two such pods fit on two cores."""


def spec(model: str, *, engine: Object | None = None, **rest: Any) -> Object:
    """A specification for a folder of the models' claim; `engine` overrides, `rest` adds fields."""
    return {
        "model": {"uri": f"pvc://models/{model}", "servedName": "model"},
        "engine": TINY_ENGINE | (engine or {}),
        **rest,
    }


def manual(prefill: int, decode: int) -> Object:
    return {"mode": "Manual", "prefillPercent": prefill, "decodePercent": decode}


def shares(prefill: int, decode: int) -> Object:
    """As the status shows a split."""
    return {"prefillPercent": prefill, "decodePercent": decode}


def condition(obj: Object, kind: str) -> Object:
    """Empty while it is not there."""
    found = (obj.get("status") or {}).get("conditions") or ()
    return next((entry for entry in found if entry["type"] == kind), {})


def ready(obj: Object) -> bool:
    """Ready is True, and about the spec as it is now."""
    found = condition(obj, "Ready")
    generation = obj.get("metadata", {}).get("generation", 0)
    return found.get("status") == "True" and found.get("observedGeneration", 0) >= generation


def models_claim(namespace: str, folder: Path | None, size: str = "2Gi") -> tuple[Object, ...]:
    """The claim `models` in `namespace`: of the default storage class, or a volume over a folder of the node."""
    request: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    claim: Object = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "models", "namespace": namespace},
        "spec": request,
    }
    if folder is None:
        return (claim,)
    name = f"{namespace}-models"
    request |= {"storageClassName": "", "volumeName": name, "accessModes": ["ReadOnlyMany"]}
    spec: Object = {
        "capacity": {"storage": size},
        "accessModes": ["ReadOnlyMany"],
        "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
        "claimRef": {"namespace": namespace, "name": "models"},
        "hostPath": {"path": str(folder), "type": "Directory"},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}, claim


class Service:
    """One SemiPDService by name; it need not exist yet."""

    def __init__(self, cluster: Kube, namespace: str, name: str) -> None:
        self.cluster, self.namespace, self.name = cluster, namespace, name

    def apply(self, spec: Object) -> Service:
        metadata = {"name": self.name, "namespace": self.namespace}
        manifest = {"apiVersion": "semipd.io/v1alpha1", "kind": "SemiPDService", "metadata": metadata, "spec": spec}
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))
        return self

    def patch(self, spec: Object) -> None:
        self._kubectl("patch", "spd", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def delete(self) -> None:
        self._kubectl("delete", "spd", self.name, "--wait=true")

    def get(self) -> Object:
        found: Object = json.loads(self._kubectl("get", "spd", self.name, "-o", "json"))
        return found

    def status(self) -> Object:
        found: Object = self.get().get("status") or {}
        return found

    def row(self) -> Object:
        """What `kubectl get spd` prints, by column."""
        head, line = self._kubectl("get", "spd", self.name).splitlines()
        starts = [(name, head.index(name)) for name in head.split()]
        ends = [start for _, start in starts[1:]] + [None]
        return {name: line[start:end].strip() for (name, start), end in zip(starts, ends, strict=True)}

    def described(self) -> list[str]:
        """The lines of `kubectl describe spd`, white space aside."""
        return [" ".join(line.split()) for line in self._kubectl("describe", "spd", self.name).splitlines()]

    def condition(self, kind: str) -> Object:
        """Empty while it is not there."""
        return condition(self.get(), kind)

    def wait_ready(self, timeout_s: float = PATIENCE_S) -> Service:
        """Until Ready is True for the present generation, and kube-proxy, which is told when we are, leads to a pod."""
        wait_until(lambda: ready(self.get()), timeout_s, lambda: f"{self.name} Ready: {self.condition('Ready')}")
        if self.status().get("readyReplicas"):
            at = urlsplit(self.url())
            wait_until(
                lambda: self.cluster.reaches(at.hostname or "", at.port or 80), describe=f"a pod behind {at.netloc}"
            )
        return self

    def wait_condition(self, kind: str, status: str, reason: str, timeout_s: float = PATIENCE_S) -> Object:
        def reached() -> Object | None:
            found = self.condition(kind)
            return found if (found.get("status"), found.get("reason")) == (status, reason) else None

        return wait_until(reached, timeout_s, lambda: f"{kind}={status} {reason}: {self.condition(kind)}") or {}

    def url(self) -> str:
        """Address of the Service; answers inside `cluster.network()`."""
        port = self.cluster.get("service", self.name, self.namespace)["spec"]
        return f"http://{port['clusterIP']}:{port['ports'][0]['port']}"

    def pods(self) -> list[Object]:
        """Its pods that are not being deleted."""
        listed = json.loads(self._kubectl("get", "pods", "-l", f"semipd.io/service={self.name}", "-o", "json"))
        return [pod for pod in listed["items"] if "deletionTimestamp" not in pod["metadata"]]

    def lives(self) -> dict[str, int]:
        """Restart count of each pod by uid: equal before and after means that nothing was restarted."""
        return {
            pod["metadata"]["uid"]: sum(entry["restartCount"] for entry in pod["status"].get("containerStatuses", []))
            for pod in self.pods()
        }

    def run_in_pod(self, script: str) -> str:
        """Output of a Python script in the one pod's container `engine`."""
        [pod] = self.pods()
        return self._kubectl("exec", pod["metadata"]["name"], "-c", "engine", "--", "python3", "-c", script)

    def _kubectl(self, *argv: str) -> str:
        return self.cluster.kubectl("--namespace", self.namespace, *argv)
