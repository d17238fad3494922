"""The external metrics API over real TLS: who is served, and who else is told of the CA."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from tests.unit.metricsapi_bench import BACKEND, Api, Authority, made, registration
from tests.unit.test_operator_metricsapi import METRIC, NAMES, PATH, config_map

from e2e.lib.process import free_port
from e2e.lib.waiting import PATIENCE_S, wait_until_async
from semipd_operator.answers import ApiRefused
from semipd_operator.metricsapi import MetricsAPI
from semipd_operator.metricsapi.certificates import Pair
from semipd_operator.metricsapi.credentials import Credential, Mounted, NotInPlace
from semipd_operator.metricsapi.registration import Door
from semipd_operator.settings import LeaseName

pytestmark = pytest.mark.unit


@dataclass
class Running:
    api: Api
    port: int
    folder: Path
    front_proxy: Authority

    async def ask(self, path: str, client: str | None = "front-proxy-client", user: str = "alice") -> tuple[int, Any]:
        context = ssl.create_default_context(cadata=self.api.bundle)
        if client:
            context.load_cert_chain(*self.front_proxy.client(self.folder, client))
        headers = {"X-Remote-User": user} if user else {}
        async with (
            aiohttp.ClientSession() as session,
            session.get(
                f"https://127.0.0.1:{self.port}{path}", ssl=context, server_hostname=NAMES[0], headers=headers
            ) as answer,
        ):
            return answer.status, await answer.json()


def values(namespace: str) -> Mapping[str, float]:
    return {"a": 0.5, "b": 1.3} if namespace == "team" else {}


@pytest.fixture
async def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    for period in ("_LOOK_SECONDS", "_MISSING_SECONDS"):
        monkeypatch.setattr(f"semipd_operator.metricsapi.server.{period}", 0.05)
    port = free_port()
    front_proxy = Authority.make()
    api = Api(front_proxy)
    door = Door(api, BACKEND, LeaseName("sys", "leader"), "10.0.0.7", port)  # type: ignore[arg-type]
    server = MetricsAPI(api, made(api), port, values, door, registration(api))  # type: ignore[arg-type]
    task = asyncio.create_task(server.run())

    def listening() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return True
        return False

    await wait_until_async(listening)
    yield Running(api, port, tmp_path, front_proxy)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_port_that_is_taken_is_tried_again_and_leaves_nothing_behind() -> None:
    api = Api(Authority.make())
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        door = Door(api, BACKEND, None, "", port)  # type: ignore[arg-type]
        server = MetricsAPI(api, made(api), port, values, door, registration(api))  # type: ignore[arg-type]
        runner = aiohttp.web.AppRunner(server.application())
        await runner.setup()
        try:
            for _ in range(2):
                assert not await server._look(runner) and not runner.sites
            assert "APIService" not in api.applied, "what is registered answers"
            taken.close()
            assert await server._look(runner) and len(runner.sites) == 1
        finally:
            await runner.cleanup()


async def test_the_front_proxy_is_served(running: Running) -> None:
    status, found = await running.ask(METRIC + "?labelSelector=semipd_service%3Db")
    assert status == 200 and found["kind"] == "ExternalMetricValueList"
    assert [(item["metricName"], item["value"]) for item in found["items"]] == [("semipd_utilization_ratio", "1300m")]
    status, found = await running.ask(PATH)
    assert status == 200 and [each["name"] for each in found["resources"]] == ["semipd_utilization_ratio"]
    status, found = await running.ask(f"{PATH}/namespaces/other/semipd_utilization_ratio")
    assert (status, found["items"]) == (200, [])


async def test_errors_are_statuses(running: Running) -> None:
    answers = {
        METRIC + "?labelSelector=app%3Db": (400, "BadRequest"),
        f"{PATH}/namespaces/team/queue_length": (404, "NotFound"),
        "/openapi/v2": (404, "NotFound"),
    }
    for path, (code, reason) in answers.items():
        status, found = await running.ask(path)
        assert (status, found["kind"], found["reason"], found["code"]) == (code, "Status", reason, code), path


async def test_nobody_else_is_served(running: Running) -> None:
    assert (await running.ask(METRIC, user="eve"))[0] == 403
    assert (await running.ask(PATH, user="eve"))[0] == 200, "kube-apiserver itself comes as a user without rights"
    assert (await running.ask(METRIC, user=""))[0] == 401
    assert (await running.ask(METRIC, client="mallory"))[0] == 401
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await running.ask(METRIC, client=None)
    stranger = Running(running.api, running.port, running.folder, Authority.make())
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await stranger.ask(METRIC)


async def test_a_review_that_fails_is_an_error_and_not_a_yes(running: Running) -> None:
    async def refuse(*_: Any) -> Any:
        raise ApiRefused(500, "no")

    running.api.create = refuse  # type: ignore[method-assign]
    status, found = await running.ask(METRIC)
    assert (status, found["reason"]) == (503, "ServiceUnavailable")


async def test_what_is_in_place_is_not_written_again(running: Running) -> None:
    await running.ask(PATH)
    api = running.api
    assert [kind for kind, _ in api.merged] == ["Secret"]
    assert api.applied == ["EndpointSlice", "Endpoints", "APIService"], "what is registered answers"
    secret = api.merged[0][1]
    assert secret["metadata"] == {"resourceVersion": "7"}, "of two writers one loses"
    assert set(secret["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    assert "PRIVATE" not in api.bundle
    [endpoint] = api.objects["EndpointSlice", "semipd-ipv4"]["endpoints"]
    assert endpoint["addresses"] == ["10.0.0.7"]
    await registration(api).settle((await made(api).current()).ca)
    assert (len(api.merged), len(api.applied)) == (1, 3), "a restart finds all in place"


async def test_a_new_front_proxy_is_taken_without_a_restart(running: Running) -> None:
    key = ("ConfigMap", "extension-apiserver-authentication")
    fresh = Running(running.api, running.port, running.folder / "fresh", Authority.make())
    fresh.folder.mkdir()
    del running.api.objects[key]
    await asyncio.sleep(0.3)
    assert (await running.ask(PATH))[0] == 200, "what served before serves on"
    running.api.objects[key] = config_map(fresh.front_proxy.pem)

    async def served() -> bool:
        with contextlib.suppress(aiohttp.ClientError, ssl.SSLError):
            return (await fresh.ask(PATH))[0] == 200
        return False

    async with asyncio.timeout(PATIENCE_S):
        while not await served():  # noqa: ASYNC110  nobody tells when the server has looked
            await asyncio.sleep(0.05)
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await running.ask(PATH)


async def test_a_mounted_certificate_is_read_anew(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    with pytest.raises(NotInPlace, match=r"tls\.crt"):
        await mounted.current()
    for part in ("1", "2"):
        (tmp_path / "tls.crt").write_text("certificate" + part)
        (tmp_path / "tls.key").write_text("key" + part)
        pair = Pair(f"certificate{part}".encode(), f"key{part}".encode())
        assert await mounted.current() == Credential(pair, ca=None), "the CA is told by who renews them"
