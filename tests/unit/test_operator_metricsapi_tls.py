"""The external metrics API over real TLS: who is served, and who else is told of the CA."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import aiohttp.web
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.unit.test_operator_metricsapi import METRIC, NAMES, PATH, Reviews, config_map

from e2e.lib.process import free_port
from e2e.lib.waiting import PATIENCE_S, wait_until_async
from semipd_operator.answers import ApiRefused
from semipd_operator.metricsapi import MetricsAPI
from semipd_operator.metricsapi.certificates import Pair
from semipd_operator.metricsapi.credentials import Credential, Mounted, NotInPlace, SelfMade
from semipd_operator.metricsapi.registration import API_SERVICE, Backend, BelongsToAnother, Door, Registration
from semipd_operator.settings import LeaseName

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
            ("ClusterRole", "semipd"): {"metadata": {"uid": "role-1"}},
            ("Lease", "leader"): {"metadata": {"uid": "lease-1"}},
        }
        self.merged: list[tuple[str, dict[str, Any]]] = []
        self.applied: list[str] = []

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, name))

    async def merge(self, api_version: str, kind: str, namespace: str, name: str, changes: dict[str, Any]) -> None:
        self.merged.append((kind, changes))
        live = self.objects[kind, name]
        if kind == "Secret":
            live["data"] = {**live.get("data", {}), **changes["data"]}
        else:
            live["metadata"] |= changes["metadata"]

    async def apply(self, obj: dict[str, Any]) -> None:
        kind, name = obj["kind"], obj["metadata"]["name"]
        live = self.objects.get((kind, name))
        self.applied.append(kind)
        version = str(int(live["metadata"]["resourceVersion"]) + 1) if live else "1"
        metadata = {"uid": f"{name}-uid", **obj["metadata"], "resourceVersion": version}
        self.objects[kind, name] = {**copy.deepcopy(obj), "metadata": metadata}

    async def apply_to(self, obj: dict[str, Any], live: dict[str, Any] | None) -> None:
        found = self.objects.get((obj["kind"], obj["metadata"]["name"]))
        if found != live:
            raise ApiRefused(409, "conflict")
        await self.apply(obj)

    async def delete(self, api_version: str, kind: str, namespace: str, name: str, uid: str, version: str) -> bool:
        meta = self.objects[kind, name]["metadata"]
        if (meta["uid"], meta["resourceVersion"]) != (uid, version):
            return False
        del self.objects[kind, name]
        return True

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


BACKEND = Backend("sys", "semipd")


def made(api: Api) -> SelfMade:
    return SelfMade(api, "sys", "semipd", "keys")  # type: ignore[arg-type]


def registration(api: Api, wanted: bool | None = True) -> Registration:
    return Registration(api, BACKEND, lambda: wanted, {})  # type: ignore[arg-type]


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


def of_another(**metadata: Any) -> dict[str, Any]:
    meta = {"name": API_SERVICE, "uid": "u", "resourceVersion": "5", **metadata}
    return {"metadata": meta, "spec": {"service": {"namespace": "keda", "name": "adapter"}}}


async def test_the_registration_follows_the_wish() -> None:
    api = Api(Authority.make())
    for undecided in (None, False):
        await registration(api, undecided).settle(b"ca")
        assert ("APIService", API_SERVICE) not in api.objects
    await registration(api).settle(b"ca")
    live = api.objects["APIService", API_SERVICE]
    assert live["spec"]["service"] == {"namespace": "sys", "name": "semipd", "port": 443}
    assert [(each["kind"], each["uid"]) for each in live["metadata"]["ownerReferences"]] == [("ClusterRole", "role-1")]
    await registration(api).settle(b"another ca")
    assert api.bundle == "another ca"
    await registration(api, None).settle(b"another ca")
    assert ("APIService", API_SERVICE) in api.objects, "a leader that does not know yet takes nothing back"
    await registration(api, False).settle(b"another ca")
    assert ("APIService", API_SERVICE) not in api.objects


async def test_one_that_changes_as_it_is_withdrawn_stays_and_is_not_said_to_be_gone(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    api = Api(Authority.make())
    await registration(api).settle(b"ca")
    read = copy.deepcopy(api.objects["APIService", API_SERVICE])

    async def earlier(*_: str) -> dict[str, Any]:
        return read

    with monkeypatch.context() as late:
        late.setattr(api, "get", earlier)
        api.objects["APIService", API_SERVICE]["metadata"]["resourceVersion"] = "9"
        await registration(api, False).settle(b"ca")
    assert ("APIService", API_SERVICE) in api.objects and "withdrew" not in caplog.text
    await registration(api, False).settle(b"ca")
    assert ("APIService", API_SERVICE) not in api.objects and "withdrew" in caplog.text


async def test_anothers_registration_is_left_alone() -> None:
    api = Api(Authority.make())
    api.objects["APIService", API_SERVICE] = before = of_another()
    for wanted in (True, None, False):
        with pytest.raises(BelongsToAnother, match="belongs to keda/adapter"):
            await registration(api, wanted).settle(b"ca")
    await registration(api).withdraw()
    assert api.objects["APIService", API_SERVICE] == before and not api.applied and not api.merged


async def test_our_ownership_comes_off_what_another_took_over() -> None:
    api = Api(Authority.make())
    await registration(api).settle(b"ca")
    ours = api.objects["APIService", API_SERVICE]["metadata"]["ownerReferences"]
    theirs = {"kind": "ClusterRole", "name": "keda", "uid": "k"}
    api.objects["APIService", API_SERVICE] = of_another(ownerReferences=[*ours, theirs])
    with pytest.raises(BelongsToAnother):
        await registration(api).settle(b"ca")
    assert api.merged == [("APIService", {"metadata": {"ownerReferences": [theirs], "resourceVersion": "5"}})]
    with pytest.raises(BelongsToAnother):
        await registration(api).settle(b"ca")
    assert len(api.merged) == 1


async def test_nothing_of_ours_stays_on_what_another_took_over() -> None:
    """Whoever applies his own over ours by force has what he names, and the rest is left: our CA, by which nobody would
    believe his server, and the word to cert-manager to write it again."""
    api = Api(Authority.make())
    injected = {"cert-manager.io/inject-ca-from": "sys/semipd"}
    backend = Backend("sys", "semipd")
    ours = Registration(api, backend, lambda: True, injected)  # type: ignore[arg-type]
    await ours.settle(b"ca")
    live = api.objects["APIService", API_SERVICE]
    live["spec"]["service"] = {"namespace": "keda", "name": "adapter"}
    labels = {**live["metadata"]["labels"], "app.kubernetes.io/managed-by": "Helm", "team": "a"}
    live["metadata"] |= {"labels": labels, "annotations": {**injected, "note": "n"}, "resourceVersion": "6"}
    with pytest.raises(BelongsToAnother):
        await ours.settle(b"ca")
    metadata = {
        "ownerReferences": None,
        "annotations": dict.fromkeys(injected),
        "labels": {"app.kubernetes.io/part-of": None},
        "resourceVersion": "6",
    }
    assert api.merged == [("APIService", {"metadata": metadata, "spec": {"caBundle": None}})]
    live["spec"]["caBundle"] = "dGhlaXJz"
    live["metadata"] = {"name": API_SERVICE, "uid": "u", "resourceVersion": "7", "annotations": {"note": "n"}}
    with pytest.raises(BelongsToAnother):
        await ours.settle(b"ca")
    assert len(api.merged) == 1, "and nothing of theirs"


async def test_two_releases_leave_each_others_registration_alone() -> None:
    """Both write the same labels: one took them off the other's, which wrote them again, each ten seconds."""
    api = Api(Authority.make())
    await registration(api).settle(b"ca")
    second = Registration(api, Backend("other", "second"), lambda: True, {})  # type: ignore[arg-type]
    with pytest.raises(BelongsToAnother, match="belongs to sys/semipd"):
        await second.settle(b"another ca")
    assert not api.merged
    api.applied.clear()
    await registration(api).settle(b"ca")
    assert not api.applied


async def test_one_that_another_makes_at_the_same_moment_is_not_taken() -> None:
    api = Api(Authority.make())
    seen = api.get

    async def too_early(api_version: str, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return None if kind == "APIService" else await seen(api_version, kind, namespace, name)

    api.objects["APIService", API_SERVICE] = of_another()
    api.get = too_early  # type: ignore[method-assign]
    with pytest.raises(BelongsToAnother, match="changed by another"):
        await registration(api).settle(b"ca")


async def test_a_mounted_certificate_is_read_anew(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path)
    with pytest.raises(NotInPlace, match=r"tls\.crt"):
        await mounted.current()
    for part in ("1", "2"):
        (tmp_path / "tls.crt").write_text("certificate" + part)
        (tmp_path / "tls.key").write_text("key" + part)
        pair = Pair(f"certificate{part}".encode(), f"key{part}".encode())
        assert await mounted.current() == Credential(pair, ca=None), "the CA is told by who renews them"
