"""The data plane without the operator: it serves on, status resumes, a new key rolls nothing, and nothing hangs."""

from __future__ import annotations

import base64
import time
from pathlib import Path
from uuid import uuid4

import pytest

from bench.traffic import prompt_ids
from e2e.lib.cluster import Cluster
from e2e.lib.completions import Ask, SteadyLoad, complete_all
from e2e.lib.fixtures import Serve, create_space
from e2e.lib.helm import SYSTEM, Operator
from e2e.lib.service import Service, manual, shares, spec
from e2e.lib.waiting import wait_until

pytestmark = pytest.mark.node

ASKS = [Ask(prompt_ids(40, seed=seed, vocabulary=range(1_000, 3_000)), 40, stream=True) for seed in range(1, 5)]


def applied(service: Service) -> object:
    return (service.status().get("partition") or {}).get("applied")


def key(cluster: Cluster) -> bytes:
    return base64.b64decode(cluster.get("secret", "semipd-semipd-operator-key", SYSTEM)["data"]["key"])


def test_away_and_back(cluster: Cluster, operator: Operator, serve: Serve, model_paths: dict[str, Path]) -> None:
    service = serve("tiny", spec(model_paths["tiny-llama"].name, partition=manual(50, 50))).wait_ready()
    url, lives = service.url(), service.lives()
    with SteadyLoad(cluster, url, ASKS, clients=2) as load:
        operator.scale(0)
        service.patch({"partition": manual(80, 40)})
        time.sleep(5)
        assert applied(service) == shares(50, 50)  # nobody writes status, and nothing moved
        operator.scale(1)
        wait_until(lambda: applied(service) == shares(80, 40), describe=service.status)
        service.wait_ready()
    assert load.failures() == []
    assert service.lives() == lives


def test_a_new_key_rolls_no_pod(
    cluster: Cluster, operator: Operator, serve: Serve, model_paths: dict[str, Path]
) -> None:
    service = serve("tiny", spec(model_paths["tiny-llama"].name, partition=manual(50, 50))).wait_ready()
    url, lives, old_key = service.url(), service.lives(), key(cluster)
    with SteadyLoad(cluster, url, ASKS, clients=2) as load:
        operator.uninstall()
        began = time.monotonic()
        operator.install()
        assert key(cluster) != old_key
        service.patch({"partition": manual(40, 90)})
        # The kubelet brings the changed ConfigMap to the pod at its next sync: a minute and a half on most clusters.
        wait_until(lambda: applied(service) == shares(40, 90), 180, service.status)
        took = time.monotonic() - began
        service.wait_ready()
    assert load.failures() == []
    assert service.lives() == lives
    print(f"new key: status resumed after {took:.0f} s, no pod rolled")


def test_uninstalled_first_then_everything_else_goes(
    cluster: Cluster, operator: Operator, model_paths: dict[str, Path]
) -> None:
    """No finalizer waits for an operator that is gone."""
    space = f"spd-{uuid4().hex[:8]}"
    create_space(cluster, space)
    service = Service(cluster, space, "tiny").apply(spec(model_paths["tiny-llama"].name)).wait_ready()
    url = service.url()
    try:
        operator.uninstall()
        assert cluster.get("crd", "semipdservices.semipd.io", "default")  # kept, and with it the services
        with cluster.network():
            [answer] = complete_all(url, ASKS[:1])
        assert len(answer.token_ids) == ASKS[0].max_tokens
        began = time.monotonic()
        service.delete()
        cluster.kubectl("delete", "namespace", space, "--timeout=120s")
        took = time.monotonic() - began
    finally:
        operator.install()
        cluster.exec("kubectl", "delete", "persistentvolume", f"{space}-models", "--ignore-not-found", check=False)
    print(f"operator gone: service and namespace deleted in {took:.0f} s")
