"""The CustomResourceDefinition, plain and as the chart's template. The typed model is its only source.

``python -m hack.generate`` writes what is made from it into the source tree.
"""

from __future__ import annotations

from typing import Any

import yaml

from semipd_operator.api.rules import VALIDATIONS
from semipd_operator.api.schema import Schema, openapi
from semipd_operator.api.v1alpha1.resource import GROUP, KIND, PLURAL, VERSION, SemiPDService
from semipd_operator.api.v1alpha1.spec import SemiPDServiceSpec
from semipd_operator.api.v1alpha1.status import SemiPDServiceStatus

_READY = '.status.conditions[?(@.type=="Ready")]'


def _column(name: str, path: str, description: str, *, wide: bool = False, kind: str = "string") -> dict[str, Any]:
    column = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return column | ({"priority": 1} if wide else {})


COLUMNS = (
    _column("Ready", f"{_READY}.status", "Serves, and as the specification says."),
    _column("Reason", ".status.reason", "Why Ready is what it is."),
    _column("Replicas", ".status.readyReplicas", "Ready pods.", kind="integer"),
    _column("Split", ".status.partition.summary", "Applied shares, prefill/decode, percent."),
    _column("Enforced", ".status.partition.enforced", "What stands behind the split: SM, paced or none."),
    _column("TTFT", ".status.slo.ttft.summary", "Time to first token, observed/target."),
    _column("TPOT", ".status.slo.tpot.summary", "Time per output token, observed/target."),
    _column("SLO", '.status.conditions[?(@.type=="SLOAttained")].status', "Targets met over the window."),
    _column("Age", ".metadata.creationTimestamp", "Time since creation.", kind="date"),
    _column("Model", ".spec.model.uri", "Model.", wide=True),
    _column("Desired", ".spec.replicas", "Wanted pods.", wide=True, kind="integer"),
    _column("Mode", ".status.partition.mode", "Partition mode in force.", wide=True),
    _column("URL", ".status.url", "Where the API answers.", wide=True),
    _column("Message", f"{_READY}.message", "Why, for people.", wide=True),
)


def _root_schema() -> Schema:
    root: Schema = {
        "description": "A large language model served by two processes on one device, prefill and decode, each with "
        "a share of it that follows the latency targets.",
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of this schema."},
            "kind": {"type": "string", "description": "Kind of this resource."},
            "metadata": {"type": "object"},
            "spec": {**openapi(SemiPDServiceSpec), "description": "What is wanted."},
            "status": {**_without_defaults(openapi(SemiPDServiceStatus)), "description": "What is."},
        },
    }
    root[VALIDATIONS] = [rule.openapi() for rule in SemiPDService.RULES]
    return root


def _without_defaults(node: Any) -> Any:
    """Status is written whole: the API server must not fill it in."""
    if isinstance(node, list):
        return [_without_defaults(item) for item in node]
    if not isinstance(node, dict):
        return node
    cleaned = {key: _without_defaults(value) for key, value in node.items() if key != "default"}
    if isinstance(cleaned.get("description"), str):
        cleaned["description"] = cleaned["description"].split(" Default: ")[0]
    return cleaned


def custom_resource_definition() -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["spd"],
                "categories": ["semipd"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": list(COLUMNS),
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": _root_schema()},
                }
            ],
        },
    }


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def to_yaml(obj: Any) -> str:
    """Block style, no anchors, keys in the order given."""
    text: str = yaml.dump(obj, Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    return text


def chart_template() -> str:
    """The same object for Helm, with the annotation that keeps it (and every service) on uninstall."""
    crd = custom_resource_definition()
    body = to_yaml({"spec": crd["spec"]}).replace("{{", '{{ "{{" }}')
    return (
        "{{- if .Values.crds.enabled }}\n"
        f"apiVersion: {crd['apiVersion']}\n"
        f"kind: {crd['kind']}\n"
        "metadata:\n"
        f"  name: {crd['metadata']['name']}\n"
        "  labels:\n"
        '    {{- include "semipd-operator.labels" . | nindent 4 }}\n'
        "  {{- if .Values.crds.keep }}\n"
        "  annotations:\n"
        "    helm.sh/resource-policy: keep\n"
        "  {{- end }}\n"
        f"{body}"
        "{{- end }}\n"
    )
