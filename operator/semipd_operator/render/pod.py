"""The serving pod's template: the agent as PID 1 of the container `engine`, and the init container `model`.

Fits the restricted Pod Security profile. What may change without a restart (slo, partition) is not in it; it comes
from the mounted ConfigMap and through the agent's API.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semipd_agent.contract import AGENT_PORT, API_PORT, CONFIG_FILE, CONFIG_MOUNT
from semipd_engine.contract import Device, EngineOptions
from semipd_operator.api.quantity import parse_quantity
from semipd_operator.api.v1alpha1.engine import GPU, NOT_WHOLE, ONE_GPU, is_whole_gpu
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render import engine as engine_args
from semipd_operator.render import names
from semipd_operator.render.merge import LISTS, merge
from semipd_operator.render.model import model_source
from semipd_operator.render.names import Object
from semipd_operator.settings import Settings

RUN_MOUNT = "/run/spd"
RUN_DIR = f"{RUN_MOUNT}/engine"
"""The engine makes it for itself alone (mode 0700), which it cannot do with the mount: that is root's. The agent's MPS
daemons have their directories beside it: the path is short, and in memory."""
KEYS_MOUNT = "/etc/semipd-keys"

_LAG_SECONDS = 5  # after SIGTERM requests are still admitted for this long: endpoints lag
_SLACK_SECONDS = 25  # workers, then the resident, then the agent
GRACE_SECONDS = int(EngineOptions.model_fields["drain_seconds"].default) + _LAG_SECONDS + _SLACK_SECONDS

_CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}
_LAST_WORDS: Object = {"terminationMessagePolicy": "FallbackToLogsOnError"}
"""A container's last lines reach the status: nobody need read the log of one that is gone."""
_SCRATCH: Object = {"name": "tmp", "mountPath": "/tmp"}


def _below(value: Any, *path: str) -> Any:
    """None where something else stands in the way: that is the API server's to say."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


class InvalidTemplate(ValueError):
    """spec.podTemplate makes a pod that is not to be; the message names the field and the remedy."""


def pod_template(service: SemiPDService, settings: Settings) -> Object:
    """Pure: the same service and settings give the same template. Without its hash label. Raises `InvalidTemplate`."""
    spec = service.spec
    image = spec.engine.image or settings.engine_image
    source = model_source(
        spec.model, image, _CONTAINER_SECURITY, [_SCRATCH], engine_args.download_resources(spec.engine)
    )
    key_mounts, key_volumes = _api_keys(service)
    container: Object = {
        "name": names.ENGINE_CONTAINER,
        "image": image,
        "command": command(service, source.directory),
        "env": _environment(service),
        "ports": [
            {"name": names.HTTP_PORT, "containerPort": API_PORT},
            {"name": names.AGENT_PORT_NAME, "containerPort": AGENT_PORT},
        ],
        "resources": engine_args.resources(spec.engine),
        "securityContext": _CONTAINER_SECURITY,
        **_LAST_WORDS,
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG_MOUNT, "readOnly": True},
            {"name": "run", "mountPath": RUN_MOUNT},
            {"name": "shm", "mountPath": "/dev/shm"},
            _SCRATCH,
            *key_mounts,
            *source.mounts,
        ],
        **_probes(),
    }
    pod: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": _pod_security(settings),
        "containers": [container],
        "volumes": [
            # A whole directory, not a subPath: only so do later changes of the ConfigMap reach the pod.
            {"name": "config", "configMap": {"name": names.config_map_name(service)}},
            {"name": "run", "emptyDir": {"medium": "Memory"}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            {"name": "tmp", "emptyDir": {}},
            *key_volumes,
            *source.volumes,
        ],
    }
    if source.init_containers:
        pod["initContainers"] = source.init_containers
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.image_pull_policy:
        for each in [*pod["containers"], *pod.get("initContainers", [])]:
            each["imagePullPolicy"] = settings.image_pull_policy
    own: Object = {"metadata": {"labels": names.labels(service)}, "spec": pod}
    wanted = service.spec.pod_template.model_dump(by_alias=True, exclude_defaults=True)
    _check_lists(wanted)
    merged: Object = merge(own, wanted)
    _let_speak(merged["spec"])
    # The selector's label is not the user's to change: a Deployment that cannot find its pods is refused.
    merged["metadata"]["labels"] |= names.labels(service)
    _check_gpus(merged)
    _check_quantities(merged["spec"], "podTemplate.spec")
    return merged


def _check_lists(wanted: Object) -> None:
    """What is laid over a list by its items' names has to be one: a text would be taken letter by letter."""
    spec = wanted.get("spec") or {}
    places = [("podTemplate.spec", spec)]
    for kind in ("containers", "initContainers"):
        found = spec.get(kind)
        places += [
            (f"podTemplate.spec.{kind}[{one.get('name')}]", one)
            for one in (found if isinstance(found, list) else [])
            if isinstance(one, Mapping)  # anything else is the API server's to refuse
        ]
    for where, part in places:
        for field in sorted(LISTS & part.keys()):
            if not isinstance(part[field], list | None):
                raise InvalidTemplate(f"{where}.{field} is {part[field]!r:.200}, and is to be a list of maps")


def _let_speak(pod: Object) -> None:
    """The containers that spec.podTemplate adds, unless it says otherwise."""
    for kind in ("containers", "initContainers"):
        if isinstance(found := pod.get(kind), list):
            pod[kind] = [{**_LAST_WORDS, **one} if _is_added(one) else one for one in found]


