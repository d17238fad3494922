"""The CRD as it is checked in: in step with the types, small, described, and with the columns that users see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hack.generate.__main__ import FILES
from hack.generate.reference import fields
from semipd_operator.crd import custom_resource_definition, to_yaml

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
VERSION = custom_resource_definition()["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]["properties"]
DEFAULTS_OF_0_1_0 = {
    "autoscaling.behavior",
    "autoscaling.minReplicas",
    "autoscaling.targetUtilizationPercent",
    "engine",
    "engine.device",
    "engine.dtype",
    "engine.maxNumSeqs",
    "engine.resources",
    "engine.resources.limits",
    "engine.resources.requests",
    "model.tokenSecretRef.key",
    "monitoring",
    "monitoring.podMonitor",
    "partition",
    "partition.maxDecodePercent",
    "partition.maxPrefillPercent",
    "partition.minDecodePercent",
    "partition.minPrefillPercent",
    "partition.policy",
    "paused",
    "podTemplate",
    "podTemplate.metadata",
    "podTemplate.metadata.annotations",
    "podTemplate.metadata.labels",
    "podTemplate.spec",
    "replicas",
    "service",
    "service.apiKeySecretRef.key",
    "service.port",
    "service.type",
    "slo.percentile",
    "slo.windowSeconds",
    "upgradePolicy",
}


@pytest.mark.parametrize("name", FILES)
def test_generated_files_are_in_step(name: str) -> None:
    assert (ROOT / name).read_text() == FILES[name](), "run `make crd`"


def test_the_chart_and_crds_hold_the_same_definition() -> None:
    plain = yaml.safe_load((ROOT / "crds/semipdservices.semipd.io.yaml").read_text())
    template = (ROOT / "charts/semipd-operator/templates/crds/semipdservices.semipd.io.yaml").read_text()
    body = template[template.index("\nspec:\n") :].removesuffix("{{- end }}\n")
    assert yaml.safe_load(body)["spec"] == plain["spec"]


def test_it_fits_into_an_annotation_with_room_to_grow() -> None:
    assert len(to_yaml(custom_resource_definition())) < 200_000


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_described(part: str) -> None:
    bare = [path for path, field in fields(SCHEMA[part]) if not field.get("description", "").strip()]
    assert bare == []


def test_every_leaf_of_spec_names_its_default() -> None:
    def leaf(field: dict[str, Any]) -> bool:
        return "properties" not in field and field.get("type") != "object"

    silent = [path for path, field in fields(SCHEMA["spec"]) if leaf(field) and "Default: " not in field["description"]]
    assert silent == []


def test_no_younger_field_has_a_default_in_the_schema() -> None:
    """An API server writes a default into every service, and an operator of 0.1.0 (during an upgrade, or after one that
    was taken back) names each field that it does not know: of what nobody wrote there is nothing to name."""
    defaulted = {path for path, field in fields(SCHEMA["spec"]) if "default" in field}
    assert defaulted <= DEFAULTS_OF_0_1_0


def test_every_number_of_spec_names_its_unit() -> None:
    units = ("millisecond", "second", "percent", "token", "bytes", "number of pods", "port", "requests")
    numbers = [(p, f) for p, f in fields(SCHEMA["spec"]) if f.get("type") == "integer"]
    assert numbers
    assert [p for p, f in numbers if not any(unit in f["description"].lower() for unit in units)] == []


def test_every_number_of_spec_has_its_range_in_the_schema() -> None:
    """For tools that read no CEL; and none is wider than its format."""
    numbers = {path: field for path, field in fields(SCHEMA["spec"]) if field.get("type") == "integer"}
    assert {p for p, f in numbers.items() if not {"minimum", "maximum", "format"} <= set(f)} == set()
    assert {f["format"] for f in numbers.values()} == {"int32"}
    assert all(f["minimum"] <= f.get("default", f["minimum"]) <= f["maximum"] < 2**31 for f in numbers.values())


def test_columns() -> None:
    shown = [c["name"].upper() for c in VERSION["additionalPrinterColumns"]]
    always = ["READY", "REASON", "REPLICAS", "SPLIT", "ENFORCED", "TTFT", "TPOT", "SLO", "AGE"]
    assert shown == [*always, "MODEL", "DESIRED", "MODE", "URL", "MESSAGE"]
    wide = [c["name"].upper() for c in VERSION["additionalPrinterColumns"] if c.get("priority")]
    assert wide == ["MODEL", "DESIRED", "MODE", "URL", "MESSAGE"]


def test_every_rule_has_a_message_that_names_a_remedy() -> None:
    def rules(node: Any) -> list[dict[str, str]]:
        if isinstance(node, dict):
            own = node.get("x-kubernetes-validations", [])
            return [*own, *(rule for value in node.values() for rule in rules(value))]
        return [rule for item in node for rule in rules(item)] if isinstance(node, list) else []

    found = rules(VERSION["schema"])
    assert len(found) > 25
    assert [rule for rule in found if ": " not in rule["message"]] == [], "what is wrong: what to do"


def test_no_package_shadows_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
