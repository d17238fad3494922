"""Where the server's certificate comes from, and how kube-apiserver comes to trust it.

`SelfMade` keeps a CA and a certificate in the Secret that the chart made for them, and tells the CA to the APIService.
`Mounted` reads files that someone else renews (cert-manager), who also tells the APIService.
"""

from __future__ import annotations

import base64
import binascii
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from semipd_operator.kube import Kube, Object
from semipd_operator.metricsapi.certificates import Identity, Pair, renewed
from semipd_operator.status.scaling import EXTERNAL_METRICS_API

log = logging.getLogger(__name__)

API_SERVICE = ".".join(reversed(EXTERNAL_METRICS_API.split("/")))
_REGISTRATION = "apiregistration.k8s.io/v1"
_FILES = {"ca": ("ca.crt", "ca.key"), "server": ("tls.crt", "tls.key")}


class NotInPlace(Exception):
    """Something that the chart or someone else has to provide is not there; the message names it and the remedy."""


class Credentials(Protocol):
    async def current(self) -> Pair:
        """The certificate to serve with, after whoever must trust it was told. Raises `NotInPlace`, `ApiRefused`."""


class Mounted:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def current(self) -> Pair:
        certificate, key = (self._folder / name for name in _FILES["server"])
        try:
            return Pair(certificate.read_bytes(), key.read_bytes())
        except OSError as error:
            raise NotInPlace(f"{error.filename}: {error.strerror}: mount a TLS Secret there") from error


class SelfMade:
    def __init__(self, kube: Kube, namespace: str, service: str, secret: str) -> None:
        self._kube, self._namespace, self._service, self._secret = kube, namespace, service, secret
        self._names = (f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local")

    async def current(self) -> Pair:
        live = await self._kube.get("v1", "Secret", self._namespace, self._secret)
        if live is None:
            raise NotInPlace(f"Secret {self._namespace}/{self._secret} does not exist: the chart makes it")
        before = _decode(live)
        identity = renewed(before, self._names, datetime.now(UTC))
        if identity != before:
            # The version: of two operators at once only one may write.
            metadata = {"resourceVersion": live["metadata"]["resourceVersion"]}
            changes = {"metadata": metadata, "data": _encode(identity)}
            await self._kube.merge("v1", "Secret", self._namespace, self._secret, changes)
            log.info("external metrics: a new certificate is in Secret %s/%s", self._namespace, self._secret)
        await self._tell(identity.ca.certificate)
        return identity.server

    async def _tell(self, ca: bytes) -> None:
        live = await self._kube.get(_REGISTRATION, "APIService", "", API_SERVICE)
        if live is None:
            raise NotInPlace(f"APIService {API_SERVICE} does not exist: the chart makes it (metricsApi.enabled)")
        backend = live["spec"].get("service") or {}
        if (backend.get("namespace"), backend.get("name")) != (self._namespace, self._service):
            owner = f"{backend.get('namespace')}/{backend.get('name')}"
            raise NotInPlace(f"APIService {API_SERVICE} belongs to {owner}: set metricsApi.enabled=false in the chart")
        bundle = base64.b64encode(ca).decode()
        if live["spec"].get("caBundle") != bundle:
            await self._kube.merge(_REGISTRATION, "APIService", "", API_SERVICE, {"spec": {"caBundle": bundle}})


def _decode(secret: Object) -> Identity | None:
    data = secret.get("data") or {}
    try:
        parts = {part: Pair(*(base64.b64decode(data[name]) for name in names)) for part, names in _FILES.items()}
    except (KeyError, binascii.Error):
        return None
    return Identity(**parts)


def _encode(identity: Identity) -> dict[str, str]:
    pairs = {"ca": identity.ca, "server": identity.server}
    return {
        name: base64.b64encode(content).decode()
        for part, pair in pairs.items()
        for name, content in zip(_FILES[part], (pair.certificate, pair.key), strict=True)
    }
