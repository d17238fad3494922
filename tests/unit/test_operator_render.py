"""Rendered objects: whole ones against golden files, and what must hold of them.

UPDATE_GOLDEN=1 writes the golden files anew.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.mps_bench import good_host
from tests.unit.operator_rendered import (
    HF,
    KEDA,
    SETTINGS,
    engine,
    make,
    objects,
    pod,
    scaled,
    scaler,
    volume,
)

from semipd_agent.contract import AgentFile, service_token, token_digest
from semipd_agent.partitioner.mps.preflight import judge
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.crd import to_yaml
from semipd_operator.render import BUDGET, HPA, OPTIONAL_KINDS, InvalidTemplate, Kind, names, render
from semipd_operator.render.pod import RUN_MOUNT
from semipd_operator.settings import Settings

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    obj = yaml.safe_load(path.read_text())
    obj["metadata"] |= {"namespace": "team", "uid": "uid-1", "generation": 3}
    rendered = render(SemiPDService.parse(obj), SETTINGS)
    text = "---\n".join(to_yaml(each) for each in rendered.objects)
    golden = GOLDEN / f"{path.stem}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


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


@pytest.mark.parametrize("kind", ["containers", "initContainers"])
@pytest.mark.parametrize("part", ["limits", "requests"])
@pytest.mark.parametrize("amount", [2, "2", "1500m"])
def test_more_than_one_gpu_is_refused_in_a_pod_template_too(kind: str, part: str, amount: int | str) -> None:
    def with_gpus(number: int | str) -> dict[str, Any]:
        container = {"name": "engine", "resources": {part: {"nvidia.com/gpu": number}}}
        return {"podTemplate": {"spec": {kind: [container]}}}

    with pytest.raises(InvalidTemplate, match=rf"{kind}\[engine\].resources.{part} .* add pods by replicas"):
        objects(with_gpus(amount))
    assert objects(with_gpus(1))
    for part_of_one in ("nvidia.com/mig-1g.10gb", "nvidia.com/gpu.shared"):
        container = {"name": "engine", "resources": {part: {part_of_one: 1}}}
        with pytest.raises(InvalidTemplate, match=rf"{kind}\[engine\].resources.{part} .* a split needs a whole one"):
            objects({"podTemplate": {"spec": {kind: [container]}}})
    network = {"name": "engine", "resources": {part: {"nvidia.com/hostdev": 1}}}
    assert objects({"podTemplate": {"spec": {kind: [network]}}})
    for nonsense in ("x", {"name": "x", "resources": "x"}, {"name": "x", "resources": {part: ["x"]}}):
        assert objects({"podTemplate": {"spec": {kind: [nonsense]}}}), "the API server says what is wrong"
    with pytest.raises(
        InvalidTemplate, match=rf"{kind}\[engine\].resources.{part}.nvidia.com/gpu is '1e9+', which is no q"
    ):
        objects(with_gpus("1e99999999999999999999"))


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


def test_an_added_container_s_last_lines_reach_the_status_unless_the_template_says_otherwise() -> None:
    over = {
        "initContainers": [{"name": "prepare"}, {"name": "quiet", "terminationMessagePolicy": "File"}],
        "containers": [{"name": "proxy"}, {"name": "engine", "terminationMessagePolicy": None}],
    }
    spec = pod({"model": HF, "podTemplate": {"spec": over}})["spec"]
    found = {one["name"]: one.get("terminationMessagePolicy") for one in [*spec["initContainers"], *spec["containers"]]}
    fallback = "FallbackToLogsOnError"
    assert found == {"model": "File", "prepare": fallback, "quiet": "File", "engine": None, "proxy": fallback}


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
    def unwanted(spec: dict[str, Any], reach: tuple[Kind, ...] = OPTIONAL_KINDS) -> list[str]:
        return [kind.kind for kind in render(make(spec), SETTINGS, within_reach=reach).unwanted]

    four = ["PodDisruptionBudget", "HorizontalPodAutoscaler", "PodMonitor", "ScaledObject"]
    assert unwanted({}) == four
    assert unwanted({"replicas": 2, "monitoring": {"podMonitor": True}}) == [four[1], four[3]]
    assert unwanted(scaled()) == [four[0], four[2], four[3]]
    assert unwanted(scaled(keda=KEDA)) == four[:3], "one autoscaler takes the other's place"
    assert unwanted({"replicas": 2}, (BUDGET, HPA)) == [four[1]], "a kind out of reach is not ours"
    lacking = render(make({"monitoring": {"podMonitor": True}}), SETTINGS, within_reach=(BUDGET, HPA)).lacking
    assert lacking == (Kind("monitoring.coreos.com/v1", "PodMonitor"),)


def test_the_autoscaler_scales_the_service_by_the_metric_that_the_agents_export() -> None:
    from semipd_agent.metrics import UTILIZATION_RATIO

    rendered = objects(scaled())
    scaler = rendered["HorizontalPodAutoscaler"]
    assert scaler["spec"]["scaleTargetRef"] == {
        "apiVersion": "semipd.io/v1alpha1",
        "kind": "SemiPDService",
        "name": "demo",
    }
    assert scaler["metadata"]["ownerReferences"][0]["uid"] == "uid-1"
    [metric] = scaler["spec"]["metrics"]
    assert metric["external"]["metric"] == {
        "name": UTILIZATION_RATIO,
        "selector": {"matchLabels": {names.METRIC_LABEL: "demo"}},
    }
    by_keda = objects(scaled(keda=KEDA))["ScaledObject"]["spec"]
    assert by_keda["scaleTargetRef"] == scaler["spec"]["scaleTargetRef"]
    query = by_keda["triggers"][0]["metadata"]["query"]
    assert query == f'sum({UTILIZATION_RATIO}{{namespace="team",{names.METRIC_LABEL}="demo"}})'
    assert "ScaledObject" not in objects(scaled(keda=KEDA), within_reach=(HPA,)), "not where it is out of reach"


def test_the_adapter_example_names_the_metric_and_the_label_that_the_hpa_asks_for() -> None:
    values = yaml.safe_load((ROOT / "examples/prometheus-adapter/values.yaml").read_text())
    [rule] = values["rules"]["external"]
    asked = scaler(scaled())["metrics"][0]["external"]["metric"]
    [label] = asked["selector"]["matchLabels"]
    assert rule["seriesQuery"].startswith(asked["name"] + "{") and f'{label}!=""' in rule["seriesQuery"]
    assert rule["metricsQuery"].endswith(f"by ({label})")


def test_the_pod_monitor_names_the_service_on_every_series() -> None:
    monitor = objects({"monitoring": {"podMonitor": True}})["PodMonitor"]
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        assert endpoint["relabelings"] == [
            {"sourceLabels": ["__meta_kubernetes_pod_label_semipd_io_service"], "targetLabel": names.METRIC_LABEL}
        ]


def test_the_default_behavior_is_quick_up_and_slow_down() -> None:
    behavior = scaler(scaled())["behavior"]
    assert behavior["scaleUp"]["stabilizationWindowSeconds"] == 15
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


def test_what_the_cluster_asks_of_pods_and_monitors_is_the_operators_setting() -> None:
    spec = {"monitoring": {"podMonitor": True}}
    settings = replace(SETTINGS, engine_user=None, pod_monitor_labels=(("release", "prom"), ("semipd.io/service", "x")))
    made = {obj["kind"]: obj for obj in render(make(spec), settings).objects}
    security = made["Deployment"]["spec"]["template"]["spec"]["securityContext"]
    assert not {"runAsUser", "runAsGroup", "fsGroup"} & set(security) and security["runAsNonRoot"] is True
    labels = made["PodMonitor"]["metadata"]["labels"]
    assert (labels["release"], labels["semipd.io/service"]) == ("prom", "demo"), "the selector's label stays ours"


def test_pods_are_told_the_commit_once_it_is_known_and_that_rolls_nothing() -> None:
    bare, told = (render(make({"model": HF}), SETTINGS, model_revision=commit) for commit in ("", "c1"))
    data = [{obj["kind"]: obj for obj in made.objects}["ConfigMap"]["data"] for made in (bare, told)]
    assert "model-revision" not in data[0] and data[1]["model-revision"] == "c1"
    assert bare.template_hash == told.template_hash
    [init] = pod({"model": HF})["spec"]["initContainers"]
    read = init["command"][init["command"].index("--pin-file") + 1]
    assert read == "/etc/semipd/model-revision" and "/etc/semipd" in [m["mountPath"] for m in init["volumeMounts"]]


def test_the_download_has_resources_without_devices() -> None:
    """A namespace with a quota or a LimitRange wants them of every container."""
    resources = {"limits": {"memory": "3Gi", "nvidia.com/gpu": 1}, "requests": {"cpu": "1", "memory": "1Gi"}}
    spec = pod({"model": HF, "engine": {"resources": resources}})["spec"]
    [download] = spec["initContainers"]
    assert download["resources"] == {"limits": {"memory": "3Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}
    assert pod({"model": HF})["spec"]["initContainers"][0]["resources"] == {}
