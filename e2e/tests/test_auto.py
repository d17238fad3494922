"""Auto in a pod: the failing target decides which way the split goes, and the resource says why it went.

Which target fails is set by the targets themselves, so that the test holds on any machine; `bench/auto_split.py` does
the same with recorded traffic and targets that can be met.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.traffic import prompt_ids
from e2e.lib.cluster import Cluster
from e2e.lib.completions import Ask, SteadyLoad
from e2e.lib.fixtures import Serve
from e2e.lib.kube import Object
from e2e.lib.service import Service, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

PREFILL_HEAVY = [Ask(prompt_ids(600, seed=s, vocabulary=range(1_000, 3_000)), 8, stream=True) for s in range(40)]
DECODE_HEAVY = [Ask(prompt_ids(20, seed=s, vocabulary=range(1_000, 3_000)), 60, stream=True) for s in range(40)]
UNREACHABLE, GENEROUS = 1, 600_000


@pytest.fixture
def service(serve: Serve, model_paths: dict[str, Path]) -> Iterator[Service]:
    slo = {"ttftMilliseconds": UNREACHABLE, "tpotMilliseconds": GENEROUS, "windowSeconds": 30}
    partition = {"policy": "Algorithm1", "minPrefillPercent": 20, "minDecodePercent": 20}
    yield serve("tiny", spec(model_paths["tiny-llama"].name, slo=slo, partition=partition)).wait_ready()


def prefill_part(service: Service) -> float:
    """x / (x + y) of the applied split; -1 while there is none."""
    applied = service.status()["partition"].get("applied")
    if not applied:
        return -1.0
    return float(applied["prefillPercent"] / (applied["prefillPercent"] + applied["decodePercent"]))


def check(decision: Object, pod: str, metric: str, target: int) -> None:
    assert decision["pod"] == pod
    assert decision["metric"] == metric
    assert decision["reason"] == f"{metric.upper()}AboveTarget"
    assert decision["targetMilliseconds"] == target
    assert decision["observedMilliseconds"] > target
    assert decision["from"] != decision["to"]
    assert decision["time"]


def test_the_split_follows_the_failing_target(cluster: Cluster, service: Service) -> None:
    [pod] = (entry["metadata"]["name"] for entry in service.pods())
    lives = service.lives()
    url = service.url()
    start = prefill_part(service)
    assert start == 0.5
    began = time.monotonic()
    with SteadyLoad(cluster, url, PREFILL_HEAVY):
        wait_until(lambda: prefill_part(service) > start, describe=lambda: service.status()["partition"])
    rose_after, high = time.monotonic() - began, prefill_part(service)
    for decision in service.status()["partition"]["decisions"]:
        check(decision, pod, "ttft", UNREACHABLE)
    service.patch({"slo": {"ttftMilliseconds": GENEROUS, "tpotMilliseconds": UNREACHABLE}})
    began = time.monotonic()
    with SteadyLoad(cluster, url, DECODE_HEAVY):
        wait_until(lambda: 0 <= prefill_part(service) < high, describe=lambda: service.status()["partition"])
    fell_after = time.monotonic() - began
    status = service.status()
    newest = status["partition"]["decisions"][0]
    check(newest, pod, "tpot", UNREACHABLE)
    assert (status["partition"]["enforcement"], service.row()["ENFORCED"]) == ("paced", "paced")
    assert service.lives() == lives
    message = cluster.kubectl(
        *("--namespace", service.namespace, "get", "events", "--field-selector", "reason=PartitionChanged"),
        *("-o", "jsonpath={.items[*].message}{.items[*].note}"),
    )
    assert pod in message
    assert "TTFTAboveTarget" in message
    print(f"prefill's part rose after {rose_after:.0f} s, fell after {fell_after:.0f} s; {service.row()['SPLIT']}")
