"""The Deployment. A new operator version renders other pods for the same specification: unless ``upgradePolicy`` is
Auto they wait, and the template that the Deployment keeps stays in force until `rolling` finds a change.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.api.v1alpha1.spec import UpgradePolicy
from semipd_operator.render import names
from semipd_operator.render.names import Object
from semipd_operator.render.pod import InvalidTemplate, pod_template
from semipd_operator.render.rolling import Record
from semipd_operator.settings import Settings

MOST_ANNOTATION_BYTES = 256 << 10
"""Of all annotations of an object: the API server's limit (TotalAnnotationSizeLimitB)."""


class Unrenderable(ValueError):
    """The specification holds what this version cannot read, and no template is kept from one that could."""


def deployment(service: SemiPDService, settings: Settings, live: Object | None, *, hold: bool = False) -> Object:
    """`live`: the Deployment as it stands, if it is ours. `hold`: keep its template, whatever the specification says.

    Raises `Unrenderable` where there is nothing to hold, `InvalidTemplate`.
    """
    kept = _held(service, live) if hold else _kept(service, live)
    if hold and kept is None:
        raise Unrenderable("no pods are made of a specification that this version cannot read")
    record, template = kept or (Record.of(service), pod_template(service, settings))
    template_hash = digest(template)
    labelled = {
        **template,
        "metadata": {
            **template["metadata"],
            "labels": {**template["metadata"]["labels"], names.TEMPLATE_HASH_LABEL: template_hash},
        },
    }
    annotations = {names.RECORD_ANNOTATION: record.text(), names.TEMPLATE_ANNOTATION: _compact(template)}
    if kept is None:
        _check_size(annotations)
    metadata = names.metadata(service) | {"annotations": annotations}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": service.spec.replicas,
            "selector": {"matchLabels": names.selector(service)},
            # A device is rarely free for a surge.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "progressDeadlineSeconds": 3600,
            # Said, so that it is taken back: a Deployment that someone paused would follow no specification, without
            # a word. spec.paused of the service is the way.
            "paused": False,
            "template": labelled,
        },
    }


def _check_size(annotations: dict[str, str]) -> None:
    """The API server would speak of an annotation that is not the user's."""
    size = sum(len(f"{key}{value}".encode()) for key, value in annotations.items())
    if size > MOST_ANNOTATION_BYTES:
        raise InvalidTemplate(
            f"podTemplate makes a pod of {size:,} bytes, and the Deployment, which keeps it, may have "
            f"{MOST_ANNOTATION_BYTES:,}: move what is long (annotations, environment, arguments) to a ConfigMap"
        )


def template_hash(rendered: Object) -> str:
    """The hash label of a rendered Deployment's pods."""
    value: str = rendered["spec"]["template"]["metadata"]["labels"][names.TEMPLATE_HASH_LABEL]
    return value


def digest(value: Any) -> str:
    return hashlib.sha256(_compact(value).encode()).hexdigest()[:10]


def _kept(service: SemiPDService, live: Object | None) -> tuple[Record, Object] | None:
    """The record, brought up to date, and the template in force; None where it is time for another."""
    held = _held(service, live)
    if held is None or service.spec.upgrade_policy is UpgradePolicy.AUTO:
        return None
    (before, template), now = held, Record.of(service)
    return None if before.changed(now) else (before.followed_by(now), template)


def _held(service: SemiPDService, live: Object | None) -> tuple[Record, Object] | None:
    """What the Deployment keeps; None where someone removed or damaged the template."""
    annotations = (live or {"metadata": {}})["metadata"].get("annotations") or {}
    try:
        kept: Object = json.loads(annotations[names.TEMPLATE_ANNOTATION])
        usable = bool(kept["metadata"]["labels"] and kept["spec"]["containers"])
    except (KeyError, TypeError, ValueError):
        return None
    record = Record.parse(annotations.get(names.RECORD_ANNOTATION, "")) or Record.of(service)
    return (record, kept) if usable else None


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
