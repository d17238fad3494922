"""The Service in front of the pods."""

from __future__ import annotations

from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render import names
from semipd_operator.render.names import Object


def service(owner: SemiPDService) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(owner),
        "spec": {
            "type": owner.spec.service.type.value,
            "selector": names.selector(owner),
            "ports": [
                {
                    "name": names.HTTP_PORT,
                    "port": owner.spec.service.port,
                    "targetPort": names.HTTP_PORT,
                    "protocol": "TCP",
                }
            ],
        },
    }


def url(owner: SemiPDService) -> str:
    """Where the API answers inside the cluster."""
    return f"http://{owner.metadata.name}.{owner.metadata.namespace}.svc:{owner.spec.service.port}"
