"""What a specification renders to, piece by piece, for the tests of `render`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from semipd_agent.contract import AgentFile
from semipd_operator.api.v1alpha1.resource import SemiPDService
from semipd_operator.render import render
from semipd_operator.settings import Settings

SETTINGS = Settings(engine_image="engine:1", key=b"0123456789abcdef", version="1.0.0")
HF = {"uri": "hf://org/name"}
SLO = {"ttftMilliseconds": 500}
GPU = {"resources": {"limits": {"nvidia.com/gpu": 1}}}
KEDA = {"serverAddress": "http://prometheus:9090"}
HPA = "HorizontalPodAutoscaler"
SCALERS = {HPA, "ScaledObject"}
POLICY = {"type": "Percent", "value": 50, "periodSeconds": 15}


def make(spec: dict[str, Any], name: str = "demo", generation: int = 3) -> SemiPDService:
    meta = {"name": name, "namespace": "team", "uid": "uid-1", "generation": generation}
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


def scaled(**autoscaling: Any) -> dict[str, Any]:
    return {"slo": SLO, "autoscaling": {"maxReplicas": 4, **autoscaling}}


def scaler(spec: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = objects(spec)["HorizontalPodAutoscaler"]["spec"]
    return found


def rules(direction: str, **given: Any) -> tuple[dict[str, Any], Callable[[dict[str, Any]], Any], Any]:
    return scaled(behavior={direction: given}), lambda spec: scaler(spec)["behavior"][direction], given
