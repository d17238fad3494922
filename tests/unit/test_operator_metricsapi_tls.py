"""The external metrics API over real TLS: who is served, and who else is told of the CA."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.unit.test_operator_metricsapi import METRIC, NAMES, PATH, Reviews, config_map

from semipd_operator.kube import ApiRefused
from semipd_operator.metricsapi import MetricsAPI
from semipd_operator.metricsapi.certificates import Pair
from semipd_operator.metricsapi.credentials import API_SERVICE, Mounted, NotInPlace, SelfMade

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Authority:
    """A CA for client certificates, as kube-apiserver's front proxy has one."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls) -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "front-proxy-ca")])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
        )
        return cls(key, builder.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256()))

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def client(self, folder: Path, common_name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            self.certificate.subject, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
        )
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        certificate = builder.add_extension(usage, False).sign(self.key, hashes.SHA256())
        files = folder / f"{common_name}.crt", folder / f"{common_name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        files[1].write_bytes(key.private_bytes(pem, form, serialization.NoEncryption()))
        return files


class Api(Reviews):
    """The objects that the metrics API reads and writes at the API server."""

    def __init__(self, front_proxy: Authority) -> None:
        super().__init__()
        self.objects: dict[tuple[str, str], dict[str, Any]] = {
            ("ConfigMap", "extension-apiserver-authentication"): config_map(front_proxy.pem),
            ("Secret", "keys"): {"metadata": {"resourceVersion": "7"}},
            ("APIService", API_SERVICE): {"spec": {"service": {"namespace": "sys", "name": "semipd"}}},
        }
        self.merged: list[tuple[str, dict[str, Any]]] = []

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, name))

    async def merge(self, api_version: str, kind: str, namespace: str, name: str, changes: dict[str, Any]) -> None:
        self.merged.append((kind, changes))
        live = self.objects[kind, name]
        live["data" if kind == "Secret" else "spec"] = {
            **live.get("data", live.get("spec", {})),
            **changes.get("data", {}),
            **changes.get("spec", {}),
        }

    @property
    def bundle(self) -> str:
        return base64.b64decode(self.objects["APIService", API_SERVICE]["spec"]["caBundle"]).decode()


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
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    front_proxy = Authority.make()
    api = Api(front_proxy)
    server = MetricsAPI(api, SelfMade(api, "sys", "semipd", "keys"), port, values)  # type: ignore[arg-type]
    task = asyncio.create_task(server.run())
    for _ in range(100):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        await asyncio.sleep(0.05)
    yield Running(api, port, tmp_path, front_proxy)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_the_front_proxy_is_served(running: Running) -> None:
    status, found = await running.ask(METRIC + "?labelSelector=semipd_service%3Db")
    assert status == 200 and found["kind"] == "ExternalMetricValueList"
    assert [(item["metricName"], item["value"]) for item in found["items"]] == [("semipd_capacity_ratio", "1300m")]
    status, found = await running.ask(PATH)
    assert status == 200 and [each["name"] for each in found["resources"]] == ["semipd_capacity_ratio"]
    status, found = await running.ask(f"{PATH}/namespaces/other/semipd_capacity_ratio")
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


async def test_the_secret_and_the_api_service_are_written_once(running: Running) -> None:
    await running.ask(PATH)
    assert [kind for kind, _ in running.api.merged] == ["Secret", "APIService"]
    secret = running.api.merged[0][1]
    assert secret["metadata"] == {"resourceVersion": "7"}, "of two writers one loses"
    assert set(secret["data"]) == {"ca.crt", "ca.key", "tls.crt", "tls.key"}
    assert "PRIVATE" not in running.api.bundle
    await SelfMade(running.api, "sys", "semipd", "keys").current()  # type: ignore[arg-type]
    assert len(running.api.merged) == 2, "a restart finds all in place"


async def test_a_new_front_proxy_is_taken_without_a_restart(running: Running) -> None:
    key = ("ConfigMap", "extension-apiserver-authentication")
    fresh = Running(running.api, running.port, running.folder / "fresh", Authority.make())
    fresh.folder.mkdir()
    del running.api.objects[key]
    await asyncio.sleep(0.3)
    assert (await running.ask(PATH))[0] == 200, "what served before serves on"
    running.api.objects[key] = config_map(fresh.front_proxy.pem)
    await asyncio.sleep(0.3)
    assert (await fresh.ask(PATH))[0] == 200
    with pytest.raises((aiohttp.ClientError, ssl.SSLError)):
        await running.ask(PATH)


async def test_another_owner_of_the_api_service_is_left_alone() -> None:
    api = Api(Authority.make())
    api.objects["APIService", API_SERVICE]["spec"]["service"] = {"namespace": "keda", "name": "adapter"}
    credentials = SelfMade(api, "sys", "semipd", "keys")  # type: ignore[arg-type]
    with pytest.raises(NotInPlace, match=r"belongs to keda/adapter: set metricsApi\.enabled=false"):
        await credentials.current()
    assert [kind for kind, _ in api.merged] == ["Secret"]
    del api.objects["APIService", API_SERVICE]
    with pytest.raises(NotInPlace, match="the chart makes it"):
        await credentials.current()


async def test_a_mounted_certificate_is_read_anew(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    with pytest.raises(NotInPlace, match=r"tls\.crt"):
        await mounted.current()
    for part in ("1", "2"):
        (tmp_path / "tls.crt").write_text("certificate" + part)
        (tmp_path / "tls.key").write_text("key" + part)
        assert await mounted.current() == Pair(f"certificate{part}".encode(), f"key{part}".encode())
