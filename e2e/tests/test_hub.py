"""A model from a hub: the pod finds it by the cluster's DNS, waits until it is there, and says which commit it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from e2e.lib import hub
from e2e.lib.cluster import ENGINE_IMAGE, Cluster
from e2e.lib.completions import Ask, complete_all
from e2e.lib.fixtures import Serve
from e2e.lib.kube import Object
from e2e.lib.service import spec

pytestmark = pytest.mark.node
MODEL = "org/tiny"


def stand_in(space: str, folder: str) -> tuple[Object, ...]:
    """`hub.py` in a pod of its own behind the Service `hub`, over one folder of the claim `models`."""
    meta = {"name": "hub", "namespace": space}
    container = {
        "name": "hub",
        "image": ENGINE_IMAGE,
        "imagePullPolicy": "Never",
        "command": ["python3", "/code/hub.py", MODEL, f"/models/{folder}", "8080"],
        "volumeMounts": [{"name": "code", "mountPath": "/code"}, {"name": "models", "mountPath": "/models"}],
    }
    volumes = [
        {"name": "code", "configMap": {"name": "hub"}},
        {"name": "models", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
    ]
    pod_spec = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 0}
    port = {"port": 80, "targetPort": 8080}
    return (
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"hub.py": Path(hub.__file__).read_text()}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**meta, "labels": {"app": "hub"}}, "spec": pod_spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": {"app": "hub"}, "ports": [port]},
        },
    )


def test_a_model_comes_from_a_hub(cluster: Cluster, space: str, serve: Serve, model_paths: dict[str, Path]) -> None:
    mirror = {"name": "HF_ENDPOINT", "value": f"http://hub.{space}.svc.cluster.local"}
    wanted = spec("", podTemplate={"spec": {"initContainers": [{"name": "model", "env": [mirror]}]}})
    wanted["model"] = {"uri": f"hf://{MODEL}", "revision": "main", "servedName": "model"}
    service = serve("from-hub", wanted)
    refused = service.wait_condition("ModelReady", "False", "Unreachable")
    assert mirror["value"].removeprefix("http://") in refused["message"] or "hub" in refused["message"]
    cluster.apply(*stand_in(space, model_paths["tiny-llama"].name))
    service.wait_ready()
    commit = service.status()["model"]["resolvedRevision"]
    assert commit == hub.of_folder(MODEL, model_paths["tiny-llama"]).commit
    with cluster.network():
        [answer] = complete_all(service.url(), [Ask((1, 2, 3), max_tokens=4)])
    assert len(answer.token_ids) == 4
