"""The real Kopf loop against an emulated API server: what it asks for, what it hears, what it never writes."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import kmock as kmock_library
import kopf
import pytest
import yaml

from e2e.lib.waiting import PATIENCE_S, wait_until_async
from semipd_operator import watches
from semipd_operator.api.v1alpha1.resource import KIND
from semipd_operator.informer import Informer
from semipd_operator.render.names import MANAGED_SELECTOR
from semipd_operator.watches import _by_address, kopf_settings, registry
from semipd_operator.workqueue import Key

pytestmark = pytest.mark.kopf

SERVICES = "semipd.io/v1alpha1/semipdservices"
CHILDREN = {
    "v1/pods": "Pod",
    "v1/services": "Service",
    "v1/configmaps": "ConfigMap",
    "apps/v1/deployments": "Deployment",
    "policy/v1/poddisruptionbudgets": "PodDisruptionBudget",
}


@dataclass
class Heard:
    news: list[tuple[Key, str, bool]] = field(default_factory=list)
    answers: list[tuple[str, str, str, int]] = field(default_factory=list)
    """To lists and watches: kind, verb, namespace, status."""

    @property
    def open(self) -> list[str]:
        """The namespaces of watches of the services, as they were accepted."""
        return [place for kind, verb, place, status in self.answers if (kind, verb, status) == (KIND, "watch", 200)]


@pytest.fixture
async def heard(kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Heard]:
    async with operator_loop(kmock, tmp_path, monkeypatch) as told:
        await wait_until_async(lambda: len(watched(kmock)) == len(CHILDREN) + 1)
        yield told


@asynccontextmanager
async def operator_loop(kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Heard]:
    """The real loop, running; what its handlers told."""
    for name, kind in {SERVICES: "SemiPDService", **CHILDREN}.items():
        kmock.resources[name] = kmock_library.ResourceInfo(
            kind=kind, namespaced=True, verbs={"get", "list", "watch", "patch"}, subresources={"status"}
        )
    # Kopf waits for its own two before it watches anything, whether or not it may scan them.
    for name in ("v1/namespaces", "v1/events", "apiextensions.k8s.io/v1/customresourcedefinitions"):
        kmock.resources[name] = kmock_library.ResourceInfo(namespaced=name == "v1/events", verbs={"list", "watch"})
    config = tmp_path / "kubeconfig"
    config.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": str(kmock.url)}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    told = Heard()
    informer = Informer()

    def hear(kind: str, obj: dict[str, Any], gone: bool) -> None:
        for key in informer.told(kind, obj, gone=gone):
            told.news.append((key, kind, gone))

    handlers = registry(hear, lambda *answer: told.answers.append(answer), lambda: None)
    # A thread with a loop of its own: Kopf cancels every other task of its loop when it ends.
    stop = threading.Event()
    loop = threading.Thread(
        target=lambda: asyncio.run(
            kopf.operator(
                registry=handlers, settings=kopf_settings(), standalone=True, clusterwide=True, stop_flag=stop
            )
        )
    )
    loop.start()
    try:
        yield told
    finally:
        stop.set()
        await asyncio.to_thread(loop.join, PATIENCE_S)
        assert not loop.is_alive()


def watched(kmock: Any) -> set[str]:
    return {request.resource.plural for request in kmock[kmock_library.action.WATCH]}


async def send(kmock: Any, method: str, resource: str, name: str, body: dict[str, Any] | None = None) -> None:
    """As another client of the API server. The emulator keeps no versions, so objects bring their own."""
    group, _, plural = resource.rpartition("/")
    root = f"api/{group}" if group == "v1" else f"apis/{group}"
    path = f"{root}/namespaces/ns/{plural}" + ("" if method == "POST" else f"/{name}")
    headers = {
        "User-Agent": "test",
        "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
    }
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, kmock.url / path, headers=headers, data=json.dumps(body)) as answer,
    ):
        assert answer.status < 300, await answer.text()


def new(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": "1", **more}}


async def test_services_become_keys_and_are_never_written(kmock: Any, heard: Heard) -> None:
    key = Key("ns", "one")
    await send(kmock, "POST", SERVICES, "one", new("one"))
    await wait_until_async(lambda: heard.news == [(key, "SemiPDService", False)])
    await send(kmock, "PATCH", SERVICES, "one", {"metadata": {"resourceVersion": "2", "generation": 2}})
    await wait_until_async(lambda: len(heard.news) == 2)
    await send(kmock, "DELETE", SERVICES, "one")
    await wait_until_async(lambda: heard.news[2:] == [(key, "SemiPDService", True)])
    ours = [request for request in kmock if request.headers.get("User-Agent") != "test"]
    assert ours and {request.method.value for request in ours} == {"GET"}, "no finalizer, no annotation, no event"


async def test_children_become_the_key_of_their_service(kmock: Any, heard: Heard) -> None:
    key = Key("ns", "one")
    for resource, kind in CHILDREN.items():
        body = {"kind": kind, **new("child", labels={"semipd.io/service": "one"})}
        await send(kmock, "POST", resource, "child", body)
        await wait_until_async(lambda kind=kind: (key, kind, False) in heard.news)
    await send(kmock, "POST", "v1/pods", "stranger", {"kind": "Pod", **new("stranger")})
    await send(kmock, "DELETE", "v1/pods", "child")
    await wait_until_async(lambda: (key, "Pod", True) in heard.news)
    assert {key for key, _, _ in heard.news} == {key}, "an object of no service is nobody's"


async def test_only_managed_children_are_asked_for(kmock: Any, heard: Heard) -> None:
    plurals = {name.rsplit("/", 1)[-1] for name in CHILDREN}
    assert watched(kmock) == plurals | {"semipdservices"}, "and nothing else: no namespaces, no CRDs"
    requests = [*kmock[kmock_library.action.LIST], *kmock[kmock_library.action.WATCH]]
    for request in requests:
        if request.resource.plural in plurals:
            assert request.params.get("labelSelector") == MANAGED_SELECTOR, request.url
        if request.resource.plural == "semipdservices":
            assert "labelSelector" not in request.params


async def test_an_open_watch_is_told_even_where_there_is_no_service(kmock: Any, heard: Heard) -> None:
    await wait_until_async(lambda: heard.open)
    assert heard.open[0] == "" and heard.news == [], "one watch of all namespaces, and nothing to hear"


@pytest.mark.parametrize("refuse", ["list", "watch"])
async def test_a_watch_that_is_not_accepted_is_not_told(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: str
) -> None:
    """The API server answers everything but Kopf's list, or watch, of the services."""
    action = {"list": kmock_library.action.LIST, "watch": kmock_library.action.WATCH}[refuse]
    kmock[action, kmock_library.resource(SERVICES)] << 503
    async with operator_loop(kmock, tmp_path, monkeypatch) as told:
        await wait_until_async(
            lambda: [request for request in kmock[action] if request.resource.plural == "semipdservices"]
        )
        await asyncio.sleep(0.3)
        assert told.open == []


