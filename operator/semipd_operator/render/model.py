"""How a model comes into the pod: its directory, its volumes, and the init container that downloads it.

Knows the three URI schemes; knows nothing of the engine but the ``semipd-engine fetch`` command.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from semipd_agent.contract import CONFIG_MOUNT
from semipd_operator.api.v1alpha1.model import ModelSpec
from semipd_operator.render.names import MODEL_CONTAINER, PIN_FILE, Object

MODELS_MOUNT = "/models"
MODELS_VOLUME = "models"
_CHOICE = {"name": "model", "mountPath": "/model"}
"""Of the pod's own: a link to the folder of the commit that this pod runs from."""
_CHOSEN = "/model/current"


@dataclass(frozen=True)
class ModelSource:
    """`directory` is where the engine finds the weights."""

    directory: str
    volumes: list[Object] = field(default_factory=list)
    mounts: list[Object] = field(default_factory=list)
    init_containers: list[Object] = field(default_factory=list)


def model_source(
    model: ModelSpec, image: str, security_context: Object, scratch: list[Object], resources: Object
) -> ModelSource:
    """`scratch`: mounts that any container with a read-only root file system needs. `resources`: of the download."""
    scheme, _, rest = model.uri.partition("://")
    if scheme == "file":
        return ModelSource(directory=rest)
    if scheme == "pvc":
        claim, _, folder = rest.strip("/").partition("/")
        return ModelSource(
            directory=f"{MODELS_MOUNT}/{folder}".rstrip("/"),
            volumes=[_claim(claim, read_only=True)],
            mounts=[{"name": MODELS_VOLUME, "mountPath": MODELS_MOUNT, "readOnly": True}],
        )
    return ModelSource(
        directory=_CHOSEN,
        volumes=[_cache(model), {"name": "model", "emptyDir": {}}],
        mounts=[{"name": MODELS_VOLUME, "mountPath": MODELS_MOUNT, "readOnly": True}, {**_CHOICE, "readOnly": True}],
        init_containers=[{**_fetch(model, rest, image, security_context, scratch), "resources": resources}],
    )


def _cache(model: ModelSpec) -> Object:
    if model.cache and model.cache.persistent_volume_claim:
        return _claim(model.cache.persistent_volume_claim.claim_name, read_only=False)
    empty_dir: Object = {}
    if model.cache and model.cache.empty_dir and model.cache.empty_dir.size_limit is not None:
        empty_dir["sizeLimit"] = model.cache.empty_dir.size_limit
    return {"name": MODELS_VOLUME, "emptyDir": empty_dir}


def _claim(name: str, *, read_only: bool) -> Object:
    source: Object = {"claimName": name}
    if read_only:
        source["readOnly"] = True
    return {"name": MODELS_VOLUME, "persistentVolumeClaim": source}


def _fetch(model: ModelSpec, name: str, image: str, security_context: Object, scratch: list[Object]) -> Object:
    # A folder for each commit: a branch that moves overwrites nothing that a pod runs from.
    command = ["semipd-engine", "fetch", model.uri, "--cache", f"{MODELS_MOUNT}/{name.replace('/', '--')}"]
    command += ["--link", _CHOSEN, "--pin-file", f"{CONFIG_MOUNT}/{PIN_FILE}"]
    if model.revision:
        command += ["--revision", model.revision]
    container: Object = {
        "name": MODEL_CONTAINER,
        "image": image,
        "command": command,
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": security_context,
        # The command writes one line of JSON there: why it failed, in words that become ModelReady's reason.
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "volumeMounts": [
            {"name": MODELS_VOLUME, "mountPath": MODELS_MOUNT},
            _CHOICE,
            {"name": "config", "mountPath": CONFIG_MOUNT, "readOnly": True},
            *scratch,
        ],
    }
    if model.token_secret_ref:
        reference = {"name": model.token_secret_ref.name, "key": model.token_secret_ref.key}
        container["env"].append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    return container
