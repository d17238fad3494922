"""The Deployment. It decides whether the pods roll: only with the parts of the specification that say so.

A new operator version renders other pods for the same specification. Unless ``upgradePolicy`` is Auto they wait:
the Deployment carries the template that its specification was rendered to, and that template stays in force.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.api.v1alpha1.spec import UpgradePolicy
from semipd_operator.render import names
from semipd_operator.render.names import Object
from semipd_operator.render.pod import pod_template
from semipd_operator.settings import Settings


def deployment(service: SemiPDService, settings: Settings, live: Object | None) -> Object:
    """`live`: the Deployment as it stands, if it is ours."""
    spec_hash = rolling_hash(service)
    template = _kept_template(service, spec_hash, live) or pod_template(service, settings)
    template_hash = digest(template)
    labelled = {
        **template,
        "metadata": {
            **template["metadata"],
            "labels": {**template["metadata"]["labels"], names.TEMPLATE_HASH_LABEL: template_hash},
        },
    }
    metadata = names.metadata(service) | {
        "annotations": {names.SPEC_HASH_ANNOTATION: spec_hash, names.TEMPLATE_ANNOTATION: _compact(template)}
    }
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
            "template": labelled,
        },
    }


def template_hash(rendered: Object) -> str:
    """The hash label of a rendered Deployment's pods."""
    value: str = rendered["spec"]["template"]["metadata"]["labels"][names.TEMPLATE_HASH_LABEL]
    return value


def rolling_hash(service: SemiPDService) -> str:
    """Over what rolls: model, engine, podTemplate. Defaults are left out, so that a new field rolls nothing."""
    return digest(
        {
            name: getattr(service.spec, name).model_dump(mode="json", by_alias=True, exclude_defaults=True)
            for name in ("model", "engine", "pod_template")
        }
    )


def digest(value: Any) -> str:
    return hashlib.sha256(_compact(value).encode()).hexdigest()[:10]


def _kept_template(service: SemiPDService, spec_hash: str, live: Object | None) -> Object | None:
    if live is None or service.spec.upgrade_policy is UpgradePolicy.AUTO:
        return None
    annotations = live["metadata"].get("annotations") or {}
    if annotations.get(names.SPEC_HASH_ANNOTATION) != spec_hash:
        return None
    try:
        kept: Object = json.loads(annotations[names.TEMPLATE_ANNOTATION])
        return kept if kept["metadata"]["labels"] and kept["spec"]["containers"] else None
    except (KeyError, TypeError, ValueError):
        return None  # someone removed or damaged it: render anew


def _compact(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
