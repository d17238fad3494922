"""What a user sees in `kubectl get spd` when it cannot work: the cause, by name."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import pytest
import yaml

from e2e.lib.cluster import Cluster
from e2e.lib.fixtures import Serve
from e2e.lib.kube import Object
from e2e.lib.service import TINY_ENGINE, Service, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

GPU_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "gpu.yaml"


def test_no_gpu(serve: Serve) -> None:
    manifest = yaml.safe_load(GPU_EXAMPLE.read_text())
    manifest["spec"]["model"]["uri"] = "pvc://models/qwen3-8b"
    service = serve(manifest["metadata"]["name"], manifest["spec"])
    found = service.wait_condition("Available", "False", "Unschedulable")
    assert "nvidia.com/gpu" in found["message"]
    row = service.row()
    assert (row["READY"], row["REASON"]) == ("False", "Unschedulable(nvidia.com/gpu)")


@dataclass(frozen=True)
class Wrong:
    """A specification that cannot work here, and what the row and the description say of it."""

    reason: str
    """As the column REASON has it."""
    message: str
    """A pattern of a line ``Message:`` of the description: cause, in the words of who refuses, and remedy."""
    spec: Object
    objects: tuple[Object, ...] = ()


def folder_without(model: Path, name: str) -> Path:
    """A copy of a model of which only the first half of one file came."""
    target = model.with_name(f"{model.name}-half")
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(model, target)
    content = (target / name).read_bytes()
    (target / name).write_bytes(content[: len(content) // 2])
    return target


LIMITS = {
    "apiVersion": "v1",
    "kind": "LimitRange",
    "metadata": {"name": "small"},
    "spec": {"limits": [{"type": "Container", "default": {"memory": "200Mi"}, "defaultRequest": {"memory": "100Mi"}}]},
}


NOWHERE = {"httpGet": {"path": "/nowhere"}}


def table(model: str, half: str) -> dict[str, Wrong]:
    bare = {"resources": {"requests": {"cpu": "100m"}}}
    return {
        "image": Wrong(
            "ImagePullFailed(engine)",
            "*container engine: *registry.invalid/engine:none*. Remedy: Check spec.engine.image (not found: name or "
            "tag), the registry (no such host, *",
            spec(model, engine={"image": "registry.invalid/engine:none"}),
        ),
        "another-image": Wrong(
            "ContainerNotStarted(engine)",
            '*container engine: *"semipd-agent": executable file not found in $PATH*. Remedy: Correct '
            "spec.engine.image (or the chart's engine.image): *",
            spec(model, engine={"image": "localhost/semipd/pause:1.0"}),
        ),
        "keys": Wrong(
            "VolumeNotMounted(secret/no-keys)",
            'keys-*: MountVolume.SetUp failed for volume "api-keys" : *secret "no-keys" not found. Remedy: Create what '
            "the message names *",
            spec(model, service={"apiKeySecretRef": {"name": "no-keys", "key": "keys"}}),
        ),
        "token": Wrong(
            "CreateContainerConfigError(model)",
            'token-*: container model: secret "no-token" not found. Remedy: Create what the message names; *',
            {
                "model": {"uri": "hf://org/gated", "tokenSecretRef": {"name": "no-token", "key": "token"}},
                "engine": TINY_ENGINE,
            },
        ),
        "account": Wrong(
            "ServiceAccountMissing",
            'pods "account-*" is forbidden: error looking up service account */robot: serviceaccount "robot" not '
            "found. Remedy: Create it, or correct serviceAccountName in spec.podTemplate.",
            spec(model, podTemplate={"spec": {"serviceAccountName": "robot"}}),
        ),
        "half": Wrong(
            "LoadFailed",
            "half-*: *exited with 2*/tokenizer.json*. Remedy: Mend what the message names *; *",
            spec(half),
        ),
        "memory": Wrong(
            "OutOfMemory",
            "memory-*: * killed at *memory limit of *. Remedy: *aise spec.engine.resources.limits.memory*",
            spec(model, engine=bare),
            (LIMITS,),
        ),
        "too-little": Wrong(
            "OutOfMemory",
            "too-little-*: the weights need * MiB and --kv-cache-memory (engine.kvCacheMemory) is 4096 MiB, but * MiB "
            "of memory can be had: raise the memory limit (engine.resources) by at least * MiB. Remedy: Do what "
            "the message asks for; else raise spec.engine.resources.limits.memory, or lower *",
            spec(model, engine={"kvCacheMemory": "4Gi"}),  # of 3Gi, in which the engine's processes have room
        ),
        "probe": Wrong(
            "ProbeFailing(engine)",
            "probe-*: the engine serves, and its readiness probe fails: *statuscode: 40?*. Remedy: Correct "
            "readinessProbe of container engine in spec.podTemplate, *",
            spec(model, podTemplate={"spec": {"containers": [{"name": "engine", "readinessProbe": NOWHERE}]}}),
        ),
    }


def told(service: Service, wrong: Wrong) -> str | None:
    """The line of the description, once it and the row say what is wrong; other words may come before them."""
    row = service.row()
    if (row["READY"], row["REASON"]) != ("False", wrong.reason):
        return None
    return next((line for line in service.described() if fnmatchcase(line, f"Message: {wrong.message}")), None)


def test_cause_and_remedy_are_in_the_row_and_in_the_description(
    cluster: Cluster, space: str, serve: Serve, model_paths: dict[str, Path]
) -> None:
    model = model_paths["tiny-llama"]
    half = folder_without(model, "tokenizer.json")
    wrongs = table(model.name, half.name)
    for wrong in wrongs.values():
        if wrong.objects:
            cluster.apply(*wrong.objects, namespace=space)
    services = {name: serve(name, wrong.spec) for name, wrong in wrongs.items()}
    try:
        for name, wrong in wrongs.items():
            service = services[name]
            found = wait_until(partial(told, service, wrong), describe=service.described)
            print(service.row(), found, sep="\n")
        # Put right, it serves.
        services["image"].patch({"engine": {"image": None}})
        cluster.kubectl("--namespace", space, "delete", "limitrange", "small")
        services["image"].wait_ready()
        for name in ("half", "too-little"):
            assert set(services[name].lives().values()) == {0}, "no restart helps: it is said once, and tried again"
    finally:
        shutil.rmtree(half)
        cluster.exec("kubectl", "--namespace", space, "delete", "limitrange", "small", "--ignore-not-found")


def test_no_such_folder(serve: Serve, model_paths: dict[str, Path]) -> None:
    """The pod stays: the agent says why and tries again in growing pauses."""
    service = serve("tiny", spec("no-such-folder"))
    found = service.wait_condition("ModelReady", "False", "NotFound")
    assert "no-such-folder" in found["message"]
    assert service.row()["REASON"].startswith("NotFound")
    time.sleep(15)
    assert list(service.lives().values()) == [0]
    assert service.status()["model"]["state"] == "Failed"
    service.patch({"model": {"uri": f"pvc://models/{model_paths['tiny-llama'].name}"}})
    wait_until(lambda: service.condition("ModelReady").get("status") == "True", describe=service.status)
    service.wait_ready()
