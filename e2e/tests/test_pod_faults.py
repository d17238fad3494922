"""Processes killed inside a serving pod come back by themselves: the kubelet sees nothing, clients are told at once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from bench.traffic import prompt_ids
from e2e.lib.cluster import Cluster
from e2e.lib.completions import Ask, IncompleteAnswer, SteadyLoad, complete_all
from e2e.lib.fixtures import Serve
from e2e.lib.service import Service, manual, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

ASKS = [Ask(prompt_ids(80, seed=seed, vocabulary=range(1_000, 3_000)), 300, stream=True) for seed in range(4)]

SIGNAL = """
import os, signal, time
from pathlib import Path
name = "semipd: {name}"
for process in Path("/proc").glob("[0-9]*"):
    if (process / "cmdline").read_bytes().replace(b"\\0", b" ").decode().strip() == name:
        os.kill(int(process.name), signal.{signal})
        print("sent", process.name)
"""


@pytest.fixture
def service(serve: Serve, model_paths: dict[str, Path]) -> Iterator[Service]:
    yield serve("tiny", spec(model_paths["tiny-llama"].name, partition=manual(60, 60))).wait_ready()


def kill(service: Service, name: str, signal: str = "SIGKILL") -> float:
    """Signals the one process of that title; returns when, time.monotonic."""
    said = service.run_in_pod(SIGNAL.format(name=name, signal=signal)).split()
    assert said[::2] == ["sent"], said
    return time.monotonic()


def serving_addresses(service: Service) -> list[str]:
    """Where the Service leads: addresses of its EndpointSlices that are ready."""
    at = ("--namespace", service.namespace, "get", "endpointslices", "-o", "json")
    found = json.loads(service.cluster.kubectl(*at, "-l", f"kubernetes.io/service-name={service.name}"))
    ends = [end for part in found["items"] for end in part.get("endpoints") or [] if end["conditions"]["ready"]]
    return [address for end in ends for address in end["addresses"]]


def answers(cluster: Cluster, url: str) -> bool:
    try:
        with cluster.network():
            complete_all(url, [Ask(ASKS[0].prompt, 4)])
    except IncompleteAnswer:
        return False
    return True


def test_core_dies(cluster: Cluster, service: Service) -> None:
    """Requests in flight end with an error while the engine is away, and it serves again by itself."""
    url, lives = service.url(), service.lives()
    with SteadyLoad(cluster, url, ASKS) as load:
        time.sleep(2)
        killed = kill(service, "core")
        wait_until(lambda: answers(cluster, url), describe=lambda: "no answer after core's death")
        back = time.monotonic()
    in_flight = [sent for _, sent in load.sent if sent.error and sent.began < killed]
    assert in_flight, "no request was in flight"
    assert all(sent.ended < back for sent in in_flight), "an api that survives tells its clients at once"
    assert service.lives() == lives
    service.wait_ready()
    waits = [sent.ended - killed for sent in in_flight]
    print(f"core: errors within {max(waits):.2f} s, serving again after {back - killed:.1f} s")


def test_resident_dies(cluster: Cluster, service: Service) -> None:
    """No accepted request is lost: all wait for the reload and end as if nothing had been."""
    url, lives = service.url(), service.lives()
    with cluster.network():
        expected = complete_all(url, ASKS)
    with SteadyLoad(cluster, url, ASKS) as load:
        time.sleep(2)
        kill(service, "resident")
        time.sleep(8)
    by_prompt = {ask.prompt: answer.token_ids for ask, answer in zip(ASKS, expected, strict=True)}
    assert not load.failures()
    assert all(sent.answer and sent.answer.token_ids == by_prompt[ask.prompt] for ask, sent in load.sent)
    assert service.lives() == lives
    longest = max(sent.ended - sent.began for _, sent in load.sent)
    print(f"resident: {len(load.sent)} requests, none lost or changed, the longest took {longest:.1f} s")
    service.wait_ready()


def test_api_dies(cluster: Cluster, service: Service) -> None:
    """Its connections go with it; it is back at once, and core has forgotten those requests."""
    url, lives = service.url(), service.lives()
    with SteadyLoad(cluster, url, ASKS) as load:
        time.sleep(2)
        killed = kill(service, "api")
        wait_until(lambda: answers(cluster, url), describe=lambda: "no answer after api's death")
        back = time.monotonic() - killed
    assert load.failures(), "no connection was open"
    assert service.lives() == lives
    service.wait_ready()
    print(f"api: serving again after {back:.1f} s")


def test_api_hangs(service: Service) -> None:
    """Nobody can be answered though all others are well: out of the Service, and named with the remedy."""
    lives = service.lives()
    assert len(serving_addresses(service)) == 1
    stopped = kill(service, "api", "SIGSTOP")
    try:
        wait_until(lambda: not serving_addresses(service), describe=lambda: "it is in the Service yet")
        out = time.monotonic() - stopped
        wait_until(lambda: service.row()["REASON"] == "APINotResponding", describe=service.status)
        named = time.monotonic() - stopped
        message = "Message: tiny-*: the process api does not answer within 5 s; *. Remedy: It is restarted by itself, *"
        found = [line for line in service.described() if fnmatchcase(line, message)]
        assert found, service.described()
        print(service.row(), found[0], sep="\n")
    finally:
        kill(service, "api", "SIGCONT")
    service.wait_ready()
    assert len(serving_addresses(service)) == 1 and service.lives() == lives
    print(f"api hangs: out of the Service after {out:.1f} s, named after {named:.1f} s")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_worker_dies(phase: str, cluster: Cluster, service: Service) -> None:
    """Nobody notices."""
    url, lives = service.url(), service.lives()
    with cluster.network():
        expected = complete_all(url, ASKS)
    by_prompt = {ask.prompt: answer.token_ids for ask, answer in zip(ASKS, expected, strict=True)}
    with SteadyLoad(cluster, url, ASKS) as load:
        for _ in range(3):
            time.sleep(1.5)
            kill(service, phase)
        time.sleep(1)
    assert not load.failures()
    assert all(sent.answer and sent.answer.token_ids == by_prompt[ask.prompt] for ask, sent in load.sent)
    assert service.lives() == lives
