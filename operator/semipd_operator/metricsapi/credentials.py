"""Where the server's certificate comes from, and which CA kube-apiserver is to trust.

`SelfMade` keeps a CA and a certificate in the Secret that the chart made for them.
`Mounted` reads files that someone else renews (cert-manager), who also writes the CA into the registration.
"""

from __future__ import annotations

import base64
import binascii
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from semipd_operator.answers import Object
from semipd_operator.kube import Kube
from semipd_operator.metricsapi.certificates import Identity, Pair, renewed

log = logging.getLogger(__name__)

_FILES = {"ca": ("ca.crt", "ca.key"), "server": ("tls.crt", "tls.key")}


class NotInPlace(Exception):
    """Something that the chart or someone else has to provide is not there; the message names it and the remedy."""


@dataclass(frozen=True)
class Credential:
    server: Pair
    ca: bytes | None
    """PEM of what kube-apiserver must trust; None: someone else tells it."""


class Credentials(Protocol):
    async def current(self) -> Credential:
        """Raises `NotInPlace`, `ApiRefused`."""


class Mounted:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def current(self) -> Credential:
        certificate, key = (self._folder / name for name in _FILES["server"])
        try:
            return Credential(Pair(certificate.read_bytes(), key.read_bytes()), None)
        except OSError as error:
            raise NotInPlace(f"{error.filename}: {error.strerror}: mount a TLS Secret there") from error


class SelfMade:
    def __init__(self, kube: Kube, namespace: str, service: str, secret: str) -> None:
        self._kube, self._namespace, self._service, self._secret = kube, namespace, service, secret
        self._names = (f"{service}.{namespace}.svc", f"{service}.{namespace}.svc.cluster.local")

    async def current(self) -> Credential:
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
        return Credential(identity.server, identity.ca.certificate)


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
