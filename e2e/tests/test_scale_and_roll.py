"""Replicas and roll-outs: each pod keeps a split of its own, and no request is lost while pods are replaced."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.traffic import prompt_ids
from e2e.lib.cluster import Cluster
from e2e.lib.completions import Ask, SteadyLoad
from e2e.lib.fixtures import Serve
from e2e.lib.kube import Object
from e2e.lib.service import Service, manual, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

ASKS = [
    Ask(prompt_ids(40, seed=seed, vocabulary=range(1_000, 3_000)), 60, stream=seed % 2 == 0) for seed in range(1, 9)
]


@pytest.fixture
def service(serve: Serve, model_paths: dict[str, Path]) -> Iterator[Service]:
    yield serve("tiny", spec(model_paths["tiny-llama"].name, partition=manual(50, 50))).wait_ready()


def scale(service: Service, replicas: int) -> None:
    service.cluster.kubectl("--namespace", service.namespace, "scale", f"spd/{service.name}", f"--replicas={replicas}")


def test_two_pods_then_a_roll(cluster: Cluster, service: Service) -> None:
    scale(service, 2)
    service.wait_ready()
    status = service.status()
    assert (status["replicas"], status["readyReplicas"], status["selector"]) == (2, 2, "semipd.io/service=tiny")
    names = {pod["metadata"]["name"] for pod in service.pods()}
    assert {pod["name"] for pod in status["partition"]["pods"]} == names
    url = service.url()
    with SteadyLoad(cluster, url, ASKS) as load:
        wait_until(lambda: len(load.sent) >= 8, describe=lambda: "no traffic")
        old = set(service.lives())
        service.patch({"engine": {"maxNumSeqs": 32}})
        wait_until(lambda: not old & set(service.lives()), 180, lambda: service.status())
        service.wait_ready()
        asked = len(load.sent)
        wait_until(lambda: len(load.sent) >= asked + 8, describe=lambda: "no traffic after the roll")
    assert load.failures() == []
    assert set(service.lives().values()) == {0}
    events = cluster.kubectl(
        "--namespace", service.namespace, "get", "events", "-o", "name", "--field-selector", "reason=RolloutFinished"
    )
    assert events
    print(f"roll: {len(load.sent)} requests, none lost")


def test_ready_while_splits_differ(cluster: Cluster, service: Service) -> None:
    """Auto runs in each pod by itself; traffic that reaches one pod alone moves only that one."""
    scale(service, 2)
    # 1 ms cannot be met: under Algorithm 1 whoever serves gives prefill more (ModelPredictive stays if no split helps).
    slo = {"ttftMilliseconds": 1, "tpotMilliseconds": 60_000, "windowSeconds": 30}
    auto = {"mode": "Auto", "policy": "Algorithm1", "prefillPercent": None, "decodePercent": None}
    service.patch({"slo": slo, "partition": auto})
    service.wait_ready()
    first, second = (pod["status"]["podIP"] for pod in service.pods())
    with SteadyLoad(cluster, f"http://{first}:8000", ASKS):

        def differ() -> Object | None:
            partition: Object = service.status()["partition"]
            splits = {json.dumps(pod.get("applied"), sort_keys=True) for pod in partition["pods"]}
            return partition if len(splits) == 2 and "null" not in splits else None

        partition = wait_until(differ, describe=lambda: service.status()["partition"]) or {}
        assert service.condition("Ready")["status"] == "True"
        assert service.condition("PartitionApplied")["status"] == "True"
    assert "applied" not in partition  # there is no one split to show
    assert "-" in partition["summary"]
    mover = {decision["pod"] for decision in partition["decisions"] if decision["reason"] == "TTFTAboveTarget"}
    by_address = {pod["status"]["podIP"]: pod["metadata"]["name"] for pod in service.pods()}
    assert mover == {by_address[first]}
    assert second != first
    print(f"Ready at {partition['summary']}")


def test_scaled_to_zero_and_back(service: Service) -> None:
    scale(service, 0)
    service.wait_condition("Ready", "True", "ScaledToZero")
    assert service.pods() == []
    scale(service, 1)
    service.wait_ready()


def test_delete_leaves_nothing(cluster: Cluster, service: Service) -> None:
    label = f"semipd.io/service={service.name}"
    kinds = "deployments,replicasets,pods,services,endpointslices,configmaps,poddisruptionbudgets,secrets"

    def left() -> list[str]:
        return cluster.kubectl("--namespace", service.namespace, "get", kinds, "-l", label, "-o", "name").split()

    assert {name.split("/")[0] for name in left()} >= {"deployment.apps", "service", "configmap", "pod"}
    service.delete()
    wait_until(lambda: not left(), describe=left)
