"""A version apart, in both directions: words and fields that this version does not know are kept and shown."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.kube_stand_in import KEY, new_service
from tests.unit.operator_observed import heard, observed, report
from tests.unit.operator_reconciler import Fixture

from semipd_agent.contract import AgentFile, Mode, PartitionConfig, PartitionReason, StatusReport
from semipd_operator.api.v1alpha1.resource import InvalidSpec, SemiPDService, dump_status, parse_status, read
from semipd_operator.crd import custom_resource_definition
from semipd_operator.render.rolling import ROLLING_FIELDS
from semipd_operator.status import summarise

pytestmark = pytest.mark.unit


def newer_report(**partition: Any) -> StatusReport:
    """As a newer agent sends it: other words, and fields of its own at every level."""
    wire = json.loads(report().model_dump_json(by_alias=True))
    wire["partition"] |= {"future": 1, **partition}
    wire["engine"]["future"] = wire["future"] = {"a": [1]}
    return StatusReport.model_validate_json(json.dumps(wire))


def test_unknown_words_of_a_newer_agent_reach_the_status() -> None:
    decision = {
        "time": "2026-01-02T03:04:05Z",
        "from": {},
        "to": {"prefillPercent": 50},
        "reason": "MoonPhase",
        "metric": "goodput",
        "outcome": "Deferred",
    }
    one = newer_report(
        state="Melting", reason="CoreTooHot", message="41 C", enforcement="green-context", policy="Oracle"
    )
    one = one.model_copy(
        update={
            "decisions": (
                type(one)
                .model_validate({**json.loads(one.model_dump_json(by_alias=True)), "decisions": [decision]})
                .decisions
            )
        }
    )
    status = summarise(observed(agents={"p1": heard(one)}))
    applied, partition = status.condition("PartitionApplied"), status.partition
    assert applied and (applied.status, applied.reason, applied.message) == ("False", "CoreTooHot", "p1: 41 C")
    assert partition and (partition.enforcement, partition.enforced, partition.policy) == (
        "green-context",
        "green-context",
        "Oracle",
    )
    assert partition.pods[0].state == "Melting"
    [shown] = partition.decisions
    assert (shown.reason, shown.metric, shown.outcome) == ("MoonPhase", "goodput", "Deferred")
    assert parse_status({"status": dump_status(status)}) == status


OVERRULED = {
    "model": {
        "uri": "hf://a/b",
        "tokenSecretRef": {"name": "HF", "key": "a/b"},
        "cache": {"persistentVolumeClaim": {"claimName": "Models"}},
    },
    "engine": {"image": "to be replaced"},
    "service": {"apiKeySecretRef": {"name": "Keys", "key": "my keys"}},
}
"""What an API server took under 0.1.0, and what spec.podTemplate, a policy or a webhook may have made work."""


@pytest.mark.parametrize("spec", [OVERRULED, {"model": {"uri": "pvc://models..a/qwen"}}], ids=["names", "claim"])
async def test_a_stored_service_is_read_as_before_whatever_names_a_newer_crd_refuses(spec: dict[str, Any]) -> None:
    stored = new_service(**spec)
    with pytest.raises(InvalidSpec):
        SemiPDService.parse(stored)
    reading = read(stored)
    assert not (reading.errors or reading.unread or reading.ignored)
    one = Fixture(stored)
    await one.reconcile()
    assert one.kube.condition("SpecAccepted")["status"] == "True"
    [engine] = one.kube.objects["Deployment", *KEY]["spec"]["template"]["spec"]["containers"]
    assert engine["image"] == spec.get("engine", {}).get("image", engine["image"])


def test_known_words_stay_members() -> None:
    assert newer_report().partition.reason is PartitionReason.APPLIED and newer_report().partition.mode is Mode.MANUAL


def test_the_status_schema_refuses_no_word() -> None:
    """Else the API server would refuse the whole status for the sake of one."""

    def enums(node: Any, path: str = "") -> list[str]:
        if not isinstance(node, dict):
            return []
        below = [found for key, value in node.items() for found in enums(value, f"{path}.{key}")]
        return [path, *below] if "enum" in node else below

    schema = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert enums(schema) == [".properties.conditions.items.properties.status"], "metav1.Condition's own"


def test_a_status_of_a_newer_operator_keeps_what_this_one_knows() -> None:
    status = dump_status(summarise(observed()))
    status |= {"future": 1, "partition": {**status["partition"], "mode": "Psychic", "future": {}}}
    parsed = parse_status({"status": status})
    assert parsed.condition("Ready") == summarise(observed()).condition("Ready")
    assert parsed.partition and parsed.partition.mode == "Psychic"


def test_an_agent_obeys_what_it_understands_of_a_newer_configuration() -> None:
    partition = {"mode": "Psychic", "policy": "Oracle", "split": {"prefillPercent": 40}}
    text = json.dumps({"config": {"generation": 7, "future": 1, "partition": partition}})
    config = AgentFile.model_validate_json(text).config
    assert (config.partition.mode, config.partition.policy) == (Mode.MANUAL, PartitionConfig().policy)
    assert config.generation == 7 and config.partition.split.prefill_percent == 40


def test_a_mode_that_the_agent_did_not_take_is_told() -> None:
    status = summarise(observed({"partition": {"mode": "Disabled"}}))
    applied = status.condition("PartitionApplied")
    assert applied and (applied.status, applied.message) == ("False", "p1: it runs mode Manual, not Disabled")


@pytest.mark.parametrize(
    ("changes", "ignored", "unread"),
    [
        ({"future": {"a": 1}, "engine": {"future": 2}}, ("spec.engine.future", "spec.future"), ()),
        ({"partition": {"policy": "Oracle"}}, (), ("spec.partition.policy",)),
        ({"engine": {"device": "tpu", "future": 1}}, ("spec.engine.future",), ("spec.engine.device",)),
        ({"model": {"uri": "s3://bucket/m"}}, (), ("spec.model.uri",)),
        ({"model": {"oci": {}}}, (), ("spec.model.uri",)),
        ({"partition": {"minPrefillPercent": 60, "maxPrefillPercent": 50}}, (), ("spec.partition.minPrefillPercent",)),
        (
            {
                "slo": {"ttftMilliseconds": 1},
                "autoscaling": {
                    "maxReplicas": 2,
                    "behavior": {
                        "scaleUp": {
                            "policies": [
                                {"type": "Pods", "value": 1, "periodSeconds": 9},
                                {"type": "Racks", "value": 1, "periodSeconds": 9},
                            ]
                        }
                    },
                },
            },
            (),
            ("spec.autoscaling.behavior.scaleUp.policies.1.type",),
        ),
    ],
)
def test_a_specification_of_a_newer_crd_is_read_as_far_as_it_goes(
    changes: dict[str, Any], ignored: tuple[str, ...], unread: tuple[str, ...]
) -> None:
    obj = new_service(replicas=3, **changes)
    reading = read(obj)
    assert (tuple(sorted(reading.ignored)), reading.unread) == (ignored, unread)
    assert reading.service.spec.replicas == 3
    if isinstance(uri := obj["spec"]["model"].get("uri"), str):
        assert reading.service.spec.model.uri == uri, "it is shown as it is written"
    with pytest.raises(InvalidSpec):
        SemiPDService.parse(obj)  # `semipd validate` and `semipd run` stay strict


async def test_an_unknown_field_is_ignored_in_words() -> None:
    one = Fixture(new_service(future=1))
    assert not await one.reconcile()
    accepted = one.kube.condition("SpecAccepted")
    assert accepted["status"] == "True"
    assert accepted["message"] == "spec.future is ignored: this version of the operator does not know it"
    assert one.kube.service()["status"]["observedGeneration"] == 1


async def test_an_unknown_value_is_told_and_the_rest_is_in_force() -> None:
    one = Fixture()
    await one.reconcile()
    before = one.kube.objects["Deployment", *KEY]["spec"]["template"]
    one.change(replicas=3, engine={"device": "tpu"}, partition={"policy": "Oracle"})
    assert not await one.reconcile()
    deployment = one.kube.objects["Deployment", *KEY]
    assert deployment["spec"]["replicas"] == 3 and deployment["spec"]["template"] == before
    accepted = one.kube.condition("SpecAccepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSpec")
    assert "spec.engine.device" in accepted["message"] and "spec.partition.policy" in accepted["message"]
    assert KEY in one.watches and len(one.statuses) == 1 and one.watches[KEY].config is not None


async def test_no_pods_are_made_of_what_cannot_be_read() -> None:
    one = Fixture(new_service(model={"uri": "s3://bucket/m"}))
    await one.reconcile()
    assert ("Deployment", *KEY) not in one.kube.objects
    assert "no pods are made" in one.kube.condition("SpecAccepted")["message"]
    assert one.kube.service()["status"]["model"]["uri"] == "s3://bucket/m"


@pytest.mark.parametrize(
    ("changes", "holds"),
    [
        ({"engine": {"device": "tpu"}}, True),
        ({"model": {"oci": {}}}, True),
        ({"service": {"apiKeySecretRef": {"vault": "keys"}}}, True),
        ({"service": {"apiKeySecretRef": "vault://keys"}}, True),
        ({"service": ["vault://keys"]}, True),
        ({"service": {"type": "Tunnel", "apiKeySecretRef": {"name": "keys"}}}, False),
        ({"partition": {"policy": "Oracle"}}, False),
    ],
)
async def test_pods_stay_as_they_are_where_what_rolls_them_cannot_be_read(changes: dict[str, Any], holds: bool) -> None:
    """A reference to API keys that counts as absent would open the API."""
    one = Fixture(new_service(service={"apiKeySecretRef": {"name": "keys"}}))
    await one.reconcile()

    def template() -> Any:
        return one.kube.objects["Deployment", *KEY]["spec"]["template"]

    before = template()
    assert "--api-key-file" in json.dumps(before)
    assert read(new_service(**changes)).unread_below(*ROLLING_FIELDS) == holds
    one.change(**{"service": {"apiKeySecretRef": {"name": "keys"}}, "replicas": 2} | changes)
    await one.reconcile()
    assert template() == before and one.kube.objects["Deployment", *KEY]["spec"]["replicas"] == 2
    assert one.kube.condition("SpecAccepted")["reason"] == "InvalidSpec"
    if holds:
        one.change(podTemplate={"metadata": {"labels": {"team": "a"}}}, **changes)
        await one.reconcile()
        assert template() == before
