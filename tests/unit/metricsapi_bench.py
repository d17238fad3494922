"""A front proxy's CA, and an API server that keeps what the external metrics API writes."""

from __future__ import annotations

import base64
import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.unit.test_operator_metricsapi import Reviews, config_map

from semipd_operator.answers import ApiRefused
from semipd_operator.metricsapi.credentials import SelfMade
from semipd_operator.metricsapi.registration import API_SERVICE, Backend, Registration


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


BACKEND = Backend("sys", "semipd")


def made(api: Api) -> SelfMade:
    return SelfMade(api, "sys", "semipd", "keys")  # type: ignore[arg-type]


def registration(api: Api, wanted: bool | None = True) -> Registration:
    return Registration(api, BACKEND, lambda: wanted, {})  # type: ignore[arg-type]
