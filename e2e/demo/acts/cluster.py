"""The cluster: up, operator by Helm, the model on a claim, `kubectl apply`, `kubectl get spd`."""

from __future__ import annotations

import re
from pathlib import Path

from e2e.demo.outcome import Outcome
from e2e.demo.service import Deployed, manifest, wait_for
from e2e.lib.helm import SYSTEM, Operator
from e2e.lib.kube import Kube, Object
from e2e.lib.service import models_claim, ready
from semipd_operator.settings import ENGINE_USER as USER

NAMESPACE = "demo"
READY_SECONDS = 180.0
PULL_SECONDS = 900
"""The engine's image is 2.8 GB compressed: four minutes at 100 Mbit/s, and it must be unpacked."""


def show(outcome: Outcome, kube: Kube, *arguments: str) -> str:
    """Runs kubectl and shows command and answer, as a reader would have typed it."""
    answer = kube.kubectl(*arguments)
    command = f"kubectl {' '.join(arguments)}"
    outcome.console.print(f"  [bold]$ {command}[/]")
    outcome.console.print(answer.rstrip(), markup=False, highlight=False, soft_wrap=True)
    outcome.transcript.append((f"$ {command}", answer))
    return answer


def install(outcome: Outcome, kube: Kube, images: dict[str, str], *, local: bool) -> None:
    """Helm, with the images given (operator and engine, with their tags)."""
    # The tags of a registry move; those of the local cluster carry the content's hash, and are in its containerd only.
    values = () if local else ("--set", "image.pullPolicy=Always,engine.image.pullPolicy=Always")
    Operator(kube, images).ensure(*values)
    shown = kube.kubectl("-n", SYSTEM, "get", "deployments").splitlines()
    outcome.console.print("\n".join(f"  {line}" for line in shown), markup=False, highlight=False)
    outcome.check(
        "the operator is installed by Helm and available",
        len(shown) > 1 and all(re.search(r"\s([1-9]\d*)/\1\s", line) for line in shown[1:]),
        images["operator"],
    )


def deploy(outcome: Outcome, kube: Kube, model: Path, *, local: bool, engine_image: str) -> Deployed:
    """Applies the example's manifest over a claim that holds the model, and waits until it is Ready."""
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    kube.apply(*models_claim(NAMESPACE, model.parent if local else None))
    spd = manifest(f"pvc://models/{model.name}")
    spd["metadata"]["namespace"] = NAMESPACE
    spd["spec"]["engine"]["resources"]["requests"]["cpu"] = "500m"  # two pods fit on a machine with two cores
    service = Deployed(kube, NAMESPACE, spd["metadata"]["name"])
    # Of an earlier demo: a new operator restarts no engine, and behind a registry's tag may be another image by now.
    if service.images() - ({engine_image} if local else set()):
        gone = ["--ignore-not-found", "--wait", "--cascade=foreground"]
        kube.kubectl("-n", NAMESPACE, "delete", "spd", service.name, *gone, timeout_s=120)
    if not local:
        outcome.console.print("  copying the model to the claim; the first time the engine's image is pulled for it")
        node = upload(kube, model, engine_image)
        spd["spec"]["podTemplate"] = {"spec": {"affinity": on_node(node)}}
    outcome.console.print("  [bold]$ kubectl apply -f examples/cpu.yaml[/]  [dim](with the demo's model folder)[/]")
    outcome.console.print(f"  {kube.apply(spd).strip()}", markup=False)
    service.patch({"slo": None, "autoscaling": None, "replicas": 1})  # what an earlier demo patched in
    _, seconds = wait_for(service, ready, READY_SECONDS, "Ready")
    show(outcome, kube, "-n", NAMESPACE, "get", "spd")
    outcome.check("kubectl apply gives a Ready service", True, f"{seconds:.0f} s")
    return service


def on_node(name: str) -> Object:
    """Affinity to one node: a ReadWriteOnce claim cannot be attached to two."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}


def upload(kube: Kube, model: Path, image: str) -> str:
    """Copies the model folder onto the claim, through a pod that only waits. Returns the pod's node."""
    name = "model-upload"
    volume = {"name": "models", "persistentVolumeClaim": {"claimName": "models"}}
    pod: Object = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "restartPolicy": "Never",
            "volumes": [volume],
            "securityContext": {"fsGroup": USER},
            "containers": [
                {
                    "name": "upload",
                    "image": image,
                    "imagePullPolicy": "Always",
                    "command": ["sleep", "3600"],
                    "volumeMounts": [{"name": "models", "mountPath": "/models"}],
                }
            ],
        },
    }
    kube.kubectl("-n", NAMESPACE, "delete", "pod", name, "--ignore-not-found")  # of a demo that was interrupted
    kube.apply(pod)
    until = ["--for=condition=Ready", f"--timeout={PULL_SECONDS}s"]
    kube.kubectl("-n", NAMESPACE, "wait", f"pod/{name}", *until, timeout_s=PULL_SECONDS + 10)
    node = str(kube.get("pod", name, NAMESPACE)["spec"]["nodeName"])
    copy = ["cp", "--no-preserve", str(model), f"{name}:/models"]
    kube.kubectl("-n", NAMESPACE, *copy, timeout_s=PULL_SECONDS)
    kube.kubectl("-n", NAMESPACE, "delete", "pod", name, "--grace-period=1")
    return node
