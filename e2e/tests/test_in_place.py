"""A patched split and a patched SLO reach the workers in seconds; no pod restarts and no stream notices."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.traffic import prompt_ids
from e2e.lib.cluster import Cluster
from e2e.lib.completions import Answer, Ask, complete_all
from e2e.lib.fixtures import Serve
from e2e.lib.kube import Object
from e2e.lib.service import Service, manual, shares, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

LONG = Ask(prompt_ids(64, seed=5, vocabulary=range(1_000, 3_000)), max_tokens=900, stream=True)


@pytest.fixture
def service(serve: Serve, model_paths: dict[str, Path]) -> Iterator[Service]:
    yield serve("tiny", spec(model_paths["tiny-llama"].name, partition=manual(50, 50))).wait_ready()


def seconds_until_applied(service: Service, prefill: int, decode: int) -> float:
    """From the moment the patch is sent, kubectl's own start included."""
    began = time.monotonic()
    service.patch({"partition": manual(prefill, decode)})

    def applied() -> bool:
        return bool((service.status().get("partition") or {}).get("applied") == shares(prefill, decode))

    wait_until(applied, describe=lambda: f"split {prefill}/{decode}: {service.status().get('partition')}", every_s=0.05)
    return time.monotonic() - began


def test_a_split_moves_under_a_stream(cluster: Cluster, service: Service) -> None:
    url, lives = service.url(), service.lives()
    with cluster.network():
        [undisturbed] = complete_all(url, [LONG])
    answers: list[Answer] = []
    moved = threading.Event()

    def ask() -> None:
        """A stream after the other, until all moves are over: each move meets one."""
        with cluster.network():
            while not moved.is_set():
                answers.extend(complete_all(url, [LONG]))

    stream = threading.Thread(target=ask)
    stream.start()
    try:
        took = [seconds_until_applied(service, *split) for split in ((80, 20), (20, 80), (100, 60))]
    finally:
        moved.set()
        stream.join()
    assert answers and {tuple(answer.token_ids) for answer in answers} == {tuple(undisturbed.token_ids)}
    assert len(undisturbed.token_ids) == LONG.max_tokens
    assert {answer.finish_reason for answer in answers} == {"length"}
    assert service.lives() == lives
    service.wait_condition("PartitionApplied", "True", "Applied")
    row = service.row()
    assert (row["READY"], row["SPLIT"], row["ENFORCED"]) == ("True", "100/60", "paced")
    print(f"split in status.partition.applied after {', '.join(f'{seconds:.1f}' for seconds in took)} s")


def test_an_slo_moves_in_place(service: Service) -> None:
    lives = service.lives()
    took = []
    for ttft in (900, 800, 700):
        began = time.monotonic()
        service.patch({"slo": {"ttftMilliseconds": ttft, "tpotMilliseconds": 200}})

        def in_force(ttft: int = ttft) -> Object | None:
            status = service.status()
            slo = status.get("slo") or {}
            shown = (slo.get("ttft") or {}).get("targetMilliseconds") == ttft
            # The pod has it when PartitionApplied is True for this generation.
            generation = service.get()["metadata"]["generation"]
            [applied] = [entry for entry in status["conditions"] if entry["type"] == "PartitionApplied"]
            done = applied["status"] == "True" and applied["observedGeneration"] == generation
            return status if shown and done else None

        wait_until(in_force, describe=lambda: service.status(), every_s=0.05)
        took.append(time.monotonic() - began)
    assert service.status()["partition"]["mode"] == "Manual"  # as the specification says; the SLO alone moves nothing
    assert service.lives() == lives
    service.patch({"partition": {"mode": "Auto", "prefillPercent": None, "decodePercent": None}})
    wait_until(lambda: service.status()["partition"]["mode"] == "Auto", describe=lambda: service.status()["partition"])
    assert service.lives() == lives
    print(f"SLO in force after {', '.join(f'{seconds:.1f}' for seconds in took)} s")
