"""The effect of every field of spec on what is rendered, and which of them roll pods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.operator_rendered import (
    GPU,
    HF,
    HPA,
    KEDA,
    POLICY,
    SCALERS,
    SLO,
    agent,
    engine,
    fetch,
    flag,
    objects,
    pod,
    rules,
    scaled,
    scaler,
    volume,
)

from hack.generate.reference import fields
from semipd_operator.crd import custom_resource_definition

pytestmark = pytest.mark.unit

# field -> (specification that sets it, where its effect shows, what shows)
EFFECTS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], Any], Any]] = {
    "model.uri": ({"model": {"uri": "pvc://claim/a/b"}}, flag("--model"), "/models/a/b"),
    "model.revision": (
        {"model": {**HF, "revision": "v2"}},
        lambda spec: fetch(spec)["command"][-2:],
        ["--revision", "v2"],
    ),
    "model.servedName": ({"model": {"uri": "file:///m", "servedName": "x"}}, flag("--served-model-name"), "x"),
    "model.tokenSecretRef.name": (
        {"model": {**HF, "tokenSecretRef": {"name": "s"}}},
        lambda spec: fetch(spec)["env"][-1]["valueFrom"]["secretKeyRef"],
        {"name": "s", "key": "token"},
    ),
    "model.tokenSecretRef.key": (
        {"model": {**HF, "tokenSecretRef": {"name": "s", "key": "k"}}},
        lambda spec: fetch(spec)["env"][-1]["valueFrom"]["secretKeyRef"]["key"],
        "k",
    ),
    "model.cache.persistentVolumeClaim.claimName": (
        {"model": {**HF, "cache": {"persistentVolumeClaim": {"claimName": "c"}}}},
        volume("models"),
        {"name": "models", "persistentVolumeClaim": {"claimName": "c"}},
    ),
    "model.cache.emptyDir.sizeLimit": (
        {"model": {**HF, "cache": {"emptyDir": {"sizeLimit": "9Gi"}}}},
        volume("models"),
        {"name": "models", "emptyDir": {"sizeLimit": "9Gi"}},
    ),
    "engine.image": ({"engine": {"image": "own:2"}}, lambda spec: engine(spec)["image"], "own:2"),
    "engine.device": (
        {"engine": {"device": "cuda"}},
        lambda spec: (flag("--device")(spec), engine(spec)["resources"]["limits"]),
        ("cuda", {"nvidia.com/gpu": 1}),
    ),
    "engine.dtype": ({"engine": {"dtype": "bfloat16"}}, flag("--dtype"), "bfloat16"),
    "engine.kvCacheMemory": ({"engine": {"kvCacheMemory": "1.5Gi"}}, flag("--kv-cache-memory"), "1610612736"),
    "engine.maxModelLen": ({"engine": {"maxModelLen": 99}}, flag("--max-model-len"), "99"),
    "engine.maxNumSeqs": ({"engine": {"maxNumSeqs": 3}}, flag("--max-num-seqs"), "3"),
    "engine.resources.limits": (
        {"engine": GPU},
        lambda spec: (flag("--device")(spec), engine(spec)["resources"]),
        ("cuda", {"limits": {"nvidia.com/gpu": 1}}),
    ),
    "engine.resources.requests": (
        {"engine": {"resources": {"requests": {"cpu": "2"}}}},
        lambda spec: engine(spec)["resources"],
        {"requests": {"cpu": "2"}},
    ),
    "slo.ttftMilliseconds": (
        {"slo": SLO},
        lambda spec: (agent(spec).slo.ttft_milliseconds, agent(spec).partition.mode),
        (500, "Auto"),
    ),
    "slo.tpotMilliseconds": ({"slo": {"tpotMilliseconds": 9}}, lambda spec: agent(spec).slo.tpot_milliseconds, 9),
    "slo.percentile": ({"slo": {**SLO, "percentile": 99}}, lambda spec: agent(spec).slo.percentile, 99),
    "slo.windowSeconds": ({"slo": {**SLO, "windowSeconds": 7}}, lambda spec: agent(spec).slo.window_seconds, 7),
    "admission": ({"slo": SLO, "admission": "Auto"}, lambda spec: agent(spec).admission, "Auto"),
    "partition.mode": ({"partition": {"mode": "Disabled"}}, lambda spec: agent(spec).partition.mode, "Disabled"),
    "partition.policy": (
        {"partition": {"policy": "Algorithm1"}},
        lambda spec: agent(spec).partition.policy,
        "Algorithm1",
    ),
    "partition.mixedBatches": (
        {"partition": {"mixedBatches": True}},
        lambda spec: agent(spec).partition.mixed_batches,
        True,
    ),
    "partition.prefillPercent": (
        {"partition": {"prefillPercent": 30}},
        lambda spec: str(agent(spec).partition.split),
        "30/100",
    ),
    "partition.decodePercent": (
        {"partition": {"decodePercent": 30}},
        lambda spec: str(agent(spec).partition.split),
        "100/30",
    ),
    **{
        f"partition.{bound}": (
            {"partition": {bound: 55}},
            lambda spec, bound=bound: agent(spec).partition.bounds.model_dump(by_alias=True)[bound],
            55,
        )
        for bound in ("minPrefillPercent", "maxPrefillPercent", "minDecodePercent", "maxDecodePercent")
    },
    "replicas": (
        {"replicas": 2},
        lambda spec: (objects(spec)["Deployment"]["spec"]["replicas"], "PodDisruptionBudget" in objects(spec)),
        (2, True),
    ),
    "autoscaling.minReplicas": (scaled(minReplicas=2), lambda spec: scaler(spec)["minReplicas"], 2),
    "autoscaling.maxReplicas": (scaled(maxReplicas=9), lambda spec: scaler(spec)["maxReplicas"], 9),
    "autoscaling.targetUtilizationPercent": (
        scaled(targetUtilizationPercent=65),
        lambda spec: scaler(spec)["metrics"][0]["external"]["target"],
        {"type": "AverageValue", "averageValue": "650m"},
    ),
    "autoscaling.hpa": (scaled(hpa={}), lambda spec: sorted(set(objects(spec)) & SCALERS), [HPA]),
    "autoscaling.keda.serverAddress": (
        scaled(keda=KEDA),
        lambda spec: objects(spec)["ScaledObject"]["spec"]["triggers"][0]["metadata"]["serverAddress"],
        "http://prometheus:9090",
    ),
    **{
        f"autoscaling.behavior.{direction}.{field}": rules(direction, **given)
        for direction in ("scaleUp", "scaleDown")
        for field, given in (
            ("stabilizationWindowSeconds", {"stabilizationWindowSeconds": 7}),
            ("selectPolicy", {"selectPolicy": "Disabled"}),
            ("policies", {"policies": [POLICY]}),
            ("policies[].type", {"policies": [POLICY | {"type": "Pods"}]}),
            ("policies[].value", {"policies": [POLICY | {"value": 3}]}),
            ("policies[].periodSeconds", {"policies": [POLICY | {"periodSeconds": 90}]}),
        )
    },
    "service.type": (
        {"service": {"type": "NodePort"}},
        lambda spec: objects(spec)["Service"]["spec"]["type"],
        "NodePort",
    ),
    "service.port": ({"service": {"port": 80}}, lambda spec: objects(spec)["Service"]["spec"]["ports"][0]["port"], 80),
    "service.apiKeySecretRef.name": (
        {"service": {"apiKeySecretRef": {"name": "s"}}},
        lambda spec: (flag("--api-key-file")(spec), volume("api-keys")(spec)["secret"]["secretName"]),
        ("/etc/semipd-keys/api-keys", "s"),
    ),
    "service.apiKeySecretRef.key": (
        {"service": {"apiKeySecretRef": {"name": "s", "key": "k"}}},
        lambda spec: volume("api-keys")(spec)["secret"]["items"],
        [{"key": "k", "path": "api-keys"}],
    ),
    "monitoring.podMonitor": (
        {"monitoring": {"podMonitor": True}},
        lambda spec: [e["port"] for e in objects(spec)["PodMonitor"]["spec"]["podMetricsEndpoints"]],
        ["http", "agent"],
    ),
    "podTemplate.metadata.labels": (
        {"podTemplate": {"metadata": {"labels": {"team": "a", "semipd.io/service": "stolen"}}}},
        lambda spec: [pod(spec)["metadata"]["labels"][k] for k in ("team", "semipd.io/service")],
        ["a", "demo"],
    ),
    "podTemplate.metadata.annotations": (
        {"podTemplate": {"metadata": {"annotations": {"a": "b"}}}},
        lambda spec: pod(spec)["metadata"]["annotations"],
        {"a": "b"},
    ),
    "podTemplate.spec": (
        {"podTemplate": {"spec": {"nodeSelector": {"zone": "z"}}}},
        lambda spec: pod(spec)["spec"]["nodeSelector"],
        {"zone": "z"},
    ),
}
ELSEWHERE = {"paused": "tests/api/test_operator.py", "upgradePolicy": "test_a_new_operator_version_rolls_nothing"}


@pytest.mark.parametrize("field", EFFECTS)
def test_every_field_has_its_effect(field: str) -> None:
    spec, look, shows = EFFECTS[field]
    assert look(spec) == shows
    needed = ("model.uri", "partition.policy", "model.tokenSecretRef.name", "service.apiKeySecretRef.name")
    if field not in needed:  # required, or one choice only
        without = {k: v for k, v in spec.items() if k == "model" and "uri" in v} and {
            "model": {"uri": spec["model"]["uri"]}
        }
        try:
            bare = look(without or {})
        except (KeyError, AttributeError, IndexError, TypeError):
            return  # nothing shows without the field
        assert bare != shows, "the effect shows without the field too"


def test_no_field_is_without_a_test() -> None:
    spec = custom_resource_definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    leaves = {path for path, field in fields(spec) if not field.get("properties")}
    assert leaves == set(EFFECTS) | set(ELSEWHERE)


def rolled(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return pod(before) != pod(after)


@pytest.mark.parametrize("field", EFFECTS)
def test_only_model_engine_pod_template_and_the_keys_secret_roll(field: str) -> None:
    spec, _, _ = EFFECTS[field]
    assert rolled({}, spec) == field.startswith(("model", "engine", "podTemplate", "service.apiKeySecretRef"))