def _is_added(container: Any) -> bool:
    return isinstance(container, Mapping) and container.get("name") not in (
        names.ENGINE_CONTAINER,
        names.MODEL_CONTAINER,
    )


def _check_gpus(template: Object) -> None:
    """The API server cannot: it knows nothing of what a podTemplate holds."""
    for kind in ("containers", "initContainers"):
        found = template["spec"].get(kind)
        for container in found if isinstance(found, list) else ():  # anything else is the API server's to refuse
            for part in ("limits", "requests"):
                where = f"podTemplate.spec.{kind}[{_below(container, 'name')}].resources.{part}"
                amounts = _below(container, "resources", part)
                amounts = amounts if isinstance(amounts, Mapping) else {}
                if not all(map(is_whole_gpu, amounts)):
                    raise InvalidTemplate(f"{where} {NOT_WHOLE}")
                number = parse_quantity(amounts.get(GPU) or 0)
                if number is not None and number > 1:
                    raise InvalidTemplate(f"{where} asks for more than one {GPU}: {ONE_GPU}")


_AMOUNTS = ("limits", "requests", "overhead")
_QUANTITIES = {"emptyDir": "sizeLimit", "resourceFieldRef": "divisor"}
"""By what holds it: elsewhere (a node's labels, a driver's attributes) such a word is anybody's."""


def _check_quantities(part: Any, where: str) -> None:
    """The API server names neither field nor object of such a value."""
    if isinstance(part, Mapping):
        amounts = [(f"{where}.{name}.{key}", one) for name in _AMOUNTS for key, one in _items(part.get(name))]
        held = [(f"{name}.{key}", _below(part, name, key)) for name, key in _QUANTITIES.items()]
        amounts += [(f"{where}.{at}", value) for at, value in held if value is not None]
        for at, value in amounts:
            if parse_quantity(value) is None:
                raise InvalidTemplate(f"{at} is {value!r}, which is no quantity: write it like 16Gi, 500m or 2")
        for name, one in part.items():
            _check_quantities(one, f"{where}.{name}")
    elif isinstance(part, list):
        for number, one in enumerate(part):
            _check_quantities(one, f"{where}[{_below(one, 'name') or number}]")


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def overruled(service: SemiPDService) -> tuple[str, ...]:
    """What spec.podTemplate asks for and cannot have."""
    wanted = service.spec.pod_template.model_dump(by_alias=True, exclude_defaults=True)
    own, asked = names.labels(service), _items(_below(wanted, "metadata", "labels"))
    return tuple(
        f"podTemplate.metadata.labels[{key}] stays {own[key]}: the operator finds the pods by it"
        for key, value in asked
        if own.get(key, value) != value
    )


def _pod_security(settings: Settings) -> Object:
    user = settings.engine_user
    return {
        "runAsNonRoot": True,
        **({} if user is None else {"runAsUser": user, "runAsGroup": user, "fsGroup": user}),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def command(service: SemiPDService, model_directory: str) -> list[str]:
    options = engine_args.options(
        service.spec.engine,
        served_name(service),
        model=model_directory,
        host="::",  # and IPv4
        port=API_PORT,
        run_dir=Path(RUN_DIR),
        api_key_file=Path(KEYS_MOUNT, _KEYS_FILE) if service.spec.service.api_key_secret_ref else None,
    )
    return ["semipd-agent", "--config", f"{CONFIG_MOUNT}/{CONFIG_FILE}", "--", *options.arguments()]


_KEYS_FILE = "api-keys"


def _api_keys(service: SemiPDService) -> tuple[list[Object], list[Object]]:
    """(mounts, volumes). A directory of its own, so that changes of the Secret reach the pod; where the Secret is
    missing the pod does not start: it would be open, or closed to all."""
    reference = service.spec.service.api_key_secret_ref
    if reference is None:
        return [], []
    # The group (fsGroup) reads it, nobody else.
    secret = {"secretName": reference.name, "items": [{"key": reference.key, "path": _KEYS_FILE}], "defaultMode": 0o440}
    mount = {"name": "api-keys", "mountPath": KEYS_MOUNT, "readOnly": True}
    return [mount], [{"name": "api-keys", "secret": secret}]


def served_name(service: SemiPDService) -> str:
    return service.spec.model.served_name or service.metadata.name


def _environment(service: SemiPDService) -> list[Object]:
    downward = {
        "POD_NAME": "metadata.name",
        "POD_UID": "metadata.uid",
        "POD_NAMESPACE": "metadata.namespace",
        "NODE_NAME": "spec.nodeName",
    }
    # MPS programs come with compute, NVML with utility; more (graphics, video) is not needed.
    driver = {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}
    return [
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in downward.items()),
        {"name": "SEMIPD_SERVICE", "value": service.metadata.name},
        {"name": "HOME", "value": "/tmp"},
        *([driver] if engine_args.device(service.spec.engine) is Device.CUDA else []),
    ]


def _probes() -> Object:
    ready: Object = {"httpGet": {"path": "/ready", "port": names.AGENT_PORT_NAME}, "timeoutSeconds": 5}
    health: Object = {"httpGet": {"path": "/health", "port": names.AGENT_PORT_NAME}, "timeoutSeconds": 5}
    return {
        # Half an hour to load: the agent restarts a failing engine itself and says why, so a kill would only hide it.
        "startupProbe": {**ready, "periodSeconds": 2, "failureThreshold": 900},
        "readinessProbe": {**ready, "periodSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {**health, "periodSeconds": 10, "failureThreshold": 6},
    }
