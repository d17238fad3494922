"""Names, labels and owner references of child objects. Label keys and container names are API."""

from __future__ import annotations

from typing import Any

from semipd_operator.api.v1alpha1.resource import API_VERSION, GROUP, KIND, SemiPDService
from semipd_operator.settings import MANAGER

Object = dict[str, Any]

SERVICE_LABEL = f"{GROUP}/service"
TEMPLATE_HASH_LABEL = f"{GROUP}/template-hash"
RECORD_ANNOTATION = f"{GROUP}/rolling-spec"
TEMPLATE_ANNOTATION = f"{GROUP}/pod-template"
METRIC_LABEL = "semipd_service"
"""Label of the metrics that names the service."""
MANAGED_SELECTOR = f"app.kubernetes.io/managed-by={MANAGER}"

ENGINE_CONTAINER = "engine"
MODEL_CONTAINER = "model"
PIN_FILE = "model-revision"
"""In the mounted ConfigMap: the commit that all pods of a service run from, once one has resolved it."""
HTTP_PORT = "http"
AGENT_PORT_NAME = "agent"


def managed(obj: Object) -> bool:
    """Whether an object carries the label of `MANAGED_SELECTOR`."""
    return (obj["metadata"].get("labels") or {}).get("app.kubernetes.io/managed-by") == MANAGER


def controller(obj: dict[str, Any]) -> str:
    """The uid of the object that controls it; empty: none does."""
    references = obj["metadata"].get("ownerReferences") or []
    return next((reference["uid"] for reference in references if reference.get("controller")), "")


def config_map_name(service: SemiPDService) -> str:
    return f"{service.metadata.name}-agent"


def selector(service: SemiPDService) -> dict[str, str]:
    """Selects the pods; immutable, so it holds nothing that may change."""
    return {SERVICE_LABEL: service.metadata.name}


def selector_string(service: SemiPDService) -> str:
    return ",".join(f"{key}={value}" for key, value in selector(service).items())


def labels(service: SemiPDService) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "semipd",
        "app.kubernetes.io/instance": service.metadata.name,
        "app.kubernetes.io/component": "engine",
        "app.kubernetes.io/part-of": "semipd",
        "app.kubernetes.io/managed-by": MANAGER,
        **selector(service),
    }


def owner_reference(service: SemiPDService) -> Object:
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": service.metadata.name,
        "uid": service.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata(service: SemiPDService, name: str | None = None) -> Object:
    """Metadata of a child object, named like the service unless `name` is given."""
    return {
        "name": name or service.metadata.name,
        "namespace": service.metadata.namespace,
        "labels": labels(service),
        "ownerReferences": [owner_reference(service)],
    }