@pytest.mark.parametrize("status", [403, 503])
@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_a_right_that_is_withdrawn_ends_nothing_and_is_back_as_soon_as_it_is_granted(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, status: int
) -> None:
    """And a server in trouble. Kopf by itself gives up at the ninth refusal, and with one watch its whole loop ends:
    after 54 s."""
    action = {"list": kmock_library.action.LIST, "watch": kmock_library.action.WATCH}[verb]
    monkeypatch.setattr(watches.Retries, "__iter__", lambda _: itertools.repeat(0.01))
    kmock[action, kmock_library.resource(SERVICES)][:40] << status
    async with operator_loop(kmock, tmp_path, monkeypatch) as told:
        pod = {"kind": "Pod", **new("child", labels={"semipd.io/service": "one"})}
        await wait_until_async(lambda: "pods" in watched(kmock))
        await send(kmock, "POST", "v1/pods", "child", pod)
        await wait_until_async(lambda: (Key("ns", "one"), "Pod", False) in told.news, describe="the others go on")
        await wait_until_async(lambda: told.open == [""])
        assert told.answers.count((KIND, verb, "", status)) == 40
        await send(kmock, "POST", SERVICES, "two", new("two"))
        await wait_until_async(lambda: (Key("ns", "two"), KIND, False) in told.news)


async def test_a_kind_that_is_never_granted_costs_the_others_nothing(
    kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an administrator may leave a kind out of the chart's rules that services can do without."""
    monkeypatch.setattr(watches.Retries, "__iter__", lambda _: itertools.repeat(0.01))
    kmock[kmock_library.action.LIST, kmock_library.resource("policy/v1/poddisruptionbudgets")] << 403
    async with operator_loop(kmock, tmp_path, monkeypatch) as told:
        await wait_until_async(lambda: told.answers.count(("PodDisruptionBudget", "list", "", 403)) > 30)
        await wait_until_async(lambda: told.open == [""])
        await send(kmock, "POST", SERVICES, "one", new("one"))
        await wait_until_async(lambda: (Key("ns", "one"), KIND, False) in told.news)
        assert not [answer for answer in told.answers if answer[3] != 200 and answer[0] != "PodDisruptionBudget"]


def test_settings() -> None:
    settings = kopf_settings()
    assert settings.watching.inactivity_timeout == 70, "a silent stream is broken off"
    assert settings.process.ultimate_exiting_timeout is None, "a leader that stands by is not killed for it"
    assert settings.scanning.disabled and settings.peering.standalone and not settings.posting.enabled


@pytest.mark.parametrize(
    ("env", "server"),
    [
        ({}, "https://kubernetes.default.svc"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "6443"}, "https://10.0.0.1:6443"),
        ({"KUBERNETES_SERVICE_HOST": "fd00::1"}, "https://[fd00::1]:443"),
    ],
)
def test_the_server_is_reached_by_address_where_there_is_one(env: dict[str, str], server: str) -> None:
    info = kopf.ConnectionInfo(server="https://kubernetes.default.svc", token="t")
    assert _by_address(info, env).server == server
