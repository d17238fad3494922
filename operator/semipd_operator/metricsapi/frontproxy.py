"""Who asks: kube-apiserver proves itself by its front-proxy certificate and names the user in headers. Pure.

https://kubernetes.io/docs/tasks/extend-kubernetes/configure-aggregation-layer/
The certificate was checked against `client_ca` by TLS before any of this is asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

CONFIG_MAP = ("kube-system", "extension-apiserver-authentication")
"""(namespace, name) of what kube-apiserver publishes about itself."""


class AggregationOff(Exception):
    """The API server has no front proxy: its aggregation layer is not set up. The message says what is missing."""


class Unauthenticated(Exception):
    """The caller is not the front proxy, or names nobody."""


@dataclass(frozen=True)
class Caller:
    user: str
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class FrontProxy:
    client_ca: str
    """PEM."""
    allowed_names: tuple[str, ...]
    """Common names; empty: any certificate of the CA."""
    user_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]

    @classmethod
    def parse(cls, config_map: Mapping[str, Any] | None) -> FrontProxy:
        """Raises `AggregationOff`."""
        data = (config_map or {}).get("data") or {}
        client_ca = data.get("requestheader-client-ca-file", "")
        if not client_ca:
            where = "/".join(CONFIG_MAP)
            raise AggregationOff(f"{where} has no requestheader-client-ca-file: set up kube-apiserver's aggregation")
        return cls(
            client_ca=client_ca,
            allowed_names=_names(data, "requestheader-allowed-names"),
            user_headers=_names(data, "requestheader-username-headers"),
            group_headers=_names(data, "requestheader-group-headers"),
            extra_prefixes=_names(data, "requestheader-extra-headers-prefix"),
        )

    def identify(self, common_name: str, headers: Iterable[tuple[str, str]]) -> Caller:
        """Raises `Unauthenticated`."""
        if self.allowed_names and common_name not in self.allowed_names:
            raise Unauthenticated(f"the client certificate is {common_name!r}, not kube-apiserver's front proxy")
        given = list(headers)
        users = [value for header in self.user_headers for value in _values(given, header) if value]
        if not users:
            raise Unauthenticated("the front proxy names no user")
        groups = [value for header in self.group_headers for value in _values(given, header)]
        extra: dict[str, tuple[str, ...]] = {}
        for prefix in self.extra_prefixes:
            for name, value in given:
                if name.lower().startswith(prefix.lower()):
                    key = unquote(name[len(prefix) :].lower())
                    extra[key] = (*extra.get(key, ()), value)
        return Caller(users[0], tuple(groups), MappingProxyType(extra))


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    try:
        return tuple(str(each) for each in json.loads(data.get(key) or "[]"))
    except (ValueError, TypeError) as error:
        raise AggregationOff(f"{'/'.join(CONFIG_MAP)}: {key} is no list") from error


def _values(headers: list[tuple[str, str]], wanted: str) -> list[str]:
    return [value for name, value in headers if name.lower() == wanted.lower()]
