"""Rendered objects: whole ones against golden files, and the effect of every field of spec.

UPDATE_GOLDEN=1 writes the golden files anew.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.mps_bench import good_host

from semipd_agent.contract import AgentFile, service_token, token_digest
from semipd_agent.partitioner.mps.preflight import judge
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.crd import custom_resource_definition, to_yaml
from semipd_operator.docs import fields
from semipd_operator.render import Known, names, render
from semipd_operator.render.pod import RUN_MOUNT
from semipd_operator.settings import Settings

pytestmark = pytest.mark.unit
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"
SETTINGS = Settings(engine_image="engine:1", key=b"0123456789abcdef", version="1.0.0")
ALL = Known(pod_monitors=True, scaled_objects=True)


def make(spec: dict[str, Any], name: str = "demo") -> SemiPDService:
    meta = {"name": name, "namespace": "team", "uid": "uid-1", "generation": 3}
    return SemiPDService.parse({"metadata": meta, "spec": {"model": {"uri": "file:///m"}, **spec}})


def objects(spec: dict[str, Any], **options: Any) -> dict[str, Any]:
    return {obj["kind"]: obj for obj in render(make(spec), SETTINGS, **options).objects}


def pod(spec: dict[str, Any]) -> dict[str, Any]:
    return objects(spec)["Deployment"]["spec"]["template"]


def engine(spec: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod(spec)["spec"]["containers"] if c["name"] == "engine")


def flag(name: str) -> Callable[[dict[str, Any]], str]:
    def value(spec: dict[str, Any]) -> str:
        command = engine(spec)["command"]
        return command[command.index(name) + 1] if name in command else ""

    return value


def agent(spec: dict[str, Any]) -> Any:
    return AgentFile.model_validate_json(objects(spec)["ConfigMap"]["data"]["agent.json"]).config


def volume(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda spec: next((v for v in pod(spec)["spec"]["volumes"] if v["name"] == name), None)


def fetch(spec: dict[str, Any]) -> dict[str, Any]:
    return next(iter(pod(spec)["spec"].get("initContainers", [])), {})


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    obj = yaml.safe_load(path.read_text())
    obj["metadata"] |= {"namespace": "team", "uid": "uid-1", "generation": 3}
    rendered = render(SemiPDService.parse(obj), SETTINGS, known=ALL)
    text = "---\n".join(to_yaml(each) for each in rendered.objects)
    golden = GOLDEN / f"{path.stem}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


HF = {"uri": "hf://org/name"}
SLO = {"ttftMilliseconds": 500}
GPU = {"resources": {"limits": {"nvidia.com/gpu": 2}}}

KEDA = {"serverAddress": "http://prometheus:9090"}


def scaled(**autoscaling: Any) -> dict[str, Any]:
    return {"slo": SLO, "autoscaling": {"maxReplicas": 4, **autoscaling}}


def scaler(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = objects(spec)["HorizontalPodAutoscaler"]["spec"]
    return found


def rules(direction: str, **given: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any], Any]:
    return scaled(behavior={direction: given}), lambda spec: scaler(spec)["behavior"][direction], given


HPA = "HorizontalPodAutoscaler"
SCALERS = {HPA, "ScaledObject"}
POLICY = {"type": "Percent", "value": 50, "periodSeconds": 15}

# field -> (specification that sets it, where its effect shows, what shows)
EFFECTS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Any]], Any], Any]] = {
    "model.uri": ({"model": {"uri": "pvc://claim/a/b"}}, flag("--model"), "/models/a/b"),
    "model.revision": (
        {"model": {**HF, "revision": "v2"}},
        lambda spec: fetch(spec)["command"][-4:],
        ["--out", "/models/org--name/v2", "--revision", "v2"],
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
        ("cuda", {"limits": {"nvidia.com/gpu": 2}}),
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
    "partition.mode": ({"partition": {"mode": "Disabled"}}, lambda spec: agent(spec).partition.mode, "Disabled"),
    "partition.policy": (
        {"partition": {"policy": "Algorithm1"}},
        lambda spec: agent(spec).partition.policy,
        "Algorithm1",
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
    "autoscaling.targetCapacityPercent": (
        scaled(targetCapacityPercent=65),
        lambda spec: scaler(spec)["metrics"][0]["external"]["target"],
        {"type": "AverageValue", "averageValue": "650m"},
    ),
    "autoscaling.hpa": (scaled(hpa={}), lambda spec: sorted(set(objects(spec, known=ALL)) & SCALERS), [HPA]),
    "autoscaling.keda.serverAddress": (
        scaled(keda=KEDA),
        lambda spec: objects(spec, known=ALL)["ScaledObject"]["spec"]["triggers"][0]["metadata"]["serverAddress"],
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
    "monitoring.podMonitor": (
        {"monitoring": {"podMonitor": True}},
        lambda spec: [e["port"] for e in objects(spec, known=ALL)["PodMonitor"]["spec"]["podMetricsEndpoints"]],
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
    if field not in ("model.uri", "partition.policy", "model.tokenSecretRef.name"):  # required, or one choice only
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
def test_only_model_engine_and_pod_template_roll(field: str) -> None:
    spec, _, _ = EFFECTS[field]
    assert rolled({}, spec) == (field.split(".")[0] in ("model", "engine", "podTemplate"))


def test_a_new_operator_version_rolls_nothing() -> None:
    old = objects({})["Deployment"]
    newer = Settings(engine_image="engine:2", key=SETTINGS.key, version="2.0.0", image_pull_policy="Always")

    def template(spec: dict[str, Any], live: dict[str, Any] | None) -> dict[str, Any]:
        rendered = render(make(spec), newer, live_deployment=live)
        return next(obj for obj in rendered.objects if obj["kind"] == "Deployment")["spec"]["template"]

    assert template({}, old) == old["spec"]["template"]
    assert template({"slo": SLO, "replicas": 3}, old) == old["spec"]["template"], "in place is no reason either"
    assert template({"upgradePolicy": "Auto"}, old)["spec"]["containers"][0]["image"] == "engine:2"
    assert template({"engine": {"maxModelLen": 9}}, old)["spec"]["containers"][0]["image"] == "engine:2"
    damaged = {
        **old,
        "metadata": {
            **old["metadata"],
            "annotations": {**old["metadata"]["annotations"], names.TEMPLATE_ANNOTATION: "{"},
        },
    }
    assert template({}, damaged)["spec"]["containers"][0]["image"] == "engine:2"
    assert template({}, None)["spec"]["containers"][0]["image"] == "engine:2"


def test_a_new_key_changes_the_config_map_only() -> None:
    before, after = (
        objects({}),
        {obj["kind"]: obj for obj in render(make({}), Settings(engine_image="engine:1", key=b"f" * 16)).objects},
    )
    assert [kind for kind in before if before[kind] != after[kind]] == ["ConfigMap"]
    token = service_token(b"f" * 16, "team", "demo", "uid-1")
    assert AgentFile.model_validate_json(after["ConfigMap"]["data"]["agent.json"]).token_sha256 == (
        token_digest(token),
    )
    assert token not in after["ConfigMap"]["data"]["agent.json"]


def test_the_pod_template_is_merged_by_name() -> None:
    over = {
        "containers": [
            {
                "name": "engine",
                "env": [{"name": "HOME", "value": "/h"}, {"name": "X", "valueFrom": {"fieldRef": {}}}],
                "livenessProbe": None,
            },
            {"name": "sidecar", "image": "s"},
        ],
        "volumes": [{"name": "tmp", "hostPath": {"path": "/t"}}],
        "tolerations": [{"operator": "Exists"}],
    }
    merged = pod({"podTemplate": {"spec": over}})["spec"]
    main, sidecar = merged["containers"]
    assert main["command"][0] == "semipd-agent" and sidecar["name"] == "sidecar"
    env = {entry["name"]: entry for entry in main["env"]}
    assert env["HOME"] == {"name": "HOME", "value": "/h"} and env["POD_UID"]["valueFrom"]
    assert "livenessProbe" not in main, "null removes"
    assert {"name": "tmp", "hostPath": {"path": "/t"}} in merged["volumes"], "a volume has one source"
    assert merged["tolerations"] == [{"operator": "Exists"}]


def test_the_pod_fits_the_restricted_profile_and_gets_no_split() -> None:
    template = pod({"model": HF, "partition": {"prefillPercent": 33, "decodePercent": 44}})
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*spec["containers"], *spec["initContainers"]]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False and security["capabilities"] == {"drop": ["ALL"]}
    assert not [v for v in spec["volumes"] if "hostPath" in v]
    assert "33" not in str(spec["containers"][0]["command"])


def test_child_names_fit_labels_at_the_longest_name() -> None:
    for obj in render(make({"replicas": 2}, "a" * 52), SETTINGS).objects:
        assert len(obj["metadata"]["name"]) <= 63
        assert all(len(value) <= 63 for value in obj["metadata"]["labels"].values())


def test_what_is_not_wanted_is_named() -> None:
    def unwanted(spec: dict[str, Any], known: Known) -> list[str]:
        return [kind.kind for kind in render(make(spec), SETTINGS, known=known).unwanted]

    four = ["PodDisruptionBudget", "HorizontalPodAutoscaler", "PodMonitor", "ScaledObject"]
    assert unwanted({}, ALL) == four
    assert unwanted({"replicas": 2, "monitoring": {"podMonitor": True}}, ALL) == [four[1], four[3]]
    assert unwanted(scaled(), ALL) == [four[0], four[2], four[3]]
    assert unwanted(scaled(keda=KEDA), ALL) == four[:3], "one autoscaler takes the other's place"
    assert unwanted({"replicas": 2}, Known()) == [four[1]], "an unknown kind is not asked for"


def test_the_autoscaler_scales_the_service_by_the_metric_that_the_agents_export() -> None:
    from semipd_agent.metrics import CAPACITY_RATIO

    rendered = objects(scaled(), known=ALL)
    scaler = rendered["HorizontalPodAutoscaler"]
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": "semipd.io/v1alpha1",
        "kind": "SemiPDService",
        "name": "demo",
    }
    assert scaler["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    [metric] = scaler["spec"]["metrics"]
    assert metric["external"]["metric"] == {
        "name": CAPACITY_RATIO,
        "selector": {"matchLabels": {names.METRIC_LABEL: "demo"}},
    }
    by_keda = objects(scaled(keda=KEDA), known=ALL)["ScaledObject"]["spec"]
    assert by_keda["scaleTargetRef"] == scaler["spec"]["scaleTargetRef"]
    query = by_keda["triggers"][0]["metadata"]["query"]
    assert query == f'sum({CAPACITY_RATIO}{{namespace="team",{names.METRIC_LABEL}="demo"}})'
    assert "ScaledObject" not in objects(scaled(keda=KEDA)), "not where the cluster does not know it"


def test_the_adapter_example_names_the_metric_and_the_label_that_the_hpa_asks_for() -> None:
    values = yaml.safe_load((ROOT / "examples/prometheus-adapter/values.yaml").read_text())
    [rule] = values["rules"]["external"]
    asked = scaler(scaled())["metrics"][0]["external"]["metric"]
    [label] = asked["selector"]["matchLabels"]
    assert rule["seriesQuery"].startswith(asked["name"] + "{") and f'{label}!=""' in rule["seriesQuery"]
    assert rule["metricsQuery"].endswith(f"by ({label})")


def test_the_pod_monitor_names_the_service_on_every_series() -> None:
    monitor = objects({"monitoring": {"podMonitor": True}}, known=ALL)["PodMonitor"]
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert endpoint["relabelings"] == [
            {"sourceLabels": ["__meta_kubernetes_pod_label_semipd_io_service"], "targetLabel": names.METRIC_LABEL}
        ]


def test_the_default_behavior_is_quick_up_and_slow_down() -> None:
    behavior = scaler(scaled())["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 60
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 300
    assert behavior["scaleDown"]["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 60}]
    only_down = scaler(scaled(behavior={"scaleDown": {"stabilizationWindowSeconds": 0}}))["behavior"]
    assert only_down == {"scaleUp": behavior["scaleUp"], "scaleDown": {"stabilizationWindowSeconds": 0}}


def test_a_gpu_pod_has_what_mps_needs_and_no_more() -> None:
    spec = {"engine": {"device": "cuda"}}
    env = {entry["name"]: entry.get("value") for entry in engine(spec)["env"]}
    assert env["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"
    assert not any(name.startswith("CUDA_MPS") for name in env), "only the agent sets these, for each process"
    pod = objects(spec)["Deployment"]["spec"]["template"]["spec"]
    assert not {"hostIPC", "hostPID", "hostNetwork"} & set(pod)
    assert [volume(name)(spec)["emptyDir"] for name in ("run", "shm")] == [{"medium": "Memory"}] * 2
    judge(good_host(Path(RUN_MOUNT)))  # the mount's path leaves room for the daemon's socket
    assert "NVIDIA_DRIVER_CAPABILITIES" not in {entry["name"] for entry in engine({})["env"]}
